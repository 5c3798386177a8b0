//! Placement compared with a reference without an index, and properties of every fleet.

mod fleets;
mod naive;

use std::collections::BTreeMap;

use fleets::{NOW, host, hosts, layer, request};
use naive::{Naive, NaiveHost};
use proptest::prelude::*;
use roaring::RoaringBitmap;
use volfork::ErrorKind;
use volfork::placement::{
    Constraint, Fleet, HeldSnapshot, HostInventory, HostStatus, InFlight, Placement, Policy, Processors, Ranking, Request, Reservation,
    Resources, SnapshotNeed, SnapshotOrigin, Weights,
};

fn fleet_of(hosts: &[HostInventory]) -> Fleet {
    let mut fleet = Fleet::new();
    for host in hosts {
        assert!(fleet.report(host.clone()));
    }
    fleet
}

fn naive_of(hosts: &[HostInventory], fleet: &Fleet) -> Naive {
    Naive {
        hosts: hosts.iter().cloned().map(NaiveHost::new).collect(),
        reservations: fleet.reservations().cloned().collect(),
        max_age_seconds: fleet.options().max_age_seconds,
    }
}

/// Checks that the ranking has the hosts and seconds of the reference, in their order.
fn agrees(ranking: &Ranking, naive: &Naive, request: &Request) -> Result<(), TestCaseError> {
    let expected: BTreeMap<_, _> =
        naive.costs(request, &Weights::default(), NOW).into_iter().map(|(host, region, seconds)| (host, (region, seconds))).collect();
    prop_assert_eq!(ranking.hosts.len(), expected.len());
    prop_assert_eq!(ranking.fitting, expected.len());
    prop_assert_eq!(ranking.hosts.len() + ranking.excluded.len(), naive.hosts.len());
    for ranked in &ranking.hosts {
        let Some((region, seconds)) = expected.get(&ranked.host) else {
            return Err(TestCaseError::fail(format!("{ranked} is excluded by the reference")));
        };
        prop_assert_eq!(ranked.region_preference as usize, *region);
        prop_assert!((ranked.seconds - seconds).abs() <= 1e-9 * (1.0 + seconds), "{} is {} s for the reference", ranked, seconds);
        prop_assert_eq!(ranked.cost, ranked.seconds);
    }
    for pair in ranking.hosts.windows(2) {
        let (first, second) = (&pair[0], &pair[1]);
        let close = (first.seconds - second.seconds).abs() <= 1e-9 * (1.0 + first.seconds);
        let ordered = (first.region_preference, first.seconds) <= (second.region_preference, second.seconds);
        prop_assert!(ordered || (first.region_preference == second.region_preference && close), "{} before {}", first, second);
    }
    Ok(())
}

fn free(host: &HostInventory, placed: &[&Reservation]) -> Resources {
    let mut taken = host.used.clone();
    placed.iter().for_each(|one| taken.add(&one.resources));
    host.capacity.without(&taken)
}

