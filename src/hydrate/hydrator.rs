//! A root layer and where its bytes can be had.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use roaring::RoaringBitmap;

use super::ahead::Readers;
use super::budget::Budget;
use super::pace::{Pace, Rate, Share, Waits};
use super::peers::Peers;
use super::progress::{FetchClass, FetchedBytes, HydratorStatus, Progress, SourceInfo};
use super::wake::Waker;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind};
use crate::format::{HydrationSettings, SourceRecord, TRACE_RUNS_MAX};
use crate::ids::LeaseId;
use crate::layer::{Layer, Layers};
use crate::place::BlockSize;
use crate::place::end_of_run;
use crate::source::{Connector, Lease, LeaseRequest, LeasedSource, Since, Source, SourceError, SourceErrorKind, SourceExt, SourceOpener};
use crate::sync::{Condvar, Mutex};

/// Ranges of traces that are kept to be followed.
const FOLLOWED_MAX: usize = 4 * TRACE_RUNS_MAX;

/// How often it is looked at what stands above.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Shortest pause before it is looked again whether a connection is used.
const IDLE_LOOK_MIN: Duration = Duration::from_millis(100);

/// Called when hydration fails at every address, and when it goes on again.
pub type OnChange = Box<dyn Fn(HydratorStatus, Option<String>) + Send + Sync>;

/// The lease to hold at an address; `None`: none.
pub type Hold = Box<dyn Fn(&str) -> Option<LeaseRequest> + Send + Sync>;

/// Called with an address, the lease that it has given, and the time after which that lapses.
pub type OnLease = Arc<dyn Fn(&str, LeaseId, Duration) + Send + Sync>;

/// What a hydrator works with.
pub struct HydratorConfig {
    /// The layers of the store.
    pub layers: Arc<Layers>,
    /// The root layer.
    pub layer: Arc<Layer>,
    /// What is known of the source.
    pub record: SourceRecord,
    /// Identity of the bytes, or empty.
    pub origin: String,
    /// How to connect.
    pub opener: Arc<dyn SourceOpener>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Block size of the store.
    pub block_size: BlockSize,
    /// What the hydrations of the store share.
    pub budget: Arc<Budget>,
    /// Told of degradation and recovery.
    pub on_change: OnChange,
    /// Looks at what stands on the layer, and calls [`Hydrator::set_covered`] and [`Hydrator::set_hidden`].
    pub look_above: Box<dyn Fn(&Hydrator) + Send + Sync>,
    /// The lease to hold at an address that is opened.
    pub hold: Hold,
    /// Told of a lease that an address has given, and of the time after which it lapses.
    pub on_lease: OnLease,
}

/// One root layer and where its bytes can be had.
pub struct Hydrator {
    pub(super) config: HydratorConfig,
    pub(super) connector: Connector,
    pub(super) state: Mutex<State>,
    /// Notified when bytes arrive, requests fail, or settings change.
    pub(super) changed: Condvar,
    pub(super) this: Weak<Self>,
}

/// A request that brought nothing.
pub(super) struct Failure {
    pub run: Range<u64>,
    pub at: Duration,
    /// An address was away, and may give the range later.
    pub may_return: bool,
}

#[derive(Default)]
pub(super) struct State {
    pub peers: Peers,
    /// Blocks under way: first block -> block after the last.
    pub under_way: BTreeMap<u64, u64>,
    /// Blocks that nobody above needs.
    pub hidden: RoaringBitmap,
    /// These, and those that nobody above will need once what was written there is durable: not asked for.
    pub covered: RoaringBitmap,
    /// When it was last looked at what stands above.
    pub looked_at: Option<Duration>,
    pub settings: HydrationSettings,
    pub pace: Pace,
    pub rate: Rate,
    pub share: Share,
    pub fetched: FetchedBytes,
    pub last_error: Option<String>,
    /// Requests that failed: for those who waited for them.
    pub failures: VecDeque<Failure>,
    /// How often it was said that nobody who waits now is to wait any longer.
    pub given_up: u64,
    /// How often an address that had failed gave something again.
    pub returns: u64,
    /// When a reader was told the latest time that an address stayed away for as long as readers wait: those that come soon do not
    /// wait for it again.
    pub lost_at: Option<Duration>,
    /// When the next of those who wait for an address to come back may ask.
    pub next_try: Duration,
    /// Fetched blocks could not be stored: not tried again before.
    pub stalled_until: Duration,
    /// The latest pause for that.
    pub stall: Duration,
    /// Running, degraded, or without space.
    pub health: HydratorStatus,
    /// What is left could not be had from any address.
    pub stuck: bool,
    /// Fetched blocks could not be stored for lack of space: what was said then.
    pub no_space: Option<String>,
    /// Readers that wait, and when others did.
    pub demands: u32,
    pub waits: Waits,
    pub readers: Readers,
    /// To be fetched before the rest, in this order.
    pub ahead: VecDeque<Range<u64>>,
    pub trace: VecDeque<Range<u64>>,
    /// The source was asked for its trace.
    pub followed: bool,
    /// Addresses that a thread connects to.
    pub connecting: Vec<String>,
    pub stopped: bool,
    pub complete: bool,
    pub backfill_running: bool,
    /// Ends a wait of backfill.
    pub waker: Option<Waker>,
}

