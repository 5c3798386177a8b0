//! Putting fetched bytes into the root layer.

use std::ops::Range;

use bytes::Bytes;

use super::hydrator::Hydrator;
use crate::bits::BlockBits;
use crate::error::Result;
use crate::limits::EXTENT_BLOCKS;

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
            for run in self.config.layer.missing(extent as u32).runs() {
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

    /// Makes missing blocks of the range present with these bytes, or zero where they are zero.
    ///
    /// # Errors
    /// The layer's file cannot be written.
    pub(super) fn fill(&self, blocks: Range<u64>, bytes: &Bytes) -> Result<()> {
        let block_bytes = self.config.block_size.bytes() as usize;
        for run in self.missing_runs(blocks.clone()) {
            let offset = (run.start - blocks.start) as usize * block_bytes;
            let end = ((run.end - blocks.start) as usize * block_bytes).min(bytes.len());
            self.fill_run(run, &bytes[offset.min(end)..end])?;
        }
        Ok(())
    }

    fn fill_run(&self, run: Range<u64>, bytes: &[u8]) -> Result<()> {
        let block_bytes = self.config.block_size.bytes() as usize;
        let mut start = run.start;
        while start < run.end {
            let at = |block: u64| ((block - run.start) as usize * block_bytes).min(bytes.len());
            let zero = is_zero(&bytes[at(start)..at(start + 1)]);
            let extent_end = (start / u64::from(EXTENT_BLOCKS) + 1) * u64::from(EXTENT_BLOCKS);
            let mut end = start + 1;
            while end < run.end.min(extent_end) && is_zero(&bytes[at(end)..at(end + 1)]) == zero {
                end += 1;
            }
            if zero {
                self.config.layers.fill_zero(&self.config.layer, start as u32..=(end - 1) as u32);
            } else {
                self.fill_data(start..end, &bytes[at(start)..at(end)])?;
            }
            start = end;
        }
        Ok(())
    }

    /// Blocks of one extent with bytes that are not all zero.
    fn fill_data(&self, blocks: Range<u64>, bytes: &[u8]) -> Result<()> {
        let layers = &self.config.layers;
        let layer = &self.config.layer;
        let extent = (blocks.start / u64::from(EXTENT_BLOCKS)) as u32;
        let first = u64::from(extent) * u64::from(EXTENT_BLOCKS);
        let range = (blocks.start - first) as u32..(blocks.end - first) as u32;
        layers.admit_wait(layer, extent, &BlockBits::of(range.clone()))?;
        let whole = range.len() * self.config.block_size.bytes() as usize;
        if bytes.len() == whole {
            return layers.write_admitted(layer, extent, range, bytes);
        }
        // The source ends inside its last block; the rest of the block is zero.
        let mut padded = bytes.to_vec();
        padded.resize(whole, 0);
        layers.write_admitted(layer, extent, range, &padded)
    }
}

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    // Compares in wide steps: a slice is all equal if it equals itself shifted by one.
    bytes.first().is_none_or(|first| *first == 0 && bytes[1..] == bytes[..bytes.len() - 1])
}
