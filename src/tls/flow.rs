//! One connection at the relay: what is copied between its clear end and its peer.
//!
//! Readiness is edge-triggered: a side counts as ready from the moment that it is seen to be until a transfer would have waited. So a
//! connection that can move nothing costs nothing, and none is polled in vain.

use std::io::{self, BufRead, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{Shutdown, shutdown};
use rustls::Connection;

use super::fate::Fate;
use super::handshake::Refused;
use super::socket::{Wire, unless_it_waits};
use crate::io::Ready;
use crate::sync::time::Instant;

/// How often a connection moves a buffer in each direction before others have their turn.
const ROUNDS: usize = 4;
/// How long a peer may take the last bytes of a connection whose own end is closed, unless it was told to end at once.
const LINGER: Duration = Duration::from_secs(5);

/// A side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Peer,
    Clear,
}

/// Whether a side can be read from and written to without waiting.
#[derive(Default)]
struct Readiness {
    readable: bool,
    writable: bool,
}

/// What becomes of a connection after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It waits for one of its sockets.
    Waits,
    /// There may be more to move at once.
    Again,
    /// It has ended.
    Over,
}

pub(super) struct Flow {
    peer: OwnedFd,
    clear: UnixStream,
    tls: Connection,
    fate: Arc<Fate>,
    of_peer: Readiness,
    of_clear: Readiness,
    /// Received from the peer and not given to TLS: bytes before them wait for the clear end. Its size is that of one buffer at most.
    unread: Vec<u8>,
    /// The peer has said that it sends no more.
    peer_has_ended: bool,
    /// The clear end was told so.
    told_clear: bool,
    /// The clear end sends no more, and the peer is told so behind what waits.
    clear_has_ended: bool,
    /// The clear end takes nothing any more: what the peer still sends is dropped.
    clear_is_gone: bool,
    /// The peer takes nothing any more.
    peer_is_gone: bool,
    /// Until then the peer has time to take the last bytes; there once the clear end is closed.
    lingers_until: Option<Instant>,
}

impl Flow {
    /// Copies between `clear` and the peer behind `peer`, with which TLS has begun.
    pub fn new(peer: OwnedFd, clear: UnixStream, mut tls: Connection, fate: Arc<Fate>) -> Self {
        // A buffer is given to TLS only when nothing waits, so that one buffer is the limit.
        tls.set_buffer_limit(None);
        // It may have come with the end of the handshake.
        let peer_has_ended = tls.process_new_packets().is_ok_and(|state| state.peer_has_closed());
        Self {
            peer,
            clear,
            tls,
            fate,
            of_peer: Readiness::default(),
            of_clear: Readiness::default(),
            unread: Vec::new(),
            peer_has_ended,
            told_clear: false,
            clear_has_ended: false,
            clear_is_gone: false,
            peer_is_gone: false,
            lingers_until: None,
        }
    }

