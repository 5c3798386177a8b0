//! Renaming, labelling, resizing and destroying volumes and snapshots.
//!
//! # Invariants
//! - What is in lasting use is not destroyed: a volume with queues (a front end serves it), a snapshot with readers. The call answers
//!   [`ErrorKind::Busy`] and how many there are. The same holds while forks of other hosts have leases.
//! - A handle of a volume does not keep it: its calls answer [`ErrorKind::NotFound`] from then on. A write that is under way ends
//!   before, because destroying closes the gate; a read that is under way answers `NotFound` as well, because what it found may be what
//!   lies below ([`Head::alive`]).
//!
//! # Crash ordering
//! 1. A shrink is one record, and the record is the cut: the volume has the new size, and its open layer zeros in every whole block
//!    behind it. In memory both happen behind the closed gate with the catalogue locked, so a fork or snapshot has either the old
//!    size and the old bytes or the new size and the zeros; at recovery the record brings both or, if it does not count, neither.
//! 2. The bytes behind the end of the last block stay what they were: no call shows them. Before a volume grows they are zeroed, and
//!    that is durable before the record of the new size is made. So it does not matter which of its ancestors was shrunk, nor by
//!    which program.

use std::ops::Range;
#[cfg(feature = "serve")]
use std::sync::Arc;

use super::create::{Volumes, check_size};
use crate::catalog::{Catalog, VolumeEntry};
use crate::error::{Error, ErrorKind, Remedy, Result};
use crate::format::{Labels, ShapeRecord, VolumeLimits, valid_labels, valid_name};
use crate::ids::VolumeId;
use crate::layer::{Reserved, Ticket};
use crate::limits::Planted;
use crate::place::BlockSpan;
use crate::place::length;
use crate::sync::atomic::Ordering;
use crate::volume::blocks::Answer;
use crate::volume::head::Head;
#[cfg(feature = "serve")]
use crate::volume::limiter::Limiter;
use crate::volume::state::destroyed;

/// # Errors
/// [`ErrorKind::Busy`] if a volume has snapshots and `recursive` is not set.
pub fn check_bare(catalog: &Catalog, volume: VolumeId, recursive: bool) -> Result<&VolumeEntry> {
    let entry = catalog.volume(volume).ok_or_else(|| destroyed(volume))?;
    // Instants come and go with their leases.
    let (name, snapshots) = (&entry.name, entry.snapshots.len() - entry.snapshots.instants());
    match snapshots > 0 && !recursive {
        true => Err(Error::remediable(
            ErrorKind::Busy,
            format!("volume '{name}' has {snapshots} snapshots: destroy them first, or all together with it"),
            Remedy::DestroySnapshots(name.clone()),
        )),
        false => Ok(entry),
    }
}

impl Volumes {
    /// Gives a volume another name.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`], [`crate::ErrorKind::Exists`], [`crate::ErrorKind::InvalidInput`].
    pub fn rename(&self, name: &str, new: &str) -> Result<()> {
        valid_name(new)?;
        let _room = self.layers.barriers.reserve_shape()?;
        let ticket = {
            let mut catalog = self.shape.catalog();
            let volume = self.shape.volume_id(&catalog, name)?;
            self.shape.name_is_free(&catalog, new)?;
            self.shape.change(&mut catalog, None, vec![ShapeRecord::Rename { volume, name: new.to_owned() }])?
        };
        self.layers.barriers.wait_shape(ticket)
    }

    /// Gives an open volume, whatever it is called by now, a name and labels in one frame. The caller has announced the name
    /// ([`crate::volume::state::Shape::announce`]), so no other volume gets it first.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`], [`crate::ErrorKind::Exists`], [`crate::ErrorKind::InvalidInput`].
    pub fn name_head(&self, head: &Head, name: &str, labels: Labels) -> Result<()> {
        valid_name(name)?;
        valid_labels(&labels)?;
        let _room = self.layers.barriers.reserve_shape()?;
        let ticket = {
            let mut catalog = self.shape.catalog();
            catalog.volume(head.id).ok_or_else(|| destroyed(head.id))?;
            catalog.name_is_free(name)?;
            let records = vec![ShapeRecord::Rename { volume: head.id, name: name.to_owned() }, ShapeRecord::Labels(head.id, labels)];
            self.shape.change(&mut catalog, None, records)?
        };
        self.layers.barriers.wait_shape(ticket)
    }

    /// Replaces what users note about a volume.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`]; [`crate::ErrorKind::InvalidInput`] if it is too much.
    pub fn set_labels(&self, name: &str, labels: Labels) -> Result<()> {
        valid_labels(&labels)?;
        let _room = self.layers.barriers.reserve_shape()?;
        let ticket = {
            let mut catalog = self.shape.catalog();
            let volume = self.shape.volume_id(&catalog, name)?;
            self.shape.change(&mut catalog, None, vec![ShapeRecord::Labels(volume, labels)])?
        };
        self.layers.barriers.wait_shape(ticket)
    }

