//! Giving back the space of blocks that are durably zeroed or forgotten.

use std::sync::Arc;

use roaring::RoaringBitmap;

use super::admission::Admission;
use super::admitted::Latched;
use super::blocks::Blocks;
use super::layer::Layer;
use super::space::Space;
use crate::error::{Error, Result};
use crate::limits::{Limits, Planted};
use crate::place::{BlockBits, BlockSpan, Extent, extent_bits, extents_of, insert_bits, remove_bits, set_of};

/// Runs of blocks whose space is given back in one step, beside those of its last extent.
const PUNCHES_MAX: usize = 1 << 10;

/// Gives back space.
pub struct Punch {
    pub(super) admission: Arc<Admission>,
    pub(super) blocks: Arc<Blocks>,
    pub(super) space: Arc<Space>,
    pub(super) limits: Limits,
}

impl Punch {
    /// Gives back space of a layer, for a bounded number of extents and runs. Answers whether there was a layer with garbage.
    ///
    /// # Errors
    /// An I/O error; see [`Space::retry_unpunched`].
    pub fn step(&self) -> Result<bool> {
        self.some(PUNCHES_MAX).map(|made| made.is_some())
    }

    /// As [`Punch::step`], until `punches_max` runs are reached. Answers how many runs there were; `None`: nothing was left to do.
    fn some(&self, punches_max: usize) -> Result<Option<usize>> {
        let Some(layer) = self.space.take_garbage() else { return Ok(None) };
        let extents: Vec<Extent> = extents_of(&layer.state.lock().garbage).take(self.limits.punch_extents).collect();
        let mut punches = 0;
        for extent in extents {
            let punched = self.extent(&layer, extent);
            if punched.is_err() {
                self.space.note_unpunched(&layer);
            }
            punches += punched?;
            if punches >= punches_max {
                break;
            }
        }
        if !layer.state.lock().garbage.is_empty() {
            self.space.note_garbage(&layer);
        }
        Ok(Some(punches))
    }

    /// Gives back space before the store is closed. `false` if some is left: it is found when a store is opened that was not closed in
    /// order.
    pub(super) fn all(&self) -> bool {
        self.space.retry_unpunched();
        let mut left = self.limits.punches_at_end;
        while left > 0 {
            match self.some(left.min(PUNCHES_MAX)) {
                Ok(Some(made)) => left = left.saturating_sub(made.max(1)),
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
        false
    }

    /// Gives back the garbage of an extent. Answers how many runs of blocks there were.
    fn extent(&self, layer: &Layer, extent: Extent) -> Result<usize> {
        let bits = extent_bits(&layer.state.lock().garbage, extent);
        let latched = Latched::wait(&self.admission, layer, extent, bits)?;
        // Behind the latch no write makes these blocks present; those that became so before hold data again.
        let free = {
            let mut state = layer.state.lock();
            remove_bits(&mut state.garbage, extent, &bits);
            let mut free = bits.minus(&state.presence.present_bits(extent));
            // The journal calls these present until the record of their end is durable (crash ordering 4).
            for retiring in state.retiring.iter().filter(|_| !self.limits.has(Planted::EarlyPunch)) {
                free = free.minus(&extent_bits(&retiring.recorded, extent));
            }
            free
        };
        let result = self.punch(layer, extent, &free);
        if result.is_err() {
            insert_bits(&mut layer.state.lock().garbage, extent, &free);
        }
        drop(latched);
        result
    }

    fn punch(&self, layer: &Layer, extent: Extent, bits: &BlockBits) -> Result<usize> {
        let Some(file) = self.blocks.data_file(layer, extent.first())? else { return Ok(0) };
        let mut punches = 0;
        for run in bits.spans() {
            punches += 1;
            let offset = self.blocks.place(extent.part(run).first()).1;
            let bytes = self.blocks.block_size().bytes_for(u64::from(run.len()));
            let punched = file.punch(offset..offset + bytes);
            punched.map_err(|error| Error::io(format!("cannot give back space of layer {}", layer.id), error))?;
        }
        Ok(punches)
    }

    /// Notes blocks that are allocated in the layer's files but not present, as a crash leaves them.
    ///
    /// # Errors
    /// An I/O error.
    pub fn find_garbage(&self, layer: &Layer) -> Result<()> {
        let block_size = self.blocks.block_size();
        for (_, segment) in block_size.segments() {
            let Some(first) = segment.first() else { continue };
            let Some(file) = self.blocks.data_file(layer, first)? else { continue };
            let mut offset = 0;
            while let Some(range) =
                file.next_allocated(offset).map_err(|error| Error::io(format!("cannot map layer {}", layer.id), error))?
            {
                offset = range.end;
                let touched = block_size.touched(&range);
                let allocated = BlockSpan::new(segment.start() + touched.start(), segment.start() + touched.end()).and(segment);
                self.note_allocated(layer, set_of(allocated));
            }
        }
        Ok(())
    }

    fn note_allocated(&self, layer: &Layer, mut allocated: RoaringBitmap) {
        let mut state = layer.state.lock();
        allocated -= &state.presence.present;
        for retiring in &state.retiring {
            allocated -= &retiring.recorded;
        }
        if !allocated.is_empty() {
            state.garbage |= allocated;
            self.space.note_garbage(layer);
        }
    }
}
