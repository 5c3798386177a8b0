//! Fetching what nobody waits for.

use std::collections::HashMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::budget::Sending;
use super::claim::Claim;
use super::hydrator::{Hydrator, State};
use super::pace::{Waits, is_late, start_pause};
use super::plan::{Asked, Plan};
use super::progress::FetchClass;
use super::wake::Waker;
use super::window::Sent;
use super::writes::Writes;
use crate::format::Trace;
use crate::ids::random_bytes;
use crate::io::{Ring, give_way};
use crate::source::{Arrival, OnArrival, ReadClass, Source, SourceError, SourceErrorKind, SourceExt, damaged_error};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::mpsc::{Receiver, Sender, channel};
use crate::sync::thread::JoinHandle;

/// Without anything to do, it is looked again after so long; wakes come before.
const IDLE_INTERVAL: Duration = Duration::from_millis(20);
/// Without hope of anything to do before a wake.
const LONG: Duration = Duration::from_secs(60);
/// Fetched bytes after which progress is made durable: a crash costs at most so much twice, beside what is under way.
const RECORD_BYTES: u64 = 16 << 20;
/// How long to wait after a panic before backfill goes on.
const PANIC_PAUSE: Duration = Duration::from_secs(5);
/// How often the rate that a deadline needs is worked out.
const DEADLINE_INTERVAL: Duration = Duration::from_secs(1);

fn random() -> Option<u64> {
    random_bytes().ok().map(u64::from_le_bytes)
}

/// What backfill waits for.
pub(super) enum Message {
    /// Something arrived for the request of this number.
    Arrived(u64, Arrival),
    /// There may be something else to do.
    Wake,
}

/// One request under way.
struct Request<'a> {
    run: Range<u64>,
    /// `None`: the writes have it.
    claim: Option<Claim<'a>>,
    uri: String,
    sending: Sending,
    class: FetchClass,
    damage: Option<SourceError>,
}

/// The state of one run of backfill over a root layer.
struct Backfill<'a> {
    hydrator: &'a Hydrator,
    plan: Plan,
    requests: HashMap<u64, Request<'a>>,
    next: u64,
    last_request: Duration,
    unrecorded_bytes: u64,
    /// Makes progress durable meanwhile.
    recording: Option<JoinHandle<()>>,
    /// Whether the deadline needs a faster pace than it has, and when that was worked out.
    due: (bool, Duration),
    sender: Sender<Message>,
    receiver: Receiver<Message>,
    /// A [`Message::Wake`] is on its way.
    is_woken: Arc<AtomicBool>,
    /// `None`: fetched bytes are stored on this thread, one after the other.
    writes: Option<Writes<'a>>,
    /// Takes addresses that are to be connected to meanwhile. `None`: everything is done on this thread.
    connect: Option<Sender<String>>,
}

