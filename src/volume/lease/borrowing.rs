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

use std::sync::Arc;
use std::time::Duration;

use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::error::Result;
use crate::format::{Features, LesseeRecord, ShapeRecord};
use crate::ids::{LayerId, LeaseId};
use crate::layer::{Layers, Ticket};
use crate::place::wide;
use crate::source::{Lease, LeaseAction, LeaseRequest, SourceOpener};
use crate::volume::fence::Fence;
use crate::volume::state::{Lessees, Shape};

/// The record of a lease is rewritten when its lapse has moved by at least this many seconds.
pub const UNTIL_STEP: u64 = 3600;
/// Most bytes of the record of a lease beside its address.
const RECORD_BYTES: u64 = 64;
/// Most records of leases that forks asked for and have not got. The oldest ones make room for further ones; their leases lapse.
const ASKS_MAX: usize = 256;
/// How long it is tried to give such a lease back, in seconds: the server was to say when it lapses.
const ASK_LAPSE: u64 = 7 * 86_400;
/// Stands for the layer of a lease that a fork asks for. No layer has this number.
const NO_LAYER: LayerId = LayerId(u32::MAX);

/// Asks other hosts for leases, renews them, and gives them back.
pub struct Borrowing {
    pub layers: Arc<Layers>,
    pub shape: Arc<Shape>,
    pub lessees: Arc<Lessees>,
    pub fence: Arc<Fence>,
    pub clock: Arc<dyn Clock>,
    /// Hosts are asked on threads of their own; otherwise one after the other.
    pub threads: bool,
}

/// A lease that a fork asks for. It has a record, and is given back when this is dropped unless the fork has recorded it as its own.
pub struct Asked<'a> {
    lessees: &'a Lessees,
    pub uri: String,
    pub request: LeaseRequest,
    /// Held by all that wait for the answer.
    under_way: Option<Arc<()>>,
}

/// A lease that a server has given to a fork, with the moment at which it was.
pub struct Granted {
    uri: String,
    lapse: Duration,
    /// By the clock that is never set.
    now: Duration,
    /// When it lapses, in seconds since the Unix epoch.
    until: u64,
}

impl Asked<'_> {
    pub fn release(&self) -> LeaseRequest {
        LeaseRequest { action: LeaseAction::Release, ..self.request.clone() }
    }

    /// Gives back a lease that its server grants after the caller has stopped waiting; the store may be closed by then.
    pub fn return_late(&self) -> impl FnOnce(&dyn SourceOpener, &str, &Lease) + Send + use<> {
        let (request, under_way) = (self.release(), self.under_way.clone());
        // What is not heard is said again when the store is open.
        move |opener, uri, _| {
            let _ = opener.lease(uri, &request);
            drop(under_way);
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        // Before the look, which finds it given up.
        self.under_way = None;
        self.lessees.look_now();
    }
}

