//! Which volumes and snapshots show a block of a layer, and so are harmed by its damage.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::catalog::Catalog;
use crate::ids::LayerId;
use crate::layer::{Layer, Layers};
use crate::place::{Block, BlockSize, BlockSpan};

/// A volume or snapshot.
struct Viewer {
    name: String,
    blocks: BlockSpan,
}

/// What stands on one layer.
pub(crate) struct Viewers {
    base: LayerId,
    above: FxHashMap<LayerId, Vec<Arc<Layer>>>,
    viewers: FxHashMap<LayerId, Vec<Viewer>>,
}

impl Viewers {
    /// The volumes and snapshots that stand on a layer now.
    pub(crate) fn above(layers: &Layers, catalog: &Catalog, block_size: BlockSize, base: LayerId) -> Self {
        let mut found = Self { base, above: FxHashMap::default(), viewers: FxHashMap::default() };
        for (id, entry) in catalog.layers() {
            if let (Some(parent), Some(layer)) = (entry.parent, layers.get(id)) {
                found.above.entry(parent).or_default().push(layer);
            }
        }
        for (_, volume) in catalog.volumes() {
            found.add(block_size, volume.head, format!("volume '{}'", volume.name), volume.size_bytes);
            for snapshot in volume.snapshots.iter() {
                let name = format!("snapshot '{}@{}'", volume.name, snapshot.name);
                found.add(block_size, snapshot.layer, name, snapshot.size_bytes);
            }
        }
        found
    }

    fn add(&mut self, block_size: BlockSize, layer: LayerId, name: String, size_bytes: u64) {
        self.viewers.entry(layer).or_default().push(Viewer { name, blocks: block_size.span_for(size_bytes) });
    }

    /// The names of what shows a block as this layer has it, in order: no layer in between has another one.
    pub(crate) fn of(&self, block: Block) -> Vec<&str> {
        let (mut seeing, mut next) = (Vec::new(), vec![self.base]);
        while let Some(layer) = next.pop() {
            let here = self.viewers.get(&layer).into_iter().flatten();
            seeing.extend(here.filter(|viewer| viewer.blocks.contains(block)).map(|viewer| viewer.name.as_str()));
            let has_own = |layer: &Layer| {
                layer.with_presence(|presence| presence.present.contains(block.number()) || presence.zeroed.contains(block.number()))
            };
            let above = self.above.get(&layer).into_iter().flatten();
            next.extend(above.filter(|layer| !has_own(layer)).map(|layer| layer.id));
        }
        seeing.sort_unstable();
        seeing
    }
}
