//! Telling the end that a crash tore from damage in the middle.

use std::io;

use super::frames::read_frame;
use crate::format::{FRAME_HEADER_BYTES, FRAME_MAGIC, FrameKind, Reader, Superblock, decode_frame, frame_bytes};
use crate::io::{DiskFile, DiskFileExt};
use crate::limits::FRAME_PAYLOAD_BYTES_MAX;
use crate::place::{length, wide};

/// Bytes looked through at once.
const STEP_BYTES: usize = 1 << 20;
/// Where the length is in a frame.
const LENGTH_AT: usize = 4;
/// Frames begin at multiples of this.
const FRAME_ALIGN: usize = 8;
const FRAME_ALIGN_BYTES: u64 = wide(FRAME_ALIGN);

/// Where a whole later frame lies behind the one at `offset` that does not verify and should have the number `sequence`.
///
/// # Errors
/// The file cannot be read.
pub fn whole_frame_behind(file: &dyn DiskFile, superblock: &Superblock, offset: u64, sequence: u64) -> io::Result<Option<u64>> {
    let end_of_payload = end_of(file, offset, sequence)?;
    let mut at = offset + FRAME_ALIGN_BYTES;
    while let Some(data) = file.next_allocated(at)? {
        let end = data.end.min(file.size_bytes()?);
        at = at.max(data.start / FRAME_ALIGN_BYTES * FRAME_ALIGN_BYTES);
        while at < end {
            let mut bytes = vec![0; length(end - at).min(STEP_BYTES)];
            file.read_exact_at(&mut bytes, at)?;
            for (place, word) in (at..).step_by(FRAME_ALIGN).zip(bytes.as_chunks::<FRAME_ALIGN>().0) {
                let is_frame = word[..4] == *FRAME_MAGIC && is_later_round(file, superblock, place, sequence)?;
                if is_frame && (place >= end_of_payload || ends_at(file, superblock, offset, place)?) {
                    return Ok(Some(place));
                }
            }
            at = (at + wide(bytes.len())).next_multiple_of(FRAME_ALIGN_BYTES);
        }
        // Allocated space may reach beyond the end of the file.
        at = at.max(data.end).next_multiple_of(FRAME_ALIGN_BYTES);
    }
    Ok(None)
}

/// Whether only the length of the frame is wrong: with the right one it verifies.
fn ends_at(file: &dyn DiskFile, superblock: &Superblock, offset: u64, end: u64) -> io::Result<bool> {
    let mut bytes = vec![0; length(end - offset)];
    file.read_exact_at(&mut bytes, offset)?;
    let payload = bytes.len().saturating_sub(FRAME_HEADER_BYTES);
    Ok((0..FRAME_ALIGN).any(|padding| {
        let Ok(length) = u32::try_from(payload.saturating_sub(padding)) else { return false };
        bytes[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_le_bytes());
        decode_frame(&superblock.store_id, superblock.journal, &bytes).is_ok()
    }))
}

/// Where the bytes behind the frame begin. If its header makes sense they begin behind its payload, which a client may have chosen to
/// look like frames.
fn end_of(file: &dyn DiskFile, offset: u64, sequence: u64) -> io::Result<u64> {
    let bytes = read_frame(file, offset, FRAME_PAYLOAD_BYTES_MAX)?;
    let mut reader = Reader::new(&bytes);
    let header = (reader.array::<4>(), reader.count(), reader.u64());
    let (Ok(magic), Ok(length), Ok(number)) = header else { return Ok(offset + FRAME_ALIGN_BYTES) };
    let end = offset + frame_bytes(length);
    let sensible = magic == *FRAME_MAGIC && number == sequence && length <= FRAME_PAYLOAD_BYTES_MAX && end <= file.size_bytes()?;
    Ok(if sensible { end } else { offset + FRAME_ALIGN_BYTES })
}

fn is_later_round(file: &dyn DiskFile, superblock: &Superblock, offset: u64, sequence: u64) -> io::Result<bool> {
    let bytes = read_frame(file, offset, FRAME_PAYLOAD_BYTES_MAX)?;
    let frame = decode_frame(&superblock.store_id, superblock.journal, &bytes);
    Ok(frame.is_ok_and(|frame| frame.kind == FrameKind::Round && frame.sequence > sequence))
}

const _: () = assert!(FRAME_HEADER_BYTES.is_multiple_of(FRAME_ALIGN));
