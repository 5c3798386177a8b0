//! The shape at one moment, as a checkpoint writes it.

use std::sync::Arc;

use super::{Catalog, LayerEntry, VolumeEntry};
use crate::format::{HeldRecord, LayerRecord, LeaseRecord, LesseeRecord, SOURCE_URIS_MAX, ShapeRecord, SnapshotRecord, VolumeRecord};
use crate::ids::{LayerId, VolumeId};

/// The shape at one moment. It shares its entries with the catalogue, which copies an entry before it changes it.
pub struct Frozen {
    next_volume: u64,
    next_layer: u32,
    layers: Vec<(LayerId, Arc<LayerEntry>)>,
    volumes: Vec<(VolumeId, Arc<VolumeEntry>)>,
    leases: Vec<LeaseRecord>,
    lessees: Vec<LesseeRecord>,
}

impl Frozen {
    /// The shape at this moment. Costs a pointer for each layer and volume.
    pub fn of(catalog: &Catalog) -> Self {
        Self {
            next_volume: catalog.next_volume,
            next_layer: catalog.next_layer,
            layers: catalog.layers.iter().map(|(id, entry)| (*id, Arc::clone(entry))).collect(),
            volumes: catalog.volumes.iter().map(|(id, entry)| (*id, Arc::clone(entry))).collect(),
            leases: catalog.leases.iter().cloned().collect(),
            lessees: catalog.lessees.values().cloned().collect(),
        }
    }

    /// Its layers, by number.
    pub fn layers(&self) -> Vec<LayerId> {
        let mut layers: Vec<_> = self.layers.iter().map(|(id, _)| *id).collect();
        layers.sort_unstable();
        layers
    }

    /// Records that make this shape from nothing, parents first.
    pub fn records(mut self) -> impl Iterator<Item = ShapeRecord> {
        let counters = ShapeRecord::Counters { volume: self.next_volume, layer: self.next_layer };
        // A child always has a larger number than its parent.
        self.layers.sort_unstable_by_key(|(id, _)| *id);
        let layers = self.layers.into_iter().flat_map(|(id, entry)| layer_records(id, &entry));
        let volumes = self.volumes.into_iter().flat_map(|(id, volume)| volume_records(id, &volume));
        let leases = self.leases.into_iter().map(ShapeRecord::Lease);
        let lessees = self.lessees.into_iter().map(ShapeRecord::Lessee);
        std::iter::once(counters).chain(layers).chain(volumes).chain(leases).chain(lessees)
    }
}

fn layer_records(id: LayerId, entry: &LayerEntry) -> Vec<ShapeRecord> {
    let LayerEntry { parent, origin, source, detached, named, needed_from, held, live, .. } = entry;
    let mut first = source.clone().or_else(|| detached.clone());
    // A layer begins with all addresses that it ever had, and goes on with those that it has.
    let has = first.as_mut().map(|first| std::mem::replace(&mut first.uris, named.iter().take(SOURCE_URIS_MAX).cloned().collect()));
    let mut records = vec![ShapeRecord::Layer(LayerRecord { layer: id, parent: *parent, origin: origin.clone(), source: first })];
    records.extend(has.map(|uris| ShapeRecord::Sources(id, uris)));
    records.extend(detached.is_some().then_some(ShapeRecord::Detach(id)));
    if let (Some(source), true) = (source, *needed_from > LayerId::default()) {
        records.push(ShapeRecord::Attach(id, *needed_from, source.clone()));
    }
    let record = |(held, size_bytes): &_| ShapeRecord::Held(HeldRecord { layer: id, size_bytes: *size_bytes, held: *held });
    records.extend(held.iter().map(record));
    records.extend(live.then_some(ShapeRecord::Live(id)));
    records
}

fn volume_records(id: VolumeId, volume: &VolumeEntry) -> Vec<ShapeRecord> {
    let mut records = vec![ShapeRecord::Volume(VolumeRecord {
        volume: id,
        head: volume.head,
        size_bytes: volume.size_bytes,
        created_at: volume.created_at,
        name: volume.name.clone(),
        parent: volume.parent.clone(),
    })];
    if !volume.labels.is_empty() {
        records.push(ShapeRecord::Labels(id, volume.labels.clone()));
    }
    records.extend(volume.limits.is_some().then_some(ShapeRecord::Limits(id, volume.limits)));
    records.extend(volume.snapshots.iter().map(|snapshot| {
        ShapeRecord::Snapshot(SnapshotRecord {
            volume: id,
            layer: snapshot.layer,
            size_bytes: snapshot.size_bytes,
            created_at: snapshot.created_at,
            name: snapshot.name.clone(),
        })
    }));
    records
}
