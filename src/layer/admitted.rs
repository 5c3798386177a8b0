//! Blocks that a writer was admitted to, as a guard.
//!
//! # Invariants
//! - A writer that goes away, also by a panic, gives its blocks back: untouched ones as they were, those that bytes may have reached as
//!   [`Layers::abandon_write`] says. So no writer keeps a fork, a round or another writer waiting for ever.

use std::ops::{Deref, Range};
use std::sync::Arc;

use super::admit::{Admission, Wait};
use super::checksums::ChecksumPage;
use super::set::Layers;
use super::state::Layer;
use crate::error::{Error, Result};
use crate::io::DiskFile;
use crate::place::BlockBits;

/// Blocks of an extent that nobody else writes, fills or punches while this lives.
#[must_use]
pub struct Admitted<S: Deref<Target = Layers>, L: Deref<Target = Layer>> {
    layers: S,
    layer: L,
    extent: u32,
    bits: BlockBits,
    touched: bool,
}

impl<S: Deref<Target = Layers>, L: Deref<Target = Layer>> Admitted<S, L> {
    /// Blocks that [`Layers::admit`] has granted.
    pub fn of(layers: S, layer: L, extent: u32, bits: BlockBits) -> Self {
        Self { layers, layer, extent, bits, touched: false }
    }

    /// Waits for blocks, to write them whole.
    ///
    /// # Errors
    /// As [`Layers::admit`].
    pub fn wait(layers: S, layer: L, extent: u32, bits: BlockBits) -> Result<Self> {
        layers.admit_wait(&layer, extent, &bits)?;
        Ok(Self::of(layers, layer, extent, bits))
    }

    /// Takes blocks that can be had at once.
    ///
    /// # Errors
    /// As [`Layers::admit`].
    pub fn now(layers: S, layer: L, extent: u32, bits: BlockBits, page: &Arc<ChecksumPage>) -> Result<std::result::Result<Self, Wait>> {
        Ok(match layers.admit(&layer, extent, &bits, page)? {
            Admission::Granted => Ok(Self::of(layers, layer, extent, bits)),
            Admission::Wait(wait) => Err(wait),
        })
    }

    /// Whether some of the blocks are there, and whether some are not. Nobody changes that.
    pub fn overwrites_and_adds(&self) -> (bool, bool) {
        let present = self.layer.extent(self.extent).0.and(&self.bits);
        (!present.is_empty(), present != self.bits)
    }

    /// From now on bytes may reach the file.
    pub fn touch(&mut self) {
        self.touched = true;
    }

    /// The bytes are in the file: makes them the blocks' content. `checksums` are those of the blocks, in order.
    pub fn finish(mut self, checksums: &[u32], file: (u32, &Arc<dyn DiskFile>)) {
        self.layers.finish_write(&self.layer, self.extent, &self.bits, checksums, file);
        self.bits = BlockBits::EMPTY;
    }

    /// The write failed.
    pub fn fail(mut self, error: &Error) {
        if self.touched {
            self.layers.abort_write(&self.layer, self.extent, &self.bits, error);
            self.bits = BlockBits::EMPTY;
        }
    }

    /// Leaves the blocks to a call that ends the admission itself.
    pub fn release(mut self) {
        self.bits = BlockBits::EMPTY;
    }
}

impl Admitted<&Layers, &Layer> {
    /// The same blocks, for a write that outlives its caller.
    pub fn keep(mut self, layers: Arc<Layers>, layer: Arc<Layer>) -> Admitted<Arc<Layers>, Arc<Layer>> {
        let bits = std::mem::replace(&mut self.bits, BlockBits::EMPTY);
        Admitted { layers, layer, extent: self.extent, bits, touched: self.touched }
    }

    /// Takes a part of the blocks for itself.
    pub fn split(&mut self, range: Range<u32>) -> Self {
        let bits = self.bits.and(&BlockBits::of(range));
        self.bits = self.bits.minus(&bits);
        Self { layers: self.layers, layer: self.layer, extent: self.extent, bits, touched: false }
    }
}

impl<S: Deref<Target = Layers>, L: Deref<Target = Layer>> Drop for Admitted<S, L> {
    fn drop(&mut self) {
        match (self.bits.is_empty(), self.touched) {
            (true, _) => {}
            (false, false) => self.layers.withdraw_write(&self.layer, self.extent, &self.bits),
            (false, true) => self.layers.abandon_write(&self.layer, self.extent, &self.bits),
        }
    }
}

/// Blocks that somebody holds without meaning to write them, until this is dropped.
#[must_use]
pub struct Latched<'a> {
    layers: &'a Layers,
    layer: &'a Layer,
    extent: u32,
    bits: BlockBits,
}

impl<'a> Latched<'a> {
    pub(super) fn of(layers: &'a Layers, layer: &'a Layer, extent: u32, bits: BlockBits) -> Self {
        Self { layers, layer, extent, bits }
    }
}

impl Drop for Latched<'_> {
    fn drop(&mut self) {
        self.layers.release(self.layer, self.extent, &self.bits);
    }
}
