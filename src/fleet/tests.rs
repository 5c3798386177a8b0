//! Hosts and schedulers on one fleet, in memory and in a directory.

mod clocks;
mod zones;

use crate::volume::VolumeOptions;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use super::bucket::Change;
use super::{Admitted, Birth, HostFacts, Published, Publisher, SharedFleet};
use crate::content::{Digest, Image, ImageLayer};
use crate::error::{ErrorKind, Result};
use crate::placement::{
    Compute, FleetOptions, HeldSnapshot, HostInventory, HostStatus, InventoryDelta, PLACEMENTS_MAX, PlacedVolume, Placement, Policy,
    Processors, Request, Resources,
};
use crate::store::{Store, StoreOptions};
use crate::volume::IMAGE_LABEL;

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

/// Wipes a part of a fleet in a directory.
fn wiped(directory: &std::path::Path, part: &str) {
    std::fs::remove_dir_all(directory.join(part)).unwrap();
}

#[test]
fn what_was_wiped_is_written_again_with_the_next_report() {
    let directory = tempfile::tempdir().unwrap();
    let fleet = SharedFleet::open(directory.path().to_str().unwrap()).unwrap();
    let mut publisher = Publisher::new(fleet.clone());
    let mut inventory = HostInventory { report_every_seconds: 10, ..host("a", "a", 4) };
    publisher.publish(inventory.clone(), NOW).unwrap();
    inventory.used.memory_bytes = 1;
    assert_eq!(publisher.publish(inventory.clone(), NOW + 1).unwrap(), Published::Changes);
    for (at, part) in (2..).zip(["hosts", "deltas", "."]) {
        match part {
            "." => ["hosts", "deltas"].into_iter().for_each(|part| wiped(directory.path(), part)),
            part => wiped(directory.path(), part),
        }
        // Nothing is new, but it is due.
        let told = publisher.publish(inventory.clone(), NOW + 10 * at).unwrap();
        assert_eq!(told, if part == "deltas" { Published::Changes } else { Published::Whole }, "{part}");
        let read = fleet.host("a").unwrap();
        assert_eq!((read.reported_at, read.used.memory_bytes), (NOW + 10 * at, 1), "{part}");
    }
    // An older report was restored from a backup.
    let path = directory.path().join("hosts/a.json");
    let old = std::fs::read(&path).unwrap();
    inventory.layers = (0..1000u32).map(|number| (Digest::of(&number.to_le_bytes()), 1)).collect();
    assert_eq!(publisher.publish(inventory.clone(), NOW + 60).unwrap(), Published::Whole);
    std::fs::write(&path, old).unwrap();
    assert_eq!(publisher.publish(inventory.clone(), NOW + 70).unwrap(), Published::Whole);
    assert_eq!(fleet.host("a").unwrap().layers.len(), 1000);
}

#[test]
fn a_report_that_is_due_is_written_though_nothing_is_new() {
    let fleet = memory();
    let mut publisher = Publisher::new(fleet.clone());
    let inventory = HostInventory { report_every_seconds: 10, ..host("a", "a", 4) };
    let mut at = |now| publisher.publish(inventory.clone(), now).unwrap();
    assert_eq!(
        [NOW, NOW + 9, NOW + 10, NOW + 19].map(&mut at),
        [Published::Whole, Published::Nothing, Published::Changes, Published::Nothing]
    );
    assert_eq!(at(NOW - 100), Published::Changes, "the clock was set back");
    assert_eq!(fleet.host("a").unwrap().reported_at, NOW - 100);
}

fn admit(fleet: &SharedFleet, own: &HostInventory, reservation: Option<&str>, wanted: &Request, now: u64) -> Result<Admitted> {
    fleet.admit(&Birth { wanted, grows: false, reservation, own: &|| Ok(own.clone()) }, now)
}

