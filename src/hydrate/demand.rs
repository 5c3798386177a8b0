//! Readers that wait for missing blocks.
//!
//! A read goes to the quickest address; one that takes far longer than usual is sent to a second address as well, and the first
//! answer counts. An address that fails, or sends damaged bytes twice, is passed over for the next one. Who waits for bulk that
//! brings nothing does not wait for its end, but asks another address. When addresses cannot be reached, a reader asks again until its
//! patience is over; those that come soon after that are told of the loss at once.

use std::ops::Range;
use std::time::Duration;

use super::claim::Claim;
use super::hydrator::{Failure, Hydrator, State};
use super::progress::FetchClass;
use crate::error::{Error, ErrorKind, Result};
use crate::place::Block;
use crate::source::{Arrival, OnArrival, ReadClass, SourceError, SourceErrorKind, SourceExt, damaged_error};
use crate::sync::mpsc::{Receiver, Sender, channel};

/// Longest request of a waiting reader.
const REQUEST_BYTES: u64 = 4 << 20;
/// Reads up to this length take about a round trip; only those are timed.
const TIMED_BYTES: u64 = 256 << 10;
/// Longer reads may take so much longer from part to part before they are sent a second time.
const LONG_READ_PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether an address is connected that a slow read could be sent to.
const CONNECT_INTERVAL: Duration = Duration::from_millis(20);
/// Who has waited so long for a request of somebody else has waited for it as for its own: it is not made again if it fails.
const SHARED_PATIENCE: Duration = Duration::from_secs(10);
/// All who wait for addresses to come back ask this seldom together.
const TRY_INTERVAL: Duration = Duration::from_secs(1);
/// First and longest pause after fetched blocks could not be stored.
const STALLS: Range<Duration> = Duration::from_secs(1)..Duration::from_secs(8);
/// Fetches in a row that end well and leave nothing in the layer, before a reader is told that there is nothing to wait for. A fill of
/// the same block that is under way makes one of them.
const IN_VAIN_MAX: u32 = 8;
/// Longer than anybody waits.
const FOR_EVER: Duration = Duration::from_secs(365 * 86_400);
/// Failures that are kept for those who wait.
const FAILURES_MAX: usize = 256;
/// Ranges that wait to be fetched ahead, at most; the oldest are given up.
const AHEAD_MAX: usize = 64;

impl Hydrator {
    /// Returns when every block of the range is here. Blocks that are under way already are waited for, not fetched again.
    ///
    /// # Errors
    /// [`crate::ErrorKind::SourceLost`] after the bounded retries of every source, for as long as [`SourceOpener::patience`] says; an I/O
    /// error of the layer's file.
    ///
    /// [`SourceOpener::patience`]: crate::source::SourceOpener::patience
    pub fn demand(&self, blocks: Range<u64>) -> Result<()> {
        let (began, patience) = (self.config.clock.monotonic(), self.config.opener.patience());
        // Who is seen to wait can be given up: both at once.
        let waiter = {
            let mut state = self.state.lock();
            state.demands += 1;
            Waiter { began, patience, given_up: state.given_up }
        };
        let _counted = Counted(self);
        self.demand_counted(blocks, waiter)
    }

