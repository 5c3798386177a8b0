//! Leases as an operator sees them.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use serde_json::Value;
use volfork::serve::{Export, Exports, Listener, NbdServer, NbdServerOptions};
use volfork::source::{LeaseAction, LeaseRequest};
use volfork::wire::LeaseGrant;
use volfork::{Store, StoreOptions};

use crate::host::{Host, until};

/// Writes bytes without zeros, so many that a fork is not complete when the command that created it ends.
fn write_volume(host: &Host, name: &str) {
    let bytes: Vec<u8> = (0..64u64 << 20).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8 | 1).collect();
    fs::write(host.path("image"), bytes).unwrap();
    host.ok(&["import", name, "image"]);
}

fn leases(host: &Host, name: &str) -> Vec<Value> {
    host.json(&["show", name])["leases"].as_array().unwrap().clone()
}

#[test]
fn forks_elsewhere_are_shown_and_protected_unless_forced() {
    let (origin, host) = (Host::new(), Host::new());
    write_volume(&origin, "v");
    let server = origin.serve(&["--lease", "12h"]);
    host.ok(&["fork", &server.uri("v"), "copy"]);
    host.ok(&["hydrate", "copy", "--pause"]);
    let told = leases(&origin, "v");
    assert_eq!((told.len(), &told[0]["fork"]), (1, &Value::from("copy")));
    let (renewed_at, lapses_at) = (told[0]["renewed_at"].as_u64().unwrap(), told[0]["lapses_at"].as_u64().unwrap());
    assert_eq!(lapses_at - renewed_at, 12 * 3600);
    let snapshot = format!("v@{}", told[0]["snapshot"].as_str().unwrap());
    let shown = origin.ok(&["show", "v"]);
    assert!(shown.contains(&format!("'{snapshot}' for 'copy' of host ")), "{shown}");
    let listed = origin.json(&["snapshots", "v"]);
    assert_eq!(listed[0]["leases"].as_array().unwrap().len(), 1);
    assert_eq!(origin.json(&["list"])[0]["leases"].as_array().unwrap().len(), 1);
    // The name is the program's own.
    assert_eq!(origin.kind(&["snapshot", "v", ".lease-99"]), "invalid_input");
    for target in [snapshot.as_str(), "v"] {
        let refused = origin.fails(1, &["destroy", target]);
        assert!(refused.contains("1 fork of other hosts: 'copy' of host ") && refused.contains("--force"), "{refused}");
        assert_eq!(origin.kind(&["destroy", target]), "busy");
    }
    // The fork is connected while its snapshot goes.
    let owner = host.serve(&[]);
    host.ok(&["hydrate", "copy", "--resume", "--rate", "64K"]);
    until("the fork is connected", || !origin.json(&["show", "v"])["connections"].as_array().unwrap().is_empty());
    origin.ok(&["destroy", &snapshot, "--force"]);
    assert_eq!(leases(&origin, "v"), Vec::<Value>::new());
    host.ok(&["hydrate", "copy", "--rate", "0"]);
    until("the fork is degraded", || host.json(&["show", "copy"])["state"] == "degraded");
    owner.stop();
    server.stop();
}

#[test]
fn a_fork_completed_by_one_command_returns_its_lease() {
    let (origin, host) = (Host::new(), Host::new());
    write_volume(&origin, "v");
    let server = origin.serve(&[]);
    host.ok(&["fork", &server.uri("v"), "copy"]);
    host.ok(&["hydrate", "copy", "--wait"]);
    until("the snapshot is gone", || origin.json(&["snapshots", "v"]).as_array().unwrap().is_empty());
    assert!(host.bytes("copy") == fs::read(origin.path("image")).unwrap());
    server.stop();
}

struct Foreign(Child);

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn foreign(program: &str, arguments: &[&str]) -> Foreign {
    let child = Command::new(program).args(arguments).stdin(Stdio::null()).spawn();
    Foreign(child.unwrap_or_else(|error| panic!("{program} cannot be run ({error}): see .ci/run for the packages")))
}

