//! Requests of one connection that wait for the limits of its volume.
//!
//! # Invariants
//! - Requests that count for the limits begin in the order in which they came. Those that do not (a flush, a question for the status of
//!   blocks, the goodbye) wait for none of them.
//! - What waits here is no more than each connection may always hold (`budget`), so it takes no memory from clients of other exports. A
//!   request with a larger payload waits in the socket: it has its turn before its payload is received.
//! - A connection has one turn at most. The rest of its requests take theirs one after the other, so that connections of one volume go in
//!   turns.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::input::OWN_BYTES_MIN;
use crate::volume::{Limiter, Turn};
use crate::wire::Request;
use crate::wire::constants::{CMD_CACHE, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, PAYLOAD_BYTES_MAX};

/// Bytes of payloads that are received and set aside.
pub const WAITING_BYTES_MAX: usize = 256 << 10;

/// What becomes of the first request in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It begins, whatever waits.
    Free,
    /// It begins: its turn has come.
    Up,
    /// It is set aside, and those behind it are looked at.
    Aside,
    /// It stays where it is, and so do those behind it.
    Stay,
}

/// Requests that wait.
pub struct Waiting {
    /// `None`: the export never has limits.
    limiter: Option<Arc<Limiter>>,
    /// Those that were set aside.
    requests: VecDeque<(Request, Bytes)>,
    /// Bytes of their payloads.
    bytes: usize,
    /// That of the first request: the first one that was set aside, or else the first in the input.
    turn: Option<Turn>,
    /// The turn of that request has come.
    is_up: bool,
}

/// Bytes by which a request counts for the limits; `None`: it does not.
fn cost(request: &Request) -> Option<u64> {
    match request.command {
        // A longer one is refused.
        CMD_READ | CMD_WRITE => Some(request.length).map(|bytes| if bytes > u64::from(PAYLOAD_BYTES_MAX) { 0 } else { bytes }),
        CMD_TRIM | CMD_WRITE_ZEROES | CMD_CACHE => Some(0),
        _ => None,
    }
}

impl Waiting {
    /// None yet.
    pub fn new(limiter: Option<Arc<Limiter>>) -> Self {
        Self { limiter, requests: VecDeque::new(), bytes: 0, turn: None, is_up: false }
    }

    /// How many were set aside.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Bytes of memory that they hold.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether any request waits, also one in the socket.
    pub fn is_any(&self) -> bool {
        self.turn.is_some() || !self.requests.is_empty()
    }

    /// What becomes of the first request in the input, which has a payload of so many bytes; `is_whole`: all of it has come. A small one
    /// takes its turn when it is whole, a large one before.
    pub fn place(&mut self, request: &Request, payload: usize, is_whole: bool) -> Place {
        let Some(limiter) = &self.limiter else { return Place::Free };
        if !limiter.is_limited() && !self.is_up && !self.is_any() {
            return Place::Free;
        }
        let Some(bytes) = cost(request) else { return Place::Free };
        let has_room = self.bytes + payload <= WAITING_BYTES_MAX;
        if !self.requests.is_empty() {
            return if has_room { Place::Aside } else { Place::Stay };
        }
        let (is_ready, is_small) = (is_whole || payload > WAITING_BYTES_MAX, payload <= WAITING_BYTES_MAX);
        match self.is_up || !is_ready || self.comes_up(bytes) {
            true => Place::Up,
            false if is_small => Place::Aside,
            false => Place::Stay,
        }
    }

    /// Whether the turn of the first request has come, which takes one if it has none.
    fn comes_up(&mut self, bytes: u64) -> bool {
        let Some(limiter) = &self.limiter else { return true };
        let turn = self.turn.get_or_insert_with(|| limiter.queue(bytes));
        if turn.wait().is_some() {
            return false;
        }
        self.turn.take().into_iter().for_each(Turn::begin);
        self.is_up = true;
        true
    }

    /// Sets the first request of the input aside.
    pub fn put(&mut self, request: Request, data: Bytes) {
        // A small payload is a part of a buffer that is shared with other requests.
        let data = if data.len() < OWN_BYTES_MIN { Bytes::copy_from_slice(&data) } else { data };
        self.bytes += data.len();
        self.requests.push_back((request, data));
    }

    /// The first request that was set aside, if its turn has come.
    pub fn next(&mut self) -> Option<&Request> {
        let bytes = cost(&self.requests.front()?.0).unwrap_or(0);
        let is_up = self.is_up || self.comes_up(bytes);
        self.requests.front().filter(|_| is_up).map(|(request, _)| request)
    }

    /// Takes the request that [`Waiting::next`] has answered.
    pub fn take(&mut self) -> Option<(Request, Bytes)> {
        self.is_up = false;
        let (request, data) = self.requests.pop_front()?;
        self.bytes -= data.len();
        Some((request, data))
    }

    /// The first request of the input begins, whose turn has come.
    pub fn begun(&mut self) {
        self.is_up = false;
    }

    /// How long to wait before the turn of the first request may have come.
    pub fn patience(&mut self) -> Option<Duration> {
        self.turn.as_mut().map(|turn| turn.wait().unwrap_or_default())
    }

    /// Lets all begin: the export is gone, and they fail.
    pub fn give_up(&mut self) {
        (self.limiter, self.turn) = (None, None);
    }
}
