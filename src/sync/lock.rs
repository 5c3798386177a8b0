//! Locks with a rank, over those of `parking_lot` or of the simulator. Only tests have locks without one.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use super::rank::{Held, Mark, Rank};
#[cfg(feature = "sim")]
use super::sim as raw;
use super::time::Instant;
#[cfg(not(feature = "sim"))]
use parking_lot as raw;

/// A mutex. Not fair, not poisoned by a panic.
pub struct Mutex<T: ?Sized> {
    mark: Mark,
    inner: raw::Mutex<T>,
}

/// Holds a [`Mutex`].
#[must_use]
pub struct MutexGuard<'a, T: ?Sized> {
    inner: raw::MutexGuard<'a, T>,
    held: Held,
}

impl<T> Mutex<T> {
    /// A mutex of a test, outside the order of locks.
    #[cfg(test)]
    pub const fn new(value: T) -> Self {
        Self::ranked(Rank::Unranked, value)
    }

    /// A mutex that is taken in the order of ranks.
    pub const fn ranked(rank: Rank, value: T) -> Self {
        Self { mark: Mark::new(rank), inner: raw::Mutex::new(value) }
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Takes the lock; waits for it.
    #[track_caller]
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let held = self.mark.takes();
        MutexGuard { inner: self.inner.lock(), held }
    }

    /// Takes the lock if nothing holds it.
    #[track_caller]
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let inner = self.inner.try_lock()?;
        Some(MutexGuard { inner, held: self.mark.has() })
    }
}

#[cfg(test)]
impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl<T: ?Sized> MutexGuard<'_, T> {
    /// Runs `f` without the lock.
    #[track_caller]
    pub fn unlocked<U>(guard: &mut Self, f: impl FnOnce() -> U) -> U {
        let Self { inner, held } = guard;
        held.without(|| raw::MutexGuard::unlocked(inner, f))
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// A lock for readers and writers. A writer that waits keeps new readers out, so a thread must not read twice.
pub struct RwLock<T: ?Sized> {
    mark: Mark,
    inner: raw::RwLock<T>,
}

/// Holds an [`RwLock`] to read.
#[must_use]
pub struct RwLockReadGuard<'a, T: ?Sized> {
    inner: raw::RwLockReadGuard<'a, T>,
    _held: Held,
}

/// Holds an [`RwLock`] to write.
#[must_use]
pub struct RwLockWriteGuard<'a, T: ?Sized> {
    inner: raw::RwLockWriteGuard<'a, T>,
    _held: Held,
}

impl<T> RwLock<T> {
    /// A lock of a test, outside the order of locks.
    #[cfg(test)]
    pub const fn new(value: T) -> Self {
        Self::ranked(Rank::Unranked, value)
    }

    /// A lock that is taken in the order of ranks.
    pub const fn ranked(rank: Rank, value: T) -> Self {
        Self { mark: Mark::new(rank), inner: raw::RwLock::new(value) }
    }
}

impl<T: ?Sized> RwLock<T> {
    /// Takes the lock to read; waits for writers.
    #[track_caller]
    #[inline]
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        let held = self.mark.takes();
        RwLockReadGuard { inner: self.inner.read(), _held: held }
    }

    /// Takes the lock to write; waits for all others.
    #[track_caller]
    #[inline]
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        let held = self.mark.takes();
        RwLockWriteGuard { inner: self.inner.write(), _held: held }
    }
}

#[cfg(test)]
impl<T: Default> Default for RwLock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl<T: ?Sized> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> DerefMut for RwLockWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// A condition variable.
#[derive(Debug, Default)]
pub struct Condvar(raw::Condvar);

impl Condvar {
    /// One that nothing waits for.
    pub const fn new() -> Self {
        Self(raw::Condvar::new())
    }

    /// Ends the wait of one thread; answers whether there was one.
    #[track_caller]
    #[inline]
    pub fn notify_one(&self) -> bool {
        self.0.notify_one()
    }

    /// Ends the wait of all threads; answers how many.
    #[track_caller]
    #[inline]
    pub fn notify_all(&self) -> usize {
        self.0.notify_all()
    }

    /// Waits for a notification.
    #[track_caller]
    pub fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>) {
        self.0.wait(&mut guard.inner);
    }

    /// Waits for a notification, or for the time.
    #[track_caller]
    pub fn wait_for<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, timeout: Duration) -> raw::WaitTimeoutResult {
        self.0.wait_for(&mut guard.inner, timeout)
    }

    /// Waits for a notification, or for the moment.
    #[track_caller]
    pub fn wait_until<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, until: Instant) -> raw::WaitTimeoutResult {
        self.0.wait_until(&mut guard.inner, until)
    }
}
