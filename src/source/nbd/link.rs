//! One connection: its requests under way, and its send buffer.
//!
//! Nothing here blocks. Bytes for which the socket has no room are buffered and sent when the reactor sees room. The requests under way
//! bound the buffer.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::Duration;

use super::handshake::{Agreed, Contexts};
use super::job::{Answer, Job, Waiter};
use super::reactor::Place;
use super::under_way::{UnderWay, protocol};
use crate::io::Socket;
use crate::place::wide;
use crate::source::ReadClass;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::time::Instant;
use crate::sync::{Mutex, OnceLock, Rank};
use crate::wire::constants::{CMD_BLOCK_STATUS, CMD_DISC, CMD_FLAG_PAYLOAD_LEN, CMD_READ, ESHUTDOWN};
use crate::wire::{HeaderMode, Request, StatusQuery, WireError};

/// The request that a cookie stands for.
pub(super) enum Entry {
    Job(Box<UnderWay>),
    /// A block status request for the checksums of the read with this cookie.
    Checksums(u64, Range<u64>),
}

struct State {
    /// By cookie. Cookies grow, so this is also the order of sending.
    entries: BTreeMap<u64, Entry>,
    next_cookie: u64,
    bytes_under_way: u64,
    jobs: usize,
    lost: bool,
    /// Bytes of reads received on this connection.
    brought: u64,
    oldest: Option<Oldest>,
}

/// The oldest request under way, with the state of the connection when it became the oldest.
struct Oldest {
    cookie: u64,
    since: Instant,
    /// Value of `brought` at which everything that was under way then has arrived.
    enough: u64,
}

/// A connection that has ended.
pub struct Lost {
    pub reason: String,
    /// It was given up because a request waited too long.
    pub unanswered: bool,
    /// The jobs that have no reply.
    pub jobs: Vec<Job>,
}

/// One connection.
pub struct Link {
    pub socket: Socket,
    pub made: Instant,
    /// Bytes for which the socket had no room.
    unsent: Mutex<Vec<u8>>,
    /// Its place in the poll set of its reactor.
    place: OnceLock<Place>,
    state: Mutex<State>,
    pub mode: HeaderMode,
    pub contexts: Contexts,
    pub request_timeout: Duration,
    /// Served by the reactor of the background, which yields to the foreground.
    pub in_background: bool,
    /// Takes only reads of class `Waited`, so that these never queue behind bulk.
    pub reserved: AtomicBool,
}

impl Link {
    /// # Errors
    /// The socket cannot be made non-blocking.
    pub fn new(agreed: Agreed, request_timeout: Duration, in_background: bool) -> io::Result<Self> {
        agreed.socket.set_patience(None)?;
        let state = State { entries: BTreeMap::new(), next_cookie: 1, bytes_under_way: 0, jobs: 0, lost: false, brought: 0, oldest: None };
        Ok(Self {
            socket: agreed.socket,
            made: Instant::now(),
            unsent: Mutex::ranked(Rank::NbdUnsent, Vec::new()),
            place: OnceLock::new(),
            state: Mutex::ranked(Rank::NbdLink, state),
            mode: agreed.mode,
            contexts: agreed.contexts,
            request_timeout,
            in_background,
            reserved: AtomicBool::new(false),
        })
    }

    /// Number and bytes of the jobs under way; `None` if the connection is lost.
    pub fn load(&self) -> Option<(usize, u64)> {
        let state = self.state.lock();
        (!state.lost).then_some((state.jobs, state.bytes_under_way))
    }

    /// Whether this connection accepts the job, if the source has other connections.
    pub fn takes(&self, job: &Job) -> bool {
        !self.reserved.load(Ordering::Relaxed) || matches!(job.waiter, Waiter::Read(ReadClass::Waited, _))
    }

    fn status_request(&self, cookie: u64, range: &Range<u64>, context: u32, out: &mut Vec<u8>) {
        let length = range.end - range.start;
        let extended = self.mode == HeaderMode::Extended;
        // With extended headers a request selects the one context that is wanted.
        let payload = if self.contexts.are_selectable { StatusQuery { length, contexts: vec![context] }.encode() } else { Vec::new() };
        let (flags, length) = if payload.is_empty() { (0, length) } else { (CMD_FLAG_PAYLOAD_LEN, wide(payload.len())) };
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
                // All connections of a source have the same contexts.
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
        if self.send_bytes(&out).is_err() {
            // The reactor sees the end of the socket and hands the job on with all others.
            self.socket.shut();
        }
        Ok(())
    }

