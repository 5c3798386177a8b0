//! The lock for readers and writers.
//!
//! As in `parking_lot`, a writer that waits keeps new readers out: a thread that reads twice deadlocks with it, and that is found.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::current;
use super::order::Number;
use super::state::On;

/// As `parking_lot::RwLock`.
#[derive(Default)]
pub struct RwLock<T: ?Sized> {
    number: Number,
    /// Tasks that wait to write.
    writers: AtomicUsize,
    real: parking_lot::RwLock<T>,
}

/// As `parking_lot::RwLockReadGuard`.
#[must_use]
pub struct RwLockReadGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    real: Option<parking_lot::RwLockReadGuard<'a, T>>,
}

/// As `parking_lot::RwLockWriteGuard`.
#[must_use]
pub struct RwLockWriteGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    real: Option<parking_lot::RwLockWriteGuard<'a, T>>,
}

impl<T> RwLock<T> {
    /// A lock that nothing holds.
    pub const fn new(value: T) -> Self {
        Self { number: Number::new(), writers: AtomicUsize::new(0), real: parking_lot::RwLock::new(value) }
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.real.into_inner()
    }
}

impl<T: ?Sized> RwLock<T> {
    fn address(&self) -> usize {
        (&raw const self.writers).addr()
    }

    /// Takes the lock to read; waits for writers.
    #[track_caller]
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        let Some(task) = current() else { return RwLockReadGuard { lock: self, real: Some(self.real.read()) } };
        task.point("read lock");
        task.takes(self.number.get());
        loop {
            if let Some(guard) = self.read_if_free() {
                return guard;
            }
            task.wait("read lock", On::Lock(self.address()), None);
        }
    }

    fn read_if_free(&self) -> Option<RwLockReadGuard<'_, T>> {
        let free = self.writers.load(Ordering::Relaxed) == 0;
        let real = free.then(|| self.real.try_read()).flatten()?;
        Some(RwLockReadGuard { lock: self, real: Some(real) })
    }

    /// Takes the lock to write; waits for all others.
    #[track_caller]
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        let Some(task) = current() else { return RwLockWriteGuard { lock: self, real: Some(self.real.write()) } };
        task.point("write lock");
        task.takes(self.number.get());
        loop {
            if let Some(real) = self.real.try_write() {
                return RwLockWriteGuard { lock: self, real: Some(real) };
            }
            self.writers.fetch_add(1, Ordering::Relaxed);
            task.wait("write lock", On::Lock(self.address()), None);
            self.writers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes the lock to read if no writer has it or waits for it.
    #[track_caller]
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        match current() {
            Some(task) => {
                task.point("try_read");
                self.read_if_free().inspect(|_| task.has(self.number.get()))
            }
            None => Some(RwLockReadGuard { lock: self, real: Some(self.real.try_read()?) }),
        }
    }

    /// Takes the lock to write if nothing has it.
    #[track_caller]
    pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
        let task = current();
        if let Some(task) = &task {
            task.point("try_write");
        }
        let real = self.real.try_write()?;
        if let Some(task) = &task {
            task.has(self.number.get());
        }
        Some(RwLockWriteGuard { lock: self, real: Some(real) })
    }

    /// The value; nothing else can have it.
    pub fn get_mut(&mut self) -> &mut T {
        self.real.get_mut()
    }

    fn released(&self) {
        if let Some(task) = current() {
            task.gives(self.number.get(), self.address());
        }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.real.fmt(f)
    }
}

impl<T: ?Sized> Drop for RwLockReadGuard<'_, T> {
    fn drop(&mut self) {
        self.real = None;
        self.lock.released();
    }
}

impl<T: ?Sized> Drop for RwLockWriteGuard<'_, T> {
    fn drop(&mut self) {
        self.real = None;
        self.lock.released();
    }
}

impl<T: ?Sized> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.real.as_ref().expect("the guard holds its lock")
    }
}

impl<T: ?Sized> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.real.as_ref().expect("the guard holds its lock")
    }
}

impl<T: ?Sized> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.real.as_mut().expect("the guard holds its lock")
    }
}
