//! One connection and what it has under way.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::ops::Range;
use std::time::Duration;

use super::address::Socket;
use super::assembly::Assembly;
use super::handshake::{Agreed, Contexts, Topic};
use crate::source::{Checksums, OnArrival, ReadClass, SourceError};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::time::Instant;
use crate::wire::constants::{
    CHECKSUM_KNOWN, CMD_BLOCK_STATUS, CMD_DISC, CMD_FLAG_PAYLOAD_LEN, CMD_READ, ESHUTDOWN, REPLY_OFFSET_DATA, REPLY_OFFSET_HOLE,
};
use crate::wire::{Chunk, ChunkHeader, HeaderMode, ReplyHeader, Request, StatusExtent, StatusQuery, WireError};

/// How often a reader looks whether the oldest request is too old.
const TICK: Duration = Duration::from_millis(500);

/// Most chunks in a row that neither bring bytes nor end a request: bounds a server that never ends a reply.
const IDLE_CHUNKS_MAX: u32 = 1024;

/// Called with the extents of a range.
pub type StatusDone = Box<dyn FnOnce(Result<Vec<StatusExtent>, SourceError>) + Send>;

/// Who waits for a request.
pub enum Waiter {
    Read(ReadClass, OnArrival),
    /// Block status on this topic.
    Status(Topic, StatusDone),
}

/// A request and how often it was tried.
pub struct Job {
    pub range: Range<u64>,
    pub waiter: Waiter,
    pub tries: u32,
}

impl Job {
    /// Bytes that the server sends for it, about.
    fn bytes(&self) -> u64 {
        if matches!(self.waiter, Waiter::Read(..)) { self.range.end - self.range.start } else { 0 }
    }

    /// One more try was in vain.
    pub fn tried(self) -> Self {
        Self { tries: self.tries.saturating_add(1), ..self }
    }
}

/// How the server answered a job. The bytes of a read went to its waiter.
pub enum Answer {
    Read,
    Extents(Vec<StatusExtent>),
    Error(u32, String),
}

/// A job under way, with what has come for it so far.
struct UnderWay {
    job: Job,
    sent: Instant,
    assembly: Assembly,
    extents: Vec<StatusExtent>,
    error: Option<(u32, String)>,
    /// The last chunk has come.
    over: bool,
    /// The checksums of the read have not come yet.
    awaits_checksums: bool,
}

/// What a reply is for.
enum Entry {
    Job(Box<UnderWay>),
    /// Checksums of the read with this cookie.
    Checksums(u64, Range<u64>),
}

struct State {
    /// By cookie, so in the order in which they were sent.
    entries: BTreeMap<u64, Entry>,
    next_cookie: u64,
    bytes_under_way: u64,
    jobs: usize,
    lost: bool,
    /// Bytes of reads that replies have brought so far.
    brought: u64,
    oldest: Option<Oldest>,
}

/// The request that was sent before all others under way, and how things stood when it became that.
struct Oldest {
    cookie: u64,
    since: Instant,
    /// As much has been brought when everything that was under way then has come.
    enough: u64,
}

/// How a connection ended.
pub struct Lost {
    pub reason: String,
    /// A request waited too long.
    pub unanswered: bool,
    /// The jobs that have no reply.
    pub jobs: Vec<Job>,
}

/// One connection.
pub struct Link {
    writer: Mutex<Socket>,
    socket: Socket,
    state: Mutex<State>,
    mode: HeaderMode,
    contexts: Contexts,
    request_timeout: Duration,
    /// What it takes gives way to the foreground.
    pub in_background: bool,
    /// Only reads that somebody waits for go here, so that they never stand behind bulk.
    pub reserved: AtomicBool,
}

impl Link {
    /// The link, and the half that its reader needs.
    pub fn new(agreed: Agreed, request_timeout: Duration, in_background: bool) -> io::Result<(Self, Socket)> {
        agreed.socket.set_timeouts(TICK, request_timeout)?;
        let (reader, socket) = (agreed.socket.try_clone()?, agreed.socket.try_clone()?);
        let state = State { entries: BTreeMap::new(), next_cookie: 1, bytes_under_way: 0, jobs: 0, lost: false, brought: 0, oldest: None };
        let link = Self {
            writer: Mutex::new(agreed.socket),
            socket,
            state: Mutex::new(state),
            mode: agreed.mode,
            contexts: agreed.contexts,
            request_timeout,
            in_background,
            reserved: AtomicBool::new(false),
        };
        Ok((link, reader))
    }

