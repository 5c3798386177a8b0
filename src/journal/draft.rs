//! The next journal, while it is written beside the current one.
//!
//! ```text
//! state frames | an empty state frame | one state frame for each round since the state was taken | end of state
//! ```
//!
//! # Invariants
//! - The copies of rounds are parts of the state: they are not verified block by block at recovery, so a round is copied only for a switch
//!   that comes after its end.
//! - A try that does not come to its switch has written no round, so nothing in the file is ever taken for one.

use std::sync::Arc;

use super::frames::read_frame;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Frame, FrameKind, Record, SUPERBLOCK_BYTES, StorePaths, Superblock, Writer, decode_frame, encode_frame};
use crate::io::{Disk, DiskFile, DiskFileExt, IoMode, OpenMode};
use crate::limits::Limits;
use crate::place::wide;

/// Takes space so that the file has this many bytes in all.
pub type Grow<'a> = dyn Fn(u64) -> std::io::Result<()> + 'a;

/// The rounds of the current journal that the next one does not have yet.
pub(super) struct Tail {
    pub file: Arc<dyn DiskFile>,
    pub superblock: Superblock,
    /// Where the next of them begins.
    pub at: u64,
}

/// The next journal.
pub struct Draft<'a> {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) paths: StorePaths,
    pub(super) limits: Limits,
    /// Points at the next journal.
    pub(super) superblock: Superblock,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) grow: &'a Grow<'a>,
    /// Number of the last frame.
    pub(super) sequence: u64,
    pub(super) end: u64,
    pub(super) payload: Writer,
    pub(super) tail: Option<Tail>,
    /// Whether copies of rounds may follow.
    pub(super) has_all: bool,
    /// Records of shape at the beginning of the tail that the state has already.
    pub(super) skip: usize,
    pub(super) slots: Option<Arc<dyn DiskFile>>,
}

