//! A day of a fleet of three hosts, one of which has the bytes: machines are placed and forked, hosts die and come back, the
//! directory of the fleet is wiped, and false reports are written into it.

use std::process::Child;

use serde_json::{Value, json};

use crate::disk::{DATA_BYTES, Disk, MIB, image};
use crate::ledger::{Fate, Ledger};
use crate::way::Way;
use crate::world::{Server, World, error_of, text, wait};

const HOSTS: [&str; 3] = ["a", "b", "c"];
const GOLDEN: &str = "golden@g";
/// A machine of its own, which no source gives.
const MACHINE: [&str; 4] = ["--size", "1M", "--vm-cpus", "1"];

struct Day {
    world: World,
    ledger: Ledger,
    servers: [Option<Server>; 3],
    /// From everywhere to host a.
    way: Way,
    image: Vec<u8>,
}

fn number(host: &str) -> usize {
    HOSTS.iter().position(|name| *name == host).unwrap()
}

fn missing(volume: &Value) -> u64 {
    volume["hydration"]["bytes_missing"].as_u64().unwrap()
}

impl Day {
    /// Host a has a volume with a machine of one processor, and a snapshot of it; a and b are in one region, c is in another one.
    fn begin(world: World) -> Self {
        let image = image();
        std::fs::write(world.path("image"), &image).unwrap();
        world.ok("a", &["import", "base", "image"]);
        world.ok("a", &["fork", "base", "golden", "--vm-cpus", "1", "--vm-cpu-kind", "shared", "--app", "shop"]);
        world.ok("a", &["snapshot", "golden", "g"]);
        world.ok("b", &["init"]);
        world.ok("c", &["init"]);
        let way = Way::to(&world.socket("a"));
        let mut day = Self { world, ledger: Ledger::default(), servers: [None, None, None], way, image };
        HOSTS.iter().for_each(|host| day.serve(host));
        day.ledger.balance(&day.world, &HOSTS);
        day
    }

    fn serve(&mut self, host: &str) {
        let (region, cpus, room) = [("ams", 4, 128), ("ams", 4, 128), ("fra", 2, 66)][number(host)];
        self.servers[number(host)] = Some(self.world.host(host, region, cpus, room * MIB));
        self.world.wait_for(host, |host| host["status"] == "ok");
    }

    fn kill(&mut self, host: &str) {
        let mut server = self.servers[number(host)].take().unwrap();
        server.0.kill().unwrap();
        server.0.wait().unwrap();
    }

    /// Reserves for a fork of the golden snapshot; the reservation and the host.
    fn reserve(&mut self, volume: &str, ttl: &str, more: &[&str]) -> (String, String) {
        let source = self.way.uri(GOLDEN);
        let place = ["place", "--source", &source, "--reserve", "--ttl", ttl, "--volume", volume];
        let placement = self.world.ok("nobody", &[&place[..], more].concat());
        self.ledger.made(&placement).remove(0)
    }

    /// A fork of the golden snapshot on a host, as a disk that clients use.
    fn fork(&mut self, host: &str, volume: &str, reservation: Option<&str>) -> Disk {
        let source = if host == "a" { GOLDEN.to_owned() } else { self.way.uri(GOLDEN) };
        let taken = reservation.map(|id| ["--reservation", id]);
        let taken: Vec<&str> = taken.iter().flatten().copied().collect();
        let forked = self.world.ok(host, &[&["fork", &source, volume], &taken[..]].concat());
        assert_eq!((&forked["labels"]["vm.cpus"], &forked["labels"]["vm.app"]), (&"1".into(), &"shop".into()));
        reservation.into_iter().for_each(|id| self.ledger.became(id, Fate::Used));
        Disk { uri: self.world.uri(host, volume), bytes: self.image.clone() }
    }

    fn wait_for_volume(&self, host: &str, name: &str, is_right: impl Fn(&Value) -> bool) {
        wait(name, || {
            let volume = self.world.ok(host, &["show", name]);
            if is_right(&volume) { Ok(()) } else { Err(volume.to_string()) }
        });
    }

    fn balance(&self) {
        self.ledger.balance(&self.world, &HOSTS);
    }
}

