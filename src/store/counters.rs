//! Counters and space of a store, for the metrics of an embedder.

use super::background::Background;
use super::health::{Health, SpaceState};
use crate::error::{Error, Result};

/// Counts since the store was opened, for the metrics of an embedder ([`crate::Store::counters`]).
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// let volume = store.create_volume("v", 1 << 20)?;
/// let before = store.counters();
/// volume.write_at(&[1; 4096], 0)?;
/// volume.flush()?;
/// let after = store.counters();
/// // They only grow: a metrics system makes rates of them.
/// assert!(after.barriers > before.barriers);
/// assert_eq!((after.source_waits, after.damage_met, after.background_failures), (0, 0, 0));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Barrier rounds that synced at least one file.
    pub barriers: u64,
    /// Reads that waited for a source.
    pub source_waits: u64,
    /// Reads that met a damaged block.
    pub damage_met: u64,
    /// Steps of background work that failed.
    pub background_failures: u64,
}

/// Space of a store, in bytes ([`crate::Store::space`]).
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// store.create_volume("v", 1 << 30)?.write_at(&[1; 64 << 10], 0)?;
/// let space = store.space()?;
/// // Volumes are sparse: only blocks that were written take space.
/// assert_eq!(space.used_bytes, 64 << 10);
/// assert!(space.free_bytes <= space.total_bytes);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpaceInfo {
    /// Bytes of the blocks of all layers. Checksums and the journal take about a thousandth more.
    pub used_bytes: u64,
    /// Bytes of the file system that the store may still use.
    pub free_bytes: u64,
    /// Bytes of the file system.
    pub total_bytes: u64,
}

impl Background {
    /// How the store is now.
    pub fn health(&self) -> Health {
        let space = self.disk_space().map_or(SpaceState::Unknown, SpaceState::of);
        self.watch().health(self.core(), space)
    }

    /// Counts since the store was opened.
    pub fn counters(&self) -> Counters {
        let core = self.core();
        Counters {
            barriers: core.layers.barrier_count(),
            source_waits: core.blocks.foreground.demands(),
            damage_met: core.layers.blocks.damage().met(),
            background_failures: self.watch().failures(),
        }
    }

    /// Space of the store and of its file system.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unsupported`] if the disk does not tell; an I/O error.
    pub fn space(&self) -> Result<SpaceInfo> {
        let disk = self.disk_space().map_err(|error| Error::io("cannot ask for the space of the file system", error))?;
        let used_bytes = self.core().report.room().held_bytes;
        Ok(SpaceInfo { used_bytes, free_bytes: disk.free_bytes, total_bytes: disk.total_bytes })
    }
}
