//! Bytes of a source, and their checksums.

use std::ops::Range;

use bytes::Bytes;

use crate::limits::BLOCK_BYTES_MAX;
use crate::place::{index, length, wide};

/// Parts of a read begin and end at multiples of this many bytes, so that no block of any size lies in two parts.
pub const PART_ALIGN_BYTES: u64 = wide(index(BLOCK_BYTES_MAX));

/// Consecutive bytes of a source, with the checksums that the source gives for them.
///
/// ```
/// use volfork::source::Part;
///
/// let part = Part::new(4096, vec![1; 8192].into());
/// // What of it a reader wanted: the offset is one in the source.
/// let wanted = part.within(&(8192..100_000)).unwrap();
/// assert_eq!((wanted.offset, wanted.bytes.len()), (8192, 4096));
/// assert_eq!(part.within(&(0..4096)), None);
/// // Without checksums nothing is known of damage.
/// assert_eq!(part.damage(), None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Offset of the first byte in the source.
    pub offset: u64,
    /// The bytes, which [`Part::damage`] compares with the checksums.
    pub bytes: Bytes,
    /// Checksums of the blocks, as far as the source knows them.
    pub checksums: Checksums,
}

impl Part {
    /// Bytes without checksums.
    pub fn new(offset: u64, bytes: Bytes) -> Self {
        Self { offset, bytes, checksums: Checksums::default() }
    }

    /// The bytes that lie in `range`, which is in bytes of the source; `None` if there are none.
    pub fn within(&self, range: &Range<u64>) -> Option<Self> {
        let end = self.offset + wide(self.bytes.len());
        let (start, end) = (self.offset.max(range.start), end.min(range.end));
        let bytes = (start < end).then(|| self.bytes.slice(length(start - self.offset)..length(end - self.offset)))?;
        Some(Self { offset: start, bytes, checksums: self.checksums.clone() })
    }

    /// Offset in the source of the first block that does not match its checksum: the bytes were damaged on the network or at the source.
    /// Blocks are those of the source ([`Checksums::block_bytes`]).
    pub fn damage(&self) -> Option<u64> {
        let Checksums { block_bytes, first, ref values } = self.checksums;
        if block_bytes == 0 || block_bytes > BLOCK_BYTES_MAX {
            // No source has such blocks: the checksums say nothing.
            return None;
        }
        let block_bytes = u64::from(block_bytes);
        let end = self.offset + wide(self.bytes.len());
        let at = |number: u64| first.checked_add(number.checked_mul(block_bytes)?);
        let blocks = values.iter().zip(0u64..).filter_map(|(value, number)| Some(((*value)?, at(number)?)));
        let mut inside = blocks.filter(|(_, offset)| *offset >= self.offset && *offset < end);
        inside
            .find(|(checksum, offset)| {
                let start = length(offset - self.offset);
                let bytes = &self.bytes[start..self.bytes.len().min(start + length(block_bytes))];
                content_checksum(bytes, length(block_bytes)) != *checksum
            })
            .map(|(_, offset)| offset)
    }
}

/// The crc32 (IEEE) of a block of `block_bytes` bytes. `bytes` may be shorter at the end of a volume; the rest counts as zeros.
pub fn content_checksum(bytes: &[u8], block_bytes: usize) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(bytes);
    let mut zeros = block_bytes.saturating_sub(bytes.len());
    while zeros > 0 {
        let some = zeros.min(index(BLOCK_BYTES_MAX));
        hasher.update(&[0; index(BLOCK_BYTES_MAX)][..some]);
        zeros -= some;
    }
    hasher.finalize()
}

/// Checksums of consecutive blocks of a source. Blocks of [`Part::bytes`] that are not whole have none, except the last one of
/// the source.
///
/// ```
/// use volfork::source::{Checksums, Part, content_checksum};
///
/// let block = vec![1; 4096];
/// let checksums = Checksums { block_bytes: 4096, first: 0, values: vec![Some(content_checksum(&block, 4096)), None] };
/// let mut part = Part { offset: 0, bytes: [block.clone(), block].concat().into(), checksums };
/// assert_eq!(part.damage(), None);
/// // The block at offset 0 is not what the source says it is.
/// part.bytes = vec![2; 8192].into();
/// assert_eq!(part.damage(), Some(0));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checksums {
    /// Bytes of a block of the source; 0 if there are no checksums.
    pub block_bytes: u32,
    /// Offset of the first block.
    pub first: u64,
    /// crc32 (IEEE) of each block; `None` where it is not known.
    pub values: Vec<Option<u32>>,
}
