//! Fetching what a reader waits for, from as many addresses as it takes.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::waiters::Waiter;
use crate::error::{Error, ErrorKind, Result};
use crate::hydrate::claims::Claim;
use crate::hydrate::connect::connect_aside;
use crate::hydrate::parts::Parts;
use crate::hydrate::progress::FetchClass;
use crate::place::wide;
use crate::source::{Arrival, OnArrival, ReadClass, SourceError, SourceErrorKind, SourceExt, damaged_error};
use crate::sync::mpsc::{Receiver, Sender, channel};

/// Longest request of a waiting reader.
pub const REQUEST_BYTES: u64 = 4 << 20;
/// Reads up to this length take about a round trip; only those are timed.
const TIMED_BYTES: u64 = 256 << 10;
/// Longer reads may take so much longer from part to part before they are sent a second time.
const LONG_READ_PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether an address is connected that a slow read could be sent to.
const CONNECT_INTERVAL: Duration = Duration::from_millis(20);

/// Why a fetch failed.
pub struct Unfetched {
    pub error: Error,
    /// An address could not be reached, and may be later.
    pub may_return: bool,
}

/// One range that somebody waits for.
struct WaitedRead {
    run: Range<u64>,
    /// `None` if another fetch holds the claim and this one only races it, and when the read has ended.
    claim: Option<Claim>,
    /// Addresses that were asked.
    tried: Vec<String>,
    /// Attempts under way.
    active: usize,
    /// Attempts that brought damaged bytes.
    damaged: usize,
    over: bool,
}

/// One read at one address.
struct Attempt {
    read: usize,
    uri: String,
    began: Duration,
    /// When a second address is asked as well, and how long that is after the latest bytes.
    hedge_at: Option<Duration>,
    hedge_after: Duration,
    damage: Option<SourceError>,
    over: bool,
}

/// The fetch of one reader.
pub struct WaitedFetch<'a> {
    parts: &'a Arc<Parts>,
    waiter: Waiter,
    sender: Sender<(usize, Arrival)>,
    reads: Vec<WaitedRead>,
    attempts: Vec<Attempt>,
    outcome: Result<()>,
    /// An address could not be reached.
    is_lost: bool,
}

impl<'a> WaitedFetch<'a> {
    /// Fetches ranges, each with its claim if the caller has one. Claims are given back as their reads end.
    pub fn run(
        parts: &'a Arc<Parts>,
        waiter: Waiter,
        runs: impl Iterator<Item = (Range<u64>, Option<Claim>)>,
    ) -> std::result::Result<(), Unfetched> {
        let (sender, receiver) = channel();
        // All are under its care before the first is asked for: whatever happens then gives them all back.
        let reads = runs.map(|(run, claim)| WaitedRead { run, claim, tried: Vec::new(), active: 0, damaged: 0, over: false }).collect();
        let mut fetch = Self { parts, waiter, sender, reads, attempts: Vec::new(), outcome: Ok(()), is_lost: false };
        for number in 0..fetch.reads.len() {
            fetch.ask(number, None);
        }
        fetch.take_all(&receiver);
        let may_return = fetch.is_lost;
        fetch.outcome.map_err(|error| Unfetched { may_return: may_return && error.kind() == ErrorKind::SourceLost, error })
    }

    fn take_all(&mut self, receiver: &Receiver<(usize, Arrival)>) {
        while self.reads.iter().any(|read| !read.over) {
            let now = self.parts.now();
            let open = self.attempts.iter().filter(|attempt| !self.reads[attempt.read].over);
            let hedge_at = open.filter_map(|attempt| attempt.hedge_at).min();
            let received = match hedge_at {
                None => receiver.recv().ok(),
                Some(at) => receiver.recv_timeout(at.saturating_sub(now)).ok(),
            };
            match received {
                Some((attempt, arrival)) => self.take(attempt, arrival),
                None => self.hedge(),
            }
        }
    }

    /// Asks `uri`, or the next address that was not asked. Without any left the read has failed.
    fn ask(&mut self, number: usize, again: Option<String>) {
        let parts = self.parts;
        let mut failure = None;
        let mut next = again;
        loop {
            let has_given_up = || parts.waiters.has_given_up(self.waiter);
            if has_given_up() {
                return self.fail(number, failure.or_else(|| Some(given_up_error())));
            }
            let Some(uri) = next.take().or_else(|| parts.addresses.next_waited(&self.reads[number].tried)) else {
                return self.fail(number, failure);
            };
            self.reads[number].tried.push(uri.clone());
            match parts.addresses.source_while(&uri, || !has_given_up()) {
                // This connection may be a new one, which was not closed with the others.
                Ok(_) if has_given_up() => {}
                Err(error) => {
                    parts.note_failure(&uri, &error, None);
                    self.is_lost |= error.kind == SourceErrorKind::Lost;
                    failure = Some(error);
                }
                Ok(source) => {
                    let began = parts.now();
                    let range = parts.root.byte_range(&self.reads[number].run);
                    let is_short = range.end - range.start <= TIMED_BYTES;
                    let usual = parts.addresses.look(|peers| peers.hedge_after(&uri));
                    let hedge_after = usual.map(|usual| if is_short { usual } else { usual + LONG_READ_PATIENCE });
                    let hedge_at = hedge_after.map(|after| began + after);
                    let hedge_after = hedge_after.unwrap_or_default();
                    self.attempts.push(Attempt { read: number, uri, began, hedge_at, hedge_after, damage: None, over: false });
                    self.reads[number].active += 1;
                    let (sender, attempt) = (self.sender.clone(), self.attempts.len() - 1);
                    source.read_any(range, ReadClass::Waited, OnArrival::new(move |arrival| drop(sender.send((attempt, arrival)))));
                    return;
                }
            }
        }
    }

