//! The hydrators of a store, by the root layer that each of them fills.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::hydrate::{Hydrator, Progress};
use crate::ids::LayerId;
use crate::sync::{Mutex, Rank};

/// The hydrators of a store. Each map has a lock of its own, and none is held while another lock is taken.
pub struct Hydrations {
    /// Of roots that need their source.
    running: Mutex<BTreeMap<LayerId, Arc<Hydrator>>>,
    /// Of layers that were freed. They may still have requests under way.
    stopped: Mutex<BTreeMap<LayerId, Arc<Hydrator>>>,
    /// What hydrations that ended since the store was opened had done, while their roots live.
    ended: Mutex<BTreeMap<LayerId, Progress>>,
}

impl Default for Hydrations {
    fn default() -> Self {
        Self {
            running: Mutex::ranked(Rank::Hydrations, BTreeMap::new()),
            stopped: Mutex::ranked(Rank::StoppedHydrations, BTreeMap::new()),
            ended: Mutex::ranked(Rank::EndedHydrations, BTreeMap::new()),
        }
    }
}

impl Hydrations {
    /// The hydrator of a root layer, while the root needs its source.
    pub fn get(&self, layer: LayerId) -> Option<Arc<Hydrator>> {
        self.running.lock().get(&layer).cloned()
    }

    /// The hydrators of all roots that need a source.
    pub fn all(&self) -> Vec<Arc<Hydrator>> {
        self.running.lock().values().cloned().collect()
    }

    /// Adds the hydrator of a root layer.
    pub fn add(&self, hydrator: &Arc<Hydrator>) {
        self.running.lock().insert(hydrator.layer().id, Arc::clone(hydrator));
    }

    /// Keeps what a hydration has done, before its hydrator closes its sources and loses their counters.
    pub fn keep_progress(&self, layer: LayerId, progress: Progress) {
        self.ended.lock().insert(layer, progress);
    }

    /// Removes the hydrator of a root that does not need its source any more.
    pub fn remove(&self, layer: LayerId) {
        self.running.lock().remove(&layer);
    }

    /// What the hydration of a root layer had done when it ended, if it ended since the store was opened.
    pub fn progress_at_end(&self, layer: LayerId) -> Option<Progress> {
        self.ended.lock().get(&layer).cloned()
    }

    /// Stops the hydrator of a layer that is about to be freed.
    pub fn stop(&self, layer: LayerId) {
        let hydrator = self.running.lock().remove(&layer);
        if let Some(hydrator) = hydrator {
            hydrator.stop();
            self.stopped.lock().insert(layer, hydrator);
        }
        self.ended.lock().remove(&layer);
    }

    /// Whether no request of the hydrator of a freed layer is under way.
    pub fn is_quiet(&self, layer: LayerId) -> bool {
        self.stopped.lock().get(&layer).is_none_or(|hydrator| !hydrator.is_running())
    }

    /// Drops the hydrator of a freed layer.
    pub fn forget(&self, layer: LayerId) {
        self.stopped.lock().remove(&layer);
    }

    /// Waits until every hydrator that was stopped has ended, those of freed layers included.
    pub fn join(&self) {
        let stopped: Vec<_> = self.stopped.lock().values().cloned().collect();
        self.all().iter().chain(&stopped).for_each(|hydrator| hydrator.join());
    }

    /// Tells every hydrator which blocks no layer above its root shows.
    pub fn set_hidden(&self, hidden: impl Fn(LayerId) -> Option<roaring::RoaringBitmap>) {
        for hydrator in self.all() {
            if let Some(hidden) = hidden(hydrator.layer().id) {
                hydrator.set_hidden(hidden);
            }
        }
    }
}
