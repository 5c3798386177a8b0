//! Changes of blocks that no frame has yet, for the next process if this one is killed.
//!
//! A write is in the page cache when it is acknowledged, and so survives the death of the process; but which blocks are present, zero or
//! patched is in memory until a round records it. So each such change is noted here, and [`Unrecorded::carry`] writes the notes to a file
//! before it is acknowledged. Nothing of it is synced: after a power loss it does not count, and what was not flushed may be lost.
//!
//! # Invariants
//! - Notes are made behind the lock of the layer that changes, so those of one block are in the order of the changes. That of a record is
//!   made when it has been queued.
//! - The files together have all changes that no frame has, and maybe older ones, without a gap up to the latest. To apply changes again
//!   that a frame has is no harm as long as all later ones follow: the last one of each block decides.
//! - There are two files. When a round begins the other one is used from then on, unless it still has changes that no frame has. A round
//!   that is undone leaves them both.
//! - A file that could not be written ends it all: the files are emptied, older one first, so that no change is missing in the middle.

use std::io;
use std::sync::Arc;

use super::checksums::ChecksumPage;
use crate::format::{BlocksRecord, Note, StorePaths, UnrecordedHeader, Writer};
use crate::ids::LayerId;
use crate::io::{Disk, DiskFile, DiskFileExt, IoMode, OpenMode};
use crate::place::{BlockBits, Extent, length, wide};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, Rank};

/// Bytes of a file at the most. Rounds come long before.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// From this length on a round covers all layers, so that the files are used in turns again.
const LONG_BYTES: u64 = 1 << 20;

/// What the processes that own a store one after the other have in common.
#[derive(Clone, Debug)]
pub struct Session {
    pub id: [u8; 16],
    /// The page cache that the files are in.
    pub cache: String,
    /// Number of the latest file.
    pub file: u64,
}

#[derive(Default)]
struct Notes {
    /// Records that no file has.
    writer: Writer,
    /// They go to the other file, and so do all later ones. It is the number of the latest frame when that was decided.
    turn: Option<u64>,
    /// The other file has changes that no frame has.
    both: bool,
}

struct Files {
    disk: Arc<dyn Disk>,
    paths: StorePaths,
    files: [Arc<dyn DiskFile>; 2],
    header: UnrecordedHeader,
    end: u64,
}

struct Log {
    notes: Mutex<Notes>,
    /// There may be notes.
    any: AtomicBool,
    /// `None`: a file could not be written.
    files: Mutex<Option<Files>>,
    /// Length of the current file.
    end: AtomicU64,
    /// The round under way has all changes that were noted before it began.
    covers: AtomicBool,
}

/// The notes of a store. Without a session none are taken.
pub struct Unrecorded(Option<Log>);

impl Unrecorded {
    /// Begins with empty files. Where there is no room or descriptor for them, no notes
    /// are taken.
    ///
    /// # Errors
    /// What an earlier process left can be neither cut nor removed.
    pub fn begin(disk: &Arc<dyn Disk>, paths: &StorePaths, session: Option<Session>, frame: u64) -> io::Result<Self> {
        let begin = |session: Session| -> io::Result<Log> {
            let open = |number| disk.open(&paths.unrecorded(number), OpenMode::Create, IoMode::Buffered);
            let files = [open(0)?, open(1)?];
            for number in older_first(session.file) {
                files[number].set_size(0)?;
            }
            let header = UnrecordedHeader { session: session.id, sequence: session.file, frame, cache: session.cache };
            Ok(Log {
                notes: Mutex::ranked(Rank::UnrecordedNotes, Notes { turn: Some(frame), ..Notes::default() }),
                any: AtomicBool::new(false),
                files: Mutex::ranked(
                    Rank::UnrecordedFiles,
                    Some(Files { disk: Arc::clone(disk), paths: paths.clone(), files, header, end: 0 }),
                ),
                end: AtomicU64::new(0),
                covers: AtomicBool::new(false),
            })
        };
        let Some(session) = session else {
            // They would be applied over what this process records.
            return remove(&**disk, paths, 0).map(|()| Self(None));
        };
        let latest = session.file;
        match begin(session) {
            Ok(log) => Ok(Self(Some(log))),
            Err(_) => remove(&**disk, paths, latest).map(|()| Self(None)),
        }
    }