#[test]
fn a_reservation_is_good_for_one_volume_on_its_host() {
    let fleet = memory();
    let own = HostInventory { report_every_seconds: 10, ..host("a", "z", 2) };
    publish(&fleet, own.clone());
    publish(&fleet, HostInventory { capacity: Resources::default(), ..host("b", "z", 0) });
    let id = place(&fleet, &machine("v")).placed.remove(0).reservation.id;
    let refused = |own: &HostInventory, id: &str, wanted: &Request, now| {
        let error = admit(&fleet, own, Some(id), wanted, now).unwrap_err();
        (error.kind(), error.to_string())
    };
    let before = fleet.load().unwrap().reservations;
    let mut large = machine("v");
    large.volume_bytes += 1;
    let mut many = machine("v");
    many.compute.cpus.count = 2;
    let used = HostInventory { assignments: vec![id.clone()], ..own.clone() };
    let all = [
        (refused(&own, "bogus", &machine("v"), NOW), ErrorKind::InvalidInput, "is not a reservation"),
        (refused(&own, "0a1b2c3d4e5f6071@ams.z", &machine("v"), NOW), ErrorKind::NotFound, "is not held"),
        (refused(&own, "0a1b2c3d4e5f6071@ams.y", &machine("v"), NOW), ErrorKind::NotFound, "is not held"),
        (refused(&host("b", "z", 2), &id, &machine("v"), NOW), ErrorKind::InvalidInput, "is for host 'a', and this is 'b'"),
        (refused(&own, &id, &large, NOW), ErrorKind::InvalidInput, "is too small: of what it holds, 1.0 MiB for volumes"),
        (refused(&own, &id, &many, NOW), ErrorKind::InvalidInput, "is too small: of what it holds, 1 processors"),
        (refused(&host("a", "y", 2), &id, &machine("v"), NOW), ErrorKind::InvalidInput, "before this host came to zone 'y'"),
        (refused(&own, &id, &machine("v"), NOW + 60), ErrorKind::NotFound, "lapsed 0 s ago"),
        (refused(&used, &id, &machine("v"), NOW), ErrorKind::Exists, "was used up"),
    ];
    for ((kind, text), expected, part) in all {
        assert!(kind == expected && text.contains(part), "{part}: {text}");
    }
    assert_eq!(fleet.load().unwrap().reservations, before, "what is refused changes nothing");

    // Taken shortly before it lapses, it holds until a host that does not report the volume would count as dead.
    let taken = admit(&fleet, &own, Some(&id), &machine("other"), NOW + 59).unwrap();
    let held = fleet.load().unwrap().reservations;
    assert_eq!((held.len(), held[0].expires_at), (1, NOW + 59 + 30 + 60));
    fleet.give_back(&taken).unwrap();
    assert_eq!(fleet.load().unwrap().reservations, before, "the volume was not made");
    let taken = admit(&fleet, &own, Some(&id), &machine("other"), NOW + 59).unwrap();
    publish(&fleet, HostInventory { assignments: vec![taken.id], used: held[0].resources.clone(), ..own.clone() });
    assert_eq!(fleet.load().unwrap().reservations, []);
}

#[test]
fn a_host_makes_nothing_that_breaks_its_capacity_or_its_zone() {
    let fleet = memory();
    let own = host("a", "z", 2);
    let other = PlacedVolume { app: "app".into(), name: "db".into(), size_bytes: 1 };
    publish(&fleet, own.clone());
    publish(&fleet, HostInventory { volumes: [("db".to_owned(), other)].into(), ..host("b", "z", 8) });
    publish(&fleet, host("c", "elsewhere", 8));
    // One of two processors is reserved on this host, and the next volume gets the other; b and c do not help.
    fleet.release(&place(&fleet, &machine("free")).placed.remove(0).reservation.id).unwrap();
    let first = admit(&fleet, &own, None, &machine("one"), NOW).unwrap();
    assert_eq!(fleet.load().unwrap().reservations[0].volume, "one");
    admit(&fleet, &own, None, &machine("two"), NOW).unwrap();
    let error = admit(&fleet, &own, None, &machine("three"), NOW).unwrap_err();
    assert!(error.kind() == ErrorKind::NoSpace && error.to_string().contains("a: 0 processors are free, 1 are needed"), "{error}");
    fleet.give_back(&first).unwrap();
    admit(&fleet, &HostInventory { status: HostStatus::Draining, ..own.clone() }, None, &machine("three"), NOW).unwrap();
    // A request for any kind gets one unit, which no other request has.
    let any = Request { compute: Compute { cpus: Processors { kind: String::new(), count: 3 }, ..Compute::default() }, ..machine("any") };
    let mixed = HostInventory {
        capacity: Resources { cpus: [("fast".to_owned(), 3), ("shared".to_owned(), 2)].into(), ..own.capacity.clone() },
        ..host("mixed", "y", 0)
    };
    assert_eq!(admit(&fleet, &mixed, None, &any, NOW).unwrap().resources.cpus, [("fast".to_owned(), 3)].into());

    let unique = |volume: &str, require_unique_zone, unique_zone_app_wide| {
        let request = Request { require_unique_zone, unique_zone_app_wide, ..machine(volume) };
        admit(&fleet, &host("empty", "z", 8), None, &request, NOW).map(|_| ()).map_err(|error| error.to_string())
    };
    assert!(unique("db", true, false).unwrap_err().contains("same app and name"));
    assert!(unique("log", false, true).unwrap_err().contains("same app are in its zone"));
    unique("log", true, false).unwrap();
    // What is reserved counts like what is there.
    assert!(unique("log", true, false).unwrap_err().contains("same app and name"));
}

