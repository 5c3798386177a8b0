//! Changes of an inventory.

use std::collections::BTreeMap;

use super::inventory::{HostInventory, InventoryDelta};
use crate::error::{Error, ErrorKind, Result};

fn differences<K: Ord + Clone, V: PartialEq + Clone>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> BTreeMap<K, Option<V>> {
    let gone = old.keys().filter(|key| !new.contains_key(key)).map(|key| (key.clone(), None));
    let come = new.iter().filter(|(key, value)| old.get(key) != Some(value)).map(|(key, value)| (key.clone(), Some(value.clone())));
    gone.chain(come).collect()
}

fn patch<K: Ord + Clone, V: Clone>(map: &mut BTreeMap<K, V>, changes: &BTreeMap<K, Option<V>>) {
    for (key, change) in changes {
        match change {
            Some(value) => _ = map.insert(key.clone(), value.clone()),
            None => _ = map.remove(key),
        }
    }
}

fn changed<T: PartialEq + Clone>(old: &T, new: &T) -> Option<T> {
    (old != new).then(|| new.clone())
}

impl HostInventory {
    /// The change from this inventory to a newer one of the same host.
    pub fn delta_to(&self, newer: &Self) -> InventoryDelta {
        InventoryDelta {
            host: newer.host.clone(),
            base: self.generation,
            generation: newer.generation,
            reported_at: newer.reported_at,
            store: changed(&self.store, &newer.store),
            region: changed(&self.region, &newer.region),
            zone: changed(&self.zone, &newer.zone),
            status: changed(&self.status, &newer.status),
            capacity: changed(&self.capacity, &newer.capacity),
            used: changed(&self.used, &newer.used),
            bandwidth: changed(&self.bandwidth, &newer.bandwidth),
            layers: differences(&self.layers, &newer.layers),
            in_flight: differences(&self.in_flight, &newer.in_flight),
            images: differences(&self.images, &newer.images),
            snapshots: differences(&self.snapshots, &newer.snapshots),
            volumes: differences(&self.volumes, &newer.volumes),
            assignments: changed(&self.assignments, &newer.assignments),
            report_every_seconds: changed(&self.report_every_seconds, &newer.report_every_seconds),
        }
    }

    /// Applies a change.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it is not one of this host and generation; then nothing is changed.
    pub fn apply(&mut self, delta: &InventoryDelta) -> Result<()> {
        self.check(delta)?;
        self.generation = delta.generation;
        self.reported_at = delta.reported_at;
        if let Some(store) = &delta.store {
            self.store = store.clone();
        }
        if let Some(region) = &delta.region {
            self.region = region.clone();
        }
        if let Some(zone) = &delta.zone {
            self.zone = zone.clone();
        }
        if let Some(status) = delta.status {
            self.status = status;
        }
        if let Some(capacity) = &delta.capacity {
            self.capacity = capacity.clone();
        }
        if let Some(used) = &delta.used {
            self.used = used.clone();
        }
        if let Some(bandwidth) = delta.bandwidth {
            self.bandwidth = bandwidth;
        }
        patch(&mut self.layers, &delta.layers);
        patch(&mut self.in_flight, &delta.in_flight);
        patch(&mut self.images, &delta.images);
        patch(&mut self.snapshots, &delta.snapshots);
        patch(&mut self.volumes, &delta.volumes);
        if let Some(assignments) = &delta.assignments {
            self.assignments = assignments.clone();
        }
        if let Some(every) = delta.report_every_seconds {
            self.report_every_seconds = every;
        }
        Ok(())
    }

    pub(super) fn check(&self, delta: &InventoryDelta) -> Result<()> {
        let host = &self.host;
        if *host != delta.host {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("a change of host '{}' was applied to host '{host}': apply it to its own host", delta.host),
            ));
        }
        if self.generation != delta.base || delta.generation <= delta.base {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "host '{host}' sent a change from generation {} to {}, but generation {} is known of it: send a full report",
                    delta.base, delta.generation, self.generation
                ),
            ));
        }
        Ok(())
    }
}
