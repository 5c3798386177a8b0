//! Reading single frames of a journal.

use std::io;

use crate::format::{FRAME_HEADER_BYTES, FrameCheck, Reader, Superblock};
use crate::io::{DiskFile, DiskFileExt};
use crate::limits::STATE_PAYLOAD_BYTES_MAX;
use crate::place::wide;

/// Header and payload at `offset`, as far as the file has them. A part of the state may be larger than this program writes
/// it: it is verified in pieces before there is memory for it.
pub(super) fn read_any_frame(file: &dyn DiskFile, superblock: &Superblock, offset: u64, payload_bytes_max: usize) -> io::Result<Vec<u8>> {
    const PIECE_BYTES: usize = 1 << 20;
    let bytes = read_frame(file, offset, payload_bytes_max)?;
    let Ok(header) = <&[u8; FRAME_HEADER_BYTES]>::try_from(&bytes[..]) else { return Ok(bytes) };
    let Some(mut check) = FrameCheck::of_state(&superblock.store_id, superblock.journal, header) else { return Ok(bytes) };
    let mut at = offset + wide(FRAME_HEADER_BYTES);
    let mut left = check.payload_bytes;
    if at + wide(left) > file.size_bytes()? {
        return Ok(bytes);
    }
    let mut piece = vec![0; PIECE_BYTES];
    while left > 0 {
        let length = left.min(PIECE_BYTES);
        file.read_exact_at(&mut piece[..length], at)?;
        check.update(&piece[..length]);
        at += wide(length);
        left -= length;
    }
    if check.matches() { read_frame(file, offset, STATE_PAYLOAD_BYTES_MAX) } else { Ok(bytes) }
}

/// Header and payload at `offset`, as far as the file has them. Only the header if it claims more than `payload_bytes_max`.
pub(super) fn read_frame(file: &dyn DiskFile, offset: u64, payload_bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; FRAME_HEADER_BYTES];
    let available = file.size_bytes()?.saturating_sub(offset);
    if available < wide(FRAME_HEADER_BYTES) {
        return Ok(Vec::new());
    }
    file.read_exact_at(&mut bytes, offset)?;
    let length = Reader::new(&bytes[4..]).count().unwrap_or(0);
    let whole = FRAME_HEADER_BYTES + length;
    if length <= payload_bytes_max && wide(whole) <= available {
        bytes.resize(whole, 0);
        file.read_exact_at(&mut bytes[FRAME_HEADER_BYTES..], offset + wide(FRAME_HEADER_BYTES))?;
    }
    Ok(bytes)
}