    /// Sets the limits of a volume to what `limits_of` makes of the present ones. It is called without a lock, and again if they were
    /// changed meanwhile.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`]; those of `limits_of`; as [`Volumes::set_limits_of`].
    pub fn set_limits_with(&self, name: &str, mut limits_of: impl FnMut(VolumeLimits) -> Result<VolumeLimits>) -> Result<()> {
        loop {
            let (volume, old) = {
                let catalog = self.shape.catalog();
                let volume = self.shape.volume_id(&catalog, name)?;
                (volume, catalog.volume(volume).ok_or_else(|| destroyed(volume))?.limits)
            };
            let limits = limits_of(old)?;
            if self.try_set_limits(volume, limits, Some(old))? {
                return Ok(());
            }
        }
    }

    /// Sets the limits of a volume.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`]; [`crate::ErrorKind::InvalidInput`] if they cannot be; those of a change of shape.
    pub fn set_limits_of(&self, volume: VolumeId, limits: VolumeLimits) -> Result<()> {
        self.try_set_limits(volume, limits, None).map(drop)
    }

    /// Sets the limits of a volume, unless it has others than `old`. Those of its clients that wait are told under the lock of the
    /// catalogue, so that what they are told last is what the catalogue has.
    fn try_set_limits(&self, volume: VolumeId, limits: VolumeLimits, old: Option<VolumeLimits>) -> Result<bool> {
        self.begin_limits(limits)?;
        let _room = self.layers.barriers.reserve_shape()?;
        let ticket = {
            let mut catalog = self.shape.catalog();
            let present = catalog.volume(volume).ok_or_else(|| destroyed(volume))?.limits;
            match old {
                Some(old) if old != present => return Ok(false),
                // Without a record, older programs go on reading a store that never had limits.
                _ if limits == present => return Ok(true),
                _ => {}
            }
            let ticket = self.shape.change(&mut catalog, None, vec![ShapeRecord::Limits(volume, limits)])?;
            #[cfg(feature = "serve")]
            self.limiters.set(volume, limits);
            ticket
        };
        self.layers.barriers.wait_shape(ticket).map(|()| true)
    }

    /// What keeps the limits of the clients of a volume.
    #[cfg(feature = "serve")]
    pub fn limiter(&self, volume: VolumeId) -> Arc<Limiter> {
        let catalog = self.shape.catalog();
        self.limiters.get(volume, &self.clock, catalog.volume(volume).map(|entry| entry.limits))
    }

    /// Destroys a volume. Handles to it fail from now on.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if it has snapshots and `recursive` is not set, a front end serves it, or one of its snapshots is open or
    /// leased.
    pub fn destroy_volume(&self, name: &str, recursive: bool) -> Result<()> {
        let head = self.open(name)?;
        self.destroy_head(&head, recursive)
    }

    /// As [`Volumes::destroy_volume`], of a volume that is open, whatever it is called by now.
    ///
    /// # Errors
    /// As there.
    pub fn destroy_head(&self, head: &Head, recursive: bool) -> Result<()> {
        self.layers.barriers.prepare_shape()?;
        // A call that is refused does not close the gate for the writers.
        self.check_unused(&self.shape.catalog(), head, recursive)?;
        let ticket = {
            let _closed = head.close();
            let mut catalog = self.shape.catalog();
            self.check_unused(&catalog, head, recursive)?;
            head.set_destroyed();
            self.heads.remove(head.id);
            #[cfg(feature = "serve")]
            self.limiters.remove(head.id);
            head.end_recording();
            self.shape.change(&mut catalog, None, vec![ShapeRecord::DestroyVolume(head.id)])?
        };
        self.layers.barriers.wait_shape(ticket)
    }

    /// Refuses to destroy what is in use.
    fn check_unused(&self, catalog: &Catalog, head: &Head, recursive: bool) -> Result<()> {
        let entry = check_bare(catalog, head.id, recursive)?;
        let name = &entry.name;
        let queues = head.queues.load(Ordering::Acquire);
        if queues > 0 {
            let message = format!("volume '{name}' is in use by {queues} connections: disconnect its clients first");
            return Err(Error::remediable(ErrorKind::Busy, message, Remedy::Disconnect(name.clone())));
        }
        self.leases.check_unleased(catalog, head.id, None)?;
        entry.snapshots.iter().try_for_each(|snapshot| self.check_unpinned(catalog, head.id, &snapshot.name))
    }

    fn check_unpinned(&self, catalog: &Catalog, volume: VolumeId, snapshot: &str) -> Result<()> {
        match self.layers.limits().has(Planted::UnpinnedSnapshot) {
            true => Ok(()),
            false => self.shape.pins.check_unpinned(catalog, volume, snapshot),
        }
    }

    /// Destroys a snapshot.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Busy`] while it is open (a handle, a queue, a client of an export), or a fork of another host
    /// has a lease of it.
    pub fn destroy_snapshot(&self, volume: &str, name: &str) -> Result<()> {
        self.layers.barriers.prepare_shape()?;
        let ticket = {
            let mut catalog = self.shape.catalog();
            let (id, _) = catalog.snapshot(volume, name)?;
            self.leases.check_unleased(&catalog, id, Some(name))?;
            self.check_unpinned(&catalog, id, name)?;
            self.shape.change(&mut catalog, None, vec![ShapeRecord::DestroySnapshot { volume: id, name: name.to_owned() }])?
        };
        self.layers.barriers.wait_shape(ticket)
    }

