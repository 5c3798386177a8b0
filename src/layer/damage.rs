//! What has been found damaged since the store was opened.

use crate::error::Corruption;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, Rank};

/// Damage that readers and background work have met.
pub struct Damage {
    met: AtomicU64,
    last: Mutex<Option<Corruption>>,
}

impl Default for Damage {
    fn default() -> Self {
        Self { met: AtomicU64::new(0), last: Mutex::ranked(Rank::LastDamage, None) }
    }
}

impl Damage {
    pub fn note(&self, corruption: &Corruption) {
        self.met.fetch_add(1, Ordering::Relaxed);
        *self.last.lock() = Some(corruption.clone());
    }

    /// How often a damaged block was met. A block counts each time.
    pub fn met(&self) -> u64 {
        self.met.load(Ordering::Relaxed)
    }

    /// The latest.
    pub fn last(&self) -> Option<Corruption> {
        self.last.lock().clone()
    }
}
