//! What users hold.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::blocks::View;
use super::core::Core;
#[cfg(feature = "futures")]
use super::futures::AsyncQueue;
use super::head::Head;
use super::identity::identity_in;
#[cfg(feature = "serve")]
use super::limiter::Limiter;
use super::pool::Keeper;
use super::queue::{Queue, Workers};
use super::report;
use super::request::Run;
use super::shape::Difference;
use super::snapshot::OpenSnapshot;
#[cfg(feature = "images")]
use crate::content::HeldLayer;
use crate::error::Result;
use crate::format::VolumeLimits;
use crate::source::About;
use crate::sync::{Rank, RwLock};

/// A named, sized, writable head. Cheap to clone; all clones are the same volume.
///
/// Offsets and lengths are bytes and need no alignment; whole blocks are the fast path. All calls may be made from many threads
/// at once. A range that ends behind the volume is refused with [`crate::ErrorKind::OutOfRange`] and nothing is done.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// let volume = store.create_volume("database", 1 << 30)?;
/// volume.write_at(b"row", 5)?;
/// volume.flush()?; // Durable from here on.
/// volume.create_snapshot("before")?;
/// volume.write_at(b"ROW", 5)?;
///
/// let fork = store.fork("database@before", "test")?;
/// let mut bytes = [0; 3];
/// fork.read_at(&mut bytes, 5)?;
/// assert_eq!(&bytes, b"row");
/// // What was written since the snapshot, in whole blocks.
/// assert_eq!(volume.changed_since("before", &(0..1 << 30), 16)?, [0..4096]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Volume(pub(super) Arc<Head>, pub(super) Arc<Core>, Keeper);

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume").field("id", &self.0.id).finish_non_exhaustive()
    }
}

impl Volume {
    /// The handle of an open head, of the store that `keeper` keeps open.
    pub(crate) fn of(head: Arc<Head>, core: &Arc<Core>, keeper: Keeper) -> Self {
        Self(head, Arc::clone(core), keeper)
    }

    /// Name at this moment.
    pub fn name(&self) -> String {
        self.0.name()
    }

    /// The identity that a snapshot would have which is taken now ([`Snapshot::identity`]).
    pub fn live_identity(&self) -> String {
        self.about().live
    }

    /// What another host is told of it beside its bytes.
    pub(crate) fn about(&self) -> About {
        self.1.report.about_volume(&self.0.shape.catalog(), self.0.id)
    }

    /// Size in bytes at this moment.
    pub fn size_bytes(&self) -> u64 {
        self.0.view.read().size_bytes
    }

    /// Block size of the store, in bytes.
    pub fn block_bytes(&self) -> u32 {
        self.0.blocks.block_size.bytes_32()
    }

