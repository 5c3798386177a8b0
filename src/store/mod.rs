//! One directory on one host, and everything in it.
//!
//! The cast: [`Store`] is the handle; opening and recovery are in `open`, background work in `background`, verification in
//! `scrub` (open store) and `check` (closed store); volumes that are being filled in `unfinished`.
#![deny(clippy::wildcard_enum_match_arm)]
#![cfg_attr(not(test), deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless))]
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]

mod background;
mod check;
mod counters;
mod health;
mod leases;
mod open;
mod options;
#[cfg(all(test, feature = "sim"))]
pub(crate) mod proof;
mod report;
mod scrub;
#[cfg(test)]
mod tests;
mod unfinished;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use counters::{Counters, SpaceInfo};
pub use health::{Health, SpaceState};
pub use options::StoreOptions;
pub use report::{AffectedBlocks, CheckReport, HydrationControl, ScrubProgress, ScrubReport};
pub use unfinished::{ReservedName, UNFINISHED_LABEL, Unfinished};

use crate::content::HeldLayer;
use crate::error::Result;
use crate::format::changed_labels;
use crate::place::BlockSize;
use crate::volume::{
    Admit, Difference, ForkOptions, ForkSource, Head, Holding, HydrationInfo, LocalSource, RoomInfo, Snapshot, SnapshotInfo, TraceInfo,
    Volume, VolumeInfo, VolumeLimits, VolumeOptions,
};
use open::OpenStore;