    /// Gives a volume another size.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when it would lose bytes and `force` is not set; [`ErrorKind::NoSpace`].
    pub fn resize(&self, name: &str, size_bytes: u64, force: bool) -> Result<()> {
        check_size(size_bytes)?;
        let head = self.pool.fence.enter().and_then(|_pass| self.open(name))?;
        self.resize_head(&head, |_| Ok(size_bytes), force)
    }

    /// Resizes a volume to the result of `size_of` for its present size. No other call changes the size meanwhile.
    ///
    /// # Errors
    /// Those of `size_of`; as [`Volumes::resize`].
    pub fn resize_with(&self, name: &str, size_of: impl FnOnce(u64) -> Result<u64>) -> Result<()> {
        let head = self.pool.fence.enter().and_then(|_pass| self.open(name))?;
        self.resize_head(&head, size_of, false)
    }

    /// As [`Volumes::resize`], of a volume that is open, whatever it is called by now. The caller has no pass.
    ///
    /// # Errors
    /// As there.
    pub fn resize_head(&self, head: &Head, size_of: impl FnOnce(u64) -> Result<u64>, force: bool) -> Result<()> {
        // No pass is held: `size_of` may ask other hosts, and a store that is being closed waits neither for that nor for those behind.
        let _one_at_a_time = head.resizing.lock();
        let old = self.pool.fence.enter().and_then(|_pass| head.check_alive().map(|()| head.view.read().size_bytes))?;
        let size_bytes = size_of(old)?;
        check_size(size_bytes)?;
        let _pass = self.pool.fence.enter()?;
        self.layers.barriers.prepare_shape()?;
        head.check_alive()?;
        if size_bytes == old {
            return Ok(());
        }
        if size_bytes < old && !force {
            let (name, lost) = (head.name(), old - size_bytes);
            let message = format!("volume '{name}' has {old} bytes; {size_bytes} would lose the last {lost}: force it if you mean it");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        if size_bytes > old {
            head.zero_behind(old)?;
        }
        let cut = self.blocks_cut(old, size_bytes);
        // A shrink gives back space, so it may use the reserve. No other call changes the size, so the cut stays the same.
        let (room, _shape) = match cut.is_empty() {
            true => (None, Some(self.layers.barriers.reserve_shape()?)),
            false => (Some(self.layers.barriers.claim_cut(BlockSpan::new(cut.start, cut.end))?), None),
        };
        if size_bytes < old && self.layers.limits().has(Planted::ShrinkInTwoSteps) {
            let _closed = head.close();
            head.view.write().size_bytes = size_bytes;
        }
        let ticket = {
            let _closed = head.close();
            let mut catalog = self.shape.catalog();
            head.check_alive()?;
            self.change_size(&mut catalog, head, size_bytes, room.map(|room| (cut, room)))?
        };
        self.layers.barriers.wait_shape(ticket)
    }

    /// The gate is closed. `cut`: the whole blocks that are lost.
    fn change_size(&self, catalog: &mut Catalog, head: &Head, size_bytes: u64, cut: Option<(Range<u64>, Reserved<'_>)>) -> Result<Ticket> {
        let record = ShapeRecord::Resize { volume: head.id, size_bytes };
        let ticket = if let Some((cut, room)) = cut {
            // First what may be refused. Whatever else changes the shape waits for the catalogue, so the order stays the journal's.
            let ticket = head.zero_blocks(cut.start, cut.end, Some((record.clone(), room)))?.ok_or_else(|| destroyed(head.id))?;
            catalog.apply(&record).map_err(|error| Error::new(ErrorKind::Corrupt, format!("the catalogue: {error}")))?;
            ticket
        } else {
            self.shape.change(catalog, None, vec![record])?
        };
        head.view.write().size_bytes = size_bytes;
        Ok(ticket)
    }

    /// Whole blocks that a volume loses when its size changes.
    fn blocks_cut(&self, old: u64, size_bytes: u64) -> Range<u64> {
        self.blocks.block_size.blocks_for(size_bytes)..self.blocks.block_size.blocks_for(old)
    }
}

impl Head {
    /// Zeroes, durably, what the last block of the volume has behind the end. Nobody else writes there, and nobody else changes the
    /// size meanwhile.
    fn zero_behind(&self, size_bytes: u64) -> Result<()> {
        let block_size = self.blocks.block_size;
        let block = block_size.block_at(size_bytes);
        let end = block_size.offset_of(block_size.blocks_for(size_bytes));
        if end == size_bytes {
            return Ok(());
        }
        if let Some((_, Answer::Zero)) = self.blocks.answers(&self.view.read(), block.in_extent())?.pop() {
            return Ok(());
        }
        self.write_checked(&vec![0; length(end - size_bytes)], size_bytes, false, None)?;
        // If the head was sealed since the write, the round that has its end made the write durable, and comes before this one.
        let layer = self.view.read().layer.id;
        self.blocks.layers.barriers.sync([layer])
    }
}
