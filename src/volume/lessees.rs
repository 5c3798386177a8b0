//! Leases that root layers of this store have of snapshots of other hosts.
//!
//! # Invariants
//! - A root has one lease for each of its addresses whose server knows leases: the first fork takes that of the origin, and each
//!   opening of an address holds one. The record of a fork's lease comes in the frame of the fork.
//! - A lease is renewed each third of the time after which it lapses, whether anything is fetched or not, and given back when its root
//!   needs the address no more, which is durable by then: a crash must not bring back a root whose lease is gone. Its record stays until
//!   the server was told, or the lease has lapsed.
//! - A fork records its lease, for no layer, before it asks for it; the frame of the fork replaces or ends that record. After a crash
//!   at any point between, the record is that of a lease which no root needs, and the lease is given back, whether the server had given
//!   it or not. It is not given back while the question is under way, because the server may hear the question last.
//!
//! The lease of an opening is recorded after it was given, because a reader may wait for it: of a host that is lost between, that lease
//! stays until it lapses, and the next opening takes another.
//!
//! What servers are asked in the background is in `errands`.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::core::Core;
use crate::catalog::{Catalog, VolumeEntry};
use crate::error::Result;
use crate::format::{LesseeRecord, ShapeRecord};
use crate::ids::{LayerId, LeaseId};
use crate::layer::Ticket;
use crate::source::{Connector, Lease, LeaseAction, LeaseRequest, SourceOpener};
use crate::sync::Mutex;
use crate::sync::thread::JoinHandle;

/// After opening, leases are renewed after so long: a command that has the store open for a moment asks nobody.
const FIRST_RENEWAL: Duration = Duration::from_secs(5);
/// Two renewals of a lease are at least so far apart, whatever its server says.
const RENEWAL_PAUSE_MIN: Duration = Duration::from_secs(1);
/// The record of a lease is written anew when it lapses so much later, in seconds.
pub(super) const UNTIL_STEP: u64 = 3600;
/// Most bytes of the record of a lease beside its address.
const RECORD_BYTES: u64 = 64;
/// Most records of leases that forks asked for and have not got. The oldest ones make room for further ones; their leases lapse.
const ASKS_MAX: usize = 256;
/// How long it is tried to give such a lease back, in seconds: the server was to say when it lapses.
const ASK_LAPSE: u64 = 7 * 86_400;
/// Stands for the layer of a lease that a fork asks for. No layer has this number.
const NO_LAYER: LayerId = LayerId(u32::MAX);

#[derive(Default)]
pub(super) struct State {
    /// Numbers of the leases of roots, by address.
    pub ids: HashMap<(LayerId, String), LeaseId>,
    /// A fork on each root, for the servers.
    pub forks: HashMap<LayerId, String>,
    /// When a lease is renewed.
    pub renewals: HashMap<LeaseId, Duration>,
    /// When it is tried again to give one back.
    pub releases: HashMap<LeaseId, Duration>,
    /// Those whose servers could not be told that they are given back.
    pub untold: HashSet<LeaseId>,
    /// Leases that were given and have no record yet.
    given: Vec<LesseeRecord>,
    /// Leases that forks ask for, until the question has ended.
    pub asking: HashMap<LeaseId, Weak<()>>,
    /// The last change after which leases may not be needed any more.
    last_end: Ticket,
    /// Leases that are not needed any more, and the change that has to be durable before they are given back.
    ends: HashMap<LeaseId, Ticket>,
    pub next_look: Duration,
    pub stopping: bool,
    /// Those that ask hosts, by host, and those that have asked.
    pub threads: HashMap<String, JoinHandle<()>>,
    pub ended: Vec<JoinHandle<()>>,
}

/// What a store knows of its leases at other hosts, beside the catalogue.
pub struct Lessees {
    pub(super) connector: Option<Connector>,
    /// Name of this host.
    host: String,
    opened_at: Duration,
    pub(super) state: Mutex<State>,
}

/// A lease that a fork asks for. It has a record, and is given back when this is dropped unless the fork has recorded it as its own.
pub(super) struct Asked<'a> {
    core: &'a Core,
    pub uri: String,
    pub request: LeaseRequest,
    /// Held by all that wait for the answer.
    under_way: Option<Arc<()>>,
}

impl State {
    /// A server has given, or renewed, a lease.
    fn renew(&mut self, id: LeaseId, lapse: Duration, now: Duration) {
        self.renewals.insert(id, now + (lapse / 3).max(RENEWAL_PAUSE_MIN));
    }

    /// The change after which a lease is not needed any more, if it is not. The catalogue is locked.
    pub fn end_of(&mut self, id: LeaseId, needed: bool) -> Option<Ticket> {
        if needed {
            self.ends.remove(&id);
            return None;
        }
        Some(*self.ends.entry(id).or_insert(self.last_end))
    }
}

