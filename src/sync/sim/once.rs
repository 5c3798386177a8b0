//! The cell that is set once.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::current;
use super::state::On;

/// As `std::sync::OnceLock`. A task whose value another one makes waits for it here, and not inside the standard library.
pub struct OnceLock<T> {
    real: std::sync::OnceLock<T>,
    /// A task makes the value.
    taken: AtomicBool,
}

impl<T> OnceLock<T> {
    /// One without a value.
    pub const fn new() -> Self {
        Self { real: std::sync::OnceLock::new(), taken: AtomicBool::new(false) }
    }

    /// The value if there is one.
    pub fn get(&self) -> Option<&T> {
        self.real.get()
    }

    /// The value if there is one.
    pub fn get_mut(&mut self) -> Option<&mut T> {
        self.real.get_mut()
    }

    /// Sets the value.
    ///
    /// # Errors
    /// There is one; gives the other back.
    #[track_caller]
    pub fn set(&self, value: T) -> Result<(), T> {
        if let Some(task) = current() {
            task.point("set");
        }
        self.real.set(value)
    }

    /// The value; makes it if there is none.
    #[track_caller]
    pub fn get_or_init(&self, f: impl FnOnce() -> T) -> &T {
        /// Lets another task make the value, also after a panic.
        struct Making<'a, T>(&'a OnceLock<T>);
        impl<T> Drop for Making<'_, T> {
            fn drop(&mut self) {
                self.0.taken.store(false, Ordering::Relaxed);
                if let Some(task) = current() {
                    task.world.state.lock().wake_lock(self.0.address());
                }
            }
        }
        let Some(task) = current() else { return self.real.get_or_init(f) };
        while self.real.get().is_none() && self.taken.swap(true, Ordering::Relaxed) {
            task.wait("get_or_init", On::Lock(self.address()), None);
        }
        if let Some(value) = self.real.get() {
            return value;
        }
        let making = Making(self);
        let value = f();
        // A value that was set meanwhile stays.
        let value = self.real.get_or_init(|| value);
        drop(making);
        value
    }

    fn address(&self) -> usize {
        (&raw const self.taken).addr()
    }
}

impl<T> Default for OnceLock<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone> Clone for OnceLock<T> {
    fn clone(&self) -> Self {
        self.get().cloned().map_or_else(Self::new, Self::from)
    }
}

impl<T> From<T> for OnceLock<T> {
    fn from(value: T) -> Self {
        Self { real: std::sync::OnceLock::from(value), taken: AtomicBool::new(false) }
    }
}

impl<T: fmt::Debug> fmt::Debug for OnceLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.real.fmt(f)
    }
}
