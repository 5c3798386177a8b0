//! Inodes: owners, times, attributes, and what kind of thing it is.

use std::collections::BTreeMap;

use arcbox_ext4::constants::{EXTRA_ISIZE, INODE_EXTRA_SIZE, file_mode};
use arcbox_ext4::types::Inode;
use arcbox_ext4::xattr::{ExtendedAttribute, XattrState};

use super::extent::{Run, count_blocks};
use super::groups::inode_place;
use super::{BLOCK_BYTES, FileSystem, blocks, refused};
use crate::error::Result;

/// What a layer says about a file besides its content.
#[derive(Clone, Debug, Default)]
pub(in crate::image) struct Attributes {
    /// Permission bits.
    pub permissions: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub modified: u64,
    /// Extended attributes by their full names.
    pub extended: BTreeMap<String, Vec<u8>>,
}

/// Things without content of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::image) enum Kind {
    Fifo,
    Character { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
}

impl Kind {
    pub fn mode(self) -> u16 {
        match self {
            Self::Fifo => file_mode::S_IFIFO,
            Self::Character { .. } => file_mode::S_IFCHR,
            Self::Block { .. } => file_mode::S_IFBLK,
        }
    }

    /// The device number goes where the extents of a file are, in the kernel's old form or in its new one.
    pub fn write_device(self, inode: &mut Inode) {
        let (Self::Character { major, minor } | Self::Block { major, minor }) = self else { return };
        match major < 256 && minor < 256 {
            true => inode.block[..4].copy_from_slice(&(major << 8 | minor).to_le_bytes()),
            false => inode.block[4..8].copy_from_slice(&((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)).to_le_bytes()),
        }
    }
}

/// Of `kind` (the type bits of a mode), with these attributes but the extended ones.
pub(super) fn new_inode(kind: u16, attributes: &Attributes) -> Inode {
    let mut inode = Inode { links_count: 1, extra_isize: EXTRA_ISIZE, ..Inode::default() };
    set_attributes(&mut inode, kind, attributes);
    inode
}

/// Seconds, and the bits above 32 as the kernel wants them.
fn time(seconds: u64) -> (u32, u32) {
    // The largest time that 34 bits of the kernel's signed form hold.
    let seconds = seconds.min(0x3_7fff_ffff);
    let low = seconds as u32;
    let high = (seconds as i64 - i64::from(low as i32)) >> 32;
    (low, (high & 3) as u32)
}

pub(super) fn set_attributes(inode: &mut Inode, kind: u16, attributes: &Attributes) {
    inode.mode = kind | attributes.permissions & 0o7777;
    inode.set_uid(attributes.uid);
    inode.set_gid(attributes.gid);
    let (low, high) = time(attributes.modified);
    (inode.atime, inode.ctime, inode.mtime, inode.crtime) = (low, low, low, low);
    (inode.atime_extra, inode.ctime_extra, inode.mtime_extra, inode.crtime_extra) = (high, high, high, high);
}

impl FileSystem<'_> {
    /// An inode, as it is now.
    pub(super) fn inode(&mut self, number: u32) -> Result<&Inode> {
        if !self.inodes.contains_key(&number) {
            if number == 0 || (number - 1) / super::groups::INODES_PER_GROUP >= self.groups.count() {
                return Err(super::damaged(format_args!("there is no inode {number}")));
            }
            let (block, at) = inode_place(number);
            let read = Inode::read_from(&blocks::read(self.volume, block)?[at..]);
            self.inodes.insert(number, (read, false));
        }
        Ok(&self.inodes[&number].0)
    }

    pub(super) fn put_inode(&mut self, number: u32, inode: Inode) {
        self.inodes.insert(number, (inode, true));
    }

    /// Changes an inode.
    pub(super) fn change_inode(&mut self, number: u32, change: impl FnOnce(&mut Inode)) -> Result<()> {
        let mut inode = self.inode(number)?.clone();
        change(&mut inode);
        self.put_inode(number, inode);
        Ok(())
    }

    /// Gives an inode these extended attributes and no others. To be called before its extents are set, which counts the block.
    pub(super) fn set_extended(&mut self, number: u32, inode: &mut Inode, extended: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        inode.inline_xattrs = [0; 96];
        if inode.xattr_block_lo != 0 {
            self.groups.free_blocks_of(Run { start: inode.xattr_block_lo, blocks: 1 });
            inode.xattr_block_lo = 0;
        }
        let mut state = XattrState::new(number, INODE_EXTRA_SIZE, BLOCK_BYTES as u32);
        let unfit = |error| refused(format!("extended attributes of a file of the image do not fit a block: {error}"));
        for (name, value) in extended {
            state.add(ExtendedAttribute::new(name, value.clone())).map_err(unfit)?;
        }
        if state.has_inline() {
            inode.inline_xattrs.copy_from_slice(&state.write_inline().map_err(unfit)?);
        }
        if state.has_block() {
            let block = self.allocate(1)?[0].start;
            blocks::write(self.volume, block, &state.write_block().map_err(unfit)?)?;
            inode.xattr_block_lo = block;
        }
        count_blocks(inode, u64::from(inode.xattr_block_lo != 0));
        Ok(())
    }

    /// Writes all changed inodes, each block of them once.
    pub(super) fn write_inodes(&mut self) -> Result<()> {
        let changed = self.inodes.iter().filter(|(_, (_, changed))| *changed).map(|(number, (inode, _))| (inode_place(*number), inode));
        let mut current: Option<(u32, Vec<u8>)> = None;
        for ((block, at), inode) in changed {
            if current.as_ref().is_none_or(|(other, _)| *other != block) {
                if let Some((block, bytes)) = current.take() {
                    blocks::write(self.volume, block, &bytes)?;
                }
                current = Some((block, blocks::read(self.volume, block)?));
            }
            if let Some((_, bytes)) = &mut current {
                bytes[at..at + Inode::SIZE].fill(0);
                inode.write_to(&mut bytes[at..at + Inode::SIZE]);
            }
        }
        match current {
            Some((block, bytes)) => blocks::write(self.volume, block, &bytes),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_kernel() {
        assert_eq!(time(0), (0, 0));
        assert_eq!(time(0x7fff_ffff), (0x7fff_ffff, 0));
        // From the table in the kernel's documentation of ext4's timestamps: 2038-01-19 is the first with a bit.
        assert_eq!(time(0x8000_0000), (0x8000_0000, 1));
        assert_eq!(time(0x1_0000_0000), (0, 1));
        assert_eq!(time(u64::MAX), (0x7fff_ffff, 3));
    }
}
