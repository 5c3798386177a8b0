//! One bit for each block of an extent.

use std::ops::Range;

use roaring::RoaringBitmap;

use crate::limits::EXTENT_BLOCKS;

const WORDS: usize = EXTENT_BLOCKS as usize / 64;

/// The block behind the run of a set that a block lies in; `None` if the set has not got the block. Costs as much as the run has
/// containers.
pub fn end_of_run(set: &RoaringBitmap, block: u64) -> Option<u64> {
    let block = u32::try_from(block).ok()?;
    let run = set.range(block..).next_range()?;
    (*run.start() == block).then(|| u64::from(*run.end()) + 1)
}

/// A set of blocks of one extent, numbered from 0 within it.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockBits([u64; WORDS]);

impl BlockBits {
    /// No block.
    pub const EMPTY: Self = Self([0; WORDS]);
    /// Every block.
    pub const FULL: Self = Self([u64::MAX; WORDS]);

    /// The blocks of a range.
    pub fn of(range: Range<u32>) -> Self {
        let mut bits = Self::EMPTY;
        for word in range.start / 64..range.end.div_ceil(64) {
            let low = range.start.saturating_sub(word * 64).min(64);
            let high = (range.end - word * 64).min(64);
            let ones = |count: u32| if count == 64 { u64::MAX } else { (1 << count) - 1 };
            bits.0[word as usize] = ones(high) & !ones(low);
        }
        bits
    }

    /// The set with these words, 64 blocks each.
    pub fn of_words(words: [u64; WORDS]) -> Self {
        Self(words)
    }

    /// Whether there is no block.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    /// Number of blocks.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether the block is in the set.
    pub fn contains(&self, block: u32) -> bool {
        self.0[block as usize / 64] >> (block % 64) & 1 == 1
    }

    /// Whether the sets share a block.
    pub fn intersects(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(a, b)| a & b != 0)
    }

    /// Blocks in both sets.
    pub fn and(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    /// Blocks in either set.
    pub fn or(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }

    /// Blocks that the other set has not.
    pub fn minus(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }

    /// The first block of the set at or after `from`.
    fn next(&self, from: u32, wanted: bool) -> u32 {
        let mut at = from;
        while at < EXTENT_BLOCKS {
            let word = if wanted { self.0[at as usize / 64] } else { !self.0[at as usize / 64] };
            let rest = word >> (at % 64);
            if rest != 0 {
                return at + rest.trailing_zeros();
            }
            at = (at / 64 + 1) * 64;
        }
        EXTENT_BLOCKS
    }

    /// The runs of consecutive blocks, in order.
    pub fn runs(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, true);
            if start >= EXTENT_BLOCKS {
                return None;
            }
            at = self.next(start, false);
            Some(start..at)
        })
    }
}

impl std::fmt::Debug for BlockBits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.runs()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_where_its_last_block_does() {
        let mut set = RoaringBitmap::from_iter([1, 2, 7]);
        assert_eq!([0, 1, 2, 3, 7].map(|block| end_of_run(&set, block)), [None, Some(3), Some(3), None, Some(8)]);
        set.insert_range(100_000..=u32::MAX);
        assert_eq!(end_of_run(&set, 70_000_000), Some(1 << 32), "across containers");
        assert_eq!(end_of_run(&set, 1 << 32), None);
    }

    #[test]
    fn ranges_and_runs_agree_with_each_other() {
        for range in [0..1, 0..64, 63..65, 1..1024, 0..1024, 5..5, 640..1000] {
            let bits = BlockBits::of(range.clone());
            assert_eq!(bits.count(), range.len() as u32, "{range:?}");
            assert!(range.clone().all(|block| bits.contains(block)));
            let runs: Vec<_> = bits.runs().collect();
            assert_eq!(runs, if range.is_empty() { vec![] } else { vec![range] });
        }
        let bits = BlockBits::of(3..70).minus(&BlockBits::of(64..65)).or(&BlockBits::of(1000..1024));
        assert_eq!(bits.runs().collect::<Vec<_>>(), [3..64, 65..70, 1000..1024]);
        assert!(BlockBits::FULL.minus(&BlockBits::of(0..1024)).is_empty());
    }
}
