//! The reference: placement without an index, which looks at the sets of every host for every request.

use std::collections::{HashMap, HashSet};

use volfork::content::Digest;
use volfork::placement::{HostInventory, HostStatus, Request, Reservation, Weights};

/// A host with its layers in a hash set, as a scheduler would keep them that does not think about it.
pub struct NaiveHost {
    pub inventory: HostInventory,
    pub layers: HashSet<Digest>,
}

impl NaiveHost {
    pub fn new(inventory: HostInventory) -> Self {
        let layers = inventory.layers.keys().copied().collect();
        Self { inventory, layers }
    }
}

/// The reported inventories of all hosts.
#[derive(Default)]
pub struct Naive {
    pub hosts: Vec<NaiveHost>,
    pub reservations: Vec<Reservation>,
    pub max_age_seconds: u64,
}

impl Naive {
    /// Names of the hosts that meet all constraints, with their region's place and their seconds, in no order.
    pub fn costs(&self, request: &Request, weights: &Weights, now: u64) -> Vec<(String, usize, f64)> {
        let volumes = self.volumes_by_zone(request);
        let mut reserved: HashMap<&str, Vec<&Reservation>> = HashMap::new();
        for reservation in &self.reservations {
            reserved.entry(&reservation.host).or_default().push(reservation);
        }
        let none = Vec::new();
        let one = |host: &NaiveHost| {
            let reserved = reserved.get(host.inventory.host.as_str()).unwrap_or(&none);
            let region = match request.regions.as_slice() {
                [] => 0,
                regions => regions.iter().position(|region| *region == host.inventory.region)?,
            };
            let (of_app, of_name) = volumes.get(&zone_of(&host.inventory)).copied().unwrap_or((0, 0));
            let fullness = self.fullness(host, reserved, request, now)?;
            if (request.require_unique_zone && of_name > 0) || (request.unique_zone_app_wide && of_app > 0) {
                return None;
            }
            let spread = if request.app.is_empty() { 0.0 } else { weights.spread_seconds * of_app as f64 };
            let seconds = transfer(host, reserved, request, weights) + weights.headroom_seconds * fullness + spread;
            Some((host.inventory.host.clone(), region, seconds))
        };
        self.hosts.iter().filter_map(one).collect()
    }

    fn volumes_by_zone(&self, request: &Request) -> HashMap<(String, String), (usize, usize)> {
        let mut zones: HashMap<_, (usize, usize)> = HashMap::new();
        let mut add = |host: &HostInventory, app: &str, name: &str| {
            if app == request.app {
                let here = zones.entry(zone_of(host)).or_default();
                here.0 += 1;
                here.1 += usize::from(name == request.volume);
            }
        };
        for host in &self.hosts {
            for volume in host.inventory.volumes.values() {
                add(&host.inventory, &volume.app, &volume.name);
            }
            for reservation in self.reservations.iter().filter(|one| one.host == host.inventory.host) {
                add(&host.inventory, &reservation.app, &reservation.volume);
            }
        }
        zones
    }

    /// Fullness with the request on the host, or `None` if there is no room or the host takes none.
    fn fullness(&self, host: &NaiveHost, reserved: &[&Reservation], request: &Request, now: u64) -> Option<f64> {
        let HostInventory { capacity, used, status, reported_at, report_every_seconds, .. } = &host.inventory;
        let max_age_seconds = if *report_every_seconds == 0 { self.max_age_seconds } else { 3 * report_every_seconds };
        if *status != HostStatus::Ok || *reported_at > now + max_age_seconds || *reported_at + max_age_seconds < now {
            return None;
        }
        let mut fullness: f64 = 0.0;
        let mut fits = |capacity: u64, taken: u64, need: u64, counts: bool| {
            let free = capacity.saturating_sub(taken);
            if counts && capacity > 0 {
                fullness = fullness.max(1.0 - free.saturating_sub(need) as f64 / capacity as f64);
            }
            free >= need
        };
        let memory = used.memory_bytes + reserved.iter().map(|one| one.resources.memory_bytes).sum::<u64>();
        let volumes = used.volume_bytes + reserved.iter().map(|one| one.resources.volume_bytes).sum::<u64>();
        let mut all = fits(capacity.memory_bytes, memory, request.compute.memory_bytes, true);
        all &= fits(capacity.volume_bytes, volumes, request.volume_bytes, true);
        let wanted = &request.compute.cpus;
        if wanted.count > 0 || !wanted.kind.is_empty() {
            let taken = |kind: &String| {
                let count = |resources: &volfork::placement::Resources| u64::from(resources.cpus.get(kind).copied().unwrap_or(0));
                count(used) + reserved.iter().map(|one| count(&one.resources)).sum::<u64>()
            };
            let kinds = capacity.cpus.iter().filter(|(kind, _)| wanted.kind.is_empty() || **kind == wanted.kind);
            // No processors of a kind are none, whether the host names the kind or not.
            let kinds = kinds.filter(|(_, count)| **count > 0 || wanted.kind.is_empty());
            let free =
                |(kind, count): &(&String, &u32)| (u64::from(**count).saturating_sub(taken(kind)), std::cmp::Reverse((*kind).clone()));
            let (kind, count) = kinds.max_by_key(free)?;
            all &= fits(u64::from(*count), taken(kind), u64::from(wanted.count), wanted.count > 0);
        }
        if let Some(gpus) = request.compute.gpus.as_ref().filter(|gpus| gpus.count > 0) {
            let count = |resources: &volfork::placement::Resources| u64::from(resources.gpus.get(&gpus.kind).copied().unwrap_or(0));
            let taken = count(used) + reserved.iter().map(|one| count(&one.resources)).sum::<u64>();
            all &= fits(count(capacity), taken, u64::from(gpus.count), false);
        }
        all.then_some(fullness)
    }
}