    /// Fills `buffer` from `offset`. Every byte is verified against its checksum.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] for damaged blocks, [`crate::ErrorKind::SourceLost`] for blocks that are still only at a
    /// source that does not answer.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let _pass = self.0.pool.fence.enter()?;
        self.0.read(buffer, offset)
    }

    /// Writes `data` at `offset`. Not durable before a flush.
    ///
    /// Does not wait for a source, unless it begins or ends inside a missing block when parts of 16 MiB of such blocks are
    /// already waiting for the rest.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NoSpace`] (nothing has changed then), [`crate::ErrorKind::Poisoned`]; when it has to wait for a source,
    /// [`crate::ErrorKind::SourceLost`].
    pub fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let _pass = self.0.pool.fence.enter()?;
        self.0.write(data, offset, None)
    }

    /// Makes every write that completed before this call durable.
    ///
    /// # Errors
    /// An I/O error; the store refuses writes from then on.
    pub fn flush(&self) -> Result<()> {
        let _pass = self.0.pool.fence.enter()?;
        self.0.flush()
    }

    /// Gives back the space of a range, which then reads as zero. Durable with the next flush.
    ///
    /// # Errors
    /// As [`Volume::write_at`].
    pub fn discard(&self, offset: u64, bytes: u64) -> Result<()> {
        let _pass = self.0.pool.fence.enter()?;
        self.0.zero(offset, bytes, None)
    }

    /// Makes a range read as zero. Durable with the next flush.
    ///
    /// # Errors
    /// As [`Volume::write_at`].
    pub fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()> {
        let _pass = self.0.pool.fence.enter()?;
        self.0.zero(offset, bytes, None)
    }

    /// Forks the volume as it is now: every write that completed before is in the fork.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Exists`], [`crate::ErrorKind::InvalidInput`], [`crate::ErrorKind::NoSpace`].
    pub fn fork(&self, name: &str) -> Result<Self> {
        let _pass = self.0.pool.fence.enter()?;
        let head = self.1.volumes.fork_head(&self.0, name, Difference { labels: &BTreeMap::new(), limits: VolumeLimits::default() })?;
        Ok(Self(head, Arc::clone(&self.1), Arc::clone(&self.2)))
    }

    /// Takes a snapshot of the volume as it is now.
    ///
    /// # Errors
    /// As [`Volume::fork`].
    pub fn create_snapshot(&self, name: &str) -> Result<()> {
        let _pass = self.0.pool.fence.enter()?;
        self.1.volumes.snapshot_head(&self.0, name, None)
    }

    /// Takes a snapshot that is a layer of an image on top of those below it; as [`crate::Store::snapshot_image`].
    ///
    /// # Errors
    /// As there.
    #[cfg(feature = "images")]
    pub(crate) fn snapshot_image(&self, name: &str, held: HeldLayer) -> Result<()> {
        let _pass = self.0.pool.fence.enter()?;
        self.1.volumes.snapshot_head(&self.0, name, Some(held))
    }

    /// Gives the volume, whatever it is called by now, the name that was announced, and labels: both, or neither.
    ///
    /// # Errors
    /// As [`crate::Store::rename`].
    pub(crate) fn set_name(&self, name: &str, labels: BTreeMap<String, String>) -> Result<()> {
        let _pass = self.0.pool.fence.enter()?;
        self.1.volumes.name_head(&self.0, name, labels)
    }

    /// Sets the size. Shrinking loses the bytes behind the new end and is refused unless `force`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidInput`].
    pub fn resize(&self, size_bytes: u64, force: bool) -> Result<()> {
        self.1.volumes.resize_head(&self.0, |_| Ok(size_bytes), force)
    }

    /// Limits what its clients may ask of it together, durably and at once, also for those that are connected; the default limits nothing.
    /// A fork has no limits unless it is made with some.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidInput`] for a limit of 0, and for a burst without a rate; [`crate::ErrorKind::NotFound`],
    /// [`crate::ErrorKind::NoSpace`].
    pub fn set_limits(&self, limits: VolumeLimits) -> Result<()> {
        let _pass = self.0.pool.fence.enter()?;
        self.1.volumes.set_limits_of(self.0.id, limits)
    }

    /// What keeps the limits of its clients.
    #[cfg(feature = "serve")]
    pub(crate) fn limiter(&self) -> Arc<Limiter> {
        self.1.volumes.limiter(self.0.id)
    }

    /// What answers for the bytes from the start of `range`, coalesced; at most `runs_max` runs, never past the range.
    ///
    /// # Errors
    /// [`crate::ErrorKind::OutOfRange`].
    pub fn runs(&self, range: Range<u64>, runs_max: usize) -> Result<Vec<Run>> {
        let _pass = self.0.pool.fence.enter()?;
        self.0.alive(|| report::runs(&self.0.blocks, &self.0.view, range, runs_max))
    }

    /// As [`Volume::runs`], but does not tell at which depth data are: costs no more for large ranges than for small ones.
    ///
    /// # Errors
    /// As there.
    pub fn allocation(&self, range: Range<u64>, runs_max: usize) -> Result<Vec<Run>> {
        let _pass = self.0.pool.fence.enter()?;
        self.0.alive(|| report::allocation(&self.0.blocks, &self.0.view, range, runs_max))
    }

    /// Names of the snapshots that it was changed since.
    pub fn snapshots_below(&self) -> Vec<String> {
        report::snapshots_below(&self.0.shape, &self.0.look(), self.0.id)
    }

    /// The bytes of `range` that were written or zeroed since a snapshot, in whole blocks, in order; at most `runs_max` runs. The
    /// snapshot is one of this volume, by its name, or one that the volume was forked from or above, as `VOLUME@SNAPSHOT`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] unless the volume stands on the snapshot; [`crate::ErrorKind::OutOfRange`].
    pub fn changed_since(&self, snapshot: &str, range: &Range<u64>, runs_max: usize) -> Result<Vec<Range<u64>>> {
        let _pass = self.0.pool.fence.enter()?;
        self.0.alive(|| report::changed_since(&self.0.blocks, &self.0.view, (self.0.id, snapshot), range, runs_max))
    }

    /// Brings blocks of the range that are still at the source.
    ///
    /// # Errors
    /// [`crate::ErrorKind::SourceLost`].
    pub fn prefetch(&self, offset: u64, bytes: u64) -> Result<()> {
        let _pass = self.0.pool.fence.enter()?;
        self.0.alive(|| self.0.blocks.prefetch(&self.0.view, offset, bytes, &|| Ok(())))
    }

    /// A queue with a ring of its own, for one thread.
    ///
    /// # Errors
    /// The machine has no room for another ring.
    pub fn queue(&self, depth: u32) -> Result<Queue> {
        let _pass = self.0.pool.fence.enter()?;
        self.1.volumes.leases.check_uncondemned(self.0.id, None)?;
        Ok(Queue::for_volume(&self.0, depth)?.keeping(&self.2))
    }

    /// A queue whose requests are futures.
    ///
    /// # Errors
    /// As [`Volume::queue`]; the thread that waits for completions cannot be started.
    #[cfg(feature = "futures")]
    pub fn async_queue(&self, depth: u32) -> Result<AsyncQueue> {
        AsyncQueue::new(self.queue(depth)?, depth)
    }
}

