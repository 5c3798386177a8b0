//! A barrier round of the layers: one frame, one round of syncs.
//!
//! # The walk of a round
//! 1. *Begin* ([`LayerRounds::begin`]): each layer gives its fresh blocks, its overwritten blocks and its written files. No writer is
//!    admitted to these blocks until the round ends, so recovery can compare them with the frame. (Answers: a crash between the frame and
//!    its sync.)
//! 2. *Append* (`append_round`): new names are made durable, then one frame has the queued records, the new blocks and the overwritten
//!    blocks of sealed layers. A lack of space ends here; the round is undone and nothing has changed.
//! 3. *Sync* (`end_rounds`): journal and data files in one call. An error poisons the store: the pages are clean by then and the bytes
//!    may be lost.
//! 4. *End* (`end_round`): the blocks may be overwritten again, once a later frame proves this one. Patches that the frame supersedes are
//!    dropped, and retiring blocks become garbage.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::files::LayerFiles;
use super::super::layer::Layer;
use super::super::owed::Owed;
use super::super::patches::PatchLedger;
use super::super::reapers::{HELP_INTERVAL, Reapers};
use super::super::space::Space;
use super::super::state::State;
use super::super::table::Table;
use super::super::unrecorded::Unrecorded;
use super::cost::{claimed_bytes, patch_bytes, state_growth};
use super::queue::{Commit, Gathered, RoundError, Rounds, Ticket};
use crate::error::{Error, Result};
use crate::format::{BlockRun, BlocksRecord, Record, Writer};
use crate::io::{Disk, DiskFile};
use crate::journal::STATE_GROWTH;
use crate::limits::{Limits, Planted};
use crate::place::{BlockBits, Extent, Segment, wide};
use crate::sync::MutexGuard;
use crate::sync::atomic::{AtomicU64, Ordering};

/// What one layer brings to a round.
#[derive(Default)]
struct Contribution {
    present: Vec<BlockRun>,
    /// Overwritten blocks of a sealed layer.
    expect: Vec<BlockRun>,
    /// Blocks overwritten in place: they belong to a later round if this one is undone.
    overwritten: Vec<(Extent, BlockBits)>,
    files: BTreeMap<Segment, Arc<dyn DiskFile>>,
}

impl Contribution {
    fn new_blocks(&self) -> u64 {
        self.present.iter().map(|run| wide(run.checksums.len())).sum()
    }
}

/// A round that has begun in all its layers.
pub struct Begun {
    ticket: Ticket,
    gathered: Gathered,
    members: Vec<(Arc<Layer>, Contribution)>,
}

/// Runs the rounds of the layers of a store.
pub struct LayerRounds {
    pub commit: Arc<Commit>,
    pub table: Arc<Table>,
    pub owed: Arc<Owed>,
    pub patches: Arc<PatchLedger>,
    pub space: Arc<Space>,
    pub files: Arc<LayerFiles>,
    pub disk: Arc<dyn Disk>,
    pub reapers: Arc<Reapers>,
    pub unrecorded: Arc<Unrecorded>,
    pub limits: Limits,
    /// Rounds so far that synced anything.
    pub synced: AtomicU64,
}

impl Rounds for LayerRounds {
    type Begun = Begun;

    fn prepare(&self) {
        // Records that are queued later are noted later still, and so in the other file.
        let frame = self.commit.room.journal().sequence();
        self.unrecorded.round_begins(frame);
    }

    fn begin(&self, ticket: Ticket, mut gathered: Gathered) -> Begun {
        if self.unrecorded.is_long() {
            gathered.layers.extend(self.owed.layers());
        }
        // After the turn: blocks that are noted before it are listed by now.
        self.unrecorded.round_covers(self.owed.is_fresh_only_in(&gathered.layers));
        let layers: Vec<Arc<Layer>> = gathered.layers.iter().filter_map(|id| self.table.get(*id)).collect();
        let begin = |layer: Arc<Layer>| {
            let part = self.begin_round(&layer, ticket);
            (layer, part)
        };
        Begun { ticket, gathered, members: layers.into_iter().map(begin).collect() }
    }

    fn carry_out(&self, begun: Begun) -> std::result::Result<(), RoundError> {
        match self.append_round(&begun) {
            Ok(files) => match self.end_rounds(begun, &files) {
                Ok(()) => {
                    self.unrecorded.round_succeeded();
                    Ok(())
                }
                Err(error) => Err(self.lose(error)),
            },
            Err(error) if error.is_shortage() => {
                begun.members.into_iter().for_each(|(layer, part)| self.undo_round(&layer, part));
                Err(RoundError::Undone(begun.gathered, error))
            }
            Err(error) => Err(self.lose(error)),
        }
    }
}

