//! A barrier round: one frame, one round of syncs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::commit::{Gathered, RoundError, Rounds, Ticket};
use super::patches::record_bytes;
use super::set::{HELP_INTERVAL, Layers};
use super::space::{claimed_bytes, state_growth};
use super::state::{Layer, State};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{BlockRun, BlocksRecord, Record, Writer};
use crate::io::DiskFile;
use crate::journal::STATE_GROWTH;
use crate::limits::{EXTENT_BLOCKS, Planted};
use crate::place::BlockBits;
use crate::sync::MutexGuard;
use crate::sync::thread::sleep;

/// Rounds that a change of shape waits for while they are undone, and the pause between them.
const SHAPE_ROUNDS: u32 = 3;
const SHAPE_PAUSE: Duration = Duration::from_millis(10);

/// What one layer brings to a round.
#[derive(Default)]
struct Contribution {
    present: Vec<BlockRun>,
    /// Overwritten blocks of a sealed layer.
    expect: Vec<BlockRun>,
    /// Blocks overwritten in place, by extent: they are a later round's if this one is undone.
    overwritten: Vec<(u32, BlockBits)>,
    files: BTreeMap<u32, Arc<dyn DiskFile>>,
}

impl Contribution {
    fn new_blocks(&self) -> u64 {
        self.present.iter().map(|run| run.checksums.len() as u64).sum()
    }
}

/// A round that has begun in all its layers.
pub struct Begun {
    ticket: Ticket,
    gathered: Gathered,
    members: Vec<(Arc<Layer>, Contribution)>,
}

impl Rounds for Layers {
    type Begun = Begun;

    fn begin(&self, ticket: Ticket, gathered: Gathered) -> Begun {
        let layers: Vec<Arc<Layer>> = gathered.layers.iter().filter_map(|id| self.get(*id)).collect();
        let begin = |layer: Arc<Layer>| {
            let part = self.begin_round(&layer, ticket);
            (layer, part)
        };
        Begun { ticket, gathered, members: layers.into_iter().map(begin).collect() }
    }

    fn carry_out(&self, begun: Begun) -> std::result::Result<(), RoundError> {
        match self.append_round(&begun) {
            Ok(files) => self.end_rounds(begun, &files).map_err(RoundError::Lost),
            Err(error) if error.is_shortage() => {
                begun.members.into_iter().for_each(|(layer, part)| self.undo_round(&layer, part));
                Err(RoundError::Undone(begun.gathered, error))
            }
            Err(error) => Err(RoundError::Lost(error)),
        }
    }
}

impl Layers {
    /// Waits for a round; runs it if nobody does.
    ///
    /// # Errors
    /// This caller led a round that found no room; or the round failed, and the store refuses writes from now on.
    pub fn wait(&self, ticket: Ticket) -> Result<()> {
        self.commit.wait(ticket, self)?;
        self.restore_reserve();
        Ok(())
    }

    /// Waits for the round of a change of shape, which is visible already. A round that is undone leaves the change to the next one, so
    /// a shortage that is over soon is not seen.
    ///
    /// # Errors
    /// [`ErrorKind::NotDurable`] if it is not over soon; [`ErrorKind::Poisoned`].
    pub fn wait_shape(&self, ticket: Ticket) -> Result<()> {
        let mut further = 1..SHAPE_ROUNDS;
        loop {
            match self.wait(ticket) {
                Err(error) if error.is_shortage() && further.next().is_some() => sleep(SHAPE_PAUSE),
                Err(error) if error.is_shortage() => {
                    let message = format!("the change was made, but is not durable before the next flush that succeeds: {error}");
                    return Err(Error::new(ErrorKind::NotDurable, message));
                }
                other => return other,
            }
        }
    }

    /// Makes all completed writes of `layers`, and all records so far, durable.
    ///
    /// # Errors
    /// As [`Layers::wait`].
    pub fn sync(&self, layers: impl IntoIterator<Item = crate::ids::LayerId>) -> Result<()> {
        self.wait(self.commit.enqueue_sync(layers))
    }

