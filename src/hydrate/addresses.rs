//! The addresses of a root layer: connecting to them, and what became of that.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::pace::Budget;
use super::peers::Peers;
use super::progress::SourceInfo;
use crate::clock::Clock;
use crate::ids::LeaseId;
use crate::source::{Connector, Lease, LeaseRequest, LeasedSource, Since, Source, SourceError, SourceErrorKind, SourceOpener};
use crate::sync::Mutex;
use crate::units::whole_micros;

/// Shortest pause before it is looked again whether a connection is used.
const IDLE_LOOK_MIN: Duration = Duration::from_millis(100);

/// The lease to hold at an address; `None`: none.
pub type Hold = Box<dyn Fn(&str) -> Option<LeaseRequest> + Send + Sync>;

/// Called with an address, the lease that it has given, and the time after which that lapses.
pub type OnLease = Arc<dyn Fn(&str, LeaseId, Duration) + Send + Sync>;

#[derive(Default)]
struct State {
    peers: Peers,
    /// Addresses that are being connected to for backfill.
    connecting: Vec<String>,
    stopped: bool,
}

/// What addresses are opened with, and what their bytes have to be.
pub struct Terms {
    /// Bytes of the source.
    pub size_bytes: u64,
    /// Identity of the bytes, or empty.
    pub origin: String,
    /// The lease to hold at an address that is opened.
    pub hold: Hold,
    /// Told of a lease that an address has given.
    pub on_lease: OnLease,
    pub clock: Arc<dyn Clock>,
    pub budget: Arc<Budget>,
}

/// The addresses of one root layer.
pub struct Addresses {
    state: Mutex<State>,
    connector: Connector,
    terms: Terms,
}

/// An address that is connected.
#[derive(Clone)]
pub struct Connected {
    pub uri: String,
    /// What shares a way with it.
    pub host: Arc<str>,
    pub source: Arc<dyn Source>,
}

/// Addresses that backfill may ask now.
#[derive(Default)]
pub struct Ready {
    pub connected: Vec<Connected>,
    /// Those that are to be connected to first, and their hosts.
    pub unconnected: Vec<(String, Arc<str>)>,
}

/// An address that is being connected to, until this is dropped.
pub struct Connecting {
    addresses: Arc<Addresses>,
    pub uri: String,
}

impl Drop for Connecting {
    fn drop(&mut self) {
        self.addresses.state.lock().connecting.retain(|other| *other != self.uri);
    }
}

impl Addresses {
    /// These addresses; the first one is connected to `source` if that is given.
    pub fn new(uris: &[String], source: Option<Arc<dyn Source>>, opener: Arc<dyn SourceOpener>, terms: Terms) -> Arc<Self> {
        let mut state = State::default();
        state.peers.set(uris);
        if let Some(first) = state.peers.list.first_mut() {
            (first.source, first.used_at) = (source, terms.clock.monotonic());
        }
        Arc::new(Self { state: Mutex::new(state), connector: Connector::new(opener), terms })
    }

    fn now(&self) -> Duration {
        self.terms.clock.monotonic()
    }

    /// The source at an address, connected.
    ///
    /// # Errors
    /// It cannot be connected to, has other bytes, or is not used any more.
    pub fn source(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        self.source_while(uri, || true)
    }

    /// As [`Addresses::source`], unless it is not wanted any more. Whoever gives up waiting first lets `is_wanted` say so, and then calls
    /// [`Addresses::give_up`].
    ///
    /// # Errors
    /// As there.
    pub fn source_while(&self, uri: &str, is_wanted: impl Fn() -> bool) -> Result<Arc<dyn Source>, SourceError> {
        // Before the look at what is wanted: a wait that is given up after that look is ended by the connector.
        let since = self.connector.now();
        self.connect(uri, || if is_wanted() { self.open_held(uri, since) } else { Err(unused(uri)) })
    }

