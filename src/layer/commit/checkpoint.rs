//! Checkpoints: every changed checksum page is written, and a new journal begins with the whole state.

use std::sync::Arc;

use super::super::checksums::{ChecksumCache, ChecksumPage, kept_checksums};
use super::super::files::LayerFiles;
use super::super::layer::Layer;
use super::super::table::Table;
use super::queue::Commit;
use super::round::LayerRounds;
use crate::error::{Error, Result};
use crate::format::{BlocksRecord, PresenceRecord, Record, ShapeRecord};
use crate::io::Disk;
use crate::limits::Limits;
use crate::place::{Extent, extent_bits, insert_bits, remove_bits};

/// Changed checksum pages in memory after which a checkpoint is due.
const CHANGED_PAGES_MAX: usize = 16 << 10;

/// Writes checkpoints.
pub struct Checkpoints {
    pub commit: Arc<Commit>,
    pub rounds: Arc<LayerRounds>,
    pub table: Arc<Table>,
    pub checksums: Arc<ChecksumCache>,
    pub files: Arc<LayerFiles>,
    pub disk: Arc<dyn Disk>,
    pub limits: Limits,
    /// Journal bytes since the last checkpoint after which another one is due.
    pub checkpoint_bytes: u64,
}

impl Checkpoints {
    /// Writes a checkpoint: `shape` and the presence of all layers. The caller keeps the shape from changing meanwhile. `end`: a record
    /// behind them. `leases`: records of leases may follow from then on.
    ///
    /// 1. A round makes what is queued durable; no other round starts before the end. (Answers: a record that is in neither journal.)
    /// 2. Changed checksum pages are written and synced. The old journal still has their checksums. (Answers: a crash between the pages and
    ///    the new journal.) Pages for which there is no space have their checksums in the new state.
    /// 3. The presence of every layer is gathered, before the journal is locked: a writer with a layer's lock may be waiting for the
    ///    journal. What changes meanwhile is in the next frame.
    /// 4. The journal writes the state to a new file and switches to it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NoSpace`], or a lack of descriptors, leaves everything as it was; any other error poisons the store.
    pub fn write(&self, shape: Vec<ShapeRecord>, end: Option<Record>, leases: bool) -> Result<()> {
        self.commit.exclusive(&*self.rounds, || {
            let left = self.checksums.write_back_all(&self.files).map_err(|error| Error::io("cannot write checksums", error))?;
            self.sync_pages()?;
            let mut presence = Vec::new();
            for layer in self.table.all() {
                let first = left.partition_point(|((id, _), _)| *id < layer.id);
                let own = left[first..].iter().take_while(|((id, _), _)| *id == layer.id);
                presence.extend(self.presence_records(&layer, own.map(|((_, extent), page)| (*extent, &**page))));
            }
            let shape = shape.into_iter().map(Record::Shape);
            let state = shape.chain(presence.into_iter().map(Record::Blocks)).chain(end);
            self.commit.room.journal().checkpoint(state, leases)
        })
    }

    /// Makes written pages, and the names of their files, durable.
    ///
    /// # Errors
    /// A shortage leaves the pages to a later call; any other error poisons the store.
    pub fn sync_pages(&self) -> Result<()> {
        let _one_at_a_time = self.checksums.syncing.lock();
        // If another caller's pages were not synced, the store is poisoned by now.
        self.commit.healthy()?;
        let files = self.checksums.take_unsynced();
        let named = self.files.sync_names();
        if named.as_ref().is_err_and(Error::is_shortage) {
            // No sync was tried, and nothing is lost.
            self.checksums.put_back_unsynced(files);
            return named;
        }
        let files: Vec<_> = files.into_values().collect();
        let synced = named.and_then(|()| self.disk.sync_all(&files).map_err(|error| Error::sync("cannot sync checksums", error)));
        synced.inspect_err(|error| self.commit.poison(error.clone()))
    }

    /// What the state says of a layer. Fresh blocks are left out, because their bytes are not durable; the zeros and patches that they
    /// supersede are in it. The checksums of `pages`, which the files lack, are in it too, except those of marked extents: these are hashed
    /// again after a crash.
    fn presence_records<'a>(&self, layer: &Layer, pages: impl Iterator<Item = (Extent, &'a ChecksumPage)>) -> Vec<BlocksRecord> {
        let state = layer.state.lock();
        let mut present = state.presence.present.clone();
        let mut zeroed = state.presence.zeroed.clone();
        for extent in &state.fresh_extents {
            if let Some(hot) = state.hot.get(extent) {
                remove_bits(&mut present, *extent, &hot.fresh);
                insert_bits(&mut zeroed, *extent, &hot.fresh.and(&hot.over_zeros));
            }
        }
        let patches: Vec<BlocksRecord> =
            state.patches_to_keep(&present).flat_map(|(block, patch)| patch.records(layer.id, block)).collect();
        present.optimize();
        zeroed.optimize();
        let marked = state.marked.clone();
        let unmarked = pages.filter(|(extent, _)| !marked.contains(extent.number()));
        let kept: Vec<BlocksRecord> =
            unmarked.flat_map(|(extent, page)| kept_checksums(layer.id, extent, page, &extent_bits(&present, extent))).collect();
        drop(state);
        let presence = PresenceRecord { layer: layer.id, more: false, present, zeroed, marked };
        presence.split(self.limits.state_record_bytes_max()).into_iter().map(BlocksRecord::Presence).chain(patches).chain(kept).collect()
    }

    /// Whether the journal has grown so much that a checkpoint is due.
    pub fn is_due(&self) -> bool {
        let (log, state) = {
            let journal = self.commit.room.journal();
            (journal.log_bytes(), journal.state_bytes())
        };
        log > self.checkpoint_bytes.max(2 * state) || self.commit.room.is_low() || self.checksums.changed_pages() > CHANGED_PAGES_MAX
    }
}
