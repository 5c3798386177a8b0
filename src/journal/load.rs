//! Reading the superblock and the journal of a store that is not open.

use std::io;
use std::path::Path;

use super::frames::read_any_frame;
use super::torn::whole_frame_behind;
use crate::error::{Error, ErrorKind, Remedy, Result};
use crate::format::{
    FormatError, FormatErrorKind, Frame, FrameKind, Record, SUPERBLOCK_BYTES, StorePaths, Superblock, SuperblockSlot, decode_frame,
    frame_bytes,
};
use crate::io::{Disk, DiskFileExt, IoMode, OpenMode, is_zero};
use crate::limits::Limits;
use crate::place::wide;

/// The contents of the superblock and the journal.
pub struct Loaded {
    /// The newest valid superblock.
    pub superblock: Superblock,
    /// The whole state at the last checkpoint.
    pub state: Vec<Record>,
    /// One list of records for each barrier round since; the last one is to be verified against the blocks.
    pub rounds: Vec<Vec<Record>>,
    /// Number of the last frame; appending goes on behind it.
    pub sequence: u64,
    /// Whether both slots of the superblock are valid.
    pub both_slots: bool,
    /// Faults that do not keep the store from opening.
    pub warnings: Vec<String>,
    /// Number of the last frame of the journal before that the state has in it.
    pub covers: u64,
    /// Bytes of the state, then of all frames with it.
    pub bytes: (u64, u64),
}

impl Loaded {
    /// Whether the store was closed in order: the last record of its journal says so.
    pub fn is_closed(&self) -> bool {
        self.rounds.last().unwrap_or(&self.state).contains(&Record::Closed)
    }
}

/// Reads the superblock and every frame up to the first that does not verify.
///
/// # Errors
/// [`ErrorKind::NotFound`] where there is no store, [`ErrorKind::Unsupported`] or [`ErrorKind::Corrupt`] with what is wrong.
pub fn load(disk: &dyn Disk, paths: &StorePaths, limits: &Limits) -> Result<Loaded> {
    let Slots { superblock, both, mut warnings } = load_superblock(disk, paths)?;
    let pointed = load_journal(disk, paths, superblock, limits);
    let damage = pointed.as_ref().err().map(ToString::to_string);
    // The power failed while a slot was written: its journal is there, and so is the one before.
    let is_crash = |found: &Loaded| found.superblock.journal != superblock.journal;
    let was_there = matches!(pointed, Ok(Some(_)));
    let found = if both { pointed? } else { follow_up(disk, paths, superblock, pointed, limits)? };
    let mut loaded = found.ok_or_else(|| {
        let path = paths.journal(superblock.journal);
        Error::new(ErrorKind::Corrupt, format!("the journal {} is gone; restore the store from a backup", path.display()))
    })?;
    loaded.both_slots = both;
    if !(was_there && is_crash(&loaded)) {
        warnings.extend(damage.map(|damage| format!("the journal before is damaged, and was replaced: {damage}")));
        loaded.warnings = warnings;
    }
    Ok(loaded)
}

/// With one slot lost, the other one may point at a journal that was replaced: its successor goes on where it ended. A successor that a
/// crash left without a superblock has the same state, so either may be taken then.
///
/// 1. A journal that was replaced becomes the spare. Where the power failed before its new name was durable it has its old name, and
///    parts of a later state: it does not verify. So the successor is looked for before that counts as damage.
/// 2. A try that failed may have left a successor while the journal went on. That one is not taken: its state does not have the last
///    round of the journal in it, or, where the journal does not verify, not every whole round that is left of it.
fn follow_up(
    disk: &dyn Disk,
    paths: &StorePaths,
    superblock: Superblock,
    pointed: Result<Option<Loaded>>,
    limits: &Limits,
) -> Result<Option<Loaded>> {
    let names = disk.list(paths.root()).map_err(|error| Error::io(format!("cannot list {}", paths.root().display()), error))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| StorePaths::journal_number(name)).collect();
    numbers.retain(|number| *number > superblock.journal);
    numbers.sort_unstable();
    let mut found = pointed;
    for journal in numbers {
        // The generation stays, so that the next superblock goes into the lost slot.
        match (load_journal(disk, paths, Superblock { journal, ..superblock }, limits), &found) {
            (Ok(Some(next)), Ok(Some(before))) if next.covers == before.sequence => found = Ok(Some(next)),
            (Ok(Some(next)), Ok(None)) => found = Ok(Some(next)),
            (Ok(Some(next)), Err(_)) if ends_with(disk, paths, superblock, next.covers) => found = Ok(Some(next)),
            (Err(error), Ok(None)) => return Err(error),
            (_, Err(_)) => break,
            _ => {}
        }
    }
    found
}

