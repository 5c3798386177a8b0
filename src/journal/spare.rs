//! The file that the next journal is written into.
//!
//! Its space is taken in advance, so a checkpoint, and opening after a crash, need none from the file system. When a checkpoint has
//! switched to it, the journal before becomes the next spare: nothing is freed and taken again, which a full file system may refuse
//! although the bytes are there.
//!
//! # Invariants
//! - The contents of a spare are never believed: frames of an earlier journal have its number in their checksums, and those of a failed
//!   try to write this one are parts of a state, which count for nothing behind a state that is whole.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::format::StorePaths;
use crate::io::{Disk, DiskFile, IoMode, OpenMode};

/// A file with space of its own.
pub struct Spare {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    bytes: u64,
}

impl Spare {
    /// The spare of a store whose journal is `current`: the one that was kept, or a journal that a crash left behind.
    ///
    /// # Errors
    /// There is none, or it cannot be opened.
    pub fn find(disk: &Arc<dyn Disk>, paths: &StorePaths, current: u64) -> io::Result<Self> {
        let kept = paths.reserve();
        let names = disk.list(paths.root())?;
        if !names.iter().any(|name| paths.root().join(name) == kept) {
            let left = names.iter().filter_map(|name| StorePaths::journal_number(name)).filter(|number| *number != current);
            let left = left.max().ok_or(io::ErrorKind::NotFound)?;
            disk.rename(&paths.journal(left), &kept)?;
        }
        Self::open(disk, kept, OpenMode::Write)
    }

    /// A new one, without space, for the journal with the number `next`. Where something else has the spare's name, it has the
    /// name of that journal from the beginning.
    ///
    /// # Errors
    /// An I/O error, no space for its name.
    pub fn create(disk: &Arc<dyn Disk>, paths: &StorePaths, next: u64) -> io::Result<Self> {
        Self::open(disk, paths.reserve(), OpenMode::Create).or_else(|error| {
            let is_other = matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory);
            if is_other { Self::open(disk, paths.journal(next), OpenMode::Create) } else { Err(error) }
        })
    }

    fn open(disk: &Arc<dyn Disk>, path: PathBuf, mode: OpenMode) -> io::Result<Self> {
        let file = disk.open(&path, mode, IoMode::Buffered)?;
        let mut spare = Self { disk: Arc::clone(disk), path, file, bytes: 0 };
        // The length alone does not tell whether the space is there.
        let bytes = spare.file.size_bytes()?;
        let _ = spare.grow(bytes);
        Ok(spare)
    }

    /// Bytes that it has space for.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes space for `bytes` bytes in all.
    ///
    /// # Errors
    /// No space; what it has stays.
    pub fn grow(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > self.bytes {
            self.file.allocate(self.bytes..bytes)?;
            self.bytes = bytes;
        }
        Ok(())
    }

    /// Gives back the space behind byte `bytes`.
    pub fn shrink(&mut self, bytes: u64) {
        if bytes < self.bytes && self.file.set_size(bytes).is_ok() {
            self.bytes = bytes;
        }
    }

    /// Gives it the name of a journal.
    ///
    /// # Errors
    /// An I/O error; it keeps its name.
    pub fn rename(&mut self, path: PathBuf) -> io::Result<()> {
        if path != self.path {
            self.disk.rename(&self.path, &path)?;
            self.path = path;
        }
        Ok(())
    }

    /// Makes the next spare of a journal that was replaced. Without it the space of the file is given back.
    ///
    /// # Errors
    /// An I/O error: there is no spare.
    pub fn of_journal(disk: &Arc<dyn Disk>, paths: &StorePaths, number: u64) -> io::Result<Self> {
        let path = paths.journal(number);
        let renamed = disk.rename(&path, &paths.reserve());
        renamed.and_then(|()| Self::open(disk, paths.reserve(), OpenMode::Write)).inspect_err(|_| drop(disk.remove(&path)))
    }
}
