//! Putting fetched bytes into the root layer.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::hydrator::Hydrator;
use crate::error::Result;
use crate::io::is_zero;
use crate::layer::{Admission, Admitted, Layer};
use crate::limits::EXTENT_BLOCKS;
use crate::place::{BlockBits, BlockSpan, Extent, IndexSpan};
use crate::source::Part as SourcePart;

impl Hydrator {
    /// Byte range of blocks, cut at the end of the source.
    pub(super) fn byte_range(&self, blocks: &Range<u64>) -> Range<u64> {
        let size = self.config.record.size_bytes;
        let offset = |block| self.config.block_size.offset_of(block).min(size);
        offset(blocks.start)..offset(blocks.end)
    }

    /// The blocks of the range that are still missing, as runs; ranges under way count as missing.
    pub(super) fn missing_runs(&self, blocks: Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let extent_blocks = u64::from(EXTENT_BLOCKS);
        for extent in blocks.start / extent_blocks..blocks.end.div_ceil(extent_blocks) {
            let first = extent * extent_blocks;
            for run in self.config.layer.missing(Extent::clamped(extent as u32)).spans() {
                let run = run.range();
                let start = (first + u64::from(run.start)).max(blocks.start);
                let end = (first + u64::from(run.end)).min(blocks.end);
                match runs.last_mut() {
                    Some(last) if last.end == start && start < end => last.end = end,
                    _ if start < end => runs.push(start..end),
                    _ => {}
                }
            }
        }
        runs
    }

    /// The blocks of `run` that a part of a source has, and their bytes.
    pub(super) fn blocks_of(&self, part: &SourcePart, run: &Range<u64>) -> Option<(Range<u64>, Bytes)> {
        let part = part.within(&self.byte_range(run))?;
        let end = part.offset + part.bytes.len() as u64;
        let block_size = self.config.block_size;
        // Parts are cut where blocks are, and the last block ends with the source.
        Some((block_size.block_of(part.offset)..block_size.blocks_for(end), part.bytes))
    }

    /// Makes missing blocks of the range present with these bytes, or zero where they are zero.
    ///
    /// # Errors
    /// The layer's file cannot be written.
    pub(super) fn fill(&self, blocks: Range<u64>, bytes: &Bytes) -> Result<()> {
        let mut parts = self.parts_to_fill(blocks, bytes);
        parts.reverse();
        while let Some(part) = parts.pop() {
            match self.admit_part(&part)? {
                Some(admitted) => admitted.write(&part.bytes)?,
                None => parts.extend(self.parts_left(&part)),
            }
        }
        Ok(())
    }

    /// What is still missing of a part that could not be admitted.
    pub(super) fn parts_left(&self, part: &Part) -> Vec<Part> {
        let first = u64::from(part.extent) * u64::from(EXTENT_BLOCKS);
        self.parts_to_fill(first + u64::from(part.range.start)..first + u64::from(part.range.end), &part.bytes)
    }

    /// Makes those missing blocks zero whose bytes are; answers the others, cut at extents.
    pub(super) fn parts_to_fill(&self, blocks: Range<u64>, bytes: &Bytes) -> Vec<Part> {
        let block_bytes = self.config.block_size.bytes() as usize;
        let mut parts = Vec::new();
        for run in self.missing_runs(blocks.clone()) {
            let at = |block: u64| ((block - blocks.start) as usize * block_bytes).min(bytes.len());
            let mut start = run.start;
            while start < run.end {
                let zero = is_zero(&bytes[at(start)..at(start + 1)]);
                let extent_end = (start / u64::from(EXTENT_BLOCKS) + 1) * u64::from(EXTENT_BLOCKS);
                let mut end = start + 1;
                while end < run.end.min(extent_end) && is_zero(&bytes[at(end)..at(end + 1)]) == zero {
                    end += 1;
                }
                if zero {
                    self.config.layers.zeroes.fill_zero(&self.config.layer, BlockSpan::new(start, end));
                } else {
                    parts.push(self.part(start..end, bytes.slice(at(start)..at(end))));
                }
                start = end;
            }
        }
        parts
    }

    /// Blocks of one extent, and their bytes.
    fn part(&self, blocks: Range<u64>, bytes: Bytes) -> Part {
        let extent = (blocks.start / u64::from(EXTENT_BLOCKS)) as u32;
        let first = u64::from(extent) * u64::from(EXTENT_BLOCKS);
        let range = (blocks.start - first) as u32..(blocks.end - first) as u32;
        let whole = range.len() * self.config.block_size.bytes() as usize;
        if bytes.len() == whole {
            return Part { extent, range, bytes };
        }
        // The source ends inside its last block; the rest of the block is zero.
        let mut padded = bytes.to_vec();
        padded.resize(whole, 0);
        Part { extent, range, bytes: padded.into() }
    }

    /// Takes the blocks of a part, to write them. `None`: some of them have come from another address meanwhile, and a block
    /// is never filled over another fill.
    ///
    /// # Errors
    /// No space in the journal, or the store refuses writes.
    pub(super) fn admit_part(&self, part: &Part) -> Result<Option<Admitted<Arc<Admission>, Arc<Layer>>>> {
        let (admission, layer) = (Arc::clone(&self.config.layers.admission), Arc::clone(&self.config.layer));
        let (extent, bits) = (Extent::clamped(part.extent), BlockBits::of(IndexSpan::new(part.range.start, part.range.end)));
        let admitted = Admitted::wait(admission, layer, extent, bits)?;
        let missing = self.config.layer.missing(extent).and(&bits) == bits;
        Ok(missing.then_some(admitted))
    }
}

/// Missing blocks of one extent, and their bytes.
pub(super) struct Part {
    pub extent: u32,
    pub range: Range<u32>,
    pub bytes: Bytes,
}
