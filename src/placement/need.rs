//! A request resolved against the index: names become numbers, and each layer is listed once.

use rustc_hash::FxHashMap;

use super::index::Index;
use super::ranking::Constraint;
use super::request::{Request, SnapshotNeed};
use super::rows::{Row, Share};
use super::scores::normal_name;
use crate::content::ImageLayer;
use crate::place;

/// Stands for a region that the request does not name.
const NOWHERE: u16 = u16::MAX;

pub(super) struct Need<'a> {
    pub request: &'a Request,
    /// Layers of the image, each once.
    pub layers: Vec<ImageLayer>,
    /// Their bytes.
    pub image_bytes: u64,
    /// The image's name with a tag.
    pub image_name: Option<String>,
    /// Bytes needed first of a snapshot of which nothing is there.
    pub snapshot_bytes: u64,
    pub cpu_count: u32,
    pub gpu_count: u32,
    /// Place of each region among the preferred ones; empty if all are welcome.
    regions: Vec<u16>,
    cpus: &'a [Share],
    gpus: &'a [Share],
    /// Zones with volumes of the app: how many, and how many of the same name.
    zones: FxHashMap<u32, (u32, u32)>,
}

impl<'a> Need<'a> {
    pub fn of(request: &'a Request, index: &'a Index) -> Self {
        let mut layers: Vec<ImageLayer> = request.image.iter().flat_map(|image| image.layers.iter().copied()).collect();
        layers.sort_unstable_by_key(|layer| layer.digest);
        layers.dedup_by_key(|layer| layer.digest);
        let gpus = request.compute.gpus.as_ref().filter(|gpus| gpus.count > 0);
        Self {
            request,
            image_bytes: layers.iter().fold(0, |sum, layer| layer.bytes.saturating_add(sum)),
            layers,
            image_name: request.image.as_ref().map(|image| normal_name(&image.reference)),
            snapshot_bytes: request.snapshot.as_ref().map_or(0, all_first_bytes),
            cpu_count: request.compute.cpus.count,
            gpu_count: gpus.map_or(0, |gpus| gpus.count),
            regions: preferences(&request.regions, index),
            cpus: index.cpus.column(&request.compute.cpus.kind),
            gpus: gpus.map_or(&[], |gpus| index.gpus.column(&gpus.kind)),
            zones: zones(request, index),
        }
    }

    /// The first constraint that a host does not meet; `None` if it meets all.
    pub fn verdict(&self, number: usize, row: &Row, now: u64, max_age_seconds: u64) -> Option<Constraint> {
        let request = self.request;
        if !row.known {
            return Some(Constraint::Known);
        }
        if !row.open {
            return Some(Constraint::Status);
        }
        let (age, most) = row.age(now, max_age_seconds);
        if age > most {
            return Some(if row.reported_at > now { Constraint::Clock } else { Constraint::Stale });
        }
        if self.preference(row.region) == NOWHERE {
            return Some(Constraint::Region);
        }
        let cpus = self.cpus(number);
        if cpus.capacity == 0 && !request.compute.cpus.kind.is_empty() {
            return Some(Constraint::CpuKind);
        }
        if cpus.free < u64::from(self.cpu_count) {
            return Some(Constraint::Cpus);
        }
        if self.gpu_count > 0 && self.gpus(number).free < u64::from(self.gpu_count) {
            return Some(Constraint::Gpus);
        }
        if row.memory.free < request.compute.memory_bytes {
            return Some(Constraint::Memory);
        }
        if row.volumes.free < request.volume_bytes {
            return Some(Constraint::VolumeRoom);
        }
        if !self.zones.is_empty() {
            let (of_app, of_name) = self.in_zone(row.zone);
            if request.require_unique_zone && of_name > 0 {
                return Some(Constraint::UniqueZone);
            }
            if request.unique_zone_app_wide && of_app > 0 {
                return Some(Constraint::UniqueZoneApp);
            }
        }
        None
    }

    /// What a host has and needs for a constraint that it does not meet.
    pub fn shortfall(&self, number: usize, row: &Row, now: u64, max_age_seconds: u64, constraint: Constraint) -> (u64, u64) {
        let Request { compute, volume_bytes, .. } = self.request;
        match constraint {
            Constraint::Known | Constraint::Status | Constraint::Region => (0, 1),
            Constraint::Stale | Constraint::Clock => row.age(now, max_age_seconds),
            Constraint::CpuKind => (0, u64::from(self.cpu_count)),
            Constraint::Cpus => (self.cpus(number).free, u64::from(self.cpu_count)),
            Constraint::Gpus => (self.gpus(number).free, u64::from(self.gpu_count)),
            Constraint::Memory => (row.memory.free, compute.memory_bytes),
            Constraint::VolumeRoom => (row.volumes.free, *volume_bytes),
            Constraint::UniqueZone => (u64::from(self.in_zone(row.zone).1), 0),
            Constraint::UniqueZoneApp => (u64::from(self.in_zone(row.zone).0), 0),
        }
    }

    /// Place of a region among the preferred ones, from 0.
    pub fn preference(&self, region: u32) -> u16 {
        if self.request.regions.is_empty() { 0 } else { self.regions.get(place::index(region)).copied().unwrap_or(NOWHERE) }
    }

    /// Processors of the kind asked for.
    pub fn cpus(&self, number: usize) -> Share {
        self.cpus.get(number).copied().unwrap_or_default()
    }

    fn gpus(&self, number: usize) -> Share {
        self.gpus.get(number).copied().unwrap_or_default()
    }

    /// Volumes of the app in a zone, and those of the same name.
    pub fn in_zone(&self, zone: u32) -> (u32, u32) {
        self.zones.get(&zone).copied().unwrap_or_default()
    }

    /// How full the scarcest of a host's processors, memory and volume room is, from 0 to 1, with the request on it.
    pub fn fullness(&self, number: usize, row: &Row) -> f64 {
        let Request { compute, volume_bytes, .. } = self.request;
        let room = row.memory.fullness(compute.memory_bytes).max(row.volumes.fullness(*volume_bytes));
        if self.cpu_count == 0 { room } else { room.max(self.cpus(number).fullness(u64::from(self.cpu_count))) }
    }
}

fn preferences(wanted: &[String], index: &Index) -> Vec<u16> {
    let mut regions = Vec::new();
    if !wanted.is_empty() {
        regions.resize(index.regions.end(), NOWHERE);
    }
    for (preference, region) in (0..NOWHERE).zip(wanted) {
        if let Some(number) = index.regions.find(region, "") {
            let known = &mut regions[place::index(number)];
            *known = (*known).min(preference);
        }
    }
    regions
}

fn zones(request: &Request, index: &Index) -> FxHashMap<u32, (u32, u32)> {
    let of_name = |here: &super::apps::InZone| here.by_name.get(&request.volume).copied().unwrap_or(0);
    index.apps.zones(&request.app).map(|(zone, here)| (zone, (here.volumes, of_name(here)))).collect()
}

fn all_first_bytes(need: &SnapshotNeed) -> u64 {
    need.first.as_ref().map_or(need.size_bytes, |first| first.len().saturating_mul(u64::from(need.block_bytes)).min(need.size_bytes))
}
