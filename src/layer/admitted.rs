//! Blocks that a writer was admitted to, or that are latched, as guards.
//!
//! # Invariants
//! - A guard that is dropped, also by a panic, gives its blocks back: untouched ones as they were, those that bytes may have reached as
//!   [`Admission::abandon`] says. So no writer keeps a fork, a round or another writer waiting for ever.

use std::ops::Deref;
use std::sync::Arc;

use super::admission::{Admission, Wait};
use super::blocks::unwritable;
use super::checksums::ChecksumPage;
use super::layer::Layer;
use super::patches::PatchRoom;
use crate::error::{Error, Result};
use crate::format::PatchRecord;
use crate::io::DiskFile;
use crate::place::{BlockBits, Extent, IndexSpan, Segment};

/// Blocks of an extent that no other writer, fill or punch touches while this lives.
#[must_use]
pub struct Admitted<S: Deref<Target = Admission>, L: Deref<Target = Layer>> {
    admission: S,
    layer: L,
    extent: Extent,
    bits: BlockBits,
    touched: bool,
}

impl<S: Deref<Target = Admission>, L: Deref<Target = Layer>> Admitted<S, L> {
    /// Waits for blocks, to write them whole.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NoSpace`] when the journal has no room for new blocks; [`crate::ErrorKind::Poisoned`] after a failed sync;
    /// [`crate::ErrorKind::NotFound`]: the layer was freed.
    pub fn wait(admission: S, layer: L, extent: Extent, bits: BlockBits) -> Result<Self> {
        admission.admit_wait(&layer, extent, &bits)?;
        Ok(Self { admission, layer, extent, bits, touched: false })
    }

    /// Takes blocks that can be had at once.
    ///
    /// # Errors
    /// As [`Admitted::wait`].
    pub fn now(
        admission: S,
        layer: L,
        extent: Extent,
        bits: BlockBits,
        page: &Arc<ChecksumPage>,
    ) -> Result<std::result::Result<Self, Wait>> {
        Ok(match admission.admit(&layer, extent, &bits, page)? {
            None => Ok(Self { admission, layer, extent, bits, touched: false }),
            Some(wait) => Err(wait),
        })
    }

    /// Whether some of the blocks are present, and whether some are not. This does not change while the guard lives.
    pub fn overwrites_and_adds(&self) -> (bool, bool) {
        let present = self.layer.extent(self.extent).0.and(&self.bits);
        (!present.is_empty(), present != self.bits)
    }

    /// How many blocks it holds.
    pub fn block_count(&self) -> usize {
        self.bits.count() as usize
    }

    /// From now on bytes may reach the file.
    pub fn touch(&mut self) {
        self.touched = true;
    }

    /// Ends a write whose bytes are in the file: the blocks become present with these checksums, which are in block order.
    pub fn finish(mut self, checksums: &[u32], file: (Segment, &Arc<dyn DiskFile>)) {
        self.admission.finish(&self.layer, self.extent, &self.bits, checksums, file);
        self.bits = BlockBits::EMPTY;
    }

    /// Ends a write that has failed: gives the latch and the journal space back.
    pub fn fail(mut self, error: &Error) {
        if self.touched {
            self.admission.fail(&self.layer, self.extent, &self.bits, error);
            self.bits = BlockBits::EMPTY;
        }
    }

    /// Writes the blocks, which are consecutive, and makes `data` their content; gives them back if that fails.
    ///
    /// # Errors
    /// An I/O error, no space.
    pub fn write(mut self, data: &[u8]) -> Result<()> {
        let Some(run) = self.bits.spans().next() else { return Ok(()) };
        let first = self.extent.part(run).first();
        // Nothing is written before the file is open and the space is taken: an error up to then changes nothing.
        self.allocate_mixed()?;
        let file = self.admission.blocks.data_file_to_write(&self.layer, first)?;
        let checksums = self.admission.blocks.checksums_of(&self.layer, first, data);
        let (segment, offset) = self.admission.blocks.place(first);
        self.touch();
        let written = self.admission.blocks.put(&*file, offset, data);
        match written {
            Ok(()) => {
                self.finish(&checksums, (segment, &file));
                Ok(())
            }
            Err(error) => {
                let error = unwritable(&self.layer, first, error);
                self.fail(&error);
                Err(error)
            }
        }
    }

    /// Takes the space of new blocks before a write that also overwrites others: such a write must not fail for lack of space after it has
    /// overwritten the first ones.
    fn allocate_mixed(&self) -> Result<()> {
        let new = self.bits.minus(&self.layer.extent(self.extent).0);
        let is_mixed = !new.is_empty() && new != self.bits;
        if is_mixed { self.admission.take_space(&self.layer, self.extent, &new) } else { Ok(()) }
    }

    /// Adds `bytes` to the patch of the single block, at `offset` within the block. The layer must not hold the block. The patch is durable
    /// with the next round.
    pub fn patch(self, offset: u32, bytes: &[u8], room: PatchRoom<'_>) {
        let Some(index) = self.bits.indices().next() else { return };
        let record = PatchRecord { layer: self.layer.id, block: self.extent.block(index), offset, bytes: bytes.to_vec() };
        self.admission.patches.put(&self.layer, record, room);
    }
}

impl Admitted<&Admission, &Layer> {
    /// The same blocks, for a write that outlives its caller.
    pub fn keep(mut self, admission: Arc<Admission>, layer: Arc<Layer>) -> Admitted<Arc<Admission>, Arc<Layer>> {
        let bits = std::mem::replace(&mut self.bits, BlockBits::EMPTY);
        Admitted { admission, layer, extent: self.extent, bits, touched: self.touched }
    }

    /// Splits off a part of the blocks.
    pub fn split(&mut self, indices: IndexSpan) -> Self {
        let bits = self.bits.and(&BlockBits::of(indices));
        self.bits = self.bits.minus(&bits);
        Self { admission: self.admission, layer: self.layer, extent: self.extent, bits, touched: false }
    }
}

impl<S: Deref<Target = Admission>, L: Deref<Target = Layer>> Drop for Admitted<S, L> {
    fn drop(&mut self) {
        match (self.bits.is_empty(), self.touched) {
            (true, _) => {}
            (false, false) => self.admission.withdraw(&self.layer, self.extent, &self.bits),
            (false, true) => self.admission.abandon(&self.layer, self.extent, &self.bits),
        }
    }
}

/// Blocks that are kept from writers, fills and punches without being written, until this is dropped.
#[must_use]
pub struct Latched<'a> {
    layer: &'a Layer,
    extent: Extent,
    bits: BlockBits,
}

impl<'a> Latched<'a> {
    /// Waits for blocks.
    ///
    /// # Errors
    /// The checksums of the extent cannot be read.
    pub(super) fn wait(admission: &Admission, layer: &'a Layer, extent: Extent, bits: BlockBits) -> Result<Self> {
        let page = admission.blocks.page(layer, extent)?;
        while !Admission::latch(layer, extent, &bits, &page) {
            admission.wait_for(layer, Wait::Latch)?;
        }
        Ok(Self { layer, extent, bits })
    }
}

impl Drop for Latched<'_> {
    fn drop(&mut self) {
        Admission::unlatch(self.layer, &mut self.layer.state.lock(), self.extent, &self.bits);
    }
}
