//! Leases that root layers of this store have of snapshots of other hosts.
//!
//! # Invariants
//! - A root has one lease for each of its addresses whose server knows leases: the first fork takes that of the origin, and each
//!   opening of an address holds one. The record of a fork's lease comes in the frame of the fork.
//! - A lease is renewed each third of the time after which it lapses, whether anything is fetched or not, and given back when its root
//!   needs the address no more. Its record stays until the server was told, or the lease has lapsed.
//! - A fork records its lease, for no layer, before it asks for it; the frame of the fork replaces or ends that record. After a crash
//!   at any point between, the record is that of a lease which no root needs, and the lease is given back, whether the server had given
//!   it or not. It is not given back while the question is under way, because the server may hear the question last.
//! - Servers are asked without locks, on a thread that does nothing else (without [`crate::StoreOptions::threads`]: in
//!   [`crate::Store::step`]). One that does not answer costs its own leases a wait, and no others.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::core::Core;
use crate::catalog::{Catalog, VolumeEntry};
use crate::error::Result;
use crate::format::{LesseeRecord, Record};
use crate::ids::{LayerId, LeaseId};
use crate::layer::Ticket;
use crate::source::{Connector, Lease, LeaseAction, LeaseRequest, SourceErrorKind, SourceOpener, host_of};
use crate::sync::Mutex;
use crate::sync::thread::{Builder, JoinHandle};
use crate::sync::time::Instant;

/// After opening, leases are renewed after so long: a command that has the store open for a moment asks nobody.
const FIRST_RENEWAL: Duration = Duration::from_secs(5);
/// Pause after a server did not answer.
const RETRY_PAUSE: Duration = Duration::from_secs(60);
/// Longest time between two looks at what is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// How long a server may take for one answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Two renewals of a lease are at least so far apart, whatever its server says.
const RENEWAL_PAUSE_MIN: Duration = Duration::from_secs(1);
/// The record of a lease is written anew when it lapses so much later, in seconds.
const UNTIL_STEP: u64 = 3600;
/// How long a store that is being closed tells servers that leases are not needed any more.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// Most bytes of the record of a lease beside its address.
const RECORD_BYTES: u64 = 64;
/// Most records of leases that forks asked for and have not got. The oldest ones make room for further ones; their leases lapse.
const ASKS_MAX: usize = 256;
/// How long it is tried to give such a lease back, in seconds: the server was to say when it lapses.
const ASK_LAPSE: u64 = 7 * 86_400;
/// Stands for the layer of a lease that a fork asks for. No layer has this number.
const NO_LAYER: LayerId = LayerId(u32::MAX);

#[derive(Default)]
struct State {
    /// Numbers of the leases of roots, by address.
    ids: HashMap<(LayerId, String), LeaseId>,
    /// A fork on each root, for the servers.
    forks: HashMap<LayerId, String>,
    /// When a lease is renewed.
    renewals: HashMap<LeaseId, Duration>,
    /// When it is tried again to give one back.
    releases: HashMap<LeaseId, Duration>,
    /// Those whose servers could not be told that they are given back.
    untold: HashSet<LeaseId>,
    /// Leases that were given and have no record yet.
    given: Vec<LesseeRecord>,
    /// Leases that forks ask for, until the question has ended.
    asking: HashMap<LeaseId, Weak<()>>,
    next_look: Duration,
    running: bool,
    stopping: bool,
    thread: Option<JoinHandle<()>>,
}

/// What a store knows of its leases at other hosts, beside the catalogue.
pub struct Lessees {
    connector: Option<Connector>,
    /// Name of this host.
    host: String,
    opened_at: Duration,
    state: Mutex<State>,
}

