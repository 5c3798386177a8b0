//! One bit for each block of an extent.

use std::ops::Range;

use super::block::{BlockIndex, EXTENT_BLOCKS};
use super::span::IndexSpan;

pub(super) const WORDS: usize = EXTENT_BLOCKS as usize / 64;

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

    /// The blocks of a span.
    pub fn of_span(span: IndexSpan) -> Self {
        Self::of(span.range())
    }

    /// The set of one block.
    pub fn of_one(index: BlockIndex) -> Self {
        let mut bits = Self::EMPTY;
        bits.0[index.get() / 64] = 1 << (index.get() % 64);
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

    /// Whether the block is in the set.
    #[inline]
    pub fn has(&self, index: BlockIndex) -> bool {
        self.0[index.get() / 64] >> (index.get() % 64) & 1 == 1
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
    pub fn spans(&self) -> impl Iterator<Item = IndexSpan> + '_ {
        self.runs().map(|run| IndexSpan::new(run.start, run.end))
    }

    /// Every block, in order.
    pub fn indices(&self) -> impl Iterator<Item = BlockIndex> + '_ {
        self.spans().flat_map(IndexSpan::indices)
    }

    /// The runs of consecutive blocks, in order, as numbers.
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
    fn ranges_and_runs_agree_with_each_other() {
        for range in [0..1, 0..64, 63..65, 1..1024, 0..1024, 5..5, 640..1000] {
            let bits = BlockBits::of(range.clone());
            assert_eq!(bits.count(), range.end - range.start, "{range:?}");
            assert!(range.clone().all(|block| bits.contains(block)));
            let runs: Vec<_> = bits.runs().collect();
            assert_eq!(runs, if range.is_empty() { vec![] } else { vec![range] });
        }
        let bits = BlockBits::of(3..70).minus(&BlockBits::of(64..65)).or(&BlockBits::of(1000..1024));
        assert_eq!(bits.runs().collect::<Vec<_>>(), [3..64, 65..70, 1000..1024]);
        assert!(BlockBits::FULL.minus(&BlockBits::of(0..1024)).is_empty());
    }
}
