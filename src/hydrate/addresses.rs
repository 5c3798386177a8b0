//! The addresses of a root layer, their connections, and the results of requests to them.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::pace::Budget;
use super::peers::Peers;
use super::progress::SourceInfo;
use crate::clock::Clock;
use crate::ids::LeaseId;
use crate::source::{Connector, Lease, LeaseRequest, LeasedSource, Since, Source, SourceError, SourceErrorKind, SourceOpener};
use crate::sync::{Mutex, Rank};
use crate::units::whole_micros;

/// Shortest pause between two checks for idle connections.
const IDLE_LOOK_MIN: Duration = Duration::from_millis(100);

/// Gives the lease to hold at an address; `None` if there is none.
pub type Hold = Box<dyn Fn(&str) -> Option<LeaseRequest> + Send + Sync>;

/// Called with an address, the id of the lease that it has granted, and the time after which the lease lapses.
pub type OnLease = Arc<dyn Fn(&str, LeaseId, Duration) + Send + Sync>;

#[derive(Default)]
struct State {
    peers: Peers,
    /// Addresses to which a connection for backfill is being made.
    connecting: Vec<String>,
    stopped: bool,
}

/// How addresses are opened, and the constants that their bytes must match.
pub struct Terms {
    /// Bytes of the source.
    pub size_bytes: u64,
    /// Identity of the bytes, or empty.
    pub origin: String,
    /// The lease to hold at an address that is opened.
    pub hold: Hold,
    /// Called with each lease that an address has granted.
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

/// A connected address.
#[derive(Clone)]
pub struct Connected {
    pub uri: String,
    /// Key of its host ([`host_of`](crate::source::host_of)).
    pub host: Arc<str>,
    pub source: Arc<dyn Source>,
}

/// Addresses that backfill may use now.
#[derive(Default)]
pub struct Ready {
    pub connected: Vec<Connected>,
    /// Addresses that must be connected first, with their hosts.
    pub unconnected: Vec<(String, Arc<str>)>,
}

/// Guard of an address to which a connection is being made.
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
    /// Takes the addresses; `source`, if given, is the connection of the first one.
    pub fn new(uris: &[String], source: Option<Arc<dyn Source>>, opener: Arc<dyn SourceOpener>, terms: Terms) -> Arc<Self> {
        let mut state = State::default();
        state.peers.set(uris);
        if let Some(first) = state.peers.list.first_mut() {
            (first.source, first.used_at) = (source, terms.clock.monotonic());
        }
        Arc::new(Self { state: Mutex::ranked(Rank::Addresses, state), connector: Connector::new(opener), terms })
    }

    fn now(&self) -> Duration {
        self.terms.clock.monotonic()
    }

    /// The source at an address. Connects to it if necessary, and waits for that.
    ///
    /// # Errors
    /// The address cannot be connected, has other bytes, or was removed.
    pub fn source(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        self.source_while(uri, || true)
    }

    /// As [`Addresses::source`], while `is_wanted`. To end the wait, make `is_wanted` false first, and then call [`Addresses::give_up`].
    ///
    /// # Errors
    /// As [`Addresses::source`]; [`SourceErrorKind::Closed`] if it is not wanted.
    pub fn source_while(&self, uri: &str, is_wanted: impl Fn() -> bool) -> Result<Arc<dyn Source>, SourceError> {
        // Taken before `is_wanted` is asked: if the wait is given up after that, the connector ends it.
        let since = self.connector.now();
        self.connect(uri, || if is_wanted() { self.open_held(uri, since) } else { Err(unused(uri)) })
    }

