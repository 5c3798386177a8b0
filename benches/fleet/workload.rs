//! The workload, equal for all policies: hosts with their initial layers, arrivals, bursts and drains.

use rand_pcg::Pcg64;
use roaring::RoaringBitmap;

use crate::catalogue::{BLOCK_BYTES, Catalogue, GIB, MIB, Sizes};
use crate::network::{SECOND, Speeds, Time};
use crate::random::{below, chance, exponential, stream};

/// What can be chosen about a run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub seed: u64,
    pub hosts: usize,
    /// Machines that arrive one by one.
    pub starts: usize,
    /// How often many machines of one cold image arrive at once.
    pub bursts: usize,
    /// Machines of a burst.
    pub burst_starts: usize,
    /// Seconds between the reports of a host.
    pub report_seconds: f64,
    /// Mean life of a machine.
    pub life_seconds: f64,
    /// Starts a second per host.
    pub rate: f64,
    /// Seconds after which a host is drained, on average.
    pub host_life_seconds: f64,
}

impl Options {
    pub fn new(seed: u64, hosts: usize, starts: usize) -> Self {
        Self {
            seed,
            hosts,
            starts,
            bursts: 4,
            burst_starts: 70,
            report_seconds: 10.0,
            life_seconds: 300.0,
            rate: 1.0 / 60.0,
            host_life_seconds: 7200.0,
        }
    }
}

/// Hardware of a host.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub cpus: u32,
    pub memory_bytes: u64,
    pub volume_bytes: u64,
    pub cache_bytes: u64,
    pub speeds: Speeds,
}

/// A machine that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    pub at: Time,
    pub app: u32,
    pub life_seconds: f64,
    pub burst: Option<u32>,
}

/// What a host has when the simulation begins.
#[derive(Clone, Debug, Default)]
pub struct Beginning {
    /// Machines that run: application and remaining life.
    pub running: Vec<(u32, f64)>,
    /// Images that were pulled earlier, the latest last.
    pub pulled: Vec<u32>,
    /// Snapshots it has whole.
    pub origins: Vec<u32>,
    /// Snapshots it has in part.
    pub partial: Vec<(u32, RoaringBitmap)>,
}

/// All of it.
#[derive(Debug)]
pub struct Workload {
    pub options: Options,
    pub catalogue: Catalogue,
    pub shapes: Vec<Shape>,
    pub beginnings: Vec<Beginning>,
    /// In the order of time.
    pub starts: Vec<Start>,
    /// When which host begins to drain.
    pub drains: Vec<(Time, usize)>,
    /// From when on it is measured.
    pub measured_from: Time,
}

impl Workload {
    pub fn new(options: Options) -> Self {
        let sizes = Sizes { apps: 200 + options.hosts, bursts: options.bursts, skew: 0.9, forks: 0.2 };
        let catalogue = Catalogue::new(sizes, &mut stream(options.seed, 1));
        let random = &mut stream(options.seed, 2);
        let shapes: Vec<Shape> = (0..options.hosts).map(|_| shape(random)).collect();
        let beginnings = beginnings(&options, &catalogue, &shapes);
        let random = &mut stream(options.seed, 4);
        let fleet_rate = options.rate * options.hosts as f64;
        let mut at = 0.0;
        let mut starts = Vec::new();
        for _ in 0..options.starts {
            at += exponential(random, 1.0 / fleet_rate);
            starts.push(Start { at: time(at), app: catalogue.draw(random), life_seconds: life(random, &options), burst: None });
        }
        let measured_from = time(at * 0.2);
        let bursts: Vec<Time> = (0..options.bursts).map(|burst| time(at * (0.25 + 0.7 * burst as f64 / options.bursts as f64))).collect();
        for (burst, at) in bursts.iter().enumerate() {
            let app = (sizes.apps + burst) as u32;
            let start = |random: &mut Pcg64| Start { at: *at, app, life_seconds: life(random, &options), burst: Some(burst as u32) };
            starts.extend((0..options.burst_starts).map(|_| start(random)));
        }
        starts.sort_by_key(|start| start.at);
        let drains = drains(&options, at);
        Self { options, catalogue, shapes, beginnings, starts, drains, measured_from }
    }
}

