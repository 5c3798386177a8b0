//! The real state of a host, and the inventory that it reports.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use roaring::RoaringBitmap;
use volfork::placement::{Bandwidth, HeldSnapshot, HostInventory, HostStatus, InFlight, PlacedVolume, Resources};

use crate::cache::Cache;
use crate::catalogue::{App, BLOCK_BYTES, Catalogue, GIB};
use crate::network::{Item, Network, SECOND, Time};
use crate::workload::Shape;

/// Seconds since the Unix epoch when the simulation begins.
pub const BEGINNING: u64 = 1_800_000_000;

pub const CPU_KIND: &str = "shared";

/// A host.
#[derive(Debug)]
pub struct Host {
    pub name: String,
    /// How many hosts had this place before.
    pub predecessors: u32,
    pub shape: Shape,
    pub draining: bool,
    pub cache: Cache,
    /// Machines on it: their application by number.
    pub machines: BTreeMap<u32, u32>,
    /// Names by which a scheduler knows the machines, by number.
    pub assignments: BTreeMap<u32, String>,
    /// Machines that wait for something that is being fetched.
    pub waiting: HashMap<Item, Vec<u32>>,
    /// Images that were pulled and are still whole.
    pub images: BTreeSet<u32>,
    /// Snapshots it has whole, for good.
    pub origins: BTreeSet<u32>,
    /// Blocks needed first that it has of others.
    pub present: BTreeMap<u32, RoaringBitmap>,
    pub used: Resources,
    /// Something other than the remaining bytes of fetches has changed since the last report.
    pub changed: bool,
    pub generation: u64,
}

impl Host {
    pub fn new(place: usize, predecessors: u32, shape: Shape) -> Self {
        Self {
            name: format!("host-{place:05}-{predecessors}"),
            predecessors,
            shape,
            draining: false,
            cache: Cache::new(shape.cache_bytes),
            machines: BTreeMap::new(),
            assignments: BTreeMap::new(),
            waiting: HashMap::new(),
            images: BTreeSet::new(),
            origins: BTreeSet::new(),
            present: BTreeMap::new(),
            used: Resources::default(),
            changed: true,
            generation: 0,
        }
    }

    pub fn fits(&self, app: &App, volume_bytes: u64) -> bool {
        !self.draining
            && self.cpus_used() + app.cpus <= self.shape.cpus
            && self.used.memory_bytes + app.memory_bytes <= self.shape.memory_bytes
            && self.used.volume_bytes + volume_bytes <= self.shape.volume_bytes
    }

    pub fn cpus_used(&self) -> u32 {
        self.used.cpus.get(CPU_KIND).copied().unwrap_or(0)
    }

    pub fn add_machine(&mut self, machine: u32, number: u32, app: &App, volume_bytes: u64, assignment: String) {
        self.machines.insert(machine, number);
        self.assignments.insert(machine, assignment);
        *self.used.cpus.entry(CPU_KIND.to_owned()).or_default() += app.cpus;
        self.used.memory_bytes += app.memory_bytes;
        self.used.volume_bytes += volume_bytes;
        self.changed = true;
    }

    pub fn remove_machine(&mut self, machine: u32, app: &App, volume_bytes: u64) -> Option<String> {
        self.machines.remove(&machine)?;
        *self.used.cpus.entry(CPU_KIND.to_owned()).or_default() -= app.cpus;
        self.used.memory_bytes -= app.memory_bytes;
        self.used.volume_bytes -= volume_bytes;
        self.changed = true;
        self.assignments.remove(&machine)
    }

    /// Adds to the cache and forgets what had to go; the snapshots among it.
    pub fn keep(&mut self, item: Item, bytes: u64, catalogue: &Catalogue) -> Vec<u32> {
        self.changed = true;
        let mut snapshots = Vec::new();
        for gone in self.cache.add(item, bytes) {
            match gone {
                Item::Layer(layer) => self.images.retain(|app| !catalogue.apps[*app as usize].layers.contains(&layer)),
                Item::Snapshot(snapshot) => {
                    self.present.remove(&snapshot);
                    snapshots.push(snapshot);
                }
            }
        }
        snapshots
    }

