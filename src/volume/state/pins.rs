//! Snapshots that are open.
//!
//! # Invariants
//! - A snapshot that is open is not destroyed: [`Pins::check_unpinned`] refuses it. So what a [`crate::Snapshot`], a queue on it or a
//!   client of an export can see keeps its name, and neither reclaim nor a destroyed volume takes its blocks away.
//! - Pins are in memory only. The readers end with the process.
//! - Opening and destroying both look with the catalogue locked, so one of them comes first.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::catalog::Catalog;
use crate::error::{Error, ErrorKind, Remedy, Result};
use crate::format::is_instant;
use crate::ids::VolumeId;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, Rank};

/// Readers of each snapshot that is open. Locked after the catalogue.
pub struct Pins {
    readers: Mutex<BTreeMap<(VolumeId, String), usize>>,
    /// An instant lost its last reader since [`Pins::take_unread_instant`].
    unread_instant: AtomicBool,
}

impl Default for Pins {
    fn default() -> Self {
        Self { readers: Mutex::ranked(Rank::Pins, BTreeMap::new()), unread_instant: AtomicBool::new(false) }
    }
}

/// Keeps a snapshot from being destroyed.
pub struct Pin {
    pins: Arc<Pins>,
    key: (VolumeId, String),
}

impl Pins {
    /// Pins a snapshot that exists; the catalogue is locked.
    pub fn pin(self: &Arc<Self>, _: &Catalog, volume: VolumeId, snapshot: &str) -> Pin {
        let key = (volume, snapshot.to_owned());
        *self.readers.lock().entry(key.clone()).or_default() += 1;
        Pin { pins: Arc::clone(self), key }
    }

    fn readers(&self, volume: VolumeId, snapshot: &str) -> usize {
        self.readers.lock().get(&(volume, snapshot.to_owned())).copied().unwrap_or(0)
    }

    /// Whether a snapshot has readers.
    pub fn is_pinned(&self, volume: VolumeId, snapshot: &str) -> bool {
        self.readers(volume, snapshot) > 0
    }

    /// Whether an instant lost its last reader since the last call.
    pub fn take_unread_instant(&self) -> bool {
        self.unread_instant.swap(false, Ordering::AcqRel)
    }

    /// # Errors
    /// [`ErrorKind::Busy`] while a snapshot has readers; it says how many.
    pub fn check_unpinned(&self, catalog: &Catalog, volume: VolumeId, snapshot: &str) -> Result<()> {
        let readers = self.readers(volume, snapshot);
        if readers == 0 {
            return Ok(());
        }
        let name = format!("{}@{snapshot}", catalog.volume(volume).map_or("", |entry| &entry.name));
        let readers = if readers == 1 { "1 reader".to_owned() } else { format!("{readers} readers") };
        let message = format!("snapshot '{name}' is open for {readers}: disconnect its clients and close its handles first");
        Err(Error::remediable(ErrorKind::Busy, message, Remedy::Disconnect(name)))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.readers.lock();
        if let Some(readers) = pins.get_mut(&self.key) {
            *readers -= 1;
            if *readers == 0 {
                pins.remove(&self.key);
                if is_instant(&self.key.1) {
                    self.pins.unread_instant.store(true, Ordering::Release);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::instant_name;
    use crate::ids::LayerId;

    #[test]
    fn a_snapshot_is_busy_until_its_last_reader_is_gone() {
        let (pins, catalog) = (Arc::<Pins>::default(), Catalog::default());
        let instant = instant_name(LayerId(7));
        let first = pins.pin(&catalog, VolumeId(1), &instant);
        let second = pins.pin(&catalog, VolumeId(1), &instant);
        drop(first);
        let refused = pins.check_unpinned(&catalog, VolumeId(1), &instant).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy);
        assert!(!pins.take_unread_instant());
        drop(second);
        pins.check_unpinned(&catalog, VolumeId(1), &instant).unwrap();
        assert!(pins.take_unread_instant() && !pins.take_unread_instant());
    }
}
