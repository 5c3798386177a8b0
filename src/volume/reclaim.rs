//! Which blocks nobody can see.
//!
//! A block of a layer is dead when every child hides it (has it, or zeroed it, durably; or is itself nameless and only has
//! children that hide it) and neither a name nor the chain of an image shows the layer. A patch hides nothing, for the block
//! below it is still needed.

use std::collections::HashMap;

use roaring::RoaringBitmap;

use super::core::Core;
use crate::catalog::{Catalog, LayerEntry};
use crate::error::Result;
use crate::hydrate::Hydrator;
use crate::ids::LayerId;
use crate::layer::{Layer, Presence};
use crate::sync::atomic::Ordering;

/// What a look at all nameless layers found.
#[derive(Default)]
struct Found {
    dead: Vec<(LayerId, RoaringBitmap)>,
    /// What nobody above a layer that stands for a source can see.
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

impl Core {
    /// Looks once at all nameless layers and forgets their dead blocks. Answers whether there were any.
    ///
    /// # Errors
    /// The store refuses writes.
    pub fn reclaim_step(&self) -> Result<bool> {
        if !self.reclaim.swap(false, Ordering::AcqRel) {
            return Ok(false);
        }
        let _roots = self.roots.lock();
        let found = self.find_dead();
        self.tell_hidden(|layer| found.hidden.get(&layer).cloned());
        for (id, dead) in &found.dead {
            let Some(layer) = self.layers.get(*id) else { continue };
            let forgotten = self.layers.barriers.prepare_forget().and_then(|()| {
                let _forgetting = self.forgetting.write();
                self.layers.zeroes.forget(&layer, dead)
            });
            if !matches!(forgotten, Ok(true)) {
                // The next step goes on, when these are durably gone and their space is given back.
                self.reclaim.store(true, Ordering::Release);
                forgotten?;
                self.layers.barriers.sync([])?;
                break;
            }
        }
        Ok(!found.dead.is_empty())
    }

    fn find_dead(&self) -> Found {
        let catalog = self.catalog();
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

    /// Tells a hydrator which blocks of its root nobody above can see, or will once what was written there is durable. If nothing but
    /// that is missing, it is made durable.
    pub(super) fn look_above(&self, hydrator: &Hydrator) {
        let root = hydrator.layer().id;
        let _roots = self.roots.lock();
        let covered = self.hidden_of(root, &|layer| layer.with_presence(Presence::covered));
        // An error shows at the next flush; then it is looked again.
        if !hydrator.set_covered(covered) && !hydrator.is_complete() && self.layers.barriers.sync_fresh().is_ok() {
            hydrator.set_hidden(self.hidden_of(root, &Layer::durable_cover));
        }
    }

    /// The blocks of a root that nobody above can see.
    fn hidden_of(&self, root: LayerId, cover: &dyn Fn(&Layer) -> RoaringBitmap) -> RoaringBitmap {
        let catalog = self.catalog();
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