    /// Whether a layer is there and not only on its way.
    pub fn has_layer(&self, layer: u32) -> bool {
        self.cache.holds(Item::Layer(layer)) && !self.waiting.contains_key(&Item::Layer(layer))
    }

    /// Blocks that a fork would have to fetch before it is ready.
    pub fn missing_first(&self, snapshot: u32, catalogue: &Catalogue) -> u64 {
        let first = &catalogue.templates[snapshot as usize].first;
        match self.present.get(&snapshot) {
            _ if self.origins.contains(&snapshot) => 0,
            Some(present) => first.len() - first.intersection_len(present),
            None => first.len(),
        }
    }

    /// What it would report.
    pub fn inventory(&self, now: Time, place: usize, network: &Network, catalogue: &Catalogue) -> HostInventory {
        let layers = self.cache.items().filter_map(|(item, bytes)| match item {
            Item::Layer(layer) if self.has_layer(layer) => Some((catalogue.layers[layer as usize].digest, bytes)),
            _ => None,
        });
        let in_flight = network.flows(now, place).filter_map(|(flow, remaining)| match flow.item {
            Item::Layer(layer) => Some((catalogue.layers[layer as usize].digest, InFlight { bytes: flow.bytes, remaining })),
            Item::Snapshot(_) => None,
        });
        let image = |app: &u32| {
            let image = &catalogue.apps[*app as usize].image;
            (image.reference.clone(), image.bytes())
        };
        HostInventory {
            host: self.name.clone(),
            region: "ams".into(),
            zone: format!("{place:05}"),
            status: if self.draining { HostStatus::Draining } else { HostStatus::Ok },
            capacity: Resources {
                cpus: BTreeMap::from([(CPU_KIND.to_owned(), self.shape.cpus)]),
                memory_bytes: self.shape.memory_bytes,
                volume_bytes: self.shape.volume_bytes,
                ..Resources::default()
            },
            used: self.used.clone(),
            bandwidth: Bandwidth {
                download: self.shape.speeds.download as u64,
                registry: self.shape.speeds.registry as u64,
                upload: self.shape.speeds.upload as u64,
            },
            layers: layers.collect(),
            in_flight: in_flight.collect(),
            images: self.images.iter().map(image).collect(),
            snapshots: self.snapshots(catalogue).collect(),
            volumes: self.machines.iter().map(|(machine, app)| volume(*machine, &catalogue.apps[*app as usize], catalogue)).collect(),
            assignments: self.assignments.values().cloned().collect(),
            generation: self.generation,
            reported_at: BEGINNING + now / SECOND,
            ..HostInventory::default()
        }
    }

    fn snapshots<'a>(&'a self, catalogue: &'a Catalogue) -> impl Iterator<Item = (String, HeldSnapshot)> + 'a {
        let held = move |snapshot: u32, present| {
            let template = &catalogue.templates[snapshot as usize];
            (template.identity.clone(), HeldSnapshot { block_bytes: BLOCK_BYTES, size_bytes: template.size_bytes, present })
        };
        let partial = self.present.iter().filter(|(snapshot, _)| !self.origins.contains(snapshot));
        let partial = partial.map(move |(snapshot, present)| held(*snapshot, Some(present.clone())));
        self.origins.iter().map(move |snapshot| held(*snapshot, None)).chain(partial)
    }
}

/// Bytes of the volume of a machine.
pub fn volume_bytes(app: &App, catalogue: &Catalogue) -> u64 {
    app.template.map_or(GIB, |template| catalogue.templates[template as usize].size_bytes)
}

/// Name of the volume of a machine.
pub fn volume_name(machine: u32) -> String {
    format!("volume-{machine:07}")
}

fn volume(machine: u32, app: &App, catalogue: &Catalogue) -> (String, PlacedVolume) {
    let name = volume_name(machine);
    (name.clone(), PlacedVolume { app: app.name.clone(), name, size_bytes: volume_bytes(app, catalogue) })
}