    fn demand_counted(&self, blocks: Range<u64>, waiter: Waiter) -> Result<()> {
        let (mut is_first, mut fetches_in_vain) = (true, 0);
        // What was missing at the latest change, and when that was.
        let mut latest = (Vec::new(), Duration::ZERO);
        loop {
            self.check_failures(&blocks, waiter)?;
            let asked = Asked { at: self.config.clock.monotonic(), returns: self.state.lock().returns };
            let claimed = self.claim(blocks.clone(), REQUEST_BYTES);
            if std::mem::take(&mut is_first) {
                self.look_ahead(&blocks);
            }
            if !claimed.is_empty() {
                let runs: Vec<_> = claimed.iter().map(|claim| claim.run.clone()).collect();
                if let Err(failed) = self.fetch_waited(claimed.into_iter().map(|claim| (claim.run.clone(), Some(claim))), waiter) {
                    self.wait_for_return(failed, asked, waiter)?;
                    continue;
                }
                let in_vain = runs.iter().any(|run| self.missing_runs(run.clone()) == [run.clone()]);
                fetches_in_vain = if in_vain { fetches_in_vain + 1 } else { 0 };
                if fetches_in_vain >= IN_VAIN_MAX {
                    // The layer takes no blocks any more, or forgets them at once.
                    return Err(
                        self.lost(&SourceError { kind: SourceErrorKind::Closed, message: "what came is not needed any more".into() })
                    );
                }
                continue;
            }
            let now = self.config.clock.monotonic();
            let mut state = self.state.lock();
            let missing = self.missing_runs(blocks.clone());
            if missing.is_empty() {
                return Ok(());
            }
            if state.has_given_up(waiter) || !missing.iter().any(|run| state.is_under_way(run)) {
                continue;
            }
            if missing != latest.0 {
                latest = (missing, now);
            }
            // Woken when bytes arrive or fail; a range that failed is claimed above, by whoever comes first.
            match state.peers.bulk_patience().map(|patience| (latest.1 + patience).saturating_sub(now)) {
                None => self.changed.wait(&mut state),
                Some(Duration::ZERO) => {
                    drop(state);
                    let first = latest.0[0].clone();
                    let end = first.end.min(first.start + self.config.block_size.block_of(REQUEST_BYTES).max(1));
                    if let Err(failed) = self.fetch_waited(std::iter::once((first.start..end, None)), waiter) {
                        self.wait_for_return(failed, asked, waiter)?;
                    }
                }
                Some(left) => drop(self.changed.wait_for(&mut state, left)),
            }
        }
    }

    /// Fails who has waited for blocks in vain: otherwise those who wait for one block would ask one after the other,
    /// and the last of them would wait many times as long as the first.
    fn check_failures(&self, blocks: &Range<u64>, waiter: Waiter) -> Result<()> {
        let is_new = self.config.clock.monotonic().saturating_sub(waiter.began) < SHARED_PATIENCE;
        let state = self.state.lock();
        let given_up = state.has_given_up(waiter);
        if !given_up && (is_new || state.failures.is_empty()) {
            return Ok(());
        }
        let is_patient = self.is_patient(&state, waiter);
        let missing = self.missing_runs(blocks.clone());
        let concerns = |failure: &Failure| {
            let is_missing = missing.iter().any(|other| other.start < failure.run.end && failure.run.start < other.end);
            failure.at >= waiter.began && !(failure.may_return && is_patient) && is_missing
        };
        if missing.is_empty() || !(given_up || state.failures.iter().any(concerns)) {
            return Ok(());
        }
        Err(self
            .lost(&state.last_error.clone().map_or_else(given_up_error, |message| SourceError { kind: SourceErrorKind::Lost, message })))
    }

    /// Whether a reader waits on for addresses that cannot be reached.
    fn is_patient(&self, state: &State, waiter: Waiter) -> bool {
        let now = self.config.clock.monotonic();
        let is_recent = |at: Duration| now.saturating_sub(at) < waiter.patience;
        is_recent(waiter.began) && !state.lost_at.is_some_and(is_recent)
    }

    /// Whether a reader that could not reach an address is to be told so; others that come soon are told at once then.
    fn has_waited_enough(&self, state: &mut State, waiter: Waiter) -> bool {
        let is_over = !self.is_patient(state, waiter);
        if is_over {
            state.lost_at = Some(self.config.clock.monotonic());
        }
        is_over
    }

