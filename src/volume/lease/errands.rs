//! Asking the hosts at which this store has leases: to renew them, and to take them back.
//!
//! # Invariants
//! - A host is asked by one thread at a time, which holds no lock, and at most [`HOSTS_MAX`] hosts are asked at once (without
//!   [`crate::StoreOptions::threads`]: one after the other, in [`crate::Store::step`]). Others wait in the order in which they are due.
//! - A host that does not answer has its thread for one answer, then it is left alone for a while: it costs its own leases a wait, and
//!   those of others nothing while fewer than [`HOSTS_MAX`] hosts do not answer.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::borrowing::{Borrowing, UNTIL_STEP};
use crate::catalog::Catalog;
use crate::error::Result;
use crate::format::LesseeRecord;
use crate::ids::{LayerId, LeaseId};
use crate::source::{Connector, LeaseAction, LeaseRequest, SourceErrorKind, host_of};
use crate::sync::thread::{Builder, scope};
use crate::sync::time::Instant;
use crate::sync::{Mutex, Rank};
use crate::volume::state::{Lessees, forks_by_root};

/// Most hosts that are asked at once.
const HOSTS_MAX: usize = 8;
/// Pause after a host did not answer.
const RETRY_PAUSE: Duration = Duration::from_secs(60);
/// Longest time between two looks at what is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// Pause before it is looked again whether the end of what needed a lease is durable.
const END_PAUSE: Duration = Duration::from_secs(1);
/// How long a host may take for one answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a store that is being closed tells hosts that leases are not needed any more.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// One request about a lease to a host.
struct Errand {
    uri: String,
    /// The root that has the lease.
    layer: LayerId,
    request: LeaseRequest,
}

/// A host, and what it is to be asked.
type Errands = (String, Vec<Errand>);

impl Lessees {
    /// Ends what is being asked, and asks no more.
    fn stop(&self) {
        let threads = {
            let mut state = self.state.lock();
            state.stopping = true;
            let ended = std::mem::take(&mut state.ended);
            ended.into_iter().chain(std::mem::take(&mut state.threads).into_values())
        };
        self.connector.iter().for_each(Connector::give_up);
        // A panic was printed there.
        threads.for_each(|thread| drop(thread.join()));
    }

    fn errand(&self, catalog: &Catalog, lessee: &LesseeRecord, needed: bool, forks: &HashMap<LayerId, String>) -> Errand {
        let request = match catalog.layer(lessee.layer).filter(|_| needed) {
            Some(root) => {
                let fork = forks.get(&lessee.layer).map_or("", String::as_str);
                self.request(LeaseAction::Hold, lessee.id, fork, &root.origin)
            }
            None => self.request(LeaseAction::Release, lessee.id, "", ""),
        };
        Errand { uri: lessee.uri.clone(), layer: lessee.layer, request }
    }
}

impl Borrowing {
    /// Records the leases that were given, and asks hosts what is due. Answers whether there was something.
    ///
    /// # Errors
    /// As for a change of shape; it is done later then.
    pub fn step(self: &Arc<Self>) -> Result<bool> {
        let now = self.clock.monotonic();
        let free = {
            let mut state = self.lessees.state.lock();
            if state.stopping || now < state.next_look || self.lessees.connector.is_none() {
                return Ok(false);
            }
            state.next_look = now + LOOK_INTERVAL;
            state.ended.retain(|thread| !thread.is_finished());
            HOSTS_MAX.saturating_sub(state.threads.len())
        };
        // Leases are renewed also while there is no space for records of further ones.
        let recorded = self.record_given();
        let hosts = self.due_errands(now, free);
        if hosts.is_empty() {
            return recorded;
        }
        if self.threads {
            hosts.into_iter().for_each(|(host, errands)| self.send(host, errands));
            return recorded;
        }
        // There may be more.
        self.lessees.look_now();
        hosts.into_iter().try_for_each(|(_, errands)| self.run_errands(errands, &|| PATIENCE)).map(|()| true)
    }

    /// Asks a host on a thread of its own.
    fn send(self: &Arc<Self>, host: String, errands: Vec<Errand>) {
        let mut state = self.lessees.state.lock();
        if state.stopping {
            return;
        }
        let (this, name) = (Arc::clone(self), host.clone());
        let thread = Builder::new().name("volfork-leases".into()).spawn(move || {
            // What failed is due again.
            let _ = this.run_errands(errands, &|| PATIENCE);
            let mut state = this.lessees.state.lock();
            let own = state.threads.remove(&name);
            state.ended.extend(own);
            // Another host may wait for a thread, and this one for its next errand.
            state.next_look = Duration::ZERO;
        });
        // Without a thread it is tried at the next look.
        state.threads.extend(thread.ok().map(|thread| (host, thread)));
    }

