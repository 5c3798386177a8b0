//! The root layer: where fetched blocks are stored.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use roaring::RoaringBitmap;

use crate::error::Result;
use crate::io::is_zero;
use crate::layer::{Admission, Admitted, Layer, Layers};
use crate::place::{Block, BlockBits, BlockSize, BlockSpan, ExtentSpan, index, length, wide};
use crate::source::Part as SourcePart;

/// A root layer, and the mapping of its blocks to bytes of the source.
#[derive(Clone)]
pub struct Root {
    pub layers: Arc<Layers>,
    pub layer: Arc<Layer>,
    pub block_size: BlockSize,
    /// Size of the source in bytes.
    pub size_bytes: u64,
}

/// Missing blocks of one extent, and their bytes.
pub struct Part {
    pub span: ExtentSpan,
    pub bytes: Bytes,
}

impl Root {
    /// Byte range of blocks, cut at the end of the source.
    pub fn byte_range(&self, blocks: &Range<u64>) -> Range<u64> {
        let offset = |block| self.block_size.offset_of(block).min(self.size_bytes);
        offset(blocks.start)..offset(blocks.end)
    }

    /// Runs of missing blocks in a range; blocks under way count as missing.
    pub fn missing_runs(&self, blocks: &Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for part in BlockSpan::new(blocks.start, blocks.end).by_extent() {
            for run in self.layer.missing(part.extent).and(&BlockBits::of(part.indices)).spans() {
                let run = part.extent.part(run).span();
                match runs.last_mut() {
                    Some(last) if last.end == run.start() => last.end = run.end(),
                    _ => runs.push(run.start()..run.end()),
                }
            }
        }
        runs
    }

    /// All missing blocks.
    pub fn missing(&self) -> RoaringBitmap {
        let mut missing = RoaringBitmap::new();
        if let Some(last) = BlockSpan::new(0, self.layer.source_blocks().unwrap_or(0)).last() {
            missing.insert_range(0..=last.number());
            self.layer.with_presence(|presence| missing -= presence.covered());
        }
        missing
    }

    /// The blocks of `run` that a part of a source has, and their bytes.
    pub fn blocks_of(&self, part: &SourcePart, run: &Range<u64>) -> Option<(Range<u64>, Bytes)> {
        let part = part.within(&self.byte_range(run))?;
        let end = part.offset + wide(part.bytes.len());
        // Parts are cut where blocks are, and the last block ends with the source.
        Some((self.block_size.block_of(part.offset)..self.block_size.blocks_for(end), part.bytes))
    }

    /// Makes missing blocks of the range present with these bytes, or zero where they are zero.
    ///
    /// # Errors
    /// The layer's file cannot be written.
    pub fn fill(&self, blocks: &Range<u64>, bytes: &Bytes) -> Result<()> {
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

    /// The parts that are still missing of a part that could not be admitted.
    pub fn parts_left(&self, part: &Part) -> Vec<Part> {
        let span = part.span.span();
        self.parts_to_fill(&(span.start()..span.end()), &part.bytes)
    }

    /// Makes missing blocks zero whose bytes are zero. Returns the other missing blocks, cut at extents.
    pub fn parts_to_fill(&self, blocks: &Range<u64>, bytes: &Bytes) -> Vec<Part> {
        let block_bytes = length(self.block_size.bytes());
        let at = |block: u64| (length(block - blocks.start) * block_bytes).min(bytes.len());
        let mut parts = Vec::new();
        for run in self.missing_runs(blocks) {
            for run in BlockSpan::new(run.start, run.end).by_extent() {
                let mut left = run.span();
                while let Some(first) = left.first() {
                    let is_zero_at = |block: u64| is_zero(&bytes[at(block)..at(block + 1)]);
                    let zero = is_zero_at(left.start());
                    let same = wide(left.blocks().take_while(|block| is_zero_at(u64::from(block.number())) == zero).count());
                    let span = BlockSpan::from(first, same);
                    left = left.skip(same);
                    if zero {
                        self.layers.zeroes.fill_zero(&self.layer, span);
                    } else {
                        parts.push(self.part(run.extent.part(span.within(run.extent)), bytes.slice(at(span.start())..at(span.end()))));
                    }
                }
            }
        }
        parts
    }

    /// Blocks of one extent, and their bytes.
    fn part(&self, span: ExtentSpan, bytes: Bytes) -> Part {
        let whole = index(span.len()) * length(self.block_size.bytes());
        if bytes.len() == whole {
            return Part { span, bytes };
        }
        // The source ends inside its last block; the rest of the block is zero.
        let mut padded = bytes.to_vec();
        padded.resize(whole, 0);
        Part { span, bytes: padded.into() }
    }

    /// Takes the blocks of a part, to write them. `None`: some of them have come from another address meanwhile, and a block
    /// is never filled over another fill.
    ///
    /// # Errors
    /// No space in the journal, or the store refuses writes.
    pub fn admit_part(&self, part: &Part) -> Result<Option<Admitted<Arc<Admission>, Arc<Layer>>>> {
        let (admission, layer) = (Arc::clone(&self.layers.admission), Arc::clone(&self.layer));
        let (extent, bits) = (part.span.extent, BlockBits::of(part.span.indices));
        let admitted = Admitted::wait(admission, layer, extent, bits)?;
        let missing = self.layer.missing(extent).and(&bits) == bits;
        Ok(missing.then_some(admitted))
    }

    /// Takes the space of the missing blocks around `first` and gives it back: whether there is any.
    ///
    /// # Errors
    /// There is none.
    pub fn try_space(&self, first: u64) -> Result<()> {
        let extent = Block::at(first).unwrap_or(Block::LAST).extent();
        let missing = self.layer.missing(extent);
        self.layers.admission.take_space(&self.layer, extent, &missing)?;
        self.layers.admission.give_back_space(&self.layer, extent, &missing);
        Ok(())
    }

    /// Makes blocks whose bytes are zero in the source zero. `zeros` is a range of bytes.
    pub fn fill_zeros(&self, zeros: &Range<u64>) {
        let first = self.block_size.blocks_for(zeros.start);
        let last = match zeros.end == self.size_bytes {
            true => self.block_size.blocks_for(zeros.end),
            false => self.block_size.block_of(zeros.end),
        };
        if first < last {
            self.layers.zeroes.fill_zero(&self.layer, BlockSpan::new(first, last));
        }
    }
}