impl Borrowing {
    /// What a new fork asks of its source. That it asks is durable when this returns.
    ///
    /// # Errors
    /// The system has no randomness; as for a change of shape.
    pub fn ask(&self, uri: &str, fork: &str) -> Result<Asked<'_>> {
        let request = self.lessees.request(LeaseAction::Take, LeaseId::random()?, fork, "");
        let (id, under_way) = (request.id, Arc::new(()));
        self.lessees.state.lock().asking.insert(id, Arc::downgrade(&under_way));
        let asked = Asked { lessees: &self.lessees, uri: uri.to_owned(), request, under_way: Some(under_way) };
        if self.lessees.connector.as_ref().is_some_and(|connector| !connector.lends(uri)) {
            return Ok(asked);
        }
        let _pass = self.fence.enter()?;
        self.layers.barriers.prepare_shape()?;
        self.shape.begin(Features::LEASES)?;
        let _room = self.layers.reserve_shape_with(wide(uri.len()) + RECORD_BYTES)?;
        let until = self.clock.unix().as_secs().saturating_add(ASK_LAPSE);
        let ticket = {
            let mut catalog = self.shape.catalog();
            let asks = || catalog.lessees().filter(|lessee| lessee.layer == NO_LAYER);
            let oldest = asks().min_by_key(|lessee| lessee.until).filter(|_| asks().count() >= ASKS_MAX).map(|lessee| lessee.id);
            self.forget(&mut catalog, oldest.as_slice())?;
            let record = LesseeRecord { id, layer: NO_LAYER, until, uri: uri.to_owned() };
            self.shape.change(&mut catalog, None, vec![ShapeRecord::Lessee(record)])?
        };
        self.layers.barriers.wait_shape(ticket).map(|()| asked)
    }

    /// Lets the superblock say that the store may have leases: as [`Shape::begin`].
    ///
    /// # Errors
    /// As there.
    pub fn begin(&self) -> Result<()> {
        self.shape.begin(Features::LEASES)
    }

    /// Notes the moment at which a server has given a lease. The clock is a seam: no lock is held.
    pub fn grant(&self, lease: Lease) -> Granted {
        let (now, unix) = (self.clock.monotonic(), self.clock.unix());
        Granted { now, until: unix.as_secs().saturating_add(lease.lapse.as_secs()), uri: lease.uri, lapse: lease.lapse }
    }

    /// The record of the lease that a fork has taken, or of the end of its question, for the root that it stands on; `None` if that root
    /// has a lease of the address, so that the fork's own is given back.
    pub fn record_of_fork(&self, catalog: &Catalog, layer: LayerId, asked: &Asked<'_>, granted: Option<&Granted>) -> Option<ShapeRecord> {
        let id = asked.request.id;
        let Some(granted) = granted else { return catalog.lessee(id).map(|_| ShapeRecord::LesseeOver(id)) };
        let is_same = |lessee: &&LesseeRecord| lessee.layer == layer && lessee.uri == granted.uri && catalog.needs_lease(lessee);
        let standing = catalog.lessees().find(is_same).map(|lessee| lessee.id);
        self.lessees.note_fork(layer, &asked.request.fork);
        let mut state = self.lessees.state.lock();
        if let Some(standing) = standing {
            // It may have lapsed, so it is renewed before the new one goes.
            state.renewals.insert(standing, granted.now);
            return None;
        }
        state.ids.insert((layer, granted.uri.clone()), id);
        state.renew(id, granted.lapse, granted.now);
        Some(ShapeRecord::Lessee(LesseeRecord { id, layer, until: granted.until, uri: granted.uri.clone() }))
    }

    /// Leases that were given when an address was opened get their records.
    pub fn record_given(&self) -> Result<bool> {
        let given = std::mem::take(&mut self.lessees.state.lock().given);
        if given.is_empty() {
            return Ok(false);
        }
        let recorded = self.layers.barriers.prepare_shape().and_then(|()| self.shape.begin(Features::LEASES)).and_then(|()| {
            // As much as all of them need: which of them are new is known under the lock.
            let _room = self.layers.reserve_shape_with(given.iter().map(|record| wide(record.uri.len()) + RECORD_BYTES).sum())?;
            let ticket = {
                let mut catalog = self.shape.catalog();
                // Also one whose root went while it was asked for: it is given back.
                let is_new = |record: &&LesseeRecord| {
                    catalog.lessee(record.id).is_none_or(|known| known.until.saturating_add(UNTIL_STEP) <= record.until)
                };
                let new: Vec<_> = given.iter().filter(is_new).cloned().collect();
                if new.is_empty() {
                    return Ok(false);
                }
                self.shape.change(&mut catalog, None, new.into_iter().map(ShapeRecord::Lessee).collect())?
            };
            self.layers.barriers.wait_shape(ticket).map(|()| true)
        });
        if recorded.is_err() {
            self.lessees.state.lock().given.extend(given);
        }
        recorded
    }

    /// Ends the records of leases that were given back.
    pub fn forget(&self, catalog: &mut Catalog, ids: &[LeaseId]) -> Result<Option<Ticket>> {
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
        if over.is_empty() || self.layers.healthy().is_err() { Ok(None) } else { self.shape.change(catalog, None, over).map(Some) }
    }
}
