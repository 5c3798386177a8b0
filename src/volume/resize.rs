//! Changing the size of a volume.
//!
//! # Crash ordering
//! 1. A shrink is one record, and the record is the cut: the volume has the new size, and its open layer zeros in every whole block
//!    behind it. In memory both happen behind the closed gate with the catalogue locked, so a fork or snapshot has either the old
//!    size and the old bytes or the new size and the zeros; at recovery the record brings both or, if it does not count, neither.
//! 2. The bytes behind the end of the last block stay what they were: no call shows them. Before a volume grows they are zeroed, and
//!    that is durable before the record of the new size is made. So it does not matter which of its ancestors was shrunk, nor by
//!    which program.

use std::ops::Range;
use std::sync::Arc;

use super::core::{Core, gone};
use super::head::Head;
use super::shape::check_size;
use super::view::Answer;
use crate::catalog::Catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::format::ShapeRecord;
use crate::layer::{Reserved, Ticket};
use crate::limits::{EXTENT_BLOCKS, Planted};
use crate::place::BlockSpan;

impl Core {
    /// Gives a volume another size.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when it would lose bytes and `force` is not set; [`ErrorKind::NoSpace`].
    pub fn resize(self: &Arc<Self>, name: &str, size_bytes: u64, force: bool) -> Result<()> {
        check_size(size_bytes)?;
        let head = self.enter().and_then(|_pass| self.head(name))?;
        self.resize_head(&head, |_| Ok(size_bytes), force)
    }

    /// Gives a volume the size that `size_of` makes of the one that it has, which nobody else changes meanwhile.
    ///
    /// # Errors
    /// Those of `size_of`; as [`Core::resize`].
    pub fn resize_with(self: &Arc<Self>, name: &str, size_of: impl FnOnce(u64) -> Result<u64>) -> Result<()> {
        let head = self.enter().and_then(|_pass| self.head(name))?;
        self.resize_head(&head, size_of, false)
    }

    /// As [`Core::resize`], of a volume that is open, whatever it is called by now. The caller has no pass.
    ///
    /// # Errors
    /// As there.
    pub fn resize_head(&self, head: &Head, size_of: impl FnOnce(u64) -> Result<u64>, force: bool) -> Result<()> {
        // No pass is held: `size_of` may ask other hosts, and a store that is being closed waits neither for that nor for those behind.
        let _one_at_a_time = head.resizing.lock();
        let old = self.enter().and_then(|_pass| head.check_alive().map(|()| head.view.read().size_bytes))?;
        let size_bytes = size_of(old)?;
        check_size(size_bytes)?;
        let _pass = self.enter()?;
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
        // What gives back space lives on the reserve. Nobody else changes the size, so the cut stays what it is.
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
            let mut catalog = self.catalog();
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
            let ticket = head.zero_blocks(cut.start, cut.end, Some((record.clone(), room)))?.ok_or_else(|| gone(head.id))?;
            catalog.apply(&record).map_err(|error| Error::new(ErrorKind::Corrupt, format!("the catalogue: {error}")))?;
            ticket
        } else {
            self.change(catalog, None, vec![record])?
        };
        head.view.write().size_bytes = size_bytes;
        Ok(ticket)
    }

    /// Whole blocks that a volume loses when its size changes.
    fn blocks_cut(&self, old: u64, size_bytes: u64) -> Range<u64> {
        self.block_size.blocks_for(size_bytes)..self.block_size.blocks_for(old)
    }
}

impl Head {
    /// Zeroes, durably, what the last block of the volume has behind the end. Nobody else writes there, and nobody else changes the
    /// size meanwhile.
    fn zero_behind(&self, size_bytes: u64) -> Result<()> {
        let block_size = self.core.block_size;
        let block = block_size.block_of(size_bytes);
        let end = block_size.offset_of(block_size.blocks_for(size_bytes));
        if end == size_bytes {
            return Ok(());
        }
        let (extent, within) = ((block / u64::from(EXTENT_BLOCKS)) as u32, (block % u64::from(EXTENT_BLOCKS)) as u32);
        if let Some((_, Answer::Zero)) = self.core.answers(&self.view.read(), extent, within..within + 1)?.pop() {
            return Ok(());
        }
        self.write_checked(&vec![0; (end - size_bytes) as usize], size_bytes, false, None)?;
        // If the head was sealed since the write, the round that has its end made the write durable, and comes before this one.
        let layer = self.view.read().layer.id;
        self.core.layers.barriers.sync([layer])
    }
}
