//! Snapshots whose records are not durable yet.

use std::collections::BTreeMap;

use crate::ids::VolumeId;
use crate::layer::Ticket;
use crate::sync::{Mutex, Rank};

/// The round that makes each of these snapshots durable. Other hosts must not know a snapshot before that: its layer's number may be
/// given again after a crash.
pub struct Arrivals(Mutex<BTreeMap<(VolumeId, String), Ticket>>);

impl Default for Arrivals {
    fn default() -> Self {
        Self(Mutex::ranked(Rank::Arrivals, BTreeMap::new()))
    }
}

impl Arrivals {
    /// Adds a snapshot that was taken. The catalogue is locked.
    pub fn add(&self, volume: VolumeId, snapshot: &str, ticket: Ticket) {
        self.0.lock().insert((volume, snapshot.to_owned()), ticket);
    }

    /// The round of a snapshot, unless that is known to be durable.
    pub fn get(&self, volume: VolumeId, snapshot: &str) -> Option<Ticket> {
        self.0.lock().get(&(volume, snapshot.to_owned())).copied()
    }

    /// Removes the snapshots whose round `is_done`.
    pub fn sweep(&self, is_done: impl Fn(Ticket) -> bool) {
        self.0.lock().retain(|_, ticket| !is_done(*ticket));
    }
}