/// Schedulers reserve on a host that makes volumes of its own meanwhile, and of what was reserved.
#[test]
fn hosts_and_schedulers_together_do_not_oversell() {
    let directory = tempfile::tempdir().unwrap();
    let fleet = SharedFleet::open(directory.path().to_str().unwrap()).unwrap();
    let own = std::sync::Mutex::new(HostInventory { report_every_seconds: 10, ..host("a", "z", 7) });
    publish(&fleet, own.lock().unwrap().clone());
    let make = |reservation: Option<&str>, volume: &str| {
        let look = || Ok(own.lock().unwrap().clone());
        let wanted = machine(volume);
        let admitted = fleet.admit(&Birth { wanted: &wanted, grows: false, reservation, own: &look }, NOW).ok()?;
        let mut own = own.lock().unwrap();
        *own.used.cpus.entry("shared".into()).or_default() += 1;
        assert!(own.used.cpus["shared"] <= 7, "the host was oversold");
        own.assignments.push(admitted.id);
        Some(())
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut publisher = Publisher::new(fleet.clone());
            for _ in 0..20 {
                let look = own.lock().unwrap().clone();
                publisher.publish(look, NOW).unwrap();
            }
        });
        for worker in 0..3 {
            let (make, fleet) = (&make, &fleet);
            scope.spawn(move || {
                for number in 0..3 {
                    let volume = format!("v{worker}-{number}");
                    match number % 2 {
                        0 => drop(make(None, &volume)),
                        _ => place(fleet, &machine(&volume)).placed.into_iter().for_each(|placed| {
                            // A reservation that was made is good.
                            make(Some(&placed.reservation.id), &volume).unwrap();
                        }),
                    }
                }
            });
        }
    });
    assert_eq!(own.lock().unwrap().used.cpus["shared"], 7, "all room was used");
}

/// What a host has made is in the book until it has reported it, whatever else it makes meanwhile.
#[test]
fn a_scheduler_sees_what_a_host_has_made_and_not_reported() {
    let fleet = memory();
    let mut own = host("a", "z", 2);
    publish(&fleet, own.clone());
    let first = admit(&fleet, &own, None, &machine("one"), NOW).unwrap();
    (own.assignments, own.used) = (vec![first.id], first.resources);
    let second = admit(&fleet, &own, None, &machine("two"), NOW).unwrap();
    assert_eq!(place(&fleet, &machine("three")).placed, []);
    fleet.give_back(&second).unwrap();
    assert_eq!(place(&fleet, &machine("three")).placed.len(), 1);
}

#[test]
fn a_host_confirms_only_what_is_its_own() {
    let fleet = memory();
    publish(&fleet, host("a", "z", 1));
    let id = place(&fleet, &machine("v")).placed.remove(0).reservation.id;
    publish(&fleet, HostInventory { assignments: vec![id.clone(), "nonsense".into(), "x@../..".into()], ..host("b", "z", 1) });
    assert_eq!(fleet.load().unwrap().reservations[0].id, id);
    // Whatever a label of a volume names, the others are confirmed.
    put(&fleet, "reservations/ams.broken.json", b"{");
    publish(&fleet, HostInventory { assignments: vec!["x@ams.broken".into(), id], ..host("a", "z", 1) });
    assert_eq!(fleet.load().unwrap().reservations, []);
}