impl Hydrator {
    /// Starts backfill in a thread of its own, unless it runs or was stopped; it ends when nothing is missing, or by [`Hydrator::stop`].
    /// When nothing is missing, `finish` is called; `false` says that there is more to do.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start_backfill(self: &Arc<Self>, finish: impl Fn() -> bool + Send + 'static) -> std::io::Result<()> {
        {
            let mut state = self.state.lock();
            if state.stopped || std::mem::replace(&mut state.backfill_running, true) {
                return Ok(());
            }
        }
        let running = Running(Arc::clone(self));
        let run = move || {
            let hydrator = &running.0;
            let is_over = || {
                hydrator.backfill_in_background();
                hydrator.state.lock().stopped || (hydrator.is_complete() && finish())
            };
            loop {
                match catch_unwind(AssertUnwindSafe(is_over)) {
                    Ok(true) => return,
                    Ok(false) => {}
                    // It was printed. Everything that was held was given back, so the next try may do better.
                    Err(_) if hydrator.pause_after_panic() => {}
                    Err(_) => return,
                }
            }
        };
        crate::sync::thread::Builder::new().name(format!("hydrate-{}", self.config.layer.id)).spawn(run).map(drop)
    }

    /// `false`: it was stopped.
    fn pause_after_panic(&self) -> bool {
        let until = crate::sync::time::Instant::now() + PANIC_PAUSE;
        let mut state = self.state.lock();
        state.last_error = Some("fetching in the background panicked".into());
        while !state.stopped && !self.changed.wait_until(&mut state, until).timed_out() {}
        !state.stopped
    }

    /// Backfill, in a thread that gives way to whoever else wants the processor. The caller's thread does not: it connects to
    /// addresses, and the threads that take what they send, for which readers wait as well, inherit its priority.
    fn backfill_in_background(self: &Arc<Self>) {
        let backfill = |connect| {
            // Without a ring it goes on, only slower.
            let mut backfill = Backfill::new(self, Writes::ring().ok(), connect);
            backfill.begin();
            while backfill.round(true) {}
        };
        crate::sync::thread::scope(|scope| {
            let (connect, to_connect) = channel();
            let in_background = move || {
                give_way();
                backfill(Some(connect));
            };
            match crate::sync::thread::Builder::new().name(format!("backfill-{}", self.config.layer.id)).spawn_scoped(scope, in_background)
            {
                Ok(_) => to_connect.into_iter().for_each(|uri| self.connect_aside(uri)),
                Err(_) => backfill(None),
            }
        });
    }

    /// One bounded round of backfill on the caller's thread, without waiting for time to pass. Answers whether it did anything:
    /// otherwise what is missing waits for time, for a source or for what readers fetch.
    pub fn backfill_step(&self) -> bool {
        let missing = self.missing().len();
        let mut backfill = Backfill::new(self, None, None);
        backfill.follow_first();
        backfill.round(false);
        while !backfill.requests.is_empty() {
            backfill.take_arrival(None);
        }
        backfill.next > 0 || self.missing().len() < missing
    }

    pub(super) fn follow_trace(&self, trace: Trace) {
        self.follow(trace.runs.into_iter().map(|run| u64::from(run.start)..u64::from(run.end)));
    }

    /// Whether an address is connected; otherwise lets it be.
    pub(super) fn is_connected_or_begins(&self, uri: &str) -> bool {
        {
            let mut state = self.state.lock();
            if state.connecting.iter().any(|other| other == uri) {
                return false;
            }
            if state.peers.list.iter().any(|peer| peer.uri == uri && peer.source.is_some()) {
                return true;
            }
            state.connecting.push(uri.to_owned());
        }
        // Without a thread of its own, on the caller's.
        self.this.upgrade().map(|this| this.connect_aside(uri.to_owned())).is_none()
    }

    /// Connects to an address in a thread of its own, so that one that does not answer holds up nobody.
    fn connect_aside(self: &Arc<Self>, uri: String) {
        let connecting = Connecting { hydrator: Arc::clone(self), uri };
        let hydrator = Arc::clone(self);
        let connect = move || {
            let connecting = connecting;
            if let Err(error) = hydrator.source(&connecting.uri) {
                hydrator.note_error(&connecting.uri, &error);
            }
        };
        // Without a thread it is tried again later.
        let _ = crate::sync::thread::Builder::new().name("hydrate-connect".into()).spawn(connect);
    }
}

/// An address that is being connected to, until this is dropped.
struct Connecting {
    hydrator: Arc<Hydrator>,
    uri: String,
}

impl Drop for Connecting {
    fn drop(&mut self) {
        let mut state = self.hydrator.state.lock();
        state.connecting.retain(|other| *other != self.uri);
        self.hydrator.notify(&state);
    }
}

/// Backfill runs until this is dropped.
struct Running(Arc<Hydrator>);

impl Drop for Running {
    fn drop(&mut self) {
        let hydrator = &self.0;
        // One that has finished has left, and another one may stand there by now.
        if !hydrator.state.lock().complete {
            hydrator.config.budget.leave(hydrator.config.layer.id);
        }
        let mut state = hydrator.state.lock();
        state.waker = None;
        state.backfill_running = false;
        hydrator.changed.notify_all();
    }
}

impl<'a> Backfill<'a> {
    fn new(hydrator: &'a Hydrator, ring: Option<Ring>, connect: Option<Sender<String>>) -> Self {
        let (sender, receiver) = channel();
        let writes = ring.map(|ring| Writes::new(hydrator, ring));
        Self {
            hydrator,
            plan: Plan::default(),
            requests: HashMap::new(),
            next: 0,
            last_request: Duration::ZERO,
            unrecorded_bytes: 0,
            recording: None,
            due: (false, Duration::ZERO),
            sender,
            receiver,
            is_woken: Arc::default(),
            writes,
            connect,
        }
    }