    /// Returns when it is time to ask again for what could not be had because an address cannot be reached.
    ///
    /// # Errors
    /// That of the fetch, if it is not worth waiting, or was waited for long enough.
    fn wait_for_return(&self, failed: Unfetched, asked: Asked, waiter: Waiter) -> Result<()> {
        let mut state = self.state.lock();
        loop {
            if !failed.may_return || state.stopped || state.has_given_up(waiter) {
                return Err(failed.error);
            }
            if self.has_waited_enough(&mut state, waiter) {
                return Err(failed.error);
            }
            let now = self.config.clock.monotonic();
            // One that comes and goes must not be asked each time that it gives something to somebody else.
            if state.returns != asked.returns && now.saturating_sub(asked.at) >= TRY_INTERVAL {
                return Ok(());
            }
            if now >= state.next_try {
                state.next_try = now + TRY_INTERVAL;
                return Ok(());
            }
            let over = waiter.began.saturating_add(waiter.patience);
            let pause = state.next_try.min(over).saturating_sub(now);
            self.changed.wait_for(&mut state, pause);
        }
    }

    /// Keeps in mind that a request brought nothing. `may_return`: an address was away, and may give it later.
    pub(super) fn note_failed(&self, run: &Range<u64>, may_return: bool) {
        let at = self.config.clock.monotonic();
        let mut state = self.state.lock();
        if state.failures.len() >= FAILURES_MAX {
            state.failures.pop_front();
        }
        state.failures.push_back(Failure { run: run.clone(), at, may_return });
    }

    /// Fails everybody who waits for a source now; later reads connect again.
    pub fn give_up_waiting(&self) {
        let sources = {
            let mut state = self.state.lock();
            state.given_up += 1;
            self.connector.give_up();
            let sources = state.peers.take_sources();
            self.notify(&state);
            sources
        };
        sources.iter().for_each(|source| source.close());
    }

    /// Guesses what will be read next, and lets it be fetched.
    fn look_ahead(&self, blocks: &Range<u64>) {
        let end = self.config.layer.source_blocks().unwrap_or(0);
        let mut state = self.state.lock();
        if state.settings.paused {
            return;
        }
        let ahead = state.readers.miss(blocks, self.config.block_size.bytes());
        // What belongs to the latest miss comes first.
        for range in ahead.into_iter().rev().map(|range| range.start..range.end.min(end)).filter(|range| !range.is_empty()) {
            state.ahead.push_front(range);
        }
        state.ahead.truncate(AHEAD_MAX);
        self.notify(&state);
    }

    /// Fetches ranges, each with its claim if the caller has one. Claims are given back as their reads end.
    fn fetch_waited<'a>(
        &'a self,
        runs: impl Iterator<Item = (Range<u64>, Option<Claim<'a>>)>,
        waiter: Waiter,
    ) -> std::result::Result<(), Unfetched> {
        let (sender, receiver) = channel();
        // All are under its care before the first is asked for: whatever happens then gives them all back.
        let reads = runs.map(|(run, claim)| WaitedRead { run, claim, tried: Vec::new(), active: 0, damaged: 0, over: false }).collect();
        let mut fetch = WaitedFetch { hydrator: self, waiter, sender, reads, attempts: Vec::new(), outcome: Ok(()), is_lost: false };
        for number in 0..fetch.reads.len() {
            fetch.ask(number, None);
        }
        fetch.run(&receiver);
        let may_return = fetch.is_lost;
        fetch.outcome.map_err(|error| Unfetched { may_return: may_return && error.kind() == ErrorKind::SourceLost, error })
    }

    /// Fetched blocks could not be stored: backfill pauses for a while, there may be space again later. What it fetches until that is
    /// seen is lost, so it pauses longer each time. A store that refuses writes does so until it is opened again.
    pub(super) fn note_unstored(&self, error: &Error) {
        let now = self.config.clock.monotonic();
        let mut state = self.state.lock();
        state.last_error = Some(format!("fetched blocks cannot be stored: {error}"));
        if now >= state.stalled_until {
            let again = now - state.stalled_until < state.stall * 2;
            state.stall = if again { (state.stall * 2).min(STALLS.end) } else { STALLS.start };
        }
        state.stalled_until = now + if error.kind() == ErrorKind::Poisoned { FOR_EVER } else { state.stall };
        if error.kind() == ErrorKind::NoSpace {
            state.no_space = Some(format!("no space: {error}"));
            self.look_at_health(state);
        }
    }