#[test]
fn room_is_what_is_free_and_images_count_what_they_hold() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = Store::create(&path, StoreOptions::default()).unwrap();
    let facts = HostFacts::default().complete(&path).unwrap();
    let free = || {
        let system = rustix::fs::statvfs(&path).unwrap();
        system.f_bavail * system.f_frsize
    };
    // Others write there, too.
    const SLACK: u64 = 1 << 30;
    let near = |room: u64, expected: u64| assert!(room.abs_diff(expected) < SLACK, "{room} is not about {expected}");
    let left = |inventory: &HostInventory| inventory.capacity.without(&inventory.used).volume_bytes;
    near(left(&facts.amounts(&store).unwrap()), free());

    let image = store
        .create_volume_with("app", 64 << 30, &VolumeOptions::default().with_labels([(IMAGE_LABEL.to_owned(), "app:v1".to_owned())].into()))
        .unwrap();
    image.write_at(&[1; 1 << 20], 0).unwrap();
    image.flush().unwrap();
    let holding = facts.amounts(&store).unwrap();
    assert_eq!((holding.used.volume_bytes, holding.volumes["app"].size_bytes), (1 << 20, 64 << 30));
    assert!(holding.images.contains_key("app:v1"));
    near(left(&holding), free());
    // A machine's own disk may grow to its size.
    image.fork("disk").unwrap();
    let forked = facts.amounts(&store).unwrap();
    assert_eq!(forked.used.volume_bytes, (1 << 20) + (64 << 30));
    near(left(&forked), free().saturating_sub(64 << 30));
    // What the operator says counts.
    let told = HostFacts { capacity: Resources { volume_bytes: 7, ..Resources::default() }, ..HostFacts::default() };
    assert_eq!(told.complete(&path).unwrap().amounts(&store).unwrap().capacity.volume_bytes, 7);
}

