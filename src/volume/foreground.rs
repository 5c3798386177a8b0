//! How long requests of the foreground take that need no source, for hydrations that yield to them.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::hydrate::Budget;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Latencies of the foreground.
pub struct Foreground {
    budget: Arc<Budget>,
    clock: Arc<dyn Clock>,
    /// Reads so far that waited for a source.
    demands: AtomicU64,
}

impl Foreground {
    /// Of a store whose hydrators share `budget`.
    pub fn new(budget: Arc<Budget>, clock: Arc<dyn Clock>) -> Self {
        Self { budget, clock, demands: AtomicU64::new(0) }
    }

    /// The time, if hydrations want to know how long requests take.
    pub fn began(&self) -> Option<Duration> {
        self.budget.latencies().is_watched().then(|| self.clock.monotonic())
    }

    /// Notes how long a request took that needed no source.
    pub fn note_latency(&self, began: Option<Duration>) {
        if let Some(began) = began {
            self.budget.latencies().note(self.clock.monotonic().saturating_sub(began));
        }
    }

    /// Reads so far that waited for a source.
    pub fn demands(&self) -> u64 {
        self.demands.load(Ordering::Relaxed)
    }

    /// A read waits for a source: how long it takes says nothing of this machine.
    pub fn note_demand(&self) {
        self.demands.fetch_add(1, Ordering::Relaxed);
    }
}
