//! Queues that complete writes on behalf of a waiter.

use std::sync::Weak;
use std::time::Duration;

use crate::sync::{Mutex, Rank};

/// How long a waiter sleeps before it looks again whether it can help.
pub(super) const HELP_INTERVAL: Duration = Duration::from_millis(1);

/// A queue that can complete writes that the kernel has finished, while the queue's owner may be waiting elsewhere.
pub trait Reap: Send + Sync {
    /// Takes finished writes, without waiting.
    fn reap_finished(&self);
}

/// The queues of a store.
pub struct Reapers(Mutex<Vec<Weak<dyn Reap>>>);

impl Default for Reapers {
    fn default() -> Self {
        Self(Mutex::ranked(Rank::Reapers, Vec::new()))
    }
}

impl Reapers {
    /// Lets a queue help waiters along, for as long as it lives.
    pub fn register(&self, reaper: Weak<dyn Reap>) {
        let mut reapers = self.0.lock();
        reapers.retain(|reaper| reaper.strong_count() > 0);
        reapers.push(reaper);
    }

    /// Completes writes that the kernel has finished. Their queue's owner may be waiting for the caller.
    pub fn help(&self) {
        let reapers: Vec<_> = self.0.lock().iter().filter_map(Weak::upgrade).collect();
        for reaper in reapers {
            reaper.reap_finished();
        }
    }
}
