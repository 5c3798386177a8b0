//! Snapshots that somebody has open.
//!
//! # Invariants
//! - A snapshot that is open is not destroyed: the call is refused with [`ErrorKind::Busy`] and says how many readers there are.
//!   So whatever a [`super::Snapshot`], a queue on it or a client of an export can see keeps its name, and neither reclaim nor a
//!   destroyed volume takes its blocks away.
//! - Pins are in memory only. A process that ends, however, takes its readers along.
//! - Opening and destroying both look with the catalogue locked, so one of them comes first.

use std::sync::Arc;

use super::core::Core;
use crate::catalog::Catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::format::is_instant;
use crate::ids::VolumeId;
use crate::limits::Planted;

/// Keeps a snapshot from being destroyed.
pub struct Pin {
    core: Arc<Core>,
    key: (VolumeId, String),
}

impl Core {
    /// Pins a snapshot that exists; the catalogue is locked.
    pub(super) fn pin(self: &Arc<Self>, _: &Catalog, volume: VolumeId, snapshot: &str) -> Pin {
        let key = (volume, snapshot.to_owned());
        *self.pins.lock().entry(key.clone()).or_default() += 1;
        Pin { core: Arc::clone(self), key }
    }

    /// Waits until the record of a snapshot is durable, if it is not: other hosts must not know of it before.
    ///
    /// # Errors
    /// The round found no space, descriptors or memory; or it failed, and the store refuses writes.
    pub(super) fn await_arrival(&self, volume: VolumeId, snapshot: &str) -> Result<()> {
        let arrives = self.arriving.lock().get(&(volume, snapshot.to_owned())).copied();
        arrives.map_or(Ok(()), |ticket| self.layers.barriers.wait(ticket))
    }

    fn readers(&self, volume: VolumeId, snapshot: &str) -> usize {
        self.pins.lock().get(&(volume, snapshot.to_owned())).copied().unwrap_or(0)
    }

    /// Whether somebody has a snapshot open.
    pub(super) fn is_pinned(&self, volume: VolumeId, snapshot: &str) -> bool {
        self.readers(volume, snapshot) > 0
    }

    /// # Errors
    /// [`ErrorKind::Busy`] while somebody has the snapshot open.
    pub(super) fn check_unpinned(&self, catalog: &Catalog, volume: VolumeId, snapshot: &str) -> Result<()> {
        let readers = self.readers(volume, snapshot);
        if readers == 0 || self.layers.limits().has(Planted::UnpinnedSnapshot) {
            return Ok(());
        }
        let name = catalog.volume(volume).map_or("", |entry| &entry.name);
        let readers = if readers == 1 { "1 reader".to_owned() } else { format!("{readers} readers") };
        Err(Error::new(
            ErrorKind::Busy,
            format!(
                "snapshot '{name}@{snapshot}' is open for {readers}: disconnect its clients ('volfork disconnect {name}@{snapshot}') and \
                 close its handles first"
            ),
        ))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.core.pins.lock();
        if let Some(readers) = pins.get_mut(&self.key) {
            *readers -= 1;
            if *readers == 0 {
                pins.remove(&self.key);
                if is_instant(&self.key.1) {
                    self.core.leases.note_unneeded();
                }
            }
        }
    }
}