impl Asked<'_> {
    pub fn release(&self) -> LeaseRequest {
        LeaseRequest { action: LeaseAction::Release, ..self.request.clone() }
    }

    /// Gives back what its server gives when nobody waits for it any longer; the store may be closed by then.
    pub fn return_late(&self) -> impl FnOnce(&dyn SourceOpener, &str, &Lease) + Send + use<> {
        let (request, under_way) = (self.release(), self.under_way.clone());
        // What is not heard is said again when the store is open.
        move |opener, uri, _| {
            let _ = opener.lease(uri, &request);
            drop(under_way);
        }
    }
}

/// A volume over each root, for the servers.
pub(super) fn forks_by_root(catalog: &Catalog) -> HashMap<LayerId, String> {
    let over = |(_, volume): (_, &VolumeEntry)| Some((catalog.needed_root(volume.head)?, volume.name.clone()));
    match catalog.lessees().len() {
        0 => HashMap::new(),
        _ => catalog.volumes().filter_map(over).collect(),
    }
}

/// Name of this host, as far as it can be shown.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().chars().filter(char::is_ascii_graphic).take(63).collect()
}

impl Lessees {
    /// Those that a recovered shape has.
    pub fn new(opener: Option<Arc<dyn SourceOpener>>, catalog: &Catalog, opened_at: Duration) -> Self {
        let mut state = State { forks: forks_by_root(catalog), ..State::default() };
        for lessee in catalog.lessees() {
            match catalog.needs_lease(lessee) {
                true => drop(state.ids.insert((lessee.layer, lessee.uri.clone()), lessee.id)),
                // In the background, and not at the end of a command that has the store open for a moment.
                false => drop(state.releases.insert(lessee.id, opened_at)),
            }
        }
        Self { connector: opener.map(Connector::new), host: host_name(), opened_at, state: Mutex::new(state) }
    }

    /// Leases may not be needed any more once this change is durable. The catalogue is locked.
    pub(super) fn note_end(&self, change: Ticket) {
        let mut state = self.state.lock();
        state.last_end = change;
        state.next_look = Duration::ZERO;
    }

    /// Something may be due.
    pub(super) fn look_now(&self) {
        self.state.lock().next_look = Duration::ZERO;
    }

    pub(super) fn request(&self, action: LeaseAction, id: LeaseId, fork: &str, identity: &str) -> LeaseRequest {
        LeaseRequest { action, id, fork: fork.to_owned(), host: self.host.clone(), identity: identity.to_owned() }
    }

    /// What is asked of a server when an address of a root, which stands for bytes of this identity, is opened. `None`: there is no
    /// randomness for the number of a lease.
    pub(super) fn hold(&self, layer: LayerId, identity: &str, uri: &str) -> Option<LeaseRequest> {
        let mut state = self.state.lock();
        let key = (layer, uri.to_owned());
        let id = match state.ids.get(&key) {
            Some(id) => *id,
            None => LeaseId::random().ok()?,
        };
        state.ids.insert(key, id);
        let fork = state.forks.get(&layer).cloned().unwrap_or_default();
        Some(self.request(LeaseAction::Hold, id, &fork, identity))
    }

    /// A server has given a lease, or renewed it.
    pub(super) fn note_given(&self, record: LesseeRecord, lapse: Duration, now: Duration) {
        let mut state = self.state.lock();
        state.renew(record.id, lapse, now);
        state.given.retain(|given| given.id != record.id);
        state.given.push(record);
        state.next_look = Duration::ZERO;
    }

    /// A fork stands on a root.
    pub(super) fn note_fork(&self, layer: LayerId, fork: &str) {
        self.state.lock().forks.insert(layer, fork.to_owned());
    }

    /// When a lease is to be renewed, or given back.
    pub(super) fn due_at(&self, state: &State, id: LeaseId, needed: bool) -> Duration {
        match needed {
            true => state.renewals.get(&id).copied().unwrap_or(self.opened_at + FIRST_RENEWAL),
            false => state.releases.get(&id).copied().unwrap_or_default(),
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        // Before the look, which finds it given up.
        self.under_way = None;
        self.core.lessees.look_now();
    }
}

impl Core {
    /// What a new fork asks of its source. That it asks is durable when this returns.
    ///
    /// # Errors
    /// The system has no randomness; as for a change of shape.
    pub(super) fn ask_lease(&self, uri: &str, fork: &str) -> Result<Asked<'_>> {
        let request = self.lessees.request(LeaseAction::Take, LeaseId::random()?, fork, "");
        let (id, under_way) = (request.id, Arc::new(()));
        self.lessees.state.lock().asking.insert(id, Arc::downgrade(&under_way));
        let asked = Asked { core: self, uri: uri.to_owned(), request, under_way: Some(under_way) };
        if self.lessees.connector.as_ref().is_some_and(|connector| !connector.lends(uri)) {
            return Ok(asked);
        }
        let _pass = self.enter()?;
        self.layers.barriers.prepare_shape()?;
        self.begin_leases()?;
        let (ticket, _room) = {
            let mut catalog = self.catalog();
            let room = self.layers.reserve_shape_with(uri.len() as u64 + RECORD_BYTES)?;
            let asks = || catalog.lessees().filter(|lessee| lessee.layer == NO_LAYER);
            let oldest = asks().min_by_key(|lessee| lessee.until).filter(|_| asks().count() >= ASKS_MAX).map(|lessee| lessee.id);
            self.forget(&mut catalog, oldest.as_slice())?;
            let until = self.unix_seconds().saturating_add(ASK_LAPSE);
            let record = LesseeRecord { id, layer: NO_LAYER, until, uri: uri.to_owned() };
            (self.change(&mut catalog, None, vec![ShapeRecord::Lessee(record)])?, room)
        };
        self.layers.barriers.wait_shape(ticket).map(|()| asked)
    }

