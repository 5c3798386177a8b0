//! The table of all layers.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::layer::Layer;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::LayerId;
use crate::sync::atomic::Ordering;
use crate::sync::{Rank, RwLock};

/// All layers of a store, by number. Its lock is never held while another lock is waited for.
pub struct Table {
    layers: RwLock<FxHashMap<LayerId, Arc<Layer>>>,
}

impl Table {
    pub(super) fn new(layers: FxHashMap<LayerId, Arc<Layer>>) -> Self {
        Self { layers: RwLock::ranked(Rank::LayerTable, layers) }
    }

    /// A layer by number.
    pub fn get(&self, layer: LayerId) -> Option<Arc<Layer>> {
        self.layers.read().get(&layer).cloned()
    }

    /// A layer that something refers to.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it was freed meanwhile.
    pub fn require(&self, layer: LayerId) -> Result<Arc<Layer>> {
        self.get(layer).ok_or_else(|| freed(layer))
    }

    /// Adds a layer; `source_blocks` if it stands for a source.
    pub fn add(&self, layer: LayerId, parent: Option<LayerId>, source_blocks: Option<u64>) -> Arc<Layer> {
        let entry = Layer::new(layer, parent, source_blocks);
        entry.founding.store(u64::MAX, Ordering::Release);
        self.layers.write().insert(layer, Arc::clone(&entry));
        entry
    }

    /// Takes a layer out.
    pub(super) fn remove(&self, layer: LayerId) -> Option<Arc<Layer>> {
        self.layers.write().remove(&layer)
    }

    /// Locks the table until the answer is dropped: a fault that the proof system plants.
    pub(super) fn hold(&self) -> impl Sized + '_ {
        self.layers.write()
    }

    /// All layers, by number.
    pub fn all(&self) -> Vec<Arc<Layer>> {
        let mut all: Vec<_> = self.layers.read().values().cloned().collect();
        all.sort_unstable_by_key(|layer| layer.id);
        all
    }
}

/// The error of a request to a layer that was freed meanwhile.
pub(super) fn freed(layer: LayerId) -> Error {
    Error::new(ErrorKind::NotFound, format!("layer {layer} is gone: the volume was destroyed meanwhile"))
}
