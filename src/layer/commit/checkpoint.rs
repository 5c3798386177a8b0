//! Checkpoints: every changed checksum page is written, and a new journal begins with the whole state, while rounds go on.
//!
//! # The walk of a checkpoint
//! 1. *The shape.* No round is under way for a moment, and the catalogue is locked for the time that it takes to copy a pointer for each
//!    entry. From here on the journal's rounds are those that the new one needs as well. Records of shape that are queued by now are in the
//!    copy, and are skipped when their round is copied. (Answers: a record that is in neither journal, or twice in one.)
//! 2. *Pages.* Changed checksum pages are written and synced: those of all blocks that the state will call present and no copied round
//!    names. (Answers: a crash between the pages and the new journal, which lacks the checksums of earlier rounds.) Pages for which there
//!    is no space have their checksums in the new state.
//! 3. *The state.* Shape, then the presence of one layer after the other, in slices, each as it is when it is copied. So the slices are of
//!    different moments, and may be ahead of the rounds. The copies of all rounds since step 1 behind them set that right: each record of
//!    blocks says what its blocks are, whatever they were before, and whatever a slice is ahead by is in a round before the switch.
//!    (Answers: a block that was discarded and punched, a layer that was freed, or a volume that was shrunk meanwhile: its record comes
//!    behind.) Fresh blocks, and those that a round is naming, are left out of a slice; they are what they were before: absent, zeroed or
//!    patched.
//! 4. *Rounds.* What was appended meanwhile is copied and synced, until little is left. The file gets its name.
//! 5. *The switch.* No round is under way: a last one takes all that is queued, and its callers return. Its frame is copied, the state
//!    ends, the file is synced, and the superblock points at it. (Answers: a crash at any moment finds one journal with all rounds that
//!    have ended.)
//!
//! # What waits
//! One checkpoint at a time. A round waits for another caller's checkpoint in steps 1 and 5 only: for a copy in memory, and for two syncs
//! of at most [`TAIL_BYTES_MAX`] bytes and the superblock. Nothing else waits: no lock but `Checkpoints::writing` is held across I/O of
//! the checkpoint, save single calls that take space or give a name. A caller that finds no room in the journal waits for a checkpoint
//! that it needs. Where the file system has no space for copies of rounds, the checkpoint leads from step 1 to the end, and rounds wait
//! for all of it: it needs no space then that was not taken before. So it is where the current journal cannot be read any more: what
//! is in memory replaces it.
//!
//! # Errors
//! A shortage up to the superblock leaves everything as it was; the next try writes every byte again. Any other error poisons the store.

use std::sync::Arc;

use roaring::RoaringBitmap;

use super::super::checksums::{ChecksumCache, ChecksumPage, Key, kept_checksums};
use super::super::files::LayerFiles;
use super::super::layer::Layer;
use super::super::state::State;
use super::super::table::Table;
use super::queue::{Commit, Leader};
use super::room::Room;
use super::round::LayerRounds;
use crate::catalog::{Catalog, Frozen};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{BlocksRecord, Features, PresenceRecord, Record};
use crate::io::Disk;
use crate::journal::Draft;
use crate::limits::{Limits, Planted};
use crate::place::{BlockSpan, extent_bits, insert_bits, remove_bits, set_of};
use crate::sync::Mutex;

/// Changed checksum pages in memory after which a checkpoint is due.
const CHANGED_PAGES_MAX: usize = 16 << 10;
/// Bytes of rounds that are left for the switch, unless more come than can be copied.
const TAIL_BYTES_MAX: u64 = 64 << 10;
/// How often rounds are copied before the switch at most.
const COPIES_MAX: u32 = 8;
/// Blocks of a layer whose presence is copied at once: at most 8 MiB in each of two sets.
const SLICE_BLOCKS: u64 = 1 << 26;

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
    /// Held by the one checkpoint that is written.
    pub writing: Mutex<()>,
}

