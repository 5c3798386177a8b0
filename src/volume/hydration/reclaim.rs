//! Which blocks no volume or snapshot shows.
//!
//! A block of a layer is dead when every child hides it (has it, or zeroed it, durably; or is itself nameless and only has
//! children that hide it) and neither a name nor the chain of an image shows the layer. A patch hides nothing, for the block
//! below it is still needed.

use std::collections::HashMap;
use std::sync::Arc;

use roaring::RoaringBitmap;

use crate::catalog::{Catalog, LayerEntry};
use crate::error::Result;
use crate::hydrate::Hydrator;
use crate::ids::LayerId;
use crate::layer::{Layer, Layers, Presence};
use crate::sync::{Mutex, MutexGuard};
use crate::volume::blocks::Blocks;
use crate::volume::state::{Hydrations, Shape};

/// Layers that one step forgets blocks of, so that what it puts into the queue is bounded.
const STEP_LAYERS: usize = 256;

/// Looks for blocks that nothing shows, and gives them up.
pub struct Reclaim {
    pub layers: Arc<Layers>,
    pub shape: Arc<Shape>,
    pub blocks: Arc<Blocks>,
    pub hydrations: Arc<Hydrations>,
    /// Held from a look at what is hidden above roots until it is acted on, and while a fork is put on a root that stands already,
    /// which shows all of it again. Locked before the catalogue; not held across a barrier.
    pub roots: Mutex<()>,
}

/// What a look at all nameless layers found.
#[derive(Default)]
struct Found {
    dead: Vec<(LayerId, RoaringBitmap)>,
    /// For layers that stand for a source: the blocks that no layer above shows.
    hidden: HashMap<LayerId, RoaringBitmap>,
}

/// A nameless layer whose children are being looked at.
struct Look {
    layer: LayerId,
    children: std::vec::IntoIter<LayerId>,
    /// The blocks that all children so far hide.
    hidden: Option<RoaringBitmap>,
}

impl Look {
    fn at(layer: LayerId, entry: &LayerEntry) -> Self {
        let children: Vec<LayerId> = entry.children.iter().copied().collect();
        Self { layer, children: children.into_iter(), hidden: None }
    }

    fn meet(&mut self, covered: RoaringBitmap) {
        match &mut self.hidden {
            Some(hidden) => *hidden &= covered,
            None => self.hidden = Some(covered),
        }
    }
}

fn is_nameless(entry: &LayerEntry) -> bool {
    entry.names == 0 && entry.held.is_empty()
}

