//! The file system of a volume, put together.

use arcbox_ext4::constants::file_mode;
use arcbox_ext4::types::Inode;
use roaring::RoaringBitmap;

use super::directories::Directories;
use super::directory::{DIRECTORY, Directory, Entry};
use super::extent::{extents, set_extents};
use super::groups::Groups;
use super::inode::{Attributes, new_inode};
use super::inodes::Inodes;
use super::layout::{GROUP_BYTES, LOST_AND_FOUND, ROOT, Run, fitting_bytes};
use super::space::Space;
use super::superblock;
use crate::error::Result;
use crate::volume::Volume;

/// The file system of a volume while a layer changes it; nothing of a change is whole before [`FileSystem::commit`].
pub(in crate::image) struct FileSystem<'a> {
    pub(super) space: Space<'a>,
    pub(super) inodes: Inodes,
    pub(super) directories: Directories,
    /// Inodes that the layer has put or walked through, which its whiteouts do not touch.
    pub(super) seen: RoaringBitmap,
}

impl<'a> FileSystem<'a> {
    /// Makes an empty file system in a volume that reads as zero.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) if the volume is too small; an error of the volume.
    pub fn create(volume: &'a Volume) -> Result<Self> {
        let mut made = Self::over(volume, Groups::new(volume.size_bytes())?);
        for number in 1..=LOST_AND_FOUND {
            made.space.groups.take_inode(number);
        }
        made.make_root()?;
        Ok(made)
    }

    /// Opens the file system that is in a volume.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if it is not one that this module made; an error of the volume.
    pub fn open(volume: &'a Volume) -> Result<Self> {
        let count = superblock::read(volume)?;
        Ok(Self::over(volume, Groups::read(volume, count)?))
    }

    fn over(volume: &'a Volume, groups: Groups) -> Self {
        let space = Space { volume, groups };
        Self { space, inodes: Inodes::default(), directories: Directories::default(), seen: RoaringBitmap::new() }
    }

    fn make_root(&mut self) -> Result<()> {
        for (number, permissions) in [(ROOT, 0o755), (LOST_AND_FOUND, 0o700)] {
            let mut inode = new_inode(file_mode::S_IFDIR, &Attributes { permissions, ..Attributes::default() });
            inode.links_count = if number == ROOT { 3 } else { 2 };
            set_extents(&mut self.space, &mut inode, &[])?;
            self.put_inode(number, inode)?;
            self.space.groups.count_directory(number);
            self.directories.add(number, ROOT);
        }
        let lost = Entry { inode: LOST_AND_FOUND, kind: DIRECTORY };
        self.directory(ROOT)?.entries.insert(b"lost+found".to_vec(), lost);
        Ok(())
    }

    /// Bytes of the file system.
    pub fn size_bytes(&self) -> u64 {
        self.space.size_bytes()
    }

    /// Grows or shrinks the file system to fit `size_bytes`; the volume has that size already, or has it after.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) if what is in it does not fit.
    pub fn resize(&mut self, size_bytes: u64) -> Result<()> {
        self.space.groups.resize(fitting_bytes(size_bytes) / GROUP_BYTES)
    }

    /// An inode, as it is now.
    pub(super) fn inode(&mut self, number: u32) -> Result<&Inode> {
        self.inodes.get(&self.space, number)
    }

    /// Gives a number another inode.
    pub(super) fn put_inode(&mut self, number: u32, inode: Inode) -> Result<()> {
        self.inodes.put(self.space.volume, number, inode)
    }

    /// Changes an inode.
    pub(super) fn change_inode(&mut self, number: u32, change: impl FnOnce(&mut Inode)) -> Result<()> {
        let mut inode = self.inode(number)?.clone();
        change(&mut inode);
        self.put_inode(number, inode)
    }

    /// Where the content of an inode is; and the blocks that say so.
    pub(super) fn extents(&self, inode: &Inode) -> Result<(Vec<Run>, Vec<Run>)> {
        extents(self.space.volume, inode)
    }

    /// A directory, as it is now.
    pub(super) fn directory(&mut self, number: u32) -> Result<&mut Directory> {
        self.directories.get(&self.space, &mut self.inodes, number)
    }

    /// Bounds what is in memory. To be called between two changes.
    pub(super) fn make_room_for_names(&mut self) -> Result<()> {
        self.directories.make_room(&mut self.space, &mut self.inodes)
    }

    /// Writes all metadata that changed. The volume is to be flushed, or sealed, by the caller.
    ///
    /// # Errors
    /// An error of the volume.
    pub fn commit(&mut self) -> Result<()> {
        self.directories.commit(&mut self.space, &mut self.inodes)?;
        self.inodes.commit(self.space.volume)?;
        self.space.groups.write(self.space.volume)?;
        superblock::write(self.space.volume, &self.space.groups)
    }
}
