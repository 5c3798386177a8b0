//! Volumes that a host makes with a reservation, or from its own capacity.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;
use volfork::volume::VolumeOptions;

use serde_json::Value;
use volfork::{Store, StoreOptions};

use crate::{MIB, Place, text};

const TWO_CPUS: &str = "{\"region\": \"ams\", \"zone\": \"z\", \"capacity\": {\"cpus\": {\"shared\": 2}}}";

/// A reservation for a volume of 1 MiB with one processor.
fn reserved(place: &Place) -> Value {
    let placement = place.json("none", &["place", "--size", "1M", "--vm-cpus", "1", "--reserve", "--ttl", "1h"]);
    placement["placed"][0]["reservation"].clone()
}

#[test]
fn reservations_are_checked_when_they_are_taken() {
    let place = Place::with_directory();
    let _one = place.host("one", TWO_CPUS, &[]);
    let other = TWO_CPUS.replace('2', "0");
    let _two = place.host("two", &other, &[]);
    let lapsed = reserved(&place);
    let lapsed = lapsed["id"].as_str().unwrap();
    let book = place.objects.join("reservations/ams.z.json");
    let mut books: Value = serde_json::from_slice(&fs::read(&book).unwrap()).unwrap();
    books["reservations"][0]["expires_at"] = 1.into();
    fs::write(&book, books.to_string()).unwrap();
    let held = reserved(&place);
    let id = held["id"].as_str().unwrap();
    assert_eq!(held["host"], "one");

    let create = |store: &str, id: &str, size: &str, cpus: &str| {
        place.error(store, &["create", "disk", "--size", size, "--vm-cpus", cpus, "--reservation", id])
    };
    for ((kind, message), expected, part) in [
        (create("one", "bogus", "1M", "1"), "invalid_input", "is not a reservation"),
        (create("one", "0a1b2c3d4e5f6071@ams.z", "1M", "1"), "not_found", "is not held"),
        (create("one", lapsed, "1M", "1"), "not_found", "lapsed"),
        (create("two", id, "1M", "1"), "invalid_input", "is for host 'one', and this is 'two'"),
        (create("one", id, "2M", "1"), "invalid_input", "is too small"),
        (create("one", id, "1M", "2"), "invalid_input", "is too small"),
    ] {
        assert!(kind == expected && message.contains(part) && message.contains("--force"), "{kind}: {message}");
    }
    for store in ["one", "two"] {
        assert!(place.json(store, &["list"]).as_array().unwrap().is_empty(), "what is refused is not made");
    }
    place.ok("one", &["create", "disk", "--size", "1M", "--vm-cpus", "1", "--reservation", id]);
    let (kind, message) = create("one", id, "1M", "1");
    assert!(kind == "exists" && message.contains("'disk' is on this host already"), "{kind}: {message}");
    let again = ["create", "again", "--size", "1M", "--vm-cpus", "1", "--reservation", id];
    let (kind, message) = place.error("one", &again);
    assert!(kind == "exists" && message.contains("used up"), "{kind}: {message}");
    place.wait_for("one", |host| host["assignments"][0] == id);
    place.wait_for_reservations(0);
    let (kind, message) = place.error("one", &again);
    assert!(kind == "exists" && message.contains("used up"), "{kind}: {message}");

    // A fork takes one, too; a volume that cannot be made gives it back.
    place.ok("one", &["snapshot", "disk", "s"]);
    let held = reserved(&place);
    let id = held["id"].as_str().unwrap();
    let (kind, _) = place.error("one", &["fork", "disk@s", "disk", "--reservation", id]);
    assert_eq!(kind, "exists");
    let list = place.json("none", &["fleet", "list"]);
    assert_eq!(list["reservations"].as_array().unwrap().iter().find(|one| one["id"] == id), Some(&held));
    place.ok("one", &["fork", "disk@s", "second", "--reservation", id]);
    place.wait_for("one", |host| host["used"]["cpus"]["shared"] == 2);
}

#[test]
fn a_volume_with_many_labels_has_room_for_a_reservation() {
    let place = Place::with_directory();
    let store = Store::create(place.path("one"), StoreOptions::default()).unwrap();
    let labels = [("note".to_owned(), "x".repeat(2048 - "note".len() - 8))];
    store.create_volume_with("disk", 1 << 20, &VolumeOptions::default().with_labels(labels.into())).unwrap();
    store.close().unwrap();
    let _one = place.host("one", TWO_CPUS, &[]);
    let held = reserved(&place);
    let id = held["id"].as_str().unwrap();
    place.ok("one", &["fork", "disk", "copy", "--reservation", id]);
    assert_eq!(place.json("one", &["show", "copy"])["labels"]["volfork.reservation"], id);
    // A fork of another size is marked until it is whole.
    place.ok("one", &["fork", "disk", "grown", "--size", "2M"]);
}