    /// The socket of a side.
    pub fn socket(&self, side: Side) -> BorrowedFd<'_> {
        match side {
            Side::Peer => self.peer.as_fd(),
            Side::Clear => self.clear.as_fd(),
        }
    }

    /// Notes what was seen of a side.
    pub fn note(&mut self, side: Side, ready: Ready) {
        let of_side = match side {
            Side::Peer => &mut self.of_peer,
            Side::Clear => &mut self.of_clear,
        };
        of_side.readable |= ready.readable;
        of_side.writable |= ready.writable || ready.hung_up;
        if side == Side::Clear && ready.hung_up {
            self.clear_is_gone = true;
            self.lingers_until.get_or_insert_with(|| Instant::now() + LINGER);
        }
    }

    /// Whether the clear end is closed, and the peer has some time for the last bytes.
    pub fn lingers(&self) -> bool {
        self.lingers_until.is_some()
    }

    /// Whether that time is over, or the connection was told to end at once.
    pub fn is_late(&self, now: Instant) -> bool {
        self.lingers_until.is_some_and(|until| until <= now || self.fate.is_cut())
    }

    /// Ends the connection.
    pub fn end(self, outcome: Result<(), Refused>) {
        // Before the clear end is closed: its owner asks for the reason then.
        self.fate.end(outcome);
        let _ = shutdown(&self.peer, Shutdown::Both);
    }

    /// Moves what can be moved without waiting, and no more than some buffers.
    ///
    /// # Errors
    /// TLS was broken, or the stream was cut off.
    pub fn step(&mut self, buffer: &mut [u8]) -> Result<Next, Refused> {
        if self.clear_is_gone && self.fate.is_cut() {
            return Ok(Next::Over);
        }
        for _ in 0..ROUNDS {
            let received = self.receive(buffer)?;
            let sent = self.send(buffer).or_else(|error| self.not_sent(&error, buffer))?;
            if self.is_over() {
                return Ok(Next::Over);
            }
            if !received && !sent {
                return Ok(Next::Waits);
            }
        }
        Ok(Next::Again)
    }

    /// Both sides have ended, or nothing is left for the one that is there.
    fn is_over(&self) -> bool {
        self.peer_is_gone || (self.clear_has_ended && !self.tls.wants_write() && (self.clear_is_gone || self.told_clear))
    }

    /// Why the peer takes no bytes is what it said last: an alert, or the end of the stream.
    fn not_sent(&mut self, error: &io::Error, buffer: &mut [u8]) -> Result<bool, Refused> {
        self.of_peer.readable = true;
        for _ in 0..ROUNDS {
            self.receive(buffer)?;
        }
        match self.clear_is_gone || self.peer_has_ended {
            // There is no use for what it did not take.
            true => {
                self.peer_is_gone = true;
                Ok(false)
            }
            false => Err(Refused::lost(format!("TLS was cut off: {error}"))),
        }
    }

    /// Moves bytes from the peer to the clear end: at most a buffer. Answers whether any came.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<bool, Refused> {
        if self.clear_is_gone {
            self.unread = Vec::new();
            return Ok(false);
        }
        let unread = std::mem::take(&mut self.unread);
        let taken = self.take(&unread)?;
        if taken < unread.len() {
            self.unread = if taken == 0 { unread } else { unread[taken..].to_vec() };
            return Ok(taken > 0);
        }
        let came = !unread.is_empty();
        if !self.deliver()? || self.peer_has_ended || !self.of_peer.readable {
            return Ok(came);
        }
        match unless_it_waits(Wire(self.peer.as_fd()).read(buffer)) {
            Ok(None) => {
                self.of_peer.readable = false;
                Ok(came)
            }
            Ok(Some(0)) => Err(Refused::lost("TLS was cut off: the stream ended without a word")),
            Ok(Some(count)) => {
                let taken = self.take(&buffer[..count])?;
                self.unread = buffer[taken..count].to_vec();
                Ok(true)
            }
            Err(error) => Err(Refused::lost(format!("TLS was cut off: {error}"))),
        }
    }

    /// Gives bytes of the peer to TLS as far as the clear end takes what comes of them; answers how many.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, Refused> {
        let mut rest = bytes;
        while !rest.is_empty() && self.deliver()? {
            match self.tls.read_tls(&mut rest) {
                // It has said that it sends no more: what follows is none of TLS.
                Ok(0) => return Ok(bytes.len()),
                Ok(_) => {}
                Err(error) => return Err(Refused::lost(format!("TLS fails: {error}"))),
            }
            match self.tls.process_new_packets() {
                Ok(state) => self.peer_has_ended |= state.peer_has_closed(),
                Err(error) => {
                    // The peer is told why, if it listens.
                    let _ = self.tls.write_tls(&mut Wire(self.peer.as_fd()));
                    return Err(Refused::from(&error));
                }
            }
        }
        let taken = bytes.len() - rest.len();
        self.deliver()?;
        Ok(taken)
    }

    /// Sends clear bytes to the clear end; answers whether it took all.
    fn deliver(&mut self) -> Result<bool, Refused> {
        loop {
            let mut reader = self.tls.reader();
            let bytes = match reader.fill_buf() {
                Ok(bytes) => bytes,
                // Nothing is there.
                Err(_) => break,
            };
            if bytes.is_empty() {
                break;
            }
            if self.clear_is_gone {
                let count = bytes.len();
                reader.consume(count);
                continue;
            }
            if !self.of_clear.writable {
                return Ok(false);
            }
            match unless_it_waits(Wire(self.clear.as_fd()).write(bytes)) {
                Ok(Some(count)) => reader.consume(count),
                Ok(None) => self.of_clear.writable = false,
                Err(_) => self.clear_is_gone = true,
            }
        }
        if self.peer_has_ended && !self.told_clear {
            self.told_clear = true;
            // An error means that nobody is there to be told.
            let _ = shutdown(&self.clear, Shutdown::Write);
        }
        Ok(true)
    }

    /// Moves bytes from the clear end to the peer: at most a buffer. Answers whether any went.
    fn send(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let flushed = self.flush()?;
        if self.tls.wants_write() || self.clear_has_ended || !self.of_clear.readable {
            return Ok(flushed);
        }
        match unless_it_waits(Wire(self.clear.as_fd()).read(buffer)) {
            Ok(None) => {
                self.of_clear.readable = false;
                return Ok(flushed);
            }
            Ok(Some(count)) if count > 0 => self.tls.writer().write_all(&buffer[..count])?,
            // Bytes are missing before this end, so the peer is not told that it is one.
            Ok(_) | Err(_) if self.fate.is_cut() => {
                self.peer_is_gone = true;
                return Ok(flushed);
            }
            // An error means that the clear end was closed with bytes that it did not read.
            Ok(_) | Err(_) => {
                self.clear_has_ended = true;
                self.tls.send_close_notify();
            }
        }
        self.flush()?;
        Ok(true)
    }

    /// Sends what TLS has for the peer as far as it is taken; answers whether any was.
    fn flush(&mut self) -> io::Result<bool> {
        let mut sent = false;
        while self.tls.wants_write() && self.of_peer.writable {
            match unless_it_waits(self.tls.write_tls(&mut Wire(self.peer.as_fd())))? {
                Some(_) => sent = true,
                None => self.of_peer.writable = false,
            }
        }
        Ok(sent)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.fate.end(Err(Refused::lost("TLS was given up")));
    }
}
