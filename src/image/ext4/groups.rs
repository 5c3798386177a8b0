//! Groups: which blocks and inodes are taken.

use arcbox_ext4::types::GroupDescriptor;

use super::blocks;
use super::layout::{
    BLOCK_BYTES, BLOCKS_PER_GROUP, DESCRIPTOR_BLOCKS_MAX, DESCRIPTORS_PER_BLOCK, EXTENT_BLOCKS_MAX, GROUP_BYTES, GROUPS_MAX,
    INODES_PER_GROUP, MAX_BYTES, NEW_BYTES, Run, TABLE_BLOCKS, bitmap_block, content_begin, damaged, group_of_inode, refused,
};
use crate::error::Result;
use crate::place::{index, wide};
use crate::volume::Volume;

struct Group {
    blocks: Vec<u8>,
    inodes: Vec<u8>,
    free_blocks: u32,
    free_inodes: u32,
    directories: u32,
    changed: bool,
}

/// All groups of a file system, and where to look for what is free.
pub(super) struct Groups {
    list: Vec<Group>,
    /// Content goes behind all that there is, so that files are whole and nothing below is overwritten while there is room.
    next_block: u32,
    next_inode: u32,
}

fn is_set(bits: &[u8], at: u32) -> bool {
    bits[index(at / 8)] & (1 << (at % 8)) != 0
}

fn set(bits: &mut [u8], at: u32) {
    bits[index(at / 8)] |= 1 << (at % 8);
}

fn clear(bits: &mut [u8], at: u32) {
    bits[index(at / 8)] &= !(1 << (at % 8));
}

/// A count of a descriptor, which has 16 bits.
fn counted(group: u32, count: u32) -> Result<u16> {
    u16::try_from(count).map_err(|_| damaged(format_args!("group {group} counts {count} things, more than it can have")))
}

impl Group {
    fn new(number: u32) -> Self {
        let mut blocks = vec![0; BLOCK_BYTES];
        let begin = bitmap_block(number) % BLOCKS_PER_GROUP;
        for at in begin..content_begin(number) {
            set(&mut blocks, at);
        }
        // Bits behind the last inode are set, as the kernel does it.
        let mut inodes = vec![0xff; BLOCK_BYTES];
        inodes[..index(INODES_PER_GROUP / 8)].fill(0);
        let free_blocks = BLOCKS_PER_GROUP - 2 - TABLE_BLOCKS;
        Self { blocks, inodes, free_blocks, free_inodes: INODES_PER_GROUP, directories: 0, changed: true }
    }

    fn is_empty(&self) -> bool {
        self.free_blocks == BLOCKS_PER_GROUP - 2 - TABLE_BLOCKS && self.free_inodes == INODES_PER_GROUP
    }
}

impl Groups {
    /// The groups of an empty file system.
    pub fn new(size_bytes: u64) -> Result<Self> {
        let mut groups = Self { list: Vec::new(), next_block: content_begin(0), next_inode: 1 };
        groups.resize(size_bytes.min(NEW_BYTES) / GROUP_BYTES)?;
        let first = &mut groups.list[0];
        set(&mut first.blocks, 0);
        first.free_blocks -= 1;
        Ok(groups)
    }

    /// Reads `count` groups.
    pub fn read(volume: &Volume, count: u32) -> Result<Self> {
        let mut list = Vec::new();
        let mut next_block = content_begin(0);
        for number in 0..count {
            let descriptors = blocks::read(volume, 1 + number / DESCRIPTORS_PER_BLOCK)?;
            let at = index(number % DESCRIPTORS_PER_BLOCK) * GroupDescriptor::SIZE;
            let found = GroupDescriptor::read_from(&descriptors[at..]);
            if found.block_bitmap_lo != bitmap_block(number) {
                return Err(damaged(format_args!("descriptor {number} names block {}", found.block_bitmap_lo)));
            }
            let group = Group {
                blocks: blocks::read(volume, bitmap_block(number))?,
                inodes: blocks::read(volume, bitmap_block(number) + 1)?,
                free_blocks: u32::from(found.free_blocks_count_lo),
                free_inodes: u32::from(found.free_inodes_count_lo),
                directories: u32::from(found.used_dirs_count_lo),
                changed: false,
            };
            let last = (content_begin(number)..BLOCKS_PER_GROUP).rev().find(|at| is_set(&group.blocks, *at));
            next_block = last.map_or(next_block, |last| (number * BLOCKS_PER_GROUP + last).saturating_add(1));
            list.push(group);
        }
        Ok(Self { list, next_block, next_inode: 1 })
    }

