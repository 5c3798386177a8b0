//! The directories of the file system: those that were read or changed stand in memory, with as many names as it may have.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

use super::blocks;
use super::directory::{Directory, decode, encode};
use super::extent::{extents, set_extents};
use super::inodes::Inodes;
use super::layout::{BLOCK_BYTES, Run, damaged};
use super::space::Space;
use crate::error::Result;
use crate::place::wide;

/// Names in a directory, at most: it is in memory as a whole.
pub(super) const NAMES_MAX: usize = 1 << 20;
/// Names in memory between two changes, at most: at least twice those of the largest directory, or that is read again with each change.
pub(super) const KEPT_NAMES_MAX: usize = 2 * NAMES_MAX;

pub(super) struct Directories {
    kept: BTreeMap<u32, Directory>,
    changed: RoaringBitmap,
    /// Names in these, at most.
    names: usize,
    pub names_max: usize,
}

impl Default for Directories {
    fn default() -> Self {
        Self { kept: BTreeMap::new(), changed: RoaringBitmap::new(), names: 0, names_max: KEPT_NAMES_MAX }
    }
}

impl Directories {
    /// A directory, as it is now.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if the inode is none of a directory; an error of the volume.
    pub fn get(&mut self, space: &Space<'_>, inodes: &mut Inodes, number: u32) -> Result<&mut Directory> {
        if !self.kept.contains_key(&number) {
            let inode = inodes.get(space, number)?;
            if !inode.is_dir() {
                return Err(damaged(format_args!("inode {number} is not a directory")));
            }
            let mut read = Directory { parent: number, entries: BTreeMap::new() };
            for block in extents(space.volume, inode)?.0.into_iter().flat_map(Run::numbers) {
                decode(&blocks::read(space.volume, block)?, &mut read)?;
            }
            self.names += read.entries.len();
            self.kept.insert(number, read);
        }
        self.kept.get_mut(&number).ok_or_else(|| damaged("a directory went away"))
    }

    /// Puts an empty directory.
    pub fn add(&mut self, number: u32, parent: u32) {
        self.kept.insert(number, Directory { parent, entries: BTreeMap::new() });
        self.changed.insert(number);
    }

    /// Notes that the names in a directory are others now, by `added` more.
    pub fn note_change(&mut self, number: u32, added: usize) {
        self.names += added;
        self.changed.insert(number);
    }

    /// Drops a directory that was removed.
    pub fn forget(&mut self, number: u32) {
        self.kept.remove(&number);
        self.changed.remove(number);
    }

    /// Writes the directories, and forgets them, when they have very many names. To be called between two changes.
    ///
    /// # Errors
    /// As [`Directories::commit`].
    pub fn make_room(&mut self, space: &mut Space<'_>, inodes: &mut Inodes) -> Result<()> {
        if self.names > self.names_max { self.commit(space, inodes) } else { Ok(()) }
    }

    /// Writes all directories that changed, and forgets those that were read.
    ///
    /// # Errors
    /// There is no room; an error of the volume.
    pub fn commit(&mut self, space: &mut Space<'_>, inodes: &mut Inodes) -> Result<()> {
        for number in std::mem::take(&mut self.changed) {
            self.write(space, inodes, number)?;
        }
        self.kept.clear();
        self.names = 0;
        Ok(())
    }

    /// Packs a directory into its blocks, as many as it needs now.
    fn write(&mut self, space: &mut Space<'_>, inodes: &mut Inodes, number: u32) -> Result<()> {
        let packed = encode(number, self.get(space, inodes, number)?);
        let mut inode = inodes.get(space, number)?.clone();
        let (mut runs, leaves) = extents(space.volume, &inode)?;
        let (have, need) = (runs.iter().map(|run| u64::from(run.blocks)).sum::<u64>(), wide(packed.len()));
        if have != need {
            space.free(leaves);
            if have > need {
                space.free(runs);
                runs = space.allocate(need)?;
            } else {
                runs.extend(space.allocate(need - have)?);
            }
            set_extents(space, &mut inode, &runs)?;
            inode.set_file_size(wide(packed.len() * BLOCK_BYTES));
            inodes.put(space.volume, number, inode)?;
        }
        for (block, bytes) in runs.into_iter().flat_map(Run::numbers).zip(&packed) {
            blocks::write(space.volume, block, bytes)?;
        }
        Ok(())
    }
}
