//! The transfers that a ring has given, or will give, to the kernel.
//!
//! # Invariants
//! - A write into the page cache is given in pieces, all of them at once, so that it makes no folio above `FOLIO_BYTES_MAX`. It has
//!   ended when its last piece has, and fails if one of them fails.
//! - A piece owns its file and its bytes until its own completion.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use io_uring::{Submitter, opcode, squeue, types};

use super::fixed::FixedBuffers;
use super::op::{Done, Op, run};
use super::slots::Slots;
use super::system::folio_rest;
use super::{AlignedBuffer, DiskFile};
use crate::place::{index, wide};

/// How often the ring tries a transfer that was interrupted or cancelled, before the calling thread does it.
pub const TRIES_MAX: u32 = 8;
/// Bytes of one entry at the most.
const ENTRY_BYTES_MAX: u32 = i32::MAX.unsigned_abs();

/// A transfer, or a piece of a write.
struct Piece {
    token: u64,
    op: Op,
    transferred: usize,
    tries: u32,
    /// The entry of registered memory that the kernel transfers with.
    fixed: Option<u16>,
    /// The write that it is a piece of.
    whole: Option<usize>,
}

/// A write in pieces.
struct Whole {
    file: Arc<dyn DiskFile>,
    data: Bytes,
    offset: u64,
    /// Pieces that have not ended.
    left: usize,
    /// Of the pieces that have.
    result: io::Result<()>,
}

/// What the answer of the kernel means for a transfer.
pub enum Answer {
    /// The rest is given to the kernel again.
    Again,
    /// The kernel does not do it: the calling thread does.
    Here,
    /// It has ended, and maybe the transfer that it is a piece of.
    Ended(Option<Done>),
}

#[derive(Default)]
pub struct Transfers {
    pieces: Slots<Piece>,
    wholes: Slots<Whole>,
    /// Transfers that have not ended.
    count: usize,
}

impl Transfers {
    /// Number of transfers, whatever the number of their pieces.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Takes a transfer. Answers the numbers of what is to be given to the kernel.
    pub fn push(&mut self, token: u64, op: Op, give: &mut impl Extend<usize>) {
        self.count += 1;
        match op {
            Op::Write { file, data, offset } if !file.is_direct() && data.len() > folio_rest(offset) => {
                let whole = Whole { file: Arc::clone(&file), data: data.clone(), offset, left: 0, result: Ok(()) };
                let whole = self.wholes.insert(whole);
                let mut start = 0;
                while start < data.len() {
                    let at = offset + wide(start);
                    let end = data.len().min(start + folio_rest(at));
                    let op = Op::Write { file: Arc::clone(&file), data: data.slice(start..end), offset: at };
                    give.extend([self.insert(token, op, Some(whole))]);
                    start = end;
                }
            }
            op => give.extend([self.insert(token, op, None)]),
        }
    }

    fn insert(&mut self, token: u64, op: Op, whole: Option<usize>) -> usize {
        if let Some(whole) = whole.and_then(|number| self.wholes.get_mut(number)) {
            whole.left += 1;
        }
        self.pieces.insert(Piece { token, op, transferred: 0, tries: 0, fixed: None, whole })
    }

    /// The entry for what is left. `None`: there is nothing, or its file has no descriptor any more.
    pub fn entry(&mut self, number: usize, buffers: &mut FixedBuffers, kernel: &Submitter<'_>) -> Option<squeue::Entry> {
        let piece = self.pieces.get_mut(number)?;
        let entry = piece.entry(buffers, kernel)?;
        Some(entry.user_data(wide(number)))
    }