    /// Makes every block durable that waits for its record, of whichever layer.
    ///
    /// # Errors
    /// As [`Layers::wait`].
    pub fn sync_fresh(&self) -> Result<()> {
        self.sync(self.unsynced_layers())
    }

    /// Whether a flush of this layer has anything to make durable.
    pub fn needs_sync(&self, layer: &Layer) -> bool {
        let state = layer.state.lock();
        !state.written.is_empty() || !state.dying.is_empty() || state.round.is_some() || !state.fresh_extents.is_empty()
    }

    /// After a failed sync the pages are clean and the bytes may be gone.
    fn sync_files(&self, files: &[Arc<dyn DiskFile>]) -> Result<()> {
        self.disk.sync_all(files).map_err(|error| Error::sync("cannot sync", error))
    }

    /// Writes the frame of a round; answers the files to sync. A shortage leaves the journal as it was.
    fn append_round(&self, begun: &Begun) -> Result<Vec<Arc<dyn DiskFile>>> {
        self.commit.healthy()?;
        let parts = || begun.members.iter().map(|(_, part)| part);
        let mut files: Vec<Arc<dyn DiskFile>> = parts().flat_map(|part| part.files.values().cloned()).collect();
        self.files.sync_names()?;
        let expected: usize = parts().flat_map(|part| &part.expect).map(|run| run.checksums.len()).sum();
        let names_expected = expected <= self.limits.expect_blocks_max && self.commit.has_room_to_expect(expected);
        if !names_expected {
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
            files.push(self.commit.append(&writer.bytes, growth)?);
        }
        Ok(files)
    }

    /// Syncs what a round wrote, and ends it in its layers.
    fn end_rounds(&self, begun: Begun, files: &[Arc<dyn DiskFile>]) -> Result<()> {
        // The frame is written: what was reserved for it is used up.
        self.count_patches_recorded(begun.gathered.block_records().map(patch_bytes).sum());
        self.commit.release(begun.gathered.block_records().map(claimed_bytes).sum::<u64>() + begun.gathered.cut_bytes);
        self.count_recorded(begun.members.iter().map(|(_, part)| part.new_blocks()).sum());
        if !files.is_empty() {
            let files = if self.limits.has(Planted::ForgottenSync) { &files[1..] } else { files };
            self.sync_files(files)?;
            self.count_barrier();
        }
        for (layer, _) in &begun.members {
            self.end_round(layer);
        }
        self.end_dying(begun.ticket);
        Ok(())
    }