#[test]
fn a_store_that_is_in_no_fleet_takes_no_reservation() {
    let place = Place::with_directory();
    place.ok("one", &["init"]);
    let create = ["create", "disk", "--size", "1M", "--reservation", "0a1b2c3d4e5f6071@ams.z"];
    let (kind, message) = place.error("one", &create);
    assert!(kind == "unsupported" && message.contains("serve --fleet") && message.contains("--force"), "{kind}: {message}");
    place.ok("one", &[&create[..], &["--force"]].concat());
    place.ok("one", &["create", "other", "--size", "1M"]);
}

#[test]
fn capacity_and_zone_rules_hold_unless_forced() {
    let place = Place::with_directory();
    let _one = place.host("one", TWO_CPUS, &[]);
    let _two = place.host("two", TWO_CPUS, &[]);
    let machine = ["--size", "1M", "--vm-cpus", "2", "--app", "shop"];
    place.ok("one", &[&["create", "db"], &machine[..]].concat());
    let more = [&["create", "more"], &machine[..]].concat();
    let (kind, message) = place.error("one", &more);
    assert!(kind == "no_space" && message.contains("one: 0 processors are free, 2 are needed"), "{kind}: {message}");
    // A host that did not hear that it was made asks again, and must not go elsewhere.
    let (kind, message) = place.error("one", &[&["create", "db"], &machine[..]].concat());
    assert!(kind == "exists" && !message.contains("--force"), "{kind}: {message}");
    // A fork has the machine of its source.
    let (kind, _) = place.error("one", &["fork", "db", "copy"]);
    assert_eq!(kind, "no_space");
    place.ok("one", &["fork", "db", "copy", "--vm-cpus", "2", "--force"]);
    place.ok("one", &[&more[..], &["--force"]].concat());
    place.wait_for("one", |host| host["used"]["cpus"]["shared"] == 6);
    let large = ["create", "large", "--size", "15T"];
    let (kind, message) = place.error("two", &large);
    assert!(kind == "no_space" && message.contains("for volumes are free"), "{kind}: {message}");

    // The other host is in the zone, too.
    let unique = ["create", "db", "--size", "1M", "--app", "shop", "--require-unique-zone"];
    let (kind, message) = place.error("two", &unique);
    assert!(kind == "no_space" && message.contains("same app and name are in its zone"), "{kind}: {message}");
    let (kind, _) = place.error("two", &["create", "log", "--size", "1M", "--app", "shop", "--unique-zone-app-wide"]);
    assert_eq!(kind, "no_space");
    place.ok("two", &["create", "log", "--size", "1M", "--app", "shop", "--require-unique-zone"]);
    place.ok("two", &[&unique[..], &["--force"]].concat());
    // What is reserved is not there for others.
    place.wait_for_reservations(0);
    reserved(&place);
    let (kind, _) = place.error("two", &["create", "v", "--size", "1M", "--vm-cpus", "2"]);
    assert_eq!(kind, "no_space");
    place.ok("two", &["create", "v", "--size", "1M", "--vm-cpus", "1"]);
}

