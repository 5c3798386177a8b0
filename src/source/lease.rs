//! Leases: what keeps a snapshot of another host while a fork fetches from it.
//!
//! A source that knows leases is asked for one when it is forked. Of a volume that is being written it takes a snapshot, so that the
//! fork is one instant; the fork goes on with the address of that.

use std::sync::Arc;
use std::time::Duration;

use super::Source;
pub use crate::wire::{LeaseAction, LeaseGrant, LeaseRequest};

/// A lease that a source has given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Address of what it holds.
    pub uri: String,
    /// It lapses if it is not renewed within this time.
    pub lapse: Duration,
}

/// A source, and the lease of its bytes if it knows leases.
pub struct LeasedSource {
    /// The bytes; of the lease's address, if there is one.
    pub source: Arc<dyn Source>,
    /// The lease.
    pub lease: Option<Lease>,
}

impl std::fmt::Debug for LeasedSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeasedSource").finish_non_exhaustive()
    }
}