/// A named, read-only sealed layer and its chain. Cheap to clone. While a handle, a queue or a client of an export has it open,
/// destroying it is refused with [`crate::ErrorKind::Busy`].
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::ErrorKind;
///
/// let volume = store.create_volume("web", 1 << 20)?;
/// volume.write_at(b"v1", 0)?;
/// volume.create_snapshot("v1")?;
/// volume.write_at(b"v2", 0)?;
///
/// let snapshot = store.snapshot("web", "v1")?;
/// let mut bytes = [0; 2];
/// snapshot.read_at(&mut bytes, 0)?;
/// assert_eq!((snapshot.name().as_str(), &bytes), ("web@v1", b"v1"));
/// // It is in use while a handle is there.
/// assert_eq!(store.destroy_snapshot("web", "v1").unwrap_err().kind(), ErrorKind::Busy);
/// drop(snapshot);
/// store.destroy_snapshot("web", "v1")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Snapshot(Arc<OpenSnapshot>, Arc<Core>, Keeper);

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("name", &self.0.name).finish_non_exhaustive()
    }
}

impl Snapshot {
    /// Opens a snapshot, when it is durable, of the store that `keeper` keeps open.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`].
    pub(crate) fn open(core: &Arc<Core>, keeper: Keeper, volume: &str, snapshot: &str) -> Result<Self> {
        let shape = &core.shape;
        let (id, view, pin) = {
            let catalog = shape.catalog();
            let (id, entry) = catalog.snapshot(volume, snapshot)?;
            core.volumes.leases.check_uncondemned(id, Some(snapshot))?;
            let view = View::new(core.layers.require(entry.layer)?, entry.size_bytes);
            (id, view, shape.pins.pin(&catalog, id, snapshot))
        };
        shape.await_arrival(id, snapshot)?;
        let open = OpenSnapshot {
            blocks: Arc::clone(&core.blocks),
            shape: Arc::clone(shape),
            pool: Arc::clone(&core.pool),
            volume: id,
            name: format!("{volume}@{snapshot}"),
            view: RwLock::ranked(Rank::View, view),
            readers: Workers::of_reads(),
            prefetchers: Workers::of_prefetches(),
            _pin: pin,
        };
        Ok(Self(Arc::new(open), Arc::clone(core), keeper))
    }

    /// `volume@snapshot`, with the name that the volume has at this moment.
    pub fn name(&self) -> String {
        let volume = self.0.shape.catalog().volume(self.0.volume).map(|entry| entry.name.clone());
        match (volume, self.0.name.split_once('@')) {
            (Some(volume), Some((_, snapshot))) => format!("{volume}@{snapshot}"),
            _ => self.0.name.clone(),
        }
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.0.view.read().size_bytes
    }

    /// Block size of the store, in bytes.
    pub fn block_bytes(&self) -> u32 {
        self.0.blocks.block_size.bytes_32()
    }

