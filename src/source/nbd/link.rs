//! One connection and what it has under way.

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::address::Socket;
use super::handshake::Agreed;
use crate::source::{ReadDone, SourceError, SourceExtent};
use crate::wire::constants::{CMD_BLOCK_STATUS, CMD_DISC, CMD_READ, ESHUTDOWN, REPLY_OFFSET_DATA, STATE_ZERO};
use crate::wire::{Chunk, ChunkHeader, HeaderMode, ReplyHeader, Request, WireError};

/// How often a reader looks whether the oldest request is too old.
const TICK: Duration = Duration::from_millis(500);

/// Called with the extents of a range.
pub type StatusDone = Box<dyn FnOnce(Result<Vec<SourceExtent>, SourceError>) + Send>;

/// Who waits for a request.
pub enum Waiter {
    Read(ReadDone),
    Status(StatusDone),
}

/// A request and how often it was tried.
pub struct Job {
    pub range: Range<u64>,
    pub waiter: Waiter,
    pub tries: u32,
}

/// How the server answered a job.
pub enum Answer {
    Bytes(Bytes),
    Extents(Vec<SourceExtent>),
    Error(u32, String),
}

/// A job under way, with what has come for it so far.
struct UnderWay {
    job: Job,
    sent: Instant,
    buffer: BytesMut,
    covered: Vec<Range<u64>>,
    extents: Vec<SourceExtent>,
    error: Option<(u32, String)>,
}

struct State {
    jobs: HashMap<u64, UnderWay>,
    next_cookie: u64,
    lost: bool,
}

/// One connection.
pub struct Link {
    writer: Mutex<Socket>,
    socket: Socket,
    state: Mutex<State>,
    pub mode: HeaderMode,
    pub allocation: Option<u32>,
    request_timeout: Duration,
}

impl Link {
    /// The link, and the half that its reader needs.
    pub fn new(agreed: Agreed, request_timeout: Duration) -> io::Result<(Self, Socket)> {
        agreed.socket.set_timeouts(TICK, request_timeout)?;
        let (reader, socket) = (agreed.socket.try_clone()?, agreed.socket.try_clone()?);
        let state = State { jobs: HashMap::new(), next_cookie: 1, lost: false };
        let (mode, allocation) = (agreed.mode, agreed.allocation);
        let link = Self { writer: Mutex::new(agreed.socket), socket, state: Mutex::new(state), mode, allocation, request_timeout };
        Ok((link, reader))
    }

    /// Jobs under way; `None` when the connection is lost.
    pub fn load(&self) -> Option<usize> {
        let state = self.state.lock();
        (!state.lost).then_some(state.jobs.len())
    }

    /// Sends a job. Gives it back if the connection is lost.
    pub fn send(&self, job: Job) -> Result<(), Job> {
        let (command, length) =
            (if matches!(job.waiter, Waiter::Read(_)) { CMD_READ } else { CMD_BLOCK_STATUS }, job.range.end - job.range.start);
        let offset = job.range.start;
        let cookie = {
            let mut state = self.state.lock();
            if state.lost {
                return Err(job);
            }
            let cookie = state.next_cookie;
            state.next_cookie += 1;
            let buffer = if command == CMD_READ { BytesMut::zeroed(length as usize) } else { BytesMut::new() };
            let under_way = UnderWay { job, sent: Instant::now(), buffer, covered: Vec::new(), extents: Vec::new(), error: None };
            state.jobs.insert(cookie, under_way);
            cookie
        };
        let request = Request { flags: 0, command, cookie, offset, length };
        if self.writer.lock().write_all(&request.encode(self.mode == HeaderMode::Extended)).is_err() {
            // The reader sees the end of the socket and hands the job on with all others.
            self.socket.shut();
        }
        Ok(())
    }

    /// Says goodbye and ends the connection.
    pub fn close(&self) {
        let request = Request { flags: 0, command: CMD_DISC, cookie: 0, offset: 0, length: 0 };
        let _ = self.writer.lock().write_all(&request.encode(self.mode == HeaderMode::Extended));
        self.socket.shut();
    }