impl Hydrator {
    /// A hydrator that uses `source`, or connects when it first needs to.
    pub fn new(config: HydratorConfig, source: Option<Arc<dyn Source>>) -> Arc<Self> {
        let mut state = State { settings: config.record.settings, ..State::default() };
        state.peers.set(&config.record.uris);
        if let Some(first) = state.peers.list.first_mut() {
            (first.source, first.used_at) = (source, config.clock.monotonic());
        }
        let connector = Connector::new(Arc::clone(&config.opener));
        Arc::new_cyclic(|this| Self { config, connector, state: Mutex::new(state), changed: Condvar::new(), this: this.clone() })
    }

    /// The root layer.
    pub fn layer(&self) -> &Arc<Layer> {
        &self.config.layer
    }

    /// Lets everybody look again.
    pub(super) fn notify(&self, state: &State) {
        if let Some(waker) = &state.waker {
            waker.wake();
        }
        self.changed.notify_all();
    }

    /// The source at an address, connected.
    pub(super) fn source(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        self.source_since(uri, None)
    }

    /// As [`Hydrator::source`], unless waiting was given up since `given_up` was counted.
    pub(super) fn source_since(&self, uri: &str, given_up: Option<u64>) -> Result<Arc<dyn Source>, SourceError> {
        let closed = || SourceError { kind: SourceErrorKind::Closed, message: format!("{uri} is not used any more") };
        let since = {
            let mut state = self.state.lock();
            state.peers.note_use(uri, self.config.clock.monotonic());
            let peer = state.peers.list.iter().find(|peer| peer.uri == uri).filter(|_| !state.stopped).ok_or_else(closed)?;
            if let Some(source) = &peer.source {
                return Ok(Arc::clone(source));
            }
            if given_up.is_some_and(|given_up| given_up != state.given_up) {
                return Err(closed());
            }
            // Under the lock: both counts are of the same moment, so whoever gives up later ends this wait.
            self.connector.now()
        };
        // One that is not used after all is closed as it is dropped, behind the lock.
        let source = self.open_held(uri, since)?;
        self.check_source(uri, &*source)?;
        let mut state = self.state.lock();
        state.peers.note_use(uri, self.config.clock.monotonic());
        // Others that lost the host need not wait until this one has read something.
        state.peers.host(uri).into_iter().for_each(|host| self.config.budget.note_answered(host));
        let stopped = state.stopped;
        match state.peers.list.iter_mut().find(|peer| peer.uri == uri).filter(|_| !stopped) {
            Some(peer) => Ok(Arc::clone(peer.source.get_or_insert_with(|| Arc::clone(&source)))),
            None => Err(closed()),
        }
    }

    /// Opens an address, with a lease if its server knows leases.
    fn open_held(&self, uri: &str, since: Since) -> Result<Arc<dyn Source>, SourceError> {
        let Some(request) = (self.config.hold)(uri) else { return self.connector.open(uri, since) };
        let id = request.id;
        // It is known also when it comes too late, so that it is given back.
        let on_lease = Arc::clone(&self.config.on_lease);
        let late = move |_: &dyn SourceOpener, uri: &str, lease: &Lease| on_lease(uri, id, lease.lapse);
        let LeasedSource { source, lease } = self.connector.open_leased(uri, since, request, late)?;
        lease.into_iter().for_each(|lease| (self.config.on_lease)(uri, id, lease.lapse));
        Ok(source)
    }

