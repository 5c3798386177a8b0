//! Consecutive blocks.

use std::ops::{Range, RangeInclusive};

use super::block::{Block, BlockIndex, EXTENT_BLOCKS, Extent};

/// Consecutive blocks of a volume or layer; may be empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BlockSpan {
    start: u64,
    /// At most `BLOCKS_MAX`, and not before `start`.
    end: u64,
}

/// Blocks of the largest volume.
const BLOCKS_MAX: u64 = 1 << 32;

impl BlockSpan {
    /// No block.
    pub const EMPTY: Self = Self { start: 0, end: 0 };
    /// Every block of the largest volume.
    pub const ALL: Self = Self { start: 0, end: BLOCKS_MAX };

    /// The blocks from number `start` to the one before `end`, as far as the largest volume has them.
    #[inline]
    pub fn new(start: u64, end: u64) -> Self {
        let start = start.min(BLOCKS_MAX);
        Self { start, end: end.clamp(start, BLOCKS_MAX) }
    }

    /// The blocks from `first` to `last`, which is one of them; empty if `last` is before `first`.
    #[inline]
    pub fn closed(first: Block, last: Block) -> Self {
        Self::new(u64::from(first.number()), u64::from(last.number()) + 1)
    }

    /// `count` blocks from `first` on, as far as the largest volume has them.
    #[inline]
    pub fn from(first: Block, count: u64) -> Self {
        let start = u64::from(first.number());
        Self::new(start, start.saturating_add(count))
    }

    /// The blocks that a bitmap gives as one of its runs.
    pub fn of_run(run: &RangeInclusive<u32>) -> Self {
        Self::closed(Block::new(*run.start()), Block::new(*run.end()))
    }

    /// The number of the first block; that of the block behind an empty span.
    #[inline]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The number behind the last block.
    #[inline]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Number of blocks.
    #[inline]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether there is no block.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The first block.
    #[inline]
    pub fn first(self) -> Option<Block> {
        Block::at(self.start).filter(|_| !self.is_empty())
    }

    /// The last block.
    #[inline]
    pub fn last(self) -> Option<Block> {
        self.end.checked_sub(1).and_then(Block::at).filter(|_| !self.is_empty())
    }

    /// Whether the block is one of them.
    #[inline]
    pub fn contains(self, block: Block) -> bool {
        (self.start..self.end).contains(&u64::from(block.number()))
    }

    /// The blocks that both spans have.
    #[inline]
    pub fn and(self, other: Self) -> Self {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// The span with the blocks of `next`, if that begins where this one ends.
    pub fn joined(self, next: Self) -> Option<Self> {
        (self.end == next.start).then_some(Self { start: self.start, end: next.end })
    }

    /// The span without its first `count` blocks.
    pub fn skip(self, count: u64) -> Self {
        Self::new(self.start.saturating_add(count).min(self.end), self.end)
    }

    /// At most the first `count` blocks.
    pub fn take(self, count: u64) -> Self {
        Self::new(self.start, self.start.saturating_add(count).min(self.end))
    }

    /// The part that lies in an extent.
    #[inline]
    pub fn within(self, extent: Extent) -> IndexSpan {
        let base = u64::from(extent.first().number());
        let index = |number: u64| number.saturating_sub(base).min(u64::from(EXTENT_BLOCKS));
        IndexSpan::of_small(index(self.start), index(self.end))
    }

    /// The extents that it touches.
    pub fn extents(self) -> impl Iterator<Item = Extent> {
        self.first().zip(self.last()).into_iter().flat_map(|(first, last)| first.extent().through(last.extent()))
    }

    /// The span cut at the borders of extents, in order.
    pub fn by_extent(self) -> impl Iterator<Item = ExtentSpan> {
        self.extents().map(move |extent| extent.part(self.within(extent)))
    }

    /// The numbers of the extents that it touches, as a range of a bitmap of extents.
    pub fn extent_numbers(self) -> RangeInclusive<u32> {
        let numbers = self.numbers();
        if numbers.is_empty() { numbers } else { *numbers.start() / EXTENT_BLOCKS..=*numbers.end() / EXTENT_BLOCKS }
    }

    /// The two halves of a span of whole extents, unless it is one. The upper half begins at a power of two of extents, so that halves are
    /// those of the containers of a bitmap for as long as they can be.
    pub fn halves(self) -> Option<[Self; 2]> {
        let extents = self.len() / u64::from(EXTENT_BLOCKS);
        let lower = (extents > 1).then(|| extents.next_power_of_two() / 2 * u64::from(EXTENT_BLOCKS))?;
        Some([self.take(lower), self.skip(lower)])
    }

    /// Every block, in order.
    pub fn blocks(self) -> impl Iterator<Item = Block> {
        (self.start..self.end).filter_map(Block::at)
    }

    /// The span as a range of a bitmap of blocks.
    #[inline]
    pub fn numbers(self) -> RangeInclusive<u32> {
        match (self.first(), self.last()) {
            (Some(first), Some(last)) => first.number()..=last.number(),
            #[expect(clippy::reversed_empty_ranges, reason = "an empty range")]
            _ => 1..=0,
        }
    }
}

/// Consecutive blocks of one extent, numbered within it; may be empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct IndexSpan {
    start: u16,
    /// At most `EXTENT_BLOCKS`, and not before `start`.
    end: u16,
}

