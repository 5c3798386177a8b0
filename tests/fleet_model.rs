//! The model behind `cargo bench --bench fleet`: bytes are conserved, links are shared fairly, nothing is fetched twice, and one
//! seed gives one result.
#![allow(dead_code, reason = "the benchmark uses more of its modules than these tests")]

#[path = "../benches/fleet/cache.rs"]
mod cache;
#[path = "../benches/fleet/catalogue.rs"]
mod catalogue;
#[path = "../benches/fleet/chooser.rs"]
mod chooser;
#[path = "../benches/fleet/host.rs"]
mod host;
#[path = "../benches/fleet/machine.rs"]
mod machine;
#[path = "../benches/fleet/network.rs"]
mod network;
#[path = "../benches/fleet/outcome.rs"]
mod outcome;
#[path = "../benches/fleet/random.rs"]
mod random;
#[path = "../benches/fleet/simulation.rs"]
mod simulation;
#[path = "../benches/fleet/workload.rs"]
mod workload;

use cache::Cache;
use chooser::Choice;
use network::{Item, Network, SECOND, Speeds, Time, fair_shares};
use outcome::{Outcome, quantile};
use proptest::prelude::*;
use simulation::Simulation;
use workload::{Options, Workload};

/// Lets all fetches come; when each one was there.
fn drain(network: &mut Network) -> Vec<(Time, usize, Item)> {
    let mut due = Vec::new();
    let mut came = Vec::new();
    loop {
        due.extend(network.due());
        let Some(first) = (0..due.len()).min_by_key(|at| due[*at].at) else { return came };
        let next = due.swap_remove(first);
        came.extend(network.finished(next.at, next.host, next.epoch).into_iter().map(|item| (next.at, next.host, item)));
    }
}

fn speeds(download: f64, registry: f64, upload: f64) -> Speeds {
    Speeds { download, registry, upload }
}

#[test]
fn two_layers_share_the_registry_and_a_fork_takes_what_is_left() {
    let mut network = Network::new([speeds(100.0, 60.0, 1.0), speeds(1.0, 1.0, 80.0)]);
    network.begin(0, 0, Item::Layer(1), 300, None);
    network.begin(0, 0, Item::Layer(2), 600, None);
    network.begin(0, 0, Item::Snapshot(3), 400, Some(1));
    // 30 + 30 from the registry, 40 from the other host: after 10 s one layer and the fork are there; the last 300 come at 60.
    let came = drain(&mut network);
    assert_eq!(came.iter().map(|(_, _, item)| *item).collect::<Vec<_>>(), [Item::Layer(1), Item::Snapshot(3), Item::Layer(2)]);
    for ((at, _, item), expected) in came.iter().zip([10.0, 10.0, 15.0]) {
        assert!((network::seconds(*at) - expected).abs() < 1e-5, "{item:?} came at {at} us, not {expected} s");
    }
    assert_eq!((network.moved.registry, network.moved.peers, network.moved.given_up), (900, 400, 0));
}

#[test]
fn a_source_splits_its_link_among_hosts() {
    let mut network = Network::new([speeds(100.0, 9.0, 9.0), speeds(100.0, 9.0, 9.0), speeds(9.0, 9.0, 50.0)]);
    network.begin(0, 0, Item::Snapshot(1), 100, Some(2));
    network.begin(0, 1, Item::Snapshot(1), 200, Some(2));
    // 25 each until the first has its 100 at 4 s; then 50 for the other's last 100.
    let came = drain(&mut network);
    assert_eq!(came.iter().map(|(at, host, _)| (at / 1000, *host)).collect::<Vec<_>>(), [(4000, 0), (6000, 1)]);
}

#[test]
fn a_fetch_switches_sources_and_reports_what_was_dropped() {
    let all = speeds(100.0, 100.0, 50.0);
    let mut network = Network::new([all; 4]);
    network.begin(0, 0, Item::Snapshot(1), 100, Some(2));
    network.begin(0, 1, Item::Layer(1), 500, None);
    network.move_uploads(SECOND, 2, |_| 3);
    network.give_up(2 * SECOND, 1);
    assert_eq!(drain(&mut network).last().map(|(at, host, _)| (at / 1000, *host)), Some((2000, 0)));
    assert_eq!((network.moved.registry, network.moved.peers, network.moved.given_up), (200, 100, 300));
    assert_eq!(network.moved.begun, 600);
}

