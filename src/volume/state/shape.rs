//! The shape of an open store: its catalogue, and what is in memory beside it.
//!
//! # Visible and durable
//! A change of shape is visible in its store from the moment it is made, before it is durable. In this store that is harmless: the
//! journal has changes in the order in which they were made, so when a fork of an unacknowledged fork (or a flush of one) is
//! acknowledged, what it stands on is durable too; and a change that no caller was told of may vanish in a crash as if it had never
//! been made. Other hosts know a snapshot by its layer's number, which may be given again after the crash. So a snapshot is opened,
//! and with that exported, only when its record is durable ([`Shape::await_arrival`]).
//!
//! A round may be undone for lack of space, descriptors or memory. The change stands then and is in the next round; its caller waits for
//! a few of them, and is told [`ErrorKind::NotDurable`] if the shortage lasts. Until these changes are durable further ones are refused
//! before anything has changed (`Barriers::prepare_shape`). So what a call answers agrees with what the store shows, and what waits for
//! a round is bounded.
//!
//! Each change is one journal record group and one barrier round: it is applied in memory under the catalogue's lock, put into the next
//! round there (so the journal has changes in the order in which they were made), and waited for outside all locks.

use std::sync::Arc;

use super::arrivals::Arrivals;
use super::births::{Announced, Births, Coming};
use super::freed::Freed;
use super::hydrations::Hydrations;
use super::lessees::Lessees;
use super::pins::Pins;
use crate::catalog::Catalog;
use crate::error::{Error, ErrorKind, Remedy, Result};
use crate::format::{ShapeRecord, valid_name};
use crate::ids::{LayerId, VolumeId};
use crate::layer::{Layers, Ticket};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard, Rank};

/// The shape of an open store.
pub struct Shape {
    pub(super) layers: Arc<Layers>,
    hydrations: Arc<Hydrations>,
    lessees: Arc<Lessees>,
    pub(super) catalog: Mutex<Catalog>,
    pub births: Arc<Births>,
    pub arrivals: Arrivals,
    pub pins: Arc<Pins>,
    freed: Freed,
    /// A change may have hidden or freed blocks since [`Shape::take_hiding`].
    hiding: AtomicBool,
}

impl Shape {
    /// A recovered shape.
    pub fn new(catalog: Catalog, layers: Arc<Layers>, hydrations: Arc<Hydrations>, lessees: Arc<Lessees>) -> Self {
        Self {
            layers,
            hydrations,
            lessees,
            catalog: Mutex::ranked(Rank::Catalog, catalog),
            births: Arc::default(),
            arrivals: Arrivals::default(),
            pins: Arc::default(),
            freed: Freed::default(),
            hiding: AtomicBool::new(true),
        }
    }

