//! Fleets with the real binary: hosts that report, schedulers that place, in a directory and in a bucket.
#![cfg(feature = "fleet")]

mod bucket;
mod place;
mod reservations;
mod signs;
mod sources;

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use place::{PATIENCE, Place, Server, text, wait};
use serde_json::Value;

const MIB: usize = 1 << 20;

impl Place {
    fn run(&self, store: &str, arguments: &[&str]) -> Output {
        self.command(store, arguments).output().unwrap()
    }

    fn ok(&self, store: &str, arguments: &[&str]) -> String {
        let output = self.run(store, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn json(&self, store: &str, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(store, &[&["--json"], arguments].concat())).unwrap()
    }

    /// Standard output and error of a command that must fail.
    fn fails(&self, store: &str, arguments: &[&str]) -> (String, String) {
        let output = self.run(store, arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    }

    /// A store with a volume `base` of bytes that belong to `seed`, and its snapshot `v1`.
    fn store_with_base(&self, store: &str, seed: u8, bytes: usize) {
        let image: Vec<u8> = (0..bytes).map(|at| (at / 4096 % 251) as u8 ^ seed | 1).collect();
        let path = self.path(&format!("{store}.img"));
        fs::write(&path, image).unwrap();
        self.ok(store, &["import", "base", path.to_str().unwrap()]);
        self.ok(store, &["snapshot", "base", "v1"]);
    }

    /// What a command that must fail says, from the one JSON object on its standard error.
    fn error(&self, store: &str, arguments: &[&str]) -> (String, String) {
        let (_, error) = self.fails(store, &[&["--json"], arguments].concat());
        let error: Value = serde_json::from_str(&error).unwrap_or_else(|_| panic!("{arguments:?}: {error}"));
        let part = |name: &str| error["error"][name].as_str().unwrap().to_owned();
        (part("kind"), part("message"))
    }

    /// A served store of an operator who says what the host has.
    fn host(&self, name: &str, config: &str, more: &[&str]) -> Server {
        let path = self.path(&format!("{name}.json"));
        fs::write(&path, config).unwrap();
        if !self.path(name).exists() {
            self.ok(name, &["init"]);
        }
        let server = self.serve(name, &[&["--host-config", path.to_str().unwrap()], more].concat());
        self.wait_for(name, |host| host["status"] == "ok");
        server
    }

    /// A store that reports once, with so many processors.
    fn publish(&self, host: &str, cpus: u32) {
        let config = self.path(&format!("{host}.json"));
        fs::write(&config, format!("{{\"region\": \"ams\", \"capacity\": {{\"cpus\": {{\"shared\": {cpus}}}}}}}")).unwrap();
        if !self.path(host).exists() {
            self.ok(host, &["init"]);
        }
        self.ok(host, &["fleet", "publish", "--host", host, "--host-config", config.to_str().unwrap()]);
    }

    /// Waits until a host is listed as `done` wants it.
    fn wait_for(&self, host: &str, done: impl Fn(&Value) -> bool) -> Value {
        wait(host, || {
            let list = self.json("none", &["fleet", "list"]);
            let found = list["hosts"].as_array().unwrap().iter().find(|entry| entry["host"] == host);
            found.filter(|found| done(found)).cloned().ok_or_else(|| list.to_string())
        })
    }

    /// Waits until so many reservations are held: reports take those out that were used.
    fn wait_for_reservations(&self, count: usize) {
        wait("the reservations", || match self.reservations() {
            held if held == count => Ok(()),
            held => Err(format!("{held} are held, not {count}")),
        });
    }

    fn reservations(&self) -> usize {
        self.json("none", &["fleet", "list"])["reservations"].as_array().unwrap().len()
    }
}

fn hosts(ranking: &Value) -> Vec<&str> {
    ranking["hosts"].as_array().unwrap().iter().map(|host| host["host"].as_str().unwrap()).collect()
}

#[test]
fn the_host_that_holds_the_blocks_comes_first() {
    let place = Place::with_directory();
    place.store_with_base("one", 3, 64 * MIB);
    place.ok("one", &["create", "unused", "--size", "1M"]);
    place.ok("two", &["init"]);
    let one = place.serve("one", &["--region", "ams", "--zone", "z1"]);
    let two = place.serve("two", &["--region", "ams", "--zone", "z2"]);
    place.wait_for("one", |host| host["status"] == "ok" && host["snapshots"].as_object().unwrap().len() == 1);
    place.wait_for("two", |host| host["status"] == "ok");

    // By name, asked of the server of the store; and by address, asked of the export.
    for (store, source) in [("one", "base@v1".to_owned()), ("one", "base".into()), ("none", place.uri("one", "base@v1"))] {
        let ranking = place.json(store, &["place", "--source", &source, "--all"]);
        assert_eq!(hosts(&ranking), ["one", "two"], "{source}");
        assert_eq!(ranking["hosts"][0]["snapshot_bytes_missing"], 0, "{source}");
        assert_eq!(ranking["hosts"][1]["snapshot_bytes_missing"], 64 * MIB, "{source}");
        assert!(ranking["hosts"][1]["seconds"].as_f64() > ranking["hosts"][0]["seconds"].as_f64(), "{source}");
    }
    let table = place.ok("one", &["place", "--source", "base@v1", "--explain"]);
    for word in ["HOST", "SECONDS", "SNAPSHOT MISSING", "HEADROOM", "64.0 MiB"] {
        assert!(table.contains(word), "{word}: {table}");
    }

    // A fork on the other host that has fetched everything makes both alike, and a region decides.
    place.ok("two", &["fork", &place.uri("one", "base@v1"), "copy"]);
    place.ok("two", &["hydrate", "copy", "--wait"]);
    place.wait_for("two", |host| !host["snapshots"].as_object().unwrap().is_empty() && host["volumes"]["copy"]["size_bytes"] == 64 * MIB);
    let near = |host: &Value| host["snapshot_bytes_missing"] == 0;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ranking = place.json("one", &["place", "--source", "base@v1", "--region", "fra,any"]);
        if ranking["hosts"].as_array().unwrap().iter().all(near) {
            break;
        }
        // The last blocks are reported after the fork.
        assert!(Instant::now() < deadline, "{ranking}");
        place.ok("two", &["snapshot", "copy", &format!("s{}", deadline.duration_since(Instant::now()).as_nanos())]);
    }
    let (out, error) = place.fails("one", &["place", "--source", "base@v1", "--region", "fra", "--all"]);
    assert!(error.contains("region") && out.contains("excluded (region)"), "{out}{error}");

    // A host that was stopped takes nothing.
    two.stop();
    let ranking = place.json("one", &["place", "--source", "base@v1"]);
    assert_eq!(hosts(&ranking), ["one"]);
    assert_eq!(ranking["excluded"][0]["constraint"], "status");
    one.stop();
    let output = place.run("one", &["--json", "place", "--size", "1M"]);
    assert_eq!(output.status.code(), Some(1));
    let ranking: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(ranking["nothing"]["constraint"], "status");
}

/// More processes than there is room for; answers the reservations that were made.
fn place_at_once(place: &Place, processes: usize, arguments: &[&str]) -> Vec<Value> {
    let children: Vec<Child> = (0..processes)
        .map(|number| {
            let volume = format!("v{number}");
            let all = [&["--json", "place", "--size", "1M", "--vm-cpus", "1", "--reserve", "--volume", &volume], arguments].concat();
            place.command("none", &all).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let mut placed = Vec::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
        let of_this = answer["placed"].as_array().unwrap();
        assert_eq!(output.status.success(), of_this.len() == 1, "{answer}");
        if of_this.is_empty() {
            assert_eq!(answer["nothing"]["constraint"], "cpus", "{answer}");
        }
        placed.extend(of_this.iter().map(|placed| placed["reservation"].clone()));
    }
    placed
}

fn processes_do_not_oversell(place: &Place) {
    place.publish("one", 5);
    place.publish("two", 3);
    let placed = place_at_once(place, 14, &["--ttl", "1h"]);
    let on = |host: &str| placed.iter().filter(|reservation| reservation["host"] == host).count();
    assert_eq!((on("one"), on("two")), (5, 3));
    let ids: BTreeSet<&str> = placed.iter().map(|reservation| reservation["id"].as_str().unwrap()).collect();
    assert_eq!((ids.len(), place.reservations()), (8, 8));
    for id in &ids {
        place.ok("none", &["fleet", "release", id]);
    }
    assert_eq!(place.reservations(), 0);
    let (_, error) = place.fails("none", &["fleet", "release", ids.first().unwrap()]);
    assert!(error.contains("not held"), "{error}");
}

#[test]
fn processes_do_not_oversell_a_directory() {
    processes_do_not_oversell(&Place::with_directory());
}

#[test]
fn processes_do_not_oversell_a_bucket() {
    processes_do_not_oversell(&Place::with_bucket());
}

#[test]
fn a_server_reports_to_a_bucket() {
    let place = Place::with_bucket();
    place.store_with_base("one", 9, MIB);
    let one = place.serve("one", &["--region", "ams"]);
    place.wait_for("one", |host| host["status"] == "ok" && host["snapshots"].as_object().unwrap().len() == 1);
    let ranking = place.json("one", &["place", "--source", "base@v1"]);
    assert_eq!(ranking["hosts"][0]["snapshot_bytes_missing"], 0);
    one.stop();
    place.wait_for("one", |host| host["status"] == "unreachable");
}

#[test]
fn a_volume_uses_its_reservation_up() {
    let place = Place::with_directory();
    let config = place.path("config.json");
    fs::write(&config, "{\"region\": \"ams\", \"capacity\": {\"cpus\": {\"shared\": 2}}}").unwrap();
    place.ok("one", &["init"]);
    let one = place.serve("one", &["--host-config", config.to_str().unwrap(), "--report-every", "1h"]);
    place.wait_for("one", |host| host["status"] == "ok");
    let machine = ["--vm-cpus", "2", "--vm-cpu-kind", "shared", "--vm-memory", "64M", "--app", "shop"];
    let reserve = [&["place", "--size", "1M", "--reserve", "--ttl", "1h", "--volume", "disk"], &machine[..]].concat();
    let placement = place.json("none", &reserve);
    let id = placement["placed"][0]["reservation"]["id"].as_str().unwrap();
    assert_eq!(place.reservations(), 1);

    place.ok("one", &[&["create", "disk", "--size", "1M", "--reservation", id, "--require-unique-zone"], &machine[..]].concat());
    // Reported at once, not an hour later.
    let host = place.wait_for("one", |host| host["assignments"][0] == id);
    assert_eq!((&host["used"]["cpus"]["shared"], &host["used"]["memory_bytes"]), (&2.into(), &(64 * MIB).into()));
    assert_eq!(host["volumes"]["disk"]["app"], "shop");
    let (_, error) = place.fails("none", &["place", "--size", "1M", "--vm-cpus", "1"]);
    assert!(error.contains("cpus"), "{error}");

    // A fork has the machine of its source, and not its reservation.
    place.ok("one", &["snapshot", "disk", "s"]);
    place.ok("one", &["fork", "disk@s", "second", "--vm-memory", "32M", "--force"]);
    let labels = &place.json("one", &["show", "second"])["labels"];
    assert_eq!(
        (&labels["vm.cpus"], &labels["vm.memory"], &labels["vm.app"]),
        (&"2".into(), &(32 * MIB).to_string().into(), &"shop".into())
    );
    assert_eq!(labels["volfork.reservation"], Value::Null);
    assert!(place.ok("one", &["show", "disk"]).contains("vm.cpu-kind=shared"));
    place.wait_for("one", |host| host["used"]["cpus"]["shared"] == 4);
    // So has what is placed by it, and both must not be in one zone.
    let (_, error) = place.fails("one", &["place", "--source", "disk", "--volume", "disk", "--vm-cpus", "0"]);
    assert!(error.contains("cpus"), "{error}");
    place.ok("one", &["destroy", "second"]);
    place.ok("one", &["destroy", "disk", "--recursive"]);
    place.wait_for("one", |host| host["used"]["volume_bytes"] == 0);
    place.ok("none", &["place", "--size", "1M", "--vm-cpus", "2"]);
    one.stop();
}

#[test]
fn reservations_lapse() {
    let place = Place::with_directory();
    place.publish("one", 1);
    assert_eq!(place_at_once(&place, 2, &["--ttl", "2s"]).len(), 1);
    let deadline = Instant::now() + PATIENCE;
    while place_at_once(&place, 1, &["--ttl", "1h"]).is_empty() {
        assert!(Instant::now() < deadline, "it never lapsed");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(place.reservations(), 1, "what lapsed is swept");
}

#[test]
fn broken_objects_are_told_and_left_out() {
    let place = Place::with_directory();
    place.publish("one", 1);
    place.publish("two", 1);
    let fleet = &place.objects;
    fs::write(fleet.join("hosts/two.json"), "{\"host\": ").unwrap();
    let output = place.run("none", &["fleet", "list"]);
    assert!(output.status.success() && text(&output.stdout).contains("one") && !text(&output.stdout).contains("two"));
    assert!(text(&output.stderr).contains("hosts/two.json"), "{}", text(&output.stderr));
    let ranking = place.json("none", &["place", "--size", "1M"]);
    assert_eq!(hosts(&ranking), ["one"]);
    assert_eq!(ranking["unreadable"][0]["object"], "hosts/two.json");
    // A host that reports again is well.
    place.publish("two", 1);
    assert_eq!(hosts(&place.json("none", &["place", "--size", "1M"])).len(), 2);
}

#[test]
fn an_image_decides_and_wrong_input_is_refused() {
    let place = Place::with_directory();
    place.publish("one", 1);
    let digest = |digit: char| format!("sha256:{}", digit.to_string().repeat(64));
    let layer = |digit: char, bytes: u64| format!("{{\"digest\": \"{}\", \"bytes\": {bytes}}}", digest(digit));
    let layers = format!("[{}, {}, {}]", layer('b', 1000), layer('c', 24), layer('b', 1000));
    let image = format!("{{\"reference\": \"app:v1\", \"digest\": \"{}\", \"layers\": {layers}}}", digest('a'));
    let path = place.path("image.json");
    fs::write(&path, &image).unwrap();
    let ranking = place.json("none", &["place", "--size", "1M", "--image-layers", path.to_str().unwrap()]);
    assert_eq!(ranking["hosts"][0]["image_bytes_missing"], 1024);
    fs::write(&path, image.replace("sha256", "md5")).unwrap();
    let (_, error) = place.fails("none", &["place", "--size", "1M", "--image-layers", path.to_str().unwrap()]);
    assert!(error.contains("image.json") && error.contains("digest"), "{error}");

    let (_, error) = place.fails("none", &["fleet", "list", "--fleet", "/nowhere/at/all"]);
    assert!(error.contains("/nowhere/at/all"), "{error}");
    let (_, error) = place.fails("none", &["place", "--size", "1M", "--policy", "capacity", "--weights", "spread_seconds=1"]);
    assert!(error.contains("weights"), "{error}");
    fs::write(place.path("config.json"), "{\"regoin\": \"ams\"}").unwrap();
    let (_, error) = place.fails("one", &["fleet", "publish", "--host-config", "config.json"]);
    assert!(error.contains("config.json") && error.contains("regoin"), "{error}");
    let (_, error) = place.fails("one", &["fleet", "publish", "--host", "a/b"]);
    assert!(error.contains("a/b"), "{error}");
    assert!(!place.objects.join("hosts/a").exists());
}