/// One thing to ask a server.
struct Errand {
    uri: String,
    /// The root that has the lease.
    layer: LayerId,
    request: LeaseRequest,
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
fn forks_by_root(catalog: &Catalog) -> HashMap<LayerId, String> {
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

    /// Something may be due.
    pub(super) fn look_now(&self) {
        self.state.lock().next_look = Duration::ZERO;
    }

    fn request(&self, action: LeaseAction, id: LeaseId, fork: &str, identity: &str) -> LeaseRequest {
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

    /// Ends what is being asked, and asks no more.
    fn stop(&self) {
        let thread = {
            let mut state = self.state.lock();
            state.stopping = true;
            state.thread.take()
        };
        self.connector.iter().for_each(Connector::give_up);
        // A panic was printed there.
        thread.into_iter().for_each(|thread| drop(thread.join()));
    }

    /// When a lease is to be renewed, or given back.
    fn due_at(&self, state: &State, id: LeaseId, needed: bool) -> Duration {
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
        self.layers.prepare_shape()?;
        self.begin_leases()?;
        let (ticket, _room) = {
            let mut catalog = self.catalog();
            let room = self.layers.reserve_shape_with(uri.len() as u64 + RECORD_BYTES)?;
            let asks = || catalog.lessees().filter(|lessee| lessee.layer == NO_LAYER);
            let oldest = asks().min_by_key(|lessee| lessee.until).filter(|_| asks().count() >= ASKS_MAX).map(|lessee| lessee.id);
            self.forget(&mut catalog, oldest.as_slice())?;
            let until = self.unix_seconds().saturating_add(ASK_LAPSE);
            let record = LesseeRecord { id, layer: NO_LAYER, until, uri: uri.to_owned() };
            (self.change(&mut catalog, None, vec![Record::Lessee(record)])?, room)
        };
        self.layers.wait_shape(ticket).map(|()| asked)
    }

    /// The record of the lease that a fork has taken, or of the end of its question, for the root that it stands on; `None` if that has a
    /// lease of the address, so that the fork's own is given back.
    pub(super) fn lessee_record(&self, catalog: &Catalog, layer: LayerId, asked: &Asked<'_>, lease: Option<&Lease>) -> Option<Record> {
        let id = asked.request.id;
        let Some(lease) = lease else { return catalog.lessee(id).map(|_| Record::LesseeOver(id)) };
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
        Some(Record::Lessee(LesseeRecord { id, layer, until, uri: lease.uri.clone() }))
    }

    /// A server that was asked at `now` has given, or renewed, the lease of an address. No lock is waited for: this may be the thread of
    /// a reader.
    pub(super) fn note_lease(&self, (id, layer): (LeaseId, LayerId), uri: &str, lapse: Duration, now: Duration) {
        let until = self.unix_seconds().saturating_add(lapse.as_secs());
        let record = LesseeRecord { id, layer, until, uri: uri.to_owned() };
        self.lessees.note_given(record, lapse, now);
    }

    /// Records the leases that were given, and asks servers what is due. Answers whether there was something.
    ///
    /// # Errors
    /// As for a change of shape; it is done later then.
    pub fn lease_step(self: &Arc<Self>) -> Result<bool> {
        let now = self.clock.monotonic();
        {
            let mut state = self.lessees.state.lock();
            if state.running || state.stopping || now < state.next_look || self.lessees.connector.is_none() {
                return Ok(false);
            }
            state.next_look = now + LOOK_INTERVAL;
        }
        // Leases are renewed also while there is no space for records of further ones.
        let recorded = self.record_given();
        let errands = self.due_errands(now);
        if errands.is_empty() {
            return recorded;
        }
        if !self.has_threads() {
            return self.run_errands(errands, PATIENCE).map(|()| true);
        }
        let mut state = self.lessees.state.lock();
        let core = Arc::clone(self);
        let thread = Builder::new().name("volfork-leases".into()).spawn(move || {
            // What failed is due again.
            let _ = core.run_errands(errands, PATIENCE);
            core.lessees.state.lock().running = false;
        });
        // Without a thread it is tried at the next look.
        state.running = thread.is_ok();
        state.thread = thread.ok();
        recorded.map(|_| false)
    }

    /// Leases that were given when an address was opened get their records.
    fn record_given(&self) -> Result<bool> {
        let given = std::mem::take(&mut self.lessees.state.lock().given);
        if given.is_empty() {
            return Ok(false);
        }
        let recorded = self.layers.prepare_shape().and_then(|()| self.begin_leases()).and_then(|()| {
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
                (self.change(&mut catalog, None, new.into_iter().map(Record::Lessee).collect())?, room)
            };
            self.layers.wait_shape(ticket).map(|()| true)
        });
        if recorded.is_err() {
            self.lessees.state.lock().given.extend(given);
        }
        recorded
    }

    /// What is to be asked now; notes when the next is.
    fn due_errands(&self, now: Duration) -> Vec<Errand> {
        let unix = self.unix_seconds();
        let (mut errands, mut over, mut names) = (Vec::new(), Vec::new(), None);
        let mut catalog = self.catalog();
        let mut state = self.lessees.state.lock();
        state.asking.retain(|_, under_way| under_way.strong_count() > 0);
        let (mut next_look, mut leaving) = (state.next_look, HashSet::new());
        for lessee in catalog.lessees() {
            let needed = catalog.needs_lease(lessee);
            if !needed && state.asking.contains_key(&lessee.id) {
                continue;
            }
            // Its server could not be told, and has forgotten it.
            if !needed && lessee.until.saturating_add(UNTIL_STEP) <= unix && state.untold.contains(&lessee.id) {
                over.push(lessee.id);
                continue;
            }
            let due = self.lessees.due_at(&state, lessee.id, needed);
            if due > now {
                next_look = next_look.min(due);
                continue;
            }
            let request = match catalog.layer(lessee.layer).filter(|_| needed) {
                Some(root) => {
                    let fork = names.get_or_insert_with(|| forks_by_root(&catalog)).get(&lessee.layer).map_or("", String::as_str);
                    self.lessees.request(LeaseAction::Hold, lessee.id, fork, &root.origin)
                }
                None => self.lessees.request(LeaseAction::Release, lessee.id, "", ""),
            };
            if !needed {
                // If the address is used again meanwhile, then with another lease.
                leaving.insert(lessee.id);
            }
            errands.push(Errand { uri: lessee.uri.clone(), layer: lessee.layer, request });
        }
        // A lease of a root is renewed before another one of the same goes.
        errands.sort_by_key(|errand| errand.request.action == LeaseAction::Release);
        state.next_look = next_look;
        state.ids.retain(|(layer, _), id| catalog.layer(*layer).is_some() && !leaving.contains(id));
        state.forks = names.unwrap_or_else(|| std::mem::take(&mut state.forks));
        state.forks.retain(|layer, _| catalog.layer(*layer).is_some());
        drop(state);
        if !over.is_empty() {
            // Without a journal they are looked at again.
            let _ = self.forget(&mut catalog, &over);
        }
        errands
    }

    fn forget(&self, catalog: &mut Catalog, ids: &[LeaseId]) -> Result<Option<Ticket>> {
        let over: Vec<_> = ids.iter().filter(|id| catalog.lessee(**id).is_some()).map(|id| Record::LesseeOver(*id)).collect();
        {
            let mut state = self.lessees.state.lock();
            state.ids.retain(|_, id| !ids.contains(id));
            for id in ids {
                state.renewals.remove(id);
                state.releases.remove(id);
                state.untold.remove(id);
            }
        }
        if over.is_empty() || self.layers.healthy().is_err() { Ok(None) } else { self.change(catalog, None, over).map(Some) }
    }

    /// Asks servers, one after the other; `patience`: for each answer.
    fn run_errands(&self, errands: Vec<Errand>, patience: Duration) -> Result<()> {
        let Some(connector) = &self.lessees.connector else { return Ok(()) };
        let (mut lost, mut over) = (HashSet::new(), Vec::new());
        for Errand { uri, layer, request } in errands {
            let since = connector.now();
            if self.lessees.state.lock().stopping {
                break;
            }
            let host = host_of(&uri);
            // Before the server is asked: it counts from a later moment.
            let now = self.clock.monotonic();
            let (id, releases) = (request.id, request.action == LeaseAction::Release);
            let answer = if lost.contains(&host) { None } else { Some(connector.lease(&uri, since, request, patience)) };
            match answer {
                Some(Ok(Some(lease))) if !releases => {
                    self.note_lease((id, layer), &uri, lease.lapse, now);
                    continue;
                }
                Some(Ok(None)) if releases => {
                    over.push(id);
                    continue;
                }
                // There is nothing that a server would keep for it.
                Some(Err(error)) if releases && !matches!(error.kind, SourceErrorKind::Lost | SourceErrorKind::Closed) => {
                    over.push(id);
                    continue;
                }
                // The store is being closed, and asks once more as it does so.
                Some(Err(error)) if error.kind == SourceErrorKind::Closed && self.lessees.state.lock().stopping => break,
                Some(Err(error)) if error.kind == SourceErrorKind::Lost => drop(lost.insert(host)),
                _ => {}
            }
            let mut state = self.lessees.state.lock();
            if releases {
                state.untold.insert(id);
            }
            let times = if releases { &mut state.releases } else { &mut state.renewals };
            times.insert(id, now + RETRY_PAUSE);
            state.next_look = state.next_look.min(now + RETRY_PAUSE);
        }
        if over.is_empty() {
            return Ok(());
        }
        // Gives back space, so it needs none.
        self.layers.prepare_shape()?;
        self.forget(&mut self.catalog(), &over).map(drop)
    }

    /// Asks no more. What is being asked ends.
    pub fn stop_leases(&self) {
        self.lessees.stop();
    }

    /// Tells servers, for a moment, which leases are not needed any more since the store was opened, unless they did not answer before.
    /// Nothing else goes on.
    pub fn release_leases(&self) {
        let Some(connector) = &self.lessees.connector else { return };
        // What cannot be recorded lapses.
        let _ = self.record_given();
        let until = Instant::now() + CLOSE_PATIENCE;
        self.lessees.state.lock().stopping = false;
        let now = self.clock.monotonic();
        let mut errands = self.due_errands(now);
        let tried: HashSet<LeaseId> = self.lessees.state.lock().releases.keys().copied().collect();
        errands.retain(|errand| errand.request.action == LeaseAction::Release && !tried.contains(&errand.request.id));
        for errand in errands {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // What could not be told is tried again at the next opening.
            let _ = self.run_errands(vec![errand], left);
        }
        self.lessees.state.lock().stopping = true;
        connector.close();
    }
}
