//! Patches: blocks of which a layer has only parts. Reading them, and merging them with the rest when it has come.

use std::ops::Range;
use std::sync::Arc;

use super::view::{Answer, Blocks, Piece, View};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::LayerId;
use crate::io::AlignedBuffer;
use crate::layer::{Layer, Merged};
use crate::limits::EXTENT_BLOCKS;
use crate::place::{Block, BlockBits, Extent, IndexSpan};
use crate::sync::RwLock;

/// Patches that one background step looks at.
const STEP_BLOCKS: usize = 256;

fn place(block: u32) -> (u32, Range<u32>) {
    let within = block % EXTENT_BLOCKS;
    (block / EXTENT_BLOCKS, within..within + 1)
}

impl Blocks {
    /// What lies below a layer.
    fn below(&self, layer: &Layer) -> Result<View> {
        let parent = layer.parent.ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("layer {} has a patch over nothing", layer.id)))?;
        Ok(View::new(self.layers.require(parent)?, u64::MAX))
    }

    fn answer_below(&self, view: &View, block: u32) -> Result<Answer> {
        let (extent, within) = place(block);
        Ok(self.answers(view, extent, within)?.pop().map_or(Answer::Zero, |(_, answer)| answer))
    }

    /// Fills `buffer` with patched blocks of a layer and merges them, so that the next reader finds them whole.
    ///
    /// # Errors
    /// As [`Blocks::read_extent`].
    pub fn read_patched(&self, seen: &RwLock<View>, layer: &Arc<Layer>, extent: u32, run: Range<u32>, buffer: &mut [u8]) -> Result<()> {
        let first = extent * EXTENT_BLOCKS;
        // All that is missing is asked for at once.
        let below = self.below(layer)?;
        for (blocks, answer) in self.answers(&below, extent, run.clone())? {
            if let Answer::Missing(root) = answer {
                let fetched = self.demand(&root, u64::from(first) + u64::from(blocks.start)..u64::from(first) + u64::from(blocks.end));
                // Blocks that were merged meanwhile need nothing from below any more.
                let asked = BlockBits::of(IndexSpan::new(blocks.start, blocks.end));
                if let Err(error) = fetched
                    && !matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Poisoned)
                    && layer.patched(Extent::clamped(extent)).and(&asked) == asked
                {
                    return Err(error);
                }
            }
        }
        for (block, bytes) in run.zip(buffer.chunks_mut(self.block_size.bytes() as usize)) {
            if let Merged::Superseded = self.merge_block(layer, first + block, bytes)? {
                self.read_block_settled(seen, first + block, bytes)?;
            }
        }
        Ok(())
    }

    /// Fills `buffer` with one patched block of a layer and merges it; waits for a source if it has to.
    ///
    /// # Errors
    /// As [`Blocks::read_extent`].
    pub fn merge_block(&self, layer: &Arc<Layer>, block: u32, buffer: &mut [u8]) -> Result<Merged> {
        let (extent, within) = place(block);
        // Layers with a patch of this block, one above the other. Chains are long: a loop, not a recursion.
        let mut patched = vec![Arc::clone(layer)];
        let mut below = self.below(layer)?;
        while let Answer::Patched(next) = self.answer_below(&below, block)? {
            below = self.below(&next)?;
            patched.push(next);
        }
        if let Err(error) = self.read_extent(&RwLock::new(below), extent, within.clone(), buffer) {
            // Once a block is merged, the one below it is forgotten.
            let all = patched.iter().all(|layer| layer.patched(Extent::clamped(extent)).contains(Block::new(block).index()));
            return if all { Err(error) } else { Ok(Merged::Superseded) };
        }
        let mut merged = Merged::Superseded;
        while let Some(layer) = patched.pop() {
            merged = self.layers.settled.merge(&layer, Block::new(block), buffer)?;
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
        if piece.blocks.len() != 1 || !self.layers.patches.is_any() {
            return Ok(false);
        }
        let block = piece.extent * EXTENT_BLOCKS + piece.blocks.start;
        let start = piece.skip as u32;
        let mut wanted: Vec<Range<u32>> = std::iter::once(start..start + piece.bytes as u32).collect();
        let mut answer = self.answers(&seen.read(), piece.extent, piece.blocks.clone())?.pop().map(|(_, answer)| answer);
        while let Some(Answer::Patched(layer)) = answer {
            wanted = layer.read_patch(Block::new(block), start, buffer, wanted);
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
        let mut buffer = AlignedBuffer::zeroed(self.block_size.bytes() as usize);
        let mut busy = false;
        for (layer, block) in batch {
            let block = block.number();
            // A damaged block below, or a layer that was freed meanwhile, does not keep the others waiting; nothing is lost. No source is
            // asked to repair the block: it may hang, and this thread does the work of all volumes.
            let here = self.below(&layer).and_then(|below| self.read_here(&RwLock::new(below), block, &mut buffer));
            if !matches!(here, Ok(true)) {
                continue;
            }
            match self.layers.settled.merge(&layer, Block::new(block), &mut buffer) {
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
