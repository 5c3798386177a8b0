//! The journal: the log of changes of shape and presence since the last checkpoint.
//!
//! # Crash ordering
//! - One barrier round is one frame. A round begins only after the one before it ended, so every frame but the last is
//!   known to be backed by durable data; only the last one has to be verified against the blocks it names.
//! - A checkpoint writes the whole state to the spare file ([`Draft`]) while rounds go on in the current one, copies these rounds behind
//!   it, syncs it, gives it the name of the next journal, syncs the name, and only then points the superblock at it: the last rounds are
//!   copied, and the superblock is written, while no round is under way. Until the superblock is durable the old file counts; the new one
//!   is overwritten by the next try. Then the old file becomes the spare.
//! - So nothing is written over the journal before, not even when a store is opened, until the superblock that was found is durable
//!   ([`Journal::confirm`]): a process that was killed leaves it in the page cache alone.
//! - After a crash the state is written anew before anything else is: frames behind a torn one are never believed later.
//! - So a whole frame behind one that does not verify means damage, not a crash, and the store is refused: what was flushed must
//!   not vanish in silence. For the same reason a store that is closed in order gets a checkpoint, whose end cannot be mistaken.
//!
//! # Space
//! - Every record has a bound, and its space is taken before the change that it describes is visible: in the log, and in the spare,
//!   which has to hold the state that the log leads to ([`Journal::reserve`]). The two files change places at each checkpoint and each
//!   opening, so the current one has space for that state as well.
//! - A change that gives back space, or only overwrites, lives on a reserve that no other change may take ([`Journal::room`]). A checkpoint
//!   restores it, and needs no space of the file system; so it is due as soon as the reserve is low, whatever the log's size.
//! - A store opens on a full disk: its state goes into the spare.
#![deny(clippy::wildcard_enum_match_arm)]
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]

mod draft;
mod frames;
mod load;
mod spare;
mod torn;

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub use draft::Draft;
use draft::{Grow, Tail, open_superblock, sync_names, write_superblock};
pub use load::{Loaded, load, no_store};
use spare::Spare;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Features, Frame, FrameKind, Record, StorePaths, Superblock, Writer, encode_frame, frame_bytes};
use crate::io::{Disk, DiskFile, DiskFileExt};
use crate::limits::Limits;
use crate::place::wide;

