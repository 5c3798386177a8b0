//! Names and labels of volumes that are there.

use std::sync::Arc;

use super::core::{Core, gone};
use super::head::Head;
use crate::error::Result;
use crate::format::{Labels, ShapeRecord, valid_labels, valid_name};

impl Core {
    /// Gives a volume another name.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`], [`crate::ErrorKind::Exists`], [`crate::ErrorKind::InvalidInput`].
    pub fn rename(&self, name: &str, new: &str) -> Result<()> {
        valid_name(new)?;
        let _room = self.layers.barriers.reserve_shape()?;
        let ticket = {
            let mut catalog = self.catalog();
            let volume = self.volume_id(&catalog, name)?;
            self.name_is_free(&catalog, new)?;
            self.change(&mut catalog, None, vec![ShapeRecord::Rename { volume, name: new.to_owned() }])?
        };
        self.layers.barriers.wait_shape(ticket)
    }

    /// Gives an open volume, whatever it is called by now, a name and labels in one frame. The caller has announced the name
    /// ([`Core::announce`]), so no other volume gets it first.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`], [`crate::ErrorKind::Exists`], [`crate::ErrorKind::InvalidInput`].
    pub fn name_head(self: &Arc<Self>, head: &Head, name: &str, labels: Labels) -> Result<()> {
        valid_name(name)?;
        valid_labels(&labels)?;
        let _room = self.layers.barriers.reserve_shape()?;
        let ticket = {
            let mut catalog = self.catalog();
            catalog.volume(head.id).ok_or_else(|| gone(head.id))?;
            catalog.name_is_free(name)?;
            let records = vec![ShapeRecord::Rename { volume: head.id, name: name.to_owned() }, ShapeRecord::Labels(head.id, labels)];
            self.change(&mut catalog, None, records)?
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
            let mut catalog = self.catalog();
            let volume = self.volume_id(&catalog, name)?;
            self.change(&mut catalog, None, vec![ShapeRecord::Labels(volume, labels)])?
        };
        self.layers.barriers.wait_shape(ticket)
    }
}