    /// Whether notes are taken.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Notes a change. The layer is locked.
    pub fn note(&self, record: &BlocksRecord) {
        self.add(|| Note::Change(record.clone()));
    }

    /// Notes a change that counts only with the frame of a round: it is part of a change of shape, or needs one. The layer is locked.
    pub fn note_with_frame(&self, round: u64, record: &BlocksRecord) {
        self.add(|| Note::WithFrame(round, record.clone()));
    }

    fn add(&self, note: impl FnOnce() -> Note) {
        let Some(log) = &self.0 else { return };
        let note = note();
        let mut notes = log.notes.lock();
        note.encode(&mut notes.writer);
        log.any.store(true, Ordering::Release);
    }

    /// Notes that blocks of an extent have become present, with their checksums in `page`. Their layer is locked.
    pub fn note_present(&self, layer: LayerId, extent: Extent, blocks: &BlockBits, page: &ChecksumPage) {
        if self.is_on() && !blocks.is_empty() {
            let runs = page.runs(layer, extent, blocks);
            runs.into_iter().for_each(|run| self.add(|| Note::Change(BlocksRecord::Present(run))));
        }
    }

    /// A frame with this number is about to be appended; it has the records of the rounds up to this one. All notes are written before: if
    /// the files had an older change of a block alone, that one would be applied over the frame.
    pub fn frame_comes(&self, frame: u64, round: u64) {
        self.add(|| Note::Frame(frame, round));
        self.carry();
    }

    /// Writes all notes. Called before changes are acknowledged.
    pub fn carry(&self) {
        let Some(log) = self.0.as_ref().filter(|log| log.any.load(Ordering::Acquire)) else { return };
        // Another thread may have taken the notes of this one, and writes them now.
        let mut files = log.files.lock();
        let (payload, turn) = {
            let mut notes = log.notes.lock();
            let payload = std::mem::take(&mut notes.writer.bytes);
            let turn = if payload.is_empty() { None } else { notes.turn.take() };
            (payload, turn)
        };
        if let Some(written) = files.as_mut().filter(|_| !payload.is_empty())
            && written.append(&payload, turn).is_err()
        {
            written.empty();
            *files = None;
        }
        log.end.store(files.as_ref().map_or(0, |files| files.end), Ordering::Relaxed);
        let notes = log.notes.lock();
        if notes.writer.bytes.is_empty() {
            log.any.store(false, Ordering::Release);
        }
    }

    /// A round is about to begin; `frame` is the latest one. Changes that are noted from here on go to the other file if it is free.
    pub fn round_begins(&self, frame: u64) {
        let Some(log) = &self.0 else { return };
        let mut notes = log.notes.lock();
        if !notes.both && notes.turn.is_none() {
            (notes.turn, notes.both) = (Some(frame), true);
        }
    }

    /// Whether the files have become so long that a round should cover all layers.
    pub fn is_long(&self) -> bool {
        self.0.as_ref().is_some_and(|log| log.end.load(Ordering::Relaxed) > LONG_BYTES)
    }

    /// Whether the frame of the round has all changes that were noted before it began.
    pub fn round_covers(&self, all: bool) {
        if let Some(log) = &self.0 {
            log.covers.store(all, Ordering::Relaxed);
        }
    }

    /// The latest round has succeeded.
    pub fn round_succeeded(&self) {
        let Some(log) = &self.0 else { return };
        log.notes.lock().both &= !log.covers.load(Ordering::Relaxed);
    }

