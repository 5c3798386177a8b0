//! Blocks that no writer has: reading them again, repairing them, and merging patches into them.

use std::sync::Arc;

use super::admission::Admission;
use super::admitted::{Admitted, Latched};
use super::blocks::{BlockRead, Blocks, unwritable};
use super::checksums::block_checksum;
use super::layer::Layer;
use crate::error::{Error, ErrorKind, Result};
use crate::io::AlignedBuffer;
use crate::place::{Block, BlockBits};

/// How a merge ended.
pub enum Merged {
    /// The block is whole in the layer, with these bytes.
    Stored,
    /// These are its bytes, but there is no space to keep them; the patch stays.
    Unstored(Error),
    /// The block is not patched any more.
    Superseded,
}

/// Access to single blocks behind their latch.
pub struct Settled {
    pub(super) admission: Arc<Admission>,
    pub(super) blocks: Arc<Blocks>,
}

impl Settled {
    /// Reads one block while no writer, fill or punch has it. `Ok(None)`: the layer does not hold the block any more.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] with the place, or an I/O error.
    pub fn read(&self, layer: &Layer, block: Block, buffer: &mut [u8]) -> Result<Option<()>> {
        let latched = Latched::wait(&self.admission, layer, block.extent(), BlockBits::of_one(block.index()))?;
        let held = layer.holds(block);
        let result = if held { self.blocks.read(layer, block, buffer) } else { Ok(BlockRead::Verified) };
        drop(latched);
        match result? {
            BlockRead::Verified => Ok(held.then_some(())),
            BlockRead::Mismatch(_) => Err(self.blocks.corruption(layer, block, "its bytes do not match their checksum")),
        }
    }

    /// Verifies blocks of an extent from `first` on. A block that does not match is read again behind its latch: a writer may have had it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] with the place of the first damaged block, or an I/O error.
    pub fn scrub(&self, layer: &Layer, first: Block, buffer: &mut [u8]) -> Result<()> {
        match self.blocks.read(layer, first, buffer)? {
            BlockRead::Verified => Ok(()),
            BlockRead::Mismatch(block) => {
                let mut one = AlignedBuffer::zeroed(self.blocks.block_size().len());
                self.read(layer, block, &mut one).map(drop)
            }
        }
    }

    /// Writes a block of a sealed layer again, if `bytes` are what its checksum says.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] if they are not, an I/O error.
    pub fn repair(&self, layer: &Layer, block: Block, bytes: &[u8]) -> Result<()> {
        let _latched = Latched::wait(&self.admission, layer, block.extent(), BlockBits::of_one(block.index()))?;
        if self.blocks.page(layer, block.extent())?.get(block.index()) != block_checksum(layer.id, block, bytes) {
            return Err(Error::new(ErrorKind::Corrupt, "what it could be repaired from does not match its checksum either"));
        }
        let file = self.blocks.data_file_to_write(layer, block)?;
        self.blocks.put(&*file, self.blocks.place(block).1, bytes).map_err(|error| unwritable(layer, block, error))?;
        // The sync covers all other writers of the file as well, and they would never hear of its failure.
        let synced = file.sync_data().map_err(|error| Error::sync(format!("cannot sync layer {} at block {block}", layer.id), error));
        synced.inspect_err(|error| self.admission.commit.poison(error.clone()))
    }

    /// Puts the patch of a block over `buffer`, which holds the block below, and stores the whole block in the layer.
    ///
    /// # Errors
    /// An I/O error; the store refuses writes.
    pub fn merge(&self, layer: &Layer, block: Block, buffer: &mut [u8]) -> Result<Merged> {
        let admitted = Admitted::wait(&*self.admission, layer, block.extent(), BlockBits::of_one(block.index()));
        // Behind the latch nothing supersedes the patch, and nothing is added to it.
        let patched = layer.state.lock().patch(block).map(|patch| patch.overlay(buffer)).is_some();
        if !patched {
            return Ok(Merged::Superseded);
        }
        match admitted.and_then(|admitted| admitted.write(buffer)) {
            Ok(()) => Ok(Merged::Stored),
            Err(error) if matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Poisoned) => Ok(Merged::Unstored(error)),
            Err(error) => Err(error),
        }
    }
}
