//! Notification of changes in any part of a hydrator.

use std::time::Duration;

use crate::sync::{Condvar, Mutex, Rank};

/// A counter of changes. A thread notes the count, looks at the parts, and then waits until the count differs: a change between the look
/// and the wait ends the wait at once, so no wake is lost.
pub struct News {
    count: Mutex<u64>,
    changed: Condvar,
}

impl Default for News {
    fn default() -> Self {
        Self { count: Mutex::ranked(Rank::News, 0), changed: Condvar::new() }
    }
}

impl News {
    /// The present count.
    pub fn seen(&self) -> u64 {
        *self.count.lock()
    }

    /// Counts a change and wakes all waiting threads. Make the change before this call.
    pub fn tell(&self) {
        *self.count.lock() += 1;
        self.changed.notify_all();
    }

    /// Waits until the count differs from `seen`, for at most `timeout`. May return early.
    pub fn wait(&self, seen: u64, timeout: Option<Duration>) {
        let mut count = self.count.lock();
        match timeout {
            None => {
                while *count == seen {
                    self.changed.wait(&mut count);
                }
            }
            // Waits once: callers check the time, and wait again after a spurious wake.
            Some(timeout) if *count == seen => drop(self.changed.wait_for(&mut count, timeout)),
            Some(_) => {}
        }
    }
}
