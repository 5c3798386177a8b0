//! The size of a block, and what follows from it: bytes <-> blocks <-> extents.

use std::ops::Range;

use super::block::{Block, EXTENT_BLOCKS, Extent, Segment};
use super::span::{BlockSpan, ExtentSpan, IndexSpan};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, SEGMENT_BYTES, VOLUME_BYTES_MAX};

/// Bytes of a block: a power of two from 4 KiB to 64 KiB, fixed when a store is created.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// use volfork::{BlockSize, Store, StoreOptions};
///
/// let options = StoreOptions::default().with_block_size(BlockSize::new(16 << 10)?);
/// let size = Store::create(directory.path(), options)?.block_size();
/// assert_eq!(size.bytes(), 16_384);
/// // Byte 40,000 is in block 2, which begins at byte 32,768; 40,000 bytes take three blocks.
/// assert_eq!((size.block_of(40_000), size.offset_of(2), size.blocks_for(40_000)), (2, 32_768, 3));
/// assert!(BlockSize::new(3000).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize {
    shift: u32,
}

impl BlockSize {
    /// The default, 4 KiB.
    pub const DEFAULT: Self = Self { shift: 12 };

    /// # Errors
    /// [`ErrorKind::InvalidInput`] unless `bytes` is a power of two from 4,096 to 65,536.
    pub fn new(bytes: u32) -> Result<Self> {
        if !bytes.is_power_of_two() || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&bytes) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("block size {bytes} is not a power of two from {BLOCK_BYTES_MIN} to {BLOCK_BYTES_MAX}"),
            ));
        }
        Ok(Self { shift: bytes.trailing_zeros() })
    }

    /// Bytes of a block.
    #[inline]
    pub fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// Bytes of a block as a `u32`, which records and reports use.
    #[inline]
    pub(crate) fn bytes_32(self) -> u32 {
        1 << self.shift
    }

    /// Bytes of a block, as the length of a buffer.
    #[inline]
    pub(crate) fn len(self) -> usize {
        1 << self.shift
    }

    /// Bytes of an extent (1024 blocks).
    #[inline]
    pub fn extent_bytes(self) -> u64 {
        u64::from(EXTENT_BLOCKS) << self.shift
    }

    /// Number of the block that holds byte `offset`.
    pub fn block_of(self, offset: u64) -> u64 {
        offset >> self.shift
    }

    /// Blocks needed for `bytes`, the last one perhaps in part.
    pub fn blocks_for(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.bytes())
    }

    /// Byte offset of a block.
    pub fn offset_of(self, block: u64) -> u64 {
        block << self.shift
    }
}

impl BlockSize {
    /// The block that holds byte `offset`; the last one if the largest volume ends before.
    #[inline]
    pub(crate) fn block_at(self, offset: u64) -> Block {
        Block::at(offset >> self.shift).unwrap_or(Block::LAST)
    }

    /// The extent that holds byte `offset`; the last one if the largest volume ends before.
    #[inline]
    pub(crate) fn extent_at(self, offset: u64) -> Extent {
        self.block_at(offset).extent()
    }

    /// Byte offset of a block.
    #[inline]
    pub(crate) fn offset(self, block: Block) -> u64 {
        u64::from(block.number()) << self.shift
    }

    /// The blocks that a range of bytes touches.
    pub(crate) fn touched(self, bytes: &Range<u64>) -> BlockSpan {
        if bytes.is_empty() { BlockSpan::EMPTY } else { BlockSpan::new(bytes.start >> self.shift, self.blocks_for(bytes.end)) }
    }

    /// The blocks of a volume or source of `bytes` bytes, the last one perhaps in part.
    pub(crate) fn span_for(self, bytes: u64) -> BlockSpan {
        BlockSpan::new(0, self.blocks_for(bytes))
    }

    /// The bytes of blocks.
    #[inline]
    pub(crate) fn bytes_of(self, span: BlockSpan) -> Range<u64> {
        span.start() << self.shift..span.end() << self.shift
    }

    /// Number of bytes of `blocks` blocks.
    #[inline]
    pub(crate) fn bytes_for(self, blocks: u64) -> u64 {
        blocks << self.shift
    }

    /// Bytes of a number of blocks of one extent, as a buffer length.
    #[inline]
    pub(crate) fn len_of(self, indices: IndexSpan) -> usize {
        indices.entries().len() << self.shift
    }

    /// A range of bytes, cut at the borders of extents, in order.
    pub(crate) fn pieces(self, bytes: Range<u64>) -> impl Iterator<Item = Piece> {
        let mut at = bytes.start;
        std::iter::from_fn(move || {
            let piece = (at < bytes.end).then(|| Piece::at(self, at, bytes.end - at))?;
            at += piece.bytes;
            // No block lies behind the end of the largest volume.
            (piece.bytes > 0).then_some(piece)
        })
    }

