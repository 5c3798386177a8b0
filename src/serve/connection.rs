//! The event loop of one connection: requests in, replies out, in any order.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::budget::{Budget, Held};
use super::export::Export;
use super::handshake::Session;
use super::listener::ClientSocket;
use super::reply::{Output, wire_error};
use super::server::Shutdown;
use super::status::{Context, EXTENTS_MAX, extents};
use crate::error::Error;
use crate::volume::{Completion, Queue, Request as VolumeRequest};
use crate::wire::constants::{
    CMD_BLOCK_STATUS, CMD_CACHE, CMD_DISC, CMD_FLAG_DF, CMD_FLAG_FAST_ZERO, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLAG_PAYLOAD_LEN,
    CMD_FLAG_REQ_ONE, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, EINVAL, ENOSPC, EPERM, ESHUTDOWN, PAYLOAD_BYTES_MAX,
};
use crate::wire::{HeaderMode, Request, StatusQuery};

/// Bytes taken from the socket at once, about.
const INPUT_BYTES: usize = 256 << 10;
/// With less room than this, a buffer is not read into any more.
const INPUT_BYTES_MIN: usize = 16 << 10;
/// Bytes of requests under way and of replies that wait for the client; beyond, no further requests are taken.
const HELD_BYTES_MAX: usize = 64 << 20;

pub struct Connection {
    socket: ClientSocket,
    export: Export,
    mode: HeaderMode,
    contexts: Vec<(u32, Context)>,
    size_bytes: u64,
    queue: Queue,
    depth: usize,
    input: BytesMut,
    output: Output,
    pending: HashMap<u64, Request>,
    next_token: u64,
    /// Bytes of requests under way.
    pending_bytes: usize,
    held: Held,
    /// No further requests are taken: the client said goodbye, or left.
    ending: bool,
    /// The client sends no more; what it sent before is still done.
    sent_all: bool,
    /// The client takes no more either.
    gone: bool,
    shutdown: Arc<Shutdown>,
    shutting_down: bool,
}

