//! What a source tells about its volume: labels and machine that forks inherit and placement uses.

use std::fs;
use std::time::{Duration, Instant};
use volfork::volume::VolumeOptions;

use serde_json::Value;
use volfork::{Store, StoreOptions};

use crate::{MIB, PATIENCE, Place, hosts};

fn region(name: &str) -> String {
    format!("{{\"region\": \"{name}\", \"capacity\": {{\"cpus\": {{\"shared\": 4}}}}}}")
}

/// Bytes that a host would have to fetch.
fn missing(ranking: &Value, host: &str) -> u64 {
    let hosts = ranking["hosts"].as_array().unwrap();
    let host = hosts.iter().find(|ranked| ranked["host"] == host).unwrap_or_else(|| panic!("{host}: {ranking}"));
    host["snapshot_bytes_missing"].as_u64().unwrap()
}

#[test]
fn a_remote_fork_has_the_machine_of_its_source() {
    let place = Place::with_directory();
    let [one, two, three] = ["one", "two", "three"].map(|name| place.host(name, &region("ams"), &[]));
    let machine = ["--vm-cpus", "2", "--vm-cpu-kind", "shared", "--vm-memory", "64M", "--compute-image", "app:v1", "--app", "shop"];
    place.ok("one", &[&["create", "disk", "--size", "1M"], &machine[..]].concat());
    place.ok("one", &["snapshot", "disk", "s"]);
    let mut expected = place.json("one", &["show", "disk"])["labels"].clone();
    assert_eq!(expected["vm.image"], "app:v1");
    // From host to host, and changed on the way; a volume tells the same as a snapshot.
    for (store, source, name) in [
        ("two", place.uri("one", "disk@s"), "copy"),
        ("three", place.uri("two", "copy@s"), "second"),
        ("three", place.uri("one", "disk@s"), "third"),
    ] {
        place.ok(store, &["fork", &source, name, "--vm-memory", "32M"]);
        expected["vm.memory"] = (32 * MIB).to_string().into();
        assert_eq!(place.json(store, &["show", name])["labels"], expected, "{source}");
        place.ok(store, &["snapshot", name, "s"]);
    }
    // The host counts the machine.
    place.wait_for("two", |host| host["used"]["cpus"]["shared"] == 2 && host["volumes"]["copy"]["app"] == "shop");
    let (kind, _) = place.error("three", &["fork", &place.uri("one", "disk@s"), "fourth"]);
    assert_eq!(kind, "no_space");
    // Placement uses that origin, too.
    for (source, cpus) in [(place.uri("one", "disk@s"), 2), (place.uri("three", "second@s"), 2)] {
        let reserved = place.json("none", &["place", "--source", &source, "--reserve", "--quiet"]);
        let resources = &reserved["placed"][0]["reservation"]["resources"];
        assert_eq!(resources["cpus"]["shared"], cpus, "{source}");
        assert_eq!(reserved["placed"][0]["reservation"]["app"], "shop");
        place.ok("none", &["fleet", "release", reserved["placed"][0]["reservation"]["id"].as_str().unwrap()]);
    }
    [one, two, three].into_iter().for_each(crate::place::Server::stop);
}

