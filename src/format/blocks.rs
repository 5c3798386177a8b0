//! Records of blocks: what a layer holds, hides and forgets. Their layout is in `record`.

use std::ops::Range;

use super::bytes::{FormatError, Reader, Writer};
use super::presence::{ForgetRecord, PresenceRecord};
use super::tags::tags;
use crate::ids::LayerId;
use crate::limits::BLOCK_BYTES_MAX;
use crate::place::{Block, BlockSpan, Extent};

/// Consecutive blocks of a layer and the checksums of their bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// The layer.
    pub layer: LayerId,
    /// First block.
    pub block: Block,
    /// One checksum a block.
    pub checksums: Vec<u32>,
}

/// Bytes written to a part of a block whose other bytes are still below the layer, perhaps at a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchRecord {
    /// The layer.
    pub layer: LayerId,
    /// The block.
    pub block: Block,
    /// Where in the block the bytes begin.
    pub offset: u32,
    /// The bytes of the patch, at least one.
    pub bytes: Vec<u8>,
}

impl BlockRun {
    /// The blocks.
    pub fn span(&self) -> BlockSpan {
        BlockSpan::from(self.block, self.checksums.len() as u64)
    }

    fn encode(&self, writer: &mut Writer) {
        writer.u32(self.layer.0);
        writer.u32(self.block.number());
        writer.count(self.checksums.len());
        for checksum in &self.checksums {
            writer.u32(*checksum);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let (layer, block, count) = (LayerId(reader.u32()?), Block::new(reader.u32()?), reader.count()?);
        if count == 0 || BlockSpan::from(block, count as u64).len() != count as u64 {
            return Err(FormatError::damaged(format!("{count} blocks from {block} are not a run")));
        }
        let bytes = reader.take(count.checked_mul(4).ok_or_else(|| FormatError::damaged("run is too long"))?)?;
        let checksums = bytes.as_chunks::<4>().0.iter().map(|chunk| u32::from_le_bytes(*chunk)).collect();
        Ok(Self { layer, block, checksums })
    }
}

impl PatchRecord {
    /// Bytes of a record before the bytes it carries.
    pub const HEADER_BYTES: u64 = 17;

    /// Where in the block the bytes lie.
    pub fn range(&self) -> Range<u32> {
        self.offset..self.offset.saturating_add(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX))
    }

    fn encode(&self, writer: &mut Writer) {
        writer.u32(self.layer.0);
        writer.u32(self.block.number());
        writer.u32(self.offset);
        writer.blob(&self.bytes);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let (layer, block, offset, bytes) = (LayerId(reader.u32()?), Block::new(reader.u32()?), reader.u32()?, reader.blob()?);
        let patch = Self { layer, block, offset, bytes: bytes.to_vec() };
        if bytes.is_empty() || patch.range().end > BLOCK_BYTES_MAX {
            return Err(FormatError::damaged(format!("{} bytes at {offset} are not a part of a block", bytes.len())));
        }
        Ok(patch)
    }
}

/// One change of the blocks of a layer, or one part of what it holds.
#[derive(Clone, Debug, PartialEq)]
pub enum BlocksRecord {
    /// Blocks become present.
    Present(BlockRun),
    /// Blocks become zero: they are not present, and hide the parent.
    Zero {
        /// The layer.
        layer: LayerId,
        /// First block.
        first: Block,
        /// Last block, inclusive.
        last: Block,
    },
    /// Dead blocks are forgotten.
    Drop {
        /// The layer.
        layer: LayerId,
        /// First block.
        first: Block,
        /// Last block, inclusive.
        last: Block,
    },
    /// Blocks of the extent may be overwritten in place from here on.
    Mark(LayerId, Extent),
    /// The extent's checksums are on disk and match its blocks.
    Clear(LayerId, Extent),
    /// Blocks that were overwritten in place just before their layer was sealed: the round counts only if they match.
    Expect(BlockRun),
    /// Part of a block that the layer does not hold is written. It counts until the block is present, zero or dropped.
    Patch(PatchRecord),
    /// Presence of a layer, or of a part of its blocks.
    Presence(PresenceRecord),
    /// Dead blocks are forgotten.
    Forget(ForgetRecord),
}

tags! {
    /// Tags of [`BlocksRecord`].
    Tag {
        Present = 20,
        Zero = 21,
        Drop = 22,
        Mark = 23,
        Clear = 24,
        Expect = 25,
        Patch = 26,
        Presence = 30,
        MorePresence = 32,
        Forget = 33,
    }
}

fn extent(reader: &mut Reader<'_>) -> Result<Extent, FormatError> {
    let number = reader.u32()?;
    Extent::new(number).ok_or_else(|| FormatError::damaged(format!("extent {number} lies behind the end of the largest volume")))
}

fn range(reader: &mut Reader<'_>) -> Result<(LayerId, Block, Block), FormatError> {
    let (layer, first, last) = (LayerId(reader.u32()?), Block::new(reader.u32()?), Block::new(reader.u32()?));
    if last < first {
        return Err(FormatError::damaged(format!("range from {first} to {last} is backwards")));
    }
    Ok((layer, first, last))
}

impl BlocksRecord {
    fn tag(&self) -> Tag {
        match self {
            Self::Present(_) => Tag::Present,
            Self::Zero { .. } => Tag::Zero,
            Self::Drop { .. } => Tag::Drop,
            Self::Mark(..) => Tag::Mark,
            Self::Clear(..) => Tag::Clear,
            Self::Expect(_) => Tag::Expect,
            Self::Patch(_) => Tag::Patch,
            Self::Presence(presence) => match presence.more {
                false => Tag::Presence,
                true => Tag::MorePresence,
            },
            Self::Forget(_) => Tag::Forget,
        }
    }

    pub fn encode(&self, writer: &mut Writer) {
        writer.u8(self.tag().byte());
        match self {
            Self::Present(run) | Self::Expect(run) => run.encode(writer),
            Self::Zero { layer, first, last } | Self::Drop { layer, first, last } => {
                writer.u32(layer.0).u32(first.number()).u32(last.number());
            }
            Self::Mark(layer, extent) | Self::Clear(layer, extent) => {
                writer.u32(layer.0);
                writer.u32(extent.number());
            }
            Self::Patch(patch) => patch.encode(writer),
            Self::Presence(presence) => presence.encode(writer),
            Self::Forget(forget) => forget.encode(writer),
        }
    }

    /// Takes the fields of a record with this tag; `None` if no record of blocks has it.
    pub(super) fn decode(tag: u8, reader: &mut Reader<'_>) -> Result<Option<Self>, FormatError> {
        let Some(tag) = Tag::of(tag) else { return Ok(None) };
        Ok(Some(match tag {
            Tag::Present => Self::Present(BlockRun::decode(reader)?),
            Tag::Zero => {
                let (layer, first, last) = range(reader)?;
                Self::Zero { layer, first, last }
            }
            Tag::Drop => {
                let (layer, first, last) = range(reader)?;
                Self::Drop { layer, first, last }
            }
            Tag::Mark => Self::Mark(LayerId(reader.u32()?), extent(reader)?),
            Tag::Clear => Self::Clear(LayerId(reader.u32()?), extent(reader)?),
            Tag::Expect => Self::Expect(BlockRun::decode(reader)?),
            Tag::Patch => Self::Patch(PatchRecord::decode(reader)?),
            Tag::Presence => Self::Presence(PresenceRecord::decode(false, reader)?),
            Tag::MorePresence => Self::Presence(PresenceRecord::decode(true, reader)?),
            Tag::Forget => Self::Forget(ForgetRecord::decode(reader)?),
        }))
    }
}