fn zone_of(host: &HostInventory) -> (String, String) {
    (host.region.clone(), if host.zone.is_empty() { host.host.clone() } else { host.zone.clone() })
}

/// Seconds of fetching, alone and because others fetch too.
fn transfer(host: &NaiveHost, reserved: &[&Reservation], request: &Request, weights: &Weights) -> f64 {
    let inventory = &host.inventory;
    let wanted: HashMap<Digest, u64> =
        request.image.iter().flat_map(|image| &image.layers).map(|layer| (layer.digest, layer.bytes)).collect();
    let reported: HashMap<Digest, u64> = inventory
        .in_flight
        .iter()
        .filter(|(digest, _)| !host.layers.contains(*digest))
        .map(|(digest, fetch)| (*digest, fetch.remaining))
        .collect();
    let mut pending: HashMap<Digest, u64> = HashMap::new();
    for layer in reserved.iter().flat_map(|one| &one.layers) {
        if !host.layers.contains(&layer.digest) && !reported.contains_key(&layer.digest) {
            pending.entry(layer.digest).or_insert(layer.bytes);
        }
    }
    // The snapshot's blocks are one more fetch; its name stands for it as a digest stands for a layer.
    let name = |identity: &str| Digest::of(identity.as_bytes());
    for fetch in reserved.iter().filter_map(|one| one.snapshot.as_ref()) {
        pending.entry(name(&fetch.identity)).or_insert(fetch.bytes);
    }
    let to_come = |(digest, bytes): (&Digest, &u64)| match (reported.get(digest), pending.get(digest)) {
        _ if host.layers.contains(digest) => 0,
        (Some(left), _) | (None, Some(left)) => *left.min(bytes),
        (None, None) => *bytes,
    };
    let image = wanted.iter().map(to_come).sum::<u64>() as f64;
    let snapshot = snapshot_bytes(inventory, request) as f64;
    let rate = |rate: u64| rate.max(1) as f64;
    let link = rate(inventory.bandwidth.download);
    let image_link = link.min(rate(inventory.bandwidth.registry));
    let mut fetch = (image / image_link).max((image + snapshot) / link);
    if let Some(need) = &request.snapshot {
        fetch = fetch.max(snapshot / link.min(rate(need.source_bandwidth)));
    }
    let source = request.snapshot.as_ref().map(|need| name(&need.identity));
    let ours = |digest: &Digest| wanted.contains_key(digest) || source == Some(*digest);
    let shared = |others: &HashMap<Digest, u64>| {
        let others: Vec<u64> = others.iter().filter(|(digest, _)| !ours(digest)).map(|(_, left)| *left).collect();
        (others.iter().sum::<u64>() as f64).min(others.len() as f64 * (image + snapshot)) / image_link
    };
    fetch
        + weights.load_factor * shared(&reported)
        + weights.herd_factor * shared(&pending)
        + weights.herd_start_seconds * reserved.len() as f64
}

fn snapshot_bytes(inventory: &HostInventory, request: &Request) -> u64 {
    let Some(need) = &request.snapshot else { return 0 };
    let blocks = need.size_bytes.div_ceil(u64::from(need.block_bytes)) as u32;
    let first: Vec<u32> = need.first.as_ref().map_or_else(|| (0..blocks).collect(), |first| first.iter().collect());
    let there = |block: &u32| match inventory.snapshots.get(&need.identity) {
        None => false,
        Some(held) => held.present.as_ref().is_none_or(|present| present.contains(*block)),
    };
    let missing = first.iter().filter(|block| !there(block)).count() as u64;
    (missing * u64::from(need.block_bytes)).min(need.size_bytes)
}
