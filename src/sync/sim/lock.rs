//! The mutex.

use std::fmt;
use std::ops::{Deref, DerefMut};

use super::current;
use super::order::Number;
use super::state::On;

/// As `parking_lot::Mutex`.
#[derive(Default)]
pub struct Mutex<T: ?Sized> {
    number: Number,
    real: parking_lot::Mutex<T>,
}

/// As `parking_lot::MutexGuard`.
#[must_use]
pub struct MutexGuard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
    /// `None` while it is unlocked for a moment.
    real: Option<parking_lot::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    /// A mutex that nothing holds.
    pub const fn new(value: T) -> Self {
        Self { number: Number::new(), real: parking_lot::Mutex::new(value) }
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.real.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    fn address(&self) -> usize {
        (&raw const self.number).addr()
    }

    /// Takes the lock; waits for it.
    #[track_caller]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        if let Some(task) = current() {
            task.point("lock");
        }
        MutexGuard { mutex: self, real: Some(self.lock_without_point()) }
    }

    #[track_caller]
    fn lock_without_point(&self) -> parking_lot::MutexGuard<'_, T> {
        let Some(task) = current() else { return self.real.lock() };
        task.takes(self.number.get());
        loop {
            match self.real.try_lock() {
                Some(real) => return real,
                None => drop(task.wait("lock", On::Lock(self.address()), None)),
            }
        }
    }

    /// Takes the lock if nothing holds it.
    #[track_caller]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let task = current();
        if let Some(task) = &task {
            task.point("try_lock");
        }
        let real = self.real.try_lock()?;
        if let Some(task) = &task {
            task.has(self.number.get());
        }
        Some(MutexGuard { mutex: self, real: Some(real) })
    }

    /// The value; nothing else can have it.
    pub fn get_mut(&mut self) -> &mut T {
        self.real.get_mut()
    }

    /// Whether something holds it.
    #[track_caller]
    pub fn is_locked(&self) -> bool {
        if let Some(task) = current() {
            task.point("is_locked");
        }
        self.real.is_locked()
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.real.fmt(f)
    }
}

impl<T> From<T> for Mutex<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<'a, T: ?Sized> MutexGuard<'a, T> {
    pub(super) fn real(&mut self) -> &mut parking_lot::MutexGuard<'a, T> {
        self.real.as_mut().expect("the guard holds its lock")
    }

    pub(super) fn release(&mut self) {
        if self.real.take().is_some()
            && let Some(task) = current()
        {
            task.gives(self.mutex.number.get(), self.mutex.address());
        }
    }

    #[track_caller]
    pub(super) fn take_again(&mut self) {
        self.real = Some(self.mutex.lock_without_point());
    }

    /// Runs `f` without the lock.
    #[track_caller]
    pub fn unlocked<U>(guard: &mut Self, f: impl FnOnce() -> U) -> U {
        /// Takes the lock again even after a panic, since the guard's owner may look at the value while it unwinds.
        struct Again<'b, 'a, T: ?Sized>(&'b mut MutexGuard<'a, T>);
        impl<T: ?Sized> Drop for Again<'_, '_, T> {
            fn drop(&mut self) {
                self.0.take_again();
            }
        }
        guard.release();
        let again = Again(guard);
        let value = f();
        if let Some(task) = current() {
            task.point("lock again");
        }
        drop(again);
        value
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.release();
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.real.as_ref().expect("the guard holds its lock")
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.real()
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
