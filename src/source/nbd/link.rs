//! One connection: what it has under way, and what is sent on it.
//!
//! Nothing here blocks. What a socket has no room for is kept, and sent when its reactor sees room; that is bounded by the requests
//! under way.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::Duration;

use super::address::Socket;
use super::handshake::{Agreed, Contexts};
use super::job::{Answer, Job, Waiter};
use super::reactor::Place;
use super::under_way::{UnderWay, protocol};
use crate::source::ReadClass;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::time::Instant;
use crate::sync::{Mutex, OnceLock};
use crate::wire::constants::{CMD_BLOCK_STATUS, CMD_DISC, CMD_FLAG_PAYLOAD_LEN, CMD_READ, ESHUTDOWN};
use crate::wire::{HeaderMode, Request, StatusQuery, WireError};

/// What a reply is for.
pub(super) enum Entry {
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
    pub socket: Socket,
    /// Bytes for which the socket had no room.
    unsent: Mutex<Vec<u8>>,
    /// Where its reactor has it.
    place: OnceLock<Place>,
    state: Mutex<State>,
    pub mode: HeaderMode,
    pub contexts: Contexts,
    pub request_timeout: Duration,
    /// What it takes gives way to the foreground.
    pub in_background: bool,
    /// Only reads that somebody waits for go here, so that they never stand behind bulk.
    pub reserved: AtomicBool,
}

impl Link {
    /// # Errors
    /// What the kernel says of the socket.
    pub fn new(agreed: Agreed, request_timeout: Duration, in_background: bool) -> io::Result<Self> {
        agreed.socket.set_nonblocking()?;
        let state = State { entries: BTreeMap::new(), next_cookie: 1, bytes_under_way: 0, jobs: 0, lost: false, brought: 0, oldest: None };
        Ok(Self {
            socket: agreed.socket,
            unsent: Mutex::new(Vec::new()),
            place: OnceLock::new(),
            state: Mutex::new(state),
            mode: agreed.mode,
            contexts: agreed.contexts,
            request_timeout,
            in_background,
            reserved: AtomicBool::new(false),
        })
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
        if self.send_bytes(&out).is_err() {
            // The reactor sees the end of the socket and hands the job on with all others.
            self.socket.shut();
        }
        Ok(())
    }

    /// Sends bytes behind those that wait for room, as far as there is room.
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
            match self.socket.send(bytes) {
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

    /// Notes where its reactor has it.
    pub fn set_place(&self, place: Place) {
        let unsent = self.unsent.lock();
        self.place.get_or_init(|| place);
        // A request may have come before.
        if !unsent.is_empty() {
            self.set_writable(true);
        }
    }

    /// Sends what waits for room.
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

    /// Says goodbye, if that needs no waiting, and ends the connection.
    pub fn close(&self) {
        let request = Request { flags: 0, command: CMD_DISC, cookie: 0, offset: 0, length: 0 };
        // Half a request is no place for it.
        if self.unsent.lock().is_empty() {
            self.socket.send_now(&request.encode(self.mode == HeaderMode::Extended));
        }
        self.socket.shut();
    }

    /// Ends the connection if it has nothing under way; answers whether.
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
    pub fn is_unanswered(&self) -> bool {
        let too_old = |entry: &Entry| matches!(entry, Entry::Job(under_way) if under_way.sent.elapsed() > self.request_timeout);
        self.state.lock().entries.values().any(too_old)
    }

    /// Whether the oldest request is passed over: it has waited too long, and all that was under way beside it could have come since.
    /// A slow way alone does not count, and so not the time since it was sent.
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

    /// Takes the job of a cookie out of the table, so that its waiter can be called without locks; only the reactor does so.
    ///
    /// # Errors
    /// Nobody made that request.
    pub fn take_job(&self, cookie: u64) -> io::Result<Box<UnderWay>> {
        match self.state.lock().entries.remove(&cookie) {
            Some(Entry::Job(under_way)) => Ok(under_way),
            _ => Err(protocol(WireError(format!("a reply is for request {cookie}, which nobody made")))),
        }
    }

    /// Puts it back, and counts the bytes that it was brought.
    pub fn put_back(&self, cookie: u64, under_way: Box<UnderWay>, brought: u64) {
        let mut state = self.state.lock();
        state.brought += brought;
        state.entries.insert(cookie, Entry::Job(under_way));
    }

    /// The read for which the replies with this cookie bring checksums, and its range.
    pub fn read_of(&self, cookie: u64) -> Option<(u64, Range<u64>)> {
        match self.state.lock().entries.get(&cookie) {
            Some(Entry::Checksums(read, range)) => Some((*read, range.clone())),
            _ => None,
        }
    }

    /// No more replies with this cookie come.
    pub fn remove(&self, cookie: u64) {
        self.state.lock().entries.remove(&cookie);
    }

    /// Ends a job whose last chunk has come, once its checksums have.
    ///
    /// # Errors
    /// Its bytes have not come, or the server goes.
    pub fn end(&self, cookie: u64) -> io::Result<Option<(Job, Answer)>> {
        let under_way = self.take_job(cookie)?;
        if under_way.awaits_checksums && under_way.error.is_none() {
            self.put_back(cookie, under_way, 0);
            return Ok(None);
        }
        let failure = match (&under_way.error, under_way.assembly.missing_bytes()) {
            // The server is about to go; another connection may find another one.
            (Some((ESHUTDOWN, _)), _) => Some(io::Error::other("the server shuts down")),
            (None, missing @ 1..) if under_way.job.is_read() => {
                Some(protocol(WireError(format!("{missing} bytes of a read did not come"))))
            }
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
