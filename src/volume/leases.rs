//! Leases that forks of other hosts have of snapshots of this store.
//!
//! # Invariants
//! - A snapshot with leases is not destroyed, unless by force; the refusal says who has them.
//! - A lease of a volume that is being written is one of a snapshot of it, an *instant*, which goes when its last lease has ended and
//!   nobody reads it. Forks of one unchanged instant share it. Lease and instant come in one journal frame: after a crash both are
//!   there, or neither.
//! - Nobody is told of a lease, or of its end, before that is durable.
//! - A lease ends when the fork gives it back, or lapses when it was not renewed for the time that the fork was told. After an
//!   opening nothing lapses for an hour: the forks could not renew while the store was closed. A date that is set ends no lease that
//!   was renewed since.
//! - A fork that gives its lease back does not get it afterwards: a server hears the question of a fork whose host was lost, or which did
//!   not wait for the answer, after the end of the lease, if taking the snapshot takes long.
//! - Leases and instants are bounded, whatever clients ask.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::core::{Core, gone};
use super::destroy::check_bare;
use super::holdings::identity_in;
use super::info::LeaseInfo;
use crate::catalog::Catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{LEASE_TEXT_BYTES_MAX, LeaseRecord, ShapeRecord, SnapshotRecord, instant_name, is_instant};
use crate::ids::{LeaseId, VolumeId};
use crate::layer::Ticket;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::wire::{LeaseAction, LeaseGrant, LeaseRequest};

/// Most leases of a store, and most instants of a volume and of a store.
const LEASES_MAX: usize = 4096;
const VOLUME_INSTANTS_MAX: usize = 64;
const INSTANTS_MAX: usize = 1024;
/// Most leases of which it is remembered that they were given back.
const GIVEN_BACK_MAX: usize = 4096;
/// Nothing lapses before so long after opening.
const GRACE: Duration = Duration::from_secs(3600);
/// Leases that end in one step of the background.
const ENDED_MAX: usize = 256;
/// Forks that a refusal names.
const NAMED_MAX: usize = 8;

/// What a store knows of its leases, beside the catalogue.
pub struct Leases {
    /// A lease that is given or renewed lapses after so long.
    lapse: Duration,
    opened_at: Duration,
    /// When leases were given or renewed since the store was opened, by a clock that nobody sets.
    renewals: Mutex<HashMap<LeaseId, Duration>>,
    /// Leases that were given back, the latest last. What was asked before the store was opened is not heard any more.
    given_back: Mutex<VecDeque<LeaseId>>,
    /// A lease has ended, or a reader of an instant: there may be instants that nobody needs.
    unneeded: AtomicBool,
    /// Volumes and snapshots that are about to be destroyed by force.
    condemned: Mutex<HashSet<Condemned>>,
}

type Condemned = (VolumeId, Option<String>);

/// Keeps a volume or snapshot from being opened, and its leases from keeping it.
pub struct Sentence {
    core: Arc<Core>,
    key: Condemned,
}

impl Leases {
    pub fn new(lapse: Duration, opened_at: Duration) -> Self {
        let (renewals, given_back, condemned) = (Mutex::default(), Mutex::default(), Mutex::default());
        // A second is the least that can be told.
        let lapse = lapse.max(Duration::from_secs(1));
        Self { lapse, opened_at, renewals, given_back, unneeded: AtomicBool::new(true), condemned }
    }

    /// Whether nobody renewed a lease in time. The date counts only for one that was not renewed since the opening: it may have been
    /// set, also back.
    fn is_over(&self, lease: &LeaseRecord, now: Duration, date: u64) -> bool {
        let told = Duration::from_secs(lease.lapse_seconds);
        if let Some(renewed) = self.renewals.lock().get(&lease.id) {
            return now.saturating_sub(*renewed) >= told;
        }
        let open = now.saturating_sub(self.opened_at);
        open >= GRACE && (open >= told || lapses_at(lease) <= date)
    }

