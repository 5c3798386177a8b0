//! One directory on one host, and everything in it.
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::BlockSize;
use crate::io::{IoMode, RingKind};
use crate::source::SourceOpener;
use crate::volume::{HydrationInfo, Snapshot, SnapshotInfo, Volume, VolumeInfo};

fn stub<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "stub"))
}

/// Settings of a store while it is open.
#[derive(Clone)]
pub struct StoreOptions {
    /// Used by `create` only.
    pub block_size: BlockSize,
    /// Page cache or not.
    pub io_mode: IoMode,
    /// `None`: io_uring if the machine allows it, else threads.
    pub ring: Option<RingKind>,
    /// How forks from elsewhere reach their sources; `None` refuses them.
    pub sources: Option<Arc<dyn SourceOpener>>,
    /// Text for the lock file: what owns the store (for example "volfork serve").
    pub owner: String,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { block_size: BlockSize::DEFAULT, io_mode: IoMode::default(), ring: None, sources: None, owner: String::new() }
    }
}

/// How far a scrub has come, for progress bars.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct ScrubProgress {
    /// Blocks verified so far.
    pub blocks_verified: u64,
    /// Blocks to verify in all.
    pub blocks_total: u64,
}

/// What a scrub found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Blocks read and verified.
    pub blocks_verified: u64,
    /// Damaged blocks that were fetched again from a source.
    pub blocks_repaired: u64,
    /// One sentence for each damaged block that could not be repaired.
    pub errors: Vec<String>,
}

/// What `check` found in a closed store.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CheckReport {
    /// Volumes in the store.
    pub volumes: u64,
    /// Snapshots in the store.
    pub snapshots: u64,
    /// Layers in the store.
    pub layers: u64,
    /// One sentence for each violation.
    pub violations: Vec<String>,
}

/// What `hydrate` changes.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct HydrationControl {
    /// Pause (`true`) or resume (`false`) background replication.
    pub paused: Option<bool>,
    /// Cap in bytes a second; `Some(0)` removes it.
    pub rate_bytes_per_second: Option<u64>,
}

/// An open store. Cheap to clone; closed when the last clone, volume and queue are gone, or by [`Store::close`].
#[derive(Clone)]
pub struct Store(());

impl Store {
    /// Makes a new, empty store in `path` (created if missing; must not hold a store).
    pub fn create(_path: &Path, _options: StoreOptions) -> Result<Self> {
        stub()
    }
    /// Opens the store in `path`.
    pub fn open(_path: &Path, _options: StoreOptions) -> Result<Self> {
        stub()
    }
    /// Verifies the structure of a closed store; changes nothing.
    pub fn check(_path: &Path) -> Result<CheckReport> {
        stub()
    }
    /// Block size.
    pub fn block_size(&self) -> BlockSize {
        BlockSize::DEFAULT
    }
    /// Creates an empty volume.
    pub fn create_volume(&self, _name: &str, _size_bytes: u64) -> Result<Volume> {
        stub()
    }
    /// Opens a volume by name.
    pub fn volume(&self, _name: &str) -> Result<Volume> {
        stub()
    }
    /// Opens a snapshot by its names.
    pub fn snapshot(&self, _volume: &str, _snapshot: &str) -> Result<Snapshot> {
        stub()
    }
    /// Takes a snapshot of a volume.
    pub fn create_snapshot(&self, _volume: &str, _snapshot: &str) -> Result<()> {
        stub()
    }
    /// Forks `source` (`NAME` or `NAME@SNAP` of this store, or the URI of a remote export) into the new volume `name`.
    pub fn fork(&self, _source: &str, _name: &str) -> Result<Volume> {
        stub()
    }
    /// All volumes, by name.
    pub fn list(&self) -> Result<Vec<VolumeInfo>> {
        stub()
    }
    /// One volume.
    pub fn show(&self, _name: &str) -> Result<VolumeInfo> {
        stub()
    }
    /// The snapshots of a volume, oldest first.
    pub fn snapshots(&self, _volume: &str) -> Result<Vec<SnapshotInfo>> {
        stub()
    }
    /// Sets the size. Shrinking loses the bytes behind the new end and is refused unless `force`.
    pub fn resize(&self, _name: &str, _size_bytes: u64, _force: bool) -> Result<()> {
        stub()
    }
    /// Renames a volume; its snapshots come along.
    pub fn rename(&self, _name: &str, _new: &str) -> Result<()> {
        stub()
    }
    /// Destroys a volume; refused while it has snapshots, unless `recursive`.
    pub fn destroy_volume(&self, _name: &str, _recursive: bool) -> Result<()> {
        stub()
    }
    /// Destroys a snapshot.
    pub fn destroy_snapshot(&self, _volume: &str, _snapshot: &str) -> Result<()> {
        stub()
    }
    /// Pauses, resumes or caps hydration; answers its progress.
    pub fn control_hydration(&self, _name: &str, _control: HydrationControl) -> Result<HydrationInfo> {
        stub()
    }
    /// Waits until a volume does not need its source any more; `Ok(false)` at the timeout.
    pub fn wait_hydrated(&self, _name: &str, _timeout: Duration) -> Result<bool> {
        stub()
    }
    /// Reads and verifies every stored block of a volume, or of the store.
    pub fn scrub(&self, _volume: Option<&str>, _progress: &mut dyn FnMut(ScrubProgress)) -> Result<ScrubReport> {
        stub()
    }
    /// Makes everything durable, stops background work and releases the lock.
    pub fn close(&self) -> Result<()> {
        stub()
    }
}