impl Reclaim {
    /// Lets no look at hidden blocks be acted on.
    pub fn hold_roots(&self) -> MutexGuard<'_, ()> {
        self.roots.lock()
    }

    /// Looks once at all nameless layers and forgets their dead blocks. Answers whether there were any.
    ///
    /// 1. Room for the records is made first, which may take a round: no lock is held.
    /// 2. The look and what is done with it are one section of the roots: a remote fork that joins a root shows blocks again that the
    ///    look calls dead.
    /// 3. If room runs out on the way, a round makes it, without any lock, and the next step looks again.
    ///
    /// # Errors
    /// The store refuses writes.
    pub fn reclaim_step(&self) -> Result<bool> {
        if !self.shape.take_hiding() {
            return Ok(false);
        }
        let prepared = self.layers.barriers.prepare_forget();
        let looked = prepared.and_then(|()| {
            let _roots = self.hold_roots();
            let found = self.find_dead();
            self.hydrations.set_hidden(|layer| found.hidden.get(&layer).cloned());
            self.forget(&found.dead).map(|all| (!found.dead.is_empty(), all))
        });
        if !matches!(looked, Ok((_, true))) {
            self.shape.note_hiding();
        }
        let (busy, all) = looked?;
        if !all {
            self.layers.barriers.sync([])?;
        }
        Ok(busy)
    }

    /// Forgets dead blocks. `false`: some are left.
    fn forget(&self, dead: &[(LayerId, RoaringBitmap)]) -> Result<bool> {
        for (id, blocks) in dead.iter().take(STEP_LAYERS) {
            let Some(layer) = self.layers.get(*id) else { continue };
            let _forgetting = self.blocks.forgetting.write();
            if !self.layers.zeroes.forget(&layer, blocks)? {
                return Ok(false);
            }
        }
        Ok(dead.len() <= STEP_LAYERS)
    }

    fn find_dead(&self) -> Found {
        let catalog = self.shape.catalog();
        let mut found = Found::default();
        let bottoms = catalog.layers().filter(|(_, entry)| {
            let below = entry.parent.and_then(|parent| catalog.layer(parent));
            is_nameless(entry) && !below.is_some_and(is_nameless)
        });
        let cover = Layer::durable_cover;
        for (id, entry) in bottoms {
            self.look_upwards(&catalog, Look::at(id, entry), &cover, |id, hidden| {
                self.note_dead(id, hidden, &mut found);
                if catalog.layer(id).is_some_and(|entry| entry.source.is_some()) {
                    found.hidden.insert(id, hidden.clone());
                }
            });
        }
        found
    }

    /// Sets the hidden and covered blocks of a hydrator: those of its root that the layers above hide now, and those that they hide once
    /// their writes are durable. If only covered blocks are missing, a barrier makes those writes durable, and the look is repeated.
    ///
    /// The lock of the roots is released during the barrier. A fork that joins meanwhile is seen by the second look, which reads the
    /// catalogue again.
    pub fn look_above(&self, hydrator: &Hydrator) {
        let root = hydrator.layer().id;
        let others_missing = {
            let _roots = self.hold_roots();
            hydrator.set_covered(self.hidden_of(root, &|layer| layer.with_presence(Presence::covered)))
        };
        // An error shows at the next flush; then the hydrator asks again.
        if !others_missing && !hydrator.is_complete() && self.layers.barriers.sync_fresh().is_ok() {
            let _roots = self.hold_roots();
            hydrator.set_hidden(self.hidden_of(root, &Layer::durable_cover));
        }
    }

    /// The blocks of a root that no layer above shows.
    fn hidden_of(&self, root: LayerId, cover: &dyn Fn(&Layer) -> RoaringBitmap) -> RoaringBitmap {
        let catalog = self.shape.catalog();
        let mut found = RoaringBitmap::new();
        if let Some(entry) = catalog.layer(root).filter(|entry| is_nameless(entry)) {
            self.look_upwards(&catalog, Look::at(root, entry), cover, |id, hidden| {
                if id == root {
                    found.clone_from(hidden);
                }
            });
        }
        found
    }

    /// Looks at a nameless layer after the nameless ones above it. What they hide is handed down and grows, so a long chain costs no
    /// more than its layers hold together.
    fn look_upwards(
        &self,
        catalog: &Catalog,
        bottom: Look,
        cover: &dyn Fn(&Layer) -> RoaringBitmap,
        mut found: impl FnMut(LayerId, &RoaringBitmap),
    ) {
        let cover = |layer: LayerId| self.layers.get(layer).map_or_else(RoaringBitmap::new, |layer| cover(&layer));
        let mut looks = vec![bottom];
        while let Some(look) = looks.last_mut() {
            if let Some(child) = look.children.next() {
                match catalog.layer(child) {
                    Some(entry) if is_nameless(entry) => looks.push(Look::at(child, entry)),
                    _ => look.meet(cover(child)),
                }
                continue;
            }
            let Some(Look { layer: id, hidden, .. }) = looks.pop() else { return };
            let mut hidden = hidden.unwrap_or_default();
            found(id, &hidden);
            if let Some(below) = looks.last_mut() {
                hidden |= cover(id);
                below.meet(hidden);
            }
        }
    }

    fn note_dead(&self, id: LayerId, hidden: &RoaringBitmap, found: &mut Found) {
        let Some(layer) = self.layers.get(id) else { return };
        let mut dead = layer.with_presence(|presence| &presence.present & hidden);
        if layer.has_patches() {
            dead |= layer.patched_blocks() & hidden;
        }
        if !dead.is_empty() {
            found.dead.push((id, dead));
        }
    }
}
