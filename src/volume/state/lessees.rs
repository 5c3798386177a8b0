//! What a store knows of leases that its root layers have of snapshots of other hosts, beside the catalogue.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::catalog::{Catalog, VolumeEntry};
use crate::format::LesseeRecord;
use crate::ids::{LayerId, LeaseId};
use crate::layer::Ticket;
use crate::source::{Connector, LeaseAction, LeaseRequest, SourceOpener};
use crate::sync::thread::JoinHandle;
use crate::sync::{Mutex, Rank};

/// How long after opening leases are renewed first: a command that has the store open for a moment asks no host.
const FIRST_RENEWAL: Duration = Duration::from_secs(5);
/// Least time between two renewals of a lease, whatever its server says.
const RENEWAL_PAUSE_MIN: Duration = Duration::from_secs(1);
#[derive(Default)]
pub struct State {
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
    pub given: Vec<LesseeRecord>,
    /// Leases that forks ask for, until the question has ended.
    pub asking: HashMap<LeaseId, Weak<()>>,
    /// The last change after which leases may not be needed any more.
    last_end: Ticket,
    /// Leases to give back, each with the round that must be durable first.
    pub ends: HashMap<LeaseId, Ticket>,
    pub next_look: Duration,
    pub stopping: bool,
    /// Those that ask hosts, by host, and those that have asked.
    pub threads: HashMap<String, JoinHandle<()>>,
    pub ended: Vec<JoinHandle<()>>,
}

/// What a store knows of its leases at other hosts, beside the catalogue.
pub struct Lessees {
    pub connector: Option<Connector>,
    /// Name of this host.
    host: String,
    opened_at: Duration,
    pub state: Mutex<State>,
}

impl State {
    /// A server has given, or renewed, a lease.
    pub fn renew(&mut self, id: LeaseId, lapse: Duration, now: Duration) {
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

/// A volume over each root, for the servers.
pub fn forks_by_root(catalog: &Catalog) -> HashMap<LayerId, String> {
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
        Self { connector: opener.map(Connector::new), host: host_name(), opened_at, state: Mutex::ranked(Rank::Lessees, state) }
    }

    /// Leases may not be needed any more once this change is durable. The catalogue is locked.
    pub fn note_end(&self, change: Ticket) {
        let mut state = self.state.lock();
        state.last_end = change;
        state.next_look = Duration::ZERO;
    }

    /// Something may be due.
    pub fn look_now(&self) {
        self.state.lock().next_look = Duration::ZERO;
    }

    pub fn request(&self, action: LeaseAction, id: LeaseId, fork: &str, identity: &str) -> LeaseRequest {
        LeaseRequest { action, id, fork: fork.to_owned(), host: self.host.clone(), identity: identity.to_owned() }
    }

    /// What is asked of a server when an address of a root, which stands for bytes of this identity, is opened. `None`: there is no
    /// randomness for the number of a lease.
    pub fn hold(&self, layer: LayerId, identity: &str, uri: &str) -> Option<LeaseRequest> {
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
    pub fn note_given(&self, record: LesseeRecord, lapse: Duration, now: Duration) {
        let mut state = self.state.lock();
        state.renew(record.id, lapse, now);
        state.given.retain(|given| given.id != record.id);
        state.given.push(record);
        state.next_look = Duration::ZERO;
    }

    /// A fork stands on a root.
    pub fn note_fork(&self, layer: LayerId, fork: &str) {
        self.state.lock().forks.insert(layer, fork.to_owned());
    }

    /// When a lease is to be renewed, or given back.
    pub fn due_at(&self, state: &State, id: LeaseId, needed: bool) -> Duration {
        match needed {
            true => state.renewals.get(&id).copied().unwrap_or(self.opened_at + FIRST_RENEWAL),
            false => state.releases.get(&id).copied().unwrap_or_default(),
        }
    }

    /// A server that was asked at the moment `monotonic` (and `unix`) has given, or renewed, the lease of an address. No lock of the store
    /// is waited for: this may be the thread of a reader.
    pub fn note_lease(&self, (id, layer): (LeaseId, LayerId), uri: &str, lapse: Duration, (monotonic, unix): (Duration, Duration)) {
        let until = unix.as_secs().saturating_add(lapse.as_secs());
        self.note_given(LesseeRecord { id, layer, until, uri: uri.to_owned() }, lapse, monotonic);
    }
}
