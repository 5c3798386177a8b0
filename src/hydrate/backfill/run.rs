//! One run of backfill over a root layer.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::due::Due;
use super::plan::{Field, Plan};
use super::questions::{Asked, Questions, follow};
use super::writes::Writes;
use crate::hydrate::addresses::{Connected, Connecting};
use crate::hydrate::claims::Claim;
use crate::hydrate::connect::connect_aside;
use crate::hydrate::pace::{Asks, Sending, Sent, Wake, start_pause};
use crate::hydrate::parts::Parts;
use crate::hydrate::progress::FetchClass;
use crate::ids::random_bytes;
use crate::io::{Ring, give_way};
use crate::source::{Arrival, OnArrival, ReadClass, Source, SourceError, SourceErrorKind, SourceExt, damaged_error};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::mpsc::{Receiver, Sender, channel};
use crate::sync::thread::JoinHandle;

/// Without anything to do, it is looked again after so long; wakes come before.
const IDLE_INTERVAL: Duration = Duration::from_millis(20);
/// Without hope of anything to do before a wake.
const LONG: Duration = Duration::from_secs(60);
/// Fetched bytes after which progress is made durable: a crash costs at most so much twice, beside what is under way.
const RECORD_BYTES: u64 = 16 << 20;

fn random() -> Option<u64> {
    random_bytes().ok().map(u64::from_le_bytes)
}

/// What backfill waits for.
enum Message {
    /// Something arrived for the request of this number.
    Arrived(u64, Arrival),
    /// There may be something else to do.
    Wake,
}

/// One request under way.
struct Request {
    run: Range<u64>,
    /// `None`: the writes have it.
    claim: Option<Claim>,
    uri: String,
    sending: Sending,
    class: FetchClass,
    damage: Option<SourceError>,
}

/// The state of one run of backfill over a root layer.
struct Backfill {
    parts: Arc<Parts>,
    plan: Plan,
    questions: Questions,
    requests: HashMap<u64, Request>,
    next: u64,
    last_request: Duration,
    unrecorded_bytes: u64,
    /// Makes progress durable meanwhile.
    recording: Option<JoinHandle<()>>,
    due: Due,
    sender: Sender<Message>,
    receiver: Receiver<Message>,
    /// A [`Message::Wake`] is on its way.
    is_woken: Arc<AtomicBool>,
    /// `None`: fetched bytes are stored on this thread, one after the other.
    writes: Option<Writes>,
    /// Takes addresses that are to be connected to meanwhile. `None`: everything is done on this thread.
    connect: Option<Sender<Connecting>>,
}

/// The root layer, as one address can give its blocks.
struct FarBlocks<'a> {
    parts: &'a Parts,
    questions: &'a mut Questions,
    asked: Asked<'a>,
    bytes_max: u64,
}

impl Field for FarBlocks<'_> {
    fn begin_pass(&self) {
        self.parts.look_above();
    }

    fn next_needed(&self, from: u64) -> Option<u64> {
        self.parts.next_needed(from)
    }

    fn is_mapped(&mut self, block: u64) -> bool {
        self.questions.map_zeros(self.parts, self.asked, block);
        true
    }

    fn allowed(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let now = self.parts.now();
        self.parts.addresses.look(|peers| {
            let known = peers.list.iter().find(|known| known.uri == self.asked.uri);
            known.map_or_else(|| Some(range.clone()), |known| known.allowed(range, now))
        })
    }

    fn claim(&self, range: &Range<u64>) -> Option<Claim> {
        let mut claim_of = |run: &Range<u64>| {
            let needed = self.parts.cover.first_needed(run)?;
            self.parts.claim(&needed, self.bytes_max, 1).pop()
        };
        self.parts.root.missing_runs(range).iter().find_map(&mut claim_of)
    }
}

/// Backfill until nothing is missing or it is stopped, in a thread that gives way to whoever else wants the processor. The caller's
/// thread does not: it connects to addresses, and the threads that take what they send, for which readers wait as well, inherit its
/// priority.
pub fn in_background(parts: &Arc<Parts>) {
    let backfill = |connect| {
        // Without a ring it goes on, only slower.
        let mut backfill = Backfill::new(parts, Writes::ring().ok(), connect);
        backfill.begin();
        while backfill.round(true) {}
    };
    crate::sync::thread::scope(|scope| {
        let (connect, to_connect) = channel();
        let in_background = move || {
            give_way();
            backfill(Some(connect));
        };
        match crate::sync::thread::Builder::new().name(format!("backfill-{}", parts.root.layer.id)).spawn_scoped(scope, in_background) {
            Ok(_) => to_connect.into_iter().for_each(|connecting| connect_aside(parts, connecting)),
            Err(_) => backfill(None),
        }
    });
}