    /// It is not known any more what the page cache has: nothing of it may be believed.
    pub fn give_up(&self) {
        let Some(log) = &self.0 else { return };
        if let Some(files) = log.files.lock().take() {
            files.empty();
        }
    }
}

impl Files {
    fn append(&mut self, payload: &[u8], turn: Option<u64>) -> io::Result<()> {
        let (mut header, mut end, mut bytes) = (self.header.clone(), self.end, Vec::new());
        if let Some(frame) = turn {
            (header.sequence, header.frame, end) = (header.sequence + 1, frame, 0);
            bytes = header.encode();
        }
        bytes.extend(header.encode_notes(end + wide(bytes.len()), payload));
        if end + wide(bytes.len()) > FILE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let [_, current] = older_first(header.sequence);
        self.files[current].write_all_at(&bytes, end)?;
        (self.header, self.end) = (header, end + wide(bytes.len()));
        Ok(())
    }

    /// Makes nothing of the files count.
    fn empty(&self) {
        let cut = older_first(self.header.sequence).into_iter().try_for_each(|number| self.files[number].set_size(0));
        if cut.is_err() {
            // Nothing is left to be tried.
            let _ = remove(&*self.disk, &self.paths, self.header.sequence);
        }
    }
}

/// Numbers of the files. The older one is emptied first: without the newer one it would undo changes.
fn older_first(latest: u64) -> [usize; 2] {
    if latest.is_multiple_of(2) { [1, 0] } else { [0, 1] }
}

fn remove(disk: &dyn Disk, paths: &StorePaths, latest: u64) -> io::Result<()> {
    older_first(latest).into_iter().try_for_each(|number| {
        let path = paths.unrecorded(number);
        let is_no_file =
            || disk.open(&path, OpenMode::Read, IoMode::Buffered).is_err_and(|error| error.kind() == io::ErrorKind::InvalidInput);
        match disk.remove(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_no_file() => Ok(()),
            other => other,
        }
    })
}

