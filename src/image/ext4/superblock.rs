//! The superblock, at byte 1024.

use arcbox_ext4::constants::{EXTRA_ISIZE, INODE_SIZE, SUPERBLOCK_MAGIC, compat, incompat, inode_flags, ro_compat};
use arcbox_ext4::types::SuperBlock;

use super::blocks;
use super::groups::Groups;
use super::layout::{BLOCK_BYTES, BLOCK_STEP, BLOCKS_PER_GROUP, GROUPS_MAX, INODES_PER_GROUP, LOST_AND_FOUND, damaged, short};
use crate::error::{Error, ErrorKind, Result};
use crate::place::index;
use crate::volume::Volume;

const AT: usize = 1024;
/// Names the layout of this module, and is the same in all images: what is stored must not depend on chance.
const UUID: [u8; 16] = *b"volfork-image-01";
const INCOMPATIBLE: u32 = incompat::FILETYPE | incompat::EXTENTS | incompat::FLEX_BG;
/// Directories of more than 65,000 directories do not count their links.
const READ_ONLY_COMPATIBLE: u32 = ro_compat::LARGE_FILE | ro_compat::HUGE_FILE | ro_compat::EXTRA_ISIZE | ro_compat::DIR_NLINK;
/// Hashes of directory entries take their bytes as unsigned, should a kernel add an index.
const UNSIGNED_HASH: u32 = 2;
const _: () = assert!(inode_flags::EXTENTS == 0x8_0000);

/// Groups of the file system in a volume.
pub(super) fn read(volume: &Volume) -> Result<u32> {
    let block = blocks::read(volume, 0)?;
    let found = SuperBlock::read_from(&block[AT..]);
    if found.magic != SUPERBLOCK_MAGIC || found.uuid != UUID || found.feature_incompat != INCOMPATIBLE {
        return Err(Error::new(ErrorKind::Unsupported, "the layer below is not a file system that an import of an image made"));
    }
    let count = found.blocks_count_lo / BLOCKS_PER_GROUP;
    let bytes = u64::from(found.blocks_count_lo) * BLOCK_STEP;
    if count == 0 || count > GROUPS_MAX || !found.blocks_count_lo.is_multiple_of(BLOCKS_PER_GROUP) || bytes > volume.size_bytes() {
        return Err(damaged(format_args!("{} blocks are not a number it can have", found.blocks_count_lo)));
    }
    Ok(count)
}

/// Writes the superblock of what `groups` say.
pub(super) fn write(volume: &Volume, groups: &Groups) -> Result<()> {
    let made = SuperBlock {
        inodes_count: groups.count() * INODES_PER_GROUP,
        blocks_count_lo: groups.count() * BLOCKS_PER_GROUP,
        free_blocks_count_lo: groups.free_blocks(),
        free_inodes_count: groups.free_inodes(),
        log_block_size: 2,
        log_cluster_size: 2,
        blocks_per_group: BLOCKS_PER_GROUP,
        clusters_per_group: BLOCKS_PER_GROUP,
        inodes_per_group: INODES_PER_GROUP,
        max_mount_count: u16::MAX,
        magic: SUPERBLOCK_MAGIC,
        state: 1,
        errors: 1,
        rev_level: 1,
        first_ino: LOST_AND_FOUND,
        inode_size: short(index(INODE_SIZE)),
        feature_compat: compat::SPARSE_SUPER2 | compat::EXT_ATTR,
        feature_incompat: INCOMPATIBLE,
        feature_ro_compat: READ_ONLY_COMPATIBLE,
        uuid: UUID,
        hash_seed: [0x766f_6c66, 0x6f72_6b00, 1, 1],
        def_hash_version: 1,
        flags: UNSIGNED_HASH,
        min_extra_isize: EXTRA_ISIZE,
        want_extra_isize: EXTRA_ISIZE,
        log_groups_per_flex: 4,
        ..SuperBlock::default()
    };
    let mut block = vec![0; BLOCK_BYTES];
    made.write_to(&mut block[AT..AT + SuperBlock::SIZE]);
    blocks::write(volume, 0, &block)
}