impl IndexSpan {
    /// Every block of the extent.
    pub const FULL: Self = Self { start: 0, end: 1024 };

    /// The blocks from index `start` to the one before `end`, as far as an extent has them.
    #[inline]
    pub fn new(start: u32, end: u32) -> Self {
        Self::of_small(u64::from(start), u64::from(end))
    }

    #[inline]
    pub(super) fn of_small(start: u64, end: u64) -> Self {
        let index = |number: u64| u16::try_from(number).map_or(Self::FULL.end, |number| number.min(Self::FULL.end));
        let start = index(start);
        Self { start, end: index(end).max(start) }
    }

    /// The index of the first block; 1024 or that of another block if the span is empty.
    #[inline]
    pub fn start(self) -> u32 {
        u32::from(self.start)
    }

    /// The index behind the last block.
    #[inline]
    pub fn end(self) -> u32 {
        u32::from(self.end)
    }

    /// Number of blocks.
    #[inline]
    pub fn len(self) -> u32 {
        u32::from(self.end - self.start)
    }

    /// Whether there is no block.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The first block.
    pub fn first(self) -> Option<BlockIndex> {
        BlockIndex::new(self.start()).filter(|_| !self.is_empty())
    }

    /// The blocks that both spans have.
    pub fn and(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        Self { start, end: self.end.min(other.end).max(start) }
    }

    /// The blocks before index `end`, and the others.
    #[inline]
    pub fn split(self, end: u32) -> (Self, Self) {
        let middle = u16::try_from(end).unwrap_or(u16::MAX).clamp(self.start, self.end);
        (Self { start: self.start, end: middle }, Self { start: middle, end: self.end })
    }

    /// Every block, in order.
    #[inline]
    pub fn indices(self) -> impl ExactSizeIterator<Item = BlockIndex> + DoubleEndedIterator + Clone {
        (self.start..self.end).map(|index| BlockIndex::masked(u32::from(index)))
    }

    /// The span as a range of numbers.
    #[inline]
    pub fn range(self) -> Range<u32> {
        self.start()..self.end()
    }

    /// The span as a range of an array with an entry for each block of an extent.
    #[inline]
    pub fn entries(self) -> Range<usize> {
        usize::from(self.start)..usize::from(self.end)
    }
}

/// Consecutive blocks of one extent; may be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExtentSpan {
    /// The extent.
    pub extent: Extent,
    /// Its blocks, numbered within it.
    pub indices: IndexSpan,
}

