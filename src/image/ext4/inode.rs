//! Inodes: owners, times, attributes, and what kind of thing it is.

use std::collections::BTreeMap;

use arcbox_ext4::constants::{EXTRA_ISIZE, INODE_EXTRA_SIZE, file_mode};
use arcbox_ext4::types::Inode;
use arcbox_ext4::xattr::{ExtendedAttribute, XattrState};

use super::blocks;
use super::extent::count_blocks;
use super::layout::{BLOCK_BYTES, BLOCK_BYTES_32, Run, refused};
use super::space::Space;
use crate::error::Result;

/// Time since 1970, or before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::image) struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// Nanoseconds above these, less than a second.
    pub nanoseconds: u32,
}

/// The attributes of a file that a layer gives besides its content.
#[derive(Clone, Debug, Default)]
pub(in crate::image) struct Attributes {
    /// Permission bits.
    pub permissions: u16,
    pub uid: u32,
    pub gid: u32,
    pub modified: Time,
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

/// Seconds, and what the kernel keeps beside them: two more bits of seconds, and nanoseconds above these. Times that it cannot hold
/// become the nearest that it can.
fn time(Time { seconds, nanoseconds }: Time) -> (u32, u32) {
    let held = seconds.clamp(i64::from(i32::MIN), 0x3_7fff_ffff);
    let nanoseconds = match held == seconds {
        true => nanoseconds,
        false => 0,
    };
    let [a, b, c, d, ..] = held.to_le_bytes();
    let low = [a, b, c, d];
    // The kernel takes the low bits for a signed number, and adds these to it.
    let [high, ..] = ((held - i64::from(i32::from_le_bytes(low))) >> 32).to_le_bytes();
    (u32::from_le_bytes(low), u32::from(high & 3) | nanoseconds << 2)
}

pub(super) fn set_attributes(inode: &mut Inode, kind: u16, attributes: &Attributes) {
    inode.mode = kind | attributes.permissions & 0o7777;
    inode.set_uid(attributes.uid);
    inode.set_gid(attributes.gid);
    let (low, high) = time(attributes.modified);
    (inode.atime, inode.ctime, inode.mtime, inode.crtime) = (low, low, low, low);
    (inode.atime_extra, inode.ctime_extra, inode.mtime_extra, inode.crtime_extra) = (high, high, high, high);
}

/// Gives an inode these extended attributes and no others. To be called before its extents are set, which counts the block.
///
/// # Errors
/// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) if they do not fit; an error of the volume.
pub(super) fn set_extended(space: &mut Space<'_>, number: u32, inode: &mut Inode, extended: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    inode.inline_xattrs = [0; 96];
    if inode.xattr_block_lo != 0 {
        space.groups.free_blocks_of(Run::one(inode.xattr_block_lo));
        inode.xattr_block_lo = 0;
    }
    let mut state = XattrState::new(number, INODE_EXTRA_SIZE, BLOCK_BYTES_32);
    let unfit = |_| refused(format!("its extended attributes do not fit a block of {BLOCK_BYTES} bytes, where all of them have to be"));
    for (name, value) in extended {
        let added = state.add(ExtendedAttribute::new(name, value.clone()));
        added.map_err(|error| unfit(error).context(format_args!("attribute '{name}' of {} bytes", value.len())))?;
    }
    if state.has_inline() {
        inode.inline_xattrs.copy_from_slice(&state.write_inline().map_err(unfit)?);
    }
    if state.has_block() {
        let block = space.allocate_one()?;
        blocks::write(space.volume, block, &state.write_block().map_err(unfit)?)?;
        inode.xattr_block_lo = block;
    }
    count_blocks(inode, u64::from(inode.xattr_block_lo != 0));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_kernel() {
        let time = |seconds, nanoseconds| super::time(Time { seconds, nanoseconds });
        assert_eq!(time(0, 0), (0, 0));
        assert_eq!(time(0x7fff_ffff, 0), (0x7fff_ffff, 0));
        // From the table in the kernel's documentation of ext4's timestamps: 2038-01-19 is the first with a bit.
        assert_eq!(time(0x8000_0000, 0), (0x8000_0000, 1));
        assert_eq!(time(0x1_0000_0000, 0), (0, 1));
        assert_eq!(time(1, 999_999_999), (1, 999_999_999 << 2));
        assert_eq!(time(-5, 0), (u32::MAX - 4, 0));
        assert_eq!(time(0x8000_0000, 7), (0x8000_0000, 7 << 2 | 1));
        assert_eq!((time(i64::MAX, 5), time(i64::MIN, 5)), ((0x7fff_ffff, 3), (0x8000_0000, 0)));
    }
}