impl Draft<'_> {
    /// Adds records to the state.
    ///
    /// # Errors
    /// An I/O error, no space.
    pub fn put(&mut self, records: impl IntoIterator<Item = Record>) -> Result<()> {
        for record in records {
            record.encode(&mut self.payload);
            if self.payload.bytes.len() >= self.limits.state_frame_bytes {
                self.put_frame(FrameKind::State)?;
            }
        }
        Ok(())
    }

    fn put_frame(&mut self, kind: FrameKind) -> Result<()> {
        let payload = &self.payload.bytes[..];
        if payload.len() > self.limits.frame_payload_bytes_max {
            let message = format!("a part of the state has {} bytes, which no program would read again", payload.len());
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let frame = Frame { sequence: self.sequence + 1, kind, payload };
        let bytes = encode_frame(&self.superblock.store_id, self.superblock.journal, frame);
        let end = self.end + wide(bytes.len());
        let written = (self.grow)(end).and_then(|()| self.file.write_all_at(&bytes, self.end));
        written.map_err(|error| Error::io("cannot write the state", error))?;
        self.payload.bytes.clear();
        (self.sequence, self.end) = (self.sequence + 1, end);
        Ok(())
    }

    /// The first `records` of shape in the rounds to come are in the state: they were queued when it was taken.
    pub fn skip_shapes(&mut self, records: usize) {
        self.skip = records;
    }

    /// Bytes that were written so far.
    pub fn written(&self) -> u64 {
        self.end
    }

    /// Bytes of rounds that are still to be copied, of a current journal that ends at `end`.
    pub fn behind(&self, end: u64) -> u64 {
        self.tail.as_ref().map_or(0, |tail| end.saturating_sub(tail.at))
    }

    /// Copies the rounds of the current journal up to its byte `end`.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`]: the current journal cannot be read. An I/O error, no space.
    pub fn follow(&mut self, end: u64) -> Result<()> {
        self.begin_copies()?;
        while let Some(payload) = self.next_round(end)? {
            self.put_round(payload)?;
        }
        Ok(())
    }

    /// Adds rounds that were appended since the draft began, none of which was copied.
    ///
    /// # Errors
    /// An I/O error, no space.
    pub fn put_rounds(&mut self, rounds: Vec<Vec<u8>>) -> Result<()> {
        self.begin_copies()?;
        rounds.into_iter().try_for_each(|payload| self.put_round(payload))
    }

    fn begin_copies(&mut self) -> Result<()> {
        if !self.has_all {
            if !self.payload.bytes.is_empty() {
                self.put_frame(FrameKind::State)?;
            }
            self.put_frame(FrameKind::State)?;
            self.has_all = true;
        }
        Ok(())
    }

    /// The next round that was not copied.
    fn next_round(&mut self, end: u64) -> Result<Option<Vec<u8>>> {
        let Some(tail) = self.tail.as_mut().filter(|tail| tail.at < end) else { return Ok(None) };
        let Superblock { store_id, journal, .. } = tail.superblock;
        let unreadable = |error: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Corrupt, format!("the journal cannot be read at offset {}: {error}", tail.at))
        };
        let bytes = read_frame(&*tail.file, tail.at, self.limits.frame_payload_bytes_max).map_err(|error| unreadable(&error))?;
        let payload = decode_frame(&store_id, journal, &bytes).map_err(|error| unreadable(&error))?.payload.to_vec();
        tail.at += crate::format::frame_bytes(payload.len());
        Ok(Some(payload))
    }

    /// Adds a round, without those records of shape that the state has.
    fn put_round(&mut self, payload: Vec<u8>) -> Result<()> {
        if self.skip == 0 {
            self.payload.bytes = payload;
            return self.put_frame(FrameKind::State);
        }
        for record in Record::decode_all(&payload).map_err(|error| Error::new(ErrorKind::Io, format!("the journal: {error}")))? {
            if self.skip > 0 && matches!(record, Record::Shape(_)) {
                self.skip -= 1;
            } else {
                record.encode(&mut self.payload);
            }
        }
        self.put_frame(FrameKind::State)
    }

    /// Ends the state.
    ///
    /// # Errors
    /// An I/O error, no space.
    pub fn end(&mut self, last: Option<Record>) -> Result<()> {
        last.into_iter().for_each(|record| record.encode(&mut self.payload));
        self.put_frame(FrameKind::StateEnd)?;
        // Where there is space the new journal has its whole reserve; the caller says whether it needs that.
        let _ = (self.grow)(self.end + self.limits.journal_reserve_bytes);
        Ok(())
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// An I/O error. Nothing depends on it where it fails: the next try writes every byte again before it syncs, so a lack of space is no
    /// more than that here.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|error| Error::io("cannot sync the state", error))
    }

    /// Makes the name of the file durable, and opens the superblock.
    ///
    /// # Errors
    /// An I/O error; a lack of descriptors.
    pub fn sync_name(&mut self) -> Result<()> {
        sync_names(&*self.disk, &self.paths)?;
        self.slots = Some(open_superblock(&*self.disk, &self.paths)?);
        Ok(())
    }

    /// Lets the superblock point at this journal, which is durable with its name.
    ///
    /// # Errors
    /// An I/O error. It is not known which journal counts then, so that is never a mere lack of space.
    pub fn point(&mut self) -> Result<()> {
        let slots = self.slots.as_ref().ok_or_else(|| Error::new(ErrorKind::Io, "the name of the next journal is not durable"))?;
        let undecided = |error: Error| Error::new(ErrorKind::Io, error.to_string());
        write_superblock(&*self.disk, &self.paths, &**slots, &self.superblock).map_err(undecided)?;
        if self.superblock.journal == 1 {
            // A new store writes both slots: an empty one tells that a crash came before the store was there.
            self.superblock.generation += 1;
            write_superblock(&*self.disk, &self.paths, &**slots, &self.superblock).map_err(undecided)?;
        }
        Ok(())
    }
}

/// Makes the names of journals and of the superblock durable.
pub(super) fn sync_names(disk: &dyn Disk, paths: &StorePaths) -> Result<()> {
    disk.sync_dir(paths.root()).map_err(|error| Error::sync_dir(format!("cannot sync {}", paths.root().display()), error))
}

pub(super) fn open_superblock(disk: &dyn Disk, paths: &StorePaths) -> Result<Arc<dyn DiskFile>> {
    let path = paths.superblock();
    disk.open(&path, OpenMode::Create, IoMode::Buffered).map_err(|error| Error::io(format!("cannot open {}", path.display()), error))
}

pub(super) fn write_superblock(disk: &dyn Disk, paths: &StorePaths, file: &dyn DiskFile, superblock: &Superblock) -> Result<()> {
    let path = paths.superblock();
    let wrap = |action: &'static str| {
        let context = format!("cannot {action} {}", path.display());
        move |error| Error::io(context, error)
    };
    let fresh = file.size_bytes().map_err(wrap("read the size of"))? < 2 * wide(SUPERBLOCK_BYTES);
    file.write_all_at(&superblock.encode(), superblock.slot_offset()).map_err(wrap("write"))?;
    file.sync_data().map_err(|error| Error::sync(format!("cannot sync {}", path.display()), error))?;
    if fresh {
        sync_names(disk, paths)?;
    }
    Ok(())
}
