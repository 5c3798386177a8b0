//! Waiting for a change of any part of a hydrator.

use std::time::Duration;

use crate::sync::{Condvar, Mutex};

/// Counts changes. A thread that has to wait notes the count, looks at the parts, and waits for another count: a change that comes
/// between the look and the wait ends the wait at once.
#[derive(Default)]
pub struct News {
    count: Mutex<u64>,
    changed: Condvar,
}

impl News {
    /// The count now.
    pub fn seen(&self) -> u64 {
        *self.count.lock()
    }

    /// Something has changed. The change comes before this call.
    pub fn tell(&self) {
        *self.count.lock() += 1;
        self.changed.notify_all();
    }

    /// Waits for a change since the count was `seen`, for at most `timeout`.
    pub fn wait(&self, seen: u64, timeout: Option<Duration>) {
        let mut count = self.count.lock();
        match timeout {
            None => {
                while *count == seen {
                    self.changed.wait(&mut count);
                }
            }
            // The callers look at the time, and wait again if this was too short.
            Some(timeout) if *count == seen => drop(self.changed.wait_for(&mut count, timeout)),
            Some(_) => {}
        }
    }
}
