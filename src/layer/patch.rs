//! The bytes of a block that were written while the rest of the block is still below the layer.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::format::{BlocksRecord, PatchRecord};
use crate::ids::LayerId;
use crate::place::{Block, BlockSize, BlockSpan};

/// Separate ranges that one patch may have; bounds the records of a checkpoint.
pub(super) const RANGES_MAX: usize = 64;

/// Bytes of a block, of which some are valid.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    bytes: Box<[u8]>,
    /// Valid bytes: sorted, and neighbours neither overlap nor touch.
    ranges: Vec<Range<u32>>,
}

/// A range of bytes of a block, as the range of a slice.
fn slice(range: &Range<u32>) -> Range<usize> {
    let index = |at: u32| usize::try_from(at).unwrap_or(usize::MAX);
    index(range.start)..index(range.end)
}

impl Patch {
    /// A patch without valid bytes.
    pub fn new(block_size: BlockSize) -> Self {
        Self { bytes: vec![0; block_size.len()].into(), ranges: Vec::new() }
    }

    /// Makes the bytes of `range` valid. The range lies in the block and is as long as `bytes`.
    pub fn put(&mut self, range: Range<u32>, bytes: &[u8]) {
        self.bytes[slice(&range)].copy_from_slice(bytes);
        self.ranges = self.ranges_with(range);
    }

    /// How many ranges there would be if `range` were valid as well.
    pub fn ranges_after(&self, range: &Range<u32>) -> usize {
        self.ranges_with(range.clone()).len()
    }

    /// The valid ranges if `range` were valid as well.
    fn ranges_with(&self, mut range: Range<u32>) -> Vec<Range<u32>> {
        let touches = |other: &Range<u32>| other.start <= range.end && range.start <= other.end;
        let (joined, mut ranges): (Vec<_>, Vec<_>) = self.ranges.iter().cloned().partition(touches);
        for other in joined {
            range = range.start.min(other.start)..range.end.max(other.end);
        }
        ranges.insert(ranges.partition_point(|other| other.end < range.start), range);
        ranges
    }

    /// Whether the patch and a write of `range` make the block whole.
    pub fn completes(&self, range: &Range<u32>) -> bool {
        let ranges = self.ranges_with(range.clone());
        ranges.first().is_some_and(|first| slice(first) == (0..self.bytes.len()))
    }

    /// Puts the valid bytes over those of the block.
    pub fn overlay(&self, block: &mut [u8]) {
        for range in &self.ranges {
            block[slice(range)].copy_from_slice(&self.bytes[slice(range)]);
        }
    }

    /// Fills those bytes of `buffer` (the block from `offset` on) that are wanted and valid; answers what is still wanted.
    pub fn read(&self, offset: u32, buffer: &mut [u8], wanted: Vec<Range<u32>>) -> Vec<Range<u32>> {
        let mut left = Vec::new();
        for want in wanted {
            let mut at = want.start;
            for range in &self.ranges {
                let found = range.start.max(at)..range.end.min(want.end);
                if !found.is_empty() {
                    let to = found.start - offset..found.end - offset;
                    buffer[slice(&to)].copy_from_slice(&self.bytes[slice(&found)]);
                    if at < found.start {
                        left.push(at..found.start);
                    }
                    at = found.end;
                }
            }
            if at < want.end {
                left.push(at..want.end);
            }
        }
        left
    }

    /// One record for each valid range.
    pub fn records(&self, layer: LayerId, block: Block) -> impl Iterator<Item = BlocksRecord> + '_ {
        self.ranges.iter().map(move |range| {
            let bytes = self.bytes[slice(range)].to_vec();
            BlocksRecord::Patch(PatchRecord { layer, block, offset: range.start, bytes })
        })
    }
}

/// Takes the patches of a span of blocks; answers how many there were.
pub(super) fn remove_patches(patches: &mut BTreeMap<Block, Patch>, blocks: BlockSpan) -> u64 {
    let Some((first, last)) = blocks.first().zip(blocks.last()) else { return 0 };
    let superseded: Vec<Block> = patches.range(first..=last).map(|(block, _)| *block).collect();
    superseded.into_iter().filter_map(|block| patches.remove(&block)).fold(0, |count, _| count + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn ranges_agree_with_an_array_of_bytes() {
        let mut random = Random::new(7);
        let mut random = |limit: u16| u32::try_from(random.below(limit.into())).unwrap();
        for _ in 0..100 {
            let mut patch = Patch::new(BlockSize::DEFAULT);
            let mut model = [None; 4096];
            for step in 1..12u8 {
                let start = random(4096);
                let range = start..(start + 1 + random(700)).min(4096);
                patch.put(range.clone(), &vec![step; range.len()]);
                model[slice(&range)].fill(Some(step));
                assert!(patch.ranges.iter().all(|range| !range.is_empty()));
                assert!(patch.ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", patch.ranges);
                let mut block = [0xff; 4096];
                patch.overlay(&mut block);
                assert_eq!(block, model.map(|byte| byte.unwrap_or(0xff)));
                let mut again = Patch::new(BlockSize::DEFAULT);
                for record in patch.records(LayerId(1), Block::new(5)) {
                    let BlocksRecord::Patch(record) = record else { panic!("{record:?}") };
                    again.put(record.range(), &record.bytes);
                }
                assert_eq!(again, patch);
                let mut read = [0xff; 4096];
                let left = patch.read(0, &mut read, std::iter::once(0..4096).collect());
                assert_eq!(read, block);
                assert!(left.iter().all(|range| model[slice(range)].iter().all(Option::is_none)));
            }
        }
    }
}
