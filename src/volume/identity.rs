//! Identity of the bytes of sealed layers.

use crate::catalog::{Catalog, LayerEntry};
use crate::ids::LayerId;

/// Identity of the bytes of a sealed layer, the same on every host that has them: the store in which they were written and the layer's
/// number there, neither of which is ever used again.
pub fn identity_in(catalog: &Catalog, store_id: &str, layer: LayerId) -> String {
    match catalog.layer(layer) {
        Some(LayerEntry { origin, .. }) if !origin.is_empty() => origin.clone(),
        _ => format!("{store_id}/{layer}"),
    }
}
