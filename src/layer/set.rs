//! All layers of a store, and what they share.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::checksums::{ChecksumCache, ChecksumPage, ContentChecksums};
use super::commit::{Commit, ShapeRoom, Ticket};
use super::files::LayerFiles;
use super::space::Need;
use super::state::{Layer, State};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Record, ShapeRecord, StorePaths};
use crate::ids::LayerId;
use crate::io::{Disk, DiskFile, IoMode};
use crate::journal::Journal;
use crate::limits::{Limits, Planted, SEGMENT_BYTES, VOLUME_BYTES_MAX};
use crate::place::BlockSize;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, RwLock};

/// How long a waiter sleeps before it looks again whether it can help.
pub(super) const HELP_INTERVAL: Duration = Duration::from_millis(1);

/// What the layers need to know of their store.
#[derive(Clone)]
pub struct LayerConfig {
    /// The machine's files.
    pub disk: Arc<dyn Disk>,
    /// Where the store's files are.
    pub paths: StorePaths,
    /// Block size.
    pub block_size: BlockSize,
    /// Page cache or not, for data files.
    pub io_mode: IoMode,
    /// Memory for checksum pages.
    pub checksum_cache_bytes: u64,
    /// Journal bytes since the last checkpoint after which another one is due.
    pub checkpoint_bytes: u64,
    /// Limits.
    pub limits: Limits,
}

/// Somebody who can complete writes that the kernel has finished: a queue whose owner may be waiting elsewhere.
pub trait Reap: Send + Sync {
    /// Takes finished writes, without waiting.
    fn reap_finished(&self);
}

/// All layers of a store.
pub struct Layers {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) block_size: BlockSize,
    pub(super) io_mode: IoMode,
    pub(super) files: LayerFiles,
    pub(super) checksums: ChecksumCache,
    pub(super) contents: ContentChecksums,
    pub(super) commit: Commit,
    pub(super) need: Need,
    pub(super) checkpoint_bytes: u64,
    pub(super) limits: Limits,
    /// Patches in memory, and those for which there is room.
    pub(super) patch_blocks: AtomicU64,
    /// Journal bytes of patches that no frame has yet.
    pub(super) patch_bytes_queued: AtomicU64,
    pub(super) patched_layers: Mutex<BTreeSet<LayerId>>,
    table: RwLock<FxHashMap<LayerId, Arc<Layer>>>,
    reapers: Mutex<Vec<Weak<dyn Reap>>>,
    fresh_blocks: AtomicU64,
    /// Layers with blocks that wait for their record.
    fresh: Mutex<BTreeSet<LayerId>>,
    /// Layers with files that were written and not synced, which keeps them open; and how many there are.
    written: Mutex<BTreeSet<LayerId>>,
    written_layers: AtomicUsize,
    barriers: AtomicU64,
    dying: Mutex<BTreeSet<LayerId>>,
    pub(super) garbage: Mutex<BTreeSet<LayerId>>,
    /// Layers with garbage whose space could not be given back: not tried again at once.
    pub(super) unpunched: Mutex<BTreeSet<LayerId>>,
}

impl Layers {
    pub(super) fn new(
        config: LayerConfig,
        files: LayerFiles,
        checksums: ChecksumCache,
        table: FxHashMap<LayerId, Arc<Layer>>,
        journal: Journal,
    ) -> Self {
        let patched: BTreeSet<LayerId> = table.values().filter(|layer| layer.has_patches()).map(|layer| layer.id).collect();
        let patches = patched.iter().filter_map(|id| table.get(id)).map(|layer| layer.state.lock().patches.len() as u64).sum();
        Self {
            contents: ContentChecksums::new(config.block_size.bytes()),
            disk: config.disk,
            block_size: config.block_size,
            io_mode: config.io_mode,
            files,
            checksums,
            commit: Commit::new(journal, &config.limits),
            need: Need::default(),
            checkpoint_bytes: config.checkpoint_bytes,
            limits: config.limits,
            patch_blocks: AtomicU64::new(patches),
            patch_bytes_queued: AtomicU64::new(0),
            patched_layers: Mutex::new(patched),
            table: RwLock::new(table),
            reapers: Mutex::default(),
            fresh_blocks: AtomicU64::new(0),
            fresh: Mutex::default(),
            written: Mutex::default(),
            written_layers: AtomicUsize::new(0),
            barriers: AtomicU64::new(0),
            dying: Mutex::default(),
            garbage: Mutex::default(),
            unpunched: Mutex::default(),
        }
    }