    /// The source at an address; `open` makes the connection if there is none.
    fn connect(&self, uri: &str, open: impl FnOnce() -> Result<Arc<dyn Source>, SourceError>) -> Result<Arc<dyn Source>, SourceError> {
        {
            let mut state = self.state.lock();
            state.peers.note_use(uri, self.now());
            let peer = state.peers.list.iter().find(|peer| peer.uri == uri).filter(|_| !state.stopped);
            if let Some(source) = &peer.ok_or_else(|| unused(uri))?.source {
                return Ok(Arc::clone(source));
            }
        }
        // A source that is not used after all closes when it is dropped, after the lock is released.
        let source = open()?;
        self.check_source(uri, &*source)?;
        let mut state = self.state.lock();
        state.peers.note_use(uri, self.now());
        // Tells other hydrations at once that the host answers again, before anything was read.
        state.peers.host(uri).into_iter().for_each(|host| self.terms.budget.note_answered(host));
        let stopped = state.stopped;
        match state.peers.list.iter_mut().find(|peer| peer.uri == uri).filter(|_| !stopped) {
            Some(peer) => Ok(Arc::clone(peer.source.get_or_insert_with(|| Arc::clone(&source)))),
            None => Err(unused(uri)),
        }
    }

    /// As [`Addresses::source`], but opens the address on the caller's thread, which is one of the source pool.
    ///
    /// # Errors
    /// As [`Addresses::source`].
    pub fn source_here(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        self.connect(uri, || {
            let Some(request) = (self.terms.hold)(uri) else { return self.connector.open_here(uri) };
            let LeasedSource { source, lease } = self.connector.open_leased_here(uri, &request)?;
            // It is known also when it comes too late, so that it is given back.
            lease.into_iter().for_each(|lease| (self.terms.on_lease)(uri, request.id, lease.lapse));
            Ok(source)
        })
    }

    /// Runs a call that may hang on a thread of the source pool, behind earlier calls of its host. If no thread can be had, the job is
    /// dropped.
    pub fn aside(&self, uri: &str, job: impl FnOnce() + Send + 'static) {
        self.connector.aside(uri, Box::new(job));
    }

    /// Opens an address, with a lease if its server supports leases.
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

    /// Refuses a source whose size or identity is not that of the forked bytes.
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
            None if !origin.is_empty() => changed(format!(
                "{uri} reports no identity, so its bytes may be others than those of {origin}, which was forked: use a volfork snapshot"
            )),
            _ => Ok(()),
        }
    }

    /// Notes a failure of an address. If `run` is given, only these blocks could not be read, and the address may still serve others.
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

    /// Notes a successful read of these blocks, and how long a reader waited for it. Returns whether the address had failed before, and
    /// the shortest recent wait for it.
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

    /// Calls `look` with the state of the addresses, under the lock.
    pub fn look<T>(&self, look: impl FnOnce(&Peers) -> T) -> T {
        look(&self.state.lock().peers)
    }

    /// The first address, and its source if that is connected.
    pub fn first(&self) -> Option<(String, Option<Arc<dyn Source>>)> {
        self.look(|peers| peers.list.first().map(|peer| (peer.uri.clone(), peer.source.clone())))
    }

    /// The best address for a waited-for read that is not in `tried`.
    pub fn next_waited(&self, tried: &[String]) -> Option<String> {
        let now = self.now();
        let state = self.state.lock();
        state.peers.for_waited(now, tried).filter(|_| !state.stopped).map(|number| state.peers.list[number].uri.clone())
    }

    /// The addresses that backfill may use now.
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

    /// Marks an address as being connected. `None` if it is marked already.
    pub fn begin_connecting(self: &Arc<Self>, uri: &str) -> Option<Connecting> {
        let mut state = self.state.lock();
        if state.connecting.iter().any(|other| other == uri) {
            return None;
        }
        state.connecting.push(uri.to_owned());
        Some(Connecting { addresses: Arc::clone(self), uri: uri.to_owned() })
    }

    /// Closes idle connections. Returns when the next one may become idle.
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

    /// Replaces the addresses; those that stay keep their state.
    pub fn set_uris(&self, uris: &[String]) {
        let unused = self.state.lock().peers.set(uris);
        unused.iter().for_each(|source| source.close());
    }

    /// Forgets failures, so that every address is tried at once.
    pub fn retry_now(&self) {
        self.state.lock().peers.retry_now();
    }

    /// Ends every wait for a connection, and closes all connections. Later reads connect again.
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

    /// State of each address, for reports.
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
    SourceError { kind: SourceErrorKind::Closed, message: format!("{uri} was removed from the sources, or waiting for it was given up") }
}