    /// Whether there is space again for what is missing, after there was none. Nothing is fetched to find that out.
    pub(super) fn finds_space(&self) -> bool {
        let found = self.next_needed(0).map_or(Ok(()), |first| {
            let (layers, layer, extent) = (&self.config.layers, &self.config.layer, Block::at(first).unwrap_or(Block::LAST).extent());
            let missing = layer.missing(extent);
            layers.admission.take_space(layer, extent, &missing)?;
            layers.admission.give_back_space(layer, extent, &missing);
            Ok(())
        });
        match found {
            Ok(()) => {
                let mut state = self.state.lock();
                state.no_space = None;
                self.look_at_health(state);
                true
            }
            Err(error) => {
                self.note_unstored(&error);
                false
            }
        }
    }
}

/// Why a fetch failed.
struct Unfetched {
    error: Error,
    /// An address could not be reached, and may be later.
    may_return: bool,
}

/// When a reader asked, and how often an address had come back until then.
#[derive(Clone, Copy)]
struct Asked {
    at: Duration,
    returns: u64,
}

/// A reader that waits.
#[derive(Clone, Copy)]
struct Waiter {
    began: Duration,
    patience: Duration,
    /// [`State::given_up`] when it began.
    given_up: u64,
}

/// Counts a reader that waits until it is dropped.
struct Counted<'a>(&'a Hydrator);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let now = self.0.config.clock.monotonic();
        let mut state = self.0.state.lock();
        state.demands -= 1;
        state.waits.note(now);
        if state.demands == 0 {
            self.0.notify(&state);
        }
    }
}

/// One range that somebody waits for.
struct WaitedRead<'a> {
    run: Range<u64>,
    /// `None` if another fetch holds the claim and this one only races it, and when the read has ended.
    claim: Option<Claim<'a>>,
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

struct WaitedFetch<'a> {
    hydrator: &'a Hydrator,
    waiter: Waiter,
    sender: Sender<(usize, Arrival)>,
    reads: Vec<WaitedRead<'a>>,
    attempts: Vec<Attempt>,
    outcome: Result<()>,
    /// An address could not be reached.
    is_lost: bool,
}