    /// The errands that are due now, for at most `hosts_max` hosts without an errand under way. Notes when the next one is due.
    fn due_errands(&self, now: Duration, hosts_max: usize) -> Vec<Errands> {
        let unix = self.clock.unix().as_secs();
        let (mut hosts, mut over) = (HashMap::<_, (Duration, Vec<_>)>::new(), Vec::new());
        let mut catalog = self.shape.catalog();
        let mut state = self.lessees.state.lock();
        state.asking.retain(|_, under_way| under_way.strong_count() > 0);
        let mut next_look = state.next_look;
        for lessee in catalog.lessees() {
            let needed = catalog.needs_lease(lessee);
            if !needed && state.asking.contains_key(&lessee.id) {
                continue;
            }
            if state.end_of(lessee.id, needed).is_some_and(|change| !self.layers.is_done(change)) {
                next_look = next_look.min(now + END_PAUSE);
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
            let (first_due, of_host) = hosts.entry(host_of(&lessee.uri)).or_insert((due, Vec::new()));
            *first_due = due.min(*first_due);
            of_host.push((needed, lessee));
        }
        let mut hosts: Vec<_> = hosts.into_iter().filter(|(host, _)| !state.threads.contains_key(host)).collect();
        hosts.sort_by_key(|(_, (first_due, _))| *first_due);
        hosts.truncate(hosts_max);
        let renews = hosts.iter().any(|(_, (_, lessees))| lessees.iter().any(|(needed, _)| *needed));
        if renews {
            state.forks = forks_by_root(&catalog);
        }
        let errands = |(host, (_, mut lessees)): (String, (_, Vec<(bool, &LesseeRecord)>))| {
            // A lease of a root is renewed before another one of the same goes.
            lessees.sort_by_key(|(needed, _)| !*needed);
            let errand = |(needed, lessee)| self.lessees.errand(&catalog, lessee, needed, &state.forks);
            (host, lessees.into_iter().map(errand).collect())
        };
        let hosts: Vec<Errands> = hosts.into_iter().map(errands).collect();
        let releases = hosts.iter().flat_map(|(_, errands)| errands).filter(|errand| errand.request.action == LeaseAction::Release);
        // If the address is used again meanwhile, then with another lease.
        let leaving: HashSet<LeaseId> = releases.map(|errand| errand.request.id).collect();
        state.next_look = next_look;
        state.ids.retain(|(layer, _), id| catalog.layer(*layer).is_some() && !leaving.contains(id));
        state.forks.retain(|layer, _| catalog.layer(*layer).is_some());
        drop(state);
        if !over.is_empty() {
            // Without a journal they are looked at again.
            let _ = self.forget(&mut catalog, &over);
        }
        hosts
    }

    /// Asks one host; `patience`: for the next answer.
    fn run_errands(&self, errands: Vec<Errand>, patience: &dyn Fn() -> Duration) -> Result<()> {
        let Some(connector) = &self.lessees.connector else { return Ok(()) };
        let (mut is_lost, mut over) = (false, Vec::new());
        for Errand { uri, layer, request } in errands {
            let (since, patience) = (connector.now(), patience());
            if patience.is_zero() || self.lessees.state.lock().stopping {
                break;
            }
            // Before the host is asked: it counts from a later moment.
            let now = (self.clock.monotonic(), self.clock.unix());
            let (id, releases) = (request.id, request.action == LeaseAction::Release);
            let answer = if is_lost { None } else { Some(connector.lease(&uri, since, request, patience)) };
            match answer {
                Some(Ok(Some(lease))) if !releases => {
                    self.lessees.note_lease((id, layer), &uri, lease.lapse, now);
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
                Some(Err(error)) if error.kind == SourceErrorKind::Lost => is_lost = true,
                _ => {}
            }
            let mut state = self.lessees.state.lock();
            if releases {
                state.untold.insert(id);
            }
            let times = if releases { &mut state.releases } else { &mut state.renewals };
            times.insert(id, now.0 + RETRY_PAUSE);
            state.next_look = state.next_look.min(now.0 + RETRY_PAUSE);
        }
        if over.is_empty() {
            return Ok(());
        }
        // Gives back space, so it needs none.
        self.layers.barriers.prepare_shape()?;
        self.forget(&mut self.shape.catalog(), &over).map(drop)
    }

    /// Asks no more. What is being asked ends.
    pub fn stop(&self) {
        self.lessees.stop();
    }

    /// Tells hosts, for a moment, which leases are not needed any more since the store was opened, unless they did not answer before.
    /// Nothing else goes on.
    pub fn give_back_all(&self) {
        let Some(connector) = &self.lessees.connector else { return };
        // What is not durable yet ends no lease: it is looked at again at the next opening.
        let _ = self.layers.barriers.sync_if_queued();
        // What cannot be recorded lapses.
        let _ = self.record_given();
        let until = Instant::now() + CLOSE_PATIENCE;
        let left = || until.saturating_duration_since(Instant::now());
        self.lessees.state.lock().stopping = false;
        let now = self.clock.monotonic();
        let mut hosts = self.due_errands(now, usize::MAX);
        let tried: HashSet<LeaseId> = self.lessees.state.lock().releases.keys().copied().collect();
        let is_new = |errand: &Errand| errand.request.action == LeaseAction::Release && !tried.contains(&errand.request.id);
        hosts.iter_mut().for_each(|(_, errands)| errands.retain(is_new));
        hosts.retain(|(_, errands)| !errands.is_empty());
        let threads = if self.threads { hosts.len().min(HOSTS_MAX) } else { 1 };
        let hosts = Mutex::ranked(Rank::Errands, hosts.into_iter());
        let next = || hosts.lock().next();
        let work = || {
            while let Some((_, errands)) = next() {
                // What could not be told is tried again at the next opening.
                let _ = self.run_errands(errands, &left);
            }
        };
        scope(|scope| {
            for _ in 1..threads {
                // Without the thread its hosts wait for another.
                let _ = Builder::new().name("volfork-leases".into()).spawn_scoped(scope, work);
            }
            work();
        });
        self.lessees.state.lock().stopping = true;
        connector.close();
    }
}
