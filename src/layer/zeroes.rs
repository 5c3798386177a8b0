//! Zeroing and forgetting blocks.

use std::sync::Arc;

use roaring::RoaringBitmap;

use super::admission::{Admission, Wait};
use super::commit::cost::claimed_bytes;
use super::commit::queue::Ticket;
use super::commit::room::Reserved;
use super::layer::Layer;
use super::state::{Retiring, State};
use super::table::freed;
use crate::error::Result;
use crate::format::{BlocksRecord, ForgetRecord, Record, ShapeRecord};
use crate::place::{Block, BlockSpan, extent_bits, insert_bits, runs_of, set_of};

/// Makes blocks of layers zero, and forgets them.
pub struct Zeroes {
    pub(super) admission: Arc<Admission>,
}

impl Zeroes {
    /// Makes whole blocks of a layer read as zero. `hides`: something below the layer may have these blocks. Durable with the round of the
    /// ticket; `None`: nothing had to change. `cut`: a shrink that says it in the journal instead of a record of the zeros, and the room
    /// for them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Poisoned`], or a round that had to end first failed.
    pub fn zero(&self, layer: &Layer, blocks: BlockSpan, hides: bool, cut: Option<(ShapeRecord, Reserved<'_>)>) -> Result<Option<Ticket>> {
        let Some((first, last)) = blocks.first().zip(blocks.last()) else { return Ok(None) };
        let (commit, barriers) = (&self.admission.commit, &self.admission.barriers);
        commit.healthy()?;
        // A change of shape is recorded even if there is nothing to be zeroed. It has its space already, and its caller holds the
        // catalogue, so no round is waited for.
        let of_shape = cut.is_some();
        if !of_shape {
            barriers.drain_queue()?;
        }
        let gone = match hides {
            true => BlocksRecord::Zero { layer: layer.id, first, last },
            false => BlocksRecord::Drop { layer: layer.id, first, last },
        };
        let (record, mut claimed) = match cut {
            Some((record, room)) => (Record::Shape(record), Some(room)),
            None => (gone.clone().into(), None),
        };
        let bytes = record.blocks().map_or(0, claimed_bytes);
        // Bytes that a round counts off although the record does not tell them.
        let cut_bytes = |claimed: Option<Reserved<'_>>| claimed.map_or(0, Reserved::keep) * u64::from(of_shape);
        loop {
            let wait = {
                let _beginning = commit.hold_beginning();
                let mut state = layer.state.lock();
                if state.freed {
                    return Err(freed(layer.id));
                }
                if state.is_latched(blocks) {
                    Wait::Latch
                } else if !state.shows(blocks, hides) {
                    return Ok(of_shape.then(|| commit.enqueue_cut(record, cut_bytes(claimed))));
                } else {
                    if !of_shape {
                        claimed = commit.room.claim(bytes).ok();
                    }
                    match claimed {
                        None => Wait::Room(bytes),
                        Some(claimed) => {
                            let ticket = self.retire(layer, &mut state, &set_of(blocks), (record, cut_bytes(Some(claimed))), !of_shape);
                            self.admission.patches.drop_superseded(layer, &mut state, blocks);
                            match hides {
                                true => state.presence.zero(blocks),
                                false => state.presence.forget(blocks),
                            }
                            match of_shape {
                                true => self.admission.unrecorded.note_with_frame(ticket.0, &gone),
                                false => self.admission.unrecorded.note(&gone),
                            }
                            return Ok(Some(ticket));
                        }
                    }
                }
            };
            self.admission.wait_for(layer, wait)?;
        }
    }

    /// Notes that the source has only zeros for those of the blocks that the layer does not have yet. Durable with a later round.
    pub fn fill_zero(&self, layer: &Layer, blocks: BlockSpan) {
        let commit = &self.admission.commit;
        let mut state = layer.state.lock();
        if state.freed {
            return;
        }
        let zeros = set_of(blocks) - state.presence.covered();
        for run in runs_of(&zeros) {
            let Some((first, last)) = run.first().zip(run.last()) else { continue };
            let record = BlocksRecord::Zero { layer: layer.id, first, last };
            // A fill under way with bytes of its own wins. Without room the zeros are asked for again, another time.
            if !state.is_latched(run)
                && let Ok(claimed) = commit.room.claim(claimed_bytes(&record))
            {
                commit.enqueue_claimed(record.clone(), claimed);
                self.admission.unrecorded.note(&record);
                state.presence.zeroed.insert_range(run.numbers());
            }
        }
    }

    /// Forgets dead blocks of a sealed layer, and their patches: as many as one record holds. Answers whether these were all; if not, the
    /// others have to wait for a round. Their space is given back later.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Poisoned`].
    pub fn forget(&self, layer: &Layer, dead: &RoaringBitmap) -> Result<bool> {
        let commit = &self.admission.commit;
        commit.healthy()?;
        let (first, rest) = ForgetRecord::first_of(layer.id, dead, self.admission.limits.set_record_bytes_max);
        let _beginning = commit.hold_beginning();
        let mut state = layer.state.lock();
        if state.freed {
            return Ok(true);
        }
        // A fill under way wins; the next look at this layer takes its blocks.
        let blocks = state.without_latched(&first.blocks);
        if !blocks.is_empty() {
            let record = BlocksRecord::Forget(ForgetRecord { layer: layer.id, blocks: blocks.clone() });
            let Ok(claimed) = commit.room.claim(claimed_bytes(&record)) else { return Ok(false) };
            let ticket = self.retire(layer, &mut state, &blocks, (record.clone().into(), 0), false);
            self.admission.unrecorded.note_with_frame(ticket.0, &record);
            claimed.keep();
            for run in runs_of(&blocks) {
                self.admission.patches.drop_superseded(layer, &mut state, run);
            }
            state.presence.present -= &blocks;
            state.presence.zeroed -= &blocks;
        }
        Ok(rest.is_empty())
    }

    /// Takes present blocks out of every list of blocks to be made durable, and remembers those that the journal still calls present.
    /// The space of the record is claimed. The caller holds `Commit::hold_beginning`: a round has both the blocks' end and its record, or
    /// neither.
    ///
    /// `at_once`: the space of blocks that no frame names may be given back before the record is durable. Otherwise the record may be
    /// missing after the death of the process, and those blocks are there.
    fn retire(
        &self,
        layer: &Layer,
        state: &mut State,
        blocks: &RoaringBitmap,
        (record, cut_bytes): (Record, u64),
        at_once: bool,
    ) -> Ticket {
        let mut recorded = blocks & &state.presence.present;
        let [first, last] = [blocks.min(), blocks.max()].map(|number| Block::new(number.unwrap_or(0)));
        let blocks = BlockSpan::closed(first, last);
        let mut fresh = 0;
        let mut garbage = RoaringBitmap::new();
        for (extent, hot) in state.hot.range_mut(first.extent()..=last.extent()) {
            let bits = extent_bits(&recorded, *extent);
            let unrecorded = hot.fresh.and(&bits);
            fresh += u64::from(unrecorded.count());
            hot.fresh = hot.fresh.minus(&bits);
            hot.overwritten = hot.overwritten.minus(&bits);
            if at_once {
                insert_bits(&mut garbage, *extent, &unrecorded);
            }
        }
        state.fresh_blocks -= fresh;
        self.admission.owed.count_recorded(fresh);
        recorded -= &garbage;
        let ticket = self.admission.commit.enqueue_cut(record, cut_bytes);
        if !garbage.is_empty() {
            state.garbage |= garbage;
            self.admission.space.note_garbage(layer);
        }
        recorded.optimize();
        state.retiring.push(Retiring { ticket, blocks, recorded });
        self.admission.space.note_retiring(layer);
        ticket
    }
}