    fn record(&self, volume: VolumeId, snapshot: &str, renewed_at: u64, request: &LeaseRequest, address: &str) -> ShapeRecord {
        let address = address[..address.floor_char_boundary(LEASE_TEXT_BYTES_MAX)].to_owned();
        let LeaseRequest { id, fork, host, .. } = request.clone();
        let (snapshot, lapse_seconds) = (snapshot.to_owned(), self.lapse.as_secs());
        ShapeRecord::Lease(LeaseRecord { id, volume, renewed_at, lapse_seconds, snapshot, fork, host, address })
    }

    /// Before the lease is looked for: either it is found, or the question that comes later finds this.
    fn note_given_back(&self, id: LeaseId) {
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
    fn check_new(&self, catalog: &Catalog, request: &LeaseRequest) -> Result<()> {
        if request.action == LeaseAction::Take && self.given_back.lock().contains(&request.id) {
            return Err(Error::new(ErrorKind::Busy, "this lease was given back already: ask with another number"));
        }
        match catalog.leases().len() < LEASES_MAX {
            true => Ok(()),
            false => Err(too_many(&format!("forks of other hosts have {LEASES_MAX} leases of this store already"))),
        }
    }

    /// There may be instants that nobody needs any more.
    pub(super) fn note_unneeded(&self) {
        self.unneeded.store(true, Ordering::Release);
    }
}

/// Whether a lease may have been asked for by this name.
fn is_of(catalog: &Catalog, lease: &LeaseRecord, (volume, snapshot): (&str, Option<&str>)) -> bool {
    catalog.volume_id(volume).is_ok_and(|id| id == lease.volume) && snapshot.is_none_or(|snapshot| snapshot == lease.snapshot)
}

fn lapses_at(lease: &LeaseRecord) -> u64 {
    lease.renewed_at.saturating_add(lease.lapse_seconds)
}

fn too_many(what: &str) -> Error {
    let next = "wait until some forks are complete, or fork a snapshot; 'volfork show' says who has leases";
    Error::new(ErrorKind::Busy, format!("{what}: {next}"))
}

impl Core {
    /// Lets the superblock say that the store may have leases, before the first record of one: older programs refuse the store then.
    ///
    /// # Errors
    /// Those of a checkpoint.
    pub(super) fn begin_leases(&self) -> Result<()> {
        if self.layers.takes_leases() {
            return Ok(());
        }
        let catalog = self.catalog();
        self.layers.checkpoints.write(catalog.records(), None, true)
    }

