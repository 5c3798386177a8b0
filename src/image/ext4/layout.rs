//! Where everything stands in the file system, and how large it is.

use arcbox_ext4::constants::INODE_SIZE;
use arcbox_ext4::types::{GroupDescriptor, Inode};

use crate::error::{Error, ErrorKind};
use crate::place::{index, wide};

/// Bytes of a block of the file system.
pub(super) const BLOCK_BYTES: usize = index(BLOCK_BYTES_32);
/// The same in 32 bits.
pub(super) const BLOCK_BYTES_32: u32 = 4096;
/// The same as a distance of offsets.
pub(super) const BLOCK_STEP: u64 = wide(BLOCK_BYTES);
/// Blocks of a group: the bits of a block.
pub(super) const BLOCKS_PER_GROUP: u32 = BLOCK_BYTES_32 * 8;
/// Bytes of a group.
pub(super) const GROUP_BYTES: u64 = wide(index(BLOCKS_PER_GROUP)) * BLOCK_STEP;
/// Inodes of a group: one for 16 KiB, as `mke2fs` makes them.
pub(super) const INODES_PER_GROUP: u32 = 8192;
/// Most groups of a file system: the number of blocks has 32 bits.
pub(super) const GROUPS_MAX: u32 = u32::MAX / BLOCKS_PER_GROUP;
/// Bytes of the place of an inode, of which the inode itself takes a part.
const INODE_BYTES: usize = index(INODE_SIZE);
const INODES_PER_BLOCK: u32 = BLOCK_BYTES_32 / INODE_SIZE;
/// Blocks of the inodes of a group.
pub(super) const TABLE_BLOCKS: u32 = INODES_PER_GROUP / INODES_PER_BLOCK;
/// Descriptors of groups in a block.
pub(super) const DESCRIPTORS_PER_BLOCK: u32 = 128;
/// Blocks behind the superblock that only descriptors use, so that they never have to move.
pub(super) const DESCRIPTOR_BLOCKS_MAX: u32 = GROUPS_MAX.div_ceil(DESCRIPTORS_PER_BLOCK);
const _: () = assert!(Inode::SIZE <= INODE_BYTES && INODE_BYTES * index(INODES_PER_BLOCK) == BLOCK_BYTES);
const _: () = assert!(index(DESCRIPTORS_PER_BLOCK) * GroupDescriptor::SIZE == BLOCK_BYTES);
const _: () = assert!(DESCRIPTOR_BLOCKS_MAX == 1024, "where content begins is part of the layout");

/// The root directory.
pub(in crate::image) const ROOT: u32 = 2;
/// `/lost+found`.
pub(super) const LOST_AND_FOUND: u32 = 11;
/// Groups of a new file system: 8 GiB.
const NEW_GROUPS: u64 = 64;
/// Size of a new file system in bytes. Only its metadata are stored.
pub(in crate::image) const NEW_BYTES: u64 = NEW_GROUPS * GROUP_BYTES;
/// Bytes of the largest file system.
pub(in crate::image) const MAX_BYTES: u64 = wide(index(GROUPS_MAX)) * GROUP_BYTES;

/// The largest file system that fits a volume of `size_bytes`.
pub(in crate::image) fn fitting_bytes(size_bytes: u64) -> u64 {
    size_bytes / GROUP_BYTES * GROUP_BYTES
}

/// Block of the block bitmap; the inode bitmap and the table of inodes follow.
pub(super) fn bitmap_block(group: u32) -> u32 {
    match group {
        0 => 1 + DESCRIPTOR_BLOCKS_MAX,
        _ => group * BLOCKS_PER_GROUP,
    }
}

/// First block of a group that may have content, within the group.
pub(super) fn content_begin(group: u32) -> u32 {
    bitmap_block(group) % BLOCKS_PER_GROUP + 2 + TABLE_BLOCKS
}

/// The group of an inode, and its place there.
pub(super) fn group_of_inode(number: u32) -> (u32, u32) {
    ((number - 1) / INODES_PER_GROUP, (number - 1) % INODES_PER_GROUP)
}

/// The block of an inode, and the byte within it.
pub(super) fn inode_place(number: u32) -> (u32, usize) {
    let (group, place) = group_of_inode(number);
    (bitmap_block(group) + 2 + place / INODES_PER_BLOCK, index(place % INODES_PER_BLOCK) * INODE_BYTES)
}

/// Blocks of one extent, at most.
pub(super) const EXTENT_BLOCKS_MAX: u32 = 0x8000;

/// Consecutive blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub start: u32,
    pub blocks: u32,
}

impl Run {
    pub fn one(block: u32) -> Self {
        Self { start: block, blocks: 1 }
    }

    pub fn start_byte(self) -> u64 {
        u64::from(self.start) * BLOCK_STEP
    }

    pub fn bytes(self) -> u64 {
        u64::from(self.blocks) * BLOCK_STEP
    }

    /// The numbers of its blocks, as far as there can be such blocks.
    pub fn numbers(self) -> std::ops::Range<u32> {
        self.start..self.start.saturating_add(self.blocks)
    }
}

/// A number that the layout bounds within 16 bits: a length in a block, or blocks of an extent.
pub(super) fn short(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

pub(super) fn damaged(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the file system of an imported image: {what}; destroy its layers and import it again"))
}

pub(super) fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}