    /// Number of groups.
    pub fn count(&self) -> u32 {
        // There are never more than that.
        u32::try_from(self.list.len()).unwrap_or(GROUPS_MAX)
    }

    /// Blocks that nothing uses.
    pub fn free_blocks(&self) -> u32 {
        self.list.iter().map(|group| group.free_blocks).sum()
    }

    /// Inodes that nothing uses.
    pub fn free_inodes(&self) -> u32 {
        self.list.iter().map(|group| group.free_inodes).sum()
    }

    /// Appends groups, or takes empty ones away from the end.
    pub fn resize(&mut self, count: u64) -> Result<()> {
        let Some(count) = u32::try_from(count).ok().filter(|count| (1..=GROUPS_MAX).contains(count)) else {
            return Err(refused(format!(
                "the file system of an image has from {GROUP_BYTES} bytes to {MAX_BYTES}: choose a size between them"
            )));
        };
        let needed = self.list.iter().rposition(|group| !group.is_empty()).map_or(0, |last| last + 1);
        if index(count) < needed {
            return Err(refused(format!("the image needs {} bytes: choose that size, or a larger one", wide(needed) * GROUP_BYTES)));
        }
        self.list.truncate(index(count));
        for number in self.count()..count {
            self.list.push(Group::new(number));
        }
        // Blocks of descriptors are taken as they are needed.
        let descriptor_blocks = self.count().div_ceil(DESCRIPTORS_PER_BLOCK);
        let first = &mut self.list[0];
        for block in 1..=DESCRIPTOR_BLOCKS_MAX {
            match (is_set(&first.blocks, block), block <= descriptor_blocks) {
                (false, true) => {
                    set(&mut first.blocks, block);
                    first.free_blocks -= 1;
                }
                (true, false) => {
                    clear(&mut first.blocks, block);
                    first.free_blocks += 1;
                }
                _ => continue,
            }
            first.changed = true;
        }
        self.next_block = self.next_block.min(self.count().saturating_mul(BLOCKS_PER_GROUP));
        Ok(())
    }

    /// Takes `count` free blocks; `None`, and none are taken, if there are not so many.
    pub fn take_blocks(&mut self, count: u64) -> Option<Vec<Run>> {
        let mut runs: Vec<Run> = Vec::new();
        let mut left = count;
        let begin = self.next_block;
        self.take_from(begin, u32::MAX, &mut left, &mut runs);
        self.take_from(0, begin, &mut left, &mut runs);
        if left > 0 {
            for run in runs {
                self.free_blocks_of(run);
            }
            self.next_block = begin;
            return None;
        }
        Some(runs)
    }

    fn take_from(&mut self, begin: u32, end: u32, left: &mut u64, runs: &mut Vec<Run>) {
        for (number, group) in (0..).zip(&mut self.list).skip(index(begin / BLOCKS_PER_GROUP)) {
            if *left == 0 || number * BLOCKS_PER_GROUP >= end {
                return;
            }
            let mut at = content_begin(number).max(begin.saturating_sub(number * BLOCKS_PER_GROUP));
            while group.free_blocks > 0 && at < BLOCKS_PER_GROUP && *left > 0 && number * BLOCKS_PER_GROUP + at < end {
                if is_set(&group.blocks, at) {
                    at += 1;
                    continue;
                }
                set(&mut group.blocks, at);
                group.free_blocks -= 1;
                group.changed = true;
                *left -= 1;
                let block = number * BLOCKS_PER_GROUP + at;
                match runs.last_mut() {
                    Some(run) if run.start + run.blocks == block && run.blocks < EXTENT_BLOCKS_MAX => run.blocks += 1,
                    _ => runs.push(Run::one(block)),
                }
                self.next_block = block.saturating_add(1);
                at += 1;
            }
        }
    }

