//! Counts what layers show. For many at once every layer of their chains is looked at once, from the bottom up.

use std::rc::Rc;

use roaring::RoaringBitmap;
use rustc_hash::{FxHashMap, FxHashSet};

use super::info::BlockCounts;
use crate::catalog::{Catalog, LayerEntry};
use crate::ids::LayerId;
use crate::layer::{Layer, Layers};
use crate::place::BlockSpan;

/// What is known of a chain from its layers alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chain {
    /// Number of its layers.
    pub depth: u64,
    /// The lowest of them.
    pub base: Option<LayerId>,
    /// One of them stands for a source that was written while it was forked.
    pub live: bool,
}

/// What a layer and its chain show.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub chain: Chain,
    /// The layer at its bottom that stands for a source which is still needed.
    pub source: Option<LayerId>,
    present: u64,
    missing: u64,
    unique: u64,
}

impl Tally {
    /// The counts, of a volume of so many blocks.
    pub fn counts(&self, blocks: u64) -> BlockCounts {
        BlockCounts {
            present: self.present,
            zero: blocks.saturating_sub(self.present + self.missing),
            missing: self.missing,
            unique: self.unique,
            shared: self.present.saturating_sub(self.unique),
        }
    }
}

/// The layers below some others, as a forest.
#[derive(Default)]
struct Forest {
    bases: Vec<LayerId>,
    /// For each layer those directly above it, the heaviest first.
    above: FxHashMap<LayerId, Vec<LayerId>>,
}

impl Forest {
    fn below(catalog: &Catalog, tops: &FxHashSet<LayerId>) -> Self {
        let mut forest = Self::default();
        for top in tops {
            let mut child = None;
            for (id, _) in catalog.chain(*top) {
                let known = forest.above.contains_key(&id);
                forest.above.entry(id).or_default().extend(child);
                child = Some(id);
                if known {
                    // The rest of this chain was walked before.
                    child = None;
                    break;
                }
            }
            forest.bases.extend(child);
        }
        forest.sort();
        forest
    }

    /// The heaviest goes last and so inherits the bitmaps of what is below it; few of them are in memory at a time.
    fn sort(&mut self) {
        let mut order: Vec<LayerId> = self.above.keys().copied().collect();
        // Children have larger numbers, so they come first.
        order.sort_unstable_by_key(|id| std::cmp::Reverse(*id));
        let mut weights: FxHashMap<LayerId, u64> = FxHashMap::default();
        for id in order {
            let Some(above) = self.above.get_mut(&id) else { continue };
            let weight = |child: &LayerId| weights.get(child).copied().unwrap_or(0);
            above.sort_unstable_by_key(|child| std::cmp::Reverse((weight(child), *child)));
            let sum: u64 = above.iter().map(weight).sum();
            weights.insert(id, sum + 1);
        }
    }
}

/// The blocks that a chain shows.
#[derive(Clone, Default)]
struct Shown {
    present: RoaringBitmap,
    /// Blocks for which the source is not needed; of chains without a source, nothing.
    covered: RoaringBitmap,
    /// The layer that stands for the source, and its blocks.
    source: Option<(LayerId, u64)>,
}

impl Shown {
    fn add(&mut self, layer: &Layer, entry: &LayerEntry) {
        if let (Some(_), Some(blocks)) = (&entry.source, layer.source_blocks()) {
            self.source = Some((layer.id, blocks));
        }
        // Looked at before presence, so that a block merged meanwhile is not counted twice. Its rest may still be missing.
        let patched = layer.has_patches().then(|| layer.patched_blocks());
        layer.with_presence(|presence| {
            self.present -= &presence.zeroed;
            self.present |= &presence.present;
            if self.source.is_some() {
                self.covered |= &presence.present;
                self.covered |= &presence.zeroed;
            }
        });
        if let Some(patched) = patched {
            self.present -= &patched;
            self.covered -= &patched;
        }
    }

    fn missing(&self) -> u64 {
        match self.source {
            Some((_, blocks)) => blocks - BlockSpan::new(0, blocks).last().map_or(0, |last| self.covered.rank(last.number())),
            None => 0,
        }
    }
}

/// What each of these layers shows.
pub fn tally(layers: &Layers, catalog: &Catalog, tops: impl IntoIterator<Item = LayerId>) -> FxHashMap<LayerId, Tally> {
    let tops: FxHashSet<LayerId> = tops.into_iter().collect();
    let forest = Forest::below(catalog, &tops);
    let mut tallies = FxHashMap::default();
    let begin = |base: &LayerId| (*base, Chain { base: Some(*base), ..Chain::default() }, Rc::default());
    let mut next: Vec<(LayerId, Chain, Rc<Shown>)> = forest.bases.iter().map(begin).collect();
    while let Some((id, mut chain, mut shown)) = next.pop() {
        chain.depth += 1;
        chain.live |= catalog.layer(id).is_some_and(|entry| entry.live);
        if let (Some((root, _)), Some(parent)) = (shown.source, catalog.layer(id).and_then(|entry| entry.parent))
            && root == parent
            && !catalog.layer(root).is_some_and(|root| root.is_needed_by(id))
        {
            let shown = Rc::make_mut(&mut shown);
            (shown.source, shown.covered) = (None, RoaringBitmap::new());
        }
        if let (Some(layer), Some(entry)) = (layers.get(id), catalog.layer(id))
            && (entry.source.is_some() || !layer.is_blank())
        {
            Rc::make_mut(&mut shown).add(&layer, entry);
        }
        if tops.contains(&id) {
            let (present, missing) = (shown.present.len(), shown.missing());
            let source = shown.source.map(|(layer, _)| layer);
            tallies.insert(id, Tally { chain, source, present, missing, unique: unique(layers, catalog, id) });
        }
        let above = forest.above.get(&id).into_iter().flatten();
        next.extend(above.map(|child| (*child, chain, Rc::clone(&shown))));
    }
    tallies
}

/// Present blocks that only the chain of this layer reaches: those of the layers down to the first that others stand on, too.
fn unique(layers: &Layers, catalog: &Catalog, top: LayerId) -> u64 {
    let mut covered = RoaringBitmap::new();
    let mut unique = 0;
    for (id, _) in catalog.chain(top).take_while(|(id, entry)| is_unshared(entry, *id == top)) {
        let Some(layer) = layers.get(id) else { continue };
        if layer.has_patches() {
            covered |= layer.patched_blocks();
        }
        layer.with_presence(|presence| {
            unique += presence.present.len() - covered.intersection_len(&presence.present);
            covered |= &presence.present;
            covered |= &presence.zeroed;
        });
    }
    unique
}

/// Whether only the chain being counted, in which it is the top or not, can reach a layer.
fn is_unshared(entry: &LayerEntry, is_top: bool) -> bool {
    entry.names <= u32::from(is_top) && entry.children.len() <= usize::from(!is_top)
}
