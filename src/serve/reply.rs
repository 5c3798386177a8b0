//! Replies as bytes.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};

use bytes::{Buf, Bytes};
use smallvec::SmallVec;

use crate::error::Error;
use crate::io::is_zero;
use crate::place::wide;
use crate::wire::constants::{EINVAL, EIO, ENOMEM, ENOSPC, ENOTSUP, EPERM, ESHUTDOWN, REPLY_OFFSET_DATA};
use crate::wire::{Chunk, ChunkHeader, HeaderMode, Request, StatusExtent, encode_chunk_header, encode_simple_reply};

/// Holes shorter than this are sent as data.
const HOLE_BYTES_MIN: usize = 4096;
/// Buffers handed to the kernel at once.
const SLICES_MAX: usize = 64;

/// Bytes for a client that were not taken by its socket yet.
#[derive(Default)]
pub struct Output {
    buffers: VecDeque<Bytes>,
    bytes: usize,
}

/// The errno of an error of the engine, as far as NBD has it.
pub fn wire_error(error: &Error) -> u32 {
    match error.errno() {
        libc::EPERM => EPERM,
        libc::EINVAL => EINVAL,
        libc::ENOSPC => ENOSPC,
        libc::ENOTSUP => ENOTSUP,
        // The client may try again later.
        libc::EBUSY => ENOMEM,
        // The volume that the client has open was destroyed, or its store was closed.
        libc::ENOENT | libc::ESHUTDOWN => ESHUTDOWN,
        _ => EIO,
    }
}

impl Output {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes
    }

    fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.bytes += bytes.len();
            self.buffers.push_back(bytes);
        }
    }

    fn chunk(&mut self, mode: HeaderMode, request: &Request, done: bool, kind: u16, payload: Vec<u8>) {
        let header = ChunkHeader { done, kind, cookie: request.cookie, length: wide(payload.len()) };
        let mut bytes = encode_chunk_header(mode, header, request.offset);
        bytes.extend_from_slice(&payload);
        self.push(bytes.into());
    }

    /// Success without data.
    pub fn done(&mut self, mode: HeaderMode, request: &Request) {
        match mode {
            HeaderMode::Simple => self.push(encode_simple_reply(0, request.cookie).into()),
            // Simple replies are allowed for requests without data.
            HeaderMode::Structured => self.push(encode_simple_reply(0, request.cookie).into()),
            HeaderMode::Extended => self.chunk(mode, request, true, Chunk::None.encode(true).0, Vec::new()),
        }
    }

    /// An error.
    pub fn error(&mut self, mode: HeaderMode, request: &Request, error: u32, text: &str) {
        if mode == HeaderMode::Simple {
            return self.push(encode_simple_reply(error, request.cookie).into());
        }
        let (kind, payload) = Chunk::Error(error, text.to_owned()).encode(mode == HeaderMode::Extended);
        self.chunk(mode, request, true, kind, payload);
    }

    /// The bytes of a read; `whole`: in one chunk.
    pub fn data(&mut self, mode: HeaderMode, request: &Request, data: Bytes, whole: bool) {
        if mode == HeaderMode::Simple {
            self.push(encode_simple_reply(0, request.cookie).into());
            return self.push(data);
        }
        if data.is_empty() {
            // A read is replied to in chunks, also one without bytes.
            return self.chunk(mode, request, true, Chunk::None.encode(true).0, Vec::new());
        }
        let mut at = 0;
        while at < data.len() {
            let (end, zero) = if whole { (data.len(), false) } else { next_part(&data, at) };
            let done = end == data.len();
            let offset = request.offset + wide(at);
            if zero {
                let (kind, payload) = Chunk::Hole(offset, wide(end - at)).encode(mode == HeaderMode::Extended);
                self.chunk(mode, request, done, kind, payload);
            } else {
                let header = ChunkHeader { done, kind: REPLY_OFFSET_DATA, cookie: request.cookie, length: wide(end - at) + 8 };
                let mut head = encode_chunk_header(mode, header, request.offset);
                head.extend_from_slice(&offset.to_be_bytes());
                self.push(head.into());
                self.push(data.slice(at..end));
            }
            at = end;
        }
    }

    /// The extents of a block status in one context; `done` with the last one.
    pub fn status(&mut self, mode: HeaderMode, request: &Request, context: u32, extents: Vec<StatusExtent>, done: bool) {
        let (kind, payload) = Chunk::Status(context, extents).encode(mode == HeaderMode::Extended);
        self.chunk(mode, request, done, kind, payload);
    }

    /// Hands as much to the socket as it takes. Answers whether anything went.
    ///
    /// # Errors
    /// The socket failed.
    pub fn send(&mut self, socket: &mut impl Write) -> io::Result<bool> {
        let mut sent = false;
        while !self.buffers.is_empty() {
            let written = {
                let slices = self.buffers.iter().take(SLICES_MAX).map(|bytes| IoSlice::new(bytes));
                socket.write_vectored(&slices.collect::<SmallVec<[IoSlice<'_>; SLICES_MAX]>>())
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            sent = true;
        }
        Ok(sent)
    }

    fn advance(&mut self, mut count: usize) {
        self.bytes -= count;
        while let Some(first) = self.buffers.front_mut() {
            if first.len() > count {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.buffers.pop_front();
        }
    }
}

/// Where the part that begins at `at` ends, and whether it is a hole.
fn next_part(data: &[u8], at: usize) -> (usize, bool) {
    let zero_at = |at: usize| data[at..].len() >= HOLE_BYTES_MIN && is_zero(&data[at..at + HOLE_BYTES_MIN]);
    let zero = zero_at(at);
    let mut end = at;
    while end < data.len() && zero_at(end) == zero {
        end = (end + HOLE_BYTES_MIN).min(data.len());
    }
    (end, zero)
}