    /// Takes its place among the hydrations of the store, at a random moment soon, or when the first reader has what it waited for:
    /// bulk would be in its way.
    fn begin(&mut self) {
        let hydrator = self.hydrator;
        let waker = self.waker();
        let (layer, budget) = (hydrator.config.layer.id, &hydrator.config.budget);
        let priority = hydrator.settings().priority;
        // Counted from now on, so that of many that begin at once each sees the others.
        budget.join(layer, priority, None);
        // Without randomness those of one store still begin apart.
        let random = random().unwrap_or(u64::from(layer.0).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let pause = start_pause(budget.hydrations(), random);
        let mut state = hydrator.state.lock();
        state.waker = Some(waker.clone());
        let until = crate::sync::time::Instant::now() + pause;
        while !state.stopped && !state.waits.any() && !hydrator.changed.wait_until(&mut state, until).timed_out() {}
        let priority = state.settings.priority;
        drop(state);
        budget.join(layer, priority, Some(waker));
        self.follow_first();
    }

    fn waker(&self) -> Waker {
        match &self.writes {
            Some(writes) => writes.waker(),
            None => Waker::Channel(self.sender.clone(), Arc::clone(&self.is_woken)),
        }
    }

    fn follow_first(&mut self) {
        let first = |state: &State| state.peers.list.first().map(|peer| (peer.uri.clone(), peer.source.clone()));
        let first = first(&self.hydrator.state.lock());
        let (uri, source) = first.unwrap_or_default();
        self.follow_source(&uri, source.as_ref());
    }

    /// The order in which an earlier fork touched its blocks: as it is known here, or as the source has recorded it. Until one is
    /// connected it stays open.
    fn follow_source(&mut self, uri: &str, source: Option<&Arc<dyn Source>>) {
        let hydrator = self.hydrator;
        if hydrator.state.lock().followed {
            return;
        }
        let known = hydrator.config.layers.load_trace(hydrator.config.layer.id);
        if known.is_none() && source.is_none() {
            return;
        }
        hydrator.state.lock().followed = true;
        match (known, source) {
            (None, Some(source)) => self.plan.questions.ask_trace(hydrator, uri, source, self.connect.is_some()),
            (known, _) => hydrator.follow_trace(known.unwrap_or_default()),
        }
    }

    fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.writes.as_ref().is_none_or(Writes::is_empty)
    }

    /// Makes requests, takes what has arrived, waits a little if there is nothing else to do. `false` at the end.
    fn round(&mut self, may_wait: bool) -> bool {
        let hydrator = self.hydrator;
        if hydrator.state.lock().stopped {
            while !self.requests.is_empty() {
                self.take_arrival(None);
            }
            return false;
        }
        self.plan.take_answers(hydrator);
        let is_whole_pass = self.plan.is_at_start();
        let mut pause = self.request_more();
        if self.is_idle() {
            if !hydrator.is_complete() {
                // Perhaps nothing is missing but that what was written above becomes durable.
                hydrator.look_above();
            }
            if hydrator.is_complete() {
                self.record();
                return false;
            }
            self.plan.start_again();
            if pause.is_none() && is_whole_pass {
                hydrator.note_stuck();
            }
            let now = hydrator.config.clock.monotonic();
            let retry = hydrator.state.lock().peers.next_bad_retry();
            let until_retry = retry.map_or(IDLE_INTERVAL, |at| at.saturating_sub(now).clamp(IDLE_INTERVAL, LONG));
            let soon = pause.unwrap_or(until_retry);
            pause = Some(hydrator.close_idle().map_or(soon, |idle| idle.min(soon)));
        }
        if may_wait || !self.is_idle() {
            self.take_arrival(Some(if may_wait { pause.unwrap_or(LONG) } else { Duration::ZERO }));
        }
        true
    }

    /// Fills the way to every host. If something keeps it from being full, says for how long.
    fn request_more(&mut self) -> Option<Duration> {
        let mut shortest: Option<Duration> = None;
        loop {
            if self.writes.as_ref().is_some_and(Writes::is_full) {
                return None;
            }
            let now = self.hydrator.config.clock.monotonic();
            if let Some(pause) = self.must_pause(now) {
                return Some(pause);
            }
            let mut began = false;
            for (uri, host, source) in self.sources(now) {
                self.follow_source(&uri, Some(&source));
                match self.request(now, &uri, &host, &source) {
                    Ok(requested) => began |= requested,
                    Err(pause) => shortest = Some(shortest.map_or(pause, |shortest| shortest.min(pause))),
                }
            }
            if !began {
                return shortest;
            }
        }
    }