impl ExtentSpan {
    /// The blocks, numbered within the volume.
    #[inline]
    pub fn span(self) -> BlockSpan {
        let base = u64::from(self.extent.first().number());
        BlockSpan { start: base + u64::from(self.indices.start), end: base + u64::from(self.indices.end) }
    }

    /// The first block; the first one behind an empty span, as far as the extent has it.
    #[inline]
    pub fn first(self) -> Block {
        let index = self.indices.start().min(EXTENT_BLOCKS - 1);
        self.extent.block(BlockIndex::masked(index))
    }

    /// Number of blocks.
    #[inline]
    pub fn len(self) -> u32 {
        self.indices.len()
    }

    /// Every block, in order.
    pub fn blocks(self) -> impl ExactSizeIterator<Item = Block> + DoubleEndedIterator + Clone {
        self.indices.indices().map(move |index| self.extent.block(index))
    }
}

impl Block {
    /// The block as a span.
    pub fn span(self) -> BlockSpan {
        BlockSpan::closed(self, self)
    }

    /// The block as a span within its extent.
    pub fn in_extent(self) -> ExtentSpan {
        ExtentSpan { extent: self.extent(), indices: self.index().span() }
    }
}

impl Extent {
    /// All its blocks.
    #[inline]
    pub fn span(self) -> BlockSpan {
        BlockSpan::closed(self.first(), self.last())
    }

    /// Some of its blocks.
    #[inline]
    pub const fn part(self, indices: IndexSpan) -> ExtentSpan {
        ExtentSpan { extent: self, indices }
    }
}

impl BlockIndex {
    /// The index as a span.
    #[inline]
    pub const fn span(self) -> IndexSpan {
        IndexSpan { start: self.0, end: self.0 + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_cut_at_the_borders_of_extents() {
        let span = BlockSpan::new(1000, 3000);
        let parts: Vec<_> = span.by_extent().map(|part| (part.extent.number(), part.indices.range())).collect();
        assert_eq!(parts, [(0, 1000..1024), (1, 0..1024), (2, 0..952)]);
        assert_eq!(span.by_extent().map(ExtentSpan::span).reduce(|all, next| all.joined(next).unwrap()), Some(span));
        assert_eq!(BlockSpan::new(5, 5).by_extent().count(), 0);
        let last: Vec<_> = BlockSpan::new((1 << 32) - 1, u64::MAX).by_extent().collect();
        assert_eq!(last, [Block::LAST.in_extent()]);
    }

    #[test]
    fn spans_end_with_the_largest_volume() {
        assert_eq!(BlockSpan::new(7, u64::MAX), BlockSpan::from(Block::new(7), u64::MAX));
        assert_eq!(BlockSpan::ALL.last(), Some(Block::LAST));
        assert_eq!(BlockSpan::ALL.numbers(), 0..=u32::MAX);
        assert_eq!((BlockSpan::new(9, 3).len(), BlockSpan::new(1 << 40, 1 << 41).first()), (0, None));
        assert!(BlockSpan::EMPTY.numbers().is_empty() && BlockSpan::EMPTY.last().is_none());
    }

    #[test]
    fn parts_of_a_span_lie_within_it() {
        let span = BlockSpan::new(10, 20);
        assert_eq!((span.take(3), span.skip(3)), (BlockSpan::new(10, 13), BlockSpan::new(13, 20)));
        assert_eq!((span.take(99), span.skip(99).len()), (span, 0));
        assert_eq!(span.and(BlockSpan::new(15, 99)), BlockSpan::new(15, 20));
        assert!(span.and(BlockSpan::new(0, 10)).is_empty() && !span.contains(Block::new(20)) && span.contains(Block::new(19)));
        assert_eq!(IndexSpan::new(5, 9).and(IndexSpan::new(7, 2000)).range(), 7..9);
        assert_eq!(IndexSpan::new(2000, 1).range(), 1024..1024);
        let (low, high) = IndexSpan::new(5, 9).split(7);
        assert_eq!((low.range(), high.range(), IndexSpan::new(5, 9).split(3).0.len()), (5..7, 7..9, 0));
    }
}