pub fn time(seconds: f64) -> Time {
    (seconds * SECOND as f64) as Time
}

fn life(random: &mut Pcg64, options: &Options) -> f64 {
    5.0 + exponential(random, options.life_seconds - 5.0)
}

/// Half of the hosts have a link of 1 Gbit/s, a quarter 2.5, a quarter 10; the registry gives each at most 2 Gbit/s.
fn shape(random: &mut Pcg64) -> Shape {
    let cpus = 16 + 8 * below(random, 3) as u32;
    let link = [125e6, 125e6, 312.5e6, 1250e6][below(random, 4) as usize];
    Shape {
        cpus,
        memory_bytes: u64::from(cpus) * 4 * GIB,
        volume_bytes: 1024 * GIB,
        cache_bytes: (12 + below(random, 29)) * GIB,
        speeds: Speeds { download: link, registry: (link * 0.8).min(250e6), upload: link },
    }
}

fn drains(options: &Options, until_seconds: f64) -> Vec<(Time, usize)> {
    let random = &mut stream(options.seed, 5);
    let mean = options.host_life_seconds / options.hosts as f64;
    let mut drains = Vec::new();
    let mut at = exponential(random, mean);
    while at < until_seconds {
        drains.push((time(at), below(random, options.hosts as u64) as usize));
        at += exponential(random, mean);
    }
    drains
}

/// A fleet in the middle of its life: machines of the steady state on random hosts, and caches that are nearly full.
fn beginnings(options: &Options, catalogue: &Catalogue, shapes: &[Shape]) -> Vec<Beginning> {
    let random = &mut stream(options.seed, 3);
    let mut beginnings = vec![Beginning::default(); shapes.len()];
    let mut cpus: Vec<u32> = shapes.iter().map(|shape| shape.cpus).collect();
    let machines = (options.rate * options.life_seconds * shapes.len() as f64) as usize;
    for _ in 0..machines {
        let app = catalogue.draw(random);
        let host = below(random, shapes.len() as u64) as usize;
        let needed = catalogue.apps[app as usize].cpus;
        if cpus[host] >= needed {
            cpus[host] -= needed;
            beginnings[host].running.push((app, exponential(random, options.life_seconds)));
        }
    }
    for (host, shape) in shapes.iter().enumerate() {
        let mut held = std::collections::HashSet::new();
        let mut bytes = 0;
        let running: Vec<u32> = beginnings[host].running.iter().map(|(app, _)| *app).collect();
        let mut next = running.into_iter();
        while bytes < shape.cache_bytes - 2 * GIB {
            let app = next.next().unwrap_or_else(|| catalogue.draw(random));
            beginnings[host].pulled.push(app);
            let layers = catalogue.apps[app as usize].layers.iter().filter(|layer| held.insert(**layer));
            bytes += layers.map(|layer| catalogue.layers[*layer as usize].bytes).sum::<u64>();
        }
    }
    templates(catalogue, &mut beginnings, random);
    beginnings
}

/// Each snapshot is whole on one host, and in part on up to five others.
fn templates(catalogue: &Catalogue, beginnings: &mut [Beginning], random: &mut Pcg64) {
    let hosts = beginnings.len() as u64;
    for (number, template) in catalogue.templates.iter().enumerate() {
        let origin = below(random, hosts) as usize;
        beginnings[origin].origins.push(number as u32);
        for _ in 0..below(random, 6) {
            let host = below(random, hosts) as usize;
            let known = &beginnings[host];
            if known.origins.contains(&(number as u32)) || known.partial.iter().any(|(other, _)| *other == number as u32) {
                continue;
            }
            let share = below(random, 100) as f64 / 100.0;
            // Present blocks come in pieces of 4 MiB, the request size of backfill.
            let blocks = (template.size_bytes / u64::from(BLOCK_BYTES)) as u32;
            let piece = (4 * MIB) as u32 / BLOCK_BYTES;
            let mut present = RoaringBitmap::new();
            for from in (0..blocks).step_by(piece as usize) {
                if chance(random, share) {
                    present.insert_range(from..from + piece);
                }
            }
            beginnings[host].partial.push((number as u32, present & &template.first));
        }
    }
}
