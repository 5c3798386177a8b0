//! Reading the superblock and the journal of a store that is not open.

use std::io;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, FrameKind, Reader, Record, SUPERBLOCK_BYTES, StorePaths, Superblock, SuperblockSlot,
    decode_frame, frame_bytes,
};
use crate::io::{Disk, DiskExt, DiskFile, DiskFileExt, IoMode, OpenMode};

/// What the superblock and the journal say.
pub struct Loaded {
    /// The newest valid superblock.
    pub superblock: Superblock,
    /// The whole state at the last checkpoint.
    pub state: Vec<Record>,
    /// One list of records for each barrier round since; the last one is to be verified against the blocks.
    pub rounds: Vec<Vec<Record>>,
    /// Number of the last frame.
    pub sequence: u64,
    /// Things that are wrong but do not keep the store from opening.
    pub warnings: Vec<String>,
}

/// Reads the superblock and every frame up to the first that does not verify.
///
/// # Errors
/// [`ErrorKind::NotFound`] where there is no store, [`ErrorKind::Unsupported`] or [`ErrorKind::Corrupt`] with what is wrong.
pub fn load(disk: &dyn Disk, paths: &StorePaths) -> Result<Loaded> {
    let (superblock, mut warnings) = load_superblock(disk, paths)?;
    let path = paths.journal(superblock.journal);
    let damaged = |what: String| Error::new(ErrorKind::Corrupt, format!("{}: {what}; restore the store from a backup", path.display()));
    let file = disk
        .open(&path, OpenMode::Read, IoMode::Buffered)
        .map_err(|error| Error::io(format!("cannot open the journal {}", path.display()), error))?;
    let mut loaded = Loaded { superblock, state: Vec::new(), rounds: Vec::new(), sequence: 0, warnings: Vec::new() };
    let mut offset = 0;
    let mut complete = false;
    loop {
        let bytes = read_frame(&*file, offset).map_err(|error| Error::io(format!("cannot read {}", path.display()), error))?;
        let frame = match decode_frame(&superblock.store_id, superblock.journal, &bytes) {
            Ok(frame) => frame,
            Err(error) if !complete => return Err(damaged(format!("state at offset {offset} {error}"))),
            Err(_) => break,
        };
        if offset > 0 && frame.sequence != loaded.sequence + 1 {
            break;
        }
        let records = Record::decode_all(frame.payload).map_err(|error| damaged(format!("frame at offset {offset}: {error}")))?;
        match (frame.kind, complete) {
            (FrameKind::State, false) => loaded.state.extend(records),
            (FrameKind::StateEnd, false) => {
                loaded.state.extend(records);
                complete = true;
            }
            (FrameKind::Round, true) => loaded.rounds.push(records),
            _ => return Err(damaged(format!("frame at offset {offset} is out of order"))),
        }
        loaded.sequence = frame.sequence;
        offset += frame_bytes(frame.payload.len());
    }
    loaded.warnings.append(&mut warnings);
    Ok(loaded)
}

/// Header and payload at `offset`, as far as the file has them.
fn read_frame(file: &dyn DiskFile, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; FRAME_HEADER_BYTES];
    let available = file.size_bytes()?.saturating_sub(offset);
    if available < FRAME_HEADER_BYTES as u64 {
        return Ok(Vec::new());
    }
    file.read_exact_at(&mut bytes, offset)?;
    let length = Reader::new(&bytes[4..]).u32().unwrap_or(0) as usize;
    let whole = FRAME_HEADER_BYTES + length;
    if length <= FRAME_PAYLOAD_BYTES_MAX && whole as u64 <= available {
        bytes.resize(whole, 0);
        file.read_exact_at(&mut bytes[FRAME_HEADER_BYTES..], offset + FRAME_HEADER_BYTES as u64)?;
    }
    Ok(bytes)
}

/// The error for a directory without a store.
pub fn no_store(paths: &StorePaths) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no store in {}: make one with 'volfork --store {0} init'", paths.root().display()))
}

fn load_superblock(disk: &dyn Disk, paths: &StorePaths) -> Result<(Superblock, Vec<String>)> {
    let path = paths.superblock();
    let bytes = disk.read_file(&path, 2 * SUPERBLOCK_BYTES as u64).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => no_store(paths),
        _ => Error::io(format!("cannot read {}", path.display()), error),
    })?;
    let mut slots = Vec::new();
    let mut problems = Vec::new();
    let mut empty = bytes.len() <= SUPERBLOCK_BYTES;
    for (number, slot) in bytes.chunks(SUPERBLOCK_BYTES).enumerate() {
        match SuperblockSlot(slot).verify() {
            Ok(superblock) => slots.push(superblock),
            Err(_) if slot.iter().all(|byte| *byte == 0) => empty = true,
            Err(error) => problems.push((number, error.to_string())),
        }
    }
    let refusal = problems.iter().find(|(_, problem)| problem.contains("use a "));
    if let Some((number, problem)) = refusal {
        return Err(Error::new(ErrorKind::Unsupported, format!("{}: slot {number} {problem}", path.display())));
    }
    let warnings = problems.iter().map(|(number, problem)| format!("{}: slot {number} {problem}", path.display())).collect::<Vec<_>>();
    match slots.into_iter().max_by_key(|superblock| superblock.generation) {
        Some(superblock) => Ok((superblock, warnings)),
        // Both slots are written when a store is made: a crash came before that.
        None if empty => Err(no_store(paths)),
        None => Err(Error::new(
            ErrorKind::Corrupt,
            format!("{} has no valid slot ({}); restore the store from a backup", path.display(), warnings.join("; ")),
        )),
    }
}
