//! Which layer answers for a block.

use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::LayerId;
use crate::layer::{Layer, Layers};
use crate::owners::{Leaf, Owner, OwnerMap, OwnerRuns};
use crate::place::{Block, BlockBits, BlockSize, Extent, ExtentSpan, IndexSpan};
use crate::sync::{Mutex, RwLock};
use crate::volume::foreground::Foreground;
use crate::volume::state::{Hydrations, Shape};

/// Looks blocks up in chains of layers, and reads them.
pub struct Blocks {
    pub layers: Arc<Layers>,
    pub block_size: BlockSize,
    pub shape: Arc<Shape>,
    pub hydrations: Arc<Hydrations>,
    pub foreground: Foreground,
    /// Whether the store was opened with sources.
    pub has_sources: bool,
    /// Held for writing while a layer forgets blocks that others hide, and for reading by a caller that walks a chain and adds up
    /// what it finds: a block moves from one layer's presence to another's. Locked after the catalogue; not held across a barrier.
    pub forgetting: RwLock<()>,
    /// Where the next look for patches to merge begins.
    pub next_patch: Mutex<(LayerId, u32)>,
}

/// A layer with its chain, as a reader sees it.
#[derive(Clone)]
pub struct View {
    /// The layer on top.
    pub layer: Arc<Layer>,
    /// Owners of all blocks.
    pub owners: OwnerMap,
    /// Bytes behind this are not there.
    pub size_bytes: u64,
}

/// What answers for a run of blocks. For a root that stands for a source, what it holds now counts.
#[derive(Clone)]
pub enum Answer {
    /// No layer: zeros.
    Zero,
    /// The layer has the blocks.
    Held(Arc<Layer>),
    /// The source of this root layer has them.
    Missing(Arc<Layer>),
    /// The layer has parts of them; the rest is below, perhaps at a source.
    Patched(Arc<Layer>),
}

/// Runs of blocks within an extent and what answers for them. Most requests lie in one run.
pub type Answers = SmallVec<[(IndexSpan, Answer); 1]>;

impl View {
    /// A view of `layer` of which nothing is resolved yet.
    pub fn new(layer: Arc<Layer>, size_bytes: u64) -> Self {
        // The owners of a layer over nothing are found without walking.
        let owners = OwnerMap::default();
        Self { layer, owners, size_bytes }
    }

    /// Refuses a range that does not lie within the size.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`].
    pub fn check_range(&self, offset: u64, bytes: u64) -> Result<()> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(Error::new(
                ErrorKind::OutOfRange,
                format!("{bytes} bytes at offset {offset} end behind the volume, which has {} bytes", self.size_bytes),
            )),
        }
    }

    /// As [`View::check_range`]; a range that ends before it begins has no bytes.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`].
    pub fn check_run(&self, range: &Range<u64>) -> Result<()> {
        self.check_range(range.start, range.end.saturating_sub(range.start))
    }
}

impl Blocks {
    /// Owners of an extent as the chain from `top` down has them. A layer that was freed still owns what it would have answered for, so
    /// that a reader of a chain that was destroyed gets an error, and never what lies below, or zeros.
    pub fn resolve(&self, top: &Layer, extent: Extent) -> Leaf {
        let mut leaf = Leaf::default();
        let mut open = BlockBits::FULL;
        let mut give = |open: &mut BlockBits, bits: &BlockBits, owner| {
            for run in open.and(bits).spans() {
                leaf.set(run, owner);
            }
            *open = open.minus(bits);
        };
        let mut below;
        let mut layer = top;
        loop {
            if layer.source_blocks().is_some() {
                // Its presence grows under its readers: it answers for all it may ever have.
                give(&mut open, &layer.source_bits(extent), Owner::Layer(layer.id));
            } else {
                let (present, zeroed) = layer.answered(extent);
                give(&mut open, &present, Owner::Layer(layer.id));
                give(&mut open, &zeroed, Owner::Zero);
            }
            let Some(parent) = layer.parent.filter(|_| !open.is_empty()) else { return leaf };
            let Some(entry) = self.layers.get(parent) else {
                give(&mut open, &BlockBits::FULL, Owner::Layer(parent));
                return leaf;
            };
            below = entry;
            layer = &below;
        }
    }

