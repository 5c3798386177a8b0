//! The journal: the log of changes of shape and presence since the last checkpoint.
//!
//! # Crash ordering
//! - One barrier round is one frame. A round begins only after the one before it ended, so every frame but the last is
//!   known to be backed by durable data; only the last one has to be verified against the blocks it names.
//! - A checkpoint writes the whole state to the next file, syncs it and its name, and only then points the superblock at
//!   it. Until the superblock is durable the old file counts; the new one is overwritten by the next try.
//! - After a crash the state is written anew before anything else is: frames behind a torn one are never believed later.
//! - So a whole frame behind one that does not verify means damage, not a crash, and the store is refused: what was flushed must
//!   not vanish in silence. For the same reason a store that is closed in order gets a checkpoint, whose end cannot be mistaken.
mod load;
mod torn;

use std::io;
use std::path::Path;
use std::sync::Arc;

pub use load::{Loaded, load, no_store};

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Frame, FrameKind, Record, SUPERBLOCK_BYTES, StorePaths, Superblock, Writer, encode_frame, frame_bytes};
use crate::io::{Disk, DiskFile, DiskFileExt, IoMode, OpenMode};
use crate::limits::Limits;

/// The current journal file, open for appending.
pub struct Journal {
    disk: Arc<dyn Disk>,
    paths: StorePaths,
    superblock: Superblock,
    file: Arc<dyn DiskFile>,
    sequence: u64,
    tail_bytes: u64,
    capacity_bytes: u64,
    state_bytes: u64,
    limits: Limits,
}

fn io_error(action: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let context = format!("cannot {action} {}", path.display());
    move |error| Error::io(context, error)
}

impl Journal {
    /// Makes the files of an empty store, or of a recovered one whose `state` replaces what `superblock` points at.
    /// The frame after `sequence` is the first.
    ///
    /// # Errors
    /// An I/O error; then the superblock on disk still points at the old journal, or at none.
    pub fn start(
        disk: Arc<dyn Disk>,
        paths: StorePaths,
        superblock: Superblock,
        sequence: u64,
        state: impl Iterator<Item = Record>,
        limits: Limits,
    ) -> Result<Self> {
        let mut next = superblock;
        next.journal += 1;
        next.generation += 1;
        let path = paths.journal(next.journal);
        let written = Self::write_state(&*disk, &path, &next, sequence, state, &limits).and_then(|written| {
            disk.sync_dir(paths.root()).map_err(io_error("sync", paths.root()))?;
            Ok((written, Self::open_superblock(&*disk, &paths)?))
        });
        let ((file, sequence, tail_bytes), slots) = written.inspect_err(|_| {
            // A file that nothing will point at is of no use to anybody, and its space may be needed.
            let _ = disk.remove(&path);
        })?;
        // It is not known which journal counts then, so that is never a mere lack of space.
        let undecided = |error: Error| Error::new(ErrorKind::Io, error.to_string());
        Self::write_superblock(&*disk, &paths, &*slots, &next).map_err(undecided)?;
        if superblock.journal == 0 {
            // A new store writes both slots: an empty one tells that a crash came before the store was there.
            next.generation += 1;
            Self::write_superblock(&*disk, &paths, &*slots, &next).map_err(undecided)?;
        } else {
            // An older file left behind is swept when the store is opened.
            let _ = disk.remove(&paths.journal(superblock.journal));
        }
        let capacity_bytes = tail_bytes + limits.journal_reserve_bytes;
        Ok(Self { disk, paths, superblock: next, file, sequence, tail_bytes, capacity_bytes, state_bytes: tail_bytes, limits })
    }