/// The next journal. It is given up when it is dropped before the superblock may point at it.
struct Next<'a> {
    draft: Draft<'a>,
    room: &'a Room,
    is_decided: bool,
}

impl Next<'_> {
    /// Copies the rounds that were appended meanwhile, if they are more than `least` bytes. Answers whether they were.
    fn copy_rounds(&mut self, least: u64) -> Result<bool> {
        let end = {
            let mut journal = self.room.journal();
            let end = journal.end();
            let bytes = self.draft.behind(end);
            if bytes <= least && least > 0 {
                return Ok(false);
            }
            journal.make_copies(bytes)?;
            end
        };
        self.draft.follow(end).map(|()| true)
    }

    /// Adds the rounds that were kept in memory.
    fn put_kept_rounds(&mut self) -> Result<()> {
        let rounds = self.room.journal().take_kept();
        self.draft.put_rounds(rounds)
    }
}

impl Drop for Next<'_> {
    fn drop(&mut self) {
        if !self.is_decided {
            self.room.journal().give_up_draft();
        }
    }
}

impl Checkpoints {
    /// Writes a checkpoint: the shape and the presence of all layers. `end`: a record behind them. `features`: records of these may follow
    /// from then on; `None` if that stays as it is.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NoSpace`], or a lack of descriptors, leaves everything as it was; any other error poisons the store.
    pub fn write(&self, catalog: &Mutex<Catalog>, end: Option<&Record>, features: Option<Features>) -> Result<()> {
        let _one_at_a_time = self.writing.lock();
        if features.is_some_and(|features| self.commit.room.journal().takes(features)) {
            // Another caller wanted the same.
            return Ok(());
        }
        let features = features.unwrap_or_default();
        let written = self.try_write(catalog, end, features, false);
        let written = match written {
            Err(error) if matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Corrupt) => self.try_write(catalog, end, features, true),
            other => other,
        };
        written.inspect_err(|error| {
            if !error.is_shortage() {
                self.commit.poison(error.clone())
            }
        })
    }

    /// `alone`: no round is under way from the beginning to the end.
    fn try_write(&self, catalog: &Mutex<Catalog>, end: Option<&Record>, features: Features, alone: bool) -> Result<()> {
        let room = &self.commit.room;
        let grow = |bytes| room.journal().grow_spare(bytes);
        let leader = self.commit.lead()?;
        let mut draft = room.journal().draft(features, &grow)?;
        if alone {
            room.journal().keep_rounds();
        }
        let shape = {
            let catalog = catalog.lock();
            if !self.limits.has(Planted::ShapesTwice) {
                draft.skip_shapes(self.commit.queued_shapes());
            }
            Frozen::of(&catalog)
        };
        let mut next = Next { draft, room, is_decided: false };
        let leader = alone.then_some(leader);
        self.put_state(&mut next.draft, shape)?;
        next.draft.sync()?;
        for _ in 0..COPIES_MAX {
            if leader.is_some() || !next.copy_rounds(TAIL_BYTES_MAX)? {
                break;
            }
            next.draft.sync()?;
        }
        room.journal().name_spare(next.draft.written())?;
        next.draft.sync_name()?;
        let leader = leader.map_or_else(|| self.commit.lead(), Ok)?;
        self.switch(leader, next, end.cloned(), alone)
    }

    fn switch(&self, leader: Leader<'_>, mut next: Next<'_>, end: Option<Record>, alone: bool) -> Result<()> {
        leader.switch(&*self.rounds, || {
            match alone {
                _ if self.limits.has(Planted::RoundsLeftBehind) => {}
                true => next.put_kept_rounds()?,
                false => drop(next.copy_rounds(0)?),
            }
            next.draft.end(end)?;
            self.commit.room.journal().name_spare(next.draft.written())?;
            next.draft.sync()?;
            next.is_decided = true;
            next.draft.point()?;
            self.commit.room.journal().switch_to(&next.draft);
            Ok(())
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

    /// Writes the pages, and the state as far as it comes from memory.
    fn put_state(&self, draft: &mut Draft<'_>, shape: Frozen) -> Result<()> {
        let left = self.checksums.write_back_all(&self.files).map_err(|error| Error::io("cannot write checksums", error))?;
        self.sync_pages()?;
        let layers = shape.layers();
        draft.put(shape.records().map(Record::Shape))?;
        // One that was freed meanwhile is in the shape, and holds nothing any more when the round that frees it is copied.
        for layer in layers.into_iter().filter_map(|id| self.table.get(id)) {
            let first = left.partition_point(|((id, _), _)| *id < layer.id);
            let own = left[first..].iter().take_while(|((id, _), _)| *id == layer.id);
            self.put_presence(draft, &layer)?;
            draft.put(kept(&layer, own))?;
        }
        Ok(())
    }

    /// What the state says of a layer, without its checksums.
    fn put_presence(&self, draft: &mut Draft<'_>, layer: &Layer) -> Result<()> {
        let mut more = false;
        let mut start = 0;
        while let Some((presence, patches)) = slice(layer, start) {
            let records = presence.split(self.limits.state_record_bytes_max()).into_iter();
            let records = records.map(|record| PresenceRecord { more: std::mem::replace(&mut more, true), ..record });
            draft.put(records.map(BlocksRecord::Presence).chain(patches).map(Record::Blocks))?;
            start += SLICE_BLOCKS;
        }
        Ok(())
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

/// Presence, marks and patches of a layer from block `start` on, as they are now. `None`: nothing is there or behind. Fresh blocks, and
/// those that a round is naming, are left out, because their bytes are not durable; the zeros and patches that they supersede are in it.
fn slice(layer: &Layer, start: u64) -> Option<(PresenceRecord, Vec<BlocksRecord>)> {
    let span = BlockSpan::new(start, start + SLICE_BLOCKS).and(BlockSpan::ALL);
    let (first, last) = span.first().zip(span.last())?;
    let state = layer.state.lock();
    if state.is_at_rest_from(first) {
        return None;
    }
    let part = |set: &RoaringBitmap| match start == 0 && set.max() <= Some(last.number()) {
        true => set.clone(),
        false => set & set_of(span),
    };
    let (mut present, mut zeroed) = (part(&state.presence.present), part(&state.presence.zeroed));
    for (extent, hot) in state.hot.range(first.extent()..=last.extent()) {
        let unproven = hot.fresh.or(&hot.round);
        if !unproven.is_empty() {
            let unproven = unproven.and(&extent_bits(&present, *extent));
            remove_bits(&mut present, *extent, &unproven);
            insert_bits(&mut zeroed, *extent, &unproven.and(&hot.over_zeros));
        }
    }
    let mut marked = state.marked.clone();
    marked.remove_range(..first.extent().number());
    marked.remove_range(last.extent().number() + 1..);
    let patches = state.patches_to_keep(first..=last, &present).flat_map(|(block, patch)| patch.records(layer.id, block)).collect();
    drop(state);
    present.optimize();
    zeroed.optimize();
    Some((PresenceRecord { layer: layer.id, more: false, present, zeroed, marked }, patches))
}

/// The checksums of present blocks that pages in the files lack, except those of marked extents: these are hashed again after a crash.
fn kept<'a>(layer: &Layer, pages: impl Iterator<Item = &'a (Key, Arc<ChecksumPage>)>) -> Vec<Record> {
    let state = layer.state.lock();
    let present = |state: &State, extent| match state.hot.get(&extent) {
        Some(hot) => state.presence.present_bits(extent).minus(&hot.fresh).minus(&hot.round),
        None => state.presence.present_bits(extent),
    };
    let unmarked = pages.filter(|((_, extent), _)| !state.marked.contains(extent.number()));
    let kept = unmarked.flat_map(|((_, extent), page)| kept_checksums(layer.id, *extent, page, &present(&state, *extent)));
    kept.map(Record::Blocks).collect()
}