    /// Jobs under way and their bytes; `None` when the connection is lost.
    pub fn load(&self) -> Option<(usize, u64)> {
        let state = self.state.lock();
        (!state.lost).then_some((state.jobs, state.bytes_under_way))
    }

    /// Whether it takes jobs of this kind while there are others.
    pub fn takes(&self, job: &Job) -> bool {
        !self.reserved.load(Ordering::Relaxed) || matches!(job.waiter, Waiter::Read(ReadClass::Waited, _))
    }

    fn status_request(&self, cookie: u64, range: &Range<u64>, context: u32, out: &mut Vec<u8>) {
        let length = range.end - range.start;
        let extended = self.mode == HeaderMode::Extended;
        // With several contexts agreed on, only the one that is wanted is asked for.
        let payload = if self.contexts.are_selectable { StatusQuery { length, contexts: vec![context] }.encode() } else { Vec::new() };
        let (flags, length) = if payload.is_empty() { (0, length) } else { (CMD_FLAG_PAYLOAD_LEN, payload.len() as u64) };
        let request = Request { flags, command: CMD_BLOCK_STATUS, cookie, offset: range.start, length };
        out.extend_from_slice(&request.encode(extended));
        out.extend_from_slice(&payload);
    }

    /// Sends a job. Gives it back if the connection is lost.
    pub fn send(&self, job: Job) -> Result<(), Job> {
        let range = job.range.clone();
        let extended = self.mode == HeaderMode::Extended;
        let mut out = Vec::with_capacity(128);
        {
            let mut state = self.state.lock();
            if state.lost {
                return Err(job);
            }
            let cookie = state.next_cookie;
            state.next_cookie += 2;
            let mut awaits_checksums = false;
            match (&job.waiter, self.contexts.checksums) {
                // All connections of a source have the same topics.
                (Waiter::Status(topic, _), _) => {
                    self.status_request(cookie, &range, self.contexts.number(*topic).unwrap_or_default(), &mut out);
                }
                (Waiter::Read(..), checksums) => {
                    if let Some(context) = checksums {
                        awaits_checksums = true;
                        self.status_request(cookie + 1, &range, context, &mut out);
                        state.entries.insert(cookie + 1, Entry::Checksums(cookie, range.clone()));
                    }
                    let request = Request { flags: 0, command: CMD_READ, cookie, offset: range.start, length: range.end - range.start };
                    out.extend_from_slice(&request.encode(extended));
                }
            }
            state.bytes_under_way += job.bytes();
            state.jobs += 1;
            state.entries.insert(cookie, Entry::Job(Box::new(UnderWay::new(job, awaits_checksums))));
        }
        if self.writer.lock().write_all(&out).is_err() {
            // The reader sees the end of the socket and hands the job on with all others.
            self.socket.shut();
        }
        Ok(())
    }

    /// Says goodbye, if that needs no waiting, and ends the connection.
    pub fn close(&self) {
        let request = Request { flags: 0, command: CMD_DISC, cookie: 0, offset: 0, length: 0 };
        // A writer that is inside waits for a server that takes nothing: it does not take this either.
        if let Some(writer) = self.writer.try_lock() {
            writer.send_now(&request.encode(self.mode == HeaderMode::Extended));
        }
        self.socket.shut();
    }

    /// Takes replies until the connection ends.
    pub fn run(&self, socket: Socket, mut complete: impl FnMut(Job, Answer)) -> Lost {
        let inner = BufReader::with_capacity(64 << 10, socket);
        let mut reader = Patient { link: self, inner, in_reply: false, progress: Instant::now() };
        let mut idle_chunks = 0;
        let reason = loop {
            match self.take_reply(&mut reader, &mut idle_chunks) {
                Ok(None) if idle_chunks > IDLE_CHUNKS_MAX => break protocol(WireError("a reply has no end".into())).to_string(),
                Ok(None) => {}
                Ok(Some((job, answer))) => complete(job, answer),
                Err(error) => break error.to_string(),
            }
        };
        self.give_up(reason)
    }