    /// Owners of blocks of an extent.
    pub fn owners(&self, view: &View, part: ExtentSpan) -> OwnerRuns {
        let mut runs = OwnerRuns::new();
        view.owners.runs(part.extent, part.indices, || self.resolve(&view.layer, part.extent), &mut runs);
        runs
    }

    /// What answers for blocks of an extent.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the volume was destroyed meanwhile.
    pub fn answers(&self, view: &View, part: ExtentSpan) -> Result<Answers> {
        let owners = self.owners(view, part);
        let mut answers = Answers::new();
        for (run, owner) in owners {
            match owner {
                Owner::Zero => answers.push((run, Answer::Zero)),
                Owner::Layer(id) => {
                    let layer = if id == view.layer.id { Arc::clone(&view.layer) } else { self.layers.require(id)? };
                    match layer.source_blocks() {
                        None if layer.has_patches() => Self::split_patched(&layer, part.extent.part(run), &mut answers),
                        None => answers.push((run, Answer::Held(layer))),
                        Some(_) => Self::split_root(&layer, part.extent.part(run), &mut answers),
                    }
                }
            }
        }
        Ok(answers)
    }

    fn split_root(layer: &Arc<Layer>, part: ExtentSpan, answers: &mut Answers) {
        let (present, zeroed) = layer.extent(part.extent);
        let asked = BlockBits::of(part.indices);
        let first = answers.len();
        let missing = layer.source_bits(part.extent).minus(&present).minus(&zeroed);
        answers.extend(present.and(&asked).spans().map(|run| (run, Answer::Held(Arc::clone(layer)))));
        answers.extend(zeroed.and(&asked).spans().map(|run| (run, Answer::Zero)));
        answers.extend(missing.and(&asked).spans().map(|run| (run, Answer::Missing(Arc::clone(layer)))));
        answers[first..].sort_unstable_by_key(|(run, _)| run.start());
    }

    fn split_patched(layer: &Arc<Layer>, part: ExtentSpan, answers: &mut Answers) {
        let asked = BlockBits::of(part.indices);
        let patched = layer.patched(part.extent).and(&asked);
        let first = answers.len();
        answers.extend(patched.spans().map(|run| (run, Answer::Patched(Arc::clone(layer)))));
        answers.extend(asked.minus(&patched).spans().map(|run| (run, Answer::Held(Arc::clone(layer)))));
        answers[first..].sort_unstable_by_key(|(run, _)| run.start());
    }

    /// Resolves the extent of a block again after `loser` was found not to hold it any more. `false`: no other layer holds it. Owner maps
    /// that share the old leaf keep it.
    pub fn renew_owners(&self, seen: &RwLock<View>, loser: &Layer, block: Block) -> bool {
        let extent = block.extent();
        // Behind this lock no write changes the map; what a write fills meanwhile is named by it or by the resolved leaf.
        let mut view = seen.write();
        let owners = self.owners(&view, block.in_extent());
        if owners.iter().any(|(_, owner)| *owner != Owner::Layer(loser.id)) {
            // Another reader has renewed it.
            return true;
        }
        let mut layer = Arc::clone(&view.layer);
        loop {
            let (present, zeroed) = layer.answered(extent);
            if present.or(&zeroed).contains(block.index()) {
                break;
            }
            if layer.id == loser.id {
                // An open layer over nothing forgets what is discarded.
                if layer.parent.is_some() || layer.is_sealed() {
                    return false;
                }
                break;
            }
            let Some(parent) = layer.parent.and_then(|parent| self.layers.get(parent)) else { return false };
            layer = parent;
        }
        let leaf = self.resolve(&view.layer, extent);
        view.owners.renew(extent, leaf);
        true
    }
}
