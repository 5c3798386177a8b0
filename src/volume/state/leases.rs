//! What a store knows of leases that forks of other hosts have of its snapshots, beside the catalogue.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use crate::catalog::Catalog;
use crate::error::{Error, ErrorKind, Remedy, Result};
use crate::format::{LEASE_TEXT_BYTES_MAX, LeaseRecord, ShapeRecord};
use crate::ids::{LeaseId, VolumeId};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, Rank};
use crate::wire::{LeaseAction, LeaseRequest};

/// Most leases of a store.
const LEASES_MAX: usize = 4096;
/// Most leases of which it is remembered that they were given back.
const GIVEN_BACK_MAX: usize = 4096;
/// Time after opening in which no lease lapses, so that forks can renew after an outage of this host.
const GRACE: Duration = Duration::from_secs(3600);
/// Forks that a refusal names.
const NAMED_MAX: usize = 8;

/// What a store knows of its leases, beside the catalogue.
pub struct Leases {
    /// Time after which a lease lapses that is not renewed.
    lapse: Duration,
    opened_at: Duration,
    /// When leases were granted or renewed since the store was opened, by the monotonic clock.
    renewals: Mutex<HashMap<LeaseId, Duration>>,
    /// Leases that were given back, the latest last. What was asked before the store was opened is not heard any more.
    given_back: Mutex<VecDeque<LeaseId>>,
    /// Set when a lease, or a reader of an instant, has ended: there may be instants that are not needed any more.
    unneeded: AtomicBool,
    /// Volumes and snapshots that are about to be destroyed by force.
    condemned: Mutex<HashSet<Condemned>>,
}

pub type Condemned = (VolumeId, Option<String>);

impl Leases {
    pub fn new(lapse: Duration, opened_at: Duration) -> Self {
        let (renewals, given_back) = (Mutex::ranked(Rank::Renewals, HashMap::new()), Mutex::ranked(Rank::GivenBack, VecDeque::new()));
        let condemned = Mutex::ranked(Rank::Condemned, HashSet::new());
        // The wire format has whole seconds.
        let lapse = lapse.max(Duration::from_secs(1));
        Self { lapse, opened_at, renewals, given_back, unneeded: AtomicBool::new(true), condemned }
    }

    /// Whether nobody renewed a lease in time. The date counts only for one that was not renewed since the opening: it may have been
    /// set, also back.
    pub fn is_over(&self, lease: &LeaseRecord, now: Duration, date: u64) -> bool {
        let told = Duration::from_secs(lease.lapse_seconds);
        if let Some(renewed) = self.renewals.lock().get(&lease.id) {
            return now.saturating_sub(*renewed) >= told;
        }
        let open = now.saturating_sub(self.opened_at);
        open >= GRACE && (open >= told || lapses_at(lease) <= date)
    }

    /// The record of a lease that is given or renewed.
    pub fn record(&self, volume: VolumeId, snapshot: &str, renewed_at: u64, request: &LeaseRequest, address: &str) -> ShapeRecord {
        let address = address[..address.floor_char_boundary(LEASE_TEXT_BYTES_MAX)].to_owned();
        let LeaseRequest { id, fork, host, .. } = request.clone();
        let (snapshot, lapse_seconds) = (snapshot.to_owned(), self.lapse.as_secs());
        ShapeRecord::Lease(LeaseRecord { id, volume, renewed_at, lapse_seconds, snapshot, fork, host, address })
    }

    /// Before the lease is looked for: either it is found, or the question that comes later finds this.
    pub fn note_given_back(&self, id: LeaseId) {
        let mut given_back = self.given_back.lock();
        given_back.retain(|other| *other != id);
        given_back.push_back(id);
        if given_back.len() > GIVEN_BACK_MAX {
            given_back.pop_front();
        }
    }

    /// Whether a new lease may be given. The catalogue is locked.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`]: no further lease is given, or this one was given back.
    pub fn check_new(&self, catalog: &Catalog, request: &LeaseRequest) -> Result<()> {
        if request.action == LeaseAction::Take && self.given_back.lock().contains(&request.id) {
            return Err(Error::new(ErrorKind::Busy, "this lease was given back already: ask with another number"));
        }
        match catalog.leases().len() < LEASES_MAX {
            true => Ok(()),
            false => Err(too_many(&format!("forks of other hosts have {LEASES_MAX} leases of this store already"))),
        }
    }