    /// The record of the lease that a fork has taken, or of the end of its question, for the root that it stands on; `None` if that has a
    /// lease of the address, so that the fork's own is given back.
    pub(super) fn lessee_record(&self, catalog: &Catalog, layer: LayerId, asked: &Asked<'_>, lease: Option<&Lease>) -> Option<ShapeRecord> {
        let id = asked.request.id;
        let Some(lease) = lease else { return catalog.lessee(id).map(|_| ShapeRecord::LesseeOver(id)) };
        let is_same = |lessee: &&LesseeRecord| lessee.layer == layer && lessee.uri == lease.uri && catalog.needs_lease(lessee);
        let standing = catalog.lessees().find(is_same).map(|lessee| lessee.id);
        self.lessees.note_fork(layer, &asked.request.fork);
        let now = self.clock.monotonic();
        let mut state = self.lessees.state.lock();
        if let Some(standing) = standing {
            // It may have lapsed, so it is renewed before the new one goes.
            state.renewals.insert(standing, now);
            return None;
        }
        state.ids.insert((layer, lease.uri.clone()), id);
        state.renew(id, lease.lapse, now);
        let until = self.unix_seconds().saturating_add(lease.lapse.as_secs());
        Some(ShapeRecord::Lessee(LesseeRecord { id, layer, until, uri: lease.uri.clone() }))
    }

    /// A server that was asked at `now` has given, or renewed, the lease of an address. No lock is waited for: this may be the thread of
    /// a reader.
    pub(super) fn note_lease(&self, (id, layer): (LeaseId, LayerId), uri: &str, lapse: Duration, now: Duration) {
        let until = self.unix_seconds().saturating_add(lapse.as_secs());
        let record = LesseeRecord { id, layer, until, uri: uri.to_owned() };
        self.lessees.note_given(record, lapse, now);
    }

    /// Leases that were given when an address was opened get their records.
    pub(super) fn record_given(&self) -> Result<bool> {
        let given = std::mem::take(&mut self.lessees.state.lock().given);
        if given.is_empty() {
            return Ok(false);
        }
        let recorded = self.layers.barriers.prepare_shape().and_then(|()| self.begin_leases()).and_then(|()| {
            let (ticket, _room) = {
                let mut catalog = self.catalog();
                // Also one whose root went while it was asked for: it is given back.
                let is_new = |record: &&LesseeRecord| {
                    catalog.lessee(record.id).is_none_or(|known| known.until.saturating_add(UNTIL_STEP) <= record.until)
                };
                let new: Vec<_> = given.iter().filter(is_new).cloned().collect();
                if new.is_empty() {
                    return Ok(false);
                }
                let room = self.layers.reserve_shape_with(new.iter().map(|record| record.uri.len() as u64 + RECORD_BYTES).sum())?;
                (self.change(&mut catalog, None, new.into_iter().map(ShapeRecord::Lessee).collect())?, room)
            };
            self.layers.barriers.wait_shape(ticket).map(|()| true)
        });
        if recorded.is_err() {
            self.lessees.state.lock().given.extend(given);
        }
        recorded
    }

    /// Ends the records of leases that were given back.
    pub(super) fn forget(&self, catalog: &mut Catalog, ids: &[LeaseId]) -> Result<Option<Ticket>> {
        let over: Vec<_> = ids.iter().filter(|id| catalog.lessee(**id).is_some()).map(|id| ShapeRecord::LesseeOver(*id)).collect();
        {
            let mut state = self.lessees.state.lock();
            state.ids.retain(|_, id| !ids.contains(id));
            for id in ids {
                state.renewals.remove(id);
                state.releases.remove(id);
                state.untold.remove(id);
                state.ends.remove(id);
            }
        }
        if over.is_empty() || self.layers.healthy().is_err() { Ok(None) } else { self.change(catalog, None, over).map(Some) }
    }
}
