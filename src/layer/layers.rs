//! All layers of a store: assembles the parts, and makes those changes that concern several of them.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::admission::Admission;
use super::blocks::Blocks;
use super::checksums::ChecksumCache;
use super::cleaning::Cleaning;
use super::commit::barriers::Barriers;
use super::commit::checkpoint::Checkpoints;
use super::commit::queue::{Commit, Ticket};
use super::commit::room::ShapeRoom;
use super::commit::round::LayerRounds;
use super::files::LayerFiles;
use super::layer::Layer;
use super::owed::Owed;
use super::patches::PatchLedger;
use super::punch::Punch;
use super::reapers::Reapers;
use super::settled::Settled;
use super::space::Space;
use super::table::Table;
use super::traces;
use super::unrecorded::Unrecorded;
use super::zeroes::Zeroes;
use crate::catalog::Catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Features, Record, ShapeRecord, StorePaths, Trace};
use crate::ids::LayerId;
use crate::io::{Disk, IoMode};
use crate::journal::Journal;
use crate::limits::{Limits, Planted};
use crate::place::{Block, BlockSize};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, Rank, RwLockReadGuard};

/// What the layers need to know of their store.
#[derive(Clone)]
pub struct LayerConfig {
    pub disk: Arc<dyn Disk>,
    pub paths: StorePaths,
    /// Fixed when the store is created.
    pub block_size: BlockSize,
    /// Page cache or not, for data files.
    pub io_mode: IoMode,
    /// Most bytes of checksum pages that are kept in memory for extents that are not hot.
    pub checksum_cache_bytes: u64,
    /// Journal bytes since the last checkpoint after which another one is due.
    pub checkpoint_bytes: u64,
    pub limits: Limits,
}

/// All layers of a store.
pub struct Layers {
    /// The layers, by number.
    pub table: Arc<Table>,
    /// Verified reads, and the layers' files.
    pub blocks: Arc<Blocks>,
    pub admission: Arc<Admission>,
    /// Runs barrier rounds, and reserves room in the journal.
    pub barriers: Arc<Barriers>,
    pub checkpoints: Arc<Checkpoints>,
    /// Takes blocks out of presence: zeroed, or not answered for any more.
    pub zeroes: Zeroes,
    /// Gives space of garbage back to the file system.
    pub punch: Punch,
    /// Writes checksums back and clears dirty marks.
    pub cleaning: Cleaning,
    /// Looks at single blocks while their latch keeps writers away.
    pub settled: Settled,
    pub patches: Arc<PatchLedger>,
    /// Queues that a thread which waits for a latch may reap.
    pub reapers: Arc<Reapers>,
    unrecorded: Arc<Unrecorded>,
    pub(super) commit: Arc<Commit>,
    owed: Arc<Owed>,
    space: Arc<Space>,
    limits: Limits,
}

impl Layers {
    pub(super) fn new(
        config: LayerConfig,
        files: LayerFiles,
        checksums: ChecksumCache,
        table: FxHashMap<LayerId, Arc<Layer>>,
        journal: Journal,
        unrecorded: Unrecorded,
    ) -> Self {
        let LayerConfig { disk, block_size, io_mode, checkpoint_bytes, limits, .. } = config;
        let (files, checksums, table) = (Arc::new(files), Arc::new(checksums), Arc::new(Table::new(table)));
        let (commit, unrecorded) = (Arc::new(Commit::new(journal, &limits)), Arc::new(unrecorded));
        let (owed, space) = (Arc::new(Owed::new(Arc::clone(&commit))), Arc::new(Space::new(Arc::clone(&table), limits)));
        let patches = Arc::new(PatchLedger::new(Arc::clone(&commit), Arc::clone(&unrecorded), block_size, limits, &table));
        let reapers = Arc::new(Reapers::default());
        let blocks = Arc::new(Blocks::new(Arc::clone(&files), Arc::clone(&checksums), block_size, io_mode));
        let rounds = Arc::new(LayerRounds {
            commit: Arc::clone(&commit),
            table: Arc::clone(&table),
            owed: Arc::clone(&owed),
            patches: Arc::clone(&patches),
            space: Arc::clone(&space),
            files: Arc::clone(&files),
            disk: Arc::clone(&disk),
            reapers: Arc::clone(&reapers),
            unrecorded: Arc::clone(&unrecorded),
            limits,
            synced: AtomicU64::new(0),
        });
        let barriers = Arc::new(Barriers::new(Arc::clone(&commit), Arc::clone(&rounds)));
        let checkpoints = Arc::new(Checkpoints {
            commit: Arc::clone(&commit),
            rounds,
            table: Arc::clone(&table),
            checksums,
            files,
            disk,
            limits,
            checkpoint_bytes,
            writing: Mutex::ranked(Rank::Checkpoint, ()),
        });
        let admission = Arc::new(Admission {
            commit: Arc::clone(&commit),
            barriers: Arc::clone(&barriers),
            blocks: Arc::clone(&blocks),
            patches: Arc::clone(&patches),
            owed: Arc::clone(&owed),
            space: Arc::clone(&space),
            reapers: Arc::clone(&reapers),
            unrecorded: Arc::clone(&unrecorded),
            limits,
        });
        Self {
            zeroes: Zeroes { admission: Arc::clone(&admission) },
            punch: Punch { admission: Arc::clone(&admission), blocks: Arc::clone(&blocks), space: Arc::clone(&space), limits },
            cleaning: Cleaning { admission: Arc::clone(&admission), blocks: Arc::clone(&blocks), checkpoints: Arc::clone(&checkpoints) },
            settled: Settled { admission: Arc::clone(&admission), blocks: Arc::clone(&blocks) },
            table,
            blocks,
            admission,
            barriers,
            checkpoints,
            patches,
            reapers,
            unrecorded,
            commit,
            owed,
            space,
            limits,
        }
    }

