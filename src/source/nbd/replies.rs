//! Decodes the replies of one connection incrementally, as their bytes arrive.
//!
//! # Invariants
//! - A connection buffers at most one incomplete header, or the payload of one chunk that is not data. Data are copied to their place in
//!   the read at once.
//! - A server that never ends a reply, or makes no progress, loses its connection.

use std::io;
use std::ops::Range;

use super::job::{Answer, Job};
use super::link::Link;
use super::reactor::TICK;
use super::under_way::{checksums, protocol};
use crate::place::{length, wide};
use crate::sync::time::Instant;
use crate::wire::constants::{REPLY_OFFSET_DATA, REPLY_OFFSET_HOLE};
use crate::wire::{Chunk, ChunkHeader, HeaderMode, ReplyHeader, WireError, WireReader};

/// Most chunks in a row that neither bring bytes nor end a request. A server that sends more is given up.
const IDLE_CHUNKS_MAX: u32 = 1024;
/// Data of at least this many bytes are received directly into their place, without a copy.
const DIRECT_BYTES_MIN: u64 = 16 << 10;
/// Most bytes received from one connection before the reactor serves the next one.
const TURN_BYTES: usize = 1 << 20;
/// Bytes of the offset at the start of a data chunk.
const OFFSET_BYTES: u64 = 8;
/// Most bytes of a header.
const HEADER_BYTES_MAX: usize = 32;

/// What the next bytes are.
enum Reading {
    /// A header, and how many of its bytes have arrived.
    Header([u8; HEADER_BYTES_MAX], usize),
    /// The payload of a chunk, or the offset of a data chunk: its length, and the bytes that have arrived.
    Payload(ChunkHeader, usize, Vec<u8>),
    /// Data of the read with this cookie, for this range. `done`: the chunk is the last one of the reply.
    Data { cookie: u64, range: Range<u64>, done: bool },
}

/// Decoder state of one connection. Only its reactor uses it.
pub struct Replies {
    reading: Reading,
    idle_chunks: u32,
    /// When bytes last arrived.
    progress: Instant,
}

/// Called with each job that ends.
type Complete<'a> = &'a mut dyn FnMut(Job, Answer);

impl Default for Replies {
    fn default() -> Self {
        Self { reading: Reading::Header([0; HEADER_BYTES_MAX], 0), idle_chunks: 0, progress: Instant::now() }
    }
}

fn unanswered() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the server does not answer a request")
}

