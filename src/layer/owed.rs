//! What layers owe to the rounds to come: blocks without a record, and files without a sync.
//!
//! A layer notes under its own lock what it owes; the lists here say which layers a round has to visit. A list is locked last.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::commit::queue::Commit;
use super::layer::Layer;
use super::state::State;
use crate::ids::LayerId;
use crate::io::DiskFile;
use crate::place::Segment;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, Rank};

/// Lists of the layers that owe something, and how much it is.
pub struct Owed {
    commit: Arc<Commit>,
    fresh_blocks: AtomicU64,
    /// Layers with blocks that wait for their record.
    fresh: Mutex<BTreeSet<LayerId>>,
    /// Layers with files that were written and not synced, which keeps them open.
    written: Mutex<BTreeSet<LayerId>>,
    written_layers: AtomicUsize,
}

impl Owed {
    pub(super) fn new(commit: Arc<Commit>) -> Self {
        Self {
            commit,
            fresh_blocks: AtomicU64::new(0),
            fresh: Mutex::ranked(Rank::FreshLayers, BTreeSet::new()),
            written: Mutex::ranked(Rank::WrittenLayers, BTreeSet::new()),
            written_layers: AtomicUsize::new(0),
        }
    }

    /// Lists a layer that has blocks without a record.
    pub(super) fn note_fresh(&self, layer: &Layer, state: &mut State) {
        if !std::mem::replace(&mut state.is_listed, true) {
            self.fresh.lock().insert(layer.id);
        }
    }

    /// Takes a layer off that list: a round names all its blocks, or it was freed.
    pub(super) fn note_named(&self, layer: &Layer, state: &mut State) {
        if std::mem::replace(&mut state.is_listed, false) {
            self.fresh.lock().remove(&layer.id);
        }
    }

    /// Keeps a written file open until a round has synced it: a file that was closed might lose the error of its write-back.
    pub(super) fn note_written(&self, layer: &Layer, state: &mut State, segment: Segment, file: &Arc<dyn DiskFile>) {
        if state.written.is_empty() {
            let mut written = self.written.lock();
            written.insert(layer.id);
            self.written_layers.store(written.len(), Ordering::Relaxed);
        }
        state.written.entry(segment).or_insert_with(|| Arc::clone(file));
    }

    /// Takes a layer off the list of those with written files: a round syncs them, or it was freed. Its state is locked.
    pub(super) fn note_synced(&self, layer: &Layer) {
        let mut written = self.written.lock();
        written.remove(&layer.id);
        self.written_layers.store(written.len(), Ordering::Relaxed);
    }

    /// Whether all blocks that wait for their record are in these layers.
    pub(super) fn is_fresh_only_in(&self, layers: &BTreeSet<LayerId>) -> bool {
        self.fresh.lock().is_subset(layers)
    }

    /// Layers whose blocks wait for their record, or whose files for a sync.
    pub(super) fn layers(&self) -> BTreeSet<LayerId> {
        let fresh = self.fresh.lock().clone();
        fresh.union(&self.written.lock()).copied().collect()
    }

    /// Counts blocks that became present and wait for their record. Their journal space was reserved.
    pub(super) fn count_fresh(&self, blocks: u64) {
        self.fresh_blocks.fetch_add(blocks, Ordering::Relaxed);
    }

    /// Counts blocks off that a frame names now, or that none will ever name, and gives back their journal space.
    pub(super) fn count_recorded(&self, blocks: u64) {
        self.fresh_blocks.fetch_sub(blocks, Ordering::Relaxed);
        self.commit.room.release_blocks(blocks);
    }

    /// Blocks that wait for their record.
    pub(super) fn fresh_blocks(&self) -> u64 {
        self.fresh_blocks.load(Ordering::Relaxed)
    }

    /// Layers with files that were written and not synced.
    pub(super) fn written_layers(&self) -> usize {
        self.written_layers.load(Ordering::Relaxed)
    }
}
