//! Names: what a layer puts, links and removes.

use std::collections::VecDeque;
use std::io::Read;

use arcbox_ext4::constants::file_mode;

use super::directories::NAMES_MAX;
use super::directory::{DIRECTORY, Entry, SYMLINK};
use super::extent::set_extents;
use super::filesystem::FileSystem;
use super::inode::{Attributes, Kind, new_inode, set_attributes, set_extended};
use super::layout::{BLOCK_BYTES, LOST_AND_FOUND, ROOT, Run, damaged, refused};
use crate::error::Result;
use crate::place::{length, wide};

/// Symbolic links that a path may go through, as in the kernel.
const LINK_HOPS_MAX: usize = 40;
const LINKS_MAX: u16 = 65_000;
const NAME_BYTES_MAX: usize = 255;
/// Targets of symbolic links that stand in the inode are shorter.
const INLINE_TARGET_BYTES: usize = 60;

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(200).collect()
}

impl FileSystem<'_> {
    fn entry(&mut self, directory: u32, name: &[u8]) -> Result<Option<Entry>> {
        Ok(self.directory(directory)?.entries.get(name).copied())
    }

    fn set_entry(&mut self, directory: u32, name: &[u8], entry: Entry) -> Result<()> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(&0) || name.contains(&b'/') {
            return Err(refused(format!("'{}' is not a name that a file can have", shown(name))));
        }
        let entries = &mut self.directory(directory)?.entries;
        entries.insert(name.to_vec(), entry);
        if entries.len() > NAMES_MAX {
            return Err(refused(format!("its directory has more than {NAMES_MAX} names")));
        }
        self.directories.note_change(directory, 1);
        self.seen.insert(entry.inode);
        Ok(())
    }

    fn target_of(&mut self, number: u32) -> Result<Vec<u8>> {
        let inode = self.inode(number)?.clone();
        let bytes = length(inode.file_size()).min(BLOCK_BYTES);
        if bytes < INLINE_TARGET_BYTES {
            return Ok(inode.block[..bytes].to_vec());
        }
        let (runs, _) = self.extents(&inode)?;
        let run = runs.first().ok_or_else(|| damaged("a symbolic link has no target"))?;
        let mut target = vec![0; bytes];
        self.space.volume.read_at(&mut target, run.start_byte())?;
        Ok(target)
    }

    /// The directory at `path`, which is made if it is not there. Symbolic links are followed inside of the file system: nothing
    /// leads out of it.
    pub(in crate::image) fn directory_at(&mut self, path: &[&[u8]]) -> Result<u32> {
        self.make_room_for_names()?;
        let mut above = vec![ROOT];
        let mut rest: VecDeque<Vec<u8>> = path.iter().map(|part| part.to_vec()).collect();
        let mut hops = 0;
        while let Some(part) = rest.pop_front() {
            let at = above.last().copied().unwrap_or(ROOT);
            match &part[..] {
                b"" | b"." => continue,
                b".." => {
                    above.truncate((above.len() - 1).max(1));
                    continue;
                }
                _ => {}
            }
            match self.entry(at, &part)? {
                Some(entry) if entry.is_directory() => above.push(entry.inode),
                Some(entry) if entry.kind == SYMLINK => {
                    hops += 1;
                    if hops > LINK_HOPS_MAX {
                        return Err(refused(format!("'{}' leads through more than {LINK_HOPS_MAX} symbolic links", shown(&part))));
                    }
                    let target = self.target_of(entry.inode)?;
                    if target.starts_with(b"/") {
                        above.truncate(1);
                    }
                    for part in target.split(|byte| *byte == b'/').rev() {
                        rest.push_front(part.to_vec());
                    }
                }
                Some(_) => return Err(refused(format!("'{}' is not a directory, and the layer puts something into it", shown(&part)))),
                None => above.push(self.make_directory(at, &part, &Attributes { permissions: 0o755, ..Attributes::default() })?),
            }
        }
        self.seen.extend(above.iter().copied());
        Ok(above.last().copied().unwrap_or(ROOT))
    }

    /// Puts a directory; one that is there keeps its content.
    pub(in crate::image) fn make_directory(&mut self, parent: u32, name: &[u8], attributes: &Attributes) -> Result<u32> {
        match self.entry(parent, name)? {
            Some(entry) if entry.is_directory() => {
                self.seen.insert(entry.inode);
                self.describe(entry.inode, attributes)?;
                return Ok(entry.inode);
            }
            Some(_) => self.make_way(parent, name)?,
            None => {}
        }
        let number = self.space.allocate_inode(true)?;
        let mut inode = new_inode(file_mode::S_IFDIR, attributes);
        inode.links_count = 2;
        set_extended(&mut self.space, number, &mut inode, &attributes.extended)?;
        set_extents(&mut self.space, &mut inode, &[])?;
        self.put_inode(number, inode)?;
        self.directories.add(number, parent);
        self.set_entry(parent, name, Entry { inode: number, kind: DIRECTORY })?;
        self.count_link(parent, true)?;
        Ok(number)
    }

    /// Gives a directory that is there other attributes.
    pub(in crate::image) fn describe(&mut self, number: u32, attributes: &Attributes) -> Result<()> {
        let mut inode = self.inode(number)?.clone();
        set_attributes(&mut inode, file_mode::S_IFDIR, attributes);
        let (runs, leaves) = self.extents(&inode)?;
        self.space.free(leaves);
        set_extended(&mut self.space, number, &mut inode, &attributes.extended)?;
        set_extents(&mut self.space, &mut inode, &runs)?;
        self.put_inode(number, inode)
    }

    /// A directory counts the directories in it; from 65,000 on it says 1, which means "many".
    fn count_link(&mut self, parent: u32, more: bool) -> Result<()> {
        self.change_inode(parent, |inode| {
            inode.links_count = match (inode.links_count, more) {
                (1, _) => 1,
                (LINKS_MAX.., true) => 1,
                (count, true) => count + 1,
                (count, false) => count.saturating_sub(1),
            }
        })
    }

    /// Puts a regular file.
    pub(in crate::image) fn make_file(
        &mut self,
        parent: u32,
        name: &[u8],
        attributes: &Attributes,
        bytes: u64,
        content: &mut dyn Read,
    ) -> Result<()> {
        self.make_way(parent, name)?;
        let number = self.space.allocate_inode(false)?;
        let mut inode = new_inode(file_mode::S_IFREG, attributes);
        set_extended(&mut self.space, number, &mut inode, &attributes.extended)?;
        let runs = self.space.write_content(content, bytes)?;
        inode.set_file_size(bytes);
        set_extents(&mut self.space, &mut inode, &runs)?;
        self.put_inode(number, inode)?;
        self.set_entry(parent, name, Entry { inode: number, kind: 1 })
    }

    /// Puts a symbolic link.
    pub(in crate::image) fn make_symlink(&mut self, parent: u32, name: &[u8], attributes: &Attributes, target: &[u8]) -> Result<()> {
        if target.is_empty() || target.len() >= BLOCK_BYTES || target.contains(&0) {
            return Err(refused(format!(
                "the symbolic link '{}' has a target of {} bytes: it must be 1 to 4095",
                shown(name),
                target.len()
            )));
        }
        self.make_way(parent, name)?;
        let number = self.space.allocate_inode(false)?;
        let mut inode = new_inode(file_mode::S_IFLNK, &Attributes { permissions: 0o777, ..attributes.clone() });
        set_extended(&mut self.space, number, &mut inode, &attributes.extended)?;
        if target.len() < INLINE_TARGET_BYTES {
            inode.block[..target.len()].copy_from_slice(target);
        } else {
            let runs = self.space.write_content(&mut &target[..], wide(target.len()))?;
            set_extents(&mut self.space, &mut inode, &runs)?;
        }
        inode.set_file_size(wide(target.len()));
        self.put_inode(number, inode)?;
        self.set_entry(parent, name, Entry { inode: number, kind: SYMLINK })
    }

    /// Puts a device or a pipe.
    pub(in crate::image) fn make_special(&mut self, parent: u32, name: &[u8], attributes: &Attributes, kind: Kind) -> Result<()> {
        self.make_way(parent, name)?;
        let number = self.space.allocate_inode(false)?;
        let mut inode = new_inode(kind.mode(), attributes);
        set_extended(&mut self.space, number, &mut inode, &attributes.extended)?;
        kind.write_device(&mut inode);
        self.put_inode(number, inode)?;
        let kind = match kind {
            Kind::Character { .. } => 3,
            Kind::Block { .. } => 4,
            Kind::Fifo => 5,
        };
        self.set_entry(parent, name, Entry { inode: number, kind })
    }

    /// Gives a file another name.
    pub(in crate::image) fn make_link(&mut self, parent: u32, name: &[u8], target: &[&[u8]]) -> Result<()> {
        let missing = || refused(format!("'{}' is a hard link to something that is not there, or is a directory", shown(name)));
        let (last, above) = target.split_last().ok_or_else(missing)?;
        let target_parent = self.directory_at(above)?;
        let entry = self.entry(target_parent, last)?.filter(|entry| !entry.is_directory()).ok_or_else(missing)?;
        if self.entry(parent, name)?.is_some_and(|there| there.inode == entry.inode) {
            self.seen.insert(entry.inode);
            return Ok(());
        }
        self.make_way(parent, name)?;
        if self.inode(entry.inode)?.links_count >= LINKS_MAX {
            return Err(refused(format!("'{}' is one hard link too many: a file has {LINKS_MAX} names at most", shown(name))));
        }
        self.change_inode(entry.inode, |inode| inode.links_count += 1)?;
        self.set_entry(parent, name, entry)
    }

    /// Removes what has the name of something that is going to be put.
    fn make_way(&mut self, parent: u32, name: &[u8]) -> Result<()> {
        match self.entry(parent, name)? {
            Some(entry) if entry.inode == LOST_AND_FOUND => {
                Err(refused("it would stand in the place of the directory that every ext4 file system has under this name"))
            }
            _ => self.remove(parent, name),
        }
    }

    /// Removes what has this name, and all in it. Nothing happens if there is nothing, and nothing to `/lost+found`.
    pub(in crate::image) fn remove(&mut self, parent: u32, name: &[u8]) -> Result<()> {
        let Some(entry) = self.entry(parent, name)?.filter(|entry| entry.inode != LOST_AND_FOUND) else { return Ok(()) };
        self.directory(parent)?.entries.remove(name);
        self.directories.note_change(parent, 0);
        if entry.is_directory() {
            self.count_link(parent, false)?;
        }
        let mut gone = vec![entry];
        while let Some(entry) = gone.pop() {
            if entry.is_directory() {
                gone.extend(self.directory(entry.inode)?.entries.values());
                self.directories.forget(entry.inode);
            } else if self.inode(entry.inode)?.links_count > 1 {
                self.change_inode(entry.inode, |inode| inode.links_count -= 1)?;
                continue;
            }
            self.free(entry)?;
        }
        Ok(())
    }

    fn free(&mut self, entry: Entry) -> Result<()> {
        let inode = self.inode(entry.inode)?.clone();
        let (runs, leaves) = self.extents(&inode)?;
        let extended = (inode.xattr_block_lo != 0).then_some(Run::one(inode.xattr_block_lo));
        self.space.free(runs.into_iter().chain(leaves).chain(extended));
        self.space.groups.free_inode(entry.inode, entry.is_directory());
        // A deleted inode is all zero: when it was deleted must not show.
        self.put_inode(entry.inode, arcbox_ext4::types::Inode::default())?;
        self.seen.remove(entry.inode);
        Ok(())
    }

    /// Whiteout: removes what the layers below have under this name; what this layer put stays.
    pub(in crate::image) fn remove_lower(&mut self, parent: u32, name: &[u8]) -> Result<()> {
        match self.entry(parent, name)? {
            Some(entry) if self.seen.contains(entry.inode) && entry.is_directory() => self.clear_lower(entry.inode),
            Some(entry) if !self.seen.contains(entry.inode) => self.remove(parent, name),
            _ => Ok(()),
        }
    }

    /// Opaque whiteout: removes all that the layers below have in a directory.
    pub(in crate::image) fn clear_lower(&mut self, directory: u32) -> Result<()> {
        let mut left = vec![directory];
        while let Some(at) = left.pop() {
            self.make_room_for_names()?;
            let entries: Vec<_> = self.directory(at)?.entries.iter().map(|(name, entry)| (name.clone(), *entry)).collect();
            for (name, entry) in entries {
                if !self.seen.contains(entry.inode) {
                    self.remove(at, &name)?;
                } else if entry.is_directory() {
                    left.push(entry.inode);
                }
            }
        }
        Ok(())
    }
}