    fn write_state(
        disk: &dyn Disk,
        path: &Path,
        superblock: &Superblock,
        mut sequence: u64,
        state: impl Iterator<Item = Record>,
        limits: &Limits,
    ) -> Result<(Arc<dyn DiskFile>, u64, u64)> {
        let file = disk.open(path, OpenMode::Create, IoMode::Buffered).map_err(io_error("create", path))?;
        file.set_size(0).map_err(io_error("truncate", path))?;
        let mut tail = 0;
        let mut put = |payload: &[u8], kind| -> Result<()> {
            if payload.len() > limits.frame_payload_bytes_max {
                let message = format!("a part of the state has {} bytes, which no program would read again", payload.len());
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
            sequence += 1;
            let bytes = encode_frame(&superblock.store_id, superblock.journal, Frame { sequence, kind, payload });
            file.write_all_at(&bytes, tail).map_err(io_error("write", path))?;
            tail += bytes.len() as u64;
            Ok(())
        };
        let mut writer = Writer::default();
        for record in state {
            record.encode(&mut writer);
            if writer.bytes.len() >= limits.state_frame_bytes {
                put(&writer.bytes, FrameKind::State)?;
                writer.bytes.clear();
            }
        }
        put(&writer.bytes, FrameKind::StateEnd)?;
        file.allocate(tail..tail + limits.journal_reserve_bytes).map_err(io_error("reserve space for", path))?;
        file.sync_data().map_err(io_error("sync", path))?;
        Ok((file, sequence, tail))
    }

    fn open_superblock(disk: &dyn Disk, paths: &StorePaths) -> Result<Arc<dyn DiskFile>> {
        let path = paths.superblock();
        disk.open(&path, OpenMode::Create, IoMode::Buffered).map_err(io_error("open", &path))
    }

    fn write_superblock(disk: &dyn Disk, paths: &StorePaths, file: &dyn DiskFile, superblock: &Superblock) -> Result<()> {
        let path = paths.superblock();
        let fresh = file.size_bytes().map_err(io_error("read the size of", &path))? < 2 * SUPERBLOCK_BYTES as u64;
        file.write_all_at(&superblock.encode(), superblock.slot_offset()).map_err(io_error("write", &path))?;
        file.sync_data().map_err(io_error("sync", &path))?;
        if fresh {
            disk.sync_dir(paths.root()).map_err(io_error("sync", paths.root()))?;
        }
        Ok(())
    }

    /// Writes the whole state to a new file and makes it the journal.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] leaves the old file in use; after any other error nothing more may be appended.
    pub fn checkpoint(&mut self, state: impl Iterator<Item = Record>) -> Result<()> {
        let next = Self::start(Arc::clone(&self.disk), self.paths.clone(), self.superblock, self.sequence, state, self.limits)?;
        *self = next;
        Ok(())
    }

    /// Writes a frame behind the last one; it is durable after the next sync of [`Journal::file`].
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] when even the reserve is used up.
    pub fn append(&mut self, payload: &[u8]) -> Result<()> {
        if payload.len() > self.limits.frame_payload_bytes_max {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a barrier round has too many changes for one journal frame; flush more often",
            ));
        }
        self.make_room(frame_bytes(payload.len()))?;
        let frame = Frame { sequence: self.sequence + 1, kind: FrameKind::Round, payload };
        let bytes = encode_frame(&self.superblock.store_id, self.superblock.journal, frame);
        let path = self.paths.journal(self.superblock.journal);
        self.file.write_all_at(&bytes, self.tail_bytes).map_err(io_error("write", &path))?;
        self.sequence += 1;
        self.tail_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Takes space so that frames of `bytes` in all can be appended without touching the reserve.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`]; nothing has changed then.
    pub fn reserve(&mut self, bytes: u64) -> Result<()> {
        self.make_room(bytes + self.limits.journal_reserve_bytes)
    }

    fn make_room(&mut self, bytes: u64) -> Result<()> {
        let needed = self.tail_bytes + bytes;
        if needed > self.capacity_bytes {
            let grow = self.limits.journal_grow_bytes;
            let capacity = (needed + grow).next_multiple_of(grow);
            let path = self.paths.journal(self.superblock.journal);
            self.file.allocate(self.capacity_bytes..capacity).map_err(io_error("reserve space for", &path))?;
            self.capacity_bytes = capacity;
        }
        Ok(())
    }

    /// The file to sync.
    pub fn file(&self) -> Arc<dyn DiskFile> {
        Arc::clone(&self.file)
    }

    /// Number of the file.
    pub fn number(&self) -> u64 {
        self.superblock.journal
    }

    /// Bytes appended since the checkpoint.
    pub fn log_bytes(&self) -> u64 {
        self.tail_bytes - self.state_bytes
    }

    /// Bytes of the state at the last checkpoint.
    pub fn state_bytes(&self) -> u64 {
        self.state_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::BlockSize;
    use crate::io::SystemDisk;

    /// A try that ended before the superblock pointed at it used the same number, so its frames verify.
    #[test]
    fn a_new_journal_has_nothing_of_an_earlier_try_with_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(SystemDisk::new());
        let paths = StorePaths::new(dir.path());
        let superblock = Superblock { block_size: BlockSize::DEFAULT, generation: 0, store_id: [1; 16], journal: 0 };
        let start = || Journal::start(Arc::clone(&disk), paths.clone(), superblock, 0, std::iter::empty(), Limits::DEFAULT).unwrap();
        let mut writer = Writer::default();
        Record::Closed.encode(&mut writer);
        let mut lost = start();
        lost.append(&writer.bytes).unwrap();
        assert_eq!(load(&*disk, &paths, &Limits::DEFAULT).unwrap().rounds, [[Record::Closed]]);
        disk.remove(&paths.superblock()).unwrap();
        let state_bytes = start().state_bytes();
        assert_eq!(state_bytes, lost.state_bytes(), "the frame of the lost one is where the next frame will be");
        assert!(load(&*disk, &paths, &Limits::DEFAULT).unwrap().rounds.is_empty());
    }

    /// As a program wrote it that did not cut the presence of a layer.
    #[test]
    fn a_state_in_a_frame_larger_than_any_that_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(SystemDisk::new());
        let paths = StorePaths::new(dir.path());
        let superblock = Superblock { block_size: BlockSize::DEFAULT, generation: 0, store_id: [1; 16], journal: 0 };
        let present = (0..100_000u32).map(|block| block * 3).collect();
        let (zeroed, marked) = Default::default();
        let state =
            [Record::Presence(crate::format::PresenceRecord { layer: crate::ids::LayerId(1), more: false, present, zeroed, marked })];
        let old = Limits { state_frame_bytes: usize::MAX, ..Limits::DEFAULT };
        let mut journal = Journal::start(Arc::clone(&disk), paths.clone(), superblock, 0, state.clone().into_iter(), old).unwrap();
        let mut writer = Writer::default();
        Record::Closed.encode(&mut writer);
        journal.append(&writer.bytes).unwrap();
        let small = Limits { frame_payload_bytes_max: 1 << 10, ..Limits::DEFAULT };
        let loaded = load(&*disk, &paths, &small).unwrap();
        assert_eq!((&loaded.state[..], &loaded.rounds[..]), (&state[..], &[vec![Record::Closed]][..]));
        assert_eq!(loaded.bytes, (journal.state_bytes(), journal.state_bytes() + journal.log_bytes()));
        let path = paths.journal(1);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[5000] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let refused = load(&*disk, &paths, &small).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
        let refused = Journal::start(disk, paths, superblock, 0, state.into_iter(), small).err().unwrap();
        assert!(refused.to_string().contains("no program would read"), "{refused}");
    }
}