impl Replies {
    /// Receives what the socket has into `buffer`, and decodes it.
    ///
    /// # Errors
    /// The connection has ended, or must be given up.
    pub fn take(&mut self, link: &Link, buffer: &mut [u8], complete: Complete<'_>) -> io::Result<()> {
        let mut taken = 0;
        while taken < TURN_BYTES {
            let is_direct = matches!(&self.reading, Reading::Data { range, .. } if range.end - range.start >= DIRECT_BYTES_MIN);
            let mut room = buffer.len();
            let received = if is_direct {
                let read = |place: &mut [u8]| {
                    room = place.len();
                    link.socket.recv(place)
                };
                self.take_data(link, read, complete)
            } else {
                link.socket.recv(buffer)
            };
            let count = match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")),
                Ok(count) => count,
            };
            self.progress = Instant::now();
            if !is_direct {
                self.take_bytes(link, &buffer[..count], complete)?;
            }
            taken += count;
            if count < room {
                // The socket is empty, or the reactor will be notified again.
                return Ok(());
            }
        }
        Ok(())
    }

    /// # Errors
    /// A request has timed out.
    pub fn tick(&self, link: &Link) -> io::Result<()> {
        let silence = self.progress.elapsed();
        let in_reply = !matches!(self.reading, Reading::Header(_, 0..ReplyHeader::MAGIC_BYTES));
        if silence >= TICK && (in_reply && silence > link.request_timeout || link.is_unanswered()) {
            return Err(unanswered());
        }
        Ok(())
    }

    /// Decodes received bytes.
    fn take_bytes(&mut self, link: &Link, mut bytes: &[u8], complete: Complete<'_>) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = match &mut self.reading {
                Reading::Header(header, have) => {
                    if *have == 0 && link.is_passed_over() {
                        return Err(unanswered());
                    }
                    let need = header_bytes(header, *have, link.mode)?;
                    let count = bytes.len().min(need - *have);
                    header[*have..*have + count].copy_from_slice(&bytes[..count]);
                    *have += count;
                    // The magic number says how long the header is. Bytes without a valid one are an error.
                    if *have == need && header_bytes(header, *have, link.mode)? == need {
                        let header = ReplyHeader::decode(&header[..need], link.mode).map_err(protocol)?;
                        self.take_header(link, &header, complete)?;
                    }
                    count
                }
                Reading::Payload(chunk, need, payload) => {
                    let count = bytes.len().min(*need - payload.len());
                    payload.extend_from_slice(&bytes[..count]);
                    if payload.len() == *need {
                        let (chunk, payload) = (*chunk, std::mem::take(payload));
                        self.take_payload(link, chunk, &payload, complete)?;
                    }
                    count
                }
                Reading::Data { .. } => {
                    let copy = |place: &mut [u8]| {
                        let count = bytes.len().min(place.len());
                        place[..count].copy_from_slice(&bytes[..count]);
                        Ok(count)
                    };
                    self.take_data(link, copy, complete)?
                }
            };
            bytes = &bytes[count..];
        }
        Ok(())
    }

    fn next_reply(&mut self) {
        self.reading = Reading::Header([0; HEADER_BYTES_MAX], 0);
    }

    fn take_header(&mut self, link: &Link, header: &ReplyHeader, complete: Complete<'_>) -> io::Result<()> {
        match *header {
            ReplyHeader::Simple { error, cookie } => self.take_simple(link, error, cookie, complete),
            ReplyHeader::Chunk(chunk) => {
                let brings = chunk.done || matches!(chunk.kind, REPLY_OFFSET_DATA | REPLY_OFFSET_HOLE);
                self.idle_chunks = if brings { 0 } else { self.idle_chunks + 1 };
                if self.idle_chunks > IDLE_CHUNKS_MAX {
                    return Err(protocol(WireError("a reply has no end".into())));
                }
                let mut need = chunk.length;
                if link.read_of(chunk.cookie).is_none() {
                    let under_way = link.take_job(chunk.cookie)?;
                    link.put_back(chunk.cookie, under_way, 0);
                    if chunk.kind == REPLY_OFFSET_DATA {
                        if chunk.length <= OFFSET_BYTES {
                            return Err(protocol(WireError("a data chunk has no data".into())));
                        }
                        need = OFFSET_BYTES;
                    }
                }
                if need == 0 {
                    return self.take_payload(link, chunk, &[], complete);
                }
                // The decoder of the header has bounded the length. The buffer grows as bytes arrive.
                self.reading = Reading::Payload(chunk, length(need), Vec::new());
                Ok(())
            }
        }
    }

    fn take_simple(&mut self, link: &Link, error: u32, cookie: u64, complete: Complete<'_>) -> io::Result<()> {
        let mut under_way = link.take_job(cookie)?;
        let range = under_way.job.range.clone();
        let result = if error > 0 {
            under_way.error = Some((error, String::new()));
            under_way.over = true;
            Ok(())
        } else if under_way.job.is_read() && link.mode == HeaderMode::Simple {
            under_way.expect_bytes(&range)
        } else {
            Err(protocol(WireError("a simple reply where a chunk is due".into())))
        };
        let over = under_way.over;
        link.put_back(cookie, under_way, 0);
        result?;
        if !over {
            self.reading = Reading::Data { cookie, range, done: true };
            return Ok(());
        }
        self.next_reply();
        end(link, cookie, complete)
    }

    fn take_payload(&mut self, link: &Link, chunk: ChunkHeader, payload: &[u8], complete: Complete<'_>) -> io::Result<()> {
        self.next_reply();
        if let Some((read, range)) = link.read_of(chunk.cookie) {
            return take_checksums(link, chunk, payload, read, &range, complete);
        }
        let mut under_way = link.take_job(chunk.cookie)?;
        if chunk.kind == REPLY_OFFSET_DATA {
            let range = data_range(chunk, payload);
            let result = range.and_then(|range| under_way.expect_bytes(&range).map(|()| range));
            link.put_back(chunk.cookie, under_way, 0);
            self.reading = Reading::Data { cookie: chunk.cookie, range: result?, done: chunk.done };
            return Ok(());
        }
        let result = under_way.take_chunk(chunk.kind, payload, &link.contexts);
        under_way.over |= chunk.done;
        let over = under_way.over;
        link.put_back(chunk.cookie, under_way, *result.as_ref().unwrap_or(&0));
        result?;
        if over { end(link, chunk.cookie, complete) } else { Ok(()) }
    }

    /// Puts some bytes of a read into their place, and returns how many. Parts that become whole go to the waiter at once.
    fn take_data(&mut self, link: &Link, read: impl FnOnce(&mut [u8]) -> io::Result<usize>, complete: Complete<'_>) -> io::Result<usize> {
        let Reading::Data { cookie, range, done } = &mut self.reading else { return Ok(0) };
        let (cookie, done) = (*cookie, *done);
        let mut under_way = link.take_job(cookie)?;
        let placed = under_way.assembly.fill(range.clone(), read);
        let count = *placed.as_ref().unwrap_or(&0);
        range.start += wide(count);
        let is_whole = range.is_empty();
        under_way.deliver();
        under_way.over |= is_whole && done;
        let over = under_way.over;
        link.put_back(cookie, under_way, wide(count));
        if is_whole {
            self.next_reply();
            if over {
                end(link, cookie, complete)?;
            }
        }
        placed
    }
}