/// The host with the bytes comes first, until it is full; then its neighbour does.
fn morning(day: &mut Day) -> Disk {
    let (first, host) = day.reserve("web1", "1h", &[]);
    assert_eq!(host, "a", "it holds the blocks");
    day.balance();
    let web = day.fork("a", "web1", Some(&first));
    web.check(day.world.directory());
    day.world.ok("a", &["create", "filler", "--size", "1M", "--vm-cpus", "2"]);
    let (kind, message) = day.world.fails("a", &[&["create", "more"], &MACHINE[..]].concat());
    assert!(kind == "no_space" && message.contains("0 processors are free"), "{kind}: {message}");

    let (second, host) = day.reserve("web2", "1h", &[]);
    assert_eq!(host, "b", "it is in the region of the source");
    // On no other host, for nothing larger, and once.
    for (host, arguments, expected) in [
        ("a", &["create", "web2", "--size", "1M"][..], "is for host 'b'"),
        ("b", &["create", "web2", "--size", "33M"], "is too small"),
        ("b", &["create", "web2", "--size", "1M", "--vm-cpus", "2"], "is too small"),
    ] {
        let (_, message) = day.world.fails(host, &[arguments, &["--reservation", &second]].concat());
        assert!(message.contains(expected), "{message}");
    }
    day.balance();
    // Some of it comes, and then the way is held.
    day.way.hold_after(6 << 20);
    let web = day.fork("b", "web2", Some(&second));
    day.way.wait_held();
    let (_, message) = day.world.fails("b", &[&["create", "again", "--reservation", &second], &MACHINE[..]].concat());
    assert!(message.contains("used"), "{message}");
    web
}

/// The source dies in the middle of a hydration, and comes back.
fn a_source_dies(day: &mut Day, web: &mut Disk) {
    web.write(4 * MIB, 64 << 10, 171, true);
    day.kill("a");
    day.way.open();
    day.wait_for_volume("b", "web2", |volume| volume["state"] == "degraded");
    // What was written is there; the last block has never come, and the plan is in order.
    web.check_blocks(4 * MIB / 4096..4 * MIB / 4096 + 16);
    web.cannot_read(web.bytes.len() / 4096 - 1);
    web.write(30 * MIB, 4096, 172, false);

    day.world.wait_for("a", |host| host["status"] == "stale");
    let ranking = day.world.ok("nobody", &["place", "--size", "1M", "--region", "any"]);
    assert!(ranking["hosts"].as_array().unwrap().iter().all(|ranked| ranked["host"] != "a"), "{ranking}");
    let (kind, _) = day.world.fails("nobody", &["place", "--source", &day.way.uri(GOLDEN)]);
    assert_eq!(kind, "source_lost");
    day.serve("a");
    // Asked again, it does not wait until it tries by itself; so slow that most is missing when it is paused.
    day.world.ok("b", &["hydrate", "web2", "--rate", "256K"]);
    day.wait_for_volume("b", "web2", |volume| volume["state"] == "hydrating");
}

/// Reads while most is missing; then the host of the fork dies, too, and is back before its source.
fn a_fork_dies(day: &mut Day, web: &mut Disk) {
    // Paused, it fetches what readers want and nothing else.
    day.world.ok("b", &["hydrate", "web2", "--pause"]);
    web.check_blocks((0..web.bytes.len() / 4096).step_by(509));
    let volume = day.world.ok("b", &["show", "web2"]);
    assert!(missing(&volume) > MIB as u64, "it was not read while it hydrated: {volume}");
    web.write(20 * MIB, 8192, 173, true);
    web.write(21 * MIB, 8192, 174, false);
    day.kill("b");
    day.kill("a");
    day.serve("b");
    // Both have died, and this one is back first: it has what was written, and lacks what never came.
    web.check_blocks((20 * MIB / 4096..20 * MIB / 4096 + 2).chain(21 * MIB / 4096..21 * MIB / 4096 + 2));
    web.cannot_read(web.bytes.len() / 4096 - 2);
    day.serve("a");
    assert!(missing(&day.world.ok("b", &["show", "web2"])) > 0);
    web.check_blocks((0..web.bytes.len() / 4096).rev().step_by(1021));
    day.world.ok("b", &["hydrate", "web2", "--resume", "--rate", "0"]);
    day.world.ok("b", &["hydrate", "web2", "--wait", "--timeout", "1m"]);
    web.check(day.world.directory());
    day.balance();
}

