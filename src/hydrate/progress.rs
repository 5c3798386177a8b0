//! Status and counts of a hydration.

use crate::format::HydrationSettings;

/// Status of backfill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HydratorStatus {
    /// Fetching, or about to.
    #[default]
    Running,
    /// Stopped by an operator.
    Paused,
    /// No address answers, or none has what is missing.
    Degraded,
    /// Fetched blocks cannot be stored: nothing is fetched until there is space.
    NoSpace,
    /// Nothing is missing any more.
    Complete,
}

/// Why blocks are fetched, the most urgent reason first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchClass {
    /// A reader waits.
    Demand,
    /// A reader will probably want them next.
    Ahead,
    /// An earlier fork wanted them about now.
    Trace,
    /// No particular reason: they are missing.
    Backfill,
}

/// Bytes received from sources, by the reason of the fetch.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let image = directory.path().join("image");
/// # std::fs::write(&image, vec![7; 1 << 20]).unwrap();
/// # let options = volfork::StoreOptions::default().with_sources(std::sync::Arc::new(volfork::source::UriSources::default()));
/// # let store = volfork::Store::create(directory.path().join("store"), options)?;
/// # let address = format!("file://{}", image.display());
/// use std::time::Duration;
///
/// let fork = store.fork(&address, "machine")?;
/// fork.read_at(&mut [0; 4096], 0)?;
/// fork.wait_hydrated(Duration::from_secs(60))?;
///
/// let fetched = fork.info()?.hydration.fetched;
/// // Each fetch counts for one reason. The share of `demand` is what readers had to wait for.
/// assert_eq!(fetched.total(), fetched.demand + fetched.ahead + fetched.trace + fetched.backfill);
/// assert!(fetched.total() >= 1 << 20);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FetchedBytes {
    /// A reader waited.
    pub demand: u64,
    /// A reader was expected to want them next.
    pub ahead: u64,
    /// An earlier fork of the same snapshot wanted them about now.
    pub trace: u64,
    /// They were missing.
    pub backfill: u64,
}

impl FetchedBytes {
    /// Counts bytes.
    pub(super) fn add(&mut self, class: FetchClass, bytes: u64) {
        *match class {
            FetchClass::Demand => &mut self.demand,
            FetchClass::Ahead => &mut self.ahead,
            FetchClass::Trace => &mut self.trace,
            FetchClass::Backfill => &mut self.backfill,
        } += bytes;
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.demand + self.ahead + self.trace + self.backfill
    }
}

/// State of one address of a source.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let image = directory.path().join("image");
/// # std::fs::write(&image, vec![7; 1 << 20]).unwrap();
/// # let options = volfork::StoreOptions::default().with_sources(std::sync::Arc::new(volfork::source::UriSources::default()));
/// # let store = volfork::Store::create(directory.path().join("store"), options)?;
/// # let address = format!("file://{}", image.display());
/// use std::time::Duration;
///
/// let fork = store.fork(&address, "machine")?;
/// fork.wait_hydrated(Duration::from_secs(60))?;
///
/// let source = &fork.info()?.hydration.sources[0];
/// assert_eq!(source.uri, address);
/// assert!(source.bytes_fetched >= 1 << 20);
/// assert!(!source.failing && source.errors == 0 && source.last_error.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SourceInfo {
    /// The address, without secrets.
    pub uri: String,
    /// The latest request or attempt to connect failed.
    pub failing: bool,
    /// Bytes received from it since the volume was opened here.
    pub bytes_fetched: u64,
    /// Number of failed requests.
    pub errors: u64,
    /// Shortest time of a small request, in microseconds.
    pub round_trip_micros: Option<u64>,
    /// Its latest error.
    pub last_error: Option<String>,
    /// The latest error is one that a retry does not mend: the address serves other bytes, has no such export, or does not speak NBD. It is
    /// retried all the same, in case the operator mends it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub refused: bool,
}

/// Counts of a hydrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Status of backfill.
    pub status: HydratorStatus,
    /// Bytes received so far.
    pub fetched: FetchedBytes,
    /// Bytes a second, over the last seconds.
    pub rate_bytes_per_second: u64,
    /// Settings of the operator.
    pub settings: HydrationSettings,
    /// Number of readers that wait now.
    pub readers_waiting: u64,
    /// The addresses.
    pub sources: Vec<SourceInfo>,
    /// The latest error.
    pub last_error: Option<String>,
}