    /// Ends the connection and takes back what it has under way.
    pub fn give_up(&self, reason: String) -> Lost {
        self.socket.shut();
        let unanswered = self.is_unanswered();
        let mut state = self.state.lock();
        state.lost = true;
        let entries = std::mem::take(&mut state.entries);
        let jobs = entries.into_values().filter_map(|entry| match entry {
            // A try that took all the time there is counts twice: nobody wants to wait for it as often as for a quick one.
            Entry::Job(under_way) if under_way.sent.elapsed() > self.request_timeout => Some(under_way.job.tried()),
            Entry::Job(under_way) => Some(under_way.job),
            Entry::Checksums(..) => None,
        });
        Lost { reason, unanswered, jobs: jobs.collect() }
    }

    /// Whether a request has waited too long, if nothing comes.
    fn is_unanswered(&self) -> bool {
        let too_old = |entry: &Entry| matches!(entry, Entry::Job(under_way) if under_way.sent.elapsed() > self.request_timeout);
        self.state.lock().entries.values().any(too_old)
    }

    /// Whether the oldest request is passed over: it has waited too long, and all that was under way beside it could have come since.
    /// A slow way alone does not count, and so not the time since it was sent.
    fn is_passed_over(&self) -> bool {
        let mut state = self.state.lock();
        let State { entries, bytes_under_way, brought, oldest, .. } = &mut *state;
        match (entries.first_key_value(), &*oldest) {
            (None, _) => *oldest = None,
            (Some((first, _)), Some(Oldest { cookie, since, enough })) if first == cookie => {
                return since.elapsed() > self.request_timeout && *brought >= *enough;
            }
            (Some((first, _)), _) => *oldest = Some(Oldest { cookie: *first, since: Instant::now(), enough: *brought + *bytes_under_way }),
        }
        false
    }

    /// Takes one reply or chunk; answers the job that it ends.
    fn take_reply(&self, reader: &mut Patient<'_>, idle_chunks: &mut u32) -> io::Result<Option<(Job, Answer)>> {
        if self.is_passed_over() {
            return Err(unanswered());
        }
        let mut header = [0; 32];
        reader.in_reply = false;
        reader.read_exact(&mut header[..ReplyHeader::MAGIC_BYTES])?;
        reader.in_reply = true;
        let magic = [header[0], header[1], header[2], header[3]];
        let length = ReplyHeader::header_bytes(magic, self.mode).map_err(protocol)?;
        reader.read_exact(&mut header[ReplyHeader::MAGIC_BYTES..length])?;
        match ReplyHeader::decode(&header[..length], self.mode).map_err(protocol)? {
            ReplyHeader::Simple { error, cookie } => self.take_simple(reader, error, cookie),
            ReplyHeader::Chunk(chunk) => {
                let brings = chunk.done || matches!(chunk.kind, REPLY_OFFSET_DATA | REPLY_OFFSET_HOLE);
                *idle_chunks = if brings { 0 } else { *idle_chunks + 1 };
                self.take_chunk(reader, chunk)
            }
        }
    }

    /// Takes the job of a cookie out of the table, so that its waiter can be called without locks; only this thread does so.
    fn take_job(&self, cookie: u64) -> io::Result<Box<UnderWay>> {
        match self.state.lock().entries.remove(&cookie) {
            Some(Entry::Job(under_way)) => Ok(under_way),
            _ => Err(protocol(WireError(format!("a reply is for request {cookie}, which nobody made")))),
        }
    }

    fn put_back(&self, cookie: u64, under_way: Box<UnderWay>) {
        self.state.lock().entries.insert(cookie, Entry::Job(under_way));
    }