impl WaitedFetch<'_> {
    fn run(&mut self, receiver: &Receiver<(usize, Arrival)>) {
        while self.reads.iter().any(|read| !read.over) {
            let now = self.hydrator.config.clock.monotonic();
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
        let hydrator = self.hydrator;
        let mut failure = None;
        let mut next = again;
        loop {
            let has_given_up = || hydrator.state.lock().has_given_up(self.waiter);
            if has_given_up() {
                return self.fail(number, failure.or_else(|| Some(given_up_error())));
            }
            let Some(uri) = next.take().or_else(|| hydrator.next_waited(&self.reads[number].tried)) else {
                return self.fail(number, failure);
            };
            self.reads[number].tried.push(uri.clone());
            match hydrator.source_since(&uri, Some(self.waiter.given_up)) {
                // This connection may be a new one, which was not closed with the others.
                Ok(_) if has_given_up() => {}
                Err(error) => {
                    hydrator.note_error(&uri, &error);
                    self.is_lost |= error.kind == SourceErrorKind::Lost;
                    failure = Some(error);
                }
                Ok(source) => {
                    let began = hydrator.config.clock.monotonic();
                    let range = hydrator.byte_range(&self.reads[number].run);
                    let is_short = range.end - range.start <= TIMED_BYTES;
                    let usual = hydrator.state.lock().peers.hedge_after(&uri);
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
        {
            // Before others learn of the failure: those that wait for the same blocks would wait as long again.
            let mut state = self.hydrator.state.lock();
            let _ = self.is_lost && self.hydrator.has_waited_enough(&mut state, self.waiter);
        }
        self.hydrator.note_failed(&read.run, self.is_lost);
        let message = || "there is no address to ask".into();
        let failure = failure.unwrap_or_else(|| SourceError { kind: SourceErrorKind::Closed, message: message() });
        if self.outcome.is_ok() {
            self.outcome = Err(self.hydrator.lost(&failure));
        }
        read.end(self.hydrator);
    }

    fn take(&mut self, number: usize, arrival: Arrival) {
        let hydrator = self.hydrator;
        let attempt = &mut self.attempts[number];
        let read = &mut self.reads[attempt.read];
        match arrival {
            Arrival::Part(part) => {
                if let Some(offset) = part.damage() {
                    attempt.damage = Some(damaged_error(&attempt.uri, offset));
                } else if !read.over {
                    hydrator.note_bytes(&attempt.uri, FetchClass::Demand, part.bytes.len() as u64);
                    let blocks = hydrator.blocks_of(&part, &read.run);
                    let stored = blocks.map_or(Ok(()), |(blocks, bytes)| hydrator.fill(blocks, &bytes));
                    hydrator.changed.notify_all();
                    if let Err(error) = stored {
                        hydrator.note_unstored(&error);
                        read.over = true;
                        read.end(hydrator);
                        self.outcome = Err(error);
                    }
                    let now = hydrator.config.clock.monotonic();
                    attempt.hedge_at = attempt.hedge_at.map(|_| now + attempt.hedge_after);
                }
            }
            Arrival::End(result) => {
                (attempt.hedge_at, attempt.over) = (None, true);
                read.active -= 1;
                let damage = attempt.damage.take();
                match result.and_then(|()| damage.map_or(Ok(()), Err)) {
                    Ok(()) => {
                        let waited = hydrator.config.clock.monotonic().saturating_sub(attempt.began);
                        let range = hydrator.byte_range(&read.run);
                        hydrator.note_read(&attempt.uri, &read.run, (range.end - range.start <= TIMED_BYTES).then_some(waited));
                        if !std::mem::replace(&mut read.over, true) {
                            read.end(hydrator);
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
        self.hydrator.note_failure(&uri, &error, Some(&self.reads[read].run));
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
        match self.hydrator.next_waited(&self.reads[read].tried).is_some() {
            true => self.ask(read, None),
            false => self.fail(read, Some(error)),
        }
    }

    /// Sends reads that take too long to another address as well.
    fn hedge(&mut self) {
        let now = self.hydrator.config.clock.monotonic();
        for number in 0..self.attempts.len() {
            let read = self.attempts[number].read;
            if self.reads[read].over || self.attempts[number].hedge_at.is_none_or(|at| at > now) {
                continue;
            }
            self.attempts[number].hedge_at = None;
            let Some(other) = self.hydrator.next_waited(&self.reads[read].tried) else { continue };
            let retry_at = self.hydrator.state.lock().peers.retry_at(&other);
            self.attempts[number].hedge_at = match retry_at > now {
                // It failed a moment ago: it is asked when it may be better.
                true => Some(retry_at),
                false if self.hydrator.is_connected_or_begins(&other) => {
                    self.ask(read, Some(other));
                    None
                }
                // The answer may come before the connection does.
                false => Some(now + CONNECT_INTERVAL),
            };
        }
    }
}

impl WaitedRead<'_> {
    fn end(&mut self, hydrator: &Hydrator) {
        self.claim = None;
        hydrator.changed.notify_all();
    }
}

fn given_up_error() -> SourceError {
    SourceError { kind: SourceErrorKind::Lost, message: "it is not waited for any longer".into() }
}

impl State {
    /// Whether it was said that nobody is to wait any longer since this reader began to.
    fn has_given_up(&self, waiter: Waiter) -> bool {
        self.given_up != waiter.given_up
    }
}