impl LayerRounds {
    /// Parts of the round may have reached the disk, and it is not known any more what the page cache has.
    fn lose(&self, error: Error) -> RoundError {
        self.unrecorded.give_up();
        RoundError::Lost(error)
    }

    /// Syncs files. After a failed sync the pages are clean and the bytes may be gone, so no sync is tried again.
    fn sync_files(&self, files: &[Arc<dyn DiskFile>]) -> Result<()> {
        self.disk.sync_all(files).map_err(|error| Error::sync("cannot sync", error))
    }

    /// Writes the frame of a round; answers the files to sync. A shortage leaves the journal as it was.
    fn append_round(&self, begun: &Begun) -> Result<Vec<Arc<dyn DiskFile>>> {
        self.commit.healthy()?;
        let parts = || begun.members.iter().map(|(_, part)| part);
        let mut files: Vec<Arc<dyn DiskFile>> = parts().flat_map(|part| part.files.values().cloned()).collect();
        self.files.sync_names()?;
        let frame = self.commit.room.journal().sequence() + 1;
        self.unrecorded.frame_comes(frame, begun.ticket.0);
        let expected: usize = parts().flat_map(|part| &part.expect).map(|run| run.checksums.len()).sum();
        let names_expected = expected <= self.limits.expect_blocks_max && self.commit.room.has_room_to_expect(expected);
        if !names_expected {
            // Durable before the frame, so the frame does not have to name them.
            self.sync_files(&files)?;
        }
        let mut writer = Writer::default();
        begun.gathered.records.iter().for_each(|record| record.encode(&mut writer));
        parts().flat_map(|part| &part.present).for_each(|run| Record::from(BlocksRecord::Present(run.clone())).encode(&mut writer));
        if names_expected {
            parts().flat_map(|part| &part.expect).for_each(|run| Record::from(BlocksRecord::Expect(run.clone())).encode(&mut writer));
        }
        if !writer.bytes.is_empty() {
            let cut = STATE_GROWTH * begun.gathered.cut_bytes;
            let growth = begun.gathered.block_records().map(state_growth).sum::<u64>() + cut;
            files.push(self.commit.room.append(&writer.bytes, growth)?);
        }
        Ok(files)
    }

    /// Syncs what a round wrote, and ends it in its layers.
    fn end_rounds(&self, begun: Begun, files: &[Arc<dyn DiskFile>]) -> Result<()> {
        // The frame is written: its reserved journal space is used up.
        self.patches.count_recorded(begun.gathered.block_records().map(patch_bytes).sum());
        self.commit.room.release(begun.gathered.block_records().map(claimed_bytes).sum::<u64>() + begun.gathered.cut_bytes);
        self.owed.count_recorded(begun.members.iter().map(|(_, part)| part.new_blocks()).sum());
        if !files.is_empty() {
            let files = if self.limits.has(Planted::ForgottenSync) { &files[1..] } else { files };
            self.sync_files(files)?;
            self.synced.fetch_add(1, Ordering::Relaxed);
        }
        for (layer, _) in &begun.members {
            self.end_round(layer);
        }
        self.end_retiring(begun.ticket);
        Ok(())
    }

    /// Takes what completed writes left to be made durable. From here on, blocks of the frame are not overwritten.
    ///
    /// 1. No writer is admitted to any block that is fresh now: a flush names every write that completed before it, also one whose block
    ///    another writer wants to write again (`draining`).
    /// 2. Writers that have such a block already end. Meanwhile the lock is released, and the layer may be freed.
    /// 3. Blocks that are fresh and not latched are named. A block that became fresh after step 1 and is latched belongs to a later round.
    fn begin_round(&self, layer: &Layer, ticket: Ticket) -> Contribution {
        let mut state = layer.state.lock();
        let mut part = Contribution::default();
        if state.freed && !self.limits.has(Planted::FreedInARound) {
            return part;
        }
        let extents: Vec<Extent> = std::mem::take(&mut state.fresh_extents).into_iter().collect();
        self.owed.note_named(layer, &mut state);
        state.round = Some(ticket);
        for &extent in &extents {
            if let Some(hot) = state.hot.get_mut(&extent) {
                hot.draining = if self.limits.has(Planted::RewrittenWhileDraining) { hot.fresh.and(&hot.latched) } else { hot.fresh };
            }
            while state.hot.get(&extent).is_some_and(|hot| hot.draining.intersects(&hot.latched)) {
                layer.changed.wait_for(&mut state, HELP_INTERVAL);
                MutexGuard::unlocked(&mut state, || self.reapers.help());
            }
            // Writers that ended meanwhile have put the extent back.
            if !self.limits.has(Planted::EmptyRoundProves) {
                state.fresh_extents.remove(&extent);
            }
            let Some(hot) = state.hot.get_mut(&extent) else { continue };
            let ready = hot.fresh.minus(&hot.latched);
            hot.draining = BlockBits::EMPTY;
            hot.round = ready;
            hot.fresh = hot.fresh.minus(&ready);
            part.present.extend(hot.page.runs(layer.id, extent, &ready));
            let is_left = !hot.fresh.is_empty();
            state.fresh_blocks -= u64::from(ready.count());
            if is_left {
                state.fresh_extents.insert(extent);
                self.owed.note_fresh(layer, &mut state);
            }
        }
        // Wakes writers that wait for an extent to be drained.
        layer.changed.notify_all();
        state.round_extents = extents;
        Self::take_overwritten(layer, &mut state, &mut part);
        part.files = std::mem::take(&mut state.written);
        state.dirty_bytes = 0;
        if self.limits.has(Planted::ForgottenRun) && part.present.len() > 1 {
            part.present.pop();
        }
        self.owed.note_synced(layer);
        part
    }