/// Whether the journal of a superblock, which does not verify, has no whole round behind that with this number.
fn ends_with(disk: &dyn Disk, paths: &StorePaths, superblock: Superblock, sequence: u64) -> bool {
    let file = disk.open(&paths.journal(superblock.journal), OpenMode::Read, IoMode::Buffered);
    let later = file.and_then(|file| whole_frame_behind(&*file, &superblock, 0, sequence));
    matches!(later, Ok(None))
}

/// The journal that a superblock points at; `None` if there is no such file.
fn load_journal(disk: &dyn Disk, paths: &StorePaths, superblock: Superblock, limits: &Limits) -> Result<Option<Loaded>> {
    let path = paths.journal(superblock.journal);
    let damaged = |what: String| Error::new(ErrorKind::Corrupt, format!("{}: {what}; restore the store from a backup", path.display()));
    let file = match disk.open(&path, OpenMode::Read, IoMode::Buffered) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| Error::io(format!("cannot open the journal {}", path.display()), error))?,
    };
    let unreadable = |error| Error::io(format!("cannot read {}", path.display()), error);
    let wrong = |what: String, error: FormatError| match error.kind() {
        FormatErrorKind::Damaged => damaged(format!("{what} {error}")),
        FormatErrorKind::Unsupported => Error::new(ErrorKind::Unsupported, format!("{}: {what} {error}", path.display())),
    };
    let mut loaded = Loaded {
        superblock,
        state: Vec::new(),
        rounds: Vec::new(),
        sequence: 0,
        both_slots: true,
        warnings: Vec::new(),
        covers: 0,
        bytes: (0, 0),
    };
    let mut offset = 0;
    let mut complete = false;
    // An empty part of the state comes before the copies of rounds.
    let mut copies_follow = false;
    loop {
        loaded.bytes.1 = offset;
        let bytes = read_any_frame(&*file, &superblock, offset, limits.frame_payload_bytes_max).map_err(unreadable)?;
        let frame = decode_frame(&superblock.store_id, superblock.journal, &bytes);
        let frame = match frame.and_then(|frame| if complete { not_left_over(frame, loaded.sequence) } else { Ok(frame) }) {
            Ok(frame) => frame,
            Err(error) if !complete => return Err(wrong(format!("state at offset {offset}"), error)),
            Err(error) => {
                // A round begins after the one before it is durable, so what a crash tore has nothing behind it.
                return match whole_frame_behind(&*file, &superblock, offset, loaded.sequence + 1).map_err(unreadable)? {
                    Some(behind) => Err(damaged(format!("frame at offset {offset} {error}, but a whole one follows at offset {behind}"))),
                    None => Ok(Some(loaded)),
                };
            }
        };
        if offset > 0 && frame.sequence != loaded.sequence + 1 {
            let (found, wanted) = (frame.sequence, loaded.sequence + 1);
            return Err(damaged(format!("frame at offset {offset} has number {found}, where {wanted} is due")));
        }
        if offset == 0 {
            loaded.covers = frame.sequence.saturating_sub(1);
        }
        let records = Record::decode_all(frame.payload).map_err(|error| wrong(format!("frame at offset {offset}:"), error))?;
        match (frame.kind, complete) {
            (FrameKind::State, false) => {
                loaded.covers += u64::from(copies_follow);
                copies_follow |= frame.payload.is_empty();
                loaded.state.extend(records);
            }
            (FrameKind::StateEnd, false) => {
                loaded.state.extend(records);
                complete = true;
                loaded.bytes.0 = offset + frame_bytes(frame.payload.len());
            }
            (FrameKind::Round, true) => loaded.rounds.push(records),
            _ => return Err(damaged(format!("frame at offset {offset} is out of order"))),
        }
        loaded.sequence = frame.sequence;
        offset += frame_bytes(frame.payload.len());
    }
}

