//! Random hosts and requests from small ranges, so that they often share layers.

use proptest::prelude::*;
use volfork::content::{Digest, Image, ImageLayer};
use volfork::placement::{
    Bandwidth, Compute, HeldSnapshot, HostInventory, HostStatus, InFlight, PlacedVolume, Processors, Request, Resources, SnapshotNeed,
};

pub const NOW: u64 = 1_000_000;
const BLOCK: u32 = 4096;

/// Layers have the size that goes with their number, as content-addressed things do.
pub fn layer(number: u8) -> ImageLayer {
    ImageLayer { digest: Digest::of(&[number]), bytes: (u64::from(number) + 1) * 10_000_000 }
}

pub fn image(numbers: &[u8]) -> Image {
    Image::new("shop:v1", Digest::of(b"shop"), numbers.iter().map(|number| layer(*number)))
}

fn word(words: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(words).prop_map(str::to_owned)
}

fn resources(cpus: u32, memory: u64, room: u64) -> impl Strategy<Value = Resources> {
    let kinds = prop::collection::btree_map(word(&["performance", "shared"]), 0..=cpus, 0..3);
    let gpus = prop::collection::btree_map(word(&["a100"]), 0..=2_u32, 0..2);
    (kinds, gpus, 0..=memory, 0..=room).prop_map(|(cpus, gpus, memory_bytes, volume_bytes)| Resources {
        cpus,
        gpus,
        memory_bytes,
        volume_bytes,
    })
}

fn status() -> impl Strategy<Value = HostStatus> {
    prop_oneof![8 => Just(HostStatus::Ok), 1 => Just(HostStatus::Draining), 1 => Just(HostStatus::Unreachable)]
}

fn bandwidth() -> impl Strategy<Value = Bandwidth> {
    (1_000_000..200_000_000_u64, 1_000_000..200_000_000_u64).prop_map(|(download, registry)| Bandwidth {
        download,
        registry,
        ..Bandwidth::default()
    })
}

fn snapshot() -> impl Strategy<Value = HeldSnapshot> {
    prop::option::of(prop::collection::btree_set(0..32_u32, 0..32)).prop_map(|present| HeldSnapshot {
        block_bytes: BLOCK,
        size_bytes: 32 * u64::from(BLOCK),
        present: present.map(|blocks| blocks.into_iter().collect()),
    })
}

/// When a host reported, and how often it says that it does.
fn report() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        6 => (NOW - 300..=NOW, Just(0)),
        1 => (NOW - 400..NOW - 300, Just(0)),
        2 => (NOW - 400..=NOW, 60..140_u64),
        1 => (NOW..NOW + 400, 0..140_u64),
    ]
}

fn volume() -> impl Strategy<Value = PlacedVolume> {
    (word(&["", "shop", "blog"]), word(&["data", "log"])).prop_map(|(app, name)| PlacedVolume { app, name, size_bytes: 1 })
}

prop_compose! {
    /// A host of the given name.
    pub fn host(name: String)(
        region in word(&["ams", "fra", "ord"]),
        zone in word(&["", "1", "2", "3"]),
        status in status(),
        capacity in resources(8, 1 << 34, 1 << 36),
        used in resources(4, 1 << 33, 1 << 35),
        bandwidth in bandwidth(),
        layers in prop::collection::btree_set(0..12_u8, 0..12),
        flying in prop::collection::btree_map(0..12_u8, 0..=100_u64, 0..4),
        named in any::<bool>(),
        snapshots in prop::collection::btree_map(word(&["s1", "s2"]), snapshot(), 0..3),
        volumes in prop::collection::vec(volume(), 0..3),
        (reported_at, report_every_seconds) in report(),
    ) -> HostInventory {
        let fetch = |(number, percent): (u8, u64)| {
            let layer = layer(number);
            (layer.digest, InFlight { bytes: layer.bytes, remaining: layer.bytes / 100 * percent })
        };
        HostInventory {
            host: name.clone(),
            region, zone, status, capacity, used, bandwidth,
            layers: layers.iter().map(|number| (layer(*number).digest, layer(*number).bytes)).collect(),
            in_flight: flying.into_iter().map(fetch).collect(),
            images: named.then(|| ("shop:v1".to_owned(), 500_000_000)).into_iter().collect(),
            snapshots,
            volumes: volumes.into_iter().enumerate().map(|(at, volume)| (format!("v{at}"), volume)).collect(),
            generation: 1,
            reported_at,
            report_every_seconds,
            ..HostInventory::default()
        }
    }
}

/// Up to `most` hosts of different names.
pub fn hosts(most: usize) -> impl Strategy<Value = Vec<HostInventory>> {
    (1..=most).prop_flat_map(|count| (0..count).map(|at| host(format!("host-{at}"))).collect::<Vec<_>>())
}

prop_compose! {
    pub fn request()(
        id in word(&["a", "b", "c"]),
        app in word(&["", "shop", "blog"]),
        regions in prop::sample::subsequence(vec!["fra".to_owned(), "ams".to_owned(), "ord".to_owned()], 0..3),
        volume_bytes in 0..1_u64 << 33,
        kind in word(&["", "shared", "performance"]),
        cpus in 0..4_u32,
        gpu in prop_oneof![4 => Just(None), 1 => Just(Some(Processors { kind: "a100".to_owned(), count: 1 }))],
        memory_bytes in 0..1_u64 << 31,
        layers in prop::option::of(prop::collection::vec(0..12_u8, 0..8)),
        source in prop::option::of((prop::option::of(prop::collection::btree_set(0..32_u32, 0..16)), 1_000..1_000_000_u64)),
        require_unique_zone in prop::bool::weighted(0.2),
        unique_zone_app_wide in prop::bool::weighted(0.2),
        count in 1..4_u32,
    ) -> Request {
        Request {
            id, app,
            volume: "data".to_owned(),
            regions, volume_bytes,
            compute: Compute { cpus: Processors { kind, count: cpus }, gpus: gpu, memory_bytes },
            image: layers.map(|layers| image(&layers)),
            snapshot: source.map(|(first, source_bandwidth)| SnapshotNeed {
                identity: "s1".to_owned(),
                block_bytes: BLOCK,
                size_bytes: 32 * u64::from(BLOCK),
                first: first.map(|blocks| blocks.into_iter().collect()),
                source_bandwidth,
                origin: None,
            }),
            require_unique_zone, unique_zone_app_wide, count,
        }
    }
}