    fn take_overwritten(layer: &Layer, state: &mut State, part: &mut Contribution) {
        for extent in std::mem::take(&mut state.overwritten_extents) {
            let Some(hot) = state.hot.get_mut(&extent) else { continue };
            if layer.is_sealed() {
                part.expect.extend(hot.page.runs(layer.id, extent, &hot.overwritten));
            }
            part.overwritten.push((extent, std::mem::replace(&mut hot.overwritten, BlockBits::EMPTY)));
            state.cool(extent);
        }
    }

    fn end_round(&self, layer: &Layer) {
        let frame = self.commit.room.latest_frame();
        let mut state = layer.state.lock();
        state.round = None;
        for extent in std::mem::take(&mut state.round_extents) {
            if let Some(hot) = state.hot.get_mut(&extent) {
                let named = std::mem::replace(&mut hot.round, BlockBits::EMPTY);
                // A round that named nothing here may have appended no frame: it does not prove the blocks of the latest one.
                if !named.is_empty() || self.limits.has(Planted::EmptyRoundProves) {
                    hot.recorded = (named, frame);
                }
                for run in named.spans() {
                    // What the frame names is durable now, and so supersedes its patches for good.
                    self.patches.drop_superseded(layer, &mut state, extent.part(run).span());
                }
            }
            state.cool(extent);
        }
        layer.changed.notify_all();
    }

    /// Gives back what `begin_round` took, as far as it was not discarded meanwhile: nothing was appended.
    fn undo_round(&self, layer: &Layer, part: Contribution) {
        let mut state = layer.state.lock();
        let state = &mut *state;
        state.round = None;
        let mut left = 0;
        for extent in std::mem::take(&mut state.round_extents) {
            let present = state.presence.present_bits(extent);
            let Some(hot) = state.hot.get_mut(&extent) else { continue };
            let again = std::mem::replace(&mut hot.round, BlockBits::EMPTY).and(&present);
            if !again.is_empty() && !state.freed {
                hot.fresh = hot.fresh.or(&again);
                left += u64::from(again.count());
                state.fresh_extents.insert(extent);
            }
        }
        state.fresh_blocks += left;
        if left > 0 {
            self.owed.note_fresh(layer, state);
        }
        // Blocks that were discarded meanwhile, or freed: no frame will name them.
        self.owed.count_recorded(part.new_blocks() - left);
        if !state.freed {
            for (extent, bits) in part.overwritten {
                let still = bits.and(&state.presence.present_bits(extent));
                if let Some(hot) = state.hot.get_mut(&extent).filter(|_| !still.is_empty()) {
                    hot.overwritten = hot.overwritten.or(&still);
                    state.overwritten_extents.insert(extent);
                }
            }
            for (segment, file) in part.files {
                self.owed.note_written(layer, state, segment, &file);
            }
        }
        layer.changed.notify_all();
    }

    /// Retiring blocks whose record is durable now become garbage.
    fn end_retiring(&self, ticket: Ticket) {
        for layer in self.space.retiring() {
            let mut state = layer.state.lock();
            let retiring = std::mem::take(&mut state.retiring);
            let (ended, still): (Vec<_>, Vec<_>) = retiring.into_iter().partition(|retiring| retiring.ticket <= ticket);
            state.retiring = still;
            for retiring in ended {
                state.garbage |= retiring.recorded;
            }
            if state.retiring.is_empty() {
                self.space.note_none_retiring(&layer);
            }
            if !state.garbage.is_empty() {
                self.space.note_garbage(&layer);
            }
        }
    }
}
