//! All that requests look up, by number of host.

use std::collections::BTreeMap;

use super::apps::{Apps, Numbers};
use super::inventory::{HostInventory, InventoryDelta, Resources};
use super::presence::{Moving, Presence};
use super::reservation::Reservation;
use super::rows::{Kinds, Row, Share};
use super::scores::normal_name;
use crate::content::Digest;
use crate::place::index;

/// The fetches of a host, so that they can be taken out of the index again.
#[derive(Debug, Default)]
pub(super) struct Fetching {
    layers: Vec<Digest>,
    snapshots: Vec<String>,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    pub rows: Vec<Row>,
    pub cpus: Kinds,
    pub gpus: Kinds,
    pub layers: Presence<Digest>,
    pub images: Presence<String>,
    pub snapshots: Presence<String>,
    pub regions: Numbers,
    pub zones: Numbers,
    pub apps: Apps,
}

impl Index {
    /// A number for a new host, which is in its region and zone already. An unnamed zone is a zone of the host's own.
    pub fn add(&mut self, number: u32, inventory: &HostInventory) {
        let at = index(number);
        if self.rows.len() <= at {
            self.rows.resize(at + 1, Row::default());
        }
        let zone = if inventory.zone.is_empty() { &inventory.host } else { &inventory.zone };
        let row = &mut self.rows[at];
        row.known = true;
        row.region = self.regions.take(&inventory.region, "");
        row.zone = self.zones.take(&inventory.region, zone);
    }

    /// Takes a host out of its region and zone.
    pub fn remove(&mut self, number: u32) {
        let row = std::mem::take(&mut self.rows[index(number)]);
        self.regions.give_back(row.region);
        self.zones.give_back(row.zone);
        let nothing = BTreeMap::new();
        self.cpus.set(number, &nothing, |_| Share::default());
        self.gpus.set(number, &nothing, |_| Share::default());
    }

    /// Follows a change of what a host holds; `before` is its inventory without the change.
    pub fn follow(&mut self, number: u32, before: &HostInventory, delta: &InventoryDelta) {
        let zone = self.rows[index(number)].zone;
        for (digest, change) in &delta.layers {
            match change {
                Some(_) => self.layers.hold(digest, number),
                None => self.layers.lose(digest, number),
            }
        }
        // Two spellings may be one image, so names that go are taken out before those that come are put in.
        for name in delta.images.iter().filter(|(_, change)| change.is_none()).map(|(name, _)| name) {
            self.images.lose(&normal_name(name), number);
        }
        let kept = before.images.keys().filter(|name| !delta.images.is_empty() && !delta.images.contains_key(*name));
        let come = delta.images.iter().filter(|(_, change)| change.is_some()).map(|(name, _)| name);
        for name in kept.chain(come) {
            self.images.hold(&normal_name(name), number);
        }
        for (identity, change) in &delta.snapshots {
            match change {
                Some(_) => self.snapshots.hold(identity, number),
                None => self.snapshots.lose(identity, number),
            }
        }
        for (name, change) in &delta.volumes {
            if let Some(old) = before.volumes.get(name) {
                self.apps.take(&old.app, zone, &old.name);
            }
            if let Some(new) = change {
                self.apps.add(&new.app, zone, &new.name);
            }
        }
    }

    /// Computes a host's numbers anew from its inventory and what is reserved on it.
    pub fn refresh<'r>(
        &mut self,
        number: u32,
        inventory: &HostInventory,
        fetching: &mut Fetching,
        reservations: impl Iterator<Item = &'r Reservation>,
    ) {
        for digest in fetching.layers.drain(..) {
            self.layers.end(&digest, number);
        }
        for identity in fetching.snapshots.drain(..) {
            self.snapshots.end(&identity, number);
        }
        let Row { region, zone, .. } = self.rows[index(number)];
        let mut reserved = Resources::default();
        let mut row = Row::of(inventory, region, zone, &reserved);
        for (digest, fetch) in inventory.in_flight.iter().filter(|(digest, _)| !inventory.layers.contains_key(*digest)) {
            let bytes = fetch.remaining.min(fetch.bytes);
            if self.layers.begin(digest, Moving { host: number, bytes, pending: false }) {
                fetching.layers.push(*digest);
                row.reported.add(bytes);
            }
        }
        for reservation in reservations {
            reserved.add(&reservation.resources);
            row.assignments += 1;
            for layer in reservation.layers.iter().filter(|layer| !inventory.layers.contains_key(&layer.digest)) {
                if self.layers.begin(&layer.digest, Moving { host: number, bytes: layer.bytes, pending: true }) {
                    fetching.layers.push(layer.digest);
                    row.pending.add(layer.bytes);
                }
            }
            if let Some(fetch) = &reservation.snapshot
                && self.snapshots.begin(&fetch.identity, Moving { host: number, bytes: fetch.bytes, pending: true })
            {
                fetching.snapshots.push(fetch.identity.clone());
                row.pending.add(fetch.bytes);
            }
        }
        let amounts = Row::of(inventory, region, zone, &reserved);
        row.memory = amounts.memory;
        row.volumes = amounts.volumes;
        self.rows[index(number)] = row;
        let HostInventory { capacity, used, .. } = inventory;
        let share = |capacity: u32, used: Option<&u32>, reserved: Option<&u32>| {
            let amount = |count: Option<&u32>| u64::from(count.copied().unwrap_or(0));
            Share::new(u64::from(capacity), amount(used), amount(reserved))
        };
        self.cpus.set(number, &capacity.cpus, |kind| share(capacity.cpus[kind], used.cpus.get(kind), reserved.cpus.get(kind)));
        self.gpus.set(number, &capacity.gpus, |kind| share(capacity.gpus[kind], used.gpus.get(kind), reserved.gpus.get(kind)));
    }

    /// Bytes on the heap.
    pub fn memory_bytes(&self) -> usize {
        let names = |presence: &Presence<String>| presence.memory_bytes() + presence.len() * 64;
        self.rows.capacity() * size_of::<Row>()
            + self.cpus.memory_bytes()
            + self.gpus.memory_bytes()
            + self.layers.memory_bytes()
            + names(&self.images)
            + names(&self.snapshots)
            + (self.regions.end() + self.zones.end()) * 256
            + self.apps.memory_bytes()
    }
}