    /// A layer by number.
    pub fn get(&self, layer: LayerId) -> Option<Arc<Layer>> {
        self.table.get(layer)
    }

    /// A layer that something refers to.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it was freed meanwhile.
    pub fn require(&self, layer: LayerId) -> Result<Arc<Layer>> {
        self.table.require(layer)
    }

    /// Adds a layer; `source_blocks` if it stands for a source.
    pub fn add(&self, layer: LayerId, parent: Option<LayerId>, source_blocks: Option<u64>) -> Arc<Layer> {
        self.table.add(layer, parent, source_blocks)
    }

    /// Notes the round that makes an added layer.
    pub fn found(&self, layer: &Layer, ticket: Ticket) {
        layer.founding.store(ticket.0, Ordering::Release);
    }

    /// Whether a process that opens the store after the death of this one finds the layer.
    pub fn is_founded(&self, layer: &Layer) -> bool {
        !self.unrecorded.is_on() || self.commit.is_done(Ticket(layer.founding.load(Ordering::Acquire)))
    }

    /// Lets all changes that were made before survive the death of this process. Called before they are acknowledged.
    pub fn carry(&self) {
        self.unrecorded.carry();
    }

    /// All layers, by number.
    pub fn all(&self) -> Vec<Arc<Layer>> {
        self.table.all()
    }

