//! Hosts and schedulers on one fleet, in memory and in a directory.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use super::bucket::Change;
use super::{Published, Publisher, SharedFleet};
use crate::content::Digest;
use crate::error::{ErrorKind, Result};
use crate::placement::{
    Compute, FleetOptions, HostInventory, PLACEMENTS_MAX, PlacedVolume, Placement, Policy, Processors, Request, Resources,
};

const NOW: u64 = 1_000_000;

fn memory() -> SharedFleet {
    SharedFleet::open("memory://").unwrap()
}

fn host(name: &str, zone: &str, cpus: u32) -> HostInventory {
    let capacity =
        Resources { cpus: [("shared".to_owned(), cpus)].into(), memory_bytes: 1 << 40, volume_bytes: 1 << 40, ..Resources::default() };
    HostInventory { host: name.into(), region: "ams".into(), zone: zone.into(), capacity, ..HostInventory::default() }
}

fn publish(fleet: &SharedFleet, inventory: HostInventory) {
    Publisher::new(fleet.clone()).publish(inventory, NOW).unwrap();
}

fn machine(volume: &str) -> Request {
    let compute = Compute { cpus: Processors { kind: "shared".into(), count: 1 }, ..Compute::default() };
    Request { id: volume.into(), app: "app".into(), volume: volume.into(), volume_bytes: 1 << 20, compute, ..Request::default() }
}

fn place_at(fleet: &SharedFleet, request: &Request, now: u64) -> Result<Placement> {
    fleet.place(request, &Policy::default(), FleetOptions { reservation_seconds: 60, ..FleetOptions::default() }, now)
}

fn place(fleet: &SharedFleet, request: &Request) -> Placement {
    place_at(fleet, request, NOW).unwrap()
}

fn put(fleet: &SharedFleet, path: &str, bytes: &[u8]) {
    fleet.bucket().change(path, u64::MAX, |_| Ok(Change::Write(bytes.to_vec(), ()))).unwrap();
}

#[test]
fn a_host_tells_what_changed() {
    let fleet = memory();
    let mut publisher = Publisher::new(fleet.clone());
    let mut inventory = host("a", "a", 4);
    inventory.layers = (0..1000u32).map(|number| (Digest::of(&number.to_le_bytes()), u64::from(number))).collect();
    assert_eq!(publisher.publish(inventory.clone(), NOW).unwrap(), Published::Whole);
    assert_eq!(publisher.publish(inventory.clone(), NOW + 1).unwrap(), Published::Nothing);
    assert_eq!(fleet.host("a").unwrap().reported_at, NOW);
    // That it lives is told all the same, now and then.
    assert_eq!(publisher.publish(inventory.clone(), NOW + 30).unwrap(), Published::Changes);
    for round in 0..20 {
        inventory.layers.insert(Digest::of(&[round]), 7);
        inventory.used.memory_bytes += 1;
        assert_eq!(publisher.publish(inventory.clone(), NOW + 31).unwrap(), Published::Changes);
        let read = fleet.host("a").unwrap();
        assert_eq!(
            (read.reported_at, read.layers.len(), read.used.memory_bytes),
            (NOW + 31, 1001 + usize::from(round), 1 + u64::from(round))
        );
        assert_eq!(fleet.load().unwrap().hosts, [read]);
    }
    inventory.layers = (0..1000u32).map(|number| (Digest::of(&(number + 5000).to_le_bytes()), 1)).collect();
    assert_eq!(publisher.publish(inventory.clone(), NOW + 32).unwrap(), Published::Whole);
    let read = fleet.host("a").unwrap();
    assert_eq!(read, HostInventory { generation: read.generation, reported_at: NOW + 32, ..inventory.clone() });
    // A process that starts again goes on from there.
    assert_eq!(Publisher::new(fleet.clone()).publish(inventory, NOW + 33).unwrap(), Published::Whole);
    assert!(fleet.host("a").unwrap().generation > read.generation);
}

