//! The heads of volumes that are open.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::ids::VolumeId;
use crate::sync::{Mutex, MutexGuard, Rank};
use crate::volume::head::Head;

type Open = HashMap<VolumeId, Weak<Head>>;

/// The open heads, by volume: each volume has one at most. Locked after the catalogue.
pub struct Heads(Mutex<Open>);

impl Default for Heads {
    fn default() -> Self {
        Self(Mutex::ranked(Rank::Heads, Open::new()))
    }
}

/// The open heads, locked: between a look and an addition no other thread opens the same volume.
pub struct Opening<'a>(MutexGuard<'a, Open>);

impl Heads {
    /// Locks the open heads.
    pub fn opening(&self) -> Opening<'_> {
        Opening(self.0.lock())
    }

    /// Adds the head of a new volume.
    pub fn add(&self, head: &Arc<Head>) {
        self.opening().add(head);
    }

    /// Removes the head of a volume that was destroyed.
    pub fn remove(&self, volume: VolumeId) {
        self.0.lock().remove(&volume);
    }

    /// Removes all.
    pub fn clear(&self) {
        self.0.lock().clear();
    }
}

impl Opening<'_> {
    /// The head of a volume, if it is open.
    pub fn get(&self, volume: VolumeId) -> Option<Arc<Head>> {
        self.0.get(&volume).and_then(Weak::upgrade)
    }

    /// Adds a head.
    pub fn add(&mut self, head: &Arc<Head>) {
        self.0.insert(head.id, Arc::downgrade(head));
    }
}
