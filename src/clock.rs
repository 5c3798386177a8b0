//! Time as a seam: the simulator replaces it.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::time::Instant;
use crate::units::whole_nanos;

/// No clock goes beyond this, so that no sum of times overflows: about 290 years.
const NANOS_MAX: u64 = u64::MAX / 2;

/// Where the engine gets the time from.
///
/// ```
/// use std::time::Duration;
/// use volfork::{Clock, StoreOptions};
///
/// /// A clock that stands still, for tests.
/// struct Stopped;
///
/// impl Clock for Stopped {
///     fn monotonic(&self) -> Duration {
///         Duration::ZERO
///     }
///     fn unix(&self) -> Duration {
///         Duration::from_secs(1_700_000_000)
///     }
/// }
///
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// let options = StoreOptions::default().with_clock(std::sync::Arc::new(Stopped));
/// let store = volfork::Store::create(directory.path(), options)?;
/// store.create_volume("v", 1 << 20)?;
/// assert_eq!(store.show("v")?.created_at, 1_700_000_000);
/// # Ok(())
/// # }
/// ```
pub trait Clock: Send + Sync + 'static {
    /// Time since some fixed moment; never goes back.
    fn monotonic(&self) -> Duration;
    /// Time since the Unix epoch.
    fn unix(&self) -> Duration;
}

/// The machine's own clock.
///
/// ```
/// use volfork::{Clock, SystemClock};
///
/// let clock = SystemClock::default();
/// let before = clock.monotonic();
/// assert!(clock.monotonic() >= before);
/// // Seconds since the Unix epoch: after the year 2000.
/// assert!(clock.unix().as_secs() > 946_684_800);
/// ```
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

/// A clock of which nothing is believed: it is read under locks, where a panic or a step back would cost others. A panic reads as the
/// latest time that was told.
pub(crate) struct GuardedClock {
    inner: Arc<dyn Clock>,
    monotonic_nanos: AtomicU64,
    unix_nanos: AtomicU64,
}

impl GuardedClock {
    pub fn new(inner: Arc<dyn Clock>) -> Self {
        Self { inner, monotonic_nanos: AtomicU64::new(0), unix_nanos: AtomicU64::new(0) }
    }

    fn nanos(read: impl FnOnce() -> Duration) -> Option<u64> {
        let time = catch_unwind(AssertUnwindSafe(read)).ok()?;
        Some(whole_nanos(time).min(NANOS_MAX))
    }
}

impl Clock for GuardedClock {
    fn monotonic(&self) -> Duration {
        let told = Self::nanos(|| self.inner.monotonic()).unwrap_or(0);
        Duration::from_nanos(self.monotonic_nanos.fetch_max(told, Ordering::Relaxed).max(told))
    }

    fn unix(&self) -> Duration {
        match Self::nanos(|| self.inner.unix()) {
            Some(told) => {
                self.unix_nanos.store(told, Ordering::Relaxed);
                Duration::from_nanos(told)
            }
            None => Duration::from_nanos(self.unix_nanos.load(Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Mutex;

    struct Odd(Mutex<Option<Duration>>);

    impl Clock for Odd {
        fn monotonic(&self) -> Duration {
            self.0.lock().expect("a clock panics")
        }

        fn unix(&self) -> Duration {
            self.monotonic()
        }
    }

    #[test]
    fn a_clock_that_panics_or_jumps_is_a_clock_that_stands_still() {
        let odd = Arc::new(Odd(Mutex::new(None)));
        let clock = GuardedClock::new(Arc::clone(&odd) as _);
        let seconds = Duration::from_secs;
        let most = Duration::from_nanos(NANOS_MAX);
        for (told, monotonic, unix) in [
            (None, seconds(0), seconds(0)),
            (Some(seconds(5)), seconds(5), seconds(5)),
            (Some(seconds(3)), seconds(5), seconds(3)),
            (None, seconds(5), seconds(3)),
            (Some(Duration::MAX), most, most),
            (Some(seconds(1)), most, seconds(1)),
        ] {
            *odd.0.lock() = told;
            assert_eq!((clock.monotonic(), clock.unix()), (monotonic, unix), "{told:?}");
        }
    }
}