/// Bytes by which one byte of a record lets the state grow at most: the header of a container for one more block, and its checksum, which
/// the state carries while there is no space for its page.
pub const STATE_GROWTH: u64 = 4;

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
    /// Most by which the state may have grown since.
    growth_bytes: u64,
    /// Bytes of rounds that the draft of the next journal has beside the changes that they made.
    copied_bytes: u64,
    /// The file that the next state is written to.
    spare: Option<Spare>,
    /// Rounds that were appended since [`Journal::keep_rounds`].
    kept: Option<Vec<Vec<u8>>>,
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
        let spare = RefCell::new(Self::find_spare(&disk, &paths, superblock.journal)?);
        // A store that opens takes what there is; what is missing is taken as soon as it can be had.
        let grow = |bytes| spare.borrow_mut().grow(bytes);
        let next = Superblock { journal: superblock.journal + 1, generation: superblock.generation + 1, ..superblock };
        let mut draft = Draft {
            disk: Arc::clone(&disk),
            paths: paths.clone(),
            limits,
            superblock: next,
            file: Arc::clone(&spare.borrow().file),
            grow: &grow,
            sequence,
            end: 0,
            payload: Writer::default(),
            tail: None,
            has_all: false,
            skip: 0,
            slots: None,
        };
        let path = paths.journal(next.journal);
        let written = draft.put(state).and_then(|()| draft.end(None)).and_then(|()| draft.sync());
        let named = written.and_then(|()| spare.borrow_mut().rename(path.clone()).map_err(io_error("name", &path)));
        let decided = named.and_then(|()| draft.sync_name()).inspect_err(|_| drop(spare.borrow_mut().rename(paths.reserve())));
        decided.and_then(|()| draft.point()).inspect_err(|_| {
            if superblock.journal == 0 {
                // A store that was not made leaves nothing behind.
                let _ = disk.remove(&paths.reserve());
            }
        })?;
        let (superblock_now, sequence, tail_bytes) = (draft.superblock, draft.sequence, draft.end);
        let before = (superblock.journal > 0).then(|| Spare::of_journal(&disk, &paths, superblock.journal).ok()).flatten();
        let spare = spare.into_inner();
        let mut journal = Self {
            disk,
            paths,
            superblock: superblock_now,
            capacity_bytes: spare.bytes().max(tail_bytes),
            file: spare.file,
            sequence,
            tail_bytes,
            state_bytes: tail_bytes,
            growth_bytes: 0,
            copied_bytes: 0,
            spare: before,
            kept: None,
            limits,
        };
        let _ = journal.reserve(0);
        Ok(journal)
    }

    fn find_spare(disk: &Arc<dyn Disk>, paths: &StorePaths, current: u64) -> Result<Spare> {
        if current > 0
            && let Ok(spare) = Spare::find(disk, paths, current)
        {
            return Ok(spare);
        }
        let spare = Spare::create(disk, paths, current + 1).map_err(io_error("create", &paths.reserve()))?;
        // A store that was never there has left nothing that counts.
        spare.file.set_size(0).map_err(io_error("truncate", &paths.reserve()))?;
        Ok(spare)
    }

    /// Makes durable what the superblock of a store that is about to be opened says. A process that was killed, or whose sync failed, may
    /// have left it in the page cache alone; then the journal before still counts after a power loss, and must not become the spare yet.
    ///
    /// # Errors
    /// An I/O error; nothing else was touched.
    pub fn confirm(disk: &dyn Disk, paths: &StorePaths, loaded: &mut Loaded) -> Result<()> {
        // The same bytes in the same place; but where only one slot is valid that one stays whole.
        if !loaded.both_slots {
            loaded.superblock.generation += 1;
        }
        let slots = open_superblock(disk, paths)?;
        // The name of a successor that replaces a lost journal may not be durable either.
        sync_names(disk, paths)?;
        write_superblock(disk, paths, &*slots, &loaded.superblock)
    }

    /// Takes space for the state of a store that is about to be opened, before anything else takes it. Answers nothing: without it
    /// the store may open as well.
    pub fn take_space(disk: &Arc<dyn Disk>, paths: &StorePaths, loaded: &Loaded, limits: &Limits) {
        let (state, all) = loaded.bytes;
        let needed = state + (all - state) * STATE_GROWTH + limits.spare_reserve_bytes();
        if let Ok(mut spare) = Self::find_spare(disk, paths, loaded.superblock.journal) {
            let _ = spare.grow(needed);
        }
    }

    /// Begins the next journal in the spare, behind the last frame. No round is under way, and no other draft. `features`: records of these
    /// may follow from the switch on. `grow` is [`Journal::grow_spare`].
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`]: there is no spare.
    pub fn draft<'a>(&mut self, features: Features, grow: &'a Grow<'a>) -> Result<Draft<'a>> {
        // It may have been refused space until now.
        let _ = self.make_spare(0);
        let Some(spare) = &self.spare else {
            return Err(Error::new(ErrorKind::NoSpace, "there is no space for a new journal"));
        };
        Ok(Draft {
            disk: Arc::clone(&self.disk),
            paths: self.paths.clone(),
            limits: self.limits,
            superblock: Superblock {
                journal: self.superblock.journal + 1,
                generation: self.superblock.generation + 1,
                features: self.superblock.features.with(features),
                ..self.superblock
            },
            file: Arc::clone(&spare.file),
            grow,
            sequence: self.sequence,
            end: 0,
            payload: Writer::default(),
            tail: Some(Tail { file: Arc::clone(&self.file), superblock: self.superblock, at: self.tail_bytes }),
            has_all: false,
            skip: 0,
            slots: None,
        })
    }

    /// Keeps rounds in memory from now on, until the draft ends.
    pub fn keep_rounds(&mut self) {
        self.kept = Some(Vec::new());
    }

    /// The rounds that were kept.
    pub fn take_kept(&mut self) -> Vec<Vec<u8>> {
        self.kept.take().unwrap_or_default()
    }

    /// Takes space for `bytes` bytes of the spare in all.
    ///
    /// # Errors
    /// No space; what it has stays.
    pub fn grow_spare(&mut self, bytes: u64) -> io::Result<()> {
        self.spare.as_mut().ok_or(io::ErrorKind::StorageFull)?.grow(bytes)
    }

    /// Takes space in the spare for copies of rounds whose changes the state of the draft may have already, so that what was reserved
    /// before still fits.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`].
    pub fn make_copies(&mut self, bytes: u64) -> Result<()> {
        let needed = self.spare.as_ref().map_or(0, Spare::bytes) + bytes;
        self.grow_spare(needed).map_err(|error| Error::io("cannot take space for the next journal", error))?;
        self.copied_bytes += bytes;
        Ok(())
    }

    /// Gives the spare the name of the next journal.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`]: with `end` bytes in it, it has no room for rounds; an I/O error.
    pub fn name_spare(&mut self, end: u64) -> Result<()> {
        let path = self.paths.journal(self.superblock.journal + 1);
        let left = self.capacity_bytes.saturating_sub(self.tail_bytes);
        let free = (self.limits.journal_reserve_bytes / 2).min(left + 1);
        match &mut self.spare {
            Some(spare) if spare.bytes() >= end + free => spare.rename(path.clone()).map_err(io_error("name", &path)),
            _ => Err(Error::new(ErrorKind::NoSpace, format!("there is no space for a new journal {}", path.display()))),
        }
    }

    /// The draft is given up; the superblock does not point at it.
    pub fn give_up_draft(&mut self) {
        (self.copied_bytes, self.kept) = (0, None);
        if let Some(spare) = &mut self.spare {
            let _ = spare.rename(self.paths.reserve());
        }
    }

    /// The superblock points at the draft: it is the journal now, and the one before becomes the spare. No round is under way.
    pub fn switch_to(&mut self, draft: &Draft<'_>) {
        let Some(spare) = self.spare.take() else { return };
        let before = Spare::of_journal(&self.disk, &self.paths, self.superblock.journal).ok();
        (self.file, self.capacity_bytes) = (Arc::clone(&spare.file), spare.bytes());
        (self.superblock, self.sequence, self.spare) = (draft.superblock, draft.sequence, before);
        (self.tail_bytes, self.state_bytes) = (draft.end, draft.end);
        (self.growth_bytes, self.copied_bytes) = (0, 0);
        if let Some(spare) = &mut self.spare {
            let needed = self.state_bytes + self.limits.spare_reserve_bytes();
            if spare.bytes() > 4 * needed + 16 * self.limits.journal_grow_bytes {
                spare.shrink(2 * needed);
            }
        }
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
        self.make_room(self.tail_bytes + frame_bytes(payload.len()))?;
        let frame = Frame { sequence: self.sequence + 1, kind: FrameKind::Round, payload };
        let bytes = encode_frame(&self.superblock.store_id, self.superblock.journal, frame);
        let path = self.paths.journal(self.superblock.journal);
        self.file.write_all_at(&bytes, self.tail_bytes).map_err(io_error("write", &path))?;
        if let Some(kept) = &mut self.kept {
            kept.push(payload.to_vec());
        }
        self.sequence += 1;
        self.tail_bytes += wide(bytes.len());
        self.growth_bytes += STATE_GROWTH * wide(payload.len());
        Ok(())
    }

    /// Takes space so that frames of `bytes` in all can be appended, and the state that they lead to be written, without touching the
    /// reserves.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`]; nothing has changed then.
    pub fn reserve(&mut self, bytes: u64) -> Result<()> {
        let log = self.tail_bytes + bytes + self.limits.journal_reserve_bytes;
        self.make_room(log.max(self.next_state_bytes(bytes)))?;
        self.make_spare(bytes)
    }

    /// Bytes that a file needs to hold the state after records of `bytes` more, and a reserve.
    fn next_state_bytes(&self, bytes: u64) -> u64 {
        self.state_bytes + self.growth_bytes + self.copied_bytes + STATE_GROWTH * bytes + self.limits.spare_reserve_bytes()
    }

    /// Bytes of records that there is space for if the reserves may be used: what gives back space or only overwrites may use them.
    /// A rest is left for the headers of frames, and for changes of shape that make room.
    pub fn room(&self) -> u64 {
        let reserve = self.limits.journal_reserve_bytes;
        let log = self.capacity_bytes.saturating_sub(self.tail_bytes + reserve / 4);
        let states = self.spare.as_ref().map_or(0, Spare::bytes).min(self.capacity_bytes);
        log.min(states.saturating_sub(self.state_bytes + self.growth_bytes + self.copied_bytes + reserve / 2) / STATE_GROWTH)
    }

    /// Notes that a record lets the state grow by more than its own size tells.
    pub fn note_growth(&mut self, bytes: u64) {
        self.growth_bytes += bytes;
    }

    /// Takes space for the current file, up to byte `needed`.
    fn make_room(&mut self, needed: u64) -> Result<()> {
        if needed > self.capacity_bytes {
            let (file, from) = (&self.file, self.capacity_bytes);
            let path = self.paths.journal(self.superblock.journal);
            let taken = self.in_steps(needed, |capacity| file.allocate(from..capacity));
            self.capacity_bytes = taken.map_err(io_error("reserve space for", &path))?;
        }
        Ok(())
    }

    /// Lets the spare hold the state after records of `bytes` more.
    fn make_spare(&mut self, bytes: u64) -> Result<()> {
        let needed = self.next_state_bytes(bytes);
        let wrap = |error| Error::io(format!("cannot reserve space for {}", self.paths.reserve().display()), error);
        let mut spare = match self.spare.take() {
            Some(spare) => spare,
            None => Spare::create(&self.disk, &self.paths, self.superblock.journal + 1).map_err(wrap)?,
        };
        let taken = match spare.bytes() < needed {
            true => self.in_steps(needed, |bytes| spare.grow(bytes)).map(drop).map_err(wrap),
            false => Ok(()),
        };
        self.spare = Some(spare);
        taken
    }

    /// Takes space in large steps, or just what is needed if there is no more.
    fn in_steps(&self, needed: u64, mut take: impl FnMut(u64) -> io::Result<()>) -> io::Result<u64> {
        let grow = self.limits.journal_grow_bytes;
        let large = (needed + grow).next_multiple_of(grow);
        match take(large) {
            Ok(()) => Ok(large),
            Err(_) => take(needed).map(|()| needed),
        }
    }

    /// Where the next frame begins.
    pub fn end(&self) -> u64 {
        self.tail_bytes
    }

    /// The file to sync.
    pub fn file(&self) -> Arc<dyn DiskFile> {
        Arc::clone(&self.file)
    }

    /// Whether it may have records of these features.
    pub fn takes(&self, features: Features) -> bool {
        self.superblock.features.has(features)
    }

    /// Number of the file.
    pub fn number(&self) -> u64 {
        self.superblock.journal
    }

    /// Number of the latest frame.
    pub fn sequence(&self) -> u64 {
        self.sequence
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
    use crate::format::{BlocksRecord, PresenceRecord};
    use crate::ids::LayerId;
    use crate::io::SystemDisk;
    use crate::place::BlockSize;

    /// A try that ended before the superblock pointed at it used the same number, so its frames verify.
    #[test]
    fn a_new_journal_has_nothing_of_an_earlier_try_with_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(SystemDisk::new());
        let paths = StorePaths::new(dir.path());
        let superblock =
            Superblock { block_size: BlockSize::DEFAULT, generation: 0, store_id: [1; 16], journal: 0, features: Features::default() };
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

    #[test]
    fn what_a_newer_program_wrote_is_not_called_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(SystemDisk::new());
        let paths = StorePaths::new(dir.path());
        let superblock =
            Superblock { block_size: BlockSize::DEFAULT, generation: 0, store_id: [1; 16], journal: 0, features: Features::default() };
        let state = std::iter::empty();
        let mut journal = Journal::start(Arc::clone(&disk), paths.clone(), superblock, 0, state, Limits::DEFAULT).unwrap();
        for (record, kind) in [(b"\xff", ErrorKind::Unsupported), (b"\x01", ErrorKind::Corrupt)] {
            let whole = journal.log_bytes();
            journal.append(record).unwrap();
            let refused = load(&*disk, &paths, &Limits::DEFAULT).map(drop).unwrap_err();
            assert_eq!(refused.kind(), kind, "{refused}");
            assert_eq!(refused.to_string().contains("restore the store from a backup"), kind == ErrorKind::Corrupt, "{refused}");
            let file = std::fs::OpenOptions::new().write(true).open(paths.journal(1)).unwrap();
            file.set_len(journal.state_bytes() + whole).unwrap();
            journal = Journal::start(Arc::clone(&disk), paths.clone(), superblock, 0, std::iter::empty(), Limits::DEFAULT).unwrap();
        }
    }

    /// As a program wrote it that did not cut the presence of a layer.
    #[test]
    fn a_state_in_a_frame_larger_than_any_that_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(SystemDisk::new());
        let paths = StorePaths::new(dir.path());
        let superblock =
            Superblock { block_size: BlockSize::DEFAULT, generation: 0, store_id: [1; 16], journal: 0, features: Features::default() };
        let present = (0..100_000u32).map(|block| block * 3).collect();
        let (zeroed, marked) = Default::default();
        let presence = PresenceRecord { layer: LayerId(1), more: false, present, zeroed, marked };
        let state = [Record::Blocks(BlocksRecord::Presence(presence))];
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