    /// Lets no round begin between the seal of a head and the record of the next one. Taken before a view.
    pub fn hold_for_seal(&self) -> Option<RwLockReadGuard<'_, ()>> {
        (!self.limits.has(Planted::SealedInTwoRounds)).then(|| self.commit.hold_beginning())
    }

    /// Puts records into the next barrier round.
    pub fn enqueue(&self, records: impl IntoIterator<Item = impl Into<Record>>) -> Ticket {
        self.commit.enqueue(records)
    }

    /// Lets the next barrier round make completed writes of a layer durable.
    pub fn enqueue_sync(&self, layer: LayerId) -> Ticket {
        self.commit.enqueue_sync([layer])
    }

    /// Puts the records of a change of shape, which frees these layers, into the next round, and makes completed writes of the layer
    /// `sync` durable in it. A flush of a freed layer has nothing to name any more, so the layer must not be freed in an earlier round.
    pub fn enqueue_freeing(&self, sync: Option<LayerId>, records: Vec<ShapeRecord>, freed: &[LayerId]) -> Ticket {
        let apart = self.limits.has(Planted::FreedInTwoRounds) || self.limits.has(Planted::FreedInARound);
        let _beginning = (!freed.is_empty() && !apart).then(|| self.commit.hold_beginning());
        let ticket = self.commit.enqueue_with_sync(sync, records);
        freed.iter().for_each(|layer| self.free(*layer));
        ticket
    }

    /// Takes a layer out of the table: the catalogue has freed it. Its files go with [`Layers::remove_files`]. A round that has begun, or a
    /// writer that was admitted, may still be in it: they see that it is freed, and count nothing any more.
    fn free(&self, layer: LayerId) {
        let Some(entry) = self.table.remove(layer) else { return };
        let _table = self.limits.has(Planted::TableHeld).then(|| self.table.hold());
        let mut state = entry.state.lock();
        state.freed = true;
        self.owed.count_recorded(std::mem::take(&mut state.fresh_blocks));
        if self.limits.has(Planted::FreedInARound) {
            return;
        }
        state.give_up();
        self.owed.note_named(&entry, &mut state);
        self.owed.note_synced(&entry);
        self.patches.note_freed(&entry, &state);
        entry.changed.notify_all();
    }

    /// Removes the files of a freed layer. Only after the record that freed it is durable.
    ///
    /// # Errors
    /// An I/O error; the files are swept when the store is opened again.
    pub fn remove_files(&self, layer: LayerId) -> Result<()> {
        self.blocks.checksums.forget(layer);
        self.blocks.files.remove(layer).map_err(|error| Error::io(format!("cannot remove the files of layer {layer}"), error))
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

    /// Refuses every later write of a store that was opened to be read.
    pub fn set_read_only(&self) {
        self.commit.poison(Error::new(ErrorKind::ReadOnly, "the store was opened read-only"));
    }

    /// As [`Barriers::reserve_shape`], for a change that notes `addresses` bytes of addresses: after [`Barriers::prepare_shape`], and with
    /// the catalogue locked, which says how many they are.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`].
    pub fn reserve_shape_with(&self, addresses: u64) -> Result<ShapeRoom<'_>> {
        self.commit.room.reserve_shape(addresses)
    }

    /// Whether everything written to this layer, and every record, is durable.
    pub fn is_settled(&self, layer: &Layer) -> bool {
        !layer.needs_sync() && self.commit.is_idle()
    }

    /// Whether what waits for a round is about as much as a frame holds: a caller that needs more waits for others.
    pub fn is_full(&self) -> bool {
        self.commit.room.is_full()
    }

    /// Limits of the store.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether so many blocks wait for their record that writers have to make some durable first.
    pub fn under_pressure(&self) -> bool {
        self.owed.fresh_blocks() > self.limits.fresh_blocks_max
            || self.patches.bytes_queued() > self.limits.patch_bytes_queued_max
            || self.owed.written_layers() > self.blocks.files.pinned_max()
    }

    /// Barrier rounds so far that synced anything.
    pub fn barrier_count(&self) -> u64 {
        self.barriers.rounds.synced.load(Ordering::Relaxed)
    }

    /// What is taken for rounds to come: journal bytes, blocks, journal bytes of patches. Nothing when all is durable and idle.
    #[cfg(feature = "sim")]
    pub fn outstanding(&self) -> [u64; 3] {
        [self.commit.room.reserved_bytes(), self.owed.fresh_blocks(), self.patches.bytes_queued()]
    }

    /// Layers that keep patches only until a frame names the blocks that supersede them.
    pub fn superseded(&self) -> Vec<Arc<Layer>> {
        self.patches.superseded(&self.table)
    }

    /// At most `count` patched blocks in order, beginning with the given block of the given layer.
    pub fn patched_from(&self, from: (LayerId, Block), count: usize) -> Vec<(Arc<Layer>, Block)> {
        self.patches.patched_from(&self.table, from, count)
    }

    /// Layers with marked extents.
    pub fn marked(&self) -> Vec<Arc<Layer>> {
        self.all().into_iter().filter(|layer| !layer.state.lock().marked.is_empty()).collect()
    }

    /// Layers with extents that were not hashed again since a crash.
    pub fn unverified(&self) -> Vec<Arc<Layer>> {
        self.all().into_iter().filter(|layer| layer.unverified.load(Ordering::Acquire)).collect()
    }

    /// Lets space that could not be given back be tried again.
    pub fn punch_again(&self) {
        self.space.retry_unpunched();
    }

    /// The trace of a layer, if one was recorded and can be read.
    pub fn load_trace(&self, layer: LayerId) -> Option<Trace> {
        traces::load(&self.blocks.files, layer)
    }

    /// Replaces the trace of a layer; an empty one counts as none. The trace is advice: it is not made durable, and a torn one is ignored.
    ///
    /// # Errors
    /// An I/O error.
    pub fn save_trace(&self, layer: LayerId, trace: &Trace) -> Result<()> {
        traces::save(&self.blocks.files, layer, trace)
    }

    /// Whether records of these features may follow.
    pub fn takes(&self, features: Features) -> bool {
        self.commit.room.journal().takes(features)
    }

    /// Number of the current journal file.
    pub fn journal_number(&self) -> u64 {
        self.commit.room.journal().number()
    }

    /// Makes everything durable, clears the marks that can be cleared, notes that the store was closed in order (if no mark and no garbage
    /// is left), and refuses writes from then on. `swept`: all layers were searched for garbage. `catalog` is for a last checkpoint.
    ///
    /// # Errors
    /// An I/O error; what was flushed before is safe.
    pub fn shut_down(&self, catalog: &Mutex<Catalog>, swept: bool) -> Result<()> {
        let result = self.shut_down_healthy(catalog, swept);
        self.commit.poison(Error::new(ErrorKind::Poisoned, "the store was closed"));
        result
    }

    fn shut_down_healthy(&self, catalog: &Mutex<Catalog>, swept: bool) -> Result<()> {
        self.barriers.begin_closing();
        self.commit.healthy()?;
        self.barriers.sync(self.all().iter().map(|layer| layer.id))?;
        let mut marked = 0;
        for layer in self.marked() {
            // The first look only sees whether a writer is still there.
            self.cleaning.clean(&layer)?;
            marked += self.cleaning.clean(&layer)?;
        }
        // Also if the sweep has not ended: a store that is opened for short commands only would keep this space otherwise.
        let punched = self.punch.all();
        // After an orderly end no later opening looks for space that was not given back.
        if marked > 0 || !swept || !punched {
            return self.barriers.sync([]);
        }
        let has_rounds = self.commit.room.journal().log_bytes() > 0;
        if has_rounds {
            // Rounds that are lost at the end of a journal are not missed, but a state that is not whole is.
            match self.checkpoints.write(catalog, Some(&Record::Closed), None) {
                Err(error) if error.is_shortage() => {}
                other => return other,
            }
        }
        self.enqueue([Record::Closed]);
        self.barriers.sync([])
    }
}