    fn take_simple(&self, reader: &mut Patient<'_>, error: u32, cookie: u64) -> io::Result<Option<(Job, Answer)>> {
        let mut under_way = self.take_job(cookie)?;
        under_way.over = true;
        let result = match (&under_way.job.waiter, error) {
            (_, 1..) => {
                under_way.error = Some((error, String::new()));
                Ok(())
            }
            (Waiter::Read(..), 0) if self.mode == HeaderMode::Simple => {
                let range = under_way.job.range.clone();
                under_way.take_bytes(reader, range)
            }
            _ => Err(protocol(WireError("a simple reply where a chunk is due".into()))),
        };
        self.put_back(cookie, under_way);
        result?;
        self.end(cookie)
    }

    fn take_chunk(&self, reader: &mut Patient<'_>, chunk: ChunkHeader) -> io::Result<Option<(Job, Answer)>> {
        let companion = match self.state.lock().entries.get(&chunk.cookie) {
            Some(Entry::Checksums(read, range)) => Some((*read, range.clone())),
            _ => None,
        };
        if let Some((read, range)) = companion {
            return self.take_checksums(reader, chunk, read, &range);
        }
        let mut under_way = self.take_job(chunk.cookie)?;
        let result = under_way.take_chunk(reader, chunk);
        under_way.over |= chunk.done;
        let over = under_way.over;
        self.put_back(chunk.cookie, under_way);
        result?;
        if over { self.end(chunk.cookie) } else { Ok(None) }
    }

    /// A chunk of the status request that went with a read.
    fn take_checksums(
        &self,
        reader: &mut Patient<'_>,
        chunk: ChunkHeader,
        read: u64,
        range: &Range<u64>,
    ) -> io::Result<Option<(Job, Answer)>> {
        let mut payload = vec![0; chunk.length as usize];
        reader.read_exact(&mut payload)?;
        let decoded = Chunk::decode(chunk.kind, &payload).map_err(protocol)?;
        if chunk.done {
            self.state.lock().entries.remove(&chunk.cookie);
        }
        let Ok(mut under_way) = self.take_job(read) else { return Ok(None) };
        if let Chunk::Status(_, extents) = decoded {
            under_way.assembly.checksums = checksums(&extents, range, self.contexts.block_bytes);
        }
        // Without an answer the bytes count as they are.
        under_way.awaits_checksums &= !chunk.done;
        under_way.deliver();
        let over = under_way.over;
        self.put_back(read, under_way);
        if over { self.end(read) } else { Ok(None) }
    }

    /// Ends a job whose last chunk has come, once its checksums have.
    fn end(&self, cookie: u64) -> io::Result<Option<(Job, Answer)>> {
        let under_way = self.take_job(cookie)?;
        if under_way.awaits_checksums && under_way.error.is_none() {
            self.put_back(cookie, under_way);
            return Ok(None);
        }
        let failure = match (&under_way.error, under_way.assembly.missing_bytes()) {
            // The server is about to go; another connection may find another one.
            (Some((ESHUTDOWN, _)), _) => Some(io::Error::other("the server shuts down")),
            (None, missing @ 1..) if matches!(under_way.job.waiter, Waiter::Read(..)) => {
                Some(protocol(WireError(format!("{missing} bytes of a read did not come"))))
            }
            _ => None,
        };
        if let Some(failure) = failure {
            self.put_back(cookie, under_way);
            return Err(failure);
        }
        let UnderWay { job, error, extents, .. } = *under_way;
        let mut state = self.state.lock();
        state.bytes_under_way -= job.bytes();
        state.jobs -= 1;
        drop(state);
        let answer = match (error, &job.waiter) {
            (Some((error, text)), _) => Answer::Error(error, text),
            (None, Waiter::Read(..)) => Answer::Read,
            (None, Waiter::Status(..)) => Answer::Extents(extents),
        };
        Ok(Some((job, answer)))
    }
}

fn protocol(error: WireError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server breaks the protocol: {error}"))
}

/// What the checksum context of a volfork server says of a range.
fn checksums(extents: &[StatusExtent], range: &Range<u64>, block_bytes: u32) -> Checksums {
    let known = |extent: &StatusExtent| extent.flags & CHECKSUM_KNOWN != 0;
    let (size, block_bytes) = (block_bytes, u64::from(block_bytes));
    let first = range.start.next_multiple_of(block_bytes);
    let blocks = range.end.saturating_sub(first).div_ceil(block_bytes);
    let mut values = vec![None; blocks as usize];
    let mut offset = range.start;
    for extent in extents {
        let slot = offset.checked_sub(first).filter(|_| offset.is_multiple_of(block_bytes)).map(|bytes| (bytes / block_bytes) as usize);
        if let Some(value) = slot.and_then(|slot| values.get_mut(slot)).filter(|_| known(extent)) {
            *value = Some(extent.flags as u32);
        }
        offset = offset.saturating_add(extent.length);
    }
    Checksums { block_bytes: size, first, values }
}