/// Bytes of a header, as far as the first `have` bytes tell.
fn header_bytes(header: &[u8; HEADER_BYTES_MAX], have: usize, mode: HeaderMode) -> io::Result<usize> {
    match have < ReplyHeader::MAGIC_BYTES {
        true => Ok(ReplyHeader::MAGIC_BYTES),
        false => ReplyHeader::header_bytes([header[0], header[1], header[2], header[3]], mode).map_err(protocol),
    }
}

/// The range of a data chunk, which begins with its offset.
fn data_range(chunk: ChunkHeader, payload: &[u8]) -> io::Result<Range<u64>> {
    let start = WireReader::new(payload).u64().map_err(protocol)?;
    let end = start.checked_add(chunk.length - OFFSET_BYTES);
    Ok(start..end.ok_or_else(|| protocol(WireError("a data chunk has no end".into())))?)
}

/// Ends a job if everything that it waits for has arrived.
fn end(link: &Link, cookie: u64, complete: Complete<'_>) -> io::Result<()> {
    if let Some((job, answer)) = link.end(cookie)? {
        complete(job, answer);
    }
    Ok(())
}

/// Takes a chunk of the checksum request that was sent with a read.
fn take_checksums(
    link: &Link,
    chunk: ChunkHeader,
    payload: &[u8],
    read: u64,
    range: &Range<u64>,
    complete: Complete<'_>,
) -> io::Result<()> {
    let decoded = Chunk::decode(chunk.kind, payload).map_err(protocol)?;
    if chunk.done {
        link.remove(chunk.cookie);
    }
    let Ok(mut under_way) = link.take_job(read) else { return Ok(()) };
    if let Chunk::Status(_, extents) = decoded {
        under_way.assembly.checksums = checksums(&extents, range, link.contexts.block_bytes);
    }
    // Without an answer the bytes have no checksums.
    under_way.awaits_checksums &= !chunk.done;
    under_way.deliver();
    let over = under_way.over;
    link.put_back(read, under_way, 0);
    if over { end(link, read, complete) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::io::Socket;
    use crate::source::nbd::handshake::{Agreed, Contexts, Topic};
    use crate::source::nbd::job::Waiter;
    use crate::source::{About, Arrival, OnArrival, Part, ReadClass};
    use crate::sync::Mutex;
    use crate::wire::{ExportInfo, StatusExtent, encode_chunk_header, encode_simple_reply};

    /// A connection, and the server's end.
    fn connection(mode: HeaderMode, contexts: Contexts) -> (Link, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let info = ExportInfo { size_bytes: 1 << 20, flags: 1, block_sizes: None };
        let (socket, about, round_trip) = (Socket::Unix(ours), About::default(), Duration::ZERO);
        let agreed = Agreed { lease: None, socket, mode, info, contexts, identity: None, about, round_trip };
        (Link::new(agreed, Duration::from_secs(60), false).unwrap(), theirs)
    }

    /// Sends a read; answers where its bytes arrive, or its error.
    fn read(link: &Link, range: Range<u64>) -> Arc<Mutex<Vec<u8>>> {
        let bytes = Arc::new(Mutex::new(vec![0; length(range.end - range.start)]));
        let (arrived, start) = (Arc::clone(&bytes), range.start);
        let arrival = OnArrival::new(move |arrival| {
            if let Arrival::Part(Part { offset, bytes, .. }) = arrival {
                let at = length(offset - start);
                arrived.lock()[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        });
        assert!(link.send(Job { range, waiter: Waiter::Read(ReadClass::Waited, arrival), tries: 0, lost_at: None }).is_ok());
        bytes
    }

    fn chunk(out: &mut Vec<u8>, mode: HeaderMode, cookie: u64, done: bool, chunk: &Chunk<'_>) {
        let (kind, payload) = chunk.encode(mode == HeaderMode::Extended);
        let header = ChunkHeader { done, kind, cookie, length: wide(payload.len()) };
        out.extend_from_slice(&encode_chunk_header(mode, header, 0));
        out.extend_from_slice(&payload);
    }

    /// Takes what a server sends in pieces of so many bytes; answers the jobs that ended.
    fn take(link: &Link, server: &mut UnixStream, sent: &[u8], piece: usize) -> io::Result<usize> {
        let (mut replies, mut buffer, mut ended) = (Replies::default(), vec![0; 64 << 10], 0);
        for piece in sent.chunks(piece) {
            server.write_all(piece).unwrap();
            replies.take(link, &mut buffer, &mut |_, _| ended += 1)?;
        }
        Ok(ended)
    }

    #[test]
    fn replies_may_be_cut_anywhere() {
        let data: Vec<u8> = (0..300_000u32).map(|number| u8::try_from(number % 251 + 1).unwrap()).collect();
        for mode in [HeaderMode::Structured, HeaderMode::Extended] {
            for piece in [13, 4093, 16 << 10, 70_000] {
                let allocation = Contexts { allocation: Some(3), ..Contexts::default() };
                let (link, mut server) = connection(mode, allocation);
                let (long, short) = (read(&link, 5..300_005), read(&link, 100..200));
                let extents = Arc::new(Mutex::new(Vec::new()));
                let told = Arc::clone(&extents);
                let done = Box::new(move |result: Result<Vec<StatusExtent>, _>| *told.lock() = result.unwrap());
                assert!(
                    link.send(Job { range: 0..4096, waiter: Waiter::Status(Topic::Allocation, done), tries: 0, lost_at: None }).is_ok()
                );
                let mut sent = Vec::new();
                chunk(&mut sent, mode, 1, false, &Chunk::Data(5, &data[..200_000]));
                chunk(&mut sent, mode, 3, true, &Chunk::Data(100, &data[..100]));
                chunk(&mut sent, mode, 1, false, &Chunk::Hole(200_005, 10_000));
                let extent = StatusExtent { length: 4096, flags: 3 };
                chunk(&mut sent, mode, 5, true, &Chunk::Status(3, vec![extent]));
                chunk(&mut sent, mode, 1, false, &Chunk::Data(210_005, &data[210_000..]));
                chunk(&mut sent, mode, 1, true, &Chunk::None);
                let mut answers = Vec::new();
                let (mut replies, mut buffer) = (Replies::default(), vec![0; 64 << 10]);
                for piece in sent.chunks(piece) {
                    server.write_all(piece).unwrap();
                    replies.take(&link, &mut buffer, &mut |job, answer| answers.push((job, answer))).unwrap();
                }
                assert_eq!((answers.len(), link.load()), (3, Some((0, 0))));
                answers.into_iter().for_each(|(job, answer)| job.finish(Ok(answer)));
                let mut expected = data.clone();
                expected[200_000..210_000].fill(0);
                assert!(*long.lock() == expected && *short.lock() == data[..100] && *extents.lock() == [extent], "{mode:?} {piece}");
            }
        }
    }

    #[test]
    fn simple_replies_bring_bytes_or_an_error() {
        for piece in [1, 100, 10_000] {
            let (link, mut server) = connection(HeaderMode::Simple, Contexts::default());
            let (first, _failed, last) = (read(&link, 0..4096), read(&link, 0..8), read(&link, 8..16));
            let mut sent = encode_simple_reply(0, 1).to_vec();
            sent.extend_from_slice(&[9; 4096]);
            sent.extend_from_slice(&encode_simple_reply(5, 3));
            sent.extend_from_slice(&encode_simple_reply(0, 5));
            sent.extend_from_slice(&[7; 8]);
            assert_eq!(take(&link, &mut server, &sent, piece).unwrap(), 3);
            assert!(*first.lock() == [9; 4096] && *last.lock() == [7; 8]);
        }
    }

    #[test]
    fn a_server_that_breaks_the_protocol_ends_its_connection() {
        let mode = HeaderMode::Structured;
        let sent = |cookie, done, reply: &Chunk<'_>| {
            let mut sent = Vec::new();
            chunk(&mut sent, mode, cookie, done, reply);
            sent
        };
        let mut endless = Vec::new();
        (0..=IDLE_CHUNKS_MAX).for_each(|_| endless.extend_from_slice(&sent(1, false, &Chunk::None)));
        for (what, sent) in [
            ("which was never sent", sent(7, true, &Chunk::None)),
            ("a data chunk has no data", sent(1, false, &Chunk::Data(0, &[]))),
            ("were not requested", sent(1, false, &Chunk::Data(4090, &[1; 8]))),
            ("has no end", sent(1, false, &Chunk::Data(u64::MAX, &[1; 8]))),
            ("are missing", sent(1, true, &Chunk::None)),
            ("a reply has no end", endless),
            ("a reply begins with", vec![1; 4]),
        ] {
            let (link, mut server) = connection(mode, Contexts::default());
            let _bytes = read(&link, 0..4096);
            let error = take(&link, &mut server, &sent, 1 << 20).unwrap_err();
            // What has come before, or not, is what the next bytes say.
            assert!(error.to_string().contains(what), "{what}: {error}");
            assert_eq!(link.give_up(String::new()).jobs.len(), 1);
        }
        let (link, server) = connection(mode, Contexts::default());
        drop(server);
        let error = Replies::default().take(&link, &mut [0; 64], &mut |_, _| ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_socket_without_room_keeps_what_is_to_be_sent() {
        let (link, mut server) = connection(HeaderMode::Structured, Contexts::default());
        // Requests of 28 bytes, until the socket is full and beyond.
        let count = 20_000;
        for _ in 0..count {
            read(&link, 0..1);
        }
        let mut received = vec![0; 28 * count];
        let mut have = 0;
        while have < received.len() {
            have += std::io::Read::read(&mut server, &mut received[have..]).unwrap();
            link.send_unsent().unwrap();
        }
        let cookies = received.chunks(28).map(|request| u64::from_be_bytes(request[8..16].try_into().unwrap()));
        assert!(cookies.eq((0..wide(count)).map(|number| 2 * number + 1)));
    }
}