    /// Takes in what the kernel answered: a number of bytes, or a negative error.
    pub fn answer(&mut self, number: usize, result: i32, buffers: &mut FixedBuffers) -> Answer {
        let Some(piece) = self.pieces.get_mut(number) else { return Answer::Ended(None) };
        if let Some(entry) = piece.fixed.take() {
            buffers.release(entry);
        }
        let result = match result {
            0 => Err(piece.op.stuck()),
            1.. => {
                piece.transferred += index(result.unsigned_abs());
                if piece.transferred < piece.op.bytes() {
                    return Answer::Again;
                }
                Ok(())
            }
            _ if matches!(-result, libc::EINTR | libc::EAGAIN | libc::ECANCELED) => {
                piece.tries += 1;
                return if piece.tries > TRIES_MAX { Answer::Here } else { Answer::Again };
            }
            _ => Err(io::Error::from_raw_os_error(-result)),
        };
        let Some(piece) = self.pieces.remove(number) else { return Answer::Ended(None) };
        Answer::Ended(self.end(piece.whole, Done { token: piece.token, op: piece.op, result }))
    }

    /// Does what the kernel does not have on this thread, from its beginning.
    pub fn run(&mut self, number: usize, buffers: &mut FixedBuffers) -> Option<Done> {
        let piece = self.pieces.remove(number)?;
        if let Some(entry) = piece.fixed {
            buffers.release(entry);
        }
        self.end(piece.whole, run(piece.token, piece.op))
    }

    /// Ends everything whose completion never came. The kernel may still use their files and buffers, which therefore stay for ever.
    pub fn abandon(&mut self, number: i32, done: &mut Vec<Done>) {
        let pieces: Vec<Piece> = self.pieces.take_all().collect();
        for Piece { token, op, whole, .. } in pieces {
            let op = match op {
                Op::Read { file, buffer, offset } => {
                    std::mem::forget((Arc::clone(&file), buffer));
                    Op::Read { file, buffer: AlignedBuffer::new(0).into(), offset }
                }
                Op::Write { file, data, offset } => {
                    std::mem::forget((Arc::clone(&file), data.clone()));
                    Op::Write { file, data, offset }
                }
            };
            done.extend(self.end(whole, Done { token, op, result: Err(io::Error::from_raw_os_error(number)) }));
        }
    }

    /// The end of a transfer, or that of the write that it is the last piece of.
    fn end(&mut self, whole: Option<usize>, done: Done) -> Option<Done> {
        let Some(number) = whole else {
            self.count -= 1;
            return Some(done);
        };
        let whole = self.wholes.get_mut(number)?;
        whole.left -= 1;
        if whole.result.is_ok() {
            whole.result = done.result;
        }
        if whole.left > 0 {
            return None;
        }
        self.count -= 1;
        let Whole { file, data, offset, result, .. } = self.wholes.remove(number)?;
        Some(Done { token: done.token, op: Op::Write { file, data, offset }, result })
    }
}

/// How many bytes of what is left one entry transfers.
fn at_once(rest: &[u8]) -> u32 {
    u32::try_from(rest.len()).unwrap_or(ENTRY_BYTES_MAX).min(ENTRY_BYTES_MAX)
}

impl Piece {
    fn entry(&mut self, buffers: &mut FixedBuffers, kernel: &Submitter<'_>) -> Option<squeue::Entry> {
        let (transferred, done) = (self.transferred, wide(self.transferred));
        let mut fixed = |file: &dyn DiskFile, rest: &[u8]| match file.is_direct() {
            true => buffers.acquire(kernel, rest),
            false => None,
        };
        Some(match &mut self.op {
            Op::Read { file, buffer, offset } => {
                let (fd, rest, offset) = (types::Fd(file.raw_fd()?), &mut buffer[transferred..], *offset + done);
                self.fixed = fixed(&**file, rest);
                let (start, count) = (rest.as_mut_ptr(), at_once(rest));
                match self.fixed {
                    Some(number) => opcode::ReadFixed::new(fd, start, count, number).offset(offset).build(),
                    None => opcode::Read::new(fd, start, count).offset(offset).build(),
                }
            }
            Op::Write { file, data, offset } => {
                let (fd, rest, offset) = (types::Fd(file.raw_fd()?), &data[transferred..], *offset + done);
                self.fixed = fixed(&**file, rest);
                let (start, count) = (rest.as_ptr(), at_once(rest));
                match self.fixed {
                    Some(number) => opcode::WriteFixed::new(fd, start, count, number).offset(offset).build(),
                    None => opcode::Write::new(fd, start, count).offset(offset).build(),
                }
            }
        })
    }
}
