//! Leases that forks of other hosts have of snapshots of this store.
//!
//! # Invariants
//! - A snapshot with leases is not destroyed, unless by force; the refusal says who has them.
//! - A lease of a volume that is being written is one of a snapshot of it, an *instant*, which goes when its last lease has ended and
//!   it has no reader. Forks of one unchanged instant share it. Lease and instant come in one journal frame: after a crash both are
//!   there, or neither.
//! - A lease, or its end, is durable before a fork is told of it.
//! - A lease ends when the fork gives it back, or lapses when it was not renewed for the time that the fork was told. After an
//!   opening nothing lapses for an hour: the forks could not renew while the store was closed. Setting the clock ends no lease that was
//!   renewed since.
//! - A fork that gives its lease back does not get it afterwards: a server hears the question of a fork whose host was lost, or which did
//!   not wait for the answer, after the end of the lease, if taking the snapshot takes long.
//! - Leases and instants are bounded, whatever clients ask.

use std::collections::HashSet;
use std::sync::Arc;

use super::alter::check_bare;
use super::create::Volumes;
use crate::catalog::Catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Features, LeaseRecord, ShapeRecord, SnapshotRecord, instant_name, is_instant};
use crate::ids::{LeaseId, VolumeId};
use crate::layer::Ticket;
use crate::volume::identity::identity_in;
use crate::volume::state::{Condemned, Leases, Shape, destroyed, too_many};
use crate::wire::{LeaseAction, LeaseGrant, LeaseRequest};

/// Most instants of a volume.
const VOLUME_INSTANTS_MAX: usize = 64;
/// Most instants of a store.
const INSTANTS_MAX: usize = 1024;
/// Leases that end in one step of the background.
const ENDED_MAX: usize = 256;

/// Gives, renews and ends leases of snapshots of this store.
pub struct Lending {
    pub volumes: Arc<Volumes>,
    /// Identity of the store, in hexadecimal digits.
    pub store_id: String,
}

/// Keeps a volume or snapshot from being opened, and its leases from keeping it.
pub struct Sentence {
    shape: Arc<Shape>,
    leases: Arc<Leases>,
    key: Condemned,
}

/// Whether a lease may have been asked for by this name.
fn is_of(catalog: &Catalog, lease: &LeaseRecord, (volume, snapshot): (&str, Option<&str>)) -> bool {
    catalog.volume_id(volume).is_ok_and(|id| id == lease.volume) && snapshot.is_none_or(|snapshot| snapshot == lease.snapshot)
}

