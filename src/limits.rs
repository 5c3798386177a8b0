//! Every limit of the engine in one place, with the relations between them checked by the compiler.

/// Smallest block, in bytes.
pub const BLOCK_BYTES_MIN: u32 = 4 << 10;
/// Largest block, in bytes.
pub const BLOCK_BYTES_MAX: u32 = 64 << 10;
/// Blocks of an extent.
pub const EXTENT_BLOCKS: u32 = 1024;
/// Largest volume, in bytes: block numbers are 32 bits wide at the smallest block size.
pub const VOLUME_BYTES_MAX: u64 = 16 << 40;
/// Longest name of a volume or a snapshot, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Most requests in flight in one queue.
pub const QUEUE_DEPTH_MAX: u32 = 4096;
/// Bytes of one layer data file; a longer layer continues in further files (ext4 ends a file at 16 TiB less one block).
pub const SEGMENT_BYTES: u64 = 8 << 40;

/// Bytes of blocks in memory of which only a part was written while the rest is at a source; beyond, such a write waits.
pub const PATCH_BYTES_MAX: u64 = 16 << 20;

const _: () = assert!(PATCH_BYTES_MAX >= BLOCK_BYTES_MAX as u64);
const _: () = assert!(VOLUME_BYTES_MAX / BLOCK_BYTES_MIN as u64 == 1 << 32);
const _: () = assert!(SEGMENT_BYTES.is_multiple_of(EXTENT_BLOCKS as u64 * BLOCK_BYTES_MAX as u64));
