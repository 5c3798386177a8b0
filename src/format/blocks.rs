//! Blocks and parts of blocks, as records carry them. Their layout is in `record`.

use super::bytes::{FormatError, Reader, Writer};
use crate::ids::LayerId;
use crate::limits::BLOCK_BYTES_MAX;

/// Consecutive blocks of a layer and the checksums of their bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// The layer.
    pub layer: LayerId,
    /// First block.
    pub block: u32,
    /// One checksum a block.
    pub checksums: Vec<u32>,
}

/// Bytes written to a part of a block whose other bytes are still below the layer, perhaps at a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchRecord {
    /// The layer.
    pub layer: LayerId,
    /// The block.
    pub block: u32,
    /// Where in the block the bytes begin.
    pub offset: u32,
    /// The bytes, at least one.
    pub bytes: Vec<u8>,
}

impl BlockRun {
    pub(super) fn encode(&self, tag: u8, writer: &mut Writer) {
        writer.u8(tag);
        writer.u32(self.layer.0);
        writer.u32(self.block);
        writer.u32(self.checksums.len() as u32);
        for checksum in &self.checksums {
            writer.u32(*checksum);
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let (layer, block, count) = (LayerId(reader.u32()?), reader.u32()?, reader.u32()?);
        if count == 0 || block.checked_add(count - 1).is_none() {
            return Err(FormatError(format!("{count} blocks from {block} are not a run")));
        }
        let bytes = reader.take((count as usize).checked_mul(4).ok_or_else(|| FormatError("run is too long".into()))?)?;
        let checksums = bytes.as_chunks::<4>().0.iter().map(|chunk| u32::from_le_bytes(*chunk)).collect();
        Ok(Self { layer, block, checksums })
    }
}

impl PatchRecord {
    /// Bytes of a record before the bytes it carries.
    pub const HEADER_BYTES: u64 = 17;

    pub(super) fn encode(&self, writer: &mut Writer) {
        writer.u8(26);
        writer.u32(self.layer.0);
        writer.u32(self.block);
        writer.u32(self.offset);
        writer.blob(&self.bytes);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let (layer, block, offset, bytes) = (LayerId(reader.u32()?), reader.u32()?, reader.u32()?, reader.blob()?);
        let fits = offset.checked_add(bytes.len() as u32).is_some_and(|end| end <= BLOCK_BYTES_MAX);
        if bytes.is_empty() || !fits {
            return Err(FormatError(format!("{} bytes at {offset} are not a part of a block", bytes.len())));
        }
        Ok(Self { layer, block, offset, bytes: bytes.to_vec() })
    }
}