/// One bounded round of backfill on the caller's thread, without waiting for time to pass. Answers whether it did anything: otherwise
/// what is missing waits for time, for a source or for what readers fetch.
pub fn step(parts: &Arc<Parts>) -> bool {
    let missing = parts.missing().len();
    let mut backfill = Backfill::new(parts, None, None);
    backfill.follow_first();
    backfill.round(false);
    while !backfill.requests.is_empty() {
        backfill.take_arrival(None);
    }
    backfill.next > 0 || parts.missing().len() < missing
}

impl Backfill {
    fn new(parts: &Arc<Parts>, ring: Option<Ring>, connect: Option<Sender<Connecting>>) -> Self {
        let (sender, receiver) = channel();
        let writes = ring.map(|ring| Writes::new(parts, ring));
        Self {
            parts: Arc::clone(parts),
            plan: Plan::default(),
            questions: Questions::default(),
            requests: HashMap::new(),
            next: 0,
            last_request: Duration::ZERO,
            unrecorded_bytes: 0,
            recording: None,
            due: Due::default(),
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
        let parts = Arc::clone(&self.parts);
        let wake = self.wake();
        let (layer, budget) = (parts.root.layer.id, &parts.budget);
        // Counted from now on, so that of many that begin at once each sees the others.
        budget.join(layer, parts.throttle.settings().priority, None);
        // Without randomness those of one store still begin apart.
        let random = random().unwrap_or(u64::from(layer.0).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        *parts.wake.lock() = Some(Arc::clone(&wake));
        let until = crate::sync::time::Instant::now() + start_pause(budget.hydrations(), random);
        loop {
            let seen = parts.news.seen();
            let left = until.saturating_duration_since(crate::sync::time::Instant::now());
            if left.is_zero() || parts.life.is_stopped() || parts.waiters.any() {
                break;
            }
            parts.news.wait(seen, Some(left));
        }
        budget.join(layer, parts.throttle.settings().priority, Some(wake));
        self.follow_first();
    }

    fn wake(&self) -> Wake {
        if let Some(writes) = &self.writes {
            return writes.wake();
        }
        let (sender, is_woken) = (Mutex::new(self.sender.clone()), Arc::clone(&self.is_woken));
        Arc::new(move || {
            if !is_woken.swap(true, Ordering::AcqRel) {
                drop(sender.lock().send(Message::Wake));
            }
        })
    }

    fn follow_first(&mut self) {
        let (uri, source) = self.parts.addresses.first().unwrap_or_default();
        self.follow_source(&uri, source.as_ref());
    }

    /// The order in which an earlier fork touched its blocks: as it is known here, or as the source has recorded it. Until one is
    /// connected it stays open.
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
                self.questions.ask_trace(parts, Asked { uri, source, aside: self.connect.is_some() });
            }
            (Some(known), _) => follow(parts, known),
        }
    }

    fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.writes.as_ref().is_none_or(Writes::is_empty)
    }

    /// Makes requests, takes what has arrived, waits a little if there is nothing else to do. `false` at the end.
    fn round(&mut self, may_wait: bool) -> bool {
        let parts = Arc::clone(&self.parts);
        if parts.life.is_stopped() {
            while !self.requests.is_empty() {
                self.take_arrival(None);
            }
            return false;
        }
        self.questions.take_answers(&parts);
        let is_whole_pass = self.plan.is_at_start();
        let mut pause = self.request_more();
        if self.is_idle() {
            if !parts.is_complete() {
                // Perhaps nothing is missing but that what was written above becomes durable.
                parts.look_above();
            }
            if parts.is_complete() {
                self.record();
                return false;
            }
            self.plan.start_again();
            if pause.is_none() && is_whole_pass {
                parts.note_stuck();
            }
            let retry = parts.addresses.look(|peers| peers.next_bad_retry());
            let until_retry = retry.map_or(IDLE_INTERVAL, |at| at.saturating_sub(parts.now()).clamp(IDLE_INTERVAL, LONG));
            let soon = pause.unwrap_or(until_retry);
            pause = Some(self.close_idle().map_or(soon, |idle| idle.min(soon)));
        }
        if may_wait || !self.is_idle() {
            self.take_arrival(Some(if may_wait { pause.unwrap_or(LONG) } else { Duration::ZERO }));
        }
        true
    }

    /// Gives up connections that were not used for long, if nothing is to be fetched. Answers how long others may stay.
    fn close_idle(&self) -> Option<Duration> {
        let parts = &self.parts;
        let rests = parts.throttle.settings().paused || parts.now() < parts.health.stall().0;
        // A reader that ends wakes backfill.
        if rests && parts.waiters.count() == 0 { parts.addresses.close_idle() } else { None }
    }

    /// Fills the way to every host. If something keeps it from being full, says for how long.
    fn request_more(&mut self) -> Option<Duration> {
        let mut shortest: Option<Duration> = None;
        loop {
            if self.writes.as_ref().is_some_and(Writes::is_full) {
                return None;
            }
            let now = self.parts.now();
            if let Some(pause) = self.must_pause(now) {
                return Some(pause);
            }
            let mut began = false;
            for connected in self.sources() {
                self.follow_source(&connected.uri, Some(&connected.source));
                match self.request(now, &connected) {
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
    fn sources(&self) -> Vec<Connected> {
        let parts = &self.parts;
        let mut ready = parts.addresses.ready();
        for (uri, host) in ready.unconnected {
            let Some(connecting) = parts.addresses.begin_connecting(&uri) else { continue };
            if let Some(connect) = &self.connect {
                // The other end waits for as long as this one is.
                let _ = connect.send(connecting);
                continue;
            }
            match parts.addresses.source(&uri) {
                Ok(source) => ready.connected.push(Connected { uri, host, source }),
                Err(error) => parts.note_failure(&uri, &error, None),
            }
        }
        ready.connected
    }

    /// Makes one request, if there is anything to ask for. An error says how long to wait.
    fn request(&mut self, now: Duration, connected: &Connected) -> Result<bool, Duration> {
        let parts = Arc::clone(&self.parts);
        let Connected { uri, host, source } = connected;
        let bytes_max = parts.budget.request_bytes(host);
        let asked = Asked { uri, source, aside: self.connect.is_some() };
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
        let mut claim = Some(claim);
        if let Some(writes) = &mut self.writes {
            claim.take().into_iter().for_each(|claim| writes.expect(claim));
        }
        self.requests.insert(number, Request { run, claim, uri: uri.clone(), sending, class, damage: None });
        let (sender, wake) = (self.sender.clone(), self.writes.as_ref().map(Writes::wake));
        let arrived = move |arrival| {
            drop(sender.send(Message::Arrived(number, arrival)));
            if let Some(wake) = &wake {
                wake();
            }
        };
        source.read_any(range, ReadClass::Ahead, OnArrival::new(arrived));
        Ok(true)
    }

    /// Asks for room on the way to a host, under the cap that an operator set.
    fn begin_bulk(&mut self, now: Duration, host: &str, class: FetchClass, bytes: u64) -> Result<Sent, Duration> {
        let is_due = self.is_due(now);
        let parts = &self.parts;
        // What an earlier fork wanted about now is what readers will wait for next.
        let gives_way = class == FetchClass::Backfill && !is_due && parts.waiters.expects_more(now);
        let beside_readers = gives_way.then(|| now.saturating_sub(self.last_request));
        parts.throttle.begin(now, &parts.budget, &Asks { layer: parts.root.layer.id, host, bytes, is_due, beside_readers })
    }

    /// Whether the deadline needs a faster pace than the one of the last seconds.
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
        let (stalled_until, is_full) = parts.health.stall();
        let retry_at = parts.addresses.look(|peers| peers.all_failing()).unwrap_or_default().max(stalled_until);
        if now < retry_at {
            return Some((retry_at - now).min(LONG));
        }
        (is_full && !parts.finds_space()).then_some(IDLE_INTERVAL)
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
        if self.parts.root.layers.under_pressure() {
            self.record();
        } else if self.unrecorded_bytes >= RECORD_BYTES && self.recording.as_ref().is_none_or(JoinHandle::is_finished) {
            self.record_aside();
        }
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
                parts.note_bytes(&request.uri, request.class, part.bytes.len() as u64);
                let Some((blocks, bytes)) = parts.root.blocks_of(&part, &request.run) else { return };
                self.unrecorded_bytes += bytes.len() as u64;
                match &mut self.writes {
                    Some(writes) => writes.store(request.run.start, &blocks, &bytes),
                    None => parts.root.fill(&blocks, &bytes).unwrap_or_else(|error| parts.note_unstored(&error)),
                }
            }
            Arrival::End(result) => {
                let Some(request) = self.requests.remove(&number) else { return };
                let result = result.and_then(|()| request.damage.map_or(Ok(()), Err));
                match result {
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
                drop(request.claim);
                if let Some(writes) = &mut self.writes {
                    writes.finish(request.run.start);
                }
            }
        }
    }

    /// Makes progress durable in a thread of its own: what arrives meanwhile is not kept waiting.
    fn record_aside(&mut self) {
        let parts = Arc::clone(&self.parts);
        self.unrecorded_bytes = 0;
        let record = move || drop(parts.root.layers.barriers.sync([parts.root.layer.id]));
        self.recording = crate::sync::thread::Builder::new().name("hydrate-record".into()).spawn(record).ok();
        if self.recording.is_none() {
            self.record();
        }
    }

    /// Makes progress durable. An error shows at the next write, which the store then refuses.
    fn record(&mut self) {
        self.unrecorded_bytes = 0;
        let _ = self.parts.root.layers.barriers.sync([self.parts.root.layer.id]);
    }
}

impl Drop for Backfill {
    fn drop(&mut self) {
        if let Some(recording) = self.recording.take() {
            // A panic in the thread was printed there.
            let _ = recording.join();
        }
    }
}