    /// Refuses a source that has other bytes than those that were forked, as far as it tells.
    ///
    /// # Errors
    /// [`SourceErrorKind::Changed`].
    pub fn check_source(&self, uri: &str, source: &dyn Source) -> Result<(), SourceError> {
        let changed = |message| Err(SourceError { kind: SourceErrorKind::Changed, message });
        let expected = self.config.record.size_bytes;
        if source.size_bytes() != expected {
            return changed(format!("{uri} has {} bytes now, it had {expected} when it was forked", source.size_bytes()));
        }
        let origin = &self.config.origin;
        match source.identity() {
            Some(identity) if !origin.is_empty() && identity != *origin => {
                changed(format!("{uri} serves the bytes of {identity}, but {origin} was forked: remove the address"))
            }
            None if !origin.is_empty() => {
                changed(format!("{uri} does not tell whose bytes it serves, and those of {origin} were forked: use a volfork snapshot"))
            }
            _ => Ok(()),
        }
    }

    /// Notes how an address failed.
    pub(super) fn note_error(&self, uri: &str, error: &SourceError) {
        self.note_failure(uri, error, None);
    }

    /// Notes how an address failed when it was asked for blocks: it may be able to give others.
    pub(super) fn note_failure(&self, uri: &str, error: &SourceError, run: Option<&Range<u64>>) {
        if error.kind == SourceErrorKind::Closed {
            return;
        }
        let now = self.config.clock.monotonic();
        let mut state = self.state.lock();
        let useless = state.peers.note_error(uri, now, error, run);
        match (error.kind, state.peers.host(uri)) {
            (_, None) => {}
            (SourceErrorKind::Lost, Some(host)) => self.config.budget.note_lost(now, host),
            (_, Some(host)) => self.config.budget.note_answered(host),
        }
        state.last_error = Some(error.message.clone());
        self.look_at_health(state);
        if let Some(source) = useless {
            source.close();
        }
    }

    /// Notes that a read of these blocks ended well, and how long somebody waited for it.
    pub(super) fn note_read(&self, uri: &str, run: &Range<u64>, waited: Option<Duration>) {
        let now = self.config.clock.monotonic();
        let mut state = self.state.lock();
        if state.peers.note_read(uri, now, run, waited) {
            state.returns += 1;
            state.lost_at = None;
        }
        state.stuck = false;
        if let Some(waited) = waited {
            let shortest = state.peers.shortest_wait(uri);
            state.share.note(waited, shortest);
        }
        self.look_at_health(state);
    }

    /// Notes bytes that came.
    pub(super) fn note_bytes(&self, uri: &str, class: FetchClass, bytes: u64) {
        let now = self.config.clock.monotonic();
        let mut state = self.state.lock();
        state.peers.note_bytes(uri, bytes);
        state.fetched.add(class, bytes);
        let total = state.fetched.total();
        state.rate.note(now, total);
    }

    /// Tells of degradation and recovery, and of a lack of space.
    pub(super) fn look_at_health(&self, mut state: crate::sync::MutexGuard<'_, State>) {
        let (health, error) = match (state.peers.all_failing().is_some() || state.stuck, &state.no_space) {
            (true, _) => (HydratorStatus::Degraded, state.last_error.clone()),
            (false, Some(error)) => (HydratorStatus::NoSpace, Some(error.clone())),
            (false, None) => (HydratorStatus::Running, None),
        };
        if health != state.health {
            state.health = health;
            drop(state);
            (self.config.on_change)(health, error);
        }
    }

    /// Nothing is under way, and of what is missing nothing may be asked for: each address fails, or could not give it.
    pub(super) fn note_stuck(&self) {
        let mut state = self.state.lock();
        if state.peers.all_bad() {
            state.stuck = true;
            self.look_at_health(state);
        }
    }

    /// Gives up connections of which nobody has made use for long, if nothing is to be fetched. Answers how long others may stay.
    pub(super) fn close_idle(&self) -> Option<Duration> {
        let now = self.config.clock.monotonic();
        let (idle, next) = {
            let mut state = self.state.lock();
            // A reader that ends wakes backfill.
            if state.demands > 0 || !(state.settings.paused || now < state.stalled_until) {
                return None;
            }
            state.peers.take_idle(now)
        };
        for source in idle {
            let round_trip = source.stats().round_trip;
            let uri = source.describe();
            if let Some(peer) = self.state.lock().peers.list.iter_mut().find(|peer| peer.uri == uri) {
                peer.round_trip = round_trip.or(peer.round_trip);
            }
            source.close();
        }
        next.map(|next| next.saturating_sub(now).max(IDLE_LOOK_MIN))
    }