    /// Takes what completed writes left to be made durable. From here on, blocks of the frame are not overwritten.
    ///
    /// 1. No writer is admitted any more to any block that is fresh now: a flush names every write that completed before it, also
    ///    one whose block somebody wants to write again (`draining`).
    /// 2. Writers that have such a block already end; meanwhile the lock is released, and the layer may be freed.
    /// 3. What is fresh and held by nobody is named. A block that became fresh after step 1 and is held is a later round's.
    fn begin_round(&self, layer: &Layer, ticket: Ticket) -> Contribution {
        let mut state = layer.state.lock();
        let mut part = Contribution::default();
        if state.freed && !self.limits.has(Planted::FreedInARound) {
            return part;
        }
        let extents: Vec<u32> = std::mem::take(&mut state.fresh_extents).into_iter().collect();
        self.note_named(layer, &mut state);
        state.round = Some(ticket);
        for &extent in &extents {
            if let Some(hot) = state.hot.get_mut(&extent) {
                hot.draining = if self.limits.has(Planted::RewrittenWhileDraining) { hot.fresh.and(&hot.latched) } else { hot.fresh };
            }
            while state.hot.get(&extent).is_some_and(|hot| hot.draining.intersects(&hot.latched)) {
                layer.changed.wait_for(&mut state, HELP_INTERVAL);
                MutexGuard::unlocked(&mut state, || self.help());
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
            part.present.extend(runs(layer, extent, &ready, |block| hot.page.get(block)));
            let is_left = !hot.fresh.is_empty();
            state.fresh_blocks -= u64::from(ready.count());
            if is_left {
                state.fresh_extents.insert(extent);
                self.note_fresh(layer, &mut state);
            }
        }
        // Those that wait for an extent to be drained.
        layer.changed.notify_all();
        state.round_extents = extents;
        self.take_overwritten(layer, &mut state, &mut part);
        part.files = std::mem::take(&mut state.written);
        if self.limits.has(Planted::ForgottenRun) && part.present.len() > 1 {
            part.present.pop();
        }
        self.note_synced(layer);
        part
    }

    fn take_overwritten(&self, layer: &Layer, state: &mut State, part: &mut Contribution) {
        for extent in std::mem::take(&mut state.overwritten_extents) {
            let Some(hot) = state.hot.get_mut(&extent) else { continue };
            if layer.is_sealed() {
                part.expect.extend(runs(layer, extent, &hot.overwritten, |block| hot.page.get(block)));
            }
            part.overwritten.push((extent, std::mem::replace(&mut hot.overwritten, BlockBits::EMPTY)));
            state.cool(extent);
        }
    }

    fn end_round(&self, layer: &Layer) {
        let frame = self.commit.latest_frame();
        let mut state = layer.state.lock();
        state.round = None;
        for extent in std::mem::take(&mut state.round_extents) {
            if let Some(hot) = state.hot.get_mut(&extent) {
                let named = std::mem::replace(&mut hot.round, BlockBits::EMPTY);
                // A round that named nothing here may have appended no frame: what the latest one names is not proven by it.
                if !named.is_empty() || self.limits.has(Planted::EmptyRoundProves) {
                    hot.recorded = (named, frame);
                }
                for run in named.runs() {
                    // What the frame names is durable now, and so supersedes its patches for good.
                    let first = extent * EXTENT_BLOCKS;
                    self.forget_patches(layer, &mut state, first + run.start..=first + (run.end - 1));
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
            self.note_fresh(layer, state);
        }
        // Discarded meanwhile, or freed: no frame will name them.
        self.count_recorded(part.new_blocks() - left);
        if !state.freed {
            for (extent, bits) in part.overwritten {
                let still = bits.and(&state.presence.present_bits(extent));
                if let Some(hot) = state.hot.get_mut(&extent).filter(|_| !still.is_empty()) {
                    hot.overwritten = hot.overwritten.or(&still);
                    state.overwritten_extents.insert(extent);
                }
            }
            for (segment, file) in part.files {
                self.note_written(layer, state, segment, &file);
            }
        }
        layer.changed.notify_all();
    }

    /// Blocks whose end is durable now become garbage.
    fn end_dying(&self, ticket: Ticket) {
        for layer in self.dying_layers() {
            let mut state = layer.state.lock();
            let dying = std::mem::take(&mut state.dying);
            let (over, still): (Vec<_>, Vec<_>) = dying.into_iter().partition(|dying| dying.ticket <= ticket);
            state.dying = still;
            for dying in over {
                state.garbage |= dying.gone;
            }
            if state.dying.is_empty() {
                self.forget_dying(&layer);
            }
            if !state.garbage.is_empty() {
                self.note_garbage(&layer);
            }
        }
    }
}

fn patch_bytes(record: &BlocksRecord) -> u64 {
    match record {
        BlocksRecord::Patch(patch) => record_bytes(patch.bytes.len()),
        BlocksRecord::Present(_)
        | BlocksRecord::Zero { .. }
        | BlocksRecord::Drop { .. }
        | BlocksRecord::Mark(..)
        | BlocksRecord::Clear(..)
        | BlocksRecord::Expect(_)
        | BlocksRecord::Presence(_)
        | BlocksRecord::Forget(_) => 0,
    }
}

fn runs(layer: &Layer, extent: u32, bits: &BlockBits, checksum: impl Fn(u32) -> u32) -> Vec<BlockRun> {
    bits.runs()
        .map(|run| BlockRun { layer: layer.id, block: extent * EXTENT_BLOCKS + run.start, checksums: run.map(&checksum).collect() })
        .collect()
}
