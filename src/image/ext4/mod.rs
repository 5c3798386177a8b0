//! An ext4 file system inside a volume, changed one layer of an image at a time.
//!
//! Metadata stands at fixed places, so that a layer stores its own files and the metadata blocks that they touch, and shares all
//! others with the layers below. What is written depends on the content of the layers alone: no clock and no random number is
//! read, so the same layers give the same blocks everywhere.
//!
//! The structures on disk are those of the `arcbox-ext4` crate; its formatter is not used, because it moves all metadata with
//! each layer, needs the layers below once more, and knows no devices. Layout of a group (128 MiB):
//!
//! ```text
//! group 0      superblock | descriptors, room for 131,072 groups | block bitmap | inode bitmap | inodes | data
//! other groups                                                     block bitmap | inode bitmap | inodes | data
//! ```
//!
//! There is no journal: the kernel mounts it, and `tune2fs -j` adds one.
mod blocks;
mod directory;
mod extent;
mod groups;
mod inode;
mod superblock;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;
use std::io::Read;

use arcbox_ext4::types::Inode;
use roaring::RoaringBitmap;

use crate::error::{Error, ErrorKind, Result};
use crate::volume::Volume;
use directory::Directory;
use groups::{GROUP_BYTES, GROUPS_MAX, Groups};
pub(super) use inode::{Attributes, Kind, Time};

/// Bytes of a block of the file system.
const BLOCK_BYTES: usize = 4096;
/// The root directory.
pub(super) const ROOT: u32 = 2;
/// `/lost+found`.
const LOST_AND_FOUND: u32 = 11;
/// Groups of a new file system: 8 GiB.
const NEW_GROUPS: u32 = 64;

/// Bytes of a new file system, of which hardly any are stored.
pub(super) const NEW_BYTES: u64 = NEW_GROUPS as u64 * GROUP_BYTES;

/// Bytes of the largest file system.
pub(super) const MAX_BYTES: u64 = GROUPS_MAX * GROUP_BYTES;

/// The largest file system that fits a volume of `size_bytes`.
pub(super) fn fitting_bytes(size_bytes: u64) -> u64 {
    size_bytes / GROUP_BYTES * GROUP_BYTES
}

/// What is in memory between two changes, at most: a layer may have millions of files.
struct Kept {
    inodes: usize,
    /// Names in directories: at least twice those of the largest one, or that is read again with each change.
    names: usize,
}

impl Default for Kept {
    fn default() -> Self {
        Self { inodes: 32 << 10, names: 2 * tree::DIRECTORY_NAMES_MAX }
    }
}

/// The file system of a volume while a layer changes it; nothing of a change is whole before [`FileSystem::commit`].
pub(super) struct FileSystem<'a> {
    volume: &'a Volume,
    groups: Groups,
    /// Inodes that were read or changed; `true` are those to be written.
    inodes: BTreeMap<u32, (Inode, bool)>,
    directories: BTreeMap<u32, Directory>,
    /// Names in these, at most.
    names: usize,
    changed_directories: RoaringBitmap,
    kept: Kept,
    /// What the layer has put or walked through, which its whiteouts do not touch.
    seen: RoaringBitmap,
}

impl<'a> FileSystem<'a> {
    /// Makes an empty file system in a volume that reads as zero.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the volume is too small; an error of the volume.
    pub fn create(volume: &'a Volume) -> Result<Self> {
        let groups = Groups::new(volume.size_bytes())?;
        let mut made = Self::over(volume, groups);
        for number in 1..=LOST_AND_FOUND {
            made.groups.take_inode(number);
        }
        made.make_root()?;
        Ok(made)
    }

    /// Opens the file system that is in a volume.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if it is not one that this module made; an error of the volume.
    pub fn open(volume: &'a Volume) -> Result<Self> {
        let count = superblock::read(volume)?;
        Ok(Self::over(volume, Groups::read(volume, count)?))
    }

    fn over(volume: &'a Volume, groups: Groups) -> Self {
        let (inodes, directories) = (BTreeMap::new(), BTreeMap::new());
        let (changed_directories, seen) = (RoaringBitmap::new(), RoaringBitmap::new());
        Self { volume, groups, inodes, directories, names: 0, changed_directories, kept: Kept::default(), seen }
    }

    /// Bytes of the file system.
    pub fn size_bytes(&self) -> u64 {
        u64::from(self.groups.count()) * GROUP_BYTES
    }

    /// Grows or shrinks the file system to fit `size_bytes`; the volume has that size already, or has it after.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if what is in it does not fit.
    pub fn resize(&mut self, size_bytes: u64) -> Result<()> {
        self.groups.resize(fitting_bytes(size_bytes) / GROUP_BYTES)
    }

    /// Blocks for content. The file system and its volume grow when it is full.
    fn allocate(&mut self, blocks: u64) -> Result<Vec<extent::Run>> {
        loop {
            if let Some(runs) = self.groups.take_blocks(blocks) {
                return Ok(runs);
            }
            self.grow()?;
        }
    }

    fn allocate_inode(&mut self, directory: bool) -> Result<u32> {
        loop {
            if let Some(number) = self.groups.take_free_inode(directory) {
                return Ok(number);
            }
            self.grow()?;
        }
    }

    fn grow(&mut self) -> Result<()> {
        if self.size_bytes() == MAX_BYTES {
            return Err(refused(format!("the file system of the image is full, and it has {MAX_BYTES} bytes, the most there are")));
        }
        let size_bytes = (self.size_bytes() * 2).min(MAX_BYTES);
        if size_bytes > self.volume.size_bytes() {
            self.volume.resize(size_bytes, false)?;
        }
        self.groups.resize(size_bytes / GROUP_BYTES)
    }

    /// Content of a regular file, `bytes` of it.
    fn write_content(&mut self, content: &mut dyn Read, bytes: u64) -> Result<Vec<extent::Run>> {
        const PIECE_BYTES: usize = 1 << 20;
        let runs = self.allocate(bytes.div_ceil(BLOCK_BYTES as u64))?;
        let mut left = bytes;
        let mut piece = vec![0; PIECE_BYTES.min((bytes as usize).next_multiple_of(BLOCK_BYTES))];
        for run in &runs {
            let mut offset = run.start_byte();
            let end = offset + run.bytes();
            while offset < end {
                let room = (end - offset).min(piece.len() as u64) as usize;
                let filled = (room as u64).min(left) as usize;
                content.read_exact(&mut piece[..filled]).map_err(|error| super::stream::error_of("a file of the layer", error))?;
                piece[filled..room].fill(0);
                match piece[..room].iter().all(|byte| *byte == 0) {
                    true => self.volume.write_zeroes(offset, room as u64)?,
                    false => self.volume.write_at(&piece[..room], offset)?,
                }
                left -= filled as u64;
                offset += room as u64;
            }
        }
        Ok(runs)
    }

    /// Writes all metadata that changed. The volume is to be flushed, or sealed, by the caller.
    ///
    /// # Errors
    /// An error of the volume.
    pub fn commit(&mut self) -> Result<()> {
        self.write_directories()?;
        self.write_inodes()?;
        self.groups.write(self.volume)?;
        superblock::write(self.volume, &self.groups)?;
        // Nothing is kept of a layer that may be large.
        self.inodes.clear();
        Ok(())
    }
}

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the file system of an imported image: {what}; destroy its layers and import it again"))
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}
