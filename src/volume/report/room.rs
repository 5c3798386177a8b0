//! What the blocks of a store take up.

use std::collections::{BTreeMap, BTreeSet};

use super::describe::Report;
use crate::catalog::VolumeEntry;
use crate::ids::LayerId;

/// Label of a volume that was made from an image: the image's name.
pub const IMAGE_LABEL: &str = "image";
/// Label of a volume that keeps the layers of an image which is being imported, or was not imported to the end.
pub const LAYERS_OF_LABEL: &str = "volfork.layers-of";

/// Space that the blocks of a store take up.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// let volume = store.create_volume("v", 1 << 30)?;
/// volume.write_at(&[1; 64 << 10], 0)?;
/// volume.fork("w")?;
/// // A fork takes nothing until it is written; blocks that are shared count once.
/// assert_eq!(store.room().held_bytes, 64 << 10);
/// assert_eq!((store.room().image_bytes, store.room().images.len()), (0, 0));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomInfo {
    /// Bytes of the blocks of all layers.
    pub held_bytes: u64,
    /// Those of the layers below volumes that were imported as images, each layer once.
    pub image_bytes: u64,
    /// Names of those volumes. Forks of them are machines' own.
    pub image_volumes: BTreeSet<String>,
    /// Names of the images, and the bytes of their compressed layers.
    pub images: BTreeMap<String, u64>,
}

impl Report {
    /// What the blocks of this store take up. Costs a look at each layer.
    pub fn room(&self) -> RoomInfo {
        let catalog = self.shape.catalog();
        let bytes_of = |layer: LayerId| {
            let layer = self.layers.get(layer);
            layer.map_or(0, |layer| layer.with_presence(|presence| presence.present.len())) * self.block_size.bytes()
        };
        let mut room = RoomInfo::default();
        let mut counted = BTreeSet::new();
        for (_, volume) in catalog.volumes().filter(|(_, volume)| is_image(volume)) {
            let mut bytes = 0;
            for (id, layer) in catalog.chain(volume.head) {
                bytes += layer.held.first().map_or(0, |(held, _)| held.layer.bytes);
                if counted.insert(id) {
                    room.image_bytes += bytes_of(id);
                }
            }
            room.image_volumes.insert(volume.name.clone());
            room.images.extend(volume.labels.get(IMAGE_LABEL).map(|name| (name.clone(), bytes)));
        }
        room.held_bytes = catalog.layers().map(|(id, _)| bytes_of(id)).sum();
        room
    }
}

/// Whether a volume was imported as an image: a fork has its label, but stands on another volume or on an address.
fn is_image(volume: &VolumeEntry) -> bool {
    let parent = &volume.parent;
    let is_labeled = [IMAGE_LABEL, LAYERS_OF_LABEL].into_iter().any(|label| volume.labels.contains_key(label));
    is_labeled && (parent.is_empty() || parent.parse::<crate::content::Digest>().is_ok())
}