#[test]
fn two_hosts_of_one_name_hear_of_it() {
    let fleet = memory();
    let (mut first, mut second) = (Publisher::new(fleet.clone()), Publisher::new(fleet));
    assert_eq!(first.publish(host("a", "a", 1), NOW).unwrap(), Published::Whole);
    assert_eq!(second.publish(host("a", "a", 2), NOW).unwrap(), Published::Whole);
    assert_eq!(second.publish(host("a", "a", 3), NOW).unwrap(), Published::Changes);
    assert_eq!(first.publish(host("a", "a", 4), NOW).unwrap_err().kind(), ErrorKind::Busy);
    let names = [host("../a", "a", 1), host("a", "b.c", 1), HostInventory { region: String::new(), ..host("a", "a", 1) }];
    for wrong in names {
        assert_eq!(first.publish(wrong, NOW).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn broken_objects_take_out_what_they_tell_of_and_nothing_else() {
    let fleet = memory();
    for name in ["good", "bad-delta", "renamed", "huge", "closed"] {
        publish(&fleet, host(name, name, 1));
    }
    put(&fleet, "hosts/garbage.json", b"\xff\xfe{");
    put(&fleet, "hosts/other.json", &serde_json::to_vec(&host("good", "z", 1)).unwrap());
    put(&fleet, "hosts/up.json", &serde_json::to_vec(&host("up", "../up", 1)).unwrap());
    put(&fleet, "deltas/bad-delta.json", b"[]");
    put(&fleet, "reservations/ams.closed.json", b"{\"sequence\":1}");
    put(&fleet, "hosts/huge.json", &vec![b' '; (64 << 20) + 1]);
    put(&fleet, "hosts/deep.json", &[b'['; 100_000]);
    put(&fleet, "notes.txt", b"nobody looks here");
    put(&fleet, "hosts/notes.txt", b"this does not belong here");
    let view = fleet.load().unwrap();
    let names = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(view.hosts.iter().map(|host| host.host.clone()).collect::<BTreeSet<_>>(), names(vec!["good", "renamed"]));
    let unreadable: BTreeSet<_> = view.unreadable.iter().map(|object| object.object.clone()).collect();
    let broken = ["garbage.json", "other.json", "up.json", "bad-delta.json", "huge.json", "deep.json", "notes.txt"];
    let mut expected = names(broken.to_vec()).into_iter().map(|name| format!("hosts/{name}")).collect::<BTreeSet<_>>();
    expected.insert("reservations/ams.closed.json".into());
    assert_eq!(unreadable, expected);
    assert!(view.unreadable.iter().all(|object| !object.reason.is_empty()));
    // The rest goes on.
    let hosts: BTreeSet<_> = [place(&fleet, &machine("v")), place(&fleet, &machine("w"))]
        .into_iter()
        .map(|placement| placement.placed[0].reservation.host.clone())
        .collect();
    assert_eq!(hosts, names(vec!["good", "renamed"]));
    assert!(place(&fleet, &machine("x")).nothing.is_some());
}

#[test]
fn a_reservation_holds_until_it_lapses_is_released_or_reported() {
    let fleet = memory();
    let mut publisher = Publisher::new(fleet.clone());
    let mut inventory = host("a", "z", 2);
    publisher.publish(inventory.clone(), NOW).unwrap();
    let first = place(&fleet, &machine("one")).placed.remove(0).reservation;
    let second = place(&fleet, &machine("two")).placed.remove(0).reservation;
    assert!(first.id.ends_with("@ams.z") && first.id != second.id && first.expires_at == NOW + 60);
    let full = place(&fleet, &machine("three"));
    assert_eq!((full.left, full.placed.len()), (1, 0));
    assert!(full.nothing.unwrap().to_string().contains("cpus"));

    fleet.release(&second.id).unwrap();
    assert_eq!(fleet.release(&second.id).unwrap_err().kind(), ErrorKind::NotFound);
    for wrong in ["", "x", "x@", "x@../..", "x@ams.z/..", "x@a"] {
        assert_eq!(fleet.release(wrong).unwrap_err().kind(), ErrorKind::InvalidInput, "{wrong}");
    }
    let third = place(&fleet, &machine("three")).placed.remove(0).reservation;

    // The host made the volume: it counts once, there, and for as long as it is there.
    inventory.used = first.resources.clone();
    inventory.assignments = vec![first.id.clone()];
    publisher.publish(inventory.clone(), NOW + 59).unwrap();
    assert_eq!(place_at(&fleet, &machine("four"), NOW + 59).unwrap().left, 1);
    // The other one lapsed.
    let fourth = place_at(&fleet, &machine("four"), NOW + 60).unwrap().placed.remove(0).reservation;
    assert_eq!(place_at(&fleet, &machine("five"), NOW + 60).unwrap().left, 1);
    let held: Vec<_> = fleet.load().unwrap().reservations.into_iter().map(|reservation| reservation.id).collect();
    assert_eq!(held, [fourth.id], "{} and {} are not held any more", first.id, third.id);
}

/// Schedulers place more than there is room for, while hosts take up what was reserved on them.
#[test]
fn too_many_at_once_are_refused_before_anything_is_reserved() {
    let fleet = memory();
    publish(&fleet, host("a", "a", 4));
    let placement = place(&fleet, &Request { count: PLACEMENTS_MAX + 1, ..machine("v") });
    assert!(placement.refused.is_some_and(|why| why.contains("too many")));
    assert!(placement.placed.is_empty());
}

fn nobody_oversells(fleet: &SharedFleet) {
    const HOSTS: [(&str, &str, u32); 3] = [("a", "z1", 5), ("b", "z1", 3), ("c", "z2", 4)];
    for (name, zone, cpus) in HOSTS {
        publish(fleet, host(name, zone, cpus));
    }
    let done = AtomicBool::new(false);
    let placed = std::thread::scope(|scope| {
        for (name, zone, cpus) in HOSTS {
            let done = &done;
            scope.spawn(move || {
                let mut publisher = Publisher::new(fleet.clone());
                let mut inventory = host(name, zone, cpus);
                while !done.load(Ordering::Relaxed) {
                    for reservation in fleet.load().unwrap().reservations {
                        if reservation.host != name || inventory.assignments.contains(&reservation.id) {
                            continue;
                        }
                        *inventory.used.cpus.entry("shared".into()).or_default() += 1;
                        assert!(inventory.used.cpus["shared"] <= cpus, "host {name} was oversold");
                        let volume = PlacedVolume { app: "app".into(), name: reservation.volume, size_bytes: 1 << 20 };
                        inventory.volumes.insert(volume.name.clone(), volume);
                        inventory.assignments.push(reservation.id);
                    }
                    publisher.publish(inventory.clone(), NOW).unwrap();
                }
            });
        }
        let schedulers: Vec<_> = (0..4)
            .map(|scheduler| {
                scope.spawn(move || {
                    (0..5).map(|number| place(fleet, &machine(&format!("v{scheduler}-{number}"))).placed.len()).sum::<usize>()
                })
            })
            .collect();
        let placed: usize = schedulers.into_iter().map(|scheduler| scheduler.join().unwrap()).sum();
        done.store(true, Ordering::Relaxed);
        placed
    });
    assert_eq!(placed, 12, "all room was used, and no more");
}

#[test]
fn schedulers_on_one_fleet_do_not_oversell() {
    nobody_oversells(&memory());
    let directory = tempfile::tempdir().unwrap();
    nobody_oversells(&SharedFleet::open(directory.path().to_str().unwrap()).unwrap());
}

#[test]
fn unique_zones_are_unique_whoever_decides() {
    let fleet = memory();
    for name in ["a", "b", "c"] {
        publish(&fleet, host(name, "z", 8));
    }
    publish(&fleet, host("d", "y", 8));
    let request = Request { require_unique_zone: true, ..machine("db") };
    let placed: Vec<_> = std::thread::scope(|scope| {
        let schedulers: Vec<_> = (0..6).map(|_| scope.spawn(|| place(&fleet, &request).placed)).collect();
        schedulers.into_iter().flat_map(|scheduler| scheduler.join().unwrap()).map(|placed| placed.ranked.zone).collect()
    });
    assert_eq!(placed.iter().collect::<BTreeSet<_>>().len(), 2, "{placed:?}");
    assert_eq!(placed.len(), 2);
}

#[test]
fn several_are_placed_one_after_the_other() {
    let fleet = memory();
    publish(&fleet, host("a", "a", 2));
    publish(&fleet, host("b", "b", 1));
    let placement = place(&fleet, &Request { count: 5, ..machine("v") });
    assert_eq!((placement.placed.len(), placement.left), (3, 2));
    let ids: BTreeSet<_> = placement.placed.iter().map(|placed| placed.reservation.id.clone()).collect();
    assert_eq!(ids.len(), 3);
    assert!(placement.nothing.is_some());
}
