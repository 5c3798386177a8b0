//! The event loop of one connection: requests in, replies out, in any order.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::budget::{Budget, Held};
use super::export::Export;
use super::handshake::Session;
use super::input::{Input, Received};
use super::reply::{Output, wire_error};
use super::shutdown::Shutdown;
use super::status::{Context, EXTENTS_MAX, extents};
use super::waiting::{Place, Waiting};
use crate::error::{Error, ErrorKind};
use crate::io::{Guess, Slots, Socket};
use crate::place::{index, length, wide};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::time::Instant;
use crate::volume::{Completion, Queue, Request as VolumeRequest};
use crate::wire::constants::{
    CMD_BLOCK_STATUS, CMD_CACHE, CMD_DISC, CMD_FLAG_DF, CMD_FLAG_FAST_ZERO, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLAG_PAYLOAD_LEN,
    CMD_FLAG_REQ_ONE, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, EINVAL, ENOSPC, ENOTSUP, EPERM, ESHUTDOWN,
    PAYLOAD_BYTES_MAX,
};
use crate::wire::{HeaderMode, Request, StatusQuery, deadline_after, time_left};

/// Least rate at which a client has to send a request that it has begun, beside [`Terms::stall_timeout`].
const REQUEST_BYTES_PER_SECOND: usize = 64 << 10;
/// Hints that are followed at once; further ones are answered and forgotten.
const PREFETCHES_MAX: usize = 16;
/// Bytes of an extent in a reply.
const EXTENT_BYTES: usize = 16;
/// How often a connection receives before it polls what else there is.
const UNPOLLED_MAX: u32 = 16;
/// How often a connection whose client has left looks whether it is to end at once.
const HUNG_UP_INTERVAL: Duration = Duration::from_secs(1);

/// Settings of a connection that the server chooses.
pub struct Terms {
    pub depth: u32,
    pub stall_timeout: Duration,
    pub shutdown: Arc<Shutdown>,
    pub budget: Arc<Budget>,
    /// It ends at once, whatever is under way.
    pub cut: Arc<AtomicBool>,
}

pub struct Connection {
    socket: Socket,
    export: Export,
    mode: HeaderMode,
    contexts: Vec<(u32, Context)>,
    size_bytes: u64,
    queue: Queue,
    terms: Terms,
    input: Input,
    waiting: Waiting,
    /// The first one that waits has its turn, and no room for its reply.
    is_crowded: bool,
    /// When a request must be whole of which a part has come.
    whole_by: Option<Instant>,
    output: Output,
    /// Since when the client has taken none of its replies.
    stalled: Option<Instant>,
    /// By the token of their completion.
    pending: Slots<Request>,
    /// Bytes of requests under way.
    pending_bytes: usize,
    prefetches: usize,
    held: Held,
    /// No further requests are taken: the client said goodbye, or left.
    ending: bool,
    /// Whether the socket has more at once.
    more: Guess,
    /// Receives since the server, the queue and the socket were polled.
    unpolled: u32,
    /// The client sends no more; what it sent before is still done.
    sent_all: bool,
    /// The client has closed both directions. `poll` would report that continuously, so the socket is polled only while input is wanted.
    hung_up: bool,
    shutting_down: bool,
}

/// A request after its check.
enum Checked {
    Queue(VolumeRequest),
    Status(StatusQuery),
    Done,
    Refused(u32, &'static str),
}

impl Connection {
    /// # Errors
    /// The export has no room for another queue.
    pub fn new(socket: Socket, session: Session, terms: Terms) -> Result<Self, Error> {
        let queue = session.export.queue(terms.depth)?;
        Ok(Self {
            socket,
            queue,
            waiting: Waiting::new(session.export.limiter()),
            is_crowded: false,
            export: session.export,
            mode: session.mode,
            contexts: session.contexts,
            size_bytes: session.size_bytes,
            held: Held::new(Arc::clone(&terms.budget)),
            terms,
            input: Input::new(Request::header_bytes(session.mode == HeaderMode::Extended)),
            whole_by: None,
            output: Output::default(),
            stalled: None,
            pending: Slots::default(),
            pending_bytes: 0,
            prefetches: 0,
            ending: false,
            more: Guess::default(),
            unpolled: 0,
            sent_all: false,
            hung_up: false,
            shutting_down: false,
        })
    }