/// An open store. Cheap to clone; closed in order by [`Store::close`], or when the last clone and the last volume, snapshot and queue
/// of it are gone. After `close` they answer [`crate::ErrorKind::Closed`].
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// use volfork::{ErrorKind, Store, StoreOptions};
///
/// let store = Store::create(directory.path(), StoreOptions::default())?;
/// store.create_volume("base", 1 << 30)?.create_snapshot("v1")?;
/// store.fork("base@v1", "machine")?;
/// assert_eq!(store.volume_names(), ["base", "machine"]);
/// // One process owns a store.
/// assert_eq!(Store::open(directory.path(), StoreOptions::default()).unwrap_err().kind(), ErrorKind::Locked);
/// store.close()?;
/// assert!(Store::open(directory.path(), StoreOptions::default())?.volume("machine").is_ok());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Store(Arc<OpenStore>);

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl Store {
    fn volume_of(&self, head: Arc<Head>) -> Volume {
        Volume::of(head, &self.0.core, Arc::clone(&self.0) as _)
    }

    /// Makes a new, empty store in `path` (created if missing; must not hold a store).
    ///
    /// # Errors
    /// [`crate::ErrorKind::Exists`] if there is a store, [`crate::ErrorKind::Locked`], an I/O error.
    pub fn create(path: impl AsRef<Path>, options: StoreOptions) -> Result<Self> {
        OpenStore::create(path.as_ref(), options).map(Self)
    }

    /// Opens the store in `path`, recovering it from a crash if it was not closed in order.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`], [`crate::ErrorKind::Locked`] with the owner, [`crate::ErrorKind::Unsupported`],
    /// [`crate::ErrorKind::Corrupt`], an I/O error.
    pub fn open(path: impl AsRef<Path>, options: StoreOptions) -> Result<Self> {
        OpenStore::open(path.as_ref(), options).map(Self)
    }

    /// Opens the store in `path` to be read, for inspection or a backup: nothing in the directory is changed, which may be on a read-only
    /// file system. It is recovered in memory if it was not closed in order. Volumes and snapshots are readable; blocks that are still at a
    /// source are not, and every write and change of shape answers [`crate::ErrorKind::ReadOnly`]. Several processes may have it open so
    /// at once, while none has it open to write. [`StoreOptions::sources`] and [`StoreOptions::threads`] have no effect.
    ///
    /// ```
    /// # fn main() -> volfork::Result<()> {
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let path = directory.path();
    /// use volfork::{ErrorKind, Store, StoreOptions};
    ///
    /// let store = Store::create(path, StoreOptions::default())?;
    /// store.create_volume("v", 1 << 20)?.write_at(b"kept", 0)?;
    /// store.close()?;
    ///
    /// let store = Store::open_read_only(path, StoreOptions::default())?;
    /// let mut bytes = [0; 4];
    /// store.volume("v")?.read_at(&mut bytes, 0)?;
    /// assert_eq!(&bytes, b"kept");
    /// assert_eq!(store.volume("v")?.write_at(b"lost", 0).unwrap_err().kind(), ErrorKind::ReadOnly);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Store::open`]; [`crate::ErrorKind::Unsupported`] if the [`StoreOptions::disk`] knows no shared lock.
    pub fn open_read_only(path: impl AsRef<Path>, options: StoreOptions) -> Result<Self> {
        OpenStore::open_read_only(path.as_ref(), options).map(Self)
    }

    /// Verifies the structure of a closed store; changes nothing.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`], [`crate::ErrorKind::Locked`]; damage is reported, not an error.
    pub fn check(path: impl AsRef<Path>, options: StoreOptions) -> Result<CheckReport> {
        check::check(path.as_ref(), options)
    }

    /// A number that no other open store of this process has.
    #[cfg(feature = "images")]
    pub(crate) fn identity(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// Block size.
    pub fn block_size(&self) -> BlockSize {
        self.0.core.blocks.block_size
    }

    /// Creates an empty volume.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Exists`], [`crate::ErrorKind::InvalidInput`], [`crate::ErrorKind::NoSpace`].
    pub fn create_volume(&self, name: &str, size_bytes: u64) -> Result<Volume> {
        self.create_volume_with(name, size_bytes, &VolumeOptions::default())
    }

    /// As [`Store::create_volume`], with options.
    ///
    /// # Errors
    /// As [`Store::create_volume`].
    pub fn create_volume_with(&self, name: &str, size_bytes: u64, options: &VolumeOptions) -> Result<Volume> {
        let _pass = self.0.core.enter()?;
        self.0.core.volumes.create(name, size_bytes, options.labels.clone(), options.limits).map(|head| self.volume_of(head))
    }

    /// Opens a volume by name.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`].
    pub fn volume(&self, name: &str) -> Result<Volume> {
        let _pass = self.0.core.enter()?;
        self.0.core.volumes.open(name).map(|head| self.volume_of(head))
    }

    /// Opens a snapshot by its names.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`].
    pub fn snapshot(&self, volume: &str, snapshot: &str) -> Result<Snapshot> {
        let _pass = self.0.core.enter()?;
        Snapshot::open(&self.0.core, Arc::clone(&self.0) as _, volume, snapshot)
    }

    /// Takes a snapshot of a volume.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`], [`crate::ErrorKind::Exists`], [`crate::ErrorKind::NoSpace`].
    pub fn create_snapshot(&self, volume: &str, snapshot: &str) -> Result<()> {
        let _pass = self.0.core.enter()?;
        self.0.core.volumes.create_snapshot(volume, snapshot, None)
    }

    /// Takes a snapshot of a volume whose bytes are a layer of an image on top of those below it, and notes that in the same
    /// journal frame. The snapshot's layer keeps this view while it lives, even when the snapshot is destroyed.
    ///
    /// # Errors
    /// As [`Store::create_snapshot`].
    pub fn snapshot_image(&self, volume: &str, snapshot: &str, held: HeldLayer) -> Result<()> {
        let _pass = self.0.core.enter()?;
        self.0.core.volumes.create_snapshot(volume, snapshot, Some(held))
    }

    /// What this store holds of snapshots, by the identity of their bytes ([`Snapshot::identity`]): its own ones, and those of
    /// other stores that its forks stand on. Nothing, when the store is closed.
    pub fn holdings(&self) -> BTreeMap<String, Holding> {
        let Ok(_pass) = self.0.core.enter() else { return BTreeMap::new() };
        self.0.core.report.holdings()
    }

    /// What its blocks take up. Nothing, when the store is closed.
    pub fn room(&self) -> RoomInfo {
        let Ok(_pass) = self.0.core.enter() else { return RoomInfo::default() };
        self.0.core.report.room()
    }

    /// Its id: the identities of its own snapshots begin with it.
    pub fn id(&self) -> String {
        self.0.core.report.store_id.to_owned()
    }

    /// The layers of images that this store holds, each once, in the order of their chains' digests. One whose damage was met, and
    /// those above it, are not among them: an import fetches them again.
    pub fn held_layers(&self) -> Vec<HeldLayer> {
        let mut held = self.0.core.volumes.held_layers();
        held.sort_unstable_by_key(|held| (held.chain, held.layer.digest));
        held.dedup();
        held
    }

    /// Replaces what users note about a volume: values by key, 2 KiB in all beside those that volfork notes by itself
    /// (`volfork.…`). A fork inherits the labels of its source.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`], [`crate::ErrorKind::InvalidInput`], [`crate::ErrorKind::NoSpace`].
    pub fn set_labels(&self, name: &str, labels: BTreeMap<String, String>) -> Result<()> {
        let _pass = self.0.core.enter()?;
        self.0.core.volumes.set_labels(name, labels)
    }

    /// Limits what the clients of a volume may ask of it together; as [`Volume::set_limits`].
    ///
    /// # Errors
    /// As there.
    pub fn set_limits(&self, name: &str, limits: VolumeLimits) -> Result<()> {
        self.set_limits_with(name, |_| Ok(limits))
    }

    /// Sets the limits of a volume to what `limits_of` makes of the present ones. It is called again if another call has changed them
    /// meanwhile.
    ///
    /// # Errors
    /// Those of `limits_of`; as [`Volume::set_limits`].
    pub fn set_limits_with(&self, name: &str, limits_of: impl FnMut(VolumeLimits) -> Result<VolumeLimits>) -> Result<()> {
        let _pass = self.0.core.enter()?;
        self.0.core.volumes.set_limits_with(name, limits_of)
    }

    /// Forks `source` into the new volume `name`: `NAME` or `NAME@SNAP` of this store, the address of a remote export, or another
    /// [`ForkSource`]. One journal record group and one barrier round, and one more before a source that may give leases is asked; no data
    /// moves. A volfork volume elsewhere is forked as it is at this moment: its store takes a snapshot, and keeps it while the fork needs
    /// it. An export of another server that may be written is refused ([`ForkOptions::live`]). Forks of the same remote snapshot, as far
    /// as its identity tells, share what is fetched of it, and how it is.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`], [`crate::ErrorKind::Exists`], [`crate::ErrorKind::SourceLost`],
    /// [`crate::ErrorKind::NoSpace`].
    pub fn fork<'a>(&self, source: impl Into<ForkSource<'a>>, name: &str) -> Result<Volume> {
        self.fork_with(source, name, &ForkOptions::default())
    }

    /// As [`Store::fork`], with options. A fork inherits the labels of its source, and from another store those that mean something
    /// elsewhere ([`crate::source::About`]); others are there from the first moment.
    ///
    /// # Errors
    /// As [`Store::fork`]; [`crate::ErrorKind::InvalidInput`] for labels that are too large, and for a size smaller than the source's.
    pub fn fork_with<'a>(&self, source: impl Into<ForkSource<'a>>, name: &str, options: &ForkOptions) -> Result<Volume> {
        self.fork_admitted(source, name, options, &mut |_, _| Ok(()))
    }

    /// As [`Store::fork_with`]. Before anything is made, `admit` is told the size and the labels that the fork is going to have; it
    /// may change the labels, or refuse the fork.
    ///
    /// # Errors
    /// As there; that of `admit`.
    pub fn fork_admitted<'a>(
        &self,
        source: impl Into<ForkSource<'a>>,
        name: &str,
        options: &ForkOptions,
        admit: Admit<'_>,
    ) -> Result<Volume> {
        let source = source.into();
        if let Some(size_bytes) = options.size_bytes {
            return self.fork_grown((source, name), options, size_bytes, admit);
        }
        let core = &self.0.core;
        let local = match source {
            ForkSource::Addresses(addresses) => return self.fork_remote(addresses, name, options, admit),
            ForkSource::Name(address) if address.contains("://") => {
                return self.fork_remote(&[address.to_owned()], name, options, admit);
            }
            ForkSource::Name(name) => LocalSource::named(name),
            ForkSource::Chain(chain) => LocalSource::Chain(chain),
        };
        let (size_bytes, inherited) = core.enter().and_then(|_pass| core.volumes.heritage(local))?;
        let mut changed = changed_labels(inherited, &options.labels)?;
        let given = changed.clone();
        admit(size_bytes, &mut changed)?;
        let mut labels = options.labels.clone();
        labels.extend(given.into_keys().map(|key| (key, None)).filter(|(key, _)| !changed.contains_key(key)));
        labels.extend(changed.into_iter().map(|(key, value)| (key, Some(value))));
        let _pass = core.enter()?;
        core.volumes.fork_local(local, name, Difference { labels: &labels, limits: options.limits }).map(|head| self.volume_of(head))
    }

    fn fork_remote(&self, addresses: &[String], name: &str, options: &ForkOptions, admit: Admit<'_>) -> Result<Volume> {
        self.0.core.remote.fork_source(addresses, name, options, admit).map(|head| self.volume_of(head))
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Closed`].
    pub fn list(&self) -> Result<Vec<VolumeInfo>> {
        let _pass = self.0.core.enter()?;
        Ok(self.0.core.report.volumes())
    }

    /// Name, size and labels of each volume, at one moment. Costs less than [`Store::list`], which counts blocks.
    pub fn labels(&self) -> Vec<(String, u64, BTreeMap<String, String>)> {
        let catalog = self.0.core.shape.catalog();
        catalog.volumes().map(|(_, volume)| (volume.name.clone(), volume.size_bytes, volume.labels.clone())).collect()
    }

    /// Names of all volumes, in order.
    pub fn volume_names(&self) -> Vec<String> {
        self.0.core.shape.catalog().volumes().map(|(_, volume)| volume.name.clone()).collect()
    }

    /// Names of the snapshots of a volume, oldest first.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`].
    pub fn snapshot_names(&self, volume: &str) -> Result<Vec<String>> {
        let _pass = self.0.core.enter()?;
        let catalog = self.0.core.shape.catalog();
        let id = self.0.core.shape.volume_id(&catalog, volume)?;
        Ok(catalog.volume(id).map_or_else(Vec::new, |entry| entry.snapshots.iter().map(|snapshot| snapshot.name.clone()).collect()))
    }

    /// One volume.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`].
    pub fn show(&self, name: &str) -> Result<VolumeInfo> {
        let _pass = self.0.core.enter()?;
        self.0.core.report.volume(name)
    }

    /// The snapshots of a volume, oldest first.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`].
    pub fn snapshots(&self, volume: &str) -> Result<Vec<SnapshotInfo>> {
        let _pass = self.0.core.enter()?;
        self.0.core.report.snapshots(volume)
    }

    /// Sets the size. Shrinking loses the bytes behind the new end and is refused unless `force`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`], [`crate::ErrorKind::InvalidInput`].
    pub fn resize(&self, name: &str, size_bytes: u64, force: bool) -> Result<()> {
        self.0.core.volumes.resize(name, size_bytes, force)
    }

    /// Sets the size to what `size_of` makes of the present one, which nobody else changes meanwhile: other changes of size of this
    /// volume wait for it, and it must make none itself. A volume does not shrink.
    ///
    /// # Errors
    /// Those of `size_of`; as [`Store::resize`].
    pub fn resize_with(&self, name: &str, size_of: impl FnOnce(u64) -> Result<u64>) -> Result<()> {
        self.0.core.volumes.resize_with(name, size_of)
    }

    /// Renames a volume; its snapshots come along.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`], [`crate::ErrorKind::Exists`].
    pub fn rename(&self, name: &str, new: &str) -> Result<()> {
        let _pass = self.0.core.enter()?;
        self.0.core.volumes.rename(name, new)
    }

    /// Destroys a volume; refused while it has snapshots (unless `recursive`) or open queues, or one of its snapshots is open or needed
    /// by a fork of another host.
    /// Handles of the volume answer [`crate::ErrorKind::NotFound`] from then on. The metadata goes now, the space comes back in
    /// the background.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`], [`crate::ErrorKind::Busy`].
    pub fn destroy_volume(&self, name: &str, recursive: bool) -> Result<()> {
        let _pass = self.0.core.enter()?;
        self.0.core.volumes.destroy_volume(name, recursive)
    }

    /// Destroys a snapshot; refused while it has readers (a handle, a queue, a client of an export), or a fork of another host has a
    /// lease of it ([`Store::destroy_by_force`]).
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`], [`crate::ErrorKind::Busy`] with the number of readers, or of forks and their addresses.
    pub fn destroy_snapshot(&self, volume: &str, snapshot: &str) -> Result<()> {
        let _pass = self.0.core.enter()?;
        self.0.core.volumes.destroy_snapshot(volume, snapshot)
    }

    /// Pauses, resumes, caps or hurries hydration, or changes its sources, durably; answers its progress.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`]; [`crate::ErrorKind::InvalidInput`] for a source that has other bytes;
    /// [`crate::ErrorKind::Unsupported`] if the volume needs a source, and the store was opened without
    /// [`StoreOptions::sources`].
    pub fn control_hydration(&self, name: &str, control: &HydrationControl) -> Result<HydrationInfo> {
        let core = &self.0.core;
        {
            // One on its way is shown, and has nothing to steer.
            let _pass = core.enter()?;
            core.shape.volume_id(&core.shape.catalog(), name)?;
        }
        if !control.add_sources.is_empty() || !control.remove_sources.is_empty() {
            core.remote.set_sources(name, &control.add_sources, &control.remove_sources)?;
        }
        let settings_only = HydrationControl { add_sources: Vec::new(), remove_sources: Vec::new(), ..control.clone() };
        if settings_only != HydrationControl::default() {
            let _pass = core.enter()?;
            let now = core.volumes.clock.unix().as_secs();
            core.remote.set_hydration(name, |settings| {
                settings.paused = control.paused.unwrap_or(settings.paused);
                settings.rate_bytes_per_second = control.rate_bytes_per_second.unwrap_or(settings.rate_bytes_per_second);
                settings.priority = control.priority.unwrap_or(settings.priority);
                settings.deadline = match control.deadline_seconds {
                    None => settings.deadline,
                    Some(0) => 0,
                    Some(seconds) => now.saturating_add(seconds),
                };
            })?;
        }
        Ok(self.show(name)?.hydration)
    }

    /// In which order forks first touched a snapshot, or what a volume stands on.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`]; [`crate::ErrorKind::InvalidInput`] for a volume that stands on nothing.
    pub fn trace(&self, volume: &str, snapshot: Option<&str>) -> Result<TraceInfo> {
        let _pass = self.0.core.enter()?;
        self.0.core.recordings.trace(volume, snapshot)
    }

    /// Forgets what [`Store::trace`] tells, and ends a recording that is under way.
    ///
    /// # Errors
    /// As [`Store::trace`]; an I/O error.
    pub fn drop_trace(&self, volume: &str, snapshot: Option<&str>) -> Result<()> {
        let _pass = self.0.core.enter()?;
        self.0.core.recordings.drop_trace(volume, snapshot)
    }

    /// Records for ten minutes what a volume touches of what it stands on; that is added to what is known.
    ///
    /// # Errors
    /// As [`Store::trace`].
    pub fn record_trace(&self, volume: &str) -> Result<()> {
        let _pass = self.0.core.enter()?;
        self.0.core.record_trace(volume)
    }

    /// Fails every read that waits for a source now, as if the source were lost; later ones ask it again.
    pub fn give_up_waiting(&self) {
        self.0.core.roots.give_up_waiting();
    }

    /// Waits until a volume does not need its source any more; `Ok(false)` at the timeout.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`]; [`crate::ErrorKind::Unsupported`] if it needs its source, and the store was opened without
    /// [`StoreOptions::sources`].
    pub fn wait_hydrated(&self, name: &str, timeout: Duration) -> Result<bool> {
        self.0.core.remote.wait_hydrated(name, timeout)
    }

    /// Reads and verifies every stored block of a volume's chain, or of the store. Damaged blocks of a layer whose source is
    /// still there are fetched again.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`]; damage is reported, not an error.
    pub fn scrub(&self, volume: Option<&str>) -> Result<ScrubReport> {
        self.scrub_with(volume, &mut |_| ControlFlow::Continue(()))
    }

    /// As [`Store::scrub`], and tells how far it has come. It ends when `progress` breaks off, with what was found until then.
    ///
    /// # Errors
    /// As [`Store::scrub`].
    pub fn scrub_with(&self, volume: Option<&str>, progress: &mut dyn FnMut(ScrubProgress) -> ControlFlow<()>) -> Result<ScrubReport> {
        scrub::scrub(&self.0.core, volume, progress)
    }

    /// Does one bounded piece of background work. Answers whether there may be more to do now; if not, hydration may go on a while
    /// later, say 50 ms. Only needed without [`StoreOptions::threads`].
    ///
    /// # Errors
    /// An I/O error.
    pub fn step(&self) -> Result<bool> {
        let busy = {
            let _pass = self.0.core.enter()?;
            self.0.step()
        };
        self.0.core.tell_events();
        busy
    }

    /// For the proof system: makes everything durable, and tells what is still taken for rounds to come (journal bytes, blocks,
    /// journal bytes of patches): nothing, if nobody does anything.
    ///
    /// # Errors
    /// Those of a flush.
    #[cfg(feature = "sim")]
    #[doc(hidden)]
    pub fn outstanding(&self) -> Result<[u64; 3]> {
        let layers = &self.0.core.layers;
        layers.barriers.sync_fresh().map(|()| layers.outstanding())
    }

    /// How the store is. The changes for the worse come as events, too ([`crate::volume::EventKind`]). Costs a look at the file system.
    pub fn health(&self) -> Health {
        self.0.background().health()
    }

    /// Counts since the store was opened.
    pub fn counters(&self) -> Counters {
        self.0.background().counters()
    }

    /// Space of the store and of its file system. Costs a look at each layer.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Closed`]; [`crate::ErrorKind::Unsupported`] if the disk does not tell; an I/O error.
    pub fn space(&self) -> Result<SpaceInfo> {
        let _pass = self.0.core.enter()?;
        self.0.background().space()
    }

    /// Barrier rounds so far that synced anything: what a flush or a fork costs.
    pub fn barriers(&self) -> u64 {
        self.0.core.layers.barrier_count()
    }

    /// Refuses every later call with [`crate::ErrorKind::Closed`], reads included, waits for those that are under way, makes
    /// everything durable, ends background work, and then releases the lock. Nothing of a closed store touches its files.
    ///
    /// The calls that cannot fail ([`Store::labels`], [`Store::volume_names`], [`Store::held_layers`], [`Volume::name`],
    /// [`Volume::size_bytes`]) go on to tell what was there. A second `close` waits for the first and has its result; one
    /// that a callback of the engine makes while another is under way does not wait for it.
    ///
    /// Not to be called from the code of a [`crate::io::Disk`], [`crate::source::Source`] or [`crate::Clock`] that the store calls:
    /// the call that it serves would be waited for. Let another thread close the store.
    ///
    /// # Errors
    /// An I/O error; what was flushed before is safe, and the store recovers at the next open.
    pub fn close(&self) -> Result<()> {
        self.0.close()
    }
}