/// Schedulers reserve while users create on the host itself.
#[test]
fn creators_and_schedulers_do_not_oversell_a_host() {
    let place = Place::with_directory();
    let config = TWO_CPUS.replace('2', "5");
    let _one = place.host("one", &config, &["--report-every", "1h"]);
    let children: Vec<_> = (0..10)
        .map(|number| {
            let volume = format!("v{number}");
            let machine = ["--size", "1M", "--vm-cpus", "1"];
            let arguments = match number % 2 {
                0 => [&["create", &volume], &machine[..]].concat(),
                _ => [&["--json", "place", "--reserve", "--ttl", "1h", "--volume", &volume], &machine[..]].concat(),
            };
            place.command("one", &arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let mut ids = BTreeSet::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        if let Ok(placement) = serde_json::from_slice::<Value>(&output.stdout) {
            ids.extend(placement["placed"][0]["reservation"]["id"].as_str().map(str::to_owned));
        } else if !output.status.success() {
            assert!(text(&output.stderr).contains("0 processors are free"), "{}", text(&output.stderr));
        }
    }
    for (number, id) in ids.iter().enumerate() {
        place.ok("one", &["create", &format!("r{number}"), "--size", "1M", "--vm-cpus", "1", "--reservation", id]);
    }
    assert_eq!(place.json("one", &["list"]).as_array().unwrap().len(), 5, "all room was used, and no more");
    place.wait_for("one", |host| host["used"]["cpus"]["shared"] == 5);
    // Those that the host made for itself are confirmed, too.
    place.wait_for_reservations(0);
}

/// What is imported, and what a volume grows by, is held for it as what is created.
#[test]
fn import_and_extend_keep_capacity_unless_forced() {
    let place = Place::with_directory();
    let room = format!("{{\"region\": \"ams\", \"capacity\": {{\"volume_bytes\": {}}}}}", 64 * MIB);
    let _one = place.host("one", &room, &["--report-every", "1h"]);
    fs::write(place.path("image"), vec![5; 8 * MIB]).unwrap();
    place.ok("one", &["create", "disk", "--size", "16M"]);
    let held = place.json("none", &["place", "--size", "36M", "--reserve", "--ttl", "1h"])["placed"][0]["reservation"].clone();
    assert_eq!(held["host"], "one");
    // 12 MiB are left, and then 7.
    place.ok("one", &["extend", "disk", "--size", "21M"]);
    for refused in [&["extend", "disk", "--size", "29M"][..], &["extend", "disk", "--size", "+8M"], &["import", "large", "image"]] {
        let (kind, message) = place.error("one", refused);
        assert!(kind == "no_space" && message.contains("--force"), "{refused:?}: {kind}: {message}");
        assert_eq!(message.contains("may not grow on this host: one: 7.0 MiB"), refused[0] == "extend", "{message}");
    }
    // A stream is held for as it comes; its length is not known before.
    let stream = |name: &str, bytes: usize| {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let child = place
            .command("one", &["--json", "import", name, "-"])
            .stdin(reader)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // One that is refused is not read to its end.
        let _ = std::io::Write::write_all(&mut writer, &vec![6; bytes]);
        drop(writer);
        child.wait_with_output().unwrap()
    };
    let output = stream("large", 8 * MIB);
    assert!(!output.status.success() && text(&output.stderr).contains("no_space"), "{}", text(&output.stderr));
    assert!(!text(&output.stderr).contains("importing"), "it has a name of its own meanwhile: {}", text(&output.stderr));
    let output = stream("small", 3 * MIB);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let sizes = |place: &Place| {
        let volumes = place.json("one", &["list"]);
        volumes.as_array().unwrap().iter().map(|volume| volume["size_bytes"].as_u64().unwrap() >> 20).collect::<Vec<_>>()
    };
    assert_eq!(sizes(&place), [21, 3]);
    place.ok("one", &["extend", "disk", "--size", "25M"]);
    let (kind, _) = place.error("none", &["place", "--size", "1M"]);
    assert_eq!(kind, "no_space");
    place.wait_for_reservations(1);
    place.ok("one", &["extend", "disk", "--size", "26M", "--force"]);
    place.ok("one", &["import", "large", "image", "--force"]);
    let host = place.wait_for("one", |host| host["used"]["volume_bytes"] == 37 * MIB);
    assert_eq!(host["assignments"].as_array().unwrap().len(), 0, "{host}");
}

/// What is held for an import goes with the server that dies in it, and not hours later.
#[test]
fn a_server_killed_in_an_import_holds_no_room_later() {
    let place = Place::with_directory();
    let room = format!("{{\"region\": \"ams\", \"capacity\": {{\"volume_bytes\": {}}}}}", 64 * MIB);
    let one = place.host("one", &room, &["--report-every", "1h"]);
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut import = place.command("one", &["import", "disk", "-"]);
    let mut import = import.stdin(reader).stderr(Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(&mut writer, &vec![6; 2 * MIB]).unwrap();
    // For its first bytes, and for what it grows by.
    place.wait_for_reservations(2);
    drop(one);
    assert!(!import.wait().unwrap().success());
    assert_eq!(place.reservations(), 2);
    let _one = place.host("one", &room, &["--report-every", "1h"]);
    place.wait_for_reservations(0);
    assert!(place.json("one", &["list"]).as_array().unwrap().is_empty());
}

/// Volumes grow while schedulers reserve.
#[test]
fn growth_and_schedulers_do_not_oversell_a_host() {
    let place = Place::with_directory();
    let room = format!("{{\"region\": \"ams\", \"capacity\": {{\"volume_bytes\": {}}}}}", 20 * MIB);
    let _one = place.host("one", &room, &["--report-every", "1h"]);
    let names = ["v0", "v1", "v2", "v3"];
    names.iter().for_each(|name| drop(place.ok("one", &["create", name, "--size", "1M"])));
    // There is room for four of these eight.
    let begin = |arguments: &[&str]| place.command("one", arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let children: Vec<_> = names
        .iter()
        .flat_map(|name| [begin(&["extend", name, "--size", "+4M"]), begin(&["place", "--size", "4M", "--reserve", "--ttl", "1h"])])
        .collect();
    let ends = children.into_iter().map(|child| child.wait_with_output().unwrap());
    assert_eq!(ends.filter(|output| output.status.success()).count(), 4);
}
