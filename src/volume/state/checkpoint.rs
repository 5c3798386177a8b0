//! Checkpoints: the state of a store, written anew.

use super::shape::Shape;
use crate::error::Result;

impl Shape {
    /// Writes the state anew; changes of shape wait meanwhile.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NoSpace`] leaves everything as it was.
    pub fn checkpoint(&self) -> Result<()> {
        let catalog = self.catalog();
        self.layers.checkpoints.write(catalog.records(), None, false)
    }

    /// Lets the superblock say that the store may have leases, before the first record of one: older programs refuse the store then.
    ///
    /// # Errors
    /// Those of a checkpoint.
    pub fn begin_leases(&self) -> Result<()> {
        if self.layers.takes_leases() {
            return Ok(());
        }
        let catalog = self.catalog();
        self.layers.checkpoints.write(catalog.records(), None, true)
    }

    /// Writes the last state, and refuses writes from then on; as [`crate::layer::Layers::shut_down`].
    ///
    /// # Errors
    /// As there.
    pub fn shut_down(&self, swept: bool) -> Result<()> {
        let catalog = self.catalog();
        self.layers.shut_down(catalog.records(), swept)
    }
}