    /// How long a lease lasts that is given now.
    pub fn lapse(&self) -> Duration {
        self.lapse
    }

    /// A lease was given or renewed at `now`.
    pub fn note_renewal(&self, id: LeaseId, now: Duration) {
        self.renewals.lock().insert(id, now);
    }

    /// Drops renewals of leases that are not `known` any more.
    pub fn sweep_renewals(&self, known: impl Fn(LeaseId) -> bool) {
        self.renewals.lock().retain(|id, _| known(*id));
    }

    /// Whether there may be instants without leases since the last call.
    pub fn take_unneeded(&self) -> bool {
        self.unneeded.swap(false, Ordering::AcqRel)
    }

    /// There may be instants that no lease holds any more.
    pub fn note_unneeded(&self) {
        self.unneeded.store(true, Ordering::Release);
    }

    /// # Errors
    /// [`ErrorKind::Busy`] while forks of other hosts have leases of a volume's snapshots, or of one of them, unless that is condemned.
    pub fn check_unleased(&self, catalog: &Catalog, volume: VolumeId, snapshot: Option<&str>) -> Result<()> {
        let forks: Vec<_> = catalog.leases_of(volume, snapshot).collect();
        if forks.is_empty() || self.check_uncondemned(volume, snapshot).is_err() {
            return Ok(());
        }
        let name = catalog.volume(volume).map_or("", |entry| &entry.name);
        let what = snapshot.map_or_else(|| format!("volume '{name}'"), |snapshot| format!("snapshot '{name}@{snapshot}'"));
        let named = forks.iter().take(NAMED_MAX).map(|lease| format!("'{}' of host {} ({})", lease.fork, lease.host, lease.address));
        let more = if forks.len() > NAMED_MAX { format!(" and {} more", forks.len() - NAMED_MAX) } else { String::new() };
        let count = if forks.len() == 1 { "1 fork".to_owned() } else { format!("{} forks", forks.len()) };
        Err(Error::remediable(
            ErrorKind::Busy,
            format!(
                "{what} is needed by {count} of other hosts: {}{more}; wait until they are complete, or destroy it by force, which \
                 leaves them without what they have not fetched",
                named.collect::<Vec<_>>().join(", ")
            ),
            Remedy::DestroyByForce,
        ))
    }

    /// # Errors
    /// [`ErrorKind::Busy`] for what is about to be destroyed by force.
    pub fn check_uncondemned(&self, volume: VolumeId, snapshot: Option<&str>) -> Result<()> {
        let condemned = self.condemned.lock();
        let hit = |snapshot: Option<&str>| condemned.contains(&(volume, snapshot.map(str::to_owned)));
        match !condemned.is_empty() && (hit(None) || snapshot.is_some() && hit(snapshot)) {
            true => Err(Error::new(ErrorKind::Busy, "it is about to be destroyed")),
            false => Ok(()),
        }
    }

    /// Lets a volume or snapshot be opened by no caller, and its leases keep it no longer. The catalogue is locked.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if it is condemned already.
    pub fn condemn(&self, key: Condemned) -> Result<()> {
        self.check_uncondemned(key.0, key.1.as_deref())?;
        self.condemned.lock().insert(key);
        Ok(())
    }

    /// Ends what [`Leases::condemn`] began.
    pub fn pardon(&self, key: &Condemned) {
        self.condemned.lock().remove(key);
    }
}

/// When a lease lapses, in seconds since the Unix epoch.
pub fn lapses_at(lease: &LeaseRecord) -> u64 {
    lease.renewed_at.saturating_add(lease.lapse_seconds)
}

/// The error for a limit that is reached.
pub fn too_many(what: &str) -> Error {
    Error::remediable(ErrorKind::Busy, format!("{what}: wait until some forks are complete, or fork a snapshot"), Remedy::ShowLeases)
}
