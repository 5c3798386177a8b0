//! Identities and the block geometry of a store.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};
use crate::limits::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, EXTENT_BLOCKS};

/// Number of a layer within a store. Never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId(pub u32);

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a volume within a store. Never used twice, and kept by a rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId(pub u64);

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vol_{:08x}", self.0)
    }
}

/// Identity of a lease. Random, so that nobody can name the lease of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub [u8; 16]);

impl LeaseId {
    /// A new one.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]: the system has no randomness.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| Error::new(ErrorKind::Io, format!("the system has no randomness: {error}")))?;
        Ok(Self(bytes))
    }
}

/// Bytes of a block: a power of two from 4 KiB to 64 KiB, fixed when a store is created.
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
    pub fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// Bytes of an extent (1024 blocks).
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
