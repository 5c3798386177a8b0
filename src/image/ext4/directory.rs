//! Directories: names in order, packed into blocks.

use std::collections::BTreeMap;

use arcbox_ext4::types::DirectoryEntry;

use super::{BLOCK_BYTES, FileSystem, blocks, damaged};
use crate::error::Result;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub inode: u32,
    /// As directories have it: 1 a file, 2 a directory, 7 a symbolic link.
    pub kind: u8,
}

pub(super) const DIRECTORY: u8 = 2;
pub(super) const SYMLINK: u8 = 7;

impl Entry {
    pub fn is_directory(self) -> bool {
        self.kind == DIRECTORY
    }
}

/// A directory that was read.
pub(super) struct Directory {
    pub parent: u32,
    pub entries: BTreeMap<Vec<u8>, Entry>,
}

/// The blocks of a directory.
fn encode(number: u32, directory: &Directory) -> Vec<Vec<u8>> {
    let own = [(&b"."[..], number), (b"..", directory.parent)].map(|(name, inode)| (name, Entry { inode, kind: DIRECTORY }));
    let all = own.into_iter().chain(directory.entries.iter().map(|(name, entry)| (&name[..], *entry)));
    let mut packed: Vec<Vec<u8>> = vec![Vec::with_capacity(BLOCK_BYTES)];
    let mut last_at = 0;
    // The last entry of a block reaches to its end.
    let finish = |block: &mut Vec<u8>, last_at: usize| {
        let length = (BLOCK_BYTES - last_at) as u16;
        block[last_at + 4..last_at + 6].copy_from_slice(&length.to_le_bytes());
        block.resize(BLOCK_BYTES, 0);
    };
    for (name, entry) in all {
        let length = (DirectoryEntry::SIZE + name.len()).next_multiple_of(4);
        if packed[packed.len() - 1].len() + length > BLOCK_BYTES {
            let full = packed.len() - 1;
            finish(&mut packed[full], last_at);
            packed.push(Vec::with_capacity(BLOCK_BYTES));
        }
        let current = packed.len() - 1;
        let block = &mut packed[current];
        last_at = block.len();
        block.resize(last_at + length, 0);
        DirectoryEntry { inode: entry.inode, rec_len: length as u16, name_len: name.len() as u8, file_type: entry.kind }
            .write_to(&mut block[last_at..last_at + DirectoryEntry::SIZE]);
        let begin = last_at + DirectoryEntry::SIZE;
        block[begin..begin + name.len()].copy_from_slice(name);
    }
    let current = packed.len() - 1;
    finish(&mut packed[current], last_at);
    packed
}

fn decode(block: &[u8], into: &mut Directory) -> Result<()> {
    let mut at = 0;
    while at + DirectoryEntry::SIZE <= block.len() {
        let found = DirectoryEntry::read_from(&block[at..]);
        let begin = at + DirectoryEntry::SIZE;
        let length = found.rec_len as usize;
        let name = block.get(begin..begin + found.name_len as usize);
        let Some(name) = name.filter(|_| length >= DirectoryEntry::SIZE) else { return Err(damaged("a directory is not valid")) };
        match name {
            _ if found.inode == 0 => {}
            b"." => {}
            b".." => into.parent = found.inode,
            _ => drop(into.entries.insert(name.to_vec(), Entry { inode: found.inode, kind: found.file_type })),
        }
        at += length;
    }
    Ok(())
}

impl FileSystem<'_> {
    /// A directory, as it is now.
    pub(super) fn directory(&mut self, number: u32) -> Result<&mut Directory> {
        if !self.directories.contains_key(&number) {
            let inode = self.inode(number)?.clone();
            if !inode.is_dir() {
                return Err(damaged(format_args!("inode {number} is not a directory")));
            }
            let mut read = Directory { parent: number, entries: BTreeMap::new() };
            for run in self.extents(&inode)?.0 {
                for block in run.start..run.start.saturating_add(run.blocks) {
                    decode(&blocks::read(self.volume, block)?, &mut read)?;
                }
            }
            self.names += read.entries.len();
            self.directories.insert(number, read);
        }
        self.directories.get_mut(&number).ok_or_else(|| damaged("a directory went away"))
    }

    /// Writes the directories, and forgets them, when they have very many names. To be called between two changes.
    pub(super) fn make_room_for_names(&mut self) -> Result<()> {
        if self.names > self.kept.names {
            self.write_directories()?;
        }
        Ok(())
    }

    /// Writes all directories that changed, and forgets those that were read.
    pub(super) fn write_directories(&mut self) -> Result<()> {
        for number in std::mem::take(&mut self.changed_directories) {
            self.write_directory(number)?;
        }
        self.directories.clear();
        self.names = 0;
        Ok(())
    }

    /// Packs a directory into its blocks, as many as it needs now.
    fn write_directory(&mut self, number: u32) -> Result<()> {
        let packed = encode(number, self.directory(number)?);
        let mut inode = self.inode(number)?.clone();
        let (mut runs, leaves) = self.extents(&inode)?;
        let have: usize = runs.iter().map(|run| run.blocks as usize).sum();
        if have != packed.len() {
            for run in leaves {
                self.groups.free_blocks_of(run);
            }
            if have > packed.len() {
                for run in runs {
                    self.groups.free_blocks_of(run);
                }
                runs = self.allocate(packed.len() as u64)?;
            } else {
                runs.extend(self.allocate((packed.len() - have) as u64)?);
            }
            self.set_extents(&mut inode, &runs)?;
            inode.set_file_size((packed.len() * BLOCK_BYTES) as u64);
            self.put_inode(number, inode)?;
        }
        let places = runs.iter().flat_map(|run| run.start..run.start + run.blocks);
        for (block, bytes) in places.zip(&packed) {
            blocks::write(self.volume, block, bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_read_as_they_are_written() {
        let mut entries = BTreeMap::new();
        for number in 0..500_u32 {
            let name = format!("{number}-{}", "x".repeat(number as usize % 240)).into_bytes();
            entries.insert(name, Entry { inode: 12 + number, kind: 1 });
        }
        let written = Directory { parent: 2, entries };
        let mut read = Directory { parent: 0, entries: BTreeMap::new() };
        for block in encode(30, &written) {
            assert_eq!(block.len(), BLOCK_BYTES);
            decode(&block, &mut read).unwrap();
        }
        assert_eq!((read.parent, read.entries), (2, written.entries));
    }

    #[test]
    fn damaged_directories_are_refused() {
        let mut block = encode(2, &Directory { parent: 2, entries: BTreeMap::new() }).remove(0);
        block[4] = 0;
        block[5] = 0;
        assert!(decode(&block, &mut Directory { parent: 0, entries: BTreeMap::new() }).is_err());
    }
}
