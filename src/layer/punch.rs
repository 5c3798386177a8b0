//! Zeroing, forgetting, and giving back space.

use std::ops::RangeInclusive;

use roaring::RoaringBitmap;

use super::admit::Wait;
use super::commit::Ticket;
use super::presence::{extent_bits, insert_bits};
use super::set::Layers;
use super::space::{CutRoom, claimed_bytes};
use super::state::{Dying, Layer, State};
use crate::error::{Error, Result};
use crate::format::{BlocksRecord, ForgetRecord, Record, ShapeRecord};
use crate::limits::{EXTENT_BLOCKS, Planted};
use crate::place::BlockBits;

/// Runs of blocks whose space is given back in one step, beside those of its last extent.
const PUNCHES_MAX: usize = 1 << 10;

impl Layers {
    /// Makes whole blocks of a layer read as zero. `hides`: something below the layer may have these blocks.
    /// Durable with a later round; the ticket says which. `cut` is a shrink that says it in the journal, instead of a record of the zeros,
    /// and the room for them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Poisoned`], or a round that had to end first failed.
    pub fn zero(
        &self,
        layer: &Layer,
        blocks: RangeInclusive<u32>,
        hides: bool,
        cut: Option<(ShapeRecord, CutRoom<'_>)>,
    ) -> Result<Option<Ticket>> {
        self.commit.healthy()?;
        // A change of shape comes even if there is nothing to be zeroed. It has its space already, and its caller holds the catalogue,
        // so no round is waited for.
        let of_shape = cut.is_some();
        if !of_shape {
            self.drain_queue()?;
        }
        let (first, last) = (*blocks.start(), *blocks.end());
        let (record, room) = cut.map_or((None, None), |(record, room)| (Some(record), Some(room)));
        let record = record.map_or_else(
            || match hides {
                true => Record::from(BlocksRecord::Zero { layer: layer.id, first, last }),
                false => BlocksRecord::Drop { layer: layer.id, first, last }.into(),
            },
            Record::Shape,
        );
        let bytes = record.blocks().map_or(0, claimed_bytes);
        let cut_bytes = || room.map_or(0, CutRoom::keep);
        loop {
            let wait = {
                let _beginning = self.commit.hold_beginning();
                let mut state = layer.state.lock();
                if state.freed {
                    return Err(Self::gone(layer));
                }
                match (state.is_latched(&blocks), state.shows(&blocks, hides)) {
                    (true, _) => Wait::Latch,
                    (false, false) => return Ok(of_shape.then(|| self.commit.enqueue_cut(record, cut_bytes()))),
                    (false, true) if !of_shape && self.commit.claim(bytes).is_err() => Wait::Room(bytes),
                    (false, true) => return Ok(Some(self.zero_locked(layer, &mut state, (blocks, hides), (record, cut_bytes())))),
                }
            };
            self.wait_for(layer, wait)?;
        }
    }

    /// The space of the record is claimed.
    fn zero_locked(&self, layer: &Layer, state: &mut State, (blocks, hides): (RangeInclusive<u32>, bool), record: (Record, u64)) -> Ticket {
        let mut range = RoaringBitmap::new();
        range.insert_range(blocks.clone());
        let ticket = self.retire(layer, state, &range, record);
        self.forget_patches(layer, state, blocks.clone());
        match hides {
            true => state.presence.zero(blocks),
            false => state.presence.forget(blocks),
        }
        ticket
    }

    /// Notes that the source has only zeros for these blocks, those that the layer does not have yet. Durable with a later round.
    pub fn fill_zero(&self, layer: &Layer, blocks: RangeInclusive<u32>) {
        let mut zeros = RoaringBitmap::new();
        zeros.insert_range(blocks);
        let mut state = layer.state.lock();
        if state.freed {
            return;
        }
        zeros -= state.presence.covered();
        let mut runs = zeros.iter();
        while let Some(run) = runs.next_range() {
            // A fill under way with bytes of its own wins.
            let record = BlocksRecord::Zero { layer: layer.id, first: *run.start(), last: *run.end() };
            // Without room they are asked for again, another time.
            if !state.is_latched(&run) && self.commit.claim(claimed_bytes(&record)).is_ok() {
                self.commit.enqueue([record]);
                state.presence.zeroed.insert_range(run);
            }
        }
    }

    /// Forgets blocks of a sealed layer, and patches, that nobody can see: as many as one record holds. Answers whether these
    /// were all; then the others have to wait for a round. Their space is given back later.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Poisoned`].
    pub fn forget(&self, layer: &Layer, dead: &RoaringBitmap) -> Result<bool> {
        self.commit.healthy()?;
        let (first, rest) = ForgetRecord::first_of(layer.id, dead, self.limits.set_record_bytes_max);
        let _beginning = self.commit.hold_beginning();
        let mut state = layer.state.lock();
        if state.freed {
            return Ok(true);
        }
        // A fill under way wins; the next look at this layer takes its blocks.
        let blocks = state.without_latched(&first.blocks);
        if !blocks.is_empty() {
            let record = BlocksRecord::Forget(ForgetRecord { layer: layer.id, blocks: blocks.clone() });
            if self.commit.claim(claimed_bytes(&record)).is_err() {
                return Ok(false);
            }
            self.forget_locked(layer, &mut state, &blocks, record);
        }
        Ok(rest.is_empty())
    }

    fn forget_locked(&self, layer: &Layer, state: &mut State, blocks: &RoaringBitmap, record: BlocksRecord) {
        self.retire(layer, state, blocks, (record.into(), 0));
        let mut runs = blocks.iter();
        while let Some(run) = runs.next_range() {
            self.forget_patches(layer, state, run);
        }
        state.presence.present -= blocks;
        state.presence.zeroed -= blocks;
    }

    /// Takes present blocks out of every list of blocks to be made durable, and remembers those the journal still calls present.
    /// The caller holds [`super::commit::Commit::hold_beginning`]: a round has both the blocks' end and its record, or neither.
    fn retire(&self, layer: &Layer, state: &mut State, blocks: &RoaringBitmap, (record, cut_bytes): (Record, u64)) -> Ticket {
        let mut gone = blocks & &state.presence.present;
        let blocks = blocks.min().unwrap_or(0)..=blocks.max().unwrap_or(0);
        let mut fresh = 0;
        let mut garbage = RoaringBitmap::new();
        for (extent, hot) in state.hot.range_mut(blocks.start() / EXTENT_BLOCKS..=blocks.end() / EXTENT_BLOCKS) {
            let bits = extent_bits(&gone, *extent);
            let unrecorded = hot.fresh.and(&bits);
            fresh += u64::from(unrecorded.count());
            hot.fresh = hot.fresh.minus(&bits);
            hot.overwritten = hot.overwritten.minus(&bits);
            insert_bits(&mut garbage, *extent, &unrecorded);
        }
        state.fresh_blocks -= fresh;
        self.count_recorded(fresh);
        gone -= &garbage;
        let ticket = self.commit.enqueue_cut(record, cut_bytes);
        if !garbage.is_empty() {
            state.garbage |= garbage;
            self.note_garbage(layer);
        }
        gone.optimize();
        state.dying.push(Dying { ticket, blocks, gone });
        self.note_dying(layer);
        ticket
    }

    /// Gives back space of blocks that are durably gone, for a bounded number of extents and runs. Answers whether there is more to do.
    ///
    /// # Errors
    /// An I/O error; see [`Layers::punch_again`].
    pub fn punch_step(&self) -> Result<bool> {
        self.punch_some(PUNCHES_MAX).map(|made| made.is_some())
    }

    /// As [`Layers::punch_step`], until `punches_max` runs are reached. Answers how many runs there were; `None`: nothing was left to do.
    fn punch_some(&self, punches_max: usize) -> Result<Option<usize>> {
        // Freed layers give back their space as a whole.
        let garbage = std::iter::from_fn(|| self.take_garbage()).find_map(|id| self.get(id));
        let Some(layer) = garbage else { return Ok(None) };
        let mut extents: Vec<u32> = Vec::new();
        {
            let state = layer.state.lock();
            let mut next = state.garbage.min();
            while let Some(block) = next.filter(|_| extents.len() < self.limits.punch_extents) {
                let extent = block / EXTENT_BLOCKS;
                extents.push(extent);
                next = extent
                    .checked_add(1)
                    .and_then(|next| next.checked_mul(EXTENT_BLOCKS))
                    .and_then(|from| state.garbage.range(from..).next());
            }
        }
        let mut punches = 0;
        for extent in extents {
            let punched = self.punch_extent(&layer, extent);
            if punched.is_err() {
                self.unpunched.lock().insert(layer.id);
            }
            punches += punched?;
            if punches >= punches_max {
                break;
            }
        }
        if !layer.state.lock().garbage.is_empty() {
            self.note_garbage(&layer);
        }
        Ok(Some(punches))
    }

    /// Lets space that could not be given back be given back: a descriptor may have lacked, or the disk was full.
    pub fn punch_again(&self) {
        let mut unpunched = std::mem::take(&mut *self.unpunched.lock());
        self.garbage.lock().append(&mut unpunched);
    }

    /// Gives back space before the store is closed. `false` if some is left, which is found when a store is opened that was not
    /// closed in order.
    pub(super) fn punch_all(&self) -> bool {
        self.punch_again();
        let mut left = self.limits.punches_at_end;
        while left > 0 {
            match self.punch_some(left.min(PUNCHES_MAX)) {
                Ok(Some(made)) => left = left.saturating_sub(made.max(1)),
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
        false
    }

    /// Answers how many runs of blocks there were.
    fn punch_extent(&self, layer: &Layer, extent: u32) -> Result<usize> {
        let bits = extent_bits(&layer.state.lock().garbage, extent);
        let latched = self.latch_wait(layer, extent, &bits)?;
        // Behind the latch nobody makes these blocks present; those that became so meanwhile are somebody's data again.
        let gone = {
            let mut state = layer.state.lock();
            super::presence::remove_bits(&mut state.garbage, extent, &bits);
            let mut gone = bits.minus(&state.presence.present_bits(extent));
            // The journal calls these present until the record of their end is durable (crash ordering 4).
            for dying in state.dying.iter().filter(|_| !self.limits.has(Planted::EarlyPunch)) {
                gone = gone.minus(&extent_bits(&dying.gone, extent));
            }
            gone
        };
        let result = self.punch_blocks(layer, extent, &gone);
        if result.is_err() {
            super::presence::insert_bits(&mut layer.state.lock().garbage, extent, &gone);
        }
        drop(latched);
        result
    }

    fn punch_blocks(&self, layer: &Layer, extent: u32, bits: &BlockBits) -> Result<usize> {
        let first = extent * EXTENT_BLOCKS;
        let Some(file) = self.data_file(layer, first)? else { return Ok(0) };
        let block_bytes = self.block_size.bytes();
        let mut punches = 0;
        for run in bits.runs() {
            punches += 1;
            let offset = self.place(first + run.start).1;
            let punched = file.punch(offset..offset + run.len() as u64 * block_bytes);
            punched.map_err(|error| Error::io(format!("cannot give back space of layer {}", layer.id), error))?;
        }
        Ok(punches)
    }

    /// Notes blocks that are allocated in the layer's files but not present, as a crash leaves them.
    ///
    /// # Errors
    /// An I/O error.
    pub fn find_garbage(&self, layer: &Layer) -> Result<()> {
        let segments = crate::limits::VOLUME_BYTES_MAX.div_ceil(crate::limits::SEGMENT_BYTES) as u32;
        for segment in 0..segments {
            let base = self.block_size.block_of(u64::from(segment) * crate::limits::SEGMENT_BYTES);
            if base > u64::from(u32::MAX) {
                break;
            }
            let Some(file) = self.data_file(layer, base as u32)? else { continue };
            let mut offset = 0;
            while let Some(range) =
                file.next_allocated(offset).map_err(|error| Error::io(format!("cannot map layer {}", layer.id), error))?
            {
                offset = range.end;
                let first = base + self.block_size.block_of(range.start);
                let last = base + self.block_size.blocks_for(range.end) - 1;
                let Ok(last) = u32::try_from(last) else { break };
                let mut allocated = RoaringBitmap::new();
                allocated.insert_range(first as u32..=last);
                let mut state = layer.state.lock();
                allocated -= &state.presence.present;
                for dying in &state.dying {
                    allocated -= &dying.gone;
                }
                if !allocated.is_empty() {
                    state.garbage |= allocated;
                    self.note_garbage(layer);
                }
            }
        }
        Ok(())
    }
}

impl Layers {
    /// Blocks that the layer hides from what is below it, whatever happens.
    pub fn durable_cover(&self, layer: &Layer) -> RoaringBitmap {
        let state = layer.state.lock();
        let mut cover = state.presence.covered();
        for (extent, hot) in &state.hot {
            super::presence::remove_bits(&mut cover, *extent, &hot.fresh.or(&hot.round));
        }
        for dying in &state.dying {
            cover.remove_range(dying.blocks.clone());
        }
        cover
    }
}