impl UnderWay {
    fn new(job: Job, awaits_checksums: bool) -> Self {
        let assembly = Assembly::new(job.range.clone());
        Self { job, sent: Instant::now(), assembly, extents: Vec::new(), error: None, over: false, awaits_checksums }
    }

    /// Hands parts that are whole to the waiter, unless their checksums are still to come.
    fn deliver(&mut self) {
        if let (false, Waiter::Read(_, arrival)) = (self.awaits_checksums, &mut self.job.waiter) {
            for part in self.assembly.take_whole() {
                arrival.part(part);
            }
        }
    }

    fn take_chunk(&mut self, reader: &mut Patient<'_>, chunk: ChunkHeader) -> io::Result<()> {
        if chunk.kind == REPLY_OFFSET_DATA {
            let mut offset = [0; 8];
            reader.read_exact(&mut offset)?;
            let start = u64::from_be_bytes(offset);
            let length = chunk.length.checked_sub(8).filter(|length| *length > 0);
            let end = length.and_then(|length| start.checked_add(length));
            return self.take_bytes(reader, start..end.ok_or_else(|| protocol(WireError("a data chunk has no data".into())))?);
        }
        // Bounded when the header was decoded.
        let mut payload = vec![0; chunk.length as usize];
        reader.read_exact(&mut payload)?;
        let decoded = Chunk::decode(chunk.kind, &payload).map_err(protocol)?;
        match (decoded, &self.job.waiter) {
            (Chunk::None, _) => {}
            (Chunk::Hole(offset, length), Waiter::Read(..)) => {
                let end = offset.checked_add(length).ok_or_else(|| protocol(WireError("a hole has no end".into())))?;
                self.assembly.fill_zeros(offset..end).map_err(protocol)?;
                reader.link.state.lock().brought += length;
                self.deliver();
            }
            (Chunk::Error(error, text), _) => self.error = Some((error, text)),
            (Chunk::Status(context, extents), Waiter::Status(topic, _)) if reader.link.contexts.number(*topic) == Some(context) => {
                self.extents = extents;
            }
            (Chunk::Status(..), _) => {}
            _ => return Err(protocol(WireError("a chunk does not fit its request".into()))),
        }
        Ok(())
    }

    /// Reads bytes to where they belong; whole parts go to the waiter at once.
    fn take_bytes(&mut self, reader: &mut Patient<'_>, range: Range<u64>) -> io::Result<()> {
        if !matches!(self.job.waiter, Waiter::Read(..)) {
            return Err(protocol(WireError("data for a request that is no read".into())));
        }
        self.assembly.check(&range).map_err(protocol)?;
        let mut at = range.start;
        while at < range.end {
            at = self.assembly.fill(at..range.end, |buffer| reader.read_exact(buffer))?;
            self.deliver();
        }
        reader.link.state.lock().brought += range.end - range.start;
        Ok(())
    }
}

fn unanswered() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the server does not answer a request")
}

/// Reads on through the ticks of the socket, until a request has waited too long, or nothing more comes of a reply that has begun.
struct Patient<'a> {
    link: &'a Link,
    inner: BufReader<Socket>,
    in_reply: bool,
    /// When bytes came the last time.
    progress: Instant,
}

impl Patient<'_> {
    fn is_at_end(&self) -> bool {
        (self.in_reply && self.progress.elapsed() > self.link.request_timeout) || self.link.is_unanswered()
    }
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.read(buffer) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if self.is_at_end() {
                        return Err(unanswered());
                    }
                }
                Ok(count) => {
                    self.progress = Instant::now();
                    return Ok(count);
                }
                Err(error) => return Err(error),
            }
        }
    }
}