    /// Gives blocks back.
    pub fn free_blocks_of(&mut self, run: Run) {
        for block in run.numbers() {
            let (number, at) = (block / BLOCKS_PER_GROUP, block % BLOCKS_PER_GROUP);
            let Some(group) = self.list.get_mut(index(number)).filter(|group| is_set(&group.blocks, at)) else { continue };
            clear(&mut group.blocks, at);
            group.free_blocks += 1;
            group.changed = true;
        }
    }

    /// Takes the first free inode, if there is one.
    pub fn take_free_inode(&mut self, directory: bool) -> Option<u32> {
        let (first, begin) = group_of_inode(self.next_inode);
        for (number, group) in (0..).zip(&mut self.list).skip(index(first)) {
            if group.free_inodes == 0 {
                continue;
            }
            let begin = if number == first { begin } else { 0 };
            let Some(place) = (begin..INODES_PER_GROUP).find(|place| !is_set(&group.inodes, *place)) else { continue };
            let inode = number * INODES_PER_GROUP + place + 1;
            self.take_inode(inode);
            if directory {
                self.count_directory(inode);
            }
            self.next_inode = inode;
            return Some(inode);
        }
        None
    }

    /// Takes this inode.
    pub fn take_inode(&mut self, inode: u32) {
        let (number, place) = group_of_inode(inode);
        let group = &mut self.list[index(number)];
        set(&mut group.inodes, place);
        group.free_inodes -= 1;
        group.changed = true;
    }

    /// Counts one more directory in the group of an inode.
    pub fn count_directory(&mut self, inode: u32) {
        self.list[index(group_of_inode(inode).0)].directories += 1;
    }

    /// Gives an inode back.
    pub fn free_inode(&mut self, inode: u32, directory: bool) {
        let (number, place) = group_of_inode(inode);
        let Some(group) = self.list.get_mut(index(number)) else { return };
        clear(&mut group.inodes, place);
        group.free_inodes += 1;
        group.directories -= u32::from(directory).min(group.directories);
        group.changed = true;
        self.next_inode = self.next_inode.min(inode);
    }

    /// Writes bitmaps and descriptors that changed.
    pub fn write(&mut self, volume: &Volume) -> Result<()> {
        const PART: usize = index(DESCRIPTORS_PER_BLOCK);
        for (first, part) in (0..).step_by(PART).zip(self.list.chunks_mut(PART)) {
            let mut descriptors = vec![0; BLOCK_BYTES];
            for (number, group) in (first..).zip(part) {
                let at = index(number - first) * GroupDescriptor::SIZE;
                let mut made = GroupDescriptor::read_from(&[0; GroupDescriptor::SIZE]);
                made.block_bitmap_lo = bitmap_block(number);
                made.inode_bitmap_lo = bitmap_block(number) + 1;
                made.inode_table_lo = bitmap_block(number) + 2;
                made.free_blocks_count_lo = counted(number, group.free_blocks)?;
                made.free_inodes_count_lo = counted(number, group.free_inodes)?;
                made.used_dirs_count_lo = counted(number, group.directories)?;
                made.write_to(&mut descriptors[at..at + GroupDescriptor::SIZE]);
                if std::mem::take(&mut group.changed) {
                    blocks::write(volume, bitmap_block(number), &group.blocks)?;
                    blocks::write(volume, bitmap_block(number) + 1, &group.inodes)?;
                }
            }
            blocks::write(volume, 1 + first / DESCRIPTORS_PER_BLOCK, &descriptors)?;
        }
        Ok(())
    }
}
