//! A disk over another one that is only read: changes stay in memory, and are gone with it.
//!
//! A store that is opened read-only recovers on such a disk, by the same code as any other.
//!
//! # Invariants
//! - The disk below is asked for its shared lock, for names and for bytes, and for nothing that changes it.
//! - A file below is read where it was not changed. The shared lock ensures that no other process changes it meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Access, Disk, DiskFile, DiskFileExt, DiskSpace, IoMode, OpenMode};
use crate::place::{length, wide};
use crate::sync::{Mutex, Rank};

/// Unit of what is kept in memory.
const PAGE_BYTES: usize = 4096;
const PAGE: u64 = wide(PAGE_BYTES);

/// See the module.
pub struct OverlayDisk {
    below: Arc<dyn Disk>,
    /// Files that were opened for writing or renamed, and names that were removed (`None`).
    names: Mutex<HashMap<PathBuf, Option<Arc<OverlayFile>>>>,
}

/// A file of which changed pages are in memory.
struct OverlayFile {
    /// `None`: it was made here.
    below: Option<Arc<dyn DiskFile>>,
    changes: Mutex<Changes>,
}

struct Changes {
    pages: BTreeMap<u64, Box<[u8; PAGE_BYTES]>>,
    size_bytes: u64,
    /// Bytes from here on are not those below.
    below_end: u64,
    /// Something is not as it is below.
    changed: bool,
}

impl OverlayDisk {
    pub fn new(below: Arc<dyn Disk>) -> Self {
        Self { below, names: Mutex::ranked(Rank::OverlayNames, HashMap::new()) }
    }

    /// A file as it is now, if there is one.
    fn find(&self, path: &Path, io: IoMode) -> io::Result<Arc<dyn DiskFile>> {
        match self.names.lock().get(path) {
            Some(Some(file)) => Ok(Arc::clone(file) as _),
            Some(None) => Err(io::ErrorKind::NotFound.into()),
            None => self.below.open(path, OpenMode::Read, io),
        }
    }

    /// The overlay of a file, in which changes are kept in memory.
    fn change(&self, path: &Path, io: IoMode) -> io::Result<Arc<OverlayFile>> {
        let mut names = self.names.lock();
        match names.get(path) {
            Some(Some(file)) => return Ok(Arc::clone(file)),
            Some(None) => return Err(io::ErrorKind::NotFound.into()),
            None => {}
        }
        let below = self.below.open(path, OpenMode::Read, io)?;
        let file = Arc::new(OverlayFile::over(Some(below))?);
        names.insert(path.to_owned(), Some(Arc::clone(&file)));
        Ok(file)
    }
}

impl Disk for OverlayDisk {
    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        self.below.absolute(path)
    }

    fn create_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn access(&self, directory: &Path) -> io::Result<Access> {
        self.below.access(directory)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut list = self.below.list(path)?;
        for (name, file) in self.names.lock().iter().filter(|(name, _)| name.parent() == Some(path)) {
            let Some(name) = name.file_name().and_then(|name| name.to_str()) else { continue };
            list.retain(|other| other != name);
            list.extend(file.as_ref().map(|_| name.to_owned()));
        }
        Ok(list)
    }

    fn open(&self, path: &Path, mode: OpenMode, io: IoMode) -> io::Result<Arc<dyn DiskFile>> {
        if mode == OpenMode::Read {
            return self.find(path, io);
        }
        match self.change(path, io) {
            Ok(_) if mode == OpenMode::CreateNew => Err(io::ErrorKind::AlreadyExists.into()),
            Ok(file) => Ok(file as _),
            Err(error) if error.kind() == io::ErrorKind::NotFound && mode != OpenMode::Write => {
                let file = Arc::new(OverlayFile::over(None)?);
                self.names.lock().insert(path.to_owned(), Some(Arc::clone(&file)));
                Ok(file as _)
            }
            Err(error) => Err(error),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.find(path, IoMode::Buffered)?;
        self.names.lock().insert(path.to_owned(), None);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let file = self.change(from, IoMode::Buffered)?;
        let mut names = self.names.lock();
        names.insert(from.to_owned(), None);
        names.insert(to.to_owned(), Some(file));
        Ok(())
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self, _files: &[Arc<dyn DiskFile>]) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, path: &Path, _owner: &str) -> io::Result<Box<dyn Send + Sync>> {
        self.below.lock_shared(path)
    }

    fn space(&self, directory: &Path) -> io::Result<DiskSpace> {
        self.below.space(directory)
    }
}

impl OverlayFile {
    fn over(below: Option<Arc<dyn DiskFile>>) -> io::Result<Self> {
        let size_bytes = below.as_ref().map_or(Ok(0), |below| below.size_bytes())?;
        let changes = Changes { pages: BTreeMap::new(), size_bytes, below_end: size_bytes, changed: false };
        Ok(Self { below, changes: Mutex::ranked(Rank::OverlayChanges, changes) })
    }

    /// The bytes of a page as they are now.
    fn page(&self, changes: &Changes, number: u64) -> io::Result<Box<[u8; PAGE_BYTES]>> {
        if let Some(page) = changes.pages.get(&number) {
            return Ok(page.clone());
        }
        let mut page = Box::new([0; PAGE_BYTES]);
        let start = number * PAGE;
        let known = length(changes.below_end.saturating_sub(start)).min(PAGE_BYTES);
        if let (Some(below), 1..) = (&self.below, known) {
            // Direct I/O wants whole pages in aligned memory.
            let mut whole = super::AlignedBuffer::zeroed(PAGE_BYTES);
            match below.read_exact_at(&mut whole, start) {
                Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
                _ => page[..known].copy_from_slice(&whole[..known]),
            }
        }
        Ok(page)
    }

