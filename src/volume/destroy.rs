//! Destroying volumes and snapshots.
//!
//! # Invariants
//! - What somebody has open for good is not destroyed: a volume with queues (a front end serves it), a snapshot with readers. The
//!   call answers [`ErrorKind::Busy`] and how many there are. So it does while forks of other hosts have leases (`leases`).
//! - A handle of a volume does not keep it: its calls answer [`ErrorKind::NotFound`] from then on. A write that is under way ends
//!   before, for destroying closes the gate; a read that is under way answers `NotFound` as well, since what it found may be what
//!   lies below ([`Head::alive`]).

use std::sync::Arc;

use super::core::{Core, gone};
use super::head::Head;
use crate::catalog::{Catalog, VolumeEntry};
use crate::error::{Error, ErrorKind, Result};
use crate::format::ShapeRecord;
use crate::ids::VolumeId;
use crate::sync::atomic::Ordering;

/// # Errors
/// [`ErrorKind::Busy`] if a volume has snapshots and `recursive` is not set.
pub(super) fn check_bare(catalog: &Catalog, volume: VolumeId, recursive: bool) -> Result<&VolumeEntry> {
    let entry = catalog.volume(volume).ok_or_else(|| gone(volume))?;
    // Those that were taken for leases come and go with these.
    let (name, snapshots) = (&entry.name, entry.snapshots.len() - entry.snapshots.instants());
    match snapshots > 0 && !recursive {
        true => Err(Error::new(
            ErrorKind::Busy,
            format!(
                "volume '{name}' has {snapshots} snapshots: destroy them first ('volfork destroy {name}@SNAP'), or all with --recursive"
            ),
        )),
        false => Ok(entry),
    }
}

impl Core {
    /// Destroys a volume. Handles to it fail from now on.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if it has snapshots and `recursive` is not set, a front end serves it, or one of its snapshots is open or
    /// leased.
    pub fn destroy_volume(self: &Arc<Self>, name: &str, recursive: bool) -> Result<()> {
        let head = self.head(name)?;
        self.destroy_head(&head, recursive)
    }

    /// As [`Core::destroy_volume`], of a volume that is open, whatever it is called by now.
    ///
    /// # Errors
    /// As there.
    pub fn destroy_head(&self, head: &Head, recursive: bool) -> Result<()> {
        self.layers.barriers.prepare_shape()?;
        // Whoever is refused does not disturb the writers.
        self.check_unused(&self.catalog(), head, recursive)?;
        let ticket = {
            let _closed = head.close();
            let mut catalog = self.catalog();
            self.check_unused(&catalog, head, recursive)?;
            head.set_destroyed();
            self.disown(head);
            self.change(&mut catalog, None, vec![ShapeRecord::DestroyVolume(head.id)])?
        };
        self.layers.barriers.wait_shape(ticket)
    }

    /// Refuses to destroy what is in use.
    fn check_unused(&self, catalog: &Catalog, head: &Head, recursive: bool) -> Result<()> {
        let entry = check_bare(catalog, head.id, recursive)?;
        let name = &entry.name;
        let queues = head.queues.load(Ordering::Acquire);
        if queues > 0 {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("volume '{name}' is in use by {queues} connections: disconnect its clients first ('volfork disconnect {name}')"),
            ));
        }
        self.check_unleased(catalog, head.id, None)?;
        entry.snapshots.iter().try_for_each(|snapshot| self.check_unpinned(catalog, head.id, &snapshot.name))
    }

    /// Destroys a snapshot.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Busy`] while somebody has it open, or a fork of another host has a lease of it.
    pub fn destroy_snapshot(&self, volume: &str, name: &str) -> Result<()> {
        self.layers.barriers.prepare_shape()?;
        let ticket = {
            let mut catalog = self.catalog();
            let (id, _) = catalog.snapshot(volume, name)?;
            self.check_unleased(&catalog, id, Some(name))?;
            self.check_unpinned(&catalog, id, name)?;
            self.change(&mut catalog, None, vec![ShapeRecord::DestroySnapshot { volume: id, name: name.to_owned() }])?
        };
        self.layers.barriers.wait_shape(ticket)
    }
}
