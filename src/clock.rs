//! Time as a seam: the simulator replaces it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::sync::time::Instant;

/// Where the engine gets the time from.
pub trait Clock: Send + Sync + 'static {
    /// Time since some fixed moment; never goes back.
    fn monotonic(&self) -> Duration;
    /// Time since the Unix epoch.
    fn unix(&self) -> Duration;
}

/// The machine's own clock.
#[derive(Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn unix(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}