#[test]
fn an_option_goes_before_a_label_that_is_no_number() {
    let place = Place::with_directory();
    let store = Store::create(place.path("one"), StoreOptions::default()).unwrap();
    let labels = [("vm.cpus", "many"), ("vm.memory", "65536")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    store.create_volume_with("disk", 1 << 20, &VolumeOptions::default().with_labels(labels.into())).unwrap();
    store.close().unwrap();
    let _one = place.host("one", &region("ams"), &[]);
    for source in ["disk".to_owned(), place.uri("one", "disk")] {
        let (kind, message) = place.error("one", &["place", "--source", &source]);
        assert!(kind == "invalid_input" && message.contains("vm.cpus is 'many'") && message.contains("--vm-cpus"), "{kind}: {message}");
        let reserved = place.json("one", &["place", "--source", &source, "--vm-cpus", "2", "--reserve"]);
        let reservation = &reserved["placed"][0]["reservation"];
        assert_eq!((&reservation["resources"]["cpus"]["shared"], &reservation["resources"]["memory_bytes"]), (&2.into(), &65536.into()));
        place.ok("none", &["fleet", "release", reservation["id"].as_str().unwrap()]);
    }
}

#[test]
fn a_live_volume_is_where_it_is() {
    let place = Place::with_directory();
    let [_one, _two] = ["one", "two"].map(|name| place.host(name, &region("ams"), &[]));
    fs::write(place.path("image"), vec![7; 8 * MIB]).unwrap();
    place.ok("one", &["import", "disk", "image"]);
    // What is held for the import makes the host less liked until it has reported the volume.
    place.wait_for_reservations(0);
    for source in ["disk".to_owned(), place.uri("one", "disk")] {
        let ranking = place.json("one", &["place", "--source", &source]);
        assert_eq!((missing(&ranking, "one"), missing(&ranking, "two")), (0, 8 * MIB as u64), "{source}");
        assert_eq!(hosts(&ranking)[0], "one");
    }
    // What another host has of an older snapshot is not the volume as it is now.
    place.ok("one", &["snapshot", "disk", "s"]);
    place.ok("two", &["fork", &place.uri("one", "disk@s"), "copy"]);
    place.ok("two", &["hydrate", "copy", "--wait"]);
    // Nothing was written since, so that what the other host has, when it has told, is the volume.
    let deadline = Instant::now() + PATIENCE;
    while missing(&place.json("one", &["place", "--source", "disk"]), "two") > 0 {
        assert!(Instant::now() < deadline, "it never told");
        std::thread::sleep(Duration::from_millis(20));
    }
    let uri = place.uri("one", "disk");
    let writer = ["-f", "raw", "-c", "write -P 3 0 1M", "-c", "flush"];
    let written = std::process::Command::new("qemu-io").args(writer).arg(&uri).output().unwrap();
    assert!(written.status.success(), "{}", crate::text(&written.stderr));
    let ranking = place.json("one", &["place", "--source", "disk"]);
    assert_eq!((missing(&ranking, "one"), missing(&ranking, "two")), (0, 8 * MIB as u64));
    let ranking = place.json("one", &["place", "--source", "disk@s"]);
    assert_eq!((missing(&ranking, "one"), missing(&ranking, "two")), (0, 0));
}

#[test]
fn an_empty_volume_needs_nothing() {
    let place = Place::with_directory();
    let [_one, _two] = ["one", "two"].map(|name| place.host(name, &region("ams"), &[]));
    place.ok("one", &["create", "empty", "--size", "1G"]);
    place.ok("one", &["snapshot", "empty", "s"]);
    for source in ["empty".to_owned(), "empty@s".into(), place.uri("one", "empty@s"), place.uri("one", "empty")] {
        let ranking = place.json("one", &["place", "--source", &source]);
        assert_eq!((missing(&ranking, "one"), missing(&ranking, "two")), (0, 0), "{source}");
    }
}

#[test]
fn a_fork_stays_in_the_region_of_its_source_unless_told() {
    let place = Place::with_directory();
    let _one = place.host("one", &region("ams"), &[]);
    let _two = place.host("two", &region("fra"), &[]);
    place.ok("one", &["create", "disk", "--size", "1M"]);
    place.ok("one", &["snapshot", "disk", "s"]);
    for source in ["disk".to_owned(), "disk@s".into(), place.uri("one", "disk@s"), place.uri("one", "disk")] {
        let ranked = |region: &[&str]| {
            let ranking = place.json("one", &[&["place", "--source", &source], region].concat());
            let mut found: Vec<_> = hosts(&ranking).into_iter().map(str::to_owned).collect();
            found.sort();
            found
        };
        assert_eq!(ranked(&[]), ["one"], "{source}");
        assert_eq!(ranked(&["--region", "any"]), ["one", "two"], "{source}");
        assert_eq!(ranked(&["--region", "fra"]), ["two"], "{source}");
    }
    assert_eq!(hosts(&place.json("one", &["place", "--size", "1M"])).len(), 2, "what has no source has no region");
}

#[test]
fn what_is_not_reserved_has_no_reservation() {
    let place = Place::with_directory();
    place.publish("one", 2);
    let count = ["place", "--size", "1M", "--vm-cpus", "1", "--count", "2"];
    let table = place.ok("none", &count);
    assert!(table.contains("HOST") && !table.contains("RESERVATION") && !table.contains("HELD"), "{table}");
    let placement = place.json("none", &count);
    let placed = placement["placed"].as_array().unwrap();
    assert!(placed.len() == 2 && placed.iter().all(|placed| placed["ranked"]["host"] == "one" && placed.get("reservation").is_none()));
    assert_eq!(place.ok("none", &[&["--quiet"], &count[..]].concat()), "one\none\n");
    assert_eq!(place.reservations(), 0);
    let reserved = place.json("none", &[&count[..], &["--reserve"]].concat());
    assert_eq!((reserved["placed"].as_array().unwrap().len(), place.reservations()), (2, 2));
}

#[test]
fn why_nothing_was_placed_is_an_error_like_all_others() {
    let place = Place::with_directory();
    place.publish("one", 2);
    let machine = ["place", "--size", "1M", "--vm-cpus", "1"];
    for (arguments, part, placed) in [
        (&["--vm-memory", "1P"][..], "memory", None),
        (&["--count", "3"], "2 placed, 1 not", Some(2)),
        (&["--count", "3", "--reserve"], "2 placed, 1 not", Some(2)),
        (&["--reserve"], "0 placed, 1 not", Some(0)),
    ] {
        let output = place.run("none", &[&["--json"], &machine[..], arguments].concat());
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        let message = error["error"]["message"].as_str().unwrap();
        assert!(error["error"]["kind"] == "no_space" && message.contains(part), "{error}");
        // The answer has what was placed, and nothing that is an error.
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(answer.get("message").is_none() && answer.get("error").is_none(), "{answer}");
        assert_eq!(answer.get("placed").map(|placed| placed.as_array().unwrap().len()), placed, "{answer}");
    }
}
