//! Ranking 10,000 hosts that hold 100,000 distinct layers: by the index, and by asking every host's own hash set.
//!
//! `cargo bench --bench placement` prints times, and how many bytes the index takes. `VOLFORK_BENCH_HOSTS` says how many hosts
//! (default 10,000), each of which holds 50 images of 10 layers.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use volfork::content::{Digest, Image, ImageLayer};
use volfork::format_bytes;
use volfork::placement::{Fleet, HostInventory, Policy, Processors, Request, Resources, Weights};

#[path = "../tests/placement/naive.rs"]
mod naive;

use naive::{Naive, NaiveHost};

const NOW: u64 = 1_000_000;
const IMAGES_PER_HOST: usize = 50;
/// Layers of an image: some of a base that many images share, the others its own.
const BASE_LAYERS: u64 = 4;
const OWN_LAYERS: u64 = 6;

fn test_mode() -> bool {
    std::env::args().any(|argument| argument == "--test")
}

/// Numbers in a fixed pseudo-random order.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }

    /// Small numbers are more frequent: the density falls as 1/x, as the popularity of images does.
    fn popular(&mut self, end: u64) -> u64 {
        let exponent = self.below(1 << 20) as f64 / f64::from(1 << 20);
        (((end + 1) as f64).powf(exponent) as u64 - 1).min(end - 1)
    }
}

fn layer(number: u64) -> ImageLayer {
    ImageLayer { digest: Digest::of(&number.to_le_bytes()), bytes: 1_000_000 + number % 50 * 2_000_000 }
}

fn images(count: u64) -> Vec<Image> {
    let bases = (count / 100).max(1);
    let mut numbers = Numbers(1);
    let image = |number: u64| {
        let base = numbers.popular(bases);
        let own = bases * BASE_LAYERS + number * OWN_LAYERS;
        let layers = (base * BASE_LAYERS..(base + 1) * BASE_LAYERS).chain(own..own + OWN_LAYERS).map(layer);
        Image::new(format!("image-{number}:1"), Digest::of(format!("{number}").as_bytes()), layers)
    };
    (0..count).map(image).collect()
}

fn hosts(count: u64, images: &[Image]) -> Vec<HostInventory> {
    let mut numbers = Numbers(2);
    let host = |number: u64| {
        let mut host = HostInventory {
            host: format!("host-{number}"),
            region: ["ams", "fra", "ord"][number as usize % 3].to_owned(),
            zone: format!("zone-{number}"),
            capacity: Resources {
                cpus: [("shared".into(), 64)].into(),
                memory_bytes: 1 << 38,
                volume_bytes: 1 << 42,
                ..Resources::default()
            },
            generation: 1,
            reported_at: NOW,
            ..HostInventory::default()
        };
        host.used.memory_bytes = numbers.below(1 << 31) << 6;
        host.used.cpus = [("shared".into(), numbers.below(60) as u32)].into();
        // Every image is somewhere, the popular ones on many hosts.
        let everywhere = std::iter::once(number % images.len() as u64);
        let chosen: Vec<u64> = everywhere.chain((1..IMAGES_PER_HOST).map(|_| numbers.popular(images.len() as u64))).collect();
        for image in chosen {
            let image = &images[image as usize];
            host.images.insert(image.reference.clone(), image.bytes());
            host.layers.extend(image.layers.iter().map(|layer| (layer.digest, layer.bytes)));
        }
        host
    };
    (0..count).map(host).collect()
}

fn request(image: &Image) -> Request {
    let mut request =
        Request { id: "request".into(), app: "shop".into(), volume: "data".into(), volume_bytes: 1 << 33, ..Request::default() };
    request.compute.cpus = Processors { kind: "shared".into(), count: 2 };
    request.compute.memory_bytes = 1 << 32;
    request.image = Some(image.clone());
    request
}

fn bench_rank(criterion: &mut Criterion) {
    let default: u64 = if test_mode() { 200 } else { 10_000 };
    let count = std::env::var("VOLFORK_BENCH_HOSTS").ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    // With this many images there are ten times as many layers as hosts.
    let images = images((count * 10).div_ceil(OWN_LAYERS));
    let hosts = hosts(count, &images);
    let mut fleet = Fleet::new();
    hosts.iter().for_each(|host| assert!(fleet.report(host.clone())));
    let distinct: std::collections::HashSet<_> = hosts.iter().flat_map(|host| host.layers.keys()).collect();
    let held: usize = hosts.iter().map(|host| host.layers.len()).sum();
    println!(
        "{count} hosts, {} distinct layers held {held} times, index of {} ({:.1} bytes for each layer held)",
        distinct.len(),
        format_bytes(fleet.index_bytes() as u64),
        fleet.index_bytes() as f64 / held as f64
    );
    let naive = Naive { hosts: hosts.into_iter().map(NaiveHost::new).collect(), max_age_seconds: 300, ..Naive::default() };

    let mut group = criterion.benchmark_group(format!("rank {count} hosts"));
    for (name, image) in [("popular image", &images[0]), ("rare image", &images[images.len() - 1])] {
        let request = request(image);
        for policy in Policy::all() {
            group.bench_function(format!("{name}, {policy}"), |bench| bench.iter(|| black_box(fleet.order(&request, &policy, NOW)).len()));
        }
        group.bench_function(format!("{name}, all in words"), |bench| bench.iter(|| fleet.rank(&request, &Policy::default(), NOW)));
        let best = fleet.order(&request, &Policy::default(), NOW).explain(0).expect("a host");
        group.sample_size(10).bench_function(format!("{name}, hash sets"), |bench| {
            bench.iter(|| {
                let mut costs = naive.costs(&request, &Weights::default(), NOW);
                costs.sort_by(|a, b| a.1.cmp(&b.1).then(a.2.total_cmp(&b.2)));
                assert!((costs[0].2 - best.seconds).abs() < 1e-9);
                costs
            })
        });
    }
    group.finish();
    bench_change(criterion, &mut fleet, count);
}

/// One image comes to a host and leaves again, as a change to ten layers.
fn bench_change(criterion: &mut Criterion, fleet: &mut Fleet, count: u64) {
    let before = fleet.host("host-0").expect("it was reported").clone();
    let mut after = HostInventory { generation: before.generation + 1, ..before.clone() };
    after.layers.extend((0..10).map(layer_of_nobody).map(|layer| (layer.digest, layer.bytes)));
    let mut come = before.delta_to(&after);
    let mut go = after.delta_to(&HostInventory { generation: after.generation + 1, ..before.clone() });
    let mut group = criterion.benchmark_group(format!("change one of {count} hosts"));
    group.bench_function("an image of ten layers comes and goes", |bench| {
        bench.iter(|| {
            for delta in [&mut come, &mut go] {
                fleet.apply(delta).expect("it follows the last one");
                delta.base += 2;
                delta.generation += 2;
            }
        });
    });
    group.bench_function("full report without a change", |bench| {
        let mut report = fleet.host("host-1").expect("it was reported").clone();
        bench.iter(|| {
            report.generation += 1;
            fleet.report(report.clone())
        });
    });
    group.finish();
}

fn layer_of_nobody(number: u64) -> ImageLayer {
    layer(u64::MAX - number)
}

criterion_group!(benches, bench_rank);
criterion_main!(benches);