    /// Takes replies until the connection ends; answers why, and with the jobs that have no reply.
    pub fn run(&self, socket: Socket, mut complete: impl FnMut(Job, Answer)) -> (String, Vec<Job>) {
        let mut reader = Patient { link: self, inner: BufReader::with_capacity(64 << 10, socket) };
        let reason = loop {
            match self.take_reply(&mut reader) {
                Ok(None) => {}
                Ok(Some((job, answer))) => complete(job, answer),
                Err(error) => break error.to_string(),
            }
        };
        self.socket.shut();
        let mut state = self.state.lock();
        state.lost = true;
        let jobs = std::mem::take(&mut state.jobs);
        (reason, jobs.into_values().map(|under_way| under_way.job).collect())
    }

    fn oldest_is_too_old(&self) -> bool {
        self.state.lock().jobs.values().any(|under_way| under_way.sent.elapsed() > self.request_timeout)
    }

    /// Takes one reply or chunk; answers the job that it ends.
    fn take_reply(&self, reader: &mut Patient<'_>) -> io::Result<Option<(Job, Answer)>> {
        let mut header = [0; 32];
        reader.read_exact(&mut header[..ReplyHeader::MAGIC_BYTES])?;
        let magic = [header[0], header[1], header[2], header[3]];
        let length = ReplyHeader::header_bytes(magic, self.mode).map_err(protocol)?;
        reader.read_exact(&mut header[ReplyHeader::MAGIC_BYTES..length])?;
        match ReplyHeader::decode(&header[..length], self.mode).map_err(protocol)? {
            ReplyHeader::Simple { error, cookie } => self.take_simple(reader, error, cookie),
            ReplyHeader::Chunk(chunk) => self.take_chunk(reader, chunk),
        }
    }

    fn with_job<T>(&self, cookie: u64, take: impl FnOnce(&mut UnderWay) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        let under_way = state.jobs.get_mut(&cookie);
        take(under_way.ok_or_else(|| protocol(WireError(format!("a reply is for request {cookie}, which nobody made"))))?)
    }

    fn take_simple(&self, reader: &mut Patient<'_>, error: u32, cookie: u64) -> io::Result<Option<(Job, Answer)>> {
        if error != 0 {
            self.with_job(cookie, |under_way| {
                under_way.error = Some((error, String::new()));
                Ok(())
            })?;
            return self.end(cookie);
        }
        let (mut buffer, range) = self.with_job(cookie, |under_way| match under_way.job.waiter {
            Waiter::Read(_) if self.mode == HeaderMode::Simple => Ok((std::mem::take(&mut under_way.buffer), under_way.job.range.clone())),
            _ => Err(protocol(WireError("a simple reply where a chunk is due".into()))),
        })?;
        reader.read_exact(&mut buffer)?;
        self.with_job(cookie, |under_way| {
            under_way.buffer = buffer;
            under_way.covered.push(range);
            Ok(())
        })?;
        self.end(cookie)
    }

    fn take_chunk(&self, reader: &mut Patient<'_>, chunk: ChunkHeader) -> io::Result<Option<(Job, Answer)>> {
        if chunk.kind == REPLY_OFFSET_DATA {
            self.take_data(reader, chunk)?;
        } else {
            // Bounded when the header was decoded.
            let mut payload = vec![0; chunk.length as usize];
            reader.read_exact(&mut payload)?;
            let decoded = Chunk::decode(chunk.kind, &payload).map_err(protocol)?;
            self.with_job(chunk.cookie, |under_way| under_way.take(decoded, self.allocation).map_err(protocol))?;
        }
        if chunk.done { self.end(chunk.cookie) } else { Ok(None) }
    }

