//! What of which snapshots a store holds: the truth that placement compares hosts by.

use std::collections::{BTreeMap, HashMap};

use roaring::RoaringBitmap;

use super::describe::Report;
use crate::catalog::Catalog;
use crate::format::Labels;
use crate::ids::{LayerId, VolumeId};
use crate::source::About;
use crate::volume::identity::identity_in;

/// Blocks of one snapshot, wherever it was taken, that a store holds.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// let volume = store.create_volume("web", 1 << 20)?;
/// volume.create_snapshot("v1")?;
///
/// // The identity is the same on every host that has these bytes.
/// let identity = store.snapshot("web", "v1")?.identity();
/// let holding = &store.holdings()[&identity];
/// assert_eq!((&holding.names[..], holding.size_bytes), (&["web@v1".to_owned()][..], 1 << 20));
/// assert_eq!(holding.present, None, "this store has all of its own snapshot");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Holding {
    /// Names of the snapshot in this store, as `volume@snapshot`; none for one of another store.
    pub names: Vec<String>,
    /// Size of the snapshot in bytes, as far as it is known.
    pub size_bytes: u64,
    /// The blocks that need not be fetched, zeros included; `None`: all of them.
    pub present: Option<RoaringBitmap>,
    /// The blocks that forks touched first, if that was recorded.
    pub first: Option<RoaringBitmap>,
}

impl Report {
    /// What this store holds of snapshots, by the identity of their bytes: its own ones, and those of other stores that its forks
    /// stand on.
    pub fn holdings(&self) -> BTreeMap<String, Holding> {
        let mut holdings = self.holdings_in(&self.shape.catalog());
        // Traces are read without the catalogue's lock.
        for (layer, holding) in holdings.values_mut() {
            holding.first = self.first_blocks(*layer);
        }
        holdings.into_iter().map(|(identity, (_, holding))| (identity, holding)).collect()
    }

    fn holdings_in(&self, catalog: &Catalog) -> BTreeMap<String, (LayerId, Holding)> {
        let sources = layers_over_sources(catalog);
        let mut holdings: BTreeMap<String, (LayerId, Holding)> = BTreeMap::new();
        for (id, entry) in catalog.layers().filter(|(_, entry)| !entry.origin.is_empty()) {
            // Nobody but its forks shows such a layer, so blocks that they all hide may be gone.
            let present = self.cover(id);
            let blocks = u64::from(present.max().map_or(0, |last| last + 1));
            let size_bytes = entry.source.as_ref().map_or(self.block_size.offset_of(blocks), |source| source.size_bytes);
            let holding = Holding { size_bytes, present: Some(present), ..Holding::default() };
            // Of several layers the one that has most.
            let has = |holding: &Holding| holding.present.as_ref().map_or(u64::MAX, RoaringBitmap::len);
            match holdings.get(&entry.origin) {
                Some((_, other)) if has(other) >= has(&holding) => {}
                _ => drop(holdings.insert(entry.origin.clone(), (id, holding))),
            }
        }
        for (_, volume) in catalog.volumes() {
            for snapshot in volume.snapshots.iter() {
                let identity = identity_in(catalog, &self.store_id, snapshot.layer);
                let (_, holding) = holdings.entry(identity).or_insert_with(|| (snapshot.layer, Holding::default()));
                holding.names.push(format!("{}@{}", volume.name, snapshot.name));
                holding.size_bytes = snapshot.size_bytes;
                let incomplete = sources.get(&snapshot.layer).copied().unwrap_or(false);
                holding.present = incomplete.then(|| self.present_in(catalog, snapshot.layer, snapshot.size_bytes));
            }
        }
        holdings
    }

    /// The identity that a snapshot of a volume would have that is taken now: if nothing was written to its head, that of the layer
    /// below.
    fn live_identity_in(&self, catalog: &Catalog, head: LayerId) -> String {
        let parent = self.layers.get(head).filter(|layer| layer.is_blank()).and_then(|layer| layer.parent);
        identity_in(catalog, &self.store_id, parent.unwrap_or(head))
    }

    /// What is told of a volume beside its bytes.
    pub fn about_volume(&self, catalog: &Catalog, volume: VolumeId) -> About {
        let entry = catalog.volume(volume);
        About {
            store: self.store_id.clone(),
            live: entry.map_or_else(String::new, |entry| self.live_identity_in(catalog, entry.head)),
            labels: entry.map_or_else(Labels::new, |entry| About::travelling(&entry.labels)),
        }
    }

    fn first_blocks(&self, layer: LayerId) -> Option<RoaringBitmap> {
        let trace = self.layers.load_trace(layer)?;
        let mut blocks = RoaringBitmap::new();
        for run in trace.runs {
            blocks.insert_range(run);
        }
        Some(blocks)
    }

    fn cover(&self, layer: LayerId) -> RoaringBitmap {
        let layer = self.layers.get(layer);
        layer.map_or_else(RoaringBitmap::new, |layer| layer.with_presence(|presence| &presence.present | &presence.zeroed))
    }

    /// Blocks below `size_bytes` that the chain answers for without its source.
    fn present_in(&self, catalog: &Catalog, top: LayerId, size_bytes: u64) -> RoaringBitmap {
        let total = self.block_size.blocks_for(size_bytes);
        let mut present = RoaringBitmap::new();
        for (id, entry) in catalog.chain(top) {
            present |= self.cover(id);
            if let Some(source) = &entry.source {
                // What lies behind the end of the source is zero.
                let behind = self.block_size.blocks_for(source.size_bytes)..total;
                if let (Ok(start), Ok(end)) = (u32::try_from(behind.start), u32::try_from(behind.end)) {
                    present.insert_range(start..end);
                }
            }
        }
        present
    }
}

/// For each layer: whether its chain still needs a source.
fn layers_over_sources(catalog: &Catalog) -> HashMap<LayerId, bool> {
    let mut order: Vec<_> = catalog.layers().collect();
    // A child always has a larger number than its parent.
    order.sort_unstable_by_key(|(id, _)| *id);
    let mut over: HashMap<LayerId, bool> = HashMap::with_capacity(order.len());
    for (id, entry) in order {
        let needs = |parent: &LayerId| catalog.layer(*parent).is_some_and(|parent| parent.source.is_none() || parent.is_needed_by(id));
        let below = entry.parent.filter(needs).is_some_and(|parent| over.get(&parent).copied().unwrap_or(false));
        over.insert(id, below || entry.source.is_some());
    }
    over
}