    /// Fills `buffer` from `offset`; as [`Volume::read_at`].
    ///
    /// # Errors
    /// As there.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let _pass = self.0.pool.fence.enter()?;
        self.0.blocks.read(&self.0.view, offset, buffer).map_err(|error| self.0.name_damage(error))
    }

    /// As [`Volume::runs`].
    ///
    /// # Errors
    /// As there.
    pub fn runs(&self, range: Range<u64>, runs_max: usize) -> Result<Vec<Run>> {
        let _pass = self.0.pool.fence.enter()?;
        report::runs(&self.0.blocks, &self.0.view, range, runs_max)
    }

    /// As [`Volume::snapshots_below`].
    pub fn snapshots_below(&self) -> Vec<String> {
        report::snapshots_below(&self.0.shape, &self.0.look(), self.0.volume)
    }

    /// As [`Volume::changed_since`].
    ///
    /// # Errors
    /// As there.
    pub fn changed_since(&self, snapshot: &str, range: &Range<u64>, runs_max: usize) -> Result<Vec<Range<u64>>> {
        let _pass = self.0.pool.fence.enter()?;
        report::changed_since(&self.0.blocks, &self.0.view, (self.0.volume, snapshot), range, runs_max)
    }

    /// What another host is told of it beside its bytes.
    #[cfg(feature = "serve")]
    pub(crate) fn about(&self) -> About {
        let catalog = self.0.shape.catalog();
        About { live: String::new(), ..self.1.report.about_volume(&catalog, self.0.volume) }
    }

    /// Identity of its bytes, the same on every host that has them.
    pub fn identity(&self) -> String {
        let layer = self.0.view.read().layer.id;
        identity_in(&self.0.shape.catalog(), &self.1.report.store_id, layer)
    }

    /// The crc32 (IEEE) of the bytes of each block of `range` (which begins and ends with blocks; the last one of the volume is
    /// filled up with zeros), without reading them. `None` where it is not known: the block is still at a source, or was not
    /// verified since a crash.
    ///
    /// # Errors
    /// [`crate::ErrorKind::OutOfRange`]; [`crate::ErrorKind::InvalidInput`] for more than 2^20 blocks; the checksums cannot be
    /// read.
    pub fn checksums(&self, range: Range<u64>) -> Result<Vec<Option<u32>>> {
        let _pass = self.0.pool.fence.enter()?;
        report::content_checksums(&self.0.blocks, &self.0.view, range)
    }

    /// Runs of bytes in the order in which a fork first touched them; empty if that was not recorded, or the store is closed.
    pub fn trace(&self) -> Vec<Range<u64>> {
        let Ok(_pass) = self.0.pool.fence.enter() else { return Vec::new() };
        let layer = self.0.view.read().layer.id;
        let block_size = self.0.blocks.block_size;
        let size_bytes = self.size_bytes();
        let bytes = |run: &Range<u32>| {
            block_size.offset_of(u64::from(run.start)).min(size_bytes)..block_size.offset_of(u64::from(run.end)).min(size_bytes)
        };
        let trace = self.0.blocks.layers.load_trace(layer).unwrap_or_default();
        trace.runs.iter().map(bytes).filter(|run| !run.is_empty()).collect()
    }

    /// As [`Snapshot::runs`], but does not tell at which depth data are: costs no more for large ranges than for small ones.
    ///
    /// # Errors
    /// As there.
    pub fn allocation(&self, range: Range<u64>, runs_max: usize) -> Result<Vec<Run>> {
        let _pass = self.0.pool.fence.enter()?;
        report::allocation(&self.0.blocks, &self.0.view, range, runs_max)
    }

    /// As [`Volume::queue`]; takes reads only.
    ///
    /// # Errors
    /// As there.
    pub fn queue(&self, depth: u32) -> Result<Queue> {
        let _pass = self.0.pool.fence.enter()?;
        Ok(Queue::for_snapshot(&self.0, depth)?.keeping(&self.2))
    }

    /// As [`Volume::async_queue`]; takes reads only.
    ///
    /// # Errors
    /// As there.
    #[cfg(feature = "futures")]
    pub fn async_queue(&self, depth: u32) -> Result<AsyncQueue> {
        AsyncQueue::new(self.queue(depth)?, depth)
    }
}