    /// The source at an address; `open` connects to it if it is not connected.
    fn connect(&self, uri: &str, open: impl FnOnce() -> Result<Arc<dyn Source>, SourceError>) -> Result<Arc<dyn Source>, SourceError> {
        {
            let mut state = self.state.lock();
            state.peers.note_use(uri, self.now());
            let peer = state.peers.list.iter().find(|peer| peer.uri == uri).filter(|_| !state.stopped);
            if let Some(source) = &peer.ok_or_else(|| unused(uri))?.source {
                return Ok(Arc::clone(source));
            }
        }
        // One that is not used after all is closed as it is dropped, behind the lock.
        let source = open()?;
        self.check_source(uri, &*source)?;
        let mut state = self.state.lock();
        state.peers.note_use(uri, self.now());
        // Others that lost the host need not wait until this one has read something.
        state.peers.host(uri).into_iter().for_each(|host| self.terms.budget.note_answered(host));
        let stopped = state.stopped;
        match state.peers.list.iter_mut().find(|peer| peer.uri == uri).filter(|_| !stopped) {
            Some(peer) => Ok(Arc::clone(peer.source.get_or_insert_with(|| Arc::clone(&source)))),
            None => Err(unused(uri)),
        }
    }

    /// As [`Addresses::source`], for a thread of the sources: opens the address on it.
    ///
    /// # Errors
    /// As there.
    pub fn source_here(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        self.connect(uri, || {
            let Some(request) = (self.terms.hold)(uri) else { return self.connector.open_here(uri) };
            let LeasedSource { source, lease } = self.connector.open_leased_here(uri, &request)?;
            // It is known also when it comes too late, so that it is given back.
            lease.into_iter().for_each(|lease| (self.terms.on_lease)(uri, request.id, lease.lapse));
            Ok(source)
        })
    }

    /// Runs something that a source may keep waiting on a thread of the sources, in its turn among the calls of its host. Without a
    /// thread it is dropped.
    pub fn aside(&self, uri: &str, job: impl FnOnce() + Send + 'static) {
        self.connector.aside(uri, Box::new(job));
    }

    /// Opens an address, with a lease if its server knows leases.
    fn open_held(&self, uri: &str, since: Since) -> Result<Arc<dyn Source>, SourceError> {
        let Some(request) = (self.terms.hold)(uri) else { return self.connector.open(uri, since) };
        let id = request.id;
        // It is known also when it comes too late, so that it is given back.
        let on_lease = Arc::clone(&self.terms.on_lease);
        let late = move |_: &dyn SourceOpener, uri: &str, lease: &Lease| on_lease(uri, id, lease.lapse);
        let LeasedSource { source, lease } = self.connector.open_leased(uri, since, request, late)?;
        lease.into_iter().for_each(|lease| (self.terms.on_lease)(uri, id, lease.lapse));
        Ok(source)
    }