/// Checks every constraint of every placement by hand, in the order in which they were made.
fn keeps_constraints(hosts: &[HostInventory], request: &Request, placement: &Placement) -> Result<(), TestCaseError> {
    let by_name: BTreeMap<_, _> = hosts.iter().map(|host| (&host.host, host)).collect();
    let mut made: Vec<&Reservation> = Vec::new();
    let zone = |host: &HostInventory| (host.region.clone(), if host.zone.is_empty() { host.host.clone() } else { host.zone.clone() });
    for placed in &placement.placed {
        let reservation = &placed.reservation;
        let host = by_name[&reservation.host];
        prop_assert_eq!(host.status, HostStatus::Ok);
        let max_age = if host.report_every_seconds == 0 { 300 } else { 3 * host.report_every_seconds };
        prop_assert!(NOW.abs_diff(host.reported_at) <= max_age);
        prop_assert!(request.regions.is_empty() || request.regions.contains(&host.region));
        let here: Vec<_> = made.iter().filter(|one| one.host == host.host).copied().collect();
        prop_assert_eq!(free(host, &here).lacking(&reservation.resources), None);
        prop_assert_eq!(reservation.resources.cpus.values().sum::<u32>(), request.compute.cpus.count);
        prop_assert_eq!(reservation.resources.volume_bytes, request.volume_bytes);
        let same_zone = |other: &HostInventory| zone(other) == zone(host);
        let volumes = hosts.iter().filter(|other| same_zone(other)).flat_map(|other| other.volumes.values());
        let mut names: Vec<_> = volumes.filter(|volume| volume.app == request.app).map(|volume| volume.name.clone()).collect();
        names.extend(made.iter().filter(|one| same_zone(by_name[&one.host])).map(|one| one.volume.clone()));
        prop_assert!(!request.unique_zone_app_wide || names.is_empty());
        prop_assert!(!request.require_unique_zone || !names.contains(&request.volume));
        made.push(reservation);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_index_ranks_as_the_reference_does(hosts in hosts(12), first in request(), second in request()) {
        let mut fleet = fleet_of(&hosts);
        agrees(&fleet.rank(&first, &Policy::default(), NOW), &naive_of(&hosts, &fleet), &first)?;
        fleet.place(&Request { id: "earlier".into(), ..first }, &Policy::default(), NOW);
        agrees(&fleet.rank(&second, &Policy::default(), NOW), &naive_of(&hosts, &fleet), &second)?;
    }

    #[test]
    fn an_index_that_followed_changes_is_one_made_anew(
        before in hosts(8), after in hosts(8), one in request(), by_delta in any::<bool>(), leave in 0..8_usize,
    ) {
        let mut fleet = fleet_of(&before);
        let placed = fleet.place(&Request { id: "earlier".into(), ..one.clone() }, &Policy::default(), NOW);
        for host in &after {
            let newer = HostInventory { generation: 2, ..host.clone() };
            match fleet.host(&host.host) {
                Some(known) if by_delta => {
                    let delta = known.delta_to(&newer);
                    fleet.apply(&delta).unwrap();
                }
                _ => assert!(fleet.report(newer.clone())),
            }
            prop_assert_eq!(fleet.host(&host.host), Some(&newer));
        }
        let mut rest: Vec<HostInventory> = fleet.hosts().cloned().collect();
        agrees(&fleet.rank(&one, &Policy::default(), NOW), &naive_of(&rest, &fleet), &one)?;
        if leave < rest.len() {
            let gone = rest.remove(leave);
            prop_assert!(fleet.remove(&gone.host));
            prop_assert!(fleet.host(&gone.host).is_none());
        }
        placed.placed.iter().for_each(|placed| _ = fleet.release(&placed.reservation.id));
        prop_assert_eq!(fleet.reservations().count(), 0);
        // Numbers are used again: a host that comes anew must inherit nothing.
        let new = HostInventory { host: "new".into(), ..after[0].clone() };
        fleet.report(new.clone());
        rest.push(new);
        for policy in Policy::all() {
            prop_assert_eq!(fleet.rank(&one, &policy, NOW), fleet_of(&rest).rank(&one, &policy, NOW));
        }
    }

    #[test]
    fn the_order_of_hosts_changes_nothing(hosts in hosts(10), one in request(), seed in any::<u64>()) {
        let mut shuffled = hosts.clone();
        shuffled.sort_by_key(|host| volfork::content::Digest::of(format!("{seed}{}", host.host).as_bytes()));
        for policy in Policy::all() {
            let (mut fleet, mut other) = (fleet_of(&hosts), fleet_of(&shuffled));
            prop_assert_eq!(fleet.rank(&one, &policy, NOW), other.rank(&one, &policy, NOW));
            prop_assert_eq!(fleet.place(&one, &policy, NOW), other.place(&one, &policy, NOW));
        }
    }

    #[test]
    fn more_presence_never_ranks_lower(
        hosts in hosts(8),
        one in request(),
        chosen in 0..8_usize,
        number in 0..12_u8,
        whole in any::<bool>(),
    ) {
        let mut richer = hosts.clone();
        let chosen = chosen % hosts.len();
        if whole {
            let held = richer[chosen].snapshots.get_mut("s1");
            held.into_iter().for_each(|held| held.present = None);
        } else {
            richer[chosen].layers.insert(layer(number).digest, layer(number).bytes);
        }
        let place = |hosts: &[HostInventory]| {
            let ranking = fleet_of(hosts).rank(&one, &Policy::default(), NOW);
            ranking.hosts.iter().position(|ranked| ranked.host == hosts[chosen].host)
        };
        match (place(&hosts), place(&richer)) {
            (Some(before), Some(after)) => prop_assert!(after <= before, "from place {before} to {after}"),
            (before, after) => prop_assert_eq!(before, after),
        }
    }

    #[test]
    fn no_policy_breaks_a_constraint(hosts in hosts(8), one in request()) {
        for policy in Policy::all() {
            let placement = fleet_of(&hosts).place(&one, &policy, NOW);
            keeps_constraints(&hosts, &one, &placement)?;
            prop_assert_eq!(placement.placed.len() as u32 + placement.left, one.count);
            prop_assert_eq!(placement.nothing.is_some(), placement.left > 0);
            prop_assert_eq!(placement.refused, None);
        }
    }

    #[test]
    fn changes_lead_from_one_inventory_to_the_next(old in host("h".into()), new in host("h".into())) {
        let new = HostInventory { generation: 7, ..new };
        let delta = old.delta_to(&new);
        let json = serde_json::to_string(&delta).unwrap();
        let mut changed = old.clone();
        changed.apply(&serde_json::from_str(&json).unwrap()).unwrap();
        prop_assert_eq!(&changed, &new);
        prop_assert_eq!(changed.apply(&delta).unwrap_err().kind(), ErrorKind::InvalidInput);
        prop_assert_eq!(changed, new, "a change that is refused changes nothing");
    }
}

fn plain(name: &str, memory_bytes: u64) -> HostInventory {
    HostInventory {
        host: name.into(),
        region: "ams".into(),
        capacity: Resources { cpus: [("shared".into(), 8)].into(), memory_bytes, volume_bytes: 1 << 40, ..Resources::default() },
        generation: 5,
        reported_at: NOW,
        ..HostInventory::default()
    }
}

fn memory(bytes: u64) -> Request {
    let mut request = Request { id: "r".into(), volume: "data".into(), ..Request::default() };
    request.compute.memory_bytes = bytes;
    request
}

#[test]
fn an_empty_answer_names_the_constraint_and_the_nearest_host() {
    let mut fleet = fleet_of(&[plain("small", 1 << 30), plain("large", 3 << 30)]);
    fleet.report(HostInventory { status: HostStatus::Draining, ..plain("drained", 1 << 40) });
    let ranking = fleet.rank(&memory(4 << 30), &Policy::default(), NOW);
    let nothing = ranking.nothing.unwrap();
    assert_eq!(nothing.constraint, Constraint::Memory);
    assert_eq!(nothing.excluded, [(Constraint::Status, 1), (Constraint::Memory, 2)]);
    let nearest = nothing.nearest.clone().unwrap();
    assert_eq!((nearest.host.as_str(), nearest.have, nearest.need), ("large", 3 << 30, 4 << 30));
    assert!(nothing.to_string().contains("nearest came large: 3.0 GiB of memory are free, 4.0 GiB are needed"), "{nothing}");
    assert_eq!(ranking.excluded.len(), 3);

    let nothing = Fleet::new().rank(&memory(1), &Policy::default(), NOW).nothing.unwrap();
    assert_eq!((nothing.constraint, nothing.nearest), (Constraint::Known, None));
}

#[test]
fn preferred_regions_come_first_whatever_the_seconds() {
    let image = fleets::image(&[1, 2, 3]);
    let mut far = plain("far", 1 << 40);
    far.region = "fra".into();
    far.layers = image.layers.iter().map(|layer| (layer.digest, layer.bytes)).collect();
    let fleet = fleet_of(&[far, plain("near", 1 << 40)]);
    let request = Request { image: Some(image), regions: vec!["ams".into(), "fra".into()], ..memory(1) };
    let order = |request: &Request| fleet.rank(request, &Policy::default(), NOW).hosts.into_iter().map(|one| one.host).collect::<Vec<_>>();
    assert_eq!(order(&request), ["near", "far"]);
    assert_eq!(order(&Request { regions: Vec::new(), ..request }), ["far", "near"], "without a preference the layers decide");
}

#[test]
fn fetches_for_one_start_count_for_the_next() {
    let image = fleets::image(&[9, 10, 11]);
    let mut fleet = fleet_of(&[plain("a", 1 << 40), plain("b", 1 << 40), plain("c", 1 << 40)]);
    let request = Request { image: Some(image.clone()), ..memory(1 << 30) };
    let first = fleet.place(&request, &Policy::default(), NOW).placed.remove(0);
    let host = first.reservation.host.clone();
    assert_eq!((first.ranked.terms.image_bytes_missing, first.ranked.terms.image_bytes_in_flight), (330_000_000, 0));
    let there = |fleet: &Fleet, request: &Request| {
        let hosts = fleet.rank(request, &Policy::default(), NOW).hosts;
        hosts.into_iter().zip(0..).find(|(ranked, _)| ranked.host == host).unwrap()
    };
    let (again, _) = there(&fleet, &request);
    assert_eq!((again.terms.image_bytes_missing, again.terms.image_bytes_in_flight), (0, 330_000_000));
    assert!((again.terms.herd_seconds - 0.25).abs() < 1e-9, "the fetches are its own: {again}");
    // Another image has to share the link until its 80 MB are there, and is better off elsewhere.
    let other = Request { id: "other".into(), image: Some(fleets::image(&[7])), ..memory(1 << 30) };
    let (beside, place) = there(&fleet, &other);
    assert_eq!(place, 2);
    assert!((beside.terms.herd_seconds - 0.25 - 240_000_000.0 / 125_000_000.0).abs() < 1e-9, "{beside}");

    // The host reports the assignment, and that half of the bytes are there already: nobody else is as near.
    let in_flight = image.layers.iter().map(|layer| (layer.digest, InFlight { bytes: layer.bytes, remaining: layer.bytes / 2 }));
    let assignments = vec![first.reservation.id.clone()];
    fleet.report(HostInventory { generation: 6, assignments, in_flight: in_flight.collect(), ..plain(&host, 1 << 40) });
    let (again, place) = there(&fleet, &request);
    assert_eq!((place, again.terms.image_bytes_in_flight, again.terms.herd_seconds), (0, 165_000_000, 0.0));
    let (beside, _) = there(&fleet, &other);
    assert!((beside.terms.load_seconds - 165_000_000.0 / 125_000_000.0).abs() < 1e-9, "{beside}");
}

#[test]
fn reservations_hold_room_until_reported_released_or_expired() {
    let mut fleet = fleet_of(&[plain("a", 10 << 30)]);
    let room = |fleet: &Fleet| !fleet.order(&memory(6 << 30), &Policy::default(), NOW).is_empty();
    let reservation = |id: &str, bytes| Reservation {
        id: id.into(),
        host: "a".into(),
        resources: Resources { memory_bytes: bytes, ..Resources::default() },
        expires_at: NOW + 10,
        ..Reservation::default()
    };
    fleet.reserve(reservation("one", 6 << 30)).unwrap();
    assert!(!room(&fleet));
    fleet.reserve(reservation("one", 6 << 30)).expect("the same one again changes nothing");
    assert_eq!(fleet.reserve(reservation("one", 1)).unwrap_err().kind(), ErrorKind::Exists);
    let error = fleet.reserve(reservation("two", 6 << 30)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("4.0 GiB of memory are free, 6.0 GiB are needed"), "{error}");
    assert_eq!(fleet.reserve(Reservation { host: "x".into(), ..reservation("three", 1) }).unwrap_err().kind(), ErrorKind::NotFound);

    fleet.expire(NOW + 9);
    assert!(!room(&fleet));
    fleet.expire(NOW + 10);
    assert!(room(&fleet));

    fleet.reserve(reservation("two", 6 << 30)).unwrap();
    assert!(fleet.release("two") && !fleet.release("two"));
    assert!(room(&fleet));

    fleet.reserve(reservation("three", 6 << 30)).unwrap();
    let mut reported = HostInventory { generation: 6, assignments: vec!["three".into()], ..plain("a", 10 << 30) };
    reported.used.memory_bytes = 3 << 30;
    fleet.report(reported);
    assert_eq!(fleet.reservations().count(), 0);
    assert!(room(&fleet), "what the host reports counts, not what was reserved");
    fleet.reserve(reservation("three", 6 << 30)).expect("it is there already");
    assert_eq!(fleet.reservations().count(), 0);
}

#[test]
fn stale_reports_and_changes_from_elsewhere_are_refused() {
    let mut fleet = fleet_of(&[plain("a", 1 << 30)]);
    assert!(!fleet.report(HostInventory { generation: 4, ..plain("a", 2 << 30) }));
    assert_eq!(fleet.host("a").unwrap().capacity.memory_bytes, 1 << 30);
    let next = HostInventory { generation: 9, ..plain("a", 2 << 30) };
    let delta = HostInventory { generation: 8, ..plain("a", 1 << 30) }.delta_to(&next);
    let error = fleet.apply(&delta).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    for part in ["'a'", "from generation 8", "generation 5 is known", "send a full report"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    let delta = plain("b", 1).delta_to(&HostInventory { generation: 6, ..plain("b", 2) });
    assert_eq!(fleet.apply(&delta).unwrap_err().kind(), ErrorKind::NotFound);
    let old = fleet.rank(&memory(1), &Policy::default(), NOW + 301);
    assert_eq!(old.excluded[0].to_string(), "a: last reported 301 s ago, the most allowed is 300 s");
}

#[test]
fn a_host_that_misses_three_of_its_reports_is_dead() {
    let reporting = |every, reported_at| HostInventory { report_every_seconds: every, reported_at, ..plain("a", 1 << 30) };
    let at = |host: HostInventory| fleet_of(&[host]).rank(&memory(1), &Policy::default(), NOW);
    for (every, age) in [(10, 30), (1, 3), (3600, 10_800), (0, 300), (u64::MAX, 3 * 86_400)] {
        assert_eq!(at(reporting(every, NOW - age)).fitting, 1, "every {every} s, {age} s ago");
        let dead = at(reporting(every, NOW - age - 1));
        assert_eq!(dead.nothing.unwrap().constraint, Constraint::Stale, "every {every} s, {age} s ago");
        assert_eq!(dead.excluded[0].to_string(), format!("a: last reported {} s ago, the most allowed is {age} s", age + 1));
    }
    assert_eq!(at(reporting(10, NOW + 30)).fitting, 1, "clocks differ");
    let ahead = at(reporting(10, NOW + 31));
    assert_eq!(ahead.nothing.unwrap().constraint, Constraint::Clock);
    assert!(ahead.excluded[0].to_string().contains("31 s in the future"), "{}", ahead.excluded[0]);
    assert_eq!(at(reporting(10, u64::MAX)).fitting, 0);
}

#[test]
fn a_sources_own_holdings_override_its_hosts_report() {
    let held = |present: Option<&[u32]>| HeldSnapshot {
        block_bytes: 4096,
        size_bytes: 1 << 20,
        present: present.map(|blocks| blocks.iter().copied().collect()),
    };
    let with_store = |name: &str, store: &str| HostInventory { store: store.into(), ..plain(name, 1 << 30) };
    let stale = HostInventory { snapshots: [("s/1".to_owned(), held(Some(&[])))].into(), ..with_store("a", "s") };
    let fleet = fleet_of(&[stale, with_store("b", "other"), with_store("c", "")]);
    let missing = |store: &str, present: Option<&[u32]>| {
        let origin = Some(SnapshotOrigin { store: store.into(), held: held(present) });
        let (identity, size_bytes) = ("s/1".to_owned(), 1 << 20);
        let need = SnapshotNeed { identity, block_bytes: 4096, size_bytes, first: None, source_bandwidth: 1 << 20, origin };
        let hosts = fleet.rank(&Request { snapshot: Some(need), ..memory(1) }, &Policy::default(), NOW).hosts;
        let mut all: Vec<_> = hosts.into_iter().map(|ranked| (ranked.host, ranked.terms.snapshot_bytes_missing / 4096)).collect();
        all.sort();
        all.into_iter().map(|(_, blocks)| blocks).collect::<Vec<_>>()
    };
    assert_eq!(missing("s", None), [0, 256, 256]);
    assert_eq!(missing("s", Some(&[1, 7])), [254, 256, 256]);
    assert_eq!(missing("other", None), [256, 0, 256]);
    assert_eq!(missing("", None), [256, 256, 256], "hosts that do not say which store they have");
}

#[test]
fn nothing_is_missing_of_a_snapshot_that_is_empty() {
    let snapshot =
        |first| SnapshotNeed { identity: "s/1".into(), block_bytes: 4096, size_bytes: 1 << 30, first, source_bandwidth: 1, origin: None };
    let missing = |first| {
        let request = Request { snapshot: Some(snapshot(first)), ..memory(1) };
        fleet_of(&[plain("a", 1 << 30)]).rank(&request, &Policy::default(), NOW).hosts[0].terms.snapshot_bytes_missing
    };
    assert_eq!((missing(Some(RoaringBitmap::new())), missing(None)), (0, 1 << 30));
}

#[test]
fn every_policy_has_its_own_best_host() {
    let image = fleets::image(&[11]);
    let held: BTreeMap<_, _> = image.layers.iter().map(|layer| (layer.digest, layer.bytes)).collect();
    let mut cached = plain("cached", 100 << 30);
    cached.used.memory_bytes = 80 << 30;
    cached.used.cpus = [("shared".into(), 6)].into();
    cached.layers = held.clone();
    cached.images = [("shop:v1".into(), 120_000_000)].into();
    let mut layers_only = plain("layers", 100 << 30);
    layers_only.used.memory_bytes = 40 << 30;
    layers_only.used.cpus = [("shared".into(), 3)].into();
    layers_only.layers = held;
    let mut fleet = fleet_of(&[cached, layers_only, plain("empty", 100 << 30)]);
    // Slow links, so that the image is worth the room.
    let slow: Vec<_> = fleet.hosts().cloned().collect();
    for mut host in slow {
        host.bandwidth.registry = 10_000_000;
        fleet.report(host);
    }
    let mut request = Request { image: Some(image), ..memory(1 << 30) };
    request.compute.cpus = Processors { kind: "shared".into(), count: 1 };
    let best = |policy: Policy| fleet.order(&request, &policy, NOW).host(0).unwrap().to_owned();
    assert_eq!(best(Policy::CapacityOnly), "empty");
    assert_eq!(best(Policy::ImageBit), "cached");
    // 120 MB on 1 of 3 nodes are 1 point, not enough for a host that is nearly full.
    assert_eq!(best(Policy::ImageLocality), "empty");
    assert_eq!(best(Policy::LrScheduler), "layers");
    assert_eq!(best(Policy::default()), "layers");
}