    /// The catalogue, locked. Not to be held across I/O, a barrier, or a call into a seam.
    pub fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock()
    }

    /// Makes changes in memory and puts them into the next round, together with the completed writes of `sync`.
    ///
    /// 1. The catalogue says which layers the change frees.
    /// 2. Their hydrators stop before the layers are freed: readers that fail then are told of a source that is gone.
    /// 3. The records and the end of the freed layers are in the same round, so no flush of such a layer is in an earlier one.
    /// 4. Leases at other hosts that the change ends are given back when that round is durable: a crash must not bring back a root
    ///    whose lease is gone.
    ///
    /// # Errors
    /// The records do not fit the shape: a bug, after which the store refuses writes.
    pub fn change(&self, catalog: &mut Catalog, sync: Option<LayerId>, records: Vec<ShapeRecord>) -> Result<Ticket> {
        let mut freed = Vec::new();
        for record in &records {
            freed.extend(catalog.apply(record).map_err(|error| Error::new(ErrorKind::Corrupt, format!("the catalogue: {error}")))?);
        }
        freed.iter().for_each(|layer| self.hydrations.stop(*layer));
        let may_end_leases = |record: &ShapeRecord| matches!(record, ShapeRecord::Detach(_) | ShapeRecord::Sources(..));
        let ends_leases = !freed.is_empty() || records.iter().any(may_end_leases);
        let ticket = self.layers.enqueue_freeing(sync, records, &freed);
        if ends_leases {
            self.lessees.note_end(ticket);
        }
        self.freed.add(ticket, freed);
        self.note_hiding();
        Ok(ticket)
    }

    /// Notes that blocks may have become invisible.
    pub fn note_hiding(&self) {
        self.hiding.store(true, Ordering::Release);
    }

    /// Whether blocks may have become invisible since the last call.
    pub fn take_hiding(&self) -> bool {
        self.hiding.swap(false, Ordering::AcqRel)
    }

    /// Waits until the record of a snapshot is durable, if it is not: other hosts must not know of it before.
    ///
    /// # Errors
    /// The round found no space, descriptors or memory; or it failed, and the store refuses writes.
    pub fn await_arrival(&self, volume: VolumeId, snapshot: &str) -> Result<()> {
        self.arrivals.get(volume, snapshot).map_or(Ok(()), |ticket| self.layers.barriers.wait(ticket))
    }

    /// Waits until a snapshot that was just taken is durable.
    ///
    /// # Errors
    /// As `Barriers::wait_shape`.
    pub fn await_snapshot(&self, ticket: Ticket) -> Result<()> {
        self.layers.barriers.wait_shape(ticket)?;
        self.arrivals.sweep(|ticket| self.layers.is_done(ticket));
        Ok(())
    }

    /// Whether no record refers to a layer, nor will after a crash: files that it may have can go. The files of a layer that was freed
    /// a moment ago wait for the end of the round that has its record; [`Shape::unlink_step`] removes them.
    pub fn is_unknown(&self, layer: LayerId) -> bool {
        // Under the catalogue's lock, with which layers are added (before their files are made) and freed.
        let catalog = self.catalog();
        catalog.layer(layer).is_none() && self.layers.get(layer).is_none() && !self.freed.contains(layer)
    }

    /// Removes the files of one layer whose end is durable and whose hydrator is quiet. Answers whether there was one.
    ///
    /// # Errors
    /// An I/O error; the files are swept at the next open.
    pub fn unlink_step(&self) -> Result<bool> {
        let may_go = |ticket, layer| self.layers.is_done(ticket) && self.hydrations.is_quiet(layer);
        let Some(layer) = self.freed.take(may_go) else { return Ok(false) };
        self.hydrations.forget(layer);
        self.layers.remove_files(layer).map(|()| true)
    }

    /// Takes a name for a volume that will stand on the source at `uri`, or that is going to be filled.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`], [`ErrorKind::InvalidInput`].
    pub fn announce(&self, name: &str, uri: Option<&str>, created_at: u64) -> Result<Announced> {
        valid_name(name)?;
        let catalog = self.catalog();
        self.name_is_free(&catalog, name)?;
        Ok(self.births.add(name, Coming { created_at, uri: uri.map(ToOwned::to_owned), size_bytes: None }))
    }

    /// # Errors
    /// [`ErrorKind::Exists`] if a volume has the name, or one that is being made; [`ErrorKind::InvalidInput`].
    pub fn name_is_free(&self, catalog: &Catalog, name: &str) -> Result<()> {
        catalog.name_is_free(name)?;
        match self.births.contains(name) {
            true => Err(Error::new(ErrorKind::Exists, format!("a volume '{name}' is on its way already: choose another name"))),
            false => Ok(()),
        }
    }

    /// As [`Catalog::volume_id`]. For a volume that is still being created, the error says so.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn volume_id(&self, catalog: &Catalog, name: &str) -> Result<VolumeId> {
        catalog.volume_id(name).map_err(|error| match self.births.contains(name) {
            true => {
                let message = format!("volume '{name}' is still being made: wait until it is made");
                Error::remediable(ErrorKind::NotFound, message, Remedy::AwaitVolume(name.to_owned()))
            }
            false => error,
        })
    }
}

/// The error for a volume that was destroyed while a handle of it was open.
pub fn destroyed(id: VolumeId) -> Error {
    Error::new(ErrorKind::NotFound, format!("volume {id} was destroyed"))
}
