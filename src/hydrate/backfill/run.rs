//! The backfill loop of one root layer: takes messages, and makes requests.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::due::Due;
use super::errand::{Errand, Errands};
use super::field::FarBlocks;
use super::inbox::{Inbox, Message};
use super::plan::Plan;
use super::questions::{Asked, Questions, follow};
use crate::hydrate::addresses::Connected;
use crate::hydrate::connect::connect_aside;
use crate::hydrate::crew::Crew;
use crate::hydrate::fills::Fetched;
use crate::hydrate::pace::{Asks, Sending, Sent};
use crate::hydrate::parts::Parts;
use crate::hydrate::progress::FetchClass;
use crate::place::wide;
use crate::source::{Arrival, OnArrival, ReadClass, Source, SourceError, SourceErrorKind, SourceExt, damaged_error};
use crate::sync::atomic::{AtomicUsize, Ordering};

/// Longest pause between two rounds of an idle backfill that is not woken.
const IDLE_INTERVAL: Duration = Duration::from_millis(500);
/// Shortest pause before blocks that an address could not give are requested there again.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// Pause if only a wake can bring something to do.
const LONG: Duration = Duration::from_secs(60);
/// Fetched bytes after which progress is made durable. After a crash at most this much is fetched twice, besides the requests under
/// way.
const RECORD_BYTES: u64 = 16 << 20;
/// Most messages and most requests of one round, before other hydrations have their turn.
const MESSAGES_MAX: usize = 64;
const REQUESTS_MAX: u64 = 32;

/// A request under way.
struct Request {
    run: Range<u64>,
    fetched: Arc<Fetched>,
    uri: String,
    sending: Sending,
    class: FetchClass,
    damage: Option<SourceError>,
}

/// What to do after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// There is more to do at once.
    Again,
    /// There may be more after this time, or when a message comes.
    After(Duration),
    /// Nothing is missing and nothing is under way.
    Complete,
}

/// Result of an attempt to make requests.
struct Made {
    /// False if the round has made as many requests as it may.
    all: bool,
    /// Time after which a further request may be possible.
    pause: Option<Duration>,
}

/// Backfill of one root layer.
pub struct Backfill {
    parts: Arc<Parts>,
    inbox: Arc<Inbox>,
    /// Threads of the store; `None` runs everything on the caller's thread.
    crew: Option<Arc<Crew>>,
    plan: Plan,
    questions: Questions,
    requests: HashMap<u64, Request>,
    /// Number of the next request.
    next: u64,
    last_request: Duration,
    unrecorded_bytes: u64,
    errands: Errands,
    due: Due,
    /// Number of fetched ranges that are not stored yet.
    unstored: Arc<AtomicUsize>,
}

impl Backfill {
    pub fn new(parts: &Arc<Parts>, crew: Option<Arc<Crew>>) -> Self {
        let inbox = Inbox::new(parts);
        Self {
            parts: Arc::clone(parts),
            errands: Errands::new(parts, &inbox, crew.clone()),
            inbox,
            crew,
            plan: Plan::default(),
            questions: Questions::default(),
            requests: HashMap::new(),
            next: 0,
            last_request: Duration::ZERO,
            unrecorded_bytes: 0,
            due: Due::default(),
            unstored: Arc::default(),
        }
    }

    pub fn follow_first(&mut self) {
        let (uri, source) = self.parts.addresses.first().unwrap_or_default();
        self.follow_source(&uri, source.as_ref());
    }

    /// Follows the trace of an earlier fork: the one saved on this host, or else the one of the source, once a source is connected.
    fn follow_source(&mut self, uri: &str, source: Option<&Arc<dyn Source>>) {
        let parts = &self.parts;
        if parts.queue.is_followed() {
            return;
        }
        let known = parts.root.layers.load_trace(parts.root.layer.id);
        match (known, source) {
            (None, None) => {}
            (None, Some(source)) => {
                parts.queue.set_followed();
                self.questions.ask_trace(parts, Asked { uri, source, inbox: &self.inbox, crew: self.crew.as_ref() });
            }
            (Some(known), _) => follow(parts, known),
        }
    }

