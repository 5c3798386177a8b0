//! Changes of the shape.

use std::sync::Arc;

use super::{Catalog, LayerEntry, SnapshotEntry, Snapshots, VolumeEntry};
use crate::format::{FormatError, Labels, LayerRecord, LeaseRecord, ShapeRecord, SnapshotRecord, VolumeLimits, VolumeRecord};
use crate::ids::{LayerId, VolumeId};

impl Catalog {
    /// That of an empty store with this random number.
    pub fn new(store_id: [u8; 16]) -> Self {
        Self { store_id, ..Self::default() }
    }

    /// Makes one change of shape; answers the layers that it frees.
    ///
    /// # Errors
    /// The record does not fit the shape. The catalogue may be changed in part; only damaged journals lead here.
    pub fn apply(&mut self, record: &ShapeRecord) -> Result<Vec<LayerId>, FormatError> {
        match record {
            ShapeRecord::Layer(layer) => self.add_layer(layer)?,
            ShapeRecord::Volume(volume) => self.add_volume(volume)?,
            ShapeRecord::Snapshot(snapshot) => self.add_snapshot(snapshot)?,
            ShapeRecord::Counters { volume, layer } => {
                self.next_volume = self.next_volume.max(*volume);
                self.next_layer = self.next_layer.max(*layer);
            }
            ShapeRecord::Seal { volume, head } => return self.seal(*volume, *head),
            ShapeRecord::Rename { volume, name } => self.rename(*volume, name)?,
            ShapeRecord::Resize { volume, size_bytes } => self.volume_mut(*volume)?.size_bytes = *size_bytes,
            ShapeRecord::DestroyVolume(volume) => return self.remove_volume(*volume),
            ShapeRecord::DestroySnapshot { volume, name } => return self.remove_snapshot(*volume, name),
            ShapeRecord::Detach(layer) => {
                let entry = self.layer_mut(*layer)?;
                entry.needed_from = LayerId::default();
                entry.detached = entry.source.take();
            }
            ShapeRecord::Hydration(layer, settings) => {
                if let Some(source) = &mut self.layer_mut(*layer)?.source {
                    source.settings = *settings;
                }
            }
            ShapeRecord::Sources(layer, uris) => {
                let entry = self.layer_mut(*layer)?;
                if let Some(source) = &mut entry.source {
                    source.uris.clone_from(uris);
                    entry.named.extend(uris.iter().cloned());
                }
            }
            ShapeRecord::Attach(layer, needed_from, source) => {
                let entry = self.layer_mut(*layer)?;
                entry.needed_from = *needed_from;
                (entry.source, entry.detached) = (Some(source.clone()), None);
                entry.named.extend(source.uris.iter().cloned());
            }
            ShapeRecord::Labels(volume, labels) => self.volume_mut(*volume)?.labels.clone_from(labels),
            ShapeRecord::Limits(volume, limits) => self.volume_mut(*volume)?.limits = *limits,
            ShapeRecord::Held(held) => self.layer_mut(held.layer)?.held.push((held.held, held.size_bytes)),
            ShapeRecord::Lease(lease) => self.add_lease(lease)?,
            ShapeRecord::LeaseOver(id) => self.leases.remove(*id),
            ShapeRecord::Lessee(lessee) => drop(self.lessees.insert(lessee.id, lessee.clone())),
            ShapeRecord::LesseeOver(id) => drop(self.lessees.remove(id)),
            ShapeRecord::Live(layer) => self.layer_mut(*layer)?.live = true,
        }
        Ok(Vec::new())
    }

    fn layer_mut(&mut self, layer: LayerId) -> Result<&mut LayerEntry, FormatError> {
        self.layers.get_mut(&layer).map(Arc::make_mut).ok_or_else(|| FormatError::damaged(format!("layer {layer} does not exist")))
    }

    fn volume_mut(&mut self, volume: VolumeId) -> Result<&mut VolumeEntry, FormatError> {
        self.volumes.get_mut(&volume).map(Arc::make_mut).ok_or_else(|| FormatError::damaged(format!("volume {volume} does not exist")))
    }

    fn add_layer(&mut self, record: &LayerRecord) -> Result<(), FormatError> {
        let layer = record.layer;
        if self.layers.contains_key(&layer) {
            return Err(FormatError::damaged(format!("layer {layer} exists twice")));
        }
        if let Some(parent) = record.parent {
            self.layer_mut(parent)?.children.insert(layer);
        }
        let LayerRecord { parent, origin, source, .. } = record.clone();
        let named = source.iter().flat_map(|source| source.uris.iter().cloned()).collect();
        self.layers.insert(layer, Arc::new(LayerEntry { parent, origin, source, named, ..LayerEntry::default() }));
        self.next_layer = self.next_layer.max(layer.0.saturating_add(1));
        Ok(())
    }