/// What a request asks for, once it was checked.
enum Checked {
    Queue(VolumeRequest),
    Status(StatusQuery),
    Done,
    Refused(u32, &'static str),
}

impl Connection {
    /// # Errors
    /// The export has no room for another queue.
    pub fn new(socket: ClientSocket, session: Session, depth: u32, shutdown: Arc<Shutdown>, budget: Arc<Budget>) -> Result<Self, Error> {
        let queue = session.export.queue(depth)?;
        Ok(Self {
            socket,
            queue,
            export: session.export,
            mode: session.mode,
            contexts: session.contexts,
            size_bytes: session.size_bytes,
            depth: depth as usize,
            input: BytesMut::new(),
            output: Output::default(),
            pending: HashMap::new(),
            next_token: 0,
            pending_bytes: 0,
            held: Held::new(budget),
            ending: false,
            sent_all: false,
            gone: false,
            shutdown,
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
            self.take_requests()?;
            self.ending |= self.sent_all && !self.has_request();
            self.queue.reap(&mut completions).map_err(|error| io::Error::other(error.to_string()))?;
            for completion in completions.drain(..) {
                self.reply(completion);
            }
            self.output.send(&mut self.socket)?;
            self.account();
            let idle = self.queue.in_flight() == 0 && self.output.len() == 0;
            if idle && (self.ending || self.shutting_down) {
                return Ok(());
            }
            // Those that had to wait for room have come already: the socket says nothing of them.
            if !(self.has_room() && self.has_request()) {
                self.wait()?;
            }
        }
    }

    fn has_room(&self) -> bool {
        !self.ending && self.queue.in_flight() < self.depth && self.held.has_room(HELD_BYTES_MAX)
    }

    /// Tells the budget what this connection holds.
    fn account(&mut self) {
        self.held.set(self.pending_bytes + self.output.len());
    }

    /// Waits for the socket, the queue or the server.
    fn wait(&mut self) -> io::Result<()> {
        let mut wanted = 0;
        if self.has_room() && !self.sent_all {
            wanted |= libc::POLLIN;
        }
        if self.output.len() > 0 {
            wanted |= libc::POLLOUT;
        }
        let mut fds = [
            libc::pollfd { fd: if self.gone { -1 } else { self.socket.as_fd().as_raw_fd() }, events: wanted, revents: 0 },
            libc::pollfd { fd: self.queue.descriptor(), events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: if self.shutting_down { -1 } else { self.shutdown.asked.as_raw_fd() }, events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: self.shutdown.forced.as_raw_fd(), events: libc::POLLIN, revents: 0 },
        ];
        crate::sync::poll(&mut fds, None)?;
        if fds[3].revents != 0 {
            // The end of the queue waits for changes that are under way; reads end unseen.
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if fds[2].revents != 0 {
            self.shutting_down = true;
        }
        if fds[0].revents & (libc::POLLERR | libc::POLLNVAL) != 0 {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if fds[0].revents & (libc::POLLIN | libc::POLLHUP) != 0 && !self.ending && !self.sent_all {
            self.fill_input()?;
        } else if fds[0].revents & libc::POLLHUP != 0 {
            if self.output.len() > 0 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            // It would be reported again and again while the last requests are under way.
            self.gone = true;
        }
        Ok(())
    }

    fn fill_input(&mut self) -> io::Result<()> {
        // A large payload is read to its end; otherwise what one read gives is enough for a round.
        let least = self.missing_bytes().max(INPUT_BYTES_MIN);
        if self.input.capacity() - self.input.len() < least {
            self.input.reserve(least.max(INPUT_BYTES));
        }
        match recv(&self.socket, self.input.spare_capacity_mut(), RecvFlags::empty()) {
            Ok(((received, _), _)) => {
                let length = received.len();
                self.sent_all = length == 0;
                // SAFETY: so many bytes behind the length were received, and so are initialised.
                unsafe { self.input.set_len(self.input.len() + length) };
                Ok(())
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a whole request waits in the input, or one that cannot be trusted.
    fn has_request(&self) -> bool {
        self.missing_bytes() == 0
    }

    /// Bytes that the first request still lacks, with its payload.
    fn missing_bytes(&self) -> usize {
        let header = Request::header_bytes(self.mode == HeaderMode::Extended);
        let request = Request::decode(&self.input, self.mode == HeaderMode::Extended);
        let payload = request.map_or(0, |request| self.payload_bytes(&request).unwrap_or(0));
        (header + payload).saturating_sub(self.input.len())
    }

    /// Bytes that follow a request's header. `None`: so many that the client cannot be trusted.
    fn payload_bytes(&self, request: &Request) -> Option<usize> {
        let has_payload = request.command == CMD_WRITE || (self.mode == HeaderMode::Extended && request.flags & CMD_FLAG_PAYLOAD_LEN != 0);
        match (has_payload, request.length) {
            (false, _) => Some(0),
            (true, length) if length <= u64::from(PAYLOAD_BYTES_MAX) => Some(length as usize),
            (true, _) => None,
        }
    }

    /// Starts every request that is complete in the input, as far as there is room.
    fn take_requests(&mut self) -> io::Result<()> {
        let extended = self.mode == HeaderMode::Extended;
        let header = Request::header_bytes(extended);
        while self.has_room() && self.input.len() >= header {
            let request = Request::decode(&self.input, extended).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.0))?;
            let payload = self.payload_bytes(&request);
            let payload = payload.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the client sends too long a payload"))?;
            if self.input.len() < header + payload {
                break;
            }
            let _ = self.input.split_to(header);
            let data = self.input.split_to(payload).freeze();
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
        let checked = match self.shutting_down {
            true => Checked::Refused(ESHUTDOWN, "the server shuts down"),
            false => self.check(&request, data),
        };
        match checked {
            Checked::Queue(asked) => {
                let token = self.next_token;
                self.next_token += 1;
                match self.queue.submit(token, asked) {
                    Ok(()) => {
                        self.pending_bytes += held_bytes(&request);
                        self.pending.insert(token, request);
                    }
                    Err(error) => self.fail(&request, &error),
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
            let error = if matches!(request.command, CMD_WRITE | CMD_WRITE_ZEROES) { ENOSPC } else { EINVAL };
            return Checked::Refused(error, "the range ends behind the export");
        }
        if request.length == 0 && !matches!(request.command, CMD_FLUSH | CMD_READ) && request.command < CMD_BLOCK_STATUS {
            return Checked::Done;
        }
        let (offset, bytes, fua) = (request.offset, request.length, request.flags & CMD_FLAG_FUA != 0);
        match request.command {
            CMD_READ if bytes > u64::from(PAYLOAD_BYTES_MAX) => Checked::Refused(EINVAL, "a read takes 32 MiB at most"),
            CMD_READ => Checked::Queue(VolumeRequest::Read { offset, bytes: bytes as u32 }),
            CMD_WRITE => Checked::Queue(VolumeRequest::Write { offset, data, fua }),
            CMD_FLUSH => Checked::Queue(VolumeRequest::Flush),
            CMD_TRIM => Checked::Queue(VolumeRequest::Discard { offset, bytes, fua }),
            CMD_WRITE_ZEROES => Checked::Queue(VolumeRequest::WriteZeroes { offset, bytes, fua }),
            CMD_CACHE => Checked::Queue(VolumeRequest::Prefetch { offset, bytes }),
            _ => Checked::Refused(EINVAL, "the command is unknown"),
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
        let Some(request) = self.pending.remove(&completion.token) else { return };
        self.pending_bytes -= held_bytes(&request);
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
        let number = wire_error(error);
        self.output.error(self.mode, request, number, &error.to_string());
        self.ending |= number == ESHUTDOWN;
    }
}

/// Bytes of memory that a request needs while it is under way.
fn held_bytes(request: &Request) -> usize {
    match request.command {
        // Bounded when the request was checked.
        CMD_READ | CMD_WRITE => request.length as usize,
        _ => 0,
    }
}