    /// Reads the bytes to where they belong, without a copy.
    fn take_data(&self, reader: &mut Patient<'_>, chunk: ChunkHeader) -> io::Result<()> {
        let mut offset = [0; 8];
        reader.read_exact(&mut offset)?;
        let start = u64::from_be_bytes(offset);
        let length = chunk.length.checked_sub(8).filter(|length| *length > 0);
        let length = length.ok_or_else(|| protocol(WireError("a data chunk has no data".into())))?;
        let (mut buffer, at) = self.with_job(chunk.cookie, |under_way| {
            let at = under_way.cover(start, length).map_err(protocol)?;
            Ok((std::mem::take(&mut under_way.buffer), at))
        })?;
        reader.read_exact(&mut buffer[at..at + length as usize])?;
        self.with_job(chunk.cookie, |under_way| {
            under_way.buffer = buffer;
            Ok(())
        })
    }

    fn end(&self, cookie: u64) -> io::Result<Option<(Job, Answer)>> {
        let Some(under_way) = self.state.lock().jobs.remove(&cookie) else { return Ok(None) };
        let length = under_way.job.range.end - under_way.job.range.start;
        let answer = match (&under_way.job.waiter, under_way.error) {
            // The server is about to go; another connection may find another one.
            (_, Some((ESHUTDOWN, _))) => {
                self.state.lock().jobs.insert(cookie, UnderWay { error: None, covered: Vec::new(), ..under_way });
                return Err(io::Error::other("the server shuts down"));
            }
            (_, Some((error, text))) => Answer::Error(error, text),
            (Waiter::Read(_), None) => {
                let covered: u64 = under_way.covered.iter().map(|range| range.end - range.start).sum();
                if covered != length {
                    self.state.lock().jobs.insert(cookie, UnderWay { error: None, covered: Vec::new(), ..under_way });
                    return Err(protocol(WireError(format!("a read of {length} bytes got {covered}"))));
                }
                Answer::Bytes(under_way.buffer.freeze())
            }
            (Waiter::Status(_), None) => Answer::Extents(under_way.extents),
        };
        Ok(Some((under_way.job, answer)))
    }
}

fn protocol(error: WireError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server breaks the protocol: {error}"))
}

impl UnderWay {
    /// Notes that bytes have come; answers where they go. Each byte comes once.
    fn cover(&mut self, start: u64, length: u64) -> Result<usize, WireError> {
        let range = &self.job.range;
        let end = start.checked_add(length).filter(|end| start >= range.start && *end <= range.end);
        let end = end.ok_or_else(|| WireError(format!("{length} bytes at {start} are not what was asked for")))?;
        if !matches!(self.job.waiter, Waiter::Read(_)) || self.covered.iter().any(|other| other.start < end && start < other.end) {
            return Err(WireError(format!("bytes at {start} come twice, or for a request that is no read")));
        }
        self.covered.push(start..end);
        Ok((start - range.start) as usize)
    }

    fn take(&mut self, chunk: Chunk<'_>, allocation: Option<u32>) -> Result<(), WireError> {
        match chunk {
            Chunk::None => {}
            Chunk::Data(..) => return Err(WireError("a data chunk in a wrong place".into())),
            // The buffer began as zeros.
            Chunk::Hole(offset, length) => drop(self.cover(offset, u64::from(length))?),
            Chunk::Error(error, text) => self.error = Some((error, text)),
            Chunk::Status(context, _) if Some(context) != allocation => {}
            Chunk::Status(_, extents) => {
                let mut left = self.job.range.end - self.job.range.start;
                for extent in extents {
                    let bytes = extent.length.min(left);
                    let zero = extent.flags & u64::from(STATE_ZERO) != 0;
                    left -= bytes;
                    match self.extents.last_mut() {
                        Some(last) if last.zero == zero => last.bytes += bytes,
                        _ if bytes > 0 => self.extents.push(SourceExtent { bytes, zero }),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }
}

/// Reads on through the ticks of the socket, until a request has waited too long.
struct Patient<'a> {
    link: &'a Link,
    inner: BufReader<Socket>,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.read(buffer) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if self.link.oldest_is_too_old() {
                        return Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer a request"));
                    }
                }
                other => return other,
            }
        }
    }
}