#[test]
fn a_writable_export_of_another_server_is_forked_by_name_alone() {
    let host = Host::new();
    fs::write(host.path("raw"), vec![7; 1 << 20]).unwrap();
    let raw = host.path("raw").to_str().unwrap().to_owned();
    let socket = |name: &str| host.path(name).to_str().unwrap().to_owned();
    let servers = [
        ("nbdkit", vec!["--foreground", "--exit-with-parent", "--unix", "kit.sock", "file", &raw]),
        ("qemu-nbd", vec!["--persistent", "--format", "raw", "--socket", "qemu.sock", &raw]),
    ];
    for (program, arguments) in servers {
        let path = socket(arguments.iter().find(|argument| argument.ends_with(".sock")).unwrap());
        let arguments: Vec<&str> =
            arguments.iter().map(|argument| if argument.ends_with(".sock") { path.as_str() } else { argument }).collect();
        let _server = foreign(program, &arguments);
        until("the server listens", || fs::metadata(&path).is_ok());
        let uri = format!("nbd+unix:///?socket={path}");
        let refused = host.fails(1, &["fork", &uri, "copy"]);
        assert!(refused.contains("different instants") && refused.contains("--live"), "{program}: {refused}");
        host.ok(&["fork", "--live", &uri, "copy"]);
        host.ok(&["hydrate", "copy", "--wait"]);
        assert_eq!(host.json(&["show", "copy"])["live_source"], true);
        let shown = host.ok(&["show", "copy"]);
        assert!(shown.contains("live source: blocks are of different instants"), "{shown}");
        assert!(host.bytes("copy") == vec![7; 1 << 20]);
        host.ok(&["destroy", "copy"]);
    }
}

/// A server whose clients are killed between the grant of a lease and its answer.
struct Deadly {
    store: Store,
    client: Mutex<Option<Child>>,
    spawned: Condvar,
}

impl Exports for Deadly {
    fn open(&self, name: &str) -> volfork::Result<Export> {
        Exports::open(&self.store, name)
    }

    fn names(&self) -> Vec<String> {
        Exports::names(&self.store)
    }

    fn lease(&self, export: &str, request: &LeaseRequest, address: &str) -> volfork::Result<Option<LeaseGrant>> {
        let answer = Exports::lease(&self.store, export, request, address);
        if request.action == LeaseAction::Take {
            let mut client = self.spawned.wait_while(self.client.lock().unwrap(), |client| client.is_none()).unwrap();
            let mut killed = client.take().unwrap();
            killed.kill().unwrap();
            killed.wait().unwrap();
        }
        answer
    }
}

#[test]
fn the_lease_of_a_fork_that_was_killed_is_given_back() {
    let host = Host::new();
    let store = Store::create(host.path("origin"), StoreOptions::default()).unwrap();
    store.create_volume("v", 1 << 20).unwrap().write_at(&[7; 4096], 0).unwrap();
    let deadly = Arc::new(Deadly { store: store.clone(), client: Mutex::default(), spawned: Condvar::new() });
    let socket = host.path("origin.sock").to_str().unwrap().to_owned();
    let listener = Listener::parse(&format!("unix:{socket}")).unwrap();
    let server = NbdServer::start(Arc::clone(&deadly) as _, vec![listener], NbdServerOptions::default()).unwrap();
    let fork = host.command(&["fork", &format!("nbd+unix:///v?socket={socket}"), "copy"]).stderr(Stdio::null()).spawn().unwrap();
    *deadly.client.lock().unwrap() = Some(fork);
    deadly.spawned.notify_all();
    until("the fork was killed", || store.show("v").unwrap().leases.len() == 1 && deadly.client.lock().unwrap().is_none());
    let owner = host.serve(&[]);
    until("the lease is given back", || store.show("v").unwrap().leases.is_empty());
    assert_eq!(host.json(&["list"]), Value::Array(vec![]));
    owner.stop();
    server.shutdown();
}