    /// Refuses a source that has other bytes than those that were forked, as far as it tells.
    ///
    /// # Errors
    /// [`SourceErrorKind::Changed`].
    pub fn check_source(&self, uri: &str, source: &dyn Source) -> Result<(), SourceError> {
        let changed = |message| Err(SourceError { kind: SourceErrorKind::Changed, message });
        let expected = self.terms.size_bytes;
        if source.size_bytes() != expected {
            return changed(format!("{uri} has {} bytes now, it had {expected} when it was forked", source.size_bytes()));
        }
        let origin = &self.terms.origin;
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

    /// Notes how an address failed; `run`: it was asked for these blocks, and may be able to give others.
    pub fn note_error(&self, uri: &str, error: &SourceError, run: Option<&Range<u64>>) {
        let now = self.now();
        let useless = {
            let mut state = self.state.lock();
            let useless = state.peers.note_error(uri, now, error, run);
            match (error.kind, state.peers.host(uri)) {
                (_, None) => {}
                (SourceErrorKind::Lost, Some(host)) => self.terms.budget.note_lost(now, host),
                (_, Some(host)) => self.terms.budget.note_answered(host),
            }
            useless
        };
        if let Some(source) = useless {
            source.close();
        }
    }

    /// Notes that a read of these blocks ended well, and how long somebody waited for it. Answers whether the address had failed before,
    /// and the shortest time that somebody waited for it lately.
    pub fn note_read(&self, uri: &str, run: &Range<u64>, waited: Option<Duration>) -> (bool, Duration) {
        let now = self.now();
        let mut state = self.state.lock();
        let returned = state.peers.note_read(uri, now, run, waited);
        (returned, state.peers.shortest_wait(uri))
    }

    /// Counts bytes that came from an address.
    pub fn note_bytes(&self, uri: &str, bytes: u64) {
        self.state.lock().peers.note_bytes(uri, bytes);
    }

    /// A look at what is known of the addresses.
    pub fn look<T>(&self, look: impl FnOnce(&Peers) -> T) -> T {
        look(&self.state.lock().peers)
    }

    /// The first address, and its source if that is connected.
    pub fn first(&self) -> Option<(String, Option<Arc<dyn Source>>)> {
        self.look(|peers| peers.list.first().map(|peer| (peer.uri.clone(), peer.source.clone())))
    }

    /// The next address to ask for what somebody waits for.
    pub fn next_waited(&self, tried: &[String]) -> Option<String> {
        let now = self.now();
        let state = self.state.lock();
        state.peers.for_waited(now, tried).filter(|_| !state.stopped).map(|number| state.peers.list[number].uri.clone())
    }

    /// The addresses that backfill may ask now.
    pub fn ready(&self) -> Ready {
        let now = self.now();
        let mut ready = Ready::default();
        let mut state = self.state.lock();
        for number in state.peers.for_bulk(now).collect::<Vec<_>>() {
            let peer = &state.peers.list[number];
            let (uri, host) = (peer.uri.clone(), Arc::clone(&peer.host));
            if peer.source.is_none() && state.connecting.contains(&uri) {
                continue;
            }
            if peer.is_retried() && !self.terms.budget.may_retry(now, &host) {
                state.peers.list[number].put_off(now);
                continue;
            }
            match &peer.source {
                Some(source) => ready.connected.push(Connected { source: Arc::clone(source), uri, host }),
                None => ready.unconnected.push((uri, host)),
            }
        }
        ready
    }

    /// Whether an address is connected.
    pub fn is_connected(&self, uri: &str) -> bool {
        self.look(|peers| peers.list.iter().any(|peer| peer.uri == uri && peer.source.is_some()))
    }

    /// Notes that an address is being connected to. `None`: that is so already.
    pub fn begin_connecting(self: &Arc<Self>, uri: &str) -> Option<Connecting> {
        let mut state = self.state.lock();
        if state.connecting.iter().any(|other| other == uri) {
            return None;
        }
        state.connecting.push(uri.to_owned());
        Some(Connecting { addresses: Arc::clone(self), uri: uri.to_owned() })
    }

    /// Gives up connections that were not used for long. Answers how long others may stay.
    pub fn close_idle(&self) -> Option<Duration> {
        let now = self.now();
        let (idle, next) = self.state.lock().peers.take_idle(now);
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

    /// The addresses.
    pub fn uris(&self) -> Vec<String> {
        self.look(|peers| peers.list.iter().map(|peer| peer.uri.clone()).collect())
    }

    /// Changes the addresses.
    pub fn set_uris(&self, uris: &[String]) {
        let unused = self.state.lock().peers.set(uris);
        unused.iter().for_each(|source| source.close());
    }

    /// Forgets failures, so that every address is tried at once.
    pub fn retry_now(&self) {
        self.state.lock().peers.retry_now();
    }

    /// Ends every wait for a connection, and closes what is connected.
    pub fn give_up(&self) {
        self.connector.give_up();
        let sources = self.state.lock().peers.take_sources();
        sources.iter().for_each(|source| source.close());
    }

    /// As [`Addresses::give_up`], for good.
    pub fn stop(&self) {
        let sources = {
            let mut state = self.state.lock();
            state.stopped = true;
            state.peers.take_sources()
        };
        self.connector.close();
        sources.iter().for_each(|source| source.close());
    }

    /// What is known of each address.
    pub fn info(&self) -> Vec<SourceInfo> {
        let told = self.look(|peers| {
            let known = peers.list.iter().map(|peer| {
                let info = SourceInfo {
                    uri: peer.uri.clone(),
                    failing: peer.failures > 0,
                    bytes_fetched: peer.bytes,
                    errors: peer.errors,
                    round_trip_micros: peer.round_trip.map(whole_micros),
                    last_error: peer.last_error.clone(),
                    refused: peer.refused,
                };
                (info, peer.source.clone())
            });
            known.collect::<Vec<_>>()
        });
        // A source is not called under the lock.
        let with_round_trip = |(mut info, source): (SourceInfo, Option<Arc<dyn Source>>)| {
            let round_trip = source.and_then(|source| source.stats().round_trip).map(whole_micros);
            info.round_trip_micros = round_trip.or(info.round_trip_micros);
            info
        };
        told.into_iter().map(with_round_trip).collect()
    }
}

fn unused(uri: &str) -> SourceError {
    SourceError { kind: SourceErrorKind::Closed, message: format!("{uri} is not used any more") }
}