    /// The data file of a layer that has a block, and the block's byte offset in it.
    #[inline]
    pub(crate) fn in_file(self, block: Block) -> (Segment, u64) {
        let offset = self.offset(block);
        (Self::segment(offset), offset % SEGMENT_BYTES)
    }

    /// The data file with a byte of a layer. A layer has at most `VOLUME_BYTES_MAX` bytes, and so two files.
    fn segment(offset: u64) -> Segment {
        Segment::new(u32::try_from(offset / SEGMENT_BYTES).unwrap_or(u32::MAX))
    }

    /// The data files that a layer may have, and the blocks of each.
    pub(crate) fn segments(self) -> impl Iterator<Item = (Segment, BlockSpan)> {
        let starts = (0..VOLUME_BYTES_MAX).step_by(1 << SEGMENT_BYTES.trailing_zeros());
        let spans = starts.map(move |start| (Self::segment(start), self.touched(&(start..start + SEGMENT_BYTES))));
        spans.filter(|(_, span)| !span.is_empty())
    }
}

/// The part of a request that lies in one extent.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// The blocks that the bytes touch.
    pub part: ExtentSpan,
    /// Bytes of the first block before the request's first byte.
    pub skip: u64,
    /// Bytes of the request.
    pub bytes: u64,
}

impl Piece {
    /// The part of `bytes` at `offset` that lies in the extent of `offset`.
    #[inline]
    fn at(block_size: BlockSize, offset: u64, bytes: u64) -> Self {
        let extent = block_size.extent_at(offset);
        let within = offset - block_size.offset(extent.first());
        let bytes = bytes.min(block_size.extent_bytes().saturating_sub(within));
        let indices = IndexSpan::of_small(within >> block_size.shift, block_size.blocks_for(within + bytes));
        Self { part: extent.part(indices), skip: within & (block_size.bytes() - 1), bytes }
    }

    /// The first byte of the request.
    #[inline]
    pub fn offset(&self, block_size: BlockSize) -> u64 {
        block_size.offset(self.part.first()) + self.skip
    }

    /// The bytes of a block, which is one of its blocks, that the request has.
    pub fn within(&self, block_size: BlockSize, block: Block) -> Range<u32> {
        let before = self.part.indices.split(block.index().number()).0;
        let at = block_size.bytes_for(u64::from(before.len()));
        let inside =
            |byte: u64| u32::try_from(byte.saturating_sub(at)).map_or(block_size.bytes_32(), |byte| byte.min(block_size.bytes_32()));
        inside(self.skip)..inside(self.skip + self.bytes)
    }

    /// Whether it begins and ends with whole blocks.
    #[inline]
    pub fn is_whole(&self, block_size: BlockSize) -> bool {
        self.skip == 0 && self.bytes.is_multiple_of(block_size.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: BlockSize = BlockSize::DEFAULT;

    #[test]
    fn bytes_and_blocks_agree() {
        assert_eq!(SIZE.touched(&(5000..8192)), BlockSpan::new(1, 2));
        assert_eq!(SIZE.touched(&(5000..8193)), BlockSpan::new(1, 3));
        assert!(SIZE.touched(&(5000..5000)).is_empty());
        assert_eq!(SIZE.bytes_of(BlockSpan::new(1, 3)), 4096..12288);
        assert_eq!((SIZE.block_at(u64::MAX), SIZE.block_at(8191)), (Block::LAST, Block::new(1)));
        assert_eq!(SIZE.span_for(VOLUME_BYTES_MAX), BlockSpan::ALL);
    }

    #[test]
    fn a_request_is_cut_at_the_borders_of_extents() {
        let extent = SIZE.extent_bytes();
        let pieces: Vec<Piece> = SIZE.pieces(extent - 100..2 * extent + 5000).collect();
        let places: Vec<_> = pieces.iter().map(|piece| (piece.part.extent.number(), piece.part.indices.range(), piece.skip)).collect();
        assert_eq!(places, [(0, 1023..1024, 3996), (1, 0..1024, 0), (2, 0..2, 0)]);
        assert_eq!(pieces.iter().map(|piece| piece.bytes).collect::<Vec<_>>(), [100, extent, 5000]);
        assert_eq!(pieces.iter().map(|piece| piece.is_whole(SIZE)).collect::<Vec<_>>(), [false, true, false]);
    }

    #[test]
    fn segments_have_every_block_once() {
        for bytes in [BLOCK_BYTES_MIN, BLOCK_BYTES_MAX] {
            let size = BlockSize::new(bytes).unwrap();
            let segments: Vec<_> = size.segments().collect();
            assert_eq!(segments.len(), 2);
            for (segment, span) in segments {
                let (first, last) = (span.first().unwrap(), span.last().unwrap());
                assert_eq!(size.in_file(first), (segment, 0));
                assert_eq!(size.in_file(last), (segment, SEGMENT_BYTES - size.bytes()));
            }
        }
    }
}