    /// A layer by number.
    pub fn get(&self, layer: LayerId) -> Option<Arc<Layer>> {
        self.table.read().get(&layer).cloned()
    }

    /// A layer that something refers to.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it was freed meanwhile.
    pub fn require(&self, layer: LayerId) -> Result<Arc<Layer>> {
        self.get(layer).ok_or_else(|| Error::new(ErrorKind::NotFound, format!("layer {layer} is gone: the volume was destroyed meanwhile")))
    }

    /// Adds a layer; `source_blocks` if it stands for a source.
    pub fn add(&self, layer: LayerId, parent: Option<LayerId>, source_blocks: Option<u64>) -> Arc<Layer> {
        let entry = Layer::new(layer, parent, source_blocks);
        self.table.write().insert(layer, Arc::clone(&entry));
        entry
    }

    /// All layers, by number.
    pub fn all(&self) -> Vec<Arc<Layer>> {
        let mut all: Vec<_> = self.table.read().values().cloned().collect();
        all.sort_unstable_by_key(|layer| layer.id);
        all
    }

    /// Lets no round begin between the seal of a head and the record of the next one: [`Commit::hold_beginning`] for a change of shape.
    /// Taken before a view.
    pub fn hold_for_seal(&self) -> Option<crate::sync::RwLockReadGuard<'_, ()>> {
        (!self.limits.has(Planted::SealedInTwoRounds)).then(|| self.commit.hold_beginning())
    }

    /// Puts the records of a change of shape, which frees these layers, into the next round, and makes completed writes of a layer
    /// durable in it. A flush of a layer that is freed has nothing to name any more, so it must not be in an earlier round.
    pub fn enqueue_freeing(&self, sync: Option<LayerId>, records: Vec<ShapeRecord>, freed: &[LayerId]) -> Ticket {
        let apart = self.limits.has(Planted::FreedInTwoRounds) || self.limits.has(Planted::FreedInARound);
        let _beginning = (!freed.is_empty() && !apart).then(|| self.commit.hold_beginning());
        let ticket = self.commit.enqueue_with_sync(sync, records);
        freed.iter().for_each(|layer| self.free(*layer));
        ticket
    }

    /// Takes a layer out of the table: the catalogue has freed it. Its files go with [`Layers::remove_files`]. A round that has
    /// begun, or a writer that was admitted, may still be in it: they find `freed`, and count nothing any more.
    fn free(&self, layer: LayerId) {
        // A statement of its own: the table is not locked while the layer's state is taken.
        let removed = self.table.write().remove(&layer);
        let Some(entry) = removed else { return };
        let _table = self.limits.has(Planted::TableHeld).then(|| self.table.write());
        let mut state = entry.state.lock();
        state.freed = true;
        self.count_recorded(std::mem::take(&mut state.fresh_blocks));
        if self.limits.has(Planted::FreedInARound) {
            return;
        }
        state.give_up();
        self.note_named(&entry, &mut state);
        self.note_synced(&entry);
        // They stay for readers that are still in the layer, but no longer count.
        self.patch_blocks.fetch_sub(state.patches.len() as u64, Ordering::AcqRel);
        self.patched_layers.lock().remove(&layer);
        entry.changed.notify_all();
    }

    /// Removes the files of a freed layer. Only after the record that freed it is durable.
    ///
    /// # Errors
    /// An I/O error; the files are swept when the store is opened again.
    pub fn remove_files(&self, layer: LayerId) -> Result<()> {
        self.checksums.forget(layer);
        let segments = VOLUME_BYTES_MAX.div_ceil(SEGMENT_BYTES) as u32;
        self.files.remove(layer, segments).map_err(|error| Error::io(format!("cannot remove the files of layer {layer}"), error))
    }

    /// Puts records into the next barrier round.
    pub fn enqueue(&self, records: impl IntoIterator<Item = impl Into<Record>>) -> Ticket {
        self.commit.enqueue(records)
    }

    /// Lets the next barrier round make completed writes of a layer durable.
    pub fn enqueue_sync(&self, layer: LayerId) -> Ticket {
        self.commit.enqueue_sync([layer])
    }

    /// Whether the round has ended.
    pub fn is_done(&self, ticket: Ticket) -> bool {
        self.commit.is_done(ticket)
    }

    /// Refuses after a failed write-back or sync.
    ///
    /// # Errors
    /// [`ErrorKind::Poisoned`].
    pub fn healthy(&self) -> Result<()> {
        self.commit.healthy()
    }

    /// Takes journal space for a change of shape, so that it cannot fail half-way. The caller holds no lock, and keeps the space until
    /// the round of the change has ended.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`]; as [`Layers::prepare_shape`].
    pub fn reserve_shape(&self) -> Result<ShapeRoom<'_>> {
        self.prepare_shape()?;
        self.reserve_shape_with(0)
    }

    /// As [`Layers::reserve_shape`], for a change that notes so many bytes of addresses: after [`Layers::prepare_shape`], and with the
    /// catalogue locked, for it tells how many they are.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`].
    pub fn reserve_shape_with(&self, addresses: u64) -> Result<ShapeRoom<'_>> {
        self.commit.reserve_shape(addresses)
    }

    /// Lets changes of shape whose round was undone become durable before there are more of them. As long as that fails, further ones
    /// are refused before anything has changed. The caller holds no lock.
    ///
    /// # Errors
    /// [`ErrorKind::Poisoned`]; a lack of space, descriptors or memory.
    pub fn prepare_shape(&self) -> Result<()> {
        self.healthy()?;
        if self.commit.is_behind() || self.commit.is_crowded() { self.sync([]) } else { Ok(()) }
    }

    /// Whether everything written to this layer, and every record, is durable.
    pub fn is_settled(&self, layer: &Layer) -> bool {
        !self.needs_sync(layer) && self.commit.is_idle()
    }

    /// Page cache or not.
    pub fn io_mode(&self) -> IoMode {
        self.io_mode
    }

    /// Whether what waits for a round is about as much as a frame holds: who needs more waits for others.
    pub fn is_full(&self) -> bool {
        self.commit.is_full()
    }

    /// Limits of the store.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Lets a queue help waiters along.
    pub fn register(&self, reaper: Weak<dyn Reap>) {
        let mut reapers = self.reapers.lock();
        reapers.retain(|reaper| reaper.strong_count() > 0);
        reapers.push(reaper);
    }

    /// Completes writes that the kernel has finished while their queue's owner waits elsewhere, perhaps for them.
    pub fn help(&self) {
        let reapers: Vec<_> = self.reapers.lock().iter().filter_map(Weak::upgrade).collect();
        for reaper in reapers {
            reaper.reap_finished();
        }
    }

    /// The checksum page of an extent.
    ///
    /// # Errors
    /// An I/O error.
    pub fn page(&self, layer: &Layer, extent: u32) -> Result<Arc<ChecksumPage>> {
        self.checksums
            .page(&self.files, layer.id, extent)
            .map_err(|error| Error::io(format!("cannot read the checksums of layer {}, extent {extent}", layer.id), error))
    }

    /// The checksum page of an extent, if it is in memory.
    pub fn cached_page(&self, layer: &Layer, extent: u32) -> Option<Arc<ChecksumPage>> {
        self.checksums.cached(layer.id, extent)
    }

    /// Notes that a layer has blocks that wait for their record.
    pub(super) fn note_fresh(&self, layer: &Layer, state: &mut State) {
        if !std::mem::replace(&mut state.is_listed, true) {
            self.fresh.lock().insert(layer.id);
        }
    }

    /// A round names all that waits in the layer.
    pub(super) fn note_named(&self, layer: &Layer, state: &mut State) {
        if std::mem::replace(&mut state.is_listed, false) {
            self.fresh.lock().remove(&layer.id);
        }
    }

    /// Notes that a file of a layer was written, which stays open until a round syncs it: a file that was closed might lose the error
    /// of its write-back. A layer is listed while it has such files.
    pub(super) fn note_written(&self, layer: &Layer, state: &mut State, segment: u32, file: &Arc<dyn DiskFile>) {
        if state.written.is_empty() {
            let mut written = self.written.lock();
            written.insert(layer.id);
            self.written_layers.store(written.len(), Ordering::Relaxed);
        }
        state.written.entry(segment).or_insert_with(|| Arc::clone(file));
    }

    /// A round syncs, or nobody needs any more, what was written to a layer. The layer's state is locked.
    pub(super) fn note_synced(&self, layer: &Layer) {
        let mut written = self.written.lock();
        written.remove(&layer.id);
        self.written_layers.store(written.len(), Ordering::Relaxed);
    }

    /// Layers whose blocks wait for their record, or whose files for a sync.
    pub(super) fn unsynced_layers(&self) -> BTreeSet<LayerId> {
        let fresh = self.fresh.lock().clone();
        fresh.union(&self.written.lock()).copied().collect()
    }

    /// The error of a write to a layer that was freed meanwhile.
    pub(super) fn gone(layer: &Layer) -> Error {
        Error::new(ErrorKind::NotFound, format!("layer {} is gone: the volume was destroyed meanwhile", layer.id))
    }

    /// What is taken for rounds to come: journal bytes, blocks, journal bytes of patches. Nothing when all is durable and idle.
    #[cfg(feature = "sim")]
    pub fn outstanding(&self) -> [u64; 3] {
        let (blocks, patches) = (self.fresh_blocks.load(Ordering::Relaxed), self.patch_bytes_queued.load(Ordering::Acquire));
        [self.commit.reserved_bytes(), blocks, patches]
    }

    pub(super) fn count_fresh(&self, blocks: u64) {
        self.fresh_blocks.fetch_add(blocks, Ordering::Relaxed);
    }

    pub(super) fn count_recorded(&self, blocks: u64) {
        self.fresh_blocks.fetch_sub(blocks, Ordering::Relaxed);
        self.commit.release_blocks(blocks as u32);
    }

    /// Gives back the journal space of patches whose records are in a frame now.
    pub(super) fn count_patches_recorded(&self, bytes: u64) {
        self.commit.release(bytes);
        self.patch_bytes_queued.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Whether so many blocks wait for their record that writers have to make some durable first.
    pub fn under_pressure(&self) -> bool {
        self.fresh_blocks.load(Ordering::Relaxed) > self.limits.fresh_blocks_max
            || self.patch_bytes_queued.load(Ordering::Relaxed) > self.limits.patch_bytes_queued_max
            || self.written_layers.load(Ordering::Relaxed) > self.files.pinned_max()
    }

    pub(super) fn count_barrier(&self) {
        self.barriers.fetch_add(1, Ordering::Relaxed);
    }

    /// Barrier rounds so far that synced anything.
    pub fn barriers(&self) -> u64 {
        self.barriers.load(Ordering::Relaxed)
    }

    pub(super) fn note_dying(&self, layer: &Layer) {
        self.dying.lock().insert(layer.id);
    }

    /// Layers with blocks whose end is not durable yet. Freed ones are dropped from the list.
    pub(super) fn dying_layers(&self) -> Vec<Arc<Layer>> {
        // Copied, so that the list and the table are never locked together.
        let list = self.dying.lock();
        let listed: Vec<LayerId> = list.iter().copied().collect();
        let list = self.limits.has(Planted::TableHeld).then_some(list);
        let (mut found, mut freed) = (Vec::new(), Vec::new());
        for id in listed {
            match self.get(id) {
                Some(layer) => found.push(layer),
                None => freed.push(id),
            }
        }
        drop(list);
        if !freed.is_empty() {
            self.dying.lock().retain(|id| !freed.contains(id));
        }
        found
    }

    pub(super) fn forget_dying(&self, layer: &Layer) {
        self.dying.lock().remove(&layer.id);
    }

    pub(super) fn note_garbage(&self, layer: &Layer) {
        self.garbage.lock().insert(layer.id);
    }

    pub(super) fn take_garbage(&self) -> Option<LayerId> {
        self.garbage.lock().pop_first()
    }
}
