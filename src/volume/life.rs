//! Calls of a handle about its own volume, whatever the volume is called by now.

use std::time::Duration;

use super::handle::Volume;
use super::report::{SnapshotInfo, VolumeInfo};
use crate::error::Result;

impl Volume {
    /// Identity among the volumes of all stores, as in [`VolumeInfo::id`]. It survives a rename and is never used twice. Every call of
    /// the store that takes the name of a volume takes it too.
    ///
    /// ```
    /// # fn main() -> volfork::Result<()> {
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
    /// let volume = store.create_volume("old", 1 << 20)?;
    /// store.rename("old", "new")?;
    /// assert_eq!(store.volume(&volume.id())?.name(), "new");
    /// # Ok(())
    /// # }
    /// ```
    pub fn id(&self) -> String {
        self.0.shape.catalog().key(self.0.id).to_string()
    }

    /// Everything about the volume.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] if it was destroyed.
    pub fn info(&self) -> Result<VolumeInfo> {
        let _pass = self.0.pool.fence.enter()?;
        self.0.alive(|| self.1.report.volume(&self.id()))
    }

    /// Its snapshots, oldest first.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] if it was destroyed.
    pub fn snapshots(&self) -> Result<Vec<SnapshotInfo>> {
        let _pass = self.0.pool.fence.enter()?;
        self.0.alive(|| self.1.report.snapshots(&self.id()))
    }

    /// Destroys the volume, and with `recursive` its snapshots; as [`crate::Store::destroy_volume`]. Other handles of it answer
    /// [`crate::ErrorKind::NotFound`] from then on.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Busy`] while it is in use; [`crate::ErrorKind::NotFound`] if it was destroyed before.
    pub fn destroy(&self, recursive: bool) -> Result<()> {
        let _pass = self.0.pool.fence.enter()?;
        self.1.volumes.destroy_head(&self.0, recursive)
    }

    /// Waits until the volume does not need its source any more; `Ok(false)` at the timeout.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] if it was destroyed; [`crate::ErrorKind::Unsupported`] if it needs its source, and the store was
    /// opened without [`crate::StoreOptions::sources`].
    pub fn wait_hydrated(&self, timeout: Duration) -> Result<bool> {
        self.1.remote.wait_hydrated(&self.id(), timeout)
    }
}
