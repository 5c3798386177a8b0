//! The inodes of the file system: those that were read or changed stand in memory, as many as it may have.

use std::collections::BTreeMap;

use arcbox_ext4::types::Inode;

use super::blocks;
use super::layout::{damaged, group_of_inode, inode_place};
use super::space::Space;
use crate::error::Result;
use crate::volume::Volume;

/// Inodes in memory between two changes, at most: a layer may have millions of files.
const KEPT_MAX: usize = 32 << 10;

/// An inode in memory.
struct Kept {
    inode: Inode,
    /// It is to be written.
    changed: bool,
}

pub(super) struct Inodes {
    kept: BTreeMap<u32, Kept>,
    pub kept_max: usize,
}

impl Default for Inodes {
    fn default() -> Self {
        Self { kept: BTreeMap::new(), kept_max: KEPT_MAX }
    }
}

impl Inodes {
    /// An inode, as it is now.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) for a number that no inode has; an error of the volume.
    pub fn get(&mut self, space: &Space<'_>, number: u32) -> Result<&Inode> {
        if !self.kept.contains_key(&number) {
            if number == 0 || group_of_inode(number).0 >= space.groups.count() {
                return Err(damaged(format_args!("there is no inode {number}")));
            }
            let (block, at) = inode_place(number);
            let inode = Inode::read_from(&blocks::read(space.volume, block)?[at..]);
            self.keep(space.volume, number, Kept { inode, changed: false })?;
        }
        Ok(&self.kept[&number].inode)
    }

    /// Gives a number another inode.
    ///
    /// # Errors
    /// An error of the volume.
    pub fn put(&mut self, volume: &Volume, number: u32, inode: Inode) -> Result<()> {
        self.keep(volume, number, Kept { inode, changed: true })
    }

    /// Keeps an inode; when there are many, they are written first.
    fn keep(&mut self, volume: &Volume, number: u32, kept: Kept) -> Result<()> {
        if self.kept.len() >= self.kept_max {
            self.write(volume)?;
            self.kept.clear();
        }
        self.kept.insert(number, kept);
        Ok(())
    }

    /// Writes all changed inodes, each block of them once.
    fn write(&self, volume: &Volume) -> Result<()> {
        let changed = self.kept.iter().filter(|(_, kept)| kept.changed).map(|(number, kept)| (inode_place(*number), &kept.inode));
        let mut current: Option<(u32, Vec<u8>)> = None;
        for ((block, at), inode) in changed {
            if current.as_ref().is_none_or(|(other, _)| *other != block) {
                if let Some((block, bytes)) = current.take() {
                    blocks::write(volume, block, &bytes)?;
                }
                current = Some((block, blocks::read(volume, block)?));
            }
            if let Some((_, bytes)) = &mut current {
                bytes[at..at + Inode::SIZE].fill(0);
                inode.write_to(&mut bytes[at..at + Inode::SIZE]);
            }
        }
        match current {
            Some((block, bytes)) => blocks::write(volume, block, &bytes),
            None => Ok(()),
        }
    }

    /// Writes all changed inodes, and forgets all: nothing is kept of a layer that may be large.
    ///
    /// # Errors
    /// An error of the volume.
    pub fn commit(&mut self, volume: &Volume) -> Result<()> {
        self.write(volume)?;
        self.kept.clear();
        Ok(())
    }

    /// Inodes in memory.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.kept.len()
    }
}