proptest! {
    #[test]
    fn shares_are_max_min_fair(total in 1.0..1e9f64, most in proptest::collection::vec(0.1..1e9f64, 1..20)) {
        let shares = fair_shares(total, &most);
        let sum: f64 = shares.iter().sum();
        prop_assert!(sum <= total * (1.0 + 1e-9));
        let wanted: f64 = most.iter().sum();
        prop_assert!(sum >= total.min(wanted) * (1.0 - 1e-9), "{sum} of {total} is used, though {wanted} is wanted");
        let largest = shares.iter().copied().fold(0.0, f64::max);
        for (share, most) in shares.iter().zip(&most) {
            prop_assert!(share <= most);
            prop_assert!(*share >= most.min(largest) * (1.0 - 1e-9), "{share} is less than the largest {largest} and than {most}");
        }
    }

    #[test]
    fn all_bytes_come_and_no_sooner_than_links_allow(fetches in proptest::collection::vec((0usize..4, 1u64..10_000, 0usize..5), 1..30)) {
        let hosts = [speeds(100.0, 50.0, 30.0), speeds(10.0, 100.0, 70.0), speeds(40.0, 40.0, 5.0), speeds(7.0, 3.0, 90.0)];
        let mut network = Network::new(hosts);
        let mut begun = [0; 4];
        let count = fetches.len();
        for (number, (to, bytes, from)) in fetches.into_iter().enumerate() {
            begun[to] += bytes;
            let source = (from < 4 && from != to).then_some(from);
            network.begin(0, to, Item::Layer(number as u32), bytes, source);
        }
        let came = drain(&mut network);
        prop_assert_eq!(came.len(), count);
        prop_assert_eq!(network.moved.registry + network.moved.peers, begun.iter().sum::<u64>());
        for (host, download) in [100.0, 10.0, 40.0, 7.0].into_iter().enumerate().filter(|(host, _)| begun[*host] > 0) {
            let last = came.iter().filter(|(_, at, _)| *at == host).map(|(at, ..)| *at).max().expect("what was begun came");
            prop_assert!(network::seconds(last) >= (begun[host] - 1) as f64 / download - 1e-3);
        }
    }
}

#[test]
fn the_least_recently_used_goes_unless_a_machine_uses_it() {
    let [a, b, c, d] = [1, 2, 3, 4].map(Item::Layer);
    let mut cache = Cache::new(100);
    assert!(cache.add(a, 40).is_empty() && cache.add(b, 40).is_empty());
    cache.pin(a);
    assert_eq!(cache.add(c, 40), [b]);
    cache.pin(c);
    assert_eq!(cache.add(d, 200), [], "all that could go is in use");
    assert!([a, c, d].into_iter().all(|item| cache.holds(item)));
    cache.unpin(a);
    assert_eq!(cache.add(c, 1), [d], "what was in use last stays");
}

fn small(seed: u64) -> Workload {
    Workload::new(Options { burst_starts: 20, host_life_seconds: 1200.0, ..Options::new(seed, 25, 250) })
}

fn runs(workload: &Workload) -> Vec<(String, Outcome)> {
    Choice::all().iter().map(|choice| (choice.name.clone(), Simulation::new(workload, choice).run())).collect()
}

#[test]
fn only_missing_bytes_move_and_links_bound_them() {
    for seed in [1, 7] {
        let workload = small(seed);
        for (name, outcome) in runs(&workload) {
            let moved = outcome.moved_in_all;
            assert_eq!(moved.begun, outcome.missing_in_all, "{name}, seed {seed}: one fetch for what is missing and not on its way");
            // All has come when the run ends, except what is still on its way to hosts whose machines were moved.
            assert_eq!(moved.registry + moved.peers + moved.given_up, moved.begun, "{name}, seed {seed}");
            assert!(moved.given_up > 0 || workload.drains.is_empty() || moved.registry > 0, "{name}, seed {seed}: nothing moved");
            assert_eq!(outcome.oversold, 0, "{name}, seed {seed}");
            let measured = workload.starts.iter().filter(|start| start.at >= workload.measured_from).count();
            assert!(outcome.records.len() as u64 + outcome.refused >= measured as u64, "{name}, seed {seed}: starts were lost");
            assert!(outcome.records.iter().all(|record| record.seconds >= 0.5), "{name}, seed {seed}: a start is shorter than preparing");
        }
    }
}

#[test]
fn a_seed_says_everything() {
    let same = |a: &Outcome, b: &Outcome| a.records == b.records && a.moved_in_all == b.moved_in_all && a.spreads == b.spreads;
    let (one, again, other) = (runs(&small(3)), runs(&small(3)), runs(&small(4)));
    for ((name, outcome), (_, repeated)) in one.iter().zip(&again) {
        assert!(same(outcome, repeated), "{name} differs from run to run");
    }
    assert!(one.iter().zip(&other).all(|((_, a), (_, b))| !same(a, b)), "the seed changes nothing");
}

#[test]
fn knowing_what_hosts_hold_starts_machines_sooner() {
    let outcomes = runs(&small(5));
    let mean = |name: &str| {
        let outcome = &outcomes.iter().find(|(known, _)| known == name).expect("a policy").1;
        outcome::mean(&outcome.singles())
    };
    assert!(mean("start-time") < mean("capacity") && mean("start-time") < mean("random"), "{} s", mean("start-time"));
}

#[test]
fn quantiles_are_values_that_were_seen() {
    let values: Vec<f64> = (1..=100).map(f64::from).collect();
    assert_eq!((quantile(&values, 0.5), quantile(&values, 0.99), quantile(&values, 1.0), quantile(&[], 0.5)), (50.0, 99.0, 100.0, 0.0));
}