    /// The engine's error for one of a source.
    pub(super) fn lost(&self, error: &SourceError) -> Error {
        Error::new(
            ErrorKind::SourceLost,
            format!("a block is still only at the source, which failed: {}; the rest of the volume works", error.message),
        )
    }

    /// Tells which blocks nobody needs.
    pub fn set_hidden(&self, hidden: RoaringBitmap) {
        let mut state = self.state.lock();
        state.covered |= &hidden;
        state.hidden = hidden;
        self.notify(&state);
    }

    /// Tells which blocks nobody will need once everything above is durable. Answers whether others are missing.
    pub fn set_covered(&self, covered: RoaringBitmap) -> bool {
        self.state.lock().covered = covered;
        self.next_needed(0).is_some()
    }

    /// Looks at what stands above, unless that was done a moment ago.
    pub(super) fn look_above(&self) {
        let now = self.config.clock.monotonic();
        {
            let mut state = self.state.lock();
            if state.settings.paused || state.looked_at.is_some_and(|at| now.saturating_sub(at) < LOOK_INTERVAL) {
                return;
            }
            state.looked_at = Some(now);
        }
        (self.config.look_above)(self);
    }

    /// One more fork stands on the layer, and shows all of it. These are the addresses from now on; all are tried at once.
    pub fn add_fork(&self, uris: &[String]) {
        {
            let mut state = self.state.lock();
            (state.hidden, state.covered, state.looked_at) = (RoaringBitmap::new(), RoaringBitmap::new(), None);
        }
        self.set_uris(uris);
        self.retry_now();
    }

    /// Changes pause and pace.
    pub fn set_settings(&self, settings: HydrationSettings) {
        let mut state = self.state.lock();
        state.settings = settings;
        state.looked_at = None;
        self.config.budget.set_priority(self.config.layer.id, settings.priority);
        self.notify(&state);
    }

    /// Pause and pace.
    pub fn settings(&self) -> HydrationSettings {
        self.state.lock().settings
    }

    /// The addresses.
    pub fn uris(&self) -> Vec<String> {
        self.state.lock().peers.list.iter().map(|peer| peer.uri.clone()).collect()
    }

    /// Changes the addresses.
    pub fn set_uris(&self, uris: &[String]) {
        let unused = {
            let mut state = self.state.lock();
            let unused = state.peers.set(uris);
            self.notify(&state);
            unused
        };
        unused.iter().for_each(|source| source.close());
    }

    /// Fetches these blocks before the rest, in this order.
    pub fn follow(&self, runs: impl IntoIterator<Item = Range<u64>>) {
        let mut state = self.state.lock();
        // Nobody else has to be asked for an order.
        state.followed = true;
        // Advice: each fork may add some, but not without end.
        let room = FOLLOWED_MAX.saturating_sub(state.trace.len());
        state.trace.extend(runs.into_iter().take(room));
        self.notify(&state);
    }

    /// Forgets failures, so that every address is tried at once.
    pub fn retry_now(&self) {
        let mut state = self.state.lock();
        state.peers.retry_now();
        state.stalled_until = Duration::ZERO;
        self.notify(&state);
    }

    /// The first block at or behind `from` that is missing and that somebody above needs.
    pub(super) fn next_needed(&self, from: u64) -> Option<u64> {
        self.next_missing(from, |state| &state.covered)
    }

    /// The first block at or behind `from` that is missing, and not in a set.
    fn next_missing(&self, from: u64, hidden: impl Fn(&State) -> &RoaringBitmap) -> Option<u64> {
        let mut at = from;
        loop {
            at = self.config.layer.next_missing(at)?;
            match end_of_run(hidden(&self.state.lock()), at) {
                Some(end) => at = end,
                None => return Some(at),
            }
        }
    }

    /// Blocks that are missing and needed.
    pub(super) fn missing(&self) -> RoaringBitmap {
        let blocks = self.config.layer.source_blocks().unwrap_or(0);
        let mut missing = RoaringBitmap::new();
        if blocks > 0 {
            missing.insert_range(0..=(blocks - 1) as u32);
            missing -= &self.state.lock().hidden;
            self.config.layer.with_presence(|presence| missing -= presence.covered());
        }
        missing
    }

    /// Whether every block that anybody needs is here.
    pub fn is_complete(&self) -> bool {
        self.state.lock().under_way.is_empty() && self.next_missing(0, |state| &state.hidden).is_none()
    }