/// What the files say to a process that opens the store: the records in their order, and the number of the latest file. Nothing if they
/// are of another session, of a page cache that is gone, or of a journal that had more frames than this one, whose latest is `frame`; or if
/// one of them is damaged: without the newer one the older one would undo changes.
///
/// # Errors
/// A file cannot be read.
pub fn read(disk: &dyn Disk, paths: &StorePaths, session: &Session, frame: u64) -> io::Result<(Vec<BlocksRecord>, u64)> {
    let mut found: Vec<(u64, Vec<Note>)> = Vec::new();
    for number in [0, 1] {
        let file = match disk.open(&paths.unrecorded(number), OpenMode::Read, IoMode::Buffered) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => continue,
            other => other?,
        };
        let mut bytes = vec![0; length(file.size_bytes()?.min(FILE_BYTES_MAX))];
        file.read_exact_at(&mut bytes, 0)?;
        match UnrecordedHeader::decode(&bytes) {
            Err(_) => return Ok((Vec::new(), 0)),
            Ok(Some((header, notes))) if header.session == session.id && header.cache == session.cache && header.frame <= frame => {
                found.push((header.sequence, notes));
            }
            Ok(_) => {}
        }
    }
    found.sort_unstable_by_key(|(sequence, _)| *sequence);
    let Some(latest) = found.last().map(|(sequence, _)| *sequence) else { return Ok((Vec::new(), 0)) };
    let notes: Vec<Note> = found.into_iter().filter(|(sequence, _)| sequence + 1 >= latest).flat_map(|(_, notes)| notes).collect();
    let rounds = notes.iter().filter_map(|note| match note {
        Note::Frame(number, round) if *number <= frame => Some(*round),
        Note::Frame(..) | Note::Change(_) | Note::WithFrame(..) => None,
    });
    let recorded = rounds.max();
    let counts = |note| match note {
        Note::Change(record) => Some(record),
        Note::WithFrame(round, record) => Some(record).filter(|_| Some(round) <= recorded),
        Note::Frame(..) => None,
    };
    Ok((notes.into_iter().filter_map(counts).collect(), latest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::SystemDisk;
    use crate::place::Block;

    fn change(block: u32) -> BlocksRecord {
        BlocksRecord::Mark(LayerId(1), Block::new(block * 1024).extent())
    }

    struct Trial {
        disk: Arc<dyn Disk>,
        paths: StorePaths,
        session: Session,
        log: Unrecorded,
        _directory: tempfile::TempDir,
    }

    impl Trial {
        fn begin() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (disk, paths) = (Arc::new(SystemDisk::new()) as Arc<dyn Disk>, StorePaths::new(directory.path()));
            let session = Session { id: [3; 16], cache: "here".into(), file: 0 };
            let log = Unrecorded::begin(&disk, &paths, Some(session.clone()), 10).unwrap();
            Self { disk, paths, session, log, _directory: directory }
        }

        fn note(&self, block: u32) {
            self.log.note(&change(block));
            self.log.carry();
        }

        fn round(&self, frame: u64, covers: bool, succeeds: bool, meanwhile: u32) {
            self.log.round_begins(frame - 1);
            self.log.round_covers(covers);
            self.log.frame_comes(frame, frame * 100);
            self.note(meanwhile);
            if succeeds {
                self.log.round_succeeded();
            }
        }

        fn read(&self, session: &Session, frame: u64) -> Vec<BlocksRecord> {
            read(&*self.disk, &self.paths, session, frame).unwrap().0
        }
    }

    #[test]
    fn notes_stay_until_a_round_has_recorded_them() {
        let trial = Trial::begin();
        let expect = |frame, blocks: &[u32]| {
            assert_eq!(trial.read(&trial.session, frame), blocks.iter().map(|block| change(*block)).collect::<Vec<_>>())
        };
        expect(10, &[]);
        trial.note(1);
        expect(10, &[1]);
        // A round that is undone, and one that does not cover all layers, record nothing for good.
        trial.round(11, true, false, 2);
        trial.round(11, false, true, 3);
        expect(11, &[1, 2, 3]);
        trial.round(12, true, true, 4);
        expect(12, &[1, 2, 3, 4]);
        // The files are used in turns again.
        trial.round(13, true, true, 5);
        expect(13, &[2, 3, 4, 5]);
        trial.round(14, true, true, 6);
        expect(14, &[5, 6]);
        trial.log.give_up();
        expect(14, &[]);
        trial.note(7);
        expect(14, &[]);
    }

    #[test]
    fn notes_count_for_their_session_cache_and_journal_only() {
        let trial = Trial::begin();
        trial.note(1);
        trial.log.note_with_frame(1100, &change(2));
        trial.log.note_with_frame(1200, &change(3));
        trial.round(11, true, true, 4);
        // The frame of the round that has the second change may be missing.
        assert_eq!(trial.read(&trial.session, 11), [1, 2, 4].map(change));
        assert_eq!(trial.read(&trial.session, 10), [1, 4].map(change));
        // A journal from a backup.
        assert_eq!(trial.read(&trial.session, 9), []);
        assert_eq!(trial.read(&Session { id: [4; 16], ..trial.session.clone() }, 11), []);
        assert_eq!(trial.read(&Session { cache: "after a boot".into(), ..trial.session.clone() }, 11), []);
        // The next process begins with nothing.
        let (_, file) = read(&*trial.disk, &trial.paths, &trial.session, 11).unwrap();
        let next = Unrecorded::begin(&trial.disk, &trial.paths, Some(Session { file, ..trial.session.clone() }), 11).unwrap();
        assert_eq!(trial.read(&trial.session, 11), []);
        next.note(&change(5));
        next.carry();
        assert_eq!(trial.read(&trial.session, 11), [change(5)]);
    }
}
