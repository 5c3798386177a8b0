//! Blocks of metadata: read whole, and written only where they differ, because what is not written is shared.

use super::layout::{BLOCK_BYTES, BLOCK_STEP};
use crate::error::Result;
use crate::volume::Volume;

/// Reads a block.
pub(super) fn read(volume: &Volume, block: u32) -> Result<Vec<u8>> {
    let mut bytes = vec![0; BLOCK_BYTES];
    volume.read_at(&mut bytes, u64::from(block) * BLOCK_STEP)?;
    Ok(bytes)
}

/// Writes a block, unless it has these bytes.
pub(super) fn write(volume: &Volume, block: u32, bytes: &[u8]) -> Result<()> {
    match read(volume, block)? == bytes {
        true => Ok(()),
        false => volume.write_at(bytes, u64::from(block) * BLOCK_STEP),
    }
}
