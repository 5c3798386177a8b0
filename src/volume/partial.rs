//! Writes that begin or end inside a block.
//!
//! Such a block is read, changed and written whole, unless it is still at a source: then the bytes become a patch of the head,
//! and nobody waits for a network.
//!
//! # Invariants
//! - No source is asked while the gate is passed or a block is latched: a fork waits for the one, and the barrier rounds of the whole
//!   store for the other. A block that is missing or damaged is brought by [`Head::bring_old`], and the write begins anew.

use std::ops::Range;
use std::sync::Arc;

use super::blocks::{Answer, Piece};
use super::head::Head;
use crate::error::Result;
use crate::io::AlignedBuffer;
use crate::layer::{Admission, Admitted, BlockRead, Layer, PatchRoom};
use crate::limits::EXTENT_BLOCKS;
use crate::place::{Block, IndexSpan};

/// What a piece of a write does: whole blocks, and patches of the first and the last block.
struct Plan<'a> {
    /// Blocks that are written whole.
    whole: Range<u32>,
    /// Old bytes of all blocks of the piece, as far as they are needed, with the new ones over them.
    merged: AlignedBuffer,
    patches: Vec<PlannedPatch<'a>>,
}

struct PlannedPatch<'a> {
    /// Within the extent.
    block: u32,
    /// Bytes of the block.
    range: Range<u32>,
    room: PatchRoom<'a>,
}

impl Head {
    /// Blocks of a piece that are written in part.
    pub fn partial_blocks(&self, piece: &Piece) -> Vec<u32> {
        let block_bytes = self.blocks.block_size.bytes();
        let mut partial = Vec::new();
        if piece.skip > 0 || piece.bytes < block_bytes {
            partial.push(piece.blocks.start);
        }
        let last = piece.blocks.end - 1;
        if !(piece.skip + piece.bytes).is_multiple_of(block_bytes) && partial.last() != Some(&last) {
            partial.push(last);
        }
        partial
    }

    /// Writes a piece whose blocks are admitted and of which some are written in part. Either all of it happens or nothing.
    /// `Some`: nothing has happened, since there is no room for a patch of this block, or its old bytes are damaged; it has to be brought.
    ///
    /// # Errors
    /// Damage, no space, an I/O error.
    pub fn write_partial(
        &self,
        mut admitted: Admitted<&Admission, &Layer>,
        layer: &Arc<Layer>,
        piece: &Piece,
        data: &[u8],
        partial: &[u32],
    ) -> Result<Option<u32>> {
        let block_bytes = self.blocks.block_size.bytes() as usize;
        let merged = AlignedBuffer::zeroed(piece.blocks.len() * block_bytes);
        let mut plan = Plan { whole: piece.blocks.clone(), merged, patches: Vec::new() };
        for block in partial {
            if !self.plan_block(layer, piece, *block, &mut plan)? {
                return Ok(Some(*block));
            }
        }
        plan.merged[piece.skip as usize..][..data.len()].copy_from_slice(data);
        let at = |block: u32| (block - piece.blocks.start) as usize * block_bytes;
        if !plan.whole.is_empty() {
            let bytes = &plan.merged[at(plan.whole.start)..at(plan.whole.end)];
            admitted.split(IndexSpan::new(plan.whole.start, plan.whole.end)).write(bytes)?;
        }
        for PlannedPatch { block, range, room } in plan.patches {
            let bytes = &plan.merged[at(block)..][range.start as usize..range.end as usize];
            admitted.split(IndexSpan::new(block, block + 1)).patch(range.start, bytes, room);
        }
        Ok(None)
    }

    /// Decides how a block is written in part: reads its old bytes, or takes room for a patch. `false`: it can do neither.
    fn plan_block<'a>(&'a self, layer: &Arc<Layer>, piece: &Piece, block: u32, plan: &mut Plan<'a>) -> Result<bool> {
        let block_bytes = self.blocks.block_size.bytes();
        let number = piece.extent * EXTENT_BLOCKS + block;
        let at = u64::from(block - piece.blocks.start) * block_bytes;
        let old = &mut plan.merged[at as usize..(at + block_bytes) as usize];
        let range = piece.skip.max(at) - at..(piece.skip + piece.bytes).min(at + block_bytes) - at;
        let range = range.start as u32..range.end as u32;
        let view = self.look();
        match self.blocks.answers(&view, piece.extent, block..block + 1)?.pop() {
            Some((_, Answer::Missing(_) | Answer::Patched(_))) => {
                if layer.completes(Block::new(number), &range, old) {
                    return Ok(true);
                }
                let Some(room) = self.blocks.layers.patches.reserve(layer, Block::new(number), &range)? else { return Ok(false) };
                match block == plan.whole.start {
                    true => plan.whole.start += 1,
                    false => plan.whole.end -= 1,
                }
                plan.patches.push(PlannedPatch { block, range, room });
                Ok(true)
            }
            _ => self.read_latched(layer, piece.extent, block, old),
        }
    }

    /// Reads a block whose latch in the head the caller holds. `false`: a source may have to be asked for it.
    fn read_latched(&self, layer: &Arc<Layer>, extent: u32, block: u32, buffer: &mut [u8]) -> Result<bool> {
        let number = extent * EXTENT_BLOCKS + block;
        if !layer.holds(Block::new(number)) {
            return self.blocks.read_here(&self.view, number, buffer);
        }
        match self.blocks.layers.blocks.read(layer, Block::new(number), buffer)? {
            BlockRead::Verified => Ok(true),
            BlockRead::Mismatch(block) => Err(self.blocks.layers.blocks.corruption(layer, block, "its bytes do not match their checksum")),
        }
    }

    /// Fetches what a block lacks, and repairs it, so that its old bytes can be read here.
    pub fn bring_old(&self, extent: u32, block: u32) -> Result<()> {
        self.alive(|| {
            self.blocks.bring(&self.view, extent, block..block + 1)?;
            let mut old = AlignedBuffer::zeroed(self.blocks.block_size.bytes() as usize);
            self.blocks.read_extent(&self.view, extent, block..block + 1, &mut old)
        })
    }
}
