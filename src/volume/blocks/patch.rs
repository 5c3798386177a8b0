//! Patches: blocks of which a layer has only parts. Reading them, and merging them with the rest when it has come.

use std::ops::Range;
use std::sync::Arc;

use super::view::{Answer, Blocks, View};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::LayerId;
use crate::io::AlignedBuffer;
use crate::layer::{Layer, Merged};
use crate::place::{Block, BlockBits, ExtentSpan, Piece};
use crate::sync::{Rank, RwLock};

/// Patches that one background step looks at.
const STEP_BLOCKS: usize = 256;

impl Blocks {
    /// What lies below a layer.
    fn below(&self, layer: &Layer) -> Result<View> {
        let parent = layer.parent.ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("layer {} has a patch over nothing", layer.id)))?;
        Ok(View::new(self.layers.require(parent)?, u64::MAX))
    }

    fn answer_below(&self, view: &View, block: Block) -> Result<Answer> {
        Ok(self.answers(view, block.in_extent())?.pop().map_or(Answer::Zero, |(_, answer)| answer))
    }

    /// Fills `buffer` with patched blocks of a layer and merges them, so that the next reader finds them whole.
    ///
    /// # Errors
    /// As [`Blocks::read_extent`].
    pub fn read_patched(&self, seen: &RwLock<View>, layer: &Arc<Layer>, run: ExtentSpan, buffer: &mut [u8]) -> Result<()> {
        // All that is missing is asked for at once.
        let below = self.below(layer)?;
        for (blocks, answer) in self.answers(&below, run)? {
            if let Answer::Missing(root) = answer {
                let fetched = self.demand(&root, run.extent.part(blocks).span());
                // Blocks that were merged meanwhile need nothing from below any more.
                let asked = BlockBits::of(blocks);
                if let Err(error) = fetched
                    && !matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Poisoned)
                    && layer.patched(run.extent).and(&asked) == asked
                {
                    return Err(error);
                }
            }
        }
        for (block, bytes) in run.blocks().zip(buffer.chunks_mut(self.block_size.len())) {
            if let Merged::Superseded = self.merge_block(layer, block, bytes)? {
                self.read_block_settled(seen, block, bytes)?;
            }
        }
        Ok(())
    }

    /// Fills `buffer` with one patched block of a layer and merges it; waits for a source if it has to.
    ///
    /// # Errors
    /// As [`Blocks::read_extent`].
    pub fn merge_block(&self, layer: &Arc<Layer>, block: Block, buffer: &mut [u8]) -> Result<Merged> {
        // Layers with a patch of this block, one above the other. Chains are long: a loop, not a recursion.
        let mut patched = vec![Arc::clone(layer)];
        let mut below = self.below(layer)?;
        while let Answer::Patched(next) = self.answer_below(&below, block)? {
            below = self.below(&next)?;
            patched.push(next);
        }
        if let Err(error) = self.read_extent(&RwLock::ranked(Rank::View, below), block.in_extent(), buffer) {
            // Once a block is merged, the one below it is forgotten.
            let all = patched.iter().all(|layer| layer.patched(block.extent()).contains(block.index()));
            return if all { Err(error) } else { Ok(Merged::Superseded) };
        }
        let mut merged = Merged::Superseded;
        while let Some(layer) = patched.pop() {
            merged = self.layers.settled.merge(&layer, block, buffer)?;
            if let Merged::Superseded = merged {
                // It was merged or overwritten meanwhile: `buffer` does not have the layer's block.
                return Ok(merged);
            }
        }
        Ok(merged)
    }

    /// Fills `buffer` if all of it was written in parts of one block whose rest may be elsewhere: needs no source.
    ///
    /// # Errors
    /// As [`Blocks::answers`].
    pub fn read_parts(&self, seen: &RwLock<View>, piece: &Piece, buffer: &mut [u8]) -> Result<bool> {
        if piece.part.len() != 1 || !self.layers.patches.is_any() {
            return Ok(false);
        }
        let block = piece.part.first();
        let within = piece.within(self.block_size, block);
        let start = within.start;
        let mut wanted: Vec<Range<u32>> = vec![within];
        let mut answer = self.answers(&seen.read(), piece.part)?.pop().map(|(_, answer)| answer);
        while let Some(Answer::Patched(layer)) = answer {
            wanted = layer.read_patch(block, start, buffer, wanted);
            if wanted.is_empty() {
                return Ok(true);
            }
            answer = Some(self.answer_below(&self.below(&layer)?, block)?);
        }
        Ok(false)
    }

    /// Merges a bounded number of patches whose blocks below are here and match their checksums. Answers whether there were any. Never
    /// waits for a source; a reader of another patch does.
    ///
    /// # Errors
    /// The store refuses writes.
    pub fn merge_step(&self) -> Result<bool> {
        if !self.layers.patches.is_any() || self.layers.healthy().is_err() {
            return Ok(false);
        }
        let batch = {
            let mut next = self.next_patch.lock();
            let batch = self.layers.patched_from((next.0, Block::new(next.1)), STEP_BLOCKS);
            *next = match batch.last().filter(|_| batch.len() == STEP_BLOCKS) {
                Some((layer, block)) => (layer.id, block.number().saturating_add(1)),
                None => (LayerId(0), 0),
            };
            batch
        };
        let mut buffer = AlignedBuffer::zeroed(self.block_size.len());
        let mut busy = false;
        for (layer, block) in batch {
            // A damaged block below, or a layer that was freed meanwhile, does not keep the others waiting; nothing is lost. No source is
            // asked to repair the block: it may hang, and this thread does the work of all volumes.
            let here = self.below(&layer).and_then(|below| self.read_here(&RwLock::ranked(Rank::View, below), block, &mut buffer));
            if !matches!(here, Ok(true)) {
                continue;
            }
            match self.layers.settled.merge(&layer, block, &mut buffer) {
                Ok(Merged::Stored) => busy = true,
                Ok(Merged::Unstored(_)) => break,
                _ => {}
            }
            if self.layers.under_pressure() {
                self.layers.barriers.sync_fresh()?;
            }
        }
        if !busy {
            // No flush comes for a sealed layer, and until its merged blocks are durable their patches take room.
            let merged: Vec<LayerId> =
                self.layers.superseded().into_iter().filter(|layer| layer.is_sealed()).map(|layer| layer.id).collect();
            if !merged.is_empty() {
                self.layers.barriers.sync(merged)?;
            }
        }
        Ok(busy)
    }
}
