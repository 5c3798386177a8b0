//! One bit for each block of an extent.

use super::block::{BlockIndex, EXTENT_BLOCKS};
use super::span::IndexSpan;
use super::width::index;

pub(super) const WORDS: usize = index(EXTENT_BLOCKS) / 64;

/// A set of blocks of one extent, numbered from 0 within it.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockBits([u64; WORDS]);

impl BlockBits {
    /// No block.
    pub const EMPTY: Self = Self([0; WORDS]);
    /// Every block.
    pub const FULL: Self = Self([u64::MAX; WORDS]);

    /// The blocks of a span.
    pub fn of(span: IndexSpan) -> Self {
        let range = span.range();
        let mut bits = Self::EMPTY;
        for word in range.start / 64..range.end.div_ceil(64) {
            let low = range.start.saturating_sub(word * 64).min(64);
            let high = (range.end - word * 64).min(64);
            let ones = |count: u32| if count == 64 { u64::MAX } else { (1 << count) - 1 };
            bits.0[index(word)] = ones(high) & !ones(low);
        }
        bits
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
    #[inline]
    pub fn contains(&self, index: BlockIndex) -> bool {
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
            let word = self.0[index(at / 64)];
            let word = if wanted { word } else { !word };
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
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, true);
            if start >= EXTENT_BLOCKS {
                return None;
            }
            at = self.next(start, false);
            Some(IndexSpan::new(start, at))
        })
    }

    /// Every block, in order.
    pub fn indices(&self) -> impl Iterator<Item = BlockIndex> + '_ {
        self.spans().flat_map(IndexSpan::indices)
    }
}

impl std::fmt::Debug for BlockBits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.spans().map(IndexSpan::range)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sets_agree_with_each_other() {
        let of = |start, end| BlockBits::of(IndexSpan::new(start, end));
        for (start, end) in [(0, 1), (0, 64), (63, 65), (1, 1024), (0, 1024), (5, 5), (640, 1000)] {
            let (span, bits) = (IndexSpan::new(start, end), of(start, end));
            assert_eq!(bits.count(), end - start, "{span:?}");
            assert!(span.indices().all(|index| bits.contains(index)));
            assert_eq!(bits.spans().collect::<Vec<_>>(), if span.is_empty() { vec![] } else { vec![span] });
            assert!(span.indices().map(BlockBits::of_one).fold(BlockBits::EMPTY, |all, one| all.or(&one)) == bits);
        }
        let bits = of(3, 70).minus(&of(64, 65)).or(&of(1000, 1024));
        assert_eq!(bits.spans().map(IndexSpan::range).collect::<Vec<_>>(), [3..64, 65..70, 1000..1024]);
        assert!(BlockBits::FULL.minus(&of(0, 1024)).is_empty());
    }
}
