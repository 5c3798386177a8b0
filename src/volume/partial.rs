//! Writes that begin or end inside a block.
//!
//! Such a block is read, changed and written whole, unless it is still at a source: then the bytes become a patch of the head,
//! and no write waits for a network.
//!
//! # Invariants
//! - No source is asked while the gate is passed or a block is latched: a fork waits for the one, and the barrier rounds of the whole
//!   store for the other. A block that is missing or damaged is brought by [`Head::bring_old`], and the write begins anew.

use std::ops::Range;
use std::sync::Arc;

use super::blocks::Answer;
use super::head::Head;
use crate::error::Result;
use crate::io::AlignedBuffer;
use crate::layer::{Admission, Admitted, BlockRead, Layer, PatchRoom};
use crate::place::{Block, ExtentSpan, Piece, index, length};

/// What a piece of a write does: whole blocks, and patches of the first and the last block.
struct Plan<'a> {
    /// Blocks that are written whole.
    whole: ExtentSpan,
    /// Old bytes of all blocks of the piece, as far as they are needed, with the new ones over them.
    merged: AlignedBuffer,
    patches: Vec<PlannedPatch<'a>>,
}

struct PlannedPatch<'a> {
    block: Block,
    /// Bytes of the block.
    range: Range<u32>,
    room: PatchRoom<'a>,
}

impl Head {
    /// Blocks of a piece that are written in part.
    pub fn partial_blocks(&self, piece: &Piece) -> Vec<Block> {
        let block_bytes = self.blocks.block_size.bytes();
        let first = piece.part.first();
        let mut partial = Vec::new();
        if piece.skip > 0 || piece.bytes < block_bytes {
            partial.push(first);
        }
        let last = piece.part.span().last().unwrap_or(first);
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
        partial: &[Block],
    ) -> Result<Option<Block>> {
        let block_size = self.blocks.block_size;
        let merged = AlignedBuffer::zeroed(block_size.len_of(piece.part.indices));
        let mut plan = Plan { whole: piece.part, merged, patches: Vec::new() };
        for block in partial {
            if !self.plan_block(layer, piece, *block, &mut plan)? {
                return Ok(Some(*block));
            }
        }
        plan.merged[length(piece.skip)..][..data.len()].copy_from_slice(data);
        if !plan.whole.indices.is_empty() {
            let bytes = &plan.merged[self.place_of(piece, plan.whole.first())..][..block_size.len_of(plan.whole.indices)];
            admitted.split(plan.whole.indices).write(bytes)?;
        }
        for PlannedPatch { block, range, room } in plan.patches {
            let bytes = &plan.merged[self.place_of(piece, block)..][index(range.start)..index(range.end)];
            admitted.split(block.index().span()).patch(range.start, bytes, room);
        }
        Ok(None)
    }

    /// Where a block is in the memory of a piece.
    fn place_of(&self, piece: &Piece, block: Block) -> usize {
        self.blocks.block_size.len_of(piece.part.indices.split(block.index().number()).0)
    }

    /// Decides how a block is written in part: reads its old bytes, or takes room for a patch. `false`: it can do neither.
    fn plan_block<'a>(&'a self, layer: &Arc<Layer>, piece: &Piece, block: Block, plan: &mut Plan<'a>) -> Result<bool> {
        let old = &mut plan.merged[self.place_of(piece, block)..][..self.blocks.block_size.len()];
        let range = piece.within(self.blocks.block_size, block);
        let view = self.look();
        match self.blocks.answers(&view, block.in_extent())?.pop() {
            Some((_, Answer::Missing(_) | Answer::Patched(_))) => {
                if layer.completes(block, &range, old) {
                    return Ok(true);
                }
                let Some(room) = self.blocks.layers.patches.reserve(layer, block, &range)? else { return Ok(false) };
                let whole = &mut plan.whole.indices;
                *whole = match whole.first() == Some(block.index()) {
                    true => whole.split(whole.start() + 1).1,
                    false => whole.split(block.index().number()).0,
                };
                plan.patches.push(PlannedPatch { block, range, room });
                Ok(true)
            }
            _ => self.read_latched(layer, block, old),
        }
    }

    /// Reads a block whose latch in the head the caller holds. `false`: a source may have to be asked for it.
    fn read_latched(&self, layer: &Arc<Layer>, block: Block, buffer: &mut [u8]) -> Result<bool> {
        if !layer.holds(block) {
            return self.blocks.read_here(&self.view, block, buffer);
        }
        match self.blocks.layers.blocks.read(layer, block, buffer)? {
            BlockRead::Verified => Ok(true),
            BlockRead::Mismatch(block) => Err(self.blocks.layers.blocks.corruption(layer, block, "its bytes do not match their checksum")),
        }
    }

    /// Fetches what a block lacks, and repairs it, so that its old bytes can be read here.
    pub fn bring_old(&self, block: Block) -> Result<()> {
        self.alive(|| {
            self.blocks.bring(&self.view, block.in_extent())?;
            let mut old = AlignedBuffer::zeroed(self.blocks.block_size.len());
            self.blocks.read_extent(&self.view, block.in_extent(), &mut old)
        })
    }
}