/// What is sent is counted where it is sent: each block once, zeros never, and nothing for a second fork.
fn bytes_travel_once(day: &mut Day) -> Vec<String> {
    let before = day.way.sent();
    let mut ids = Vec::new();
    for volume in ["far1", "far2"] {
        let (id, host) = day.reserve(volume, "1h", &["--region", "fra"]);
        assert_eq!(host, "c");
        let disk = day.fork("c", volume, Some(&id));
        day.world.ok("c", &["hydrate", volume, "--wait", "--timeout", "1m"]);
        let sent = day.way.sent() - before;
        // What is said of the blocks is sent beside them.
        assert!((DATA_BYTES..DATA_BYTES + DATA_BYTES / 10).contains(&sent), "{volume}: {sent} bytes were sent for {DATA_BYTES}");
        disk.check(day.world.directory());
        ids.push(id);
    }
    // It is full now.
    let source = day.way.uri(GOLDEN);
    let (kind, message) = day.world.fails("c", &["fork", &source, "far3", "--vm-cpus", "0"]);
    assert!(kind == "no_space", "{kind}: {message}");
    let output = day.world.told("nobody", &["place", "--source", &source, "--region", "fra", "--reserve"]).output().unwrap();
    let (kind, message) = error_of(&output);
    assert!(kind == "no_space" && message.contains("'cpus'"), "{kind}: {message}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(answer["placed"].as_array().unwrap().is_empty());
    day.balance();
    ids
}

/// A host loses its disk: its volumes are gone, their reservations are good for nothing, and its room is there for others.
fn a_store_is_wiped(day: &mut Day, ids: &[String]) {
    day.kill("c");
    std::fs::remove_dir_all(day.world.path("c")).unwrap();
    day.world.ok("c", &["init"]);
    day.serve("c");
    ids.iter().for_each(|id| day.ledger.forget(id));
    day.balance();
    for id in ids {
        let (_, message) = day.world.fails("c", &[&["create", "v", "--reservation", id], &MACHINE[..]].concat());
        assert!(message.contains("not held"), "{message}");
    }
    let (id, host) = day.reserve("far1", "1h", &["--region", "fra"]);
    assert_eq!(host, "c");
    let disk = day.fork("c", "far1", Some(&id));
    disk.check(day.world.directory());
    day.balance();
}

/// More schedulers and users of the host itself than there is room for; then everybody makes what was promised to him, at once.
fn a_rush(day: &mut Day) {
    let run = |host: &str, arguments: &[&str]| day.world.told(host, &[arguments, &MACHINE[..]].concat()).spawn().unwrap();
    let (mut placing, mut creating): (Vec<Child>, Vec<Child>) = (Vec::new(), Vec::new());
    for number in 0..5 {
        let name = format!("rush{number}");
        creating.push(run("b", &["create", &name]));
        placing.push(run("nobody", &["place", "--reserve", "--ttl", "1h", "--region", "ams", "--volume", &name]));
    }
    let ends = |children: Vec<Child>| children.into_iter().map(|child| child.wait_with_output().unwrap()).collect::<Vec<_>>();
    let created = ends(creating).into_iter().zip(0..).filter(|(output, _)| {
        assert!(output.status.success() || error_of(output).0 == "no_space", "{}", text(&output.stderr));
        output.status.success()
    });
    let mut volumes: Vec<(String, Option<String>)> = created.map(|(_, number)| (format!("rush{number}"), None)).collect();
    let mut making = Vec::new();
    for output in ends(placing) {
        for (id, host) in day.ledger.made(&serde_json::from_slice(&output.stdout).unwrap()) {
            assert_eq!(host, "b");
            let name = format!("promised-{}", &id[..8]);
            making.push(run("b", &["create", &name, "--reservation", &id]));
            volumes.push((name, Some(id)));
        }
    }
    assert_eq!(volumes.len(), 3, "all room was used, and no more: {volumes:?}");
    for output in ends(making) {
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    volumes.iter().filter_map(|(_, id)| id.as_ref()).for_each(|id| day.ledger.became(id, Fate::Used));
    day.balance();
    // Two of them go, and one of the places is promised again, and released.
    for (name, id) in &volumes[..2] {
        day.world.ok("b", &["destroy", name]);
        id.iter().for_each(|id| day.ledger.forget(id));
    }
    day.balance();
    let (id, _) = day.reserve("short", "1h", &[]);
    day.world.ok("nobody", &["fleet", "release", &id]);
    day.ledger.became(&id, Fate::Released);
    let (_, message) = day.world.fails("b", &[&["create", "v", "--reservation", &id], &MACHINE[..]].concat());
    assert!(message.contains("not held"), "{message}");
    day.balance();
}

/// A volume of a host that is being written is placed by and forked: the fork is the volume of one instant.
fn a_live_volume_is_forked(day: &mut Day) {
    let mut golden = Disk { uri: day.world.uri("a", "golden"), bytes: day.image.clone() };
    golden.write(MIB, 128 << 10, 201, true);
    let source = day.way.uri("golden");
    let placement = day.world.ok("nobody", &["place", "--source", &source, "--reserve", "--ttl", "1h", "--volume", "live"]);
    let ranked = &placement["placed"][0]["ranked"];
    // It has an older snapshot's blocks, and those are not the volume's.
    assert_eq!((&ranked["host"], &ranked["snapshot_bytes_missing"]), (&"b".into(), &DATA_BYTES.into()), "{placement}");
    let (id, host) = day.ledger.made(&placement).remove(0);
    day.way.hold_after(6 << 20);
    day.world.ok(&host, &["fork", &source, "live", "--reservation", &id]);
    day.ledger.became(&id, Fate::Used);
    let live = Disk { uri: day.world.uri(&host, "live"), bytes: golden.bytes.clone() };
    day.way.wait_held();
    // The last blocks have not come, and the volume has others when they do.
    golden.write(24 * MIB, 8 * MIB, 202, true);
    day.way.open();
    day.world.ok(&host, &["hydrate", "live", "--wait", "--timeout", "1m"]);
    live.check(day.world.directory());
    golden.check(day.world.directory());
    day.balance();
}

/// A reservation that nobody takes lapses; one that is held while somebody wipes the fleet is gone, and nothing else is.
fn a_fleet_is_wiped(day: &mut Day) {
    let (short, _) = day.reserve("short", "1s", &[]);
    wait("the end of the reservation", || {
        // Two processors are more than it holds, so that it is not used if it has not lapsed yet.
        let (_, message) = day.world.fails("b", &["create", "v", "--size", "1M", "--vm-cpus", "2", "--reservation", &short]);
        if message.contains("lapsed") { Ok(()) } else { Err(message) }
    });
    day.ledger.became(&short, Fate::Lapsed);
    let (held, _) = day.reserve("held", "1h", &[]);
    day.balance();
    day.world.wipe();
    day.ledger.wiped();
    day.balance();
    let (kind, message) = day.world.fails("b", &[&["create", "v", "--reservation", &held], &MACHINE[..]].concat());
    assert!(kind == "not_found" && message.contains("not held"), "{kind}: {message}");
}

/// Reports of hosts that do not exist: nobody is placed there, and the others are as they were.
fn somebody_lies(day: &mut Day) {
    let most = json!({ "cpus": { "shared": u32::MAX }, "memory_bytes": u64::MAX, "volume_bytes": u64::MAX });
    let room = ("capacity", most.clone());
    day.world.lie("b", "late", &[room.clone(), ("reported_at", 1.into())]);
    day.world.lie("b", "early", &[room.clone(), ("reported_at", u64::MAX.into()), ("report_every_seconds", u64::MAX.into())]);
    day.world.lie("b", "full", &[("used", most)]);
    day.world.lie("b", "nonsense", &[room, ("region", "../..".into())]);
    let ranking = day.world.ok("nobody", &["place", "--size", "1M", "--vm-cpus", "1", "--region", "ams", "--all"]);
    let names = |list: &Value, key: &str| -> Vec<String> {
        list.as_array().unwrap().iter().map(|one| one[key].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&ranking["hosts"], "host"), ["b"], "{ranking}");
    assert!(names(&ranking["unreadable"], "object").iter().any(|object| object.contains("nonsense")), "{ranking}");
    let excluded: Vec<_> = names(&ranking["excluded"], "host").into_iter().zip(names(&ranking["excluded"], "constraint")).collect();
    for (host, constraint) in [("late", "stale"), ("early", "clock"), ("full", "cpus"), ("a", "cpus")] {
        assert!(excluded.contains(&(host.into(), constraint.into())), "{excluded:?}");
    }
    day.world.wipe();
    day.ledger.wiped();
    day.balance();
}

/// All hosts go, one after the other, and say so.
fn evening(mut day: Day, web: &Disk) {
    web.check(day.world.directory());
    for host in HOSTS {
        day.servers[number(host)].take().unwrap().stop();
        day.world.wait_for(host, |host| host["status"] == "unreachable");
    }
    let (kind, message) = day.world.fails("nobody", &["place", "--size", "1M"]);
    assert!(kind == "no_space" && message.contains("'status' took the last ones"), "{kind}: {message}");
    for host in HOSTS {
        day.world.ok(host, &["check"]);
        day.world.ok(host, &["scrub"]);
    }
}

fn walk(world: World) {
    let mut day = Day::begin(world);
    let mut web = morning(&mut day);
    a_source_dies(&mut day, &mut web);
    a_fork_dies(&mut day, &mut web);
    let ids = bytes_travel_once(&mut day);
    a_store_is_wiped(&mut day, &ids);
    a_rush(&mut day);
    a_live_volume_is_forked(&mut day);
    a_fleet_is_wiped(&mut day);
    somebody_lies(&mut day);
    evening(day, &web);
}

#[test]
fn a_day_of_a_fleet_in_a_directory() {
    walk(World::with_directory());
}

#[test]
fn a_day_of_a_fleet_in_a_bucket() {
    walk(World::with_bucket());
}
