//! Which layers have blocks that retire, and space to give back.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::layer::Layer;
use super::table::Table;
use crate::ids::LayerId;
use crate::limits::{Limits, Planted};
use crate::sync::{Mutex, Rank};

/// Lists of layers. Each is locked last, after a layer's state.
pub struct Space {
    table: Arc<Table>,
    limits: Limits,
    /// Layers with retiring blocks.
    retiring: Mutex<BTreeSet<LayerId>>,
    /// Layers with garbage.
    garbage: Mutex<BTreeSet<LayerId>>,
    /// Layers with garbage whose space could not be given back: not tried again at once.
    unpunched: Mutex<BTreeSet<LayerId>>,
}

impl Space {
    pub(super) fn new(table: Arc<Table>, limits: Limits) -> Self {
        let list = |rank| Mutex::ranked(rank, BTreeSet::new());
        let (retiring, garbage, unpunched) = (list(Rank::RetiringLayers), list(Rank::GarbageLayers), list(Rank::UnpunchedLayers));
        Self { table, limits, retiring, garbage, unpunched }
    }

    pub(super) fn note_retiring(&self, layer: &Layer) {
        self.retiring.lock().insert(layer.id);
    }

    /// Takes a layer off the list that has no retiring blocks any more.
    pub(super) fn note_none_retiring(&self, layer: &Layer) {
        self.retiring.lock().remove(&layer.id);
    }

    /// Layers with retiring blocks. Freed ones are dropped from the list.
    pub(super) fn retiring(&self) -> Vec<Arc<Layer>> {
        // Copied, so that the list and the table are never locked together.
        let list = self.retiring.lock();
        let listed: Vec<LayerId> = list.iter().copied().collect();
        let list = self.limits.has(Planted::TableHeld).then_some(list);
        let (mut found, mut freed) = (Vec::new(), Vec::new());
        for id in listed {
            match self.table.get(id) {
                Some(layer) => found.push(layer),
                None => freed.push(id),
            }
        }
        drop(list);
        if !freed.is_empty() {
            self.retiring.lock().retain(|id| !freed.contains(id));
        }
        found
    }

    pub(super) fn note_garbage(&self, layer: &Layer) {
        self.garbage.lock().insert(layer.id);
    }

    /// Takes a layer with garbage off the list. The space of a freed one is given back as a whole.
    pub(super) fn take_garbage(&self) -> Option<Arc<Layer>> {
        let next = || self.garbage.lock().pop_first();
        std::iter::from_fn(next).find_map(|id| self.table.get(id))
    }

    pub(super) fn note_unpunched(&self, layer: &Layer) {
        self.unpunched.lock().insert(layer.id);
    }

    /// Lets space that could not be given back be tried again: a descriptor may have lacked, or the disk was full.
    pub fn retry_unpunched(&self) {
        let mut unpunched = std::mem::take(&mut *self.unpunched.lock());
        self.garbage.lock().append(&mut unpunched);
    }
}