    /// Appends bytes to the send buffer and sends as many as the socket takes.
    fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let mut unsent = self.unsent.lock();
        if !unsent.is_empty() {
            unsent.extend_from_slice(bytes);
            return Ok(());
        }
        let sent = self.send_some(bytes)?;
        if sent < bytes.len() {
            unsent.extend_from_slice(&bytes[sent..]);
            self.set_writable(true);
        }
        Ok(())
    }

    fn send_some(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.socket.send(&[IoSlice::new(bytes)]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                sent => return sent,
            }
        }
    }

    fn set_writable(&self, writable: bool) {
        if let Some(place) = self.place.get() {
            place.set_writable(self.socket.as_fd(), writable);
        }
    }

    /// Sets its place in the poll set of its reactor.
    pub fn set_place(&self, place: Place) {
        let unsent = self.unsent.lock();
        self.place.get_or_init(|| place);
        // A request may have been sent before the place was known.
        if !unsent.is_empty() {
            self.set_writable(true);
        }
    }

    /// Sends the buffer as far as the socket has room.
    ///
    /// # Errors
    /// The socket has ended.
    pub fn send_unsent(&self) -> io::Result<()> {
        let mut unsent = self.unsent.lock();
        let sent = self.send_some(&unsent)?;
        unsent.drain(..sent);
        if unsent.is_empty() {
            self.set_writable(false);
        }
        Ok(())
    }

    /// Sends a disconnect if that does not block, and shuts the connection down.
    pub fn close(&self) {
        let request = Request { flags: 0, command: CMD_DISC, cookie: 0, offset: 0, length: 0 };
        // Behind a half-sent request a disconnect would be read as part of it.
        if self.unsent.lock().is_empty() {
            self.socket.send_now(&request.encode(self.mode == HeaderMode::Extended));
        }
        self.socket.shut();
    }

    /// Ends the connection if it has nothing under way. Returns whether it did.
    pub fn close_if_idle(&self) -> bool {
        {
            let mut state = self.state.lock();
            if state.lost || state.jobs > 0 {
                return false;
            }
            state.lost = true;
        }
        self.close();
        true
    }

    /// Ends the connection and returns its jobs under way.
    pub fn give_up(&self, reason: String) -> Lost {
        self.socket.shut();
        let unanswered = self.is_unanswered();
        let mut state = self.state.lock();
        state.lost = true;
        let entries = std::mem::take(&mut state.entries);
        let jobs = entries.into_values().filter_map(|entry| match entry {
            // A try that has timed out counts twice, so that a job is retried less often after timeouts than after quick failures.
            Entry::Job(under_way) if under_way.sent.elapsed() > self.request_timeout => Some(under_way.job.tried()),
            Entry::Job(under_way) => Some(under_way.job),
            Entry::Checksums(..) => None,
        });
        Lost { reason, unanswered, jobs: jobs.collect() }
    }

    /// Whether a request has waited longer than its timeout. Valid only while no bytes arrive.
    pub fn is_unanswered(&self) -> bool {
        let too_old = |entry: &Entry| matches!(entry, Entry::Job(under_way) if under_way.sent.elapsed() > self.request_timeout);
        self.state.lock().entries.values().any(too_old)
    }

    /// Whether the server starves the oldest request: it has waited too long, and as many bytes as were under way beside it have arrived
    /// since. A slow network alone does not count, so the time since sending alone does not either.
    pub fn is_passed_over(&self) -> bool {
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

    /// Takes the job of a cookie out of the table, so that its waiter can be called without locks. Only the reactor calls this.
    ///
    /// # Errors
    /// No request under way has this cookie.
    pub fn take_job(&self, cookie: u64) -> io::Result<Box<UnderWay>> {
        match self.state.lock().entries.remove(&cookie) {
            Some(Entry::Job(under_way)) => Ok(under_way),
            _ => Err(protocol(WireError(format!("a reply is for request {cookie}, which was never sent")))),
        }
    }

    /// Puts the job back and counts the `brought` bytes.
    pub fn put_back(&self, cookie: u64, under_way: Box<UnderWay>, brought: u64) {
        let mut state = self.state.lock();
        state.brought += brought;
        state.entries.insert(cookie, Entry::Job(under_way));
    }

    /// The read whose checksums the request with this cookie asks for, and its range.
    pub fn read_of(&self, cookie: u64) -> Option<(u64, Range<u64>)> {
        match self.state.lock().entries.get(&cookie) {
            Some(Entry::Checksums(read, range)) => Some((*read, range.clone())),
            _ => None,
        }
    }

    /// Removes a request whose last reply has arrived.
    pub fn remove(&self, cookie: u64) {
        self.state.lock().entries.remove(&cookie);
    }

    /// Ends a job whose last chunk has arrived, once its checksums have arrived too.
    ///
    /// # Errors
    /// Bytes are missing, or the server shuts down.
    pub fn end(&self, cookie: u64) -> io::Result<Option<(Job, Answer)>> {
        let under_way = self.take_job(cookie)?;
        if under_way.awaits_checksums && under_way.error.is_none() {
            self.put_back(cookie, under_way, 0);
            return Ok(None);
        }
        let failure = match (&under_way.error, under_way.assembly.missing_bytes()) {
            // The server is shutting down; a new connection may reach its successor.
            (Some((ESHUTDOWN, _)), _) => Some(io::Error::other("the server shuts down")),
            (None, missing @ 1..) if under_way.job.is_read() => Some(protocol(WireError(format!("{missing} bytes of a read are missing")))),
            _ => None,
        };
        if let Some(failure) = failure {
            self.put_back(cookie, under_way, 0);
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