    fn fail(&mut self, number: usize, failure: Option<SourceError>) {
        let read = &mut self.reads[number];
        if read.active > 0 || read.over {
            return;
        }
        read.over = true;
        let now = self.parts.now();
        // Before others learn of the failure: those that wait for the same blocks would wait as long again.
        let _ = self.is_lost && self.parts.waiters.has_waited_enough(self.waiter, now);
        self.parts.waiters.note_failed(read.run.clone(), now, self.is_lost);
        let message = || "there is no address to ask".into();
        let failure = failure.unwrap_or_else(|| SourceError { kind: SourceErrorKind::Closed, message: message() });
        if self.outcome.is_ok() {
            self.outcome = Err(self.parts.lost(&failure));
        }
        read.end(self.parts);
    }

    fn take(&mut self, number: usize, arrival: Arrival) {
        let parts = self.parts;
        let attempt = &mut self.attempts[number];
        let read = &mut self.reads[attempt.read];
        match arrival {
            Arrival::Part(part) => {
                if let Some(offset) = part.damage() {
                    attempt.damage = Some(damaged_error(&attempt.uri, offset));
                } else if !read.over {
                    parts.note_bytes(&attempt.uri, FetchClass::Demand, wide(part.bytes.len()));
                    let blocks = parts.root.blocks_of(&part, &read.run);
                    let stored = blocks.map_or(Ok(()), |(blocks, bytes)| parts.root.fill(&blocks, &bytes));
                    parts.news.tell();
                    if let Err(error) = stored {
                        parts.note_unstored(&error);
                        read.over = true;
                        read.end(parts);
                        self.outcome = Err(error);
                    }
                    let now = parts.now();
                    attempt.hedge_at = attempt.hedge_at.map(|_| now + attempt.hedge_after);
                }
            }
            Arrival::End(result) => {
                (attempt.hedge_at, attempt.over) = (None, true);
                read.active -= 1;
                let damage = attempt.damage.take();
                match result.and_then(|()| damage.map_or(Ok(()), Err)) {
                    Ok(()) => {
                        let waited = parts.now().saturating_sub(attempt.began);
                        let range = parts.root.byte_range(&read.run);
                        parts.note_read(&attempt.uri, &read.run, (range.end - range.start <= TIMED_BYTES).then_some(waited));
                        if !std::mem::replace(&mut read.over, true) {
                            read.end(parts);
                        }
                    }
                    Err(error) => self.take_error(number, error),
                }
            }
        }
    }

    fn take_error(&mut self, number: usize, error: SourceError) {
        let Attempt { read, ref uri, .. } = self.attempts[number];
        let uri = uri.clone();
        self.parts.note_failure(&uri, &error, Some(&self.reads[read].run));
        self.is_lost |= error.kind == SourceErrorKind::Lost;
        if self.reads[read].over {
            return;
        }
        // Bytes may be damaged on their way: the same address gets one more chance, then the next one.
        let damaged = error.kind == SourceErrorKind::Damaged;
        self.reads[read].damaged += usize::from(damaged);
        if damaged && self.reads[read].damaged == 1 {
            return self.ask(read, Some(uri));
        }
        if self.reads[read].active > 0 {
            // The attempts that are left may hang: a further address is asked as if they had taken too long already.
            let left = self.attempts.iter_mut().rfind(|attempt| attempt.read == read && !attempt.over);
            left.into_iter().for_each(|attempt| attempt.hedge_at = Some(Duration::ZERO));
            return;
        }
        match self.parts.addresses.next_waited(&self.reads[read].tried).is_some() {
            true => self.ask(read, None),
            false => self.fail(read, Some(error)),
        }
    }

    /// Sends reads that take too long to another address as well.
    fn hedge(&mut self) {
        let now = self.parts.now();
        for number in 0..self.attempts.len() {
            let read = self.attempts[number].read;
            if self.reads[read].over || self.attempts[number].hedge_at.is_none_or(|at| at > now) {
                continue;
            }
            self.attempts[number].hedge_at = None;
            let Some(other) = self.parts.addresses.next_waited(&self.reads[read].tried) else { continue };
            let retry_at = self.parts.addresses.look(|peers| peers.retry_at(&other));
            self.attempts[number].hedge_at = match retry_at > now {
                // It failed a moment ago: it is asked when it may be better.
                true => Some(retry_at),
                false if self.is_connected_or_begins(&other) => {
                    self.ask(read, Some(other));
                    None
                }
                // The answer may come before the connection does.
                false => Some(now + CONNECT_INTERVAL),
            };
        }
    }
}

impl WaitedFetch<'_> {
    /// Whether an address is connected; otherwise lets it be.
    fn is_connected_or_begins(&self, uri: &str) -> bool {
        let Some(connecting) = self.parts.addresses.begin_connecting(uri) else { return false };
        let is_connected = self.parts.addresses.is_connected(uri);
        if !is_connected {
            connect_aside(self.parts, connecting);
        }
        is_connected
    }
}

impl WaitedRead {
    fn end(&mut self, parts: &Parts) {
        self.claim = None;
        parts.news.tell();
    }
}

/// The error of a reader that was told not to wait any longer.
pub fn given_up_error() -> SourceError {
    SourceError { kind: SourceErrorKind::Lost, message: "it is not waited for any longer".into() }
}
