//! The fetch of a waiting reader, from as many addresses as it takes.

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

/// Bytes of the longest request of a waiting reader.
pub const REQUEST_BYTES: u64 = 4 << 20;
/// Reads of at most this many bytes take about a round trip; only these are timed.
const TIMED_BYTES: u64 = 256 << 10;
/// Time that longer reads have in addition, from part to part, before they are hedged.
const LONG_READ_PATIENCE: Duration = Duration::from_secs(1);
/// How often a hedge checks whether its second address is connected.
const CONNECT_INTERVAL: Duration = Duration::from_millis(20);

/// Why a fetch failed.
pub struct Unfetched {
    pub error: Error,
    /// An address could not be reached, and may come back.
    pub may_return: bool,
}

/// One range that the reader waits for.
struct WaitedRead {
    run: Range<u64>,
    /// `None` if another fetch holds the claim and this one only races it, and when the read has ended.
    claim: Option<Claim>,
    /// Addresses that were tried.
    tried: Vec<String>,
    /// Number of attempts under way.
    active: usize,
    /// Number of attempts with damaged bytes.
    damaged: usize,
    over: bool,
}

/// One read at one address.
struct Attempt {
    read: usize,
    uri: String,
    began: Duration,
    /// When a second address is asked as well. Each part that arrives moves it to `hedge_after` from then.
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
    /// Fetches the ranges of one reader, and returns when each has ended. A range has its claim, unless it races the fetch of another
    /// holder.
    ///
    /// 1. Every range is asked at the best address ([`WaitedFetch::ask`]). An address that cannot be connected is passed over.
    /// 2. Parts are verified and stored as they arrive, which wakes the readers that wait for them.
    /// 3. A range without bytes for longer than usual is hedged ([`WaitedFetch::hedge`]): the first attempt that ends well counts.
    /// 4. A failed attempt is replaced at the next address. After damaged bytes the same address is asked once more, because they may have
    ///    been damaged on the network.
    /// 5. A range whose addresses have all failed fails the fetch.
    /// 6. Each claim ends with its range, whatever the outcome is; a panic drops them all. So no range stays claimed without a fetch.
    pub fn run(
        parts: &'a Arc<Parts>,
        waiter: Waiter,
        runs: impl Iterator<Item = (Range<u64>, Option<Claim>)>,
    ) -> std::result::Result<(), Unfetched> {
        let (sender, receiver) = channel();
        // `fetch` owns all claims before the first request, so that a panic gives all of them back.
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

    /// Sends the read to `again`, or to the next untried address. If none is left, the read fails.
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
                // The connection may be newer than the give-up that closed the others.
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
        // Noted before other readers learn of the failure: readers of the same blocks would otherwise wait as long again.
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
        // The bytes may have been damaged on the network: the same address is asked once more, then the next one.
        let damaged = error.kind == SourceErrorKind::Damaged;
        self.reads[read].damaged += usize::from(damaged);
        if damaged && self.reads[read].damaged == 1 {
            return self.ask(read, Some(uri));
        }
        if self.reads[read].active > 0 {
            // The other attempts may hang: the latest one is hedged at once.
            let left = self.attempts.iter_mut().rfind(|attempt| attempt.read == read && !attempt.over);
            left.into_iter().for_each(|attempt| attempt.hedge_at = Some(Duration::ZERO));
            return;
        }
        match self.parts.addresses.next_waited(&self.reads[read].tried).is_some() {
            true => self.ask(read, None),
            false => self.fail(read, Some(error)),
        }
    }

    /// Hedges slow reads: sends each read whose attempt is overdue to a second address as well.
    ///
    /// 1. Each attempt is hedged at most once, and an ended read never is.
    /// 2. The second address is the best one that the read has not tried. Without one the reader goes on waiting for the first.
    /// 3. If that address failed a moment ago, the hedge is put off until it may be tried again.
    /// 4. If it is not connected, connecting begins in the background, and the hedge looks again soon. The reader does not wait for it,
    ///    because the first answer may come before the connection does.
    /// 5. Otherwise the read is sent. Both attempts may deliver bytes: a fill of a present block changes nothing.
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
                // Step 3.
                true => Some(retry_at),
                false if self.is_connected_or_begins(&other) => {
                    self.ask(read, Some(other));
                    None
                }
                // Step 4.
                false => Some(now + CONNECT_INTERVAL),
            };
        }
    }
}

impl WaitedFetch<'_> {
    /// Whether an address is connected. If not, connecting begins in the background.
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

/// The error of a reader whose wait was given up.
pub fn given_up_error() -> SourceError {
    SourceError { kind: SourceErrorKind::Lost, message: "waiting for the source was given up".into() }
}
