//! Numbers of blocks, extents and data files.

use std::fmt;

use super::width::index;

/// Blocks of an extent.
pub const EXTENT_BLOCKS: u32 = 1 << EXTENT_SHIFT;
const EXTENT_SHIFT: u32 = 10;

/// Length in memory, or on disk, of what takes `bytes` for each block of an extent.
pub const fn per_extent(bytes: usize) -> usize {
    index(EXTENT_BLOCKS) * bytes
}

/// A block of a volume or layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block(u32);

impl Block {
    /// The first block.
    pub const FIRST: Self = Self(0);
    /// The last block of the largest volume.
    pub const LAST: Self = Self(u32::MAX);

    /// The block with this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The block with this number; `None` behind the end of the largest volume.
    pub fn at(number: u64) -> Option<Self> {
        u32::try_from(number).ok().map(Self)
    }

    /// Its number, as records and bitmaps have it.
    #[inline]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The extent that it is in.
    #[inline]
    pub const fn extent(self) -> Extent {
        Extent(self.0 >> EXTENT_SHIFT)
    }

    /// Its number within its extent.
    #[inline]
    pub const fn index(self) -> BlockIndex {
        BlockIndex::masked(self.0)
    }

    /// The block behind it; `None` after the last one.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An extent of a volume or layer: 1024 consecutive blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extent(u32);

impl Extent {
    /// The first extent.
    pub const FIRST: Self = Self(0);
    /// The last extent of the largest volume.
    pub const LAST: Self = Block::LAST.extent();

    /// The extent with this number; `None` behind the end of the largest volume.
    pub const fn new(number: u32) -> Option<Self> {
        if number <= Self::LAST.0 { Some(Self(number)) } else { None }
    }

    /// Its number, as records and bitmaps have it.
    #[inline]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Its first block.
    #[inline]
    pub const fn first(self) -> Block {
        Block(self.0 << EXTENT_SHIFT)
    }

    /// Its last block.
    #[inline]
    pub const fn last(self) -> Block {
        Block(self.0 << EXTENT_SHIFT | (EXTENT_BLOCKS - 1))
    }

    /// The block with this number within it.
    #[inline]
    pub fn block(self, index: BlockIndex) -> Block {
        Block(self.0 << EXTENT_SHIFT | index.number())
    }

    /// The extents from this one to `last`, which is one of them.
    pub fn through(self, last: Self) -> impl Iterator<Item = Self> {
        (self.0..=last.0).map(Self)
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A block within its extent: 0 to 1023.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockIndex(pub(super) u16);

impl BlockIndex {
    /// The index with this number; `None` from 1024 on.
    pub const fn new(number: u32) -> Option<Self> {
        if number < EXTENT_BLOCKS { Some(Self::masked(number)) } else { None }
    }

    /// The lowest ten bits of a number.
    pub(super) const fn masked(number: u32) -> Self {
        Self((number & (EXTENT_BLOCKS - 1)) as u16)
    }

    /// Its number within the extent, 0 to 1023.
    #[inline]
    pub fn number(self) -> u32 {
        u32::from(self.0)
    }

    /// Its number, as the index of an array with an entry for each block of an extent.
    #[inline]
    pub fn get(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A data file of a layer: the first holds the first [`SEGMENT_BYTES`](crate::limits::SEGMENT_BYTES), and so on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Segment(u32);

impl Segment {
    /// The segment with this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number, as file names have it.
    pub const fn number(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_its_extent_and_its_index() {
        for number in [0, 1, 1023, 1024, 5000, u32::MAX] {
            let block = Block::new(number);
            assert_eq!(block.extent().block(block.index()), block);
            assert_eq!((block.extent().number(), block.index().number()), (number / EXTENT_BLOCKS, number % EXTENT_BLOCKS));
        }
        assert_eq!((Block::LAST.next(), Extent::LAST.last()), (None, Block::LAST));
        assert_eq!((Extent::new(1 << 22), Extent::new((1 << 22) - 1)), (None, Some(Extent::LAST)));
        assert_eq!((BlockIndex::new(1024), Block::at(1 << 32)), (None, None));
    }
}
