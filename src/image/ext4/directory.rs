//! Directories: names in order, packed into blocks.

use std::collections::BTreeMap;

use arcbox_ext4::types::DirectoryEntry;

use super::layout::{BLOCK_BYTES, damaged, short};
use crate::error::Result;

/// The inode that a name stands for.
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

/// The blocks of a directory. No name has more than 255 bytes.
pub(super) fn encode(number: u32, directory: &Directory) -> Vec<Vec<u8>> {
    let own = [(&b"."[..], number), (b"..", directory.parent)].map(|(name, inode)| (name, Entry { inode, kind: DIRECTORY }));
    let all = own.into_iter().chain(directory.entries.iter().map(|(name, entry)| (&name[..], *entry)));
    let mut packed: Vec<Vec<u8>> = vec![Vec::with_capacity(BLOCK_BYTES)];
    let mut last_at = 0;
    // The last entry of a block reaches to its end.
    let finish = |block: &mut Vec<u8>, last_at: usize| {
        block[last_at + 4..last_at + 6].copy_from_slice(&short(BLOCK_BYTES - last_at).to_le_bytes());
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
        let name_len = u8::try_from(name.len()).unwrap_or(u8::MAX);
        DirectoryEntry { inode: entry.inode, rec_len: short(length), name_len, file_type: entry.kind }
            .write_to(&mut block[last_at..last_at + DirectoryEntry::SIZE]);
        let begin = last_at + DirectoryEntry::SIZE;
        block[begin..begin + name.len()].copy_from_slice(name);
    }
    let current = packed.len() - 1;
    finish(&mut packed[current], last_at);
    packed
}

pub(super) fn decode(block: &[u8], into: &mut Directory) -> Result<()> {
    let mut at = 0;
    while at + DirectoryEntry::SIZE <= block.len() {
        let found = DirectoryEntry::read_from(&block[at..]);
        let begin = at + DirectoryEntry::SIZE;
        let length = usize::from(found.rec_len);
        let name = block.get(begin..begin + usize::from(found.name_len));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::index;

    #[test]
    fn directories_are_read_as_they_are_written() {
        let mut entries = BTreeMap::new();
        for number in 0..500_u32 {
            let name = format!("{number}-{}", "x".repeat(index(number) % 240)).into_bytes();
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