impl Lending {
    /// Gives a lease of a snapshot, or of a volume as it is now; or renews it, or ends it. Answers what it holds, when that is durable.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Busy`] if there are too many; [`ErrorKind::Unsupported`] to hold what is no snapshot;
    /// those of [`Volumes::create_snapshot`].
    pub fn lease(&self, (volume, snapshot): (&str, Option<&str>), request: &LeaseRequest, address: &str) -> Result<Option<LeaseGrant>> {
        if request.action == LeaseAction::Release {
            self.volumes.leases.note_given_back(request.id);
            let ended = self.end_leases(|_| vec![request.id])?;
            // The fork does not ask again after this answer, so the end is durable first. A lease that ended before may not be durable
            // yet: its fork did not wait for the answer.
            let durable = ended
                .map_or_else(|| self.volumes.layers.barriers.sync_if_queued(), |ticket| self.volumes.layers.barriers.wait_shape(ticket));
            return durable.map(|()| None);
        }
        self.volumes.shape.begin(Features::LEASES)?;
        let _room = self.volumes.layers.barriers.reserve_shape()?;
        let granted = self.lease_snapshot(volume, snapshot, request, address)?;
        let (name, ticket) = match granted {
            Some(granted) => granted,
            None if request.action == LeaseAction::Take => self.lease_instant(volume, request, address)?,
            None => {
                let message = format!("'{volume}' is a volume, and being written: only a snapshot can be held");
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        };
        self.volumes.leases.note_renewal(request.id, self.volumes.clock.monotonic());
        self.volumes.shape.await_snapshot(ticket)?;
        Ok(Some(LeaseGrant { lapse: self.volumes.leases.lapse(), export: name }))
    }

    /// The existing lease, or a new lease of a snapshot; `None` if the request means neither.
    fn lease_snapshot(
        &self,
        volume: &str,
        snapshot: Option<&str>,
        request: &LeaseRequest,
        address: &str,
    ) -> Result<Option<(String, Ticket)>> {
        let now = self.volumes.clock.unix().as_secs();
        let mut catalog = self.volumes.shape.catalog();
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
                self.volumes.leases.check_new(&catalog, request)?;
                (id, snapshot.to_owned())
            }
        };
        self.volumes.leases.check_uncondemned(id, Some(&snapshot))?;
        let name = catalog.volume(id).map(|entry| format!("{}@{snapshot}", entry.name)).ok_or_else(|| destroyed(id))?;
        let record = self.volumes.leases.record(id, &snapshot, now, request, address);
        Ok(Some((name, self.volumes.shape.change(&mut catalog, None, vec![record])?)))
    }

    /// A lease of a volume as it is now: of the instant that another fork has of it, or of a new one.
    fn lease_instant(&self, volume: &str, request: &LeaseRequest, address: &str) -> Result<(String, Ticket)> {
        let now = self.volumes.clock.unix().as_secs();
        let head = self.volumes.open(volume)?;
        let _closed = head.close();
        let mut catalog = self.volumes.shape.catalog();
        self.volumes.leases.check_new(&catalog, request)?;
        if catalog.lease(request.id).is_some() {
            return Err(Error::new(ErrorKind::Busy, "the same lease is asked for twice at once"));
        }
        self.volumes.leases.check_uncondemned(head.id, None)?;
        let entry = catalog.volume(head.id).ok_or_else(|| destroyed(head.id))?;
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
            self.volumes.leases.check_uncondemned(head.id, Some(&name))?;
            let record = self.volumes.leases.record(head.id, &name, now, request, address);
            return Ok((format!("{volume}@{name}"), self.volumes.shape.change(&mut catalog, None, vec![record])?));
        }
        if entry.snapshots.instants() >= VOLUME_INSTANTS_MAX {
            return Err(too_many(&format!("volume '{volume}' has {VOLUME_INSTANTS_MAX} snapshots for forks of other hosts already")));
        }
        if catalog.volumes().map(|(_, entry)| entry.snapshots.instants()).sum::<usize>() >= INSTANTS_MAX {
            return Err(too_many(&format!("this store has {INSTANTS_MAX} snapshots for forks of other hosts already")));
        }
        let lease = |taken: &SnapshotRecord| Some(self.volumes.leases.record(head.id, &taken.name, now, request, address));
        let (snapshot, ticket) = self.volumes.add_snapshot(&mut catalog, &head, (always, now), instant_name, lease)?;
        Ok((format!("{volume}@{snapshot}"), ticket))
    }

    /// Ends the leases that are chosen under the same lock, and destroys the instants that are not needed any more.
    fn end_leases(&self, choose: impl FnOnce(&Catalog) -> Vec<LeaseId>) -> Result<Option<Ticket>> {
        self.volumes.layers.barriers.prepare_shape()?;
        let ticket = {
            let mut catalog = self.volumes.shape.catalog();
            let chosen = choose(&catalog).into_iter();
            let over: Vec<ShapeRecord> = chosen.filter(|id| catalog.lease(*id).is_some()).map(ShapeRecord::LeaseOver).collect();
            if over.is_empty() {
                return Ok(None);
            }
            self.volumes.shape.change(&mut catalog, None, over)?
        };
        self.volumes.leases.note_unneeded();
        self.sweep_instants().map(|_| Some(ticket))
    }

    /// Destroys the instants that have no lease and no reader. Answers whether there were some.
    ///
    /// # Errors
    /// As for a change of shape; it is done later then.
    pub fn sweep_instants(&self) -> Result<bool> {
        if !(self.volumes.shape.pins.take_unread_instant() | self.volumes.leases.take_unneeded()) {
            return Ok(false);
        }
        if self.unneeded_instants(&self.volumes.shape.catalog()).is_empty() {
            return Ok(false);
        }
        let swept = self.volumes.layers.barriers.prepare_shape().and_then(|()| {
            let mut catalog = self.volumes.shape.catalog();
            let unneeded = self.unneeded_instants(&catalog);
            if unneeded.len() == ENDED_MAX {
                // There may be more.
                self.volumes.leases.note_unneeded();
            }
            self.volumes.shape.change(&mut catalog, None, unneeded)
        });
        swept.inspect_err(|_| self.volumes.leases.note_unneeded()).map(|_| true)
    }

    fn unneeded_instants(&self, catalog: &Catalog) -> Vec<ShapeRecord> {
        let leased: HashSet<(VolumeId, &str)> = catalog.leases().map(|lease| (lease.volume, lease.snapshot.as_str())).collect();
        let volumes = catalog.volumes().filter(|(_, entry)| entry.snapshots.instants() > 0);
        let instants = volumes.flat_map(|(id, entry)| entry.snapshots.iter().map(move |snapshot| (id, snapshot.name.as_str())));
        let unneeded = instants
            .filter(|(id, name)| is_instant(name) && !leased.contains(&(*id, *name)) && !self.volumes.shape.pins.is_pinned(*id, name));
        unneeded.take(ENDED_MAX).map(|(volume, name)| ShapeRecord::DestroySnapshot { volume, name: name.to_owned() }).collect()
    }

    /// Ends the leases that were not renewed in time.
    ///
    /// # Errors
    /// As for a change of shape; it is done later then.
    pub fn lapse_leases(&self) -> Result<()> {
        let (now, date) = (self.volumes.clock.monotonic(), self.volumes.clock.unix().as_secs());
        let lapsed = |catalog: &Catalog| -> Vec<LeaseId> {
            let lapsed = catalog.leases().filter(|lease| self.volumes.leases.is_over(lease, now, date));
            lapsed.take(ENDED_MAX).map(|lease| lease.id).collect()
        };
        {
            let catalog = self.volumes.shape.catalog();
            self.volumes.leases.sweep_renewals(|id| catalog.lease(id).is_some());
            if lapsed(&catalog).is_empty() {
                return Ok(());
            }
        }
        // They are looked for again: one may have been renewed meanwhile.
        self.end_leases(lapsed).map(drop)
    }

    /// Lets no caller open a volume or snapshot from now on, before it is destroyed by force.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Busy`] if another caller does the same, or the volume has snapshots and `recursive` is not
    /// set.
    pub fn condemn(&self, volume: &str, snapshot: Option<&str>, recursive: bool) -> Result<Sentence> {
        let catalog = self.volumes.shape.catalog();
        let id = match snapshot {
            Some(snapshot) => catalog.snapshot(volume, snapshot)?.0,
            None => self.volumes.shape.volume_id(&catalog, volume)?,
        };
        if snapshot.is_none() {
            check_bare(&catalog, id, recursive)?;
        }
        let key = (id, snapshot.map(str::to_owned));
        self.volumes.leases.condemn(key.clone())?;
        Ok(Sentence { shape: Arc::clone(&self.volumes.shape), leases: Arc::clone(&self.volumes.leases), key })
    }
}

impl Sentence {
    /// Names of the exports whose connections must end: `VOLUME@SNAPSHOT`, or `VOLUME` and those of its snapshots.
    pub fn exports(&self) -> Vec<String> {
        let catalog = self.shape.catalog();
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
        self.leases.pardon(&self.key);
    }
}
