//! Which blocks nobody can see.
//!
//! A block of a layer is dead when every child hides it (has it, or zeroed it, durably; or is itself nameless and only has
//! children that hide it) and neither a name nor the chain of an image shows the layer. A patch hides nothing, for the block
//! below it is still needed.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use roaring::RoaringBitmap;

use super::core::Core;
use crate::error::Result;
use crate::ids::LayerId;

impl Core {
    /// Looks once at all nameless layers and forgets their dead blocks. Answers whether there were any.
    ///
    /// # Errors
    /// The store refuses writes.
    pub fn reclaim_step(&self) -> Result<bool> {
        if !self.reclaim.swap(false, Ordering::AcqRel) {
            return Ok(false);
        }
        let mut found = false;
        let hidden = self.hidden_below();
        self.tell_hidden(|layer| hidden.get(&layer).cloned());
        for (id, hidden) in hidden {
            let Some(layer) = self.layers.get(id) else { continue };
            let mut dead = layer.with_presence(|presence| &presence.present & &hidden);
            if layer.has_patches() {
                dead |= layer.patched_blocks() & &hidden;
            }
            if !dead.is_empty() {
                found = true;
                self.layers.forget(&layer, &dead)?;
            }
        }
        Ok(found)
    }

    /// For each sealed layer without a name: the blocks that all layers above hide.
    fn hidden_below(&self) -> HashMap<LayerId, RoaringBitmap> {
        let catalog = self.catalog();
        let mut order: Vec<_> = catalog.layers().collect();
        // Children have larger numbers, so they come first.
        order.sort_unstable_by_key(|(id, _)| std::cmp::Reverse(*id));
        let mut hidden: HashMap<LayerId, RoaringBitmap> = HashMap::new();
        for (id, entry) in order {
            if entry.names > 0 || !entry.held.is_empty() {
                continue;
            }
            let mut children = entry.children.iter();
            let through = |child: &LayerId| {
                let mut covered = self.layers.get(*child).map_or_else(RoaringBitmap::new, |layer| self.layers.durable_cover(&layer));
                if let Some(above) = hidden.get(child) {
                    covered |= above;
                }
                covered
            };
            let Some(first) = children.next() else { continue };
            let mut all = through(first);
            for child in children {
                if all.is_empty() {
                    break;
                }
                all &= through(child);
            }
            hidden.insert(id, all);
        }
        hidden
    }
}