    /// Addresses that may be asked now and are connected.
    fn sources(&self, now: Duration) -> Vec<(String, Arc<str>, Arc<dyn Source>)> {
        let hydrator = self.hydrator;
        let mut connected = Vec::new();
        let mut aside = Vec::new();
        {
            let mut state = hydrator.state.lock();
            for number in state.peers.for_bulk(now).collect::<Vec<_>>() {
                let peer = &state.peers.list[number];
                let (uri, host, source, is_retried) = (peer.uri.clone(), Arc::clone(&peer.host), peer.source.clone(), peer.is_retried());
                if source.is_none() && state.connecting.contains(&uri) {
                    continue;
                }
                if is_retried && !hydrator.config.budget.may_retry(now, &host) {
                    state.peers.list[number].put_off(now);
                    continue;
                }
                match source {
                    Some(source) => connected.push((uri, host, source)),
                    None => {
                        state.connecting.push(uri.clone());
                        aside.push((uri, host));
                    }
                }
            }
        }
        for (uri, host) in aside {
            if let Some(connect) = &self.connect {
                // The other end waits for as long as this one is.
                let _ = connect.send(uri);
                continue;
            }
            match hydrator.source(&uri) {
                Ok(source) => connected.push((uri.clone(), host, source)),
                Err(error) => hydrator.note_error(&uri, &error),
            }
            hydrator.state.lock().connecting.retain(|other| *other != uri);
        }
        connected
    }

    /// Makes one request, if there is anything to ask for. An error says how long to wait.
    fn request(&mut self, now: Duration, uri: &str, host: &Arc<str>, source: &Arc<dyn Source>) -> Result<bool, Duration> {
        let hydrator = self.hydrator;
        let config = &hydrator.config;
        let bytes_max = config.budget.request_bytes(host);
        let peer = Asked { uri, source, aside: self.connect.is_some() };
        let Some((claim, class)) = self.plan.claim_next(hydrator, peer, bytes_max) else { return Ok(false) };
        let run = claim.run.clone();
        let range = hydrator.byte_range(&run);
        let bytes = range.end - range.start;
        let sent = match class {
            FetchClass::Ahead => Ok(config.budget.begin_now(now, host, bytes)),
            _ => self.begin_bulk(now, host, class, bytes),
        };
        let sent = match sent {
            Ok(sent) => sent,
            Err(pause) => {
                self.plan.put_back(hydrator, claim, class);
                return Err(pause);
            }
        };
        let number = self.next;
        self.next += 1;
        self.last_request = now;
        let sending = Sending::new(&config.budget, &config.clock, host, sent);
        let mut claim = Some(claim);
        if let Some(writes) = &mut self.writes {
            claim.take().into_iter().for_each(|claim| writes.expect(claim));
        }
        self.requests.insert(number, Request { run, claim, uri: uri.to_owned(), sending, class, damage: None });
        let (sender, waker) = (self.sender.clone(), self.writes.as_ref().map(Writes::waker));
        let arrived = move |arrival| {
            drop(sender.send(Message::Arrived(number, arrival)));
            if let Some(waker) = &waker {
                waker.wake();
            }
        };
        source.read_any(range, ReadClass::Ahead, OnArrival::new(arrived));
        Ok(true)
    }

    /// Asks for room on the way to a host, under the cap that an operator set.
    fn begin_bulk(&mut self, now: Duration, host: &str, class: FetchClass, bytes: u64) -> Result<Sent, Duration> {
        let is_due = self.is_due(now);
        let config = &self.hydrator.config;
        let mut state = self.hydrator.state.lock();
        let cap = state.settings.rate_bytes_per_second;
        // What an earlier fork wanted about now is what readers will wait for next.
        let waited = state.demands > 0 || state.waits.more_to_come(now);
        if waited && !is_due && class == FetchClass::Backfill {
            let pace = config.budget.rate(host) * state.share.of_way();
            let interval = Duration::from_secs_f64(bytes as f64 / pace.max(1.0)).min(Waits::MEMORY);
            let since = now.saturating_sub(self.last_request);
            if since < interval {
                return Err(interval - since);
            }
        }
        state.pace.take(now, cap, bytes)?;
        config.budget.begin(now, config.layer.id, host, bytes, is_due).map_err(|wait| {
            state.pace.give_back(bytes);
            wait.pause
        })
    }

    /// Whether the deadline needs a faster pace than the one of the last seconds.
    fn is_due(&mut self, now: Duration) -> bool {
        let config = &self.hydrator.config;
        let deadline = self.hydrator.settings().deadline;
        if deadline == 0 {
            return false;
        }
        if now.saturating_sub(self.due.1) >= DEADLINE_INTERVAL || self.due.1 == Duration::ZERO {
            let left_bytes = config.block_size.offset_of(self.hydrator.missing().len());
            let left = Duration::from_secs(deadline).saturating_sub(config.clock.unix());
            self.due = (is_late(left_bytes, left, self.hydrator.progress().rate_bytes_per_second), now);
        }
        self.due.0
    }