    /// Counts so far.
    pub fn progress(&self) -> Progress {
        let now = self.config.clock.monotonic();
        let state = self.state.lock();
        let status = match &*state {
            State { complete: true, .. } => HydratorStatus::Complete,
            State { health: HydratorStatus::Degraded, .. } => HydratorStatus::Degraded,
            State { settings: HydrationSettings { paused: true, .. }, .. } => HydratorStatus::Paused,
            State { health, .. } => *health,
        };
        let sources = state.peers.list.iter().map(|peer| SourceInfo {
            uri: peer.uri.clone(),
            failing: peer.failures > 0,
            bytes_fetched: peer.bytes,
            errors: peer.errors,
            round_trip_micros: peer.round_trip.map(|time| time.as_micros() as u64),
            last_error: peer.last_error.clone(),
            refused: peer.refused,
        });
        let mut progress = Progress {
            status,
            fetched: state.fetched,
            rate_bytes_per_second: state.rate.bytes_per_second(now, state.fetched.total()),
            settings: state.settings,
            readers_waiting: u64::from(state.demands),
            sources: sources.collect(),
            last_error: state.last_error.clone(),
        };
        let connected: Vec<_> = state.peers.list.iter().map(|peer| peer.source.clone()).collect();
        // A source is not called under the lock.
        drop(state);
        for (told, source) in progress.sources.iter_mut().zip(connected) {
            let round_trip = source.and_then(|source| source.stats().round_trip).map(|time| time.as_micros() as u64);
            told.round_trip_micros = round_trip.or(told.round_trip_micros);
        }
        progress
    }

    /// Fills `buffer` with blocks of the source from `first` on, whatever the layer has, and stores nothing.
    ///
    /// # Errors
    /// [`ErrorKind::SourceLost`].
    pub fn read_through(&self, first: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let blocks = self.config.block_size.blocks_for(buffer.len() as u64);
        let range = self.byte_range(&(first..first + blocks));
        let mut tried = Vec::new();
        let given_up = self.state.lock().given_up;
        let mut failure = SourceError { kind: SourceErrorKind::Closed, message: "there is no address to ask".into() };
        while let Some(uri) = self.next_waited(&tried) {
            match self.source_since(&uri, Some(given_up)).and_then(|source| source.read_blocking(range.clone())) {
                Ok(bytes) => {
                    buffer[..bytes.len()].copy_from_slice(&bytes);
                    buffer[bytes.len()..].fill(0);
                    return Ok(());
                }
                Err(error) => failure = error,
            }
            tried.push(uri);
        }
        Err(self.lost(&failure))
    }

    /// The next address to ask for what somebody waits for.
    pub(super) fn next_waited(&self, tried: &[String]) -> Option<String> {
        let now = self.config.clock.monotonic();
        let state = self.state.lock();
        state.peers.for_waited(now, tried).filter(|_| !state.stopped).map(|number| state.peers.list[number].uri.clone())
    }

    /// Nothing is missing any more: closes the sources.
    pub fn finish(&self) {
        self.state.lock().complete = true;
        self.stop();
    }

    /// Ends backfill and closes the sources; readers of missing blocks fail from now on.
    pub fn stop(&self) {
        let sources = {
            let mut state = self.state.lock();
            state.stopped = true;
            self.connector.close();
            let sources = state.peers.take_sources();
            self.notify(&state);
            sources
        };
        self.config.budget.leave(self.config.layer.id);
        sources.iter().for_each(|source| source.close());
    }

    /// Waits until nothing is missing any more; `false` at the timeout, or when it was stopped before.
    pub fn wait_finished(&self, timeout: Duration) -> bool {
        let until = crate::sync::time::Instant::now().checked_add(timeout);
        let mut state = self.state.lock();
        while !state.complete && !state.stopped {
            match until {
                Some(until) if self.changed.wait_until(&mut state, until).timed_out() => break,
                Some(_) => {}
                None => self.changed.wait(&mut state),
            }
        }
        state.complete
    }

    /// Whether backfill is to run and does not.
    pub fn is_asleep(&self) -> bool {
        let state = self.state.lock();
        !(state.backfill_running || state.stopped || state.complete)
    }

    /// Whether backfill has not ended.
    pub fn is_running(&self) -> bool {
        self.state.lock().backfill_running
    }

    /// Waits until backfill has ended.
    pub fn join(&self) {
        let mut state = self.state.lock();
        while state.backfill_running {
            self.changed.wait(&mut state);
        }
    }
}