    /// Gives a lease of a snapshot, or of a volume as it is now; or renews it, or ends it. Answers what it holds, when that is durable.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Busy`] if there are too many; [`ErrorKind::Unsupported`] to hold what is no snapshot;
    /// those of [`Core::create_snapshot`].
    pub fn lease(
        self: &Arc<Self>,
        (volume, snapshot): (&str, Option<&str>),
        request: &LeaseRequest,
        address: &str,
    ) -> Result<Option<LeaseGrant>> {
        if request.action == LeaseAction::Release {
            self.leases.note_given_back(request.id);
            let ended = self.end_leases(|_| vec![request.id])?;
            // It is not said again then. One that ended before may not be durable yet: its fork did not wait for the answer.
            let durable = ended.map_or_else(|| self.layers.barriers.sync_if_queued(), |ticket| self.layers.barriers.wait_shape(ticket));
            return durable.map(|()| None);
        }
        self.begin_leases()?;
        let _room = self.layers.barriers.reserve_shape()?;
        let granted = self.lease_snapshot(volume, snapshot, request, address)?;
        let (name, ticket) = match granted {
            Some(granted) => granted,
            None if request.action == LeaseAction::Take => self.lease_instant(volume, request, address)?,
            None => {
                let message = format!("'{volume}' is a volume, and being written: only a snapshot can be held");
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        };
        self.leases.renewals.lock().insert(request.id, self.clock.monotonic());
        self.await_snapshot(ticket)?;
        Ok(Some(LeaseGrant { lapse: self.leases.lapse, export: name }))
    }

    /// A lease that is there already, or a new one of a snapshot; `None` if neither is meant.
    fn lease_snapshot(
        &self,
        volume: &str,
        snapshot: Option<&str>,
        request: &LeaseRequest,
        address: &str,
    ) -> Result<Option<(String, Ticket)>> {
        let now = self.unix_seconds();
        let mut catalog = self.catalog();
        let (id, snapshot) = match (catalog.lease(request.id), snapshot) {
            (Some(lease), _) if request.action == LeaseAction::Take && !is_of(&catalog, lease, (volume, snapshot)) => {
                return Err(Error::new(ErrorKind::Busy, "the number of this lease is that of a lease of something else: choose another"));
            }
            (Some(lease), _) => (lease.volume, lease.snapshot.clone()),
            (None, None) => return Ok(None),
            (None, Some(snapshot)) => {
                let (id, entry) = catalog.snapshot(volume, snapshot)?;
                let identity = identity_in(&catalog, &self.store_id, entry.layer);
                if !request.identity.is_empty() && request.identity != identity {
                    let message = format!("'{volume}@{snapshot}' has the bytes of {identity}, not of {}", request.identity);
                    return Err(Error::new(ErrorKind::NotFound, message));
                }
                self.leases.check_new(&catalog, request)?;
                (id, snapshot.to_owned())
            }
        };
        self.check_uncondemned(id, Some(&snapshot))?;
        let name = catalog.volume(id).map(|entry| format!("{}@{snapshot}", entry.name)).ok_or_else(|| gone(id))?;
        let record = self.leases.record(id, &snapshot, now, request, address);
        Ok(Some((name, self.change(&mut catalog, None, vec![record])?)))
    }

    /// A lease of a volume as it is now: of the instant that another fork has of it, or of a new one.
    fn lease_instant(self: &Arc<Self>, volume: &str, request: &LeaseRequest, address: &str) -> Result<(String, Ticket)> {
        let now = self.unix_seconds();
        let head = self.head(volume)?;
        let _closed = head.close();
        let mut catalog = self.catalog();
        self.leases.check_new(&catalog, request)?;
        if catalog.lease(request.id).is_some() {
            return Err(Error::new(ErrorKind::Busy, "the same lease is asked for twice at once"));
        }
        self.check_uncondemned(head.id, None)?;
        let entry = catalog.volume(head.id).ok_or_else(|| gone(head.id))?;
        let volume = entry.name.clone();
        let (below, size_bytes) = {
            let view = head.view.read();
            (view.layer.parent.filter(|_| view.layer.is_blank()), view.size_bytes)
        };
        let standing = below.and_then(|layer| entry.snapshots.get(&instant_name(layer)));
        // The same bytes in another size are another instant, on a layer of its own.
        let always = standing.is_some();
        if let Some(standing) = standing.filter(|standing| standing.size_bytes == size_bytes) {
            let name = standing.name.clone();
            self.check_uncondemned(head.id, Some(&name))?;
            let record = self.leases.record(head.id, &name, now, request, address);
            return Ok((format!("{volume}@{name}"), self.change(&mut catalog, None, vec![record])?));
        }
        if entry.snapshots.instants() >= VOLUME_INSTANTS_MAX {
            return Err(too_many(&format!("volume '{volume}' has {VOLUME_INSTANTS_MAX} snapshots for forks of other hosts already")));
        }
        if catalog.volumes().map(|(_, entry)| entry.snapshots.instants()).sum::<usize>() >= INSTANTS_MAX {
            return Err(too_many(&format!("this store has {INSTANTS_MAX} snapshots for forks of other hosts already")));
        }
        let lease = |taken: &SnapshotRecord| Some(self.leases.record(head.id, &taken.name, now, request, address));
        let (snapshot, ticket) = self.add_snapshot(&mut catalog, &head, always, instant_name, lease)?;
        Ok((format!("{volume}@{snapshot}"), ticket))
    }

    /// Ends leases, chosen in the same moment, and destroys the instants that nobody needs then.
    fn end_leases(&self, choose: impl FnOnce(&Catalog) -> Vec<LeaseId>) -> Result<Option<Ticket>> {
        self.layers.barriers.prepare_shape()?;
        let ticket = {
            let mut catalog = self.catalog();
            let chosen = choose(&catalog).into_iter();
            let over: Vec<ShapeRecord> = chosen.filter(|id| catalog.lease(*id).is_some()).map(ShapeRecord::LeaseOver).collect();
            if over.is_empty() {
                return Ok(None);
            }
            self.change(&mut catalog, None, over)?
        };
        self.leases.note_unneeded();
        self.sweep_instants().map(|_| Some(ticket))
    }

    /// Destroys the instants that no fork needs and nobody reads. Answers whether there were some.
    ///
    /// # Errors
    /// As for a change of shape; it is done later then.
    pub fn sweep_instants(&self) -> Result<bool> {
        if !self.leases.unneeded.swap(false, Ordering::AcqRel) {
            return Ok(false);
        }
        if self.unneeded_instants(&self.catalog()).is_empty() {
            return Ok(false);
        }
        let swept = self.layers.barriers.prepare_shape().and_then(|()| {
            let mut catalog = self.catalog();
            let unneeded = self.unneeded_instants(&catalog);
            if unneeded.len() == ENDED_MAX {
                // There may be more.
                self.leases.note_unneeded();
            }
            self.change(&mut catalog, None, unneeded)
        });
        swept.inspect_err(|_| self.leases.note_unneeded()).map(|_| true)
    }

    fn unneeded_instants(&self, catalog: &Catalog) -> Vec<ShapeRecord> {
        let leased: HashSet<(VolumeId, &str)> = catalog.leases().map(|lease| (lease.volume, lease.snapshot.as_str())).collect();
        let volumes = catalog.volumes().filter(|(_, entry)| entry.snapshots.instants() > 0);
        let instants = volumes.flat_map(|(id, entry)| entry.snapshots.iter().map(move |snapshot| (id, snapshot.name.as_str())));
        let unneeded = instants.filter(|(id, name)| is_instant(name) && !leased.contains(&(*id, *name)) && !self.is_pinned(*id, name));
        unneeded.take(ENDED_MAX).map(|(volume, name)| ShapeRecord::DestroySnapshot { volume, name: name.to_owned() }).collect()
    }

    /// Ends the leases that were not renewed in time.
    ///
    /// # Errors
    /// As for a change of shape; it is done later then.
    pub fn lapse_leases(&self) -> Result<()> {
        let (now, date) = (self.clock.monotonic(), self.unix_seconds());
        let lapsed = |catalog: &Catalog| -> Vec<LeaseId> {
            let lapsed = catalog.leases().filter(|lease| self.leases.is_over(lease, now, date));
            lapsed.take(ENDED_MAX).map(|lease| lease.id).collect()
        };
        {
            let catalog = self.catalog();
            self.leases.renewals.lock().retain(|id, _| catalog.lease(*id).is_some());
            if lapsed(&catalog).is_empty() {
                return Ok(());
            }
        }
        // Looked for anew: one may have been renewed meanwhile.
        self.end_leases(lapsed).map(drop)
    }

    /// Who has leases of a volume's snapshots, or of one of them.
    pub(super) fn lease_infos(&self, catalog: &Catalog, volume: VolumeId, snapshot: Option<&str>) -> Vec<LeaseInfo> {
        let info = |lease: &LeaseRecord| LeaseInfo {
            snapshot: lease.snapshot.clone(),
            fork: lease.fork.clone(),
            host: lease.host.clone(),
            address: lease.address.clone(),
            renewed_at: lease.renewed_at,
            lapses_at: lapses_at(lease),
        };
        catalog.leases_of(volume, snapshot).map(info).collect()
    }

    /// # Errors
    /// [`ErrorKind::Busy`] while forks of other hosts have leases of a volume's snapshots, or of one of them, unless that is condemned.
    pub(super) fn check_unleased(&self, catalog: &Catalog, volume: VolumeId, snapshot: Option<&str>) -> Result<()> {
        let forks: Vec<_> = catalog.leases_of(volume, snapshot).collect();
        if forks.is_empty() || self.check_uncondemned(volume, snapshot).is_err() {
            return Ok(());
        }
        let name = catalog.volume(volume).map_or("", |entry| &entry.name);
        let what = snapshot.map_or_else(|| format!("volume '{name}'"), |snapshot| format!("snapshot '{name}@{snapshot}'"));
        let named = forks.iter().take(NAMED_MAX).map(|lease| format!("'{}' of host {} ({})", lease.fork, lease.host, lease.address));
        let more = if forks.len() > NAMED_MAX { format!(" and {} more", forks.len() - NAMED_MAX) } else { String::new() };
        let count = if forks.len() == 1 { "1 fork".to_owned() } else { format!("{} forks", forks.len()) };
        Err(Error::new(
            ErrorKind::Busy,
            format!(
                "{what} is needed by {count} of other hosts: {}{more}; wait until they are complete, or destroy it with --force, which \
                 leaves them without what they have not fetched",
                named.collect::<Vec<_>>().join(", ")
            ),
        ))
    }

    /// Lets nobody open a volume or snapshot from now on, before it is destroyed by force.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Busy`] if somebody else does the same, or the volume has snapshots and `recursive` is not
    /// set.
    pub fn condemn(self: &Arc<Self>, volume: &str, snapshot: Option<&str>, recursive: bool) -> Result<Sentence> {
        let catalog = self.catalog();
        let id = match snapshot {
            Some(snapshot) => catalog.snapshot(volume, snapshot)?.0,
            None => self.volume_id(&catalog, volume)?,
        };
        if snapshot.is_none() {
            check_bare(&catalog, id, recursive)?;
        }
        self.check_uncondemned(id, snapshot)?;
        let key = (id, snapshot.map(str::to_owned));
        self.leases.condemned.lock().insert(key.clone());
        Ok(Sentence { core: Arc::clone(self), key })
    }

    /// # Errors
    /// [`ErrorKind::Busy`] for what is about to be destroyed by force.
    pub(super) fn check_uncondemned(&self, volume: VolumeId, snapshot: Option<&str>) -> Result<()> {
        let condemned = self.leases.condemned.lock();
        let hit = |snapshot: Option<&str>| condemned.contains(&(volume, snapshot.map(str::to_owned)));
        match !condemned.is_empty() && (hit(None) || snapshot.is_some() && hit(snapshot)) {
            true => Err(Error::new(ErrorKind::Busy, "it is about to be destroyed")),
            false => Ok(()),
        }
    }
}

impl Sentence {
    /// Names of the exports that are to be left: `VOLUME@SNAPSHOT`, or `VOLUME` and those of its snapshots.
    pub fn exports(&self) -> Vec<String> {
        let catalog = self.core.catalog();
        let Some(entry) = catalog.volume(self.key.0) else { return Vec::new() };
        match &self.key.1 {
            Some(snapshot) => vec![format!("{}@{snapshot}", entry.name)],
            None => {
                let snapshots = entry.snapshots.iter().map(|snapshot| format!("{}@{}", entry.name, snapshot.name));
                [entry.name.clone()].into_iter().chain(snapshots).collect()
            }
        }
    }
}

impl Drop for Sentence {
    fn drop(&mut self) {
        self.core.leases.condemned.lock().remove(&self.key);
    }
}