    /// Serves until the client leaves or the server shuts down.
    ///
    /// # Errors
    /// The socket failed, or the client broke the protocol beyond repair.
    pub fn run(mut self) -> io::Result<()> {
        self.socket.set_patience(None)?;
        let mut completions = Vec::new();
        loop {
            self.start_waiting();
            self.take_requests()?;
            self.ending |= self.sent_all && !self.has_request();
            if self.hung_up && (self.ending || self.waiting.is_any()) {
                // The remaining reads have no receiver any more, and may wait for a source. The end of the queue waits for changes only.
                // What waits for the limits was not begun.
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.queue.reap(&mut completions).map_err(|error| io::Error::other(error.to_string()))?;
            for completion in completions.drain(..) {
                self.reply(completion);
            }
            let sent = self.output.send(&mut self.socket)?;
            self.note_sent(sent)?;
            self.account();
            let idle = self.queue.in_flight() == 0 && self.output.len() == 0;
            if idle && (self.ending && self.waiting.len() == 0 || self.shutting_down) {
                return Ok(());
            }
            // Those that had to wait for room have come already: the socket says nothing of them.
            if !self.has_next() {
                self.wait()?;
            }
        }
    }

    /// A server that shuts down begins nothing more: a client that connects again sends again what was not replied to, while an error
    /// would be one of its device.
    fn takes_requests(&self) -> bool {
        !self.ending && !self.shutting_down && self.queue.in_flight() + self.waiting.len() < index(self.terms.depth)
    }

    /// Whether the first request that waits, or else the first one in the input, is whole and can be taken now.
    fn has_next(&mut self) -> bool {
        if self.is_crowded {
            let request = self.waiting.next().copied();
            return self.held.has_room(request.map_or(0, |request| self.reply_bytes(&request)), self.is_idle());
        }
        if !self.has_request() || !self.takes_requests() {
            return false;
        }
        match self.place() {
            Place::Free | Place::Up => self.held.has_room(self.next_bytes(), self.is_idle()),
            Place::Aside => true,
            Place::Stay => false,
        }
    }

    /// What becomes of the first request in the input. One that has not come or cannot be trusted is looked at elsewhere.
    fn place(&mut self) -> Place {
        let Ok(request) = Request::decode(self.input.head(), self.mode == HeaderMode::Extended) else { return Place::Free };
        let Some(payload) = self.payload_bytes(&request) else { return Place::Free };
        self.waiting.place(&request, payload, self.missing_bytes() == 0)
    }

    /// Starts requests whose turn has come, as far as there is room.
    fn start_waiting(&mut self) {
        self.is_crowded = false;
        while !self.shutting_down && self.queue.in_flight() < index(self.terms.depth) {
            let Some(request) = self.waiting.next().copied() else { return };
            self.is_crowded = !self.held.take(self.reply_bytes(&request), self.is_idle());
            if self.is_crowded {
                return;
            }
            if let Some((request, data)) = self.waiting.take() {
                self.start(request, data);
                self.account();
            }
        }
    }

    /// Whether nothing is under way that will tell of its end.
    fn is_idle(&self) -> bool {
        self.pending_bytes == 0 && self.output.len() == 0
    }

    /// Memory that the first request in the input needs beside the bytes that have come.
    fn next_bytes(&self) -> usize {
        Request::decode(self.input.head(), self.mode == HeaderMode::Extended).map_or(0, |request| self.reply_bytes(&request))
    }

    /// Tells the budget what this connection holds.
    fn account(&mut self) {
        self.held.set(self.pending_bytes + self.output.len() + self.input.held_bytes() + self.waiting.bytes());
    }

    /// Ends a connection that keeps others from being served: its client takes none of its replies.
    fn note_sent(&mut self, sent: bool) -> io::Result<()> {
        if self.output.len() == 0 {
            self.stalled = None;
        } else if sent || self.stalled.is_none() {
            self.stalled = Some(Instant::now());
        }
        let late = self.stalled.is_some_and(|since| since.elapsed() >= self.terms.stall_timeout);
        if late && self.held.others_wait() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    /// Whether more bytes of the client are wanted now. There is room for them then.
    fn wants_input(&mut self) -> bool {
        let missing = self.missing_bytes();
        let wanted = missing > 0 && !self.sent_all && self.takes_requests() && !self.is_crowded;
        let wanted = wanted && self.place() != Place::Stay;
        let wanted = wanted && self.held.take(self.input.growth(missing), self.is_idle());
        if wanted && self.input.growth(missing) > 0 {
            self.input.make_room(missing);
        }
        self.account();
        match wanted && self.input.len() > 0 {
            true if self.whole_by.is_none() => {
                let size = Duration::from_secs(wide(missing / REQUEST_BYTES_PER_SECOND));
                self.whole_by = Some(deadline_after(self.terms.stall_timeout.saturating_add(size)));
            }
            true => {}
            // The client owes nothing.
            false => self.whole_by = None,
        }
        wanted
    }

    /// How long to wait at most.
    fn patience(&mut self) -> io::Result<Option<Duration>> {
        let whole = self.whole_by.map(time_left).transpose()?;
        let stalled = self.stalled.map(|_| (self.terms.stall_timeout / 4).max(Duration::from_millis(1)));
        let hung_up = self.hung_up.then_some(HUNG_UP_INTERVAL);
        let begins = !self.shutting_down && (self.waiting.len() > 0 || !self.ending);
        let turn = if begins { self.waiting.patience() } else { None };
        Ok([whole, stalled, hung_up, self.held.patience(), turn].into_iter().flatten().min())
    }

    /// Takes what the socket has.
    fn receive(&mut self) -> io::Result<Received> {
        let missing = self.missing_bytes();
        let received = self.input.receive(&self.socket, missing)?;
        self.sent_all |= received == Received::End;
        Ok(received)
    }

    /// Takes more requests, or waits for the socket, the queue or the server.
    fn wait(&mut self) -> io::Result<()> {
        let wants_input = self.wants_input();
        // A client that keeps several requests under way has often sent the next ones already.
        if wants_input && self.unpolled < UNPOLLED_MAX && self.more.is_likely() {
            self.unpolled += 1;
            let received = self.receive()?;
            self.more.note(received != Received::Nothing);
            if received != Received::Nothing {
                return Ok(());
            }
        }
        self.unpolled = 0;
        let mut wanted = if wants_input { libc::POLLIN } else { 0 };
        self.input.rest(self.queue.in_flight() == 0);
        if self.output.len() > 0 {
            wanted |= libc::POLLOUT;
        }
        let mut fds = [
            libc::pollfd {
                fd: if self.hung_up && !wants_input { -1 } else { self.socket.as_fd().as_raw_fd() },
                events: wanted,
                revents: 0,
            },
            libc::pollfd { fd: self.queue.descriptor(), events: libc::POLLIN, revents: 0 },
            libc::pollfd {
                fd: if self.shutting_down { -1 } else { self.terms.shutdown.asked.as_raw_fd() },
                events: libc::POLLIN,
                revents: 0,
            },
            libc::pollfd { fd: self.terms.shutdown.forced.as_raw_fd(), events: libc::POLLIN, revents: 0 },
        ];
        crate::sync::poll(&mut fds, self.patience()?)?;
        if fds[3].revents != 0 || self.terms.cut.load(Ordering::SeqCst) {
            // The end of the queue waits for changes that are under way; reads end unseen.
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if fds[2].revents != 0 {
            self.shutting_down = true;
        }
        if fds[0].revents & (libc::POLLERR | libc::POLLNVAL) != 0 {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        self.hung_up |= fds[0].revents & libc::POLLHUP != 0;
        if wants_input && fds[0].revents & (libc::POLLIN | libc::POLLHUP) != 0 {
            self.receive()?;
        } else if self.hung_up && self.output.len() > 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }

    /// Whether a whole request waits in the input, or one that cannot be trusted.
    fn has_request(&self) -> bool {
        self.missing_bytes() == 0
    }

    /// Bytes that the first request still lacks, with its payload.
    fn missing_bytes(&self) -> usize {
        let header = Request::header_bytes(self.mode == HeaderMode::Extended);
        let request = Request::decode(self.input.head(), self.mode == HeaderMode::Extended);
        let payload = request.map_or(0, |request| self.payload_bytes(&request).unwrap_or(0));
        (header + payload).saturating_sub(self.input.len())
    }

    /// Bytes that follow a request's header. `None`: so many that the client cannot be trusted.
    fn payload_bytes(&self, request: &Request) -> Option<usize> {
        let has_payload = request.command == CMD_WRITE || (self.mode == HeaderMode::Extended && request.flags & CMD_FLAG_PAYLOAD_LEN != 0);
        match (has_payload, request.length) {
            (false, _) => Some(0),
            (true, bytes) if bytes <= u64::from(PAYLOAD_BYTES_MAX) => Some(length(bytes)),
            (true, _) => None,
        }
    }

    /// Starts every request that is complete in the input, as far as there is room.
    fn take_requests(&mut self) -> io::Result<()> {
        let extended = self.mode == HeaderMode::Extended;
        let header = Request::header_bytes(extended);
        while self.takes_requests() && !self.is_crowded && self.input.len() >= header {
            let request =
                Request::decode(self.input.head(), extended).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.0))?;
            let payload = self.payload_bytes(&request);
            let payload = payload.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the client sends too long a payload"))?;
            let place = self.waiting.place(&request, payload, self.input.len() >= header + payload);
            let begins = matches!(place, Place::Free | Place::Up);
            if self.input.len() < header + payload
                || place == Place::Stay
                || begins && !self.held.take(self.reply_bytes(&request), self.is_idle())
            {
                break;
            }
            let data = self.input.take(payload);
            self.whole_by = None;
            if place == Place::Aside {
                self.waiting.put(request, data);
                self.account();
                continue;
            }
            if place == Place::Up {
                self.waiting.begun();
            }
            if request.command == CMD_DISC {
                self.ending = true;
                break;
            }
            self.start(request, data);
            self.account();
        }
        Ok(())
    }

    fn start(&mut self, request: Request, data: Bytes) {
        match self.check(&request, data) {
            Checked::Queue(asked) => {
                let slot = self.pending.insert(request);
                match self.queue.submit(wide(slot), asked) {
                    Ok(()) => {
                        self.pending_bytes += held_bytes(&request);
                        self.prefetches += usize::from(request.command == CMD_CACHE);
                    }
                    Err(error) => {
                        self.pending.remove(slot);
                        self.fail(&request, &error);
                    }
                }
            }
            Checked::Status(query) => self.status(&request, &query),
            Checked::Done => self.output.done(self.mode, &request),
            Checked::Refused(error, text) => self.output.error(self.mode, &request, error, text),
        }
    }

    fn check(&self, request: &Request, data: Bytes) -> Checked {
        let allowed = CMD_FLAG_FUA
            | match request.command {
                CMD_READ => CMD_FLAG_DF,
                CMD_WRITE if self.mode == HeaderMode::Extended => CMD_FLAG_PAYLOAD_LEN,
                CMD_WRITE_ZEROES => CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO,
                CMD_BLOCK_STATUS if self.mode == HeaderMode::Extended => CMD_FLAG_REQ_ONE | CMD_FLAG_PAYLOAD_LEN,
                CMD_BLOCK_STATUS => CMD_FLAG_REQ_ONE,
                _ => 0,
            };
        if request.flags & !allowed != 0 {
            return Checked::Refused(EINVAL, "the request has flags that its command does not know");
        }
        if request.command == CMD_BLOCK_STATUS {
            return self.check_status(request, &data);
        }
        let writes = matches!(request.command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES);
        if writes && self.export.is_read_only() {
            return Checked::Refused(EPERM, "a snapshot never changes: fork it to write");
        }
        let inside = request.offset.checked_add(request.length).is_some_and(|end| end <= self.size_bytes);
        if request.command != CMD_FLUSH && !inside {
            return Checked::Refused(error_behind_end(request), "the range ends behind the export");
        }
        if request.length == 0 && !matches!(request.command, CMD_FLUSH | CMD_READ) && request.command < CMD_BLOCK_STATUS {
            return Checked::Done;
        }
        let (offset, bytes, fua) = (request.offset, request.length, request.flags & CMD_FLAG_FUA != 0);
        match request.command {
            CMD_READ => match u32::try_from(bytes).ok().filter(|bytes| *bytes <= PAYLOAD_BYTES_MAX) {
                Some(bytes) => Checked::Queue(VolumeRequest::Read { offset, bytes }),
                None => Checked::Refused(EINVAL, "a read takes 32 MiB at most"),
            },
            CMD_WRITE => Checked::Queue(VolumeRequest::Write { offset, data, fua }),
            CMD_FLUSH => Checked::Queue(VolumeRequest::Flush),
            CMD_TRIM => Checked::Queue(VolumeRequest::Discard { offset, bytes, fua }),
            CMD_WRITE_ZEROES => match request.flags & (CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO) {
                // Space is taken by writing, which is not fast.
                CMD_FLAG_NO_HOLE => Checked::Queue(VolumeRequest::Provision { offset, bytes, fua }),
                flags if flags & CMD_FLAG_NO_HOLE != 0 => Checked::Refused(ENOTSUP, "zeros without a hole are no faster than a write"),
                _ => Checked::Queue(VolumeRequest::WriteZeroes { offset, bytes, fua }),
            },
            CMD_CACHE if self.prefetches >= PREFETCHES_MAX => Checked::Done,
            CMD_CACHE => Checked::Queue(VolumeRequest::Prefetch { offset, bytes }),
            _ => Checked::Refused(EINVAL, "the command is unknown"),
        }
    }

    /// Memory that the reply to a request may need.
    fn reply_bytes(&self, request: &Request) -> usize {
        match request.command {
            CMD_READ => length(request.length.min(u64::from(PAYLOAD_BYTES_MAX))),
            CMD_BLOCK_STATUS if request.flags & CMD_FLAG_REQ_ONE == 0 => {
                let blocks = self.size_bytes / u64::from(self.export.block_bytes()) + 1;
                EXTENTS_MAX.min(length(blocks) * self.contexts.len()) * EXTENT_BYTES
            }
            _ => 0,
        }
    }

    fn context(&self, number: u32) -> Option<&Context> {
        self.contexts.iter().find(|(other, _)| *other == number).map(|(_, context)| context)
    }

    fn check_status(&self, request: &Request, payload: &[u8]) -> Checked {
        let query = match request.flags & CMD_FLAG_PAYLOAD_LEN {
            0 => Ok(StatusQuery { length: request.length, contexts: self.contexts.iter().map(|(number, _)| *number).collect() }),
            _ => StatusQuery::decode(payload),
        };
        let Ok(query) = query else { return Checked::Refused(EINVAL, "the payload names no contexts") };
        let mut once = query.contexts.clone();
        once.sort_unstable();
        once.dedup();
        if once.len() < query.contexts.len() {
            return Checked::Refused(EINVAL, "the payload names a context twice");
        }
        if query.contexts.is_empty() || query.contexts.iter().any(|number| self.context(*number).is_none()) {
            return Checked::Refused(EINVAL, "the context was not agreed on");
        }
        match request.offset.checked_add(query.length) {
            Some(end) if query.length > 0 && end <= self.size_bytes => Checked::Status(query),
            _ => Checked::Refused(EINVAL, "the range is empty or ends behind the export"),
        }
    }

    /// Answers from what is known without reading data, at once.
    fn status(&mut self, request: &Request, query: &StatusQuery) {
        let one = request.flags & CMD_FLAG_REQ_ONE != 0;
        // Lengths in compact replies have 32 bits.
        let most = if self.mode == HeaderMode::Extended { u64::MAX } else { u64::from(u32::MAX) };
        let range = request.offset..request.offset + query.length.min(most);
        let mut answers = Vec::with_capacity(query.contexts.len());
        for number in &query.contexts {
            // Looked up when the request was checked.
            let Some(context) = self.context(*number) else { continue };
            match extents(&self.export, context, range.clone(), EXTENTS_MAX / query.contexts.len()) {
                Ok(extents) => answers.push((*number, extents)),
                Err(error) => return self.fail(request, &error),
            }
        }
        let count = answers.len();
        for (number, (context, mut extents)) in answers.into_iter().enumerate() {
            extents.truncate(if one { 1 } else { extents.len() });
            self.output.status(self.mode, request, context, extents, number + 1 == count);
        }
    }

    fn reply(&mut self, completion: Completion) {
        let Some(request) = self.pending.remove(length(completion.token)) else { return };
        self.pending_bytes -= held_bytes(&request);
        self.prefetches -= usize::from(request.command == CMD_CACHE);
        match completion.result {
            Ok(data) if request.command == CMD_READ => {
                self.output.data(self.mode, &request, data, request.flags & CMD_FLAG_DF != 0);
            }
            Ok(_) => self.output.done(self.mode, &request),
            // A hint that cannot be followed is no failure of the client's.
            Err(_) if request.command == CMD_CACHE => self.output.done(self.mode, &request),
            Err(error) => self.fail(&request, &error),
        }
    }

    /// Replies with an error. When the export is gone for good, the connection ends behind its last reply.
    fn fail(&mut self, request: &Request, error: &Error) {
        let number = match error.kind() {
            // The volume was shrunk after the client connected.
            ErrorKind::OutOfRange => error_behind_end(request),
            _ => wire_error(error),
        };
        self.output.error(self.mode, request, number, &error.to_string());
        if number == ESHUTDOWN {
            self.ending = true;
            self.waiting.give_up();
        }
    }
}

/// The error of a request that ends behind the export.
fn error_behind_end(request: &Request) -> u32 {
    if matches!(request.command, CMD_WRITE | CMD_WRITE_ZEROES) { ENOSPC } else { EINVAL }
}

/// Bytes of memory that a request needs while it is under way.
fn held_bytes(request: &Request) -> usize {
    match request.command {
        // Bounded when the request was checked.
        CMD_READ | CMD_WRITE => length(request.length),
        _ => 0,
    }
}