    fn add_volume(&mut self, record: &VolumeRecord) -> Result<(), FormatError> {
        let VolumeRecord { volume, head, size_bytes, created_at, name, parent } = record.clone();
        if self.volumes.contains_key(&volume) || self.names.contains_key(&name) {
            return Err(FormatError::damaged(format!("volume {volume} '{name}' exists twice")));
        }
        self.layer_mut(head)?.names += 1;
        self.names.insert(name.clone(), volume);
        self.keys.insert(self.key(volume), volume);
        let (snapshots, labels, limits) = (Snapshots::default(), Labels::new(), VolumeLimits::default());
        self.volumes.insert(volume, Arc::new(VolumeEntry { name, head, size_bytes, created_at, parent, snapshots, labels, limits }));
        self.next_volume = self.next_volume.max(volume.0.saturating_add(1));
        Ok(())
    }

    fn add_snapshot(&mut self, record: &SnapshotRecord) -> Result<(), FormatError> {
        let SnapshotRecord { volume, layer, size_bytes, created_at, name } = record.clone();
        self.layer_mut(layer)?.names += 1;
        let entry = self.volume_mut(volume)?;
        let label = format!("snapshot '{}@{name}' exists twice", entry.name);
        match entry.snapshots.push(SnapshotEntry { name, layer, size_bytes, created_at }) {
            true => Ok(()),
            false => Err(FormatError::damaged(label)),
        }
    }

    fn add_lease(&mut self, lease: &LeaseRecord) -> Result<(), FormatError> {
        let LeaseRecord { volume, snapshot, .. } = lease;
        if self.volume_mut(*volume)?.snapshots.get(snapshot).is_none() {
            return Err(FormatError::damaged(format!(
                "there is a lease of snapshot '{snapshot}' of volume {volume}, which does not exist"
            )));
        }
        self.leases.insert(lease);
        Ok(())
    }

    fn seal(&mut self, volume: VolumeId, head: LayerId) -> Result<Vec<LayerId>, FormatError> {
        self.layer_mut(head)?.names += 1;
        let entry = self.volume_mut(volume)?;
        let old = std::mem::replace(&mut entry.head, head);
        self.release(old)
    }

    fn rename(&mut self, volume: VolumeId, name: &str) -> Result<(), FormatError> {
        if self.names.contains_key(name) {
            return Err(FormatError::damaged(format!("name '{name}' is taken")));
        }
        let entry = self.volume_mut(volume)?;
        let old = std::mem::replace(&mut entry.name, name.to_owned());
        self.names.remove(&old);
        self.names.insert(name.to_owned(), volume);
        Ok(())
    }

    fn remove_volume(&mut self, volume: VolumeId) -> Result<Vec<LayerId>, FormatError> {
        let entry = self.volumes.remove(&volume).ok_or_else(|| FormatError::damaged(format!("volume {volume} does not exist")))?;
        self.names.remove(&entry.name);
        self.leases.remove_of(volume, None);
        self.keys.remove(&self.key(volume));
        let mut freed = self.release(entry.head)?;
        for snapshot in entry.snapshots.iter() {
            freed.extend(self.release(snapshot.layer)?);
        }
        Ok(freed)
    }

    fn remove_snapshot(&mut self, volume: VolumeId, name: &str) -> Result<Vec<LayerId>, FormatError> {
        let entry = self.volume_mut(volume)?;
        let removed = entry.snapshots.remove(name);
        let snapshot = removed.ok_or_else(|| FormatError::damaged(format!("snapshot '{}@{name}' does not exist", entry.name)))?;
        self.leases.remove_of(volume, Some(name));
        self.release(snapshot.layer)
    }

    /// Takes one name off a layer and frees the layers below that nothing refers to any more.
    fn release(&mut self, layer: LayerId) -> Result<Vec<LayerId>, FormatError> {
        let entry = self.layer_mut(layer)?;
        entry.names = entry.names.checked_sub(1).ok_or_else(|| FormatError::damaged(format!("layer {layer} has no name to release")))?;
        let mut freed = Vec::new();
        let mut next = Some(layer);
        while let Some(layer) = next {
            let entry = self.layer_mut(layer)?;
            if entry.names > 0 || !entry.children.is_empty() {
                break;
            }
            next = entry.parent;
            self.layers.remove(&layer);
            freed.push(layer);
            if let Some(parent) = next {
                self.layer_mut(parent)?.children.remove(&layer);
            }
        }
        Ok(freed)
    }
}
