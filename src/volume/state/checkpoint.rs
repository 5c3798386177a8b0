//! Checkpoints: the state of a store, written anew.

use super::shape::Shape;
use crate::error::Result;
use crate::format::Features;

impl Shape {
    /// Writes the state anew. Nothing waits for it but other checkpoints.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NoSpace`] leaves everything as it was.
    pub fn checkpoint(&self) -> Result<()> {
        self.layers.checkpoints.write(&self.catalog, None, None)
    }

    /// Lets the superblock say that the store may have records of these features, before the first one: older programs refuse the store
    /// then.
    ///
    /// # Errors
    /// Those of a checkpoint.
    pub fn begin(&self, features: Features) -> Result<()> {
        if self.layers.takes(features) {
            return Ok(());
        }
        self.layers.checkpoints.write(&self.catalog, None, Some(features))
    }

    /// Writes the last state, and refuses writes from then on; as [`crate::layer::Layers::shut_down`].
    ///
    /// # Errors
    /// As there.
    pub fn shut_down(&self, swept: bool) -> Result<()> {
        self.layers.shut_down(&self.catalog, swept)
    }
}
