//! Leases that forks of other hosts have, and destroying in spite of them.

use std::time::Duration;

use super::Store;
use crate::error::{ErrorKind, Result};
use crate::wire::{LeaseGrant, LeaseRequest};

/// How often it is tried to destroy what readers had open that were about to end, and the pause between.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(20);

impl Store {
    /// Gives a lease of a snapshot to a fork of another host, or of a snapshot of a volume that is taken now; or renews it, or ends it.
    /// `address`: where the host is. Answers what the lease holds when that is durable; nothing when it has ended.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Busy`] if there are too many leases; [`ErrorKind::Unsupported`] for one of a volume that
    /// is not to be taken anew.
    pub fn lease(&self, export: (&str, Option<&str>), request: &LeaseRequest, address: &str) -> Result<Option<LeaseGrant>> {
        let _pass = self.0.core.enter()?;
        self.0.core.lending.lease(export, request, address)
    }

    /// Destroys a snapshot, or a volume (with its snapshots, if `recursive`), although forks of other hosts need it: they keep what
    /// they have fetched, and are degraded. Nobody opens it from now on. `end_readers` is called, perhaps several times, with the names of
    /// exports whose connections are to be ended.
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
            // Its code may close the store: no pass is held.
            end_readers(&sentence.exports())?;
            let destroyed = core.enter().and_then(|_pass| match snapshot {
                Some(snapshot) => core.volumes.destroy_snapshot(volume, snapshot),
                None => core.volumes.destroy_volume(volume, recursive),
            });
            tries += 1;
            match destroyed {
                // A connection that had just opened it is known to the server in a moment.
                Err(error) if error.kind() == ErrorKind::Busy && tries < TRIES => crate::sync::thread::sleep(PAUSE),
                other => return other,
            }
        }
    }
}
