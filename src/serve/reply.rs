//! Replies as bytes.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use crate::error::Error;
use crate::io::is_zero;
use crate::place::wide;
use crate::wire::constants::{EINVAL, EIO, ENOMEM, ENOSPC, ENOTSUP, EPERM, ESHUTDOWN, REPLY_OFFSET_DATA};
use crate::wire::{Chunk, ChunkHeader, HeaderMode, Request, StatusExtent, put_chunk_header, put_simple_reply};

/// Holes shorter than this are sent as data.
const HOLE_BYTES_MIN: usize = 4096;
/// Buffers handed to the kernel at once.
const SLICES_MAX: usize = 64;
/// A payload up to this size is copied behind its header.
const COPIED_BYTES_MAX: usize = 256;
/// Memory that is taken for headers at once, and used again when the socket has taken them.
const HEADS_BYTES: usize = 2 << 10;

/// Bytes for a client that were not taken by its socket yet.
///
/// # Invariants
/// - `heads` are the bytes behind the last buffer: headers that follow one another are one buffer, and no header allocates.
#[derive(Default)]
pub struct Output {
    buffers: VecDeque<Bytes>,
    heads: BytesMut,
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
            self.end_heads();
            self.buffers.push_back(bytes);
        }
    }

    /// Makes the headers since the last buffer a buffer.
    fn end_heads(&mut self) {
        if !self.heads.is_empty() {
            self.buffers.push_back(self.heads.split().freeze());
        }
    }

    /// Appends a few bytes.
    fn head(&mut self, put: impl FnOnce(&mut BytesMut)) {
        if self.heads.spare_capacity_mut().len() < 2 * COPIED_BYTES_MAX {
            self.heads.reserve(HEADS_BYTES);
        }
        let before = self.heads.len();
        put(&mut self.heads);
        self.bytes += self.heads.len() - before;
    }

    fn simple(&mut self, error: u32, request: &Request) {
        self.head(|out| put_simple_reply(out, error, request.cookie));
    }

    fn chunk(&mut self, mode: HeaderMode, request: &Request, done: bool, kind: u16, payload: Vec<u8>) {
        let header = ChunkHeader { done, kind, cookie: request.cookie, length: wide(payload.len()) };
        self.head(|out| put_chunk_header(out, mode, header, request.offset));
        match payload.len() {
            0..=COPIED_BYTES_MAX => self.head(|out| out.extend_from_slice(&payload)),
            _ => self.push(payload.into()),
        }
    }

    /// Success without data.
    pub fn done(&mut self, mode: HeaderMode, request: &Request) {
        match mode {
            // Simple replies are allowed for requests without data.
            HeaderMode::Simple | HeaderMode::Structured => self.simple(0, request),
            HeaderMode::Extended => self.chunk(mode, request, true, Chunk::None.encode(true).0, Vec::new()),
        }
    }

    /// An error.
    pub fn error(&mut self, mode: HeaderMode, request: &Request, error: u32, text: &str) {
        if mode == HeaderMode::Simple {
            return self.simple(error, request);
        }
        let (kind, payload) = Chunk::Error(error, text.to_owned()).encode(mode == HeaderMode::Extended);
        self.chunk(mode, request, true, kind, payload);
    }

    /// The bytes of a read; `whole`: in one chunk.
    pub fn data(&mut self, mode: HeaderMode, request: &Request, data: Bytes, whole: bool) {
        if mode == HeaderMode::Simple {
            self.simple(0, request);
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
                self.head(|out| {
                    put_chunk_header(out, mode, header, request.offset);
                    out.put_u64(offset);
                });
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
        self.end_heads();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::constants::{CMD_READ, CMD_WRITE};
    use crate::wire::encode_simple_reply;

    /// A socket that takes so many bytes at once, and none at every second call.
    struct Narrow {
        taken: Vec<u8>,
        calls: usize,
        at_once: usize,
    }

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.write_vectored(&[IoSlice::new(bytes)])
        }

        fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            self.calls += 1;
            if self.calls.is_multiple_of(2) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).take(self.at_once).collect();
            self.taken.extend(&all);
            Ok(all.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn replies_keep_their_order_and_headers_share_a_buffer() {
        let mut socket = Narrow { taken: Vec::new(), calls: 0, at_once: 1000 };
        let (mut output, mut expected) = (Output::default(), Vec::new());
        for number in 0..100_u64 {
            let request = Request { flags: 0, command: CMD_WRITE, cookie: number, offset: 0, length: 0 };
            output.done(HeaderMode::Structured, &request);
            output.done(HeaderMode::Structured, &request);
            expected.extend([encode_simple_reply(0, number), encode_simple_reply(0, number)].concat());
            let data = vec![number.to_le_bytes()[0]; 700];
            output.data(HeaderMode::Simple, &Request { command: CMD_READ, ..request }, data.clone().into(), false);
            expected.extend([encode_simple_reply(0, number), data].concat());
            assert_eq!(output.len(), expected.len() - socket.taken.len());
            assert!(number > 0 || output.buffers.len() == 2, "three headers and the data are two buffers");
            output.send(&mut socket).unwrap();
        }
        while output.len() > 0 {
            output.send(&mut socket).unwrap();
        }
        assert!(socket.taken == expected && output.buffers.is_empty() && output.heads.is_empty());
    }
}
