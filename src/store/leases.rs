//! Leases that forks on other hosts hold, and destroying a snapshot or volume in spite of them.

use std::time::Duration;

use super::Store;
use crate::error::{ErrorKind, Result};
use crate::wire::{LeaseGrant, LeaseRequest};

/// How often destroying is tried while connections are still ending, and the pause between two tries.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(20);

impl Store {
    /// Takes, renews or ends a lease for a fork on another host. A lease of a volume holds a snapshot that is taken now. `address` is
    /// where the host is. Returns the lease once it is durable; `None` once it has ended.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Busy`] if there are too many leases; [`ErrorKind::Unsupported`] for renewing a lease by the
    /// name of a volume.
    pub fn lease(&self, export: (&str, Option<&str>), request: &LeaseRequest, address: &str) -> Result<Option<LeaseGrant>> {
        let _pass = self.0.core.enter()?;
        self.0.core.lending.lease(export, request, address)
    }

    /// Destroys a snapshot, or a volume (with its snapshots, if `recursive`), although forks on other hosts hold leases of it. They keep
    /// the blocks that they have fetched, and become degraded. From now on it cannot be opened. `end_readers` is called, perhaps several
    /// times, with the names of the exports whose connections the caller must end.
    ///
    /// # Errors
    /// As [`Store::destroy_snapshot`] and [`Store::destroy_volume`], but for leases; that of `end_readers`.
    pub fn destroy_by_force(
        &self,
        (volume, snapshot): (&str, Option<&str>),
        recursive: bool,
        mut end_readers: impl FnMut(&[String]) -> Result<()>,
    ) -> Result<()> {
        let core = &self.0.core;
        let sentence = core.enter().and_then(|_pass| core.lending.condemn(volume, snapshot, recursive))?;
        let mut tries = 0;
        loop {
            // No pass is held, because `end_readers` may close the store.
            end_readers(&sentence.exports())?;
            let destroyed = core.enter().and_then(|_pass| match snapshot {
                Some(snapshot) => core.volumes.destroy_snapshot(volume, snapshot),
                None => core.volumes.destroy_volume(volume, recursive),
            });
            tries += 1;
            match destroyed {
                // A connection that has just opened it may not be listed by the server yet.
                Err(error) if error.kind() == ErrorKind::Busy && tries < TRIES => crate::sync::thread::sleep(PAUSE),
                other => return other,
            }
        }
    }
}