#[test]
fn broken_objects_take_out_what_they_tell_of_and_nothing_else() {
    let fleet = memory();
    for name in ["good", "bad-delta", "newer-delta", "renamed", "huge", "closed"] {
        publish(&fleet, host(name, name, 1));
    }
    put(&fleet, "hosts/garbage.json", b"\xff\xfe{");
    put(&fleet, "hosts/other.json", &serde_json::to_vec(&host("good", "z", 1)).unwrap());
    put(&fleet, "hosts/up.json", &serde_json::to_vec(&host("up", "../up", 1)).unwrap());
    put(&fleet, "deltas/bad-delta.json", b"[]");
    let newer = InventoryDelta { host: "newer-delta".into(), base: 100, generation: 101, ..InventoryDelta::default() };
    put(&fleet, "deltas/newer-delta.json", &serde_json::to_vec(&newer).unwrap());
    put(&fleet, "reservations/ams.closed.json", b"{\"sequence\":1}");
    put(&fleet, "hosts/huge.json", &vec![b' '; (64 << 20) + 1]);
    put(&fleet, "hosts/deep.json", &[b'['; 100_000]);
    put(&fleet, "notes.txt", b"nobody looks here");
    put(&fleet, "hosts/notes.txt", b"this does not belong here");
    let view = fleet.load().unwrap();
    let names = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(view.hosts.iter().map(|host| host.host.clone()).collect::<BTreeSet<_>>(), names(vec!["good", "renamed"]));
    let unreadable: BTreeSet<_> = view.unreadable.iter().map(|object| object.object.clone()).collect();
    let broken = ["garbage.json", "other.json", "up.json", "bad-delta.json", "newer-delta.json", "huge.json", "deep.json", "notes.txt"];
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

#[test]
fn a_book_stays_readable_whatever_is_reserved() {
    let fleet = memory();
    publish(&fleet, host("a", "z", 100));
    let layers = (0..40_000u32).map(|number| ImageLayer { digest: Digest::of(&number.to_le_bytes()), bytes: 1 }).collect();
    let image = Some(Image { reference: "app:v1".into(), digest: Digest::of(b"app"), layers });
    let reserve = |number: u32| place_at(&fleet, &Request { image: image.clone(), ..machine(&format!("v{number}")) }, NOW);
    let refused = (0..10).find_map(|number| reserve(number).err()).expect("a book has an end");
    assert!(refused.kind() == ErrorKind::NoSpace && refused.to_string().contains("is full"), "{refused}");
    assert_eq!(fleet.load().unwrap().unreadable, []);
    assert_eq!(place(&fleet, &machine("small")).placed.len(), 1);
}

#[test]
fn numbers_at_their_end_stop_nobody() {
    let fleet = memory();
    let own = host("a", "z", 9);
    publish(&fleet, own.clone());
    put(&fleet, "reservations/ams.z.json", format!("{{\"sequence\":{},\"reservations\":[]}}", u64::MAX).as_bytes());
    assert_eq!(place(&fleet, &machine("v")).placed.len(), 1);
    admit(&fleet, &own, None, &machine("w"), NOW).unwrap();
    let last = HostInventory { generation: u64::MAX, ..own.clone() };
    put(&fleet, "hosts/a.json", &serde_json::to_vec(&last).unwrap());
    let delta = InventoryDelta { host: "a".into(), base: u64::MAX - 1, generation: u64::MAX, ..InventoryDelta::default() };
    put(&fleet, "deltas/a.json", &serde_json::to_vec(&delta).unwrap());
    let mut publisher = Publisher::new(fleet.clone());
    for round in 1..5 {
        publisher.publish(own.clone(), NOW + 100 * round).unwrap();
        assert_eq!(fleet.host("a").unwrap().reported_at, NOW + 100 * round);
    }
}

#[test]
fn a_host_of_countless_kinds_takes_out_itself() {
    let fleet = memory();
    publish(&fleet, host("good", "z", 1));
    let mut many = host("many", "z", 1);
    many.capacity.cpus.extend((0..1000).map(|number| (format!("kind-{number}"), 1)));
    put(&fleet, "hosts/many.json", &serde_json::to_vec(&many).unwrap());
    let view = fleet.load().unwrap();
    assert_eq!((view.hosts.len(), view.hosts[0].host.as_str()), (1, "good"));
    assert!(view.unreadable[0].reason.contains("kinds of processors"), "{:?}", view.unreadable);
    let refused = Publisher::new(fleet).publish(many, NOW).unwrap_err();
    assert!(refused.kind() == ErrorKind::InvalidInput && refused.to_string().contains("1001 kinds"), "{refused}");
}

#[test]
fn a_host_with_blocks_of_no_store_takes_out_itself() {
    let fleet = memory();
    for block_bytes in [0, 1, 2048, 4096, 5000, 65536, 1 << 31] {
        let held = HeldSnapshot { block_bytes, size_bytes: 1 << 40, present: None };
        let lying = HostInventory { snapshots: [("s".to_owned(), held)].into(), ..host(&format!("h{block_bytes}"), "z", 1) };
        publish(&fleet, lying);
    }
    let view = fleet.load().unwrap();
    assert_eq!(view.hosts.iter().map(|host| host.host.as_str()).collect::<Vec<_>>(), ["h4096", "h65536"]);
    assert!(view.unreadable[0].reason.contains("blocks of 0 bytes"), "{:?}", view.unreadable);
}

/// The write of a reservation that was taken may succeed although the answer to it is lost.
#[test]
fn a_reservation_that_was_taken_twice_is_given_back_as_it_was() {
    let fleet = memory();
    let own = host("a", "z", 2);
    publish(&fleet, own.clone());
    let id = place(&fleet, &machine("v")).placed.remove(0).reservation.id;
    let before = fleet.load().unwrap().reservations;
    let asked = Cell::new(0);
    let look = || {
        asked.set(asked.get() + 1);
        // First for the names, then with the book: another try of the same host comes before its write.
        if asked.get() == 2 {
            admit(&fleet, &own, Some(&id), &machine("v"), NOW)?;
        }
        Ok(own.clone())
    };
    let taken = fleet.admit(&Birth { wanted: &machine("v"), grows: false, reservation: Some(&id), own: &look }, NOW).unwrap();
    assert_eq!(asked.get(), 3);
    fleet.give_back(&taken).unwrap();
    assert_eq!(fleet.load().unwrap().reservations, before);
}

#[test]
fn a_host_with_a_fast_clock_lets_nothing_of_others_lapse() {
    let fleet = memory();
    publish(&fleet, host("a", "z", 0));
    publish(&fleet, host("b", "z", 1));
    let held = place(&fleet, &machine("v")).placed.remove(0).reservation;
    assert_eq!(held.host, "b");
    admit(&fleet, &host("a", "z", 1), None, &machine("own"), NOW + 3600).unwrap();
    assert!(fleet.load().unwrap().reservations.contains(&held));
    assert_eq!(place(&fleet, &machine("w")).placed, []);
}
