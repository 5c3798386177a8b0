//! Images of a registry on three hosts: which layers are fetched, where machines are placed, and what works without the registry.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::disk::MIB;
use crate::ledger::{Fate, Ledger};
use crate::programs::{Registry, Umoci, check, debugfs};
use crate::random::Random;
use crate::way::Way;
use crate::world::{Server, World, error_of, text, wait};

/// File systems of images have at least this.
const VOLUME_BYTES: u64 = 128 << 20;
/// What the registry says of a layer beside its bytes: manifests, headers, answers to `skopeo` and to those that only look.
const TALK_BYTES: u64 = 64 << 10;
/// What a layer holds in a volume beside the bytes of its files.
const TABLES_BYTES: u64 = 8 << 20;
/// Name, length, and the seed of the bytes.
type File = (&'static str, usize, u64);
/// In both images, and in each of them.
const BASE: File = ("base", 6 * MIB, 1);
const ONE: File = ("one", MIB, 2);
const TWO: File = ("two", MIB, 3);

fn bytes_of((_, length, seed): File) -> Vec<u8> {
    Random::new(seed).bytes(length)
}

struct Images {
    world: World,
    ledger: Ledger,
    registry: Option<Registry>,
    /// From everywhere to the registry.
    fetched: Way,
    /// From everywhere to host a.
    forked: Way,
    /// Bytes of the layers of both images: that of both, then that of its own.
    layers: [[u64; 2]; 2],
    _servers: Vec<Server>,
}

impl Images {
    fn begin(world: World) -> Self {
        let socket = world.path("registry.sock");
        let registry = Registry::start(world.directory(), Some(&socket));
        let (fetched, forked) = (Way::to(&socket), Way::to(&world.socket("a")));
        let umoci = Umoci::new(&world.path("layout"));
        let insert = |tag: &str, file: File| {
            let path = world.path(file.0);
            std::fs::write(&path, bytes_of(file)).unwrap();
            umoci.insert(tag, &path, &format!("/{}", file.0));
        };
        umoci.begin("v1", None);
        insert("v1", BASE);
        umoci.begin("v2", Some("v1"));
        insert("v1", ONE);
        insert("v2", TWO);
        let layers = ["v1", "v2"].map(|tag| {
            let image = reference(&fetched, tag);
            umoci.push(tag, &image, "oci");
            let layers = world.ok("nobody", &["image", "show", &image])["layers"].clone();
            [0, 1].map(|number: usize| layers[number]["bytes"].as_u64().unwrap())
        });
        assert_eq!(layers[0][0], layers[1][0]);
        let servers = ["a", "b", "c"].map(|host| {
            world.ok(host, &["init"]);
            let server = world.host(host, if host == "c" { "fra" } else { "ams" }, 4, 1 << 30);
            world.wait_for(host, |host| host["status"] == "ok");
            server
        });
        Self { world, ledger: Ledger::default(), registry: Some(registry), fetched, forked, layers, _servers: servers.into() }
    }

    fn import(&self, host: &str, tag: &str, volume: &str) -> Command {
        let image = reference(&self.fetched, tag);
        self.world.told(host, &["image", "import", &image, volume, "--size", &VOLUME_BYTES.to_string()])
    }

    /// An import that succeeds, of which `bytes` are fetched.
    fn imports(&self, host: &str, tag: &str, volume: &str, bytes: u64) {
        let before = self.fetched.sent();
        let output = self.import(host, tag, volume).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let imported: Value = serde_json::from_slice(&output.stdout).unwrap();
        let sent = self.fetched.sent() - before;
        assert!((bytes..bytes + TALK_BYTES).contains(&sent), "{host} {tag}: {sent} bytes were sent for {bytes}: {imported}");
        assert_eq!(imported["start"]["bytes_fetched"], bytes, "{host} {tag}");
    }

    /// The books, where a host holds layers with the bytes of these files.
    fn balance(&mut self, held: &[(&str, &[File])]) {
        for (host, files) in held {
            let bytes: u64 = files.iter().map(|file| file.1 as u64).sum();
            self.ledger.images(host, bytes..bytes + TABLES_BYTES);
        }
        self.ledger.balance(&self.world, &["a", "b", "c"]);
    }

    /// Hosts in their order, with what they miss.
    fn ranking(&self, arguments: &[&str], missing: &str) -> Vec<(String, u64)> {
        let ranking = self.world.ok("nobody", &[&["place", "--explain"], arguments].concat());
        let hosts = ranking["hosts"].as_array().unwrap().iter();
        hosts.map(|ranked| (ranked["host"].as_str().unwrap().to_owned(), ranked[missing].as_u64().unwrap())).collect()
    }

    fn checks(&self, host: &str, volume: &str, files: &[File]) {
        let copy = self.copy(host, volume);
        check(&copy);
        for file in files {
            assert!(debugfs(&copy, &format!("cat /{}", file.0)) == bytes_of(*file), "{host} {volume}: /{}", file.0);
        }
        std::fs::remove_file(&copy).unwrap();
    }

    fn copy(&self, host: &str, volume: &str) -> PathBuf {
        let copy = self.world.path("copy");
        let output = Command::new("nbdcopy").arg(self.world.uri(host, volume)).arg(&copy).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        copy
    }
}

fn reference(registry: &Way, tag: &str) -> String {
    format!("{}/team/app:{tag}", registry.address())
}

/// The registry dies in the middle of the second layer; when it is back, what was whole is not fetched again.
fn a_registry_dies(day: &mut Images) {
    day.fetched.hold_after(day.layers[0][0] + day.layers[0][1] / 2);
    let import = day.import("a", "v1", "app1").spawn().unwrap();
    day.fetched.wait_held();
    day.balance(&[("a", &[BASE])]);
    drop(day.registry.take());
    day.fetched.open();
    let output = import.wait_with_output().unwrap();
    assert!(!output.status.success());
    let (kind, message) = error_of(&output);
    assert!(kind == "io" && message.contains("layer"), "{kind}: {message}");
    assert_eq!(day.world.fails("a", &["show", "app1"]).0, "not_found");
    day.balance(&[("a", &[BASE])]);
    let (kind, message) = day.world.fails("a", &["image", "import", &reference(&day.fetched, "v1"), "app1"]);
    assert!(kind == "io" && message.contains("cannot be read"), "{kind}: {message}");

    day.registry = Some(Registry::start(day.world.directory(), Some(&day.world.path("registry.sock"))));
    day.imports("a", "v1", "app1", day.layers[0][1]);
    day.checks("a", "app1", &[BASE, ONE]);
    day.balance(&[("a", &[BASE, ONE])]);
}

/// The host that holds the layers comes first, and the others say how much they miss.
fn hosts_are_ranked(day: &mut Images) {
    let image = reference(&day.fetched, "v1");
    let by_image = ["--size", "128M", "--image", &image];
    let all = day.layers[0].iter().sum();
    wait("the report of the layers", || {
        let mut ranked = day.ranking(&by_image, "image_bytes_missing");
        ranked[1..].sort();
        let expected = [("a", 0), ("b", all), ("c", all)].map(|(host, missing)| (host.to_owned(), missing));
        if ranked == expected { Ok(()) } else { Err(format!("{ranked:?}")) }
    });
    // Of the other image, the layer of both counts.
    let other = reference(&day.fetched, "v2");
    let ranked = day.ranking(&["--size", "128M", "--image", &other], "image_bytes_missing");
    assert_eq!(ranked[0], ("a".to_owned(), day.layers[1][1]));

    day.world.ok("a", &["fork", "app1", "golden", "--vm-cpus", "1", "--vm-cpu-kind", "shared", "--image", &image, "--app", "shop"]);
    day.world.ok("a", &["snapshot", "golden", "g"]);
    let source = day.forked.uri("golden@g");
    wait("the report of the snapshot", || {
        let ranked = day.ranking(&["--source", &source, "--region", "any"], "snapshot_bytes_missing");
        let is_right = ranked[0] == ("a".to_owned(), 0) && ranked[1..].iter().all(|(_, missing)| *missing > BASE.1 as u64);
        if is_right { Ok(()) } else { Err(format!("{ranked:?}")) }
    });
    let placement = day.world.ok("nobody", &["place", "--source", &source, "--reserve", "--ttl", "1h", "--volume", "here"]);
    let (id, host) = day.ledger.made(&placement).remove(0);
    assert_eq!(host, "a");
    day.balance(&[]);
    day.world.ok("a", &["fork", "golden@g", "here", "--reservation", &id]);
    day.ledger.became(&id, Fate::Used);
    day.balance(&[]);
}

/// A layer that two images share travels once for each host.
fn shared_layers_travel_once(day: &mut Images) {
    day.imports("a", "v2", "app2", day.layers[1][1]);
    day.imports("a", "v1", "again", 0);
    day.balance(&[("a", &[BASE, ONE, TWO])]);
    day.imports("b", "v2", "app2", day.layers[1].iter().sum());
    day.imports("b", "v1", "app1", day.layers[0][1]);
    day.balance(&[("b", &[BASE, ONE, TWO])]);
    day.checks("b", "app2", &[BASE, TWO]);
}

/// Machines start from what the hosts hold, also of images; the registry is only missed by those that name it.
fn a_registry_is_gone(day: &mut Images) {
    drop(day.registry.take());
    let image = reference(&day.fetched, "v1");
    for (host, arguments) in [("c", &["image", "import", &image, "app1"][..]), ("nobody", &["place", "--size", "128M", "--image", &image])]
    {
        let (kind, message) = day.world.fails(host, arguments);
        assert!(kind == "io" && message.contains("cannot be read"), "{kind}: {message}");
    }
    let source = day.forked.uri("golden@g");
    let place = ["place", "--source", &source, "--reserve", "--ttl", "1h", "--volume", "far", "--region", "fra"];
    let output = day.world.told("nobody", &place).output().unwrap();
    assert!(output.status.success() && text(&output.stderr).contains("without the image of the source"), "{}", text(&output.stderr));
    let (id, host) = day.ledger.made(&serde_json::from_slice(&output.stdout).unwrap()).remove(0);
    assert_eq!(host, "c");
    let before = day.forked.sent();
    let forked = day.world.ok("c", &["fork", &source, "far", "--reservation", &id]);
    day.ledger.became(&id, Fate::Used);
    assert_eq!(forked["labels"]["vm.image"], image);
    day.world.ok("c", &["hydrate", "far", "--wait", "--timeout", "1m"]);
    let (sent, data) = (day.forked.sent() - before, (BASE.1 + ONE.1) as u64);
    assert!((data..data + TABLES_BYTES).contains(&sent), "{sent} bytes were sent for {data}");
    day.checks("c", "far", &[BASE, ONE]);
    day.checks("a", "here", &[BASE, ONE]);
    day.balance(&[]);
}

#[test]
fn a_day_of_images() {
    let mut day = Images::begin(World::with_directory());
    a_registry_dies(&mut day);
    hosts_are_ranked(&mut day);
    shared_layers_travel_once(&mut day);
    a_registry_is_gone(&mut day);
    for host in ["a", "b", "c"] {
        day.world.ok(host, &["scrub"]);
    }
}
