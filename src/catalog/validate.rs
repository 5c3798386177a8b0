//! Invariants of the shape, checked before a recovered catalogue is used and by `check`.

use std::collections::HashMap;

use super::Catalog;
use crate::format::valid_name;
use crate::ids::LayerId;
use crate::limits::VOLUME_BYTES_MAX;

impl Catalog {
    /// One sentence for each violation.
    pub fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut names: HashMap<LayerId, u32> = HashMap::new();
        for (id, volume) in &self.volumes {
            let label = format!("volume {id} '{}'", volume.name);
            if self.names.get(&volume.name) != Some(id) || valid_name(&volume.name).is_err() {
                found.push(format!("{label}: its name is not a valid one, or another volume's"));
            }
            if volume.size_bytes == 0 || volume.size_bytes > VOLUME_BYTES_MAX {
                found.push(format!("{label}: size {} is out of range", volume.size_bytes));
            }
            *names.entry(volume.head).or_default() += 1;
            if self.layers.get(&volume.head).is_some_and(|head| !head.children.is_empty() || head.names != 1) {
                found.push(format!("{label}: its open layer {} is shared", volume.head));
            }
            for snapshot in volume.snapshots.iter() {
                *names.entry(snapshot.layer).or_default() += 1;
            }
        }
        for (id, layer) in &self.layers {
            let named = names.remove(id).unwrap_or(0);
            if named != layer.names {
                found.push(format!("layer {id}: {named} names refer to it, it counts {}", layer.names));
            }
            if layer.names == 0 && layer.children.is_empty() {
                found.push(format!("layer {id}: nothing refers to it"));
            }
            if layer.parent.is_some_and(|parent| parent >= *id || !self.layers.contains_key(&parent)) {
                found.push(format!("layer {id}: its parent is missing or younger"));
            }
        }
        found.extend(names.keys().map(|layer| format!("layer {layer}: a name refers to it, but it does not exist")));
        found.sort();
        found
    }
}