/// The file may have held an earlier try to write this journal, which failed before the superblock pointed at it: behind the
/// frames that count may be parts of that state. A round was never written to it.
fn not_left_over(frame: Frame<'_>, sequence: u64) -> std::result::Result<Frame<'_>, FormatError> {
    match frame.kind == FrameKind::Round && frame.sequence > sequence {
        true => Ok(frame),
        false => Err(FormatError::damaged("frame is left over from an earlier try")),
    }
}

/// The superblock that counts.
struct Slots {
    superblock: Superblock,
    both: bool,
    warnings: Vec<String>,
}

fn load_superblock(disk: &dyn Disk, paths: &StorePaths) -> Result<Slots> {
    let path = paths.superblock();
    let (bytes, surplus) = read_slots(disk, &path).map_err(|error| {
        let missing = error.kind() == io::ErrorKind::NotFound;
        if missing { no_store(disk, paths) } else { Error::io(format!("cannot read {}", path.display()), error) }
    })?;
    let mut slots = Vec::new();
    let mut problems = Vec::new();
    let mut empty = bytes.len() <= SUPERBLOCK_BYTES;
    for (number, slot) in bytes.chunks(SUPERBLOCK_BYTES).enumerate() {
        match SuperblockSlot(slot).verify() {
            Ok(superblock) => slots.push(superblock),
            Err(_) if is_zero(slot) => empty = true,
            Err(error) if error.kind() == FormatErrorKind::Unsupported => {
                return Err(Error::new(ErrorKind::Unsupported, format!("{}: slot {number} {error}", path.display())));
            }
            Err(error) => problems.push((number, error)),
        }
    }
    let mut warnings: Vec<_> = problems.iter().map(|(number, problem)| format!("{}: slot {number} {problem}", path.display())).collect();
    if surplus > 0 {
        warnings.push(format!("{}: {surplus} bytes behind the slots are not of this store", path.display()));
    }
    if empty {
        warnings.push(format!("{}: a slot is empty", path.display()));
    }
    let both = slots.len() == 2;
    match slots.into_iter().max_by_key(|superblock| superblock.generation) {
        Some(superblock) => Ok(Slots { superblock, both, warnings }),
        // Both slots are written when a store is made: a crash came before that.
        None if empty => Err(no_store(disk, paths)),
        None => Err(Error::new(
            ErrorKind::Corrupt,
            format!("{} has no valid slot ({}); restore the store from a backup", path.display(), warnings.join("; ")),
        )),
    }
}

/// The bytes of both slots, as far as the file has them, and how many are behind.
fn read_slots(disk: &dyn Disk, path: &Path) -> io::Result<(Vec<u8>, u64)> {
    let file = disk.open(path, OpenMode::Read, IoMode::Buffered)?;
    let size = file.size_bytes()?;
    let length = usize::try_from(size).unwrap_or(usize::MAX).min(2 * SUPERBLOCK_BYTES);
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok((bytes, size - wide(length)))
}

/// The error for a directory without a superblock: there is no store, or it has lost what is needed to read it.
pub fn no_store(disk: &dyn Disk, paths: &StorePaths) -> Error {
    let layer = disk.list(&paths.layers()).ok().and_then(|names| names.into_iter().find(|name| StorePaths::parse_layer(name).is_some()));
    match layer {
        None => {
            let message = format!("there is no store in {}: make one first", paths.root().display());
            Error::remediable(ErrorKind::NotFound, message, Remedy::CreateStore(paths.root().to_owned()))
        }
        Some(name) => {
            let (superblock, layer) = (paths.superblock(), paths.layers().join(name));
            let what = format!("{} is gone or empty, but there are layers ({})", superblock.display(), layer.display());
            Error::new(ErrorKind::Corrupt, format!("{what}; restore the store from a backup"))
        }
    }
}