    /// Number of requests made so far.
    pub fn requests_made(&self) -> u64 {
        self.next
    }

    fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.unstored.load(Ordering::Acquire) == 0
    }

    /// Runs one round: takes messages and makes requests, both up to the bounds of a turn.
    pub fn round(&mut self) -> Round {
        let took_all = self.take_messages();
        self.record_if_due();
        if self.plan.is_at_start() && self.errands.is_empty() && self.parts.begins_look() {
            // The first request waits until the hidden blocks are known.
            self.errands.begin(Errand::Look);
        }
        if self.errands.looks() {
            return Round::After(LONG);
        }
        let is_whole_pass = self.plan.is_at_start();
        let Made { all, pause } = self.request_more();
        if !took_all || !all {
            return Round::Again;
        }
        let pause = pause.into_iter().chain(self.questions.patience_left()).min();
        if self.is_idle() { self.rest(pause, is_whole_pass) } else { Round::After(pause.unwrap_or(LONG)) }
    }

    /// Nothing is under way: decides when to run the next round, or that the hydration is complete.
    fn rest(&mut self, pause: Option<Duration>, is_whole_pass: bool) -> Round {
        let parts = Arc::clone(&self.parts);
        if self.errands.is_empty() && !parts.is_complete() && parts.begins_look() {
            // The missing blocks may be hidden once the writes above are durable: looks again.
            self.errands.begin(Errand::Look);
        }
        if parts.is_complete() {
            return Round::Complete;
        }
        self.plan.start_again();
        if pause.is_none() && is_whole_pass {
            parts.note_stuck();
        }
        let now = parts.now();
        let retry_at = parts.addresses.look(|peers| peers.next_bad_retry().into_iter().chain(peers.next_retry()).min());
        let until_retry = retry_at.map_or(IDLE_INTERVAL, |at| at.saturating_sub(now).clamp(RETRY_INTERVAL, IDLE_INTERVAL));
        let soon = pause.unwrap_or(until_retry);
        Round::After(self.close_idle().map_or(soon, |idle| idle.min(soon)))
    }

    /// Waits on the caller's thread until all requests have ended.
    pub fn wait_for_requests(&mut self) {
        while !self.requests.is_empty() {
            self.inbox.wait();
            self.take_messages();
        }
    }

    /// Gives up all requests. Their later messages are ignored.
    pub fn give_up(&mut self) {
        self.requests.clear();
        self.questions = Questions::default();
    }

    /// Whether no write and no errand of this backfill is under way on another thread. Takes messages and drops their contents.
    pub fn is_quiet(&mut self) -> bool {
        while let Some(message) = self.inbox.take() {
            if let Message::Returned(result) = message {
                self.errands.end(result);
            }
        }
        self.errands.is_empty() && self.unstored.load(Ordering::Acquire) == 0
    }

    /// Begins the errand that makes everything durable and then calls `finish`. False if another errand is under way.
    pub fn finish(&mut self, finish: Arc<dyn Fn() -> bool + Send + Sync>) -> bool {
        self.errands.begin(Errand::Finish(finish))
    }

    /// Result of [`Backfill::finish`]; `None` if it has not ended.
    pub fn finished(&mut self) -> Option<bool> {
        self.take_messages();
        self.errands.take_finished()
    }

    /// Closes idle connections if there is nothing to fetch. Returns when the next one may become idle.
    fn close_idle(&self) -> Option<Duration> {
        let parts = &self.parts;
        let rests = parts.throttle.settings().paused || parts.now() < parts.health.stall().0;
        // While readers wait nothing is closed; the last one wakes backfill when it ends.
        if rests && parts.waiters.count() == 0 { parts.addresses.close_idle() } else { None }
    }

    /// Makes requests until the window of every host is full, or the turn ends.
    fn request_more(&mut self) -> Made {
        let mut shortest: Option<Duration> = None;
        let first = self.next;
        loop {
            if self.next - first >= REQUESTS_MAX && self.crew.is_some() {
                return Made { all: false, pause: shortest };
            }
            if let Some(pause) = self.must_pause(self.parts.now()) {
                return Made { all: true, pause: Some(pause) };
            }
            let mut began = false;
            for connected in self.sources() {
                self.follow_source(&connected.uri, Some(&connected.source));
                match self.request(self.parts.now(), &connected) {
                    Ok(requested) => began |= requested,
                    Err(pause) => shortest = Some(shortest.map_or(pause, |shortest| shortest.min(pause))),
                }
            }
            if !began {
                return Made { all: true, pause: shortest };
            }
        }
    }

    /// Connected addresses that may be used now. Begins to connect the others.
    fn sources(&self) -> Vec<Connected> {
        let parts = &self.parts;
        let mut ready = parts.addresses.ready();
        for (uri, host) in ready.unconnected {
            let Some(connecting) = parts.addresses.begin_connecting(&uri) else { continue };
            if let Some(crew) = &self.crew {
                // Handed over, because a thread that this one starts would inherit its low priority.
                let handing = Arc::clone(parts);
                crew.hand_over(move || connect_aside(&handing, connecting));
                continue;
            }
            match parts.addresses.source(&uri) {
                Ok(source) => ready.connected.push(Connected { uri, host, source }),
                Err(error) => parts.note_failure(&uri, &error, None),
            }
        }
        ready.connected
    }

    /// Makes one request. False if there is nothing to request from this address; an error is the time to wait.
    fn request(&mut self, now: Duration, connected: &Connected) -> Result<bool, Duration> {
        let parts = Arc::clone(&self.parts);
        let Connected { uri, host, source } = connected;
        let bytes_max = parts.budget.request_bytes(host);
        let asked = Asked { uri, source, inbox: &self.inbox, crew: self.crew.as_ref() };
        let mut field = FarBlocks { parts: &parts, questions: &mut self.questions, asked, bytes_max };
        let step = parts.root.block_size.block_of(bytes_max).max(1);
        let Some((claim, class)) = self.plan.next(&parts.queue, &mut field, step) else { return Ok(false) };
        let run = claim.run.clone();
        let range = parts.root.byte_range(&run);
        let bytes = range.end - range.start;
        let sent = match class {
            FetchClass::Ahead => Ok(parts.budget.begin_now(now, host, bytes)),
            FetchClass::Demand | FetchClass::Trace | FetchClass::Backfill => self.begin_bulk(now, host, class, bytes),
        };
        let sent = match sent {
            Ok(sent) => sent,
            Err(pause) => {
                self.plan.put_back(&parts.queue, claim, class);
                return Err(pause);
            }
        };
        let number = self.next;
        self.next += 1;
        self.last_request = now;
        let sending = Sending::new(&parts.budget, &parts.clock, host, sent);
        let fetched = Fetched::new(&parts, claim, &self.unstored);
        self.requests.insert(number, Request { run, fetched, uri: uri.clone(), sending, class, damage: None });
        let inbox = Arc::clone(&self.inbox);
        source.read_any(range, ReadClass::Ahead, OnArrival::new(move |arrival| inbox.put(Message::Arrived(number, arrival))));
        Ok(true)
    }

    /// Asks for room in the host's window, within the rate cap of the operator. An error is the time to wait.
    fn begin_bulk(&mut self, now: Duration, host: &str, class: FetchClass, bytes: u64) -> Result<Sent, Duration> {
        let is_due = self.is_due(now);
        let parts = &self.parts;
        // Read-ahead and traces do not yield to waiting readers, because readers will wait for these blocks next.
        let gives_way = class == FetchClass::Backfill && !is_due && parts.waiters.expects_more(now);
        let beside_readers = gives_way.then(|| now.saturating_sub(self.last_request));
        parts.throttle.begin(now, &parts.budget, &Asks { layer: parts.root.layer.id, host, bytes, is_due, beside_readers })
    }

    /// Whether the deadline needs a higher rate than that of the last seconds.
    fn is_due(&mut self, now: Duration) -> bool {
        let parts = &self.parts;
        let deadline = parts.throttle.settings().deadline;
        let left = (deadline > 0).then_some(|| {
            let left_bytes = parts.root.block_size.offset_of(parts.missing().len());
            let left = Duration::from_secs(deadline).saturating_sub(parts.clock.unix());
            (left_bytes, left, parts.bytes_per_second())
        });
        self.due.look(now, left)
    }

    fn must_pause(&self, now: Duration) -> Option<Duration> {
        let parts = &self.parts;
        if parts.life.is_stopped() || parts.throttle.settings().paused {
            return Some(LONG);
        }
        // Fetched blocks must be stored before more are fetched, and a full set of unrecorded blocks must be recorded.
        if let Some(crew) = &self.crew
            && (crew.fills.is_full(|| parts.wake.lock().clone()) || self.errands.records() && parts.root.layers.under_pressure())
        {
            return Some(LONG);
        }
        let (stalled_until, is_full) = parts.health.stall();
        let retry_at = parts.addresses.look(|peers| peers.all_failing()).unwrap_or_default().max(stalled_until);
        if now < retry_at {
            return Some((retry_at - now).min(LONG));
        }
        (is_full && !parts.finds_space()).then_some(RETRY_INTERVAL)
    }

    /// Takes messages, up to the bound of a round. False if there are more.
    fn take_messages(&mut self) -> bool {
        for _ in 0..MESSAGES_MAX {
            let Some(message) = self.inbox.take() else { return true };
            match message {
                Message::Arrived(number, arrival) => self.take(number, arrival),
                Message::Answered(answered) => self.questions.take(&self.parts, &self.inbox, self.crew.as_ref(), answered),
                Message::Returned(result) => self.errands.end(result),
            }
        }
        false
    }

    fn take(&mut self, number: u64, arrival: Arrival) {
        let parts = &self.parts;
        let Some(request) = self.requests.get_mut(&number) else { return };
        match arrival {
            Arrival::Part(part) => {
                if let Some(offset) = part.damage() {
                    request.damage = Some(damaged_error(&request.uri, offset));
                    return;
                }
                parts.note_bytes(&request.uri, request.class, wide(part.bytes.len()));
                let Some((blocks, bytes)) = parts.root.blocks_of(&part, &request.run) else { return };
                self.unrecorded_bytes += wide(bytes.len());
                match &self.crew {
                    Some(crew) => crew.fills.store(&request.fetched, blocks, bytes),
                    None => parts.root.fill(&blocks, &bytes).unwrap_or_else(|error| parts.note_unstored(&error)),
                }
            }
            Arrival::End(result) => {
                let Some(request) = self.requests.remove(&number) else { return };
                match result.and_then(|()| request.damage.map_or(Ok(()), Err)) {
                    Ok(()) => {
                        request.sending.succeed();
                        parts.note_read(&request.uri, &request.run, None);
                    }
                    Err(error) => {
                        drop(request.sending);
                        parts.note_failure(&request.uri, &error, Some(&request.run));
                        let may_return = matches!(error.kind, SourceErrorKind::Lost | SourceErrorKind::Closed);
                        parts.waiters.note_failed(request.run.clone(), parts.now(), may_return);
                    }
                }
            }
        }
    }

    /// Begins the errand that makes progress durable, after every [`RECORD_BYTES`]. Messages are taken meanwhile.
    fn record_if_due(&mut self) {
        let is_due = self.unrecorded_bytes >= RECORD_BYTES || self.unrecorded_bytes > 0 && self.parts.root.layers.under_pressure();
        if is_due && self.errands.begin(Errand::Record) {
            self.unrecorded_bytes = 0;
        }
    }
}
