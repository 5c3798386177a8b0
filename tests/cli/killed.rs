//! A server that is killed: what it acknowledged is there for the next one, flushed or not.

use std::fs;
use std::process::Command;

use crate::host::{Host, wait};

/// The system's Python has the module of libnbd.
const PYTHON: &str = "/usr/bin/python3";
const BYTES: usize = 1 << 20;

#[test]
fn a_killed_server_loses_nothing_it_acknowledged() {
    let host = Host::new();
    let models = host.path("models");
    fs::create_dir(&models).unwrap();
    host.ok(&["create", "plain", "--size", "1M"]);
    fs::write(models.join("plain"), vec![0; BYTES]).unwrap();
    // Parts of its blocks are patches until they are fetched, which is paused.
    let image: Vec<u8> = (0..BYTES).map(|at| (at / 512 % 251) as u8 + 1).collect();
    fs::write(models.join("far"), &image).unwrap();
    fs::write(host.path("image"), &image).unwrap();
    host.ok(&["fork", &format!("file://{}", host.path("image").display()), "far"]);
    host.ok(&["hydrate", "far", "--pause"]);
    for seed in 1..=8u64 {
        let mut server = host.serve(&[]);
        let fork = host.command(&["fork"]);
        let fork: Vec<_> = std::iter::once(fork.get_program()).chain(fork.get_args()).map(|part| part.to_str().unwrap()).collect();
        let mut changes = Command::new(PYTHON);
        changes.env("VOLFORK_STORE", host.store());
        changes.args([concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/killed.py"), &server.child.id().to_string(), &seed.to_string()]);
        changes.args([&(seed * 40).to_string(), models.to_str().unwrap(), &fork.join("\n")]);
        changes.args(["plain", "far"].map(|name| format!("{name} {}", server.uri(name))));
        let output = changes.output().expect("python3 and python3-libnbd: see .ci/run for the packages");
        assert!(output.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&output.stderr));
        wait(&mut server.child);
        // It leaves to the next process what the dead one has acknowledged.
        host.ok(&["check"]);
        for name in ["plain", "far"] {
            let (found, expected) = (host.bytes(name), fs::read(models.join(name)).unwrap());
            let differs = found.chunks(512).zip(expected.chunks(512)).position(|(found, expected)| found != expected);
            assert_eq!(differs, None, "seed {seed}: the first sector of {name} that differs");
        }
    }
    host.ok(&["check"]);
    host.ok(&["scrub"]);
}