    /// Changes the bytes of a range page by page.
    fn edit(&self, range: Range<u64>, mut edit: impl FnMut(&mut [u8], u64)) -> io::Result<()> {
        let mut changes = self.changes.lock();
        let mut at = range.start;
        while at < range.end {
            let (number, within) = (at / PAGE, length(at % PAGE));
            let count = length(range.end - at).min(PAGE_BYTES - within);
            let mut page = self.page(&changes, number)?;
            edit(&mut page[within..within + count], at);
            changes.pages.insert(number, page);
            changes.changed = true;
            at += wide(count);
        }
        Ok(())
    }
}

impl DiskFile for OverlayFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let changes = self.changes.lock();
        if let (Some(below), false) = (&self.below, changes.changed) {
            drop(changes);
            return below.read_at(buffer, offset);
        }
        let left = length(changes.size_bytes.saturating_sub(offset));
        let count = buffer.len().min(left);
        let mut done = 0;
        while done < count {
            let at = offset + wide(done);
            let within = length(at % PAGE);
            let part = (count - done).min(PAGE_BYTES - within);
            let page = self.page(&changes, at / PAGE)?;
            buffer[done..done + part].copy_from_slice(&page[within..within + part]);
            done += part;
        }
        Ok(count)
    }

    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.below {
            Some(below) if !self.changes.lock().changed => below.read_cached_at(buffer, offset),
            _ => self.read_at(buffer, offset),
        }
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        let end = offset.checked_add(wide(buffer.len())).ok_or(io::ErrorKind::InvalidInput)?;
        self.edit(offset..end, |bytes, at| {
            let from = length(at - offset);
            bytes.copy_from_slice(&buffer[from..from + bytes.len()]);
        })?;
        let mut changes = self.changes.lock();
        changes.size_bytes = changes.size_bytes.max(end);
        Ok(buffer.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.changes.lock().size_bytes)
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        if !bytes.is_multiple_of(PAGE) {
            let end = bytes.next_multiple_of(PAGE);
            self.edit(bytes..end, |tail, _| tail.fill(0))?;
        }
        let mut changes = self.changes.lock();
        changes.pages.split_off(&bytes.div_ceil(PAGE));
        (changes.size_bytes, changes.below_end, changes.changed) = (bytes, changes.below_end.min(bytes), true);
        Ok(())
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        let mut changes = self.changes.lock();
        if range.end > changes.size_bytes {
            (changes.size_bytes, changes.changed) = (range.end, true);
        }
        Ok(())
    }

    /// Keeps the zeros in memory, so it is for the small files of a store: data files are not punched without writing to the store.
    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        let end = range.end.min(self.changes.lock().size_bytes);
        self.edit(range.start..end, |bytes, _| bytes.fill(0))
    }

    fn next_allocated(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let changes = self.changes.lock();
        match &self.below {
            Some(below) if !changes.changed => below.next_allocated(offset),
            _ => Ok((offset < changes.size_bytes).then_some(offset..changes.size_bytes)),
        }
    }

    fn raw_fd(&self) -> Option<RawFd> {
        self.below.as_ref().filter(|_| !self.changes.lock().changed).and_then(|below| below.raw_fd())
    }

    fn is_direct(&self) -> bool {
        self.below.as_ref().is_some_and(|below| below.is_direct())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::SystemDisk;

    fn read(file: &dyn DiskFile) -> Vec<u8> {
        let mut bytes = vec![9; 3 * PAGE_BYTES];
        let count = file.read_at(&mut bytes, 0).unwrap();
        bytes.truncate(count);
        bytes
    }

    #[test]
    fn changes_are_seen_here_and_never_below() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("f"), dir.path().join("g"));
        std::fs::write(&path, [1; 5000]).unwrap();
        let disk = OverlayDisk::new(Arc::new(SystemDisk::new()));
        let file = disk.open(&path, OpenMode::Write, IoMode::Buffered).unwrap();
        assert!(file.raw_fd().is_some() && read(&*file) == [1; 5000]);
        file.write_all_at(&[2; 10], 4090).unwrap();
        file.set_size(4098).unwrap();
        file.allocate(0..6000).unwrap();
        file.punch(0..2).unwrap();
        let expected = [vec![0; 2], vec![1; 4088], vec![2; 8], vec![0; 1902]].concat();
        assert!(read(&*file) == expected && file.raw_fd().is_none());
        disk.rename(&path, &other).unwrap();
        assert_eq!(disk.list(dir.path()).unwrap(), ["g"]);
        assert!(read(&*disk.open(&other, OpenMode::Read, IoMode::Buffered).unwrap()) == expected);
        assert_eq!(disk.open(&path, OpenMode::Write, IoMode::Buffered).err().unwrap().kind(), io::ErrorKind::NotFound);
        disk.open(&path, OpenMode::CreateNew, IoMode::Buffered).unwrap();
        disk.remove(&other).unwrap();
        assert_eq!(disk.list(dir.path()).unwrap(), ["f"]);
        assert_eq!(std::fs::read(&path).unwrap(), [1; 5000]);
        assert!(!other.exists());
    }
}