    fn must_pause(&self, now: Duration) -> Option<Duration> {
        let is_full = {
            let state = self.hydrator.state.lock();
            if state.stopped || state.settings.paused {
                return Some(LONG);
            }
            let retry_at = state.peers.all_failing().unwrap_or_default().max(state.stalled_until);
            if now < retry_at {
                return Some((retry_at - now).min(LONG));
            }
            state.no_space.is_some()
        };
        (is_full && !self.hydrator.finds_space()).then_some(IDLE_INTERVAL)
    }

    /// Takes what has arrived, waiting for something to happen at most so long (`None`: until an arrival comes).
    fn take_arrival(&mut self, wait: Option<Duration>) {
        let first = match (&mut self.writes, wait) {
            (None, None) => self.receiver.recv().ok(),
            (None, Some(wait)) => self.receiver.recv_timeout(wait).ok(),
            (Some(_), _) => self.receiver.try_recv().ok(),
        };
        let took = first.is_some();
        let mut next = first;
        while let Some(message) = next {
            match message {
                Message::Arrived(number, arrival) => self.take(number, arrival),
                Message::Wake => self.is_woken.store(false, Ordering::Release),
            }
            next = self.receiver.try_recv().ok();
        }
        if let Some(writes) = &mut self.writes {
            // A sender of an arrival wakes the ring behind it. An error of the ring leaves its writes to the next round.
            let _ = writes.wait(if took { Duration::ZERO } else { wait.unwrap_or(Duration::from_millis(100)) });
        }
        if self.hydrator.config.layers.under_pressure() {
            self.record();
        } else if self.unrecorded_bytes >= RECORD_BYTES && self.recording.as_ref().is_none_or(JoinHandle::is_finished) {
            self.record_aside();
        }
    }

    fn take(&mut self, number: u64, arrival: Arrival) {
        let hydrator = self.hydrator;
        let Some(request) = self.requests.get_mut(&number) else { return };
        match arrival {
            Arrival::Part(part) => {
                if let Some(offset) = part.damage() {
                    request.damage = Some(damaged_error(&request.uri, offset));
                    return;
                }
                hydrator.note_bytes(&request.uri, request.class, part.bytes.len() as u64);
                let Some((blocks, bytes)) = hydrator.blocks_of(&part, &request.run) else { return };
                self.unrecorded_bytes += bytes.len() as u64;
                match &mut self.writes {
                    Some(writes) => writes.store(request.run.start, blocks, &bytes),
                    None => hydrator.fill(blocks, &bytes).unwrap_or_else(|error| hydrator.note_unstored(&error)),
                }
            }
            Arrival::End(result) => {
                let Some(request) = self.requests.remove(&number) else { return };
                let result = result.and_then(|()| request.damage.map_or(Ok(()), Err));
                match result {
                    Ok(()) => {
                        request.sending.succeed();
                        hydrator.note_read(&request.uri, &request.run, None);
                    }
                    Err(error) => {
                        drop(request.sending);
                        hydrator.note_failure(&request.uri, &error, Some(&request.run));
                        hydrator.note_failed(&request.run, matches!(error.kind, SourceErrorKind::Lost | SourceErrorKind::Closed));
                    }
                }
                drop(request.claim);
                if let Some(writes) = &mut self.writes {
                    writes.finish(request.run.start);
                }
            }
        }
    }

    /// Makes progress durable in a thread of its own: what arrives meanwhile is not kept waiting.
    fn record_aside(&mut self) {
        let Some(hydrator) = self.hydrator.this.upgrade() else { return };
        self.unrecorded_bytes = 0;
        let record = move || drop(hydrator.config.layers.barriers.sync([hydrator.config.layer.id]));
        self.recording = crate::sync::thread::Builder::new().name("hydrate-record".into()).spawn(record).ok();
        if self.recording.is_none() {
            self.record();
        }
    }

    /// Makes progress durable. An error shows at the next write, which the store then refuses.
    fn record(&mut self) {
        self.unrecorded_bytes = 0;
        let _ = self.hydrator.config.layers.barriers.sync([self.hydrator.config.layer.id]);
    }
}

impl Drop for Backfill<'_> {
    fn drop(&mut self) {
        if let Some(recording) = self.recording.take() {
            // A panic in the thread was printed there.
            let _ = recording.join();
        }
    }
}
