//! `hydrate --wait`: success, loss of the source, timeouts.

use std::fs;
use std::process::Stdio;

use serde_json::Value;

use crate::host::{Host, Server, signal, until};

/// Bytes that are nowhere zero, so many that a fork of them is not complete when the command that made it ends.
const IMAGE_BYTES: u64 = 96 << 20;

fn write_image(host: &Host, name: &str, seed: u64) {
    let bytes: Vec<u8> = (0..IMAGE_BYTES).map(|at| ((at + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect();
    fs::write(host.path(name), bytes).unwrap();
    host.ok(&["import", name, name]);
    host.ok(&["snapshot", name, "s"]);
}

/// A host that serves a fork, `copy`, of which hardly anything is there, and nothing comes by itself.
fn paused_fork(source: &Server, arguments: &[&str]) -> (Host, Server) {
    let host = Host::new();
    // It hydrates only while these commands run.
    host.ok(&["fork", &source.uri("v@s"), "copy"]);
    host.ok(&["hydrate", "copy", "--pause"]);
    let owner = host.serve(arguments);
    (host, owner)
}

/// What a command that must fail says, and its status.
fn failure(host: &Host, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = host.command(arguments).arg("--json").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    let last: Value = serde_json::from_str(error.lines().last().unwrap_or_default()).unwrap_or_else(|wrong| panic!("{error:?}: {wrong}"));
    let text = |key: &str| last["error"][key].as_str().unwrap().to_owned();
    (output.status.code(), text("kind"), text("message"))
}

#[test]
fn waiting_ends_on_timeout_and_when_every_source_refused() {
    let origin = Host::new();
    write_image(&origin, "v", 1);
    write_image(&origin, "other", 2);
    let listen = format!("unix:{}", origin.path("socket").display());
    for served in [false, true] {
        let server = origin.serve(&["--listen", &listen]);
        let host = Host::new();
        let owner = served.then(|| host.serve(&[]));
        host.ok(&["fork", &server.uri("v@s"), "copy"]);
        server.stop();

        let (status, kind, message) = failure(&host, &["hydrate", "copy", "--wait", "--timeout", "2s"]);
        assert_eq!((status, kind.as_str()), (Some(3), "timed_out"), "{message}");
        // A connection that was lost a moment ago may come back yet.
        assert!(message.contains("MiB are missing") && (served || message.contains("no source has what is missing")), "{message}");
        let (status, kind, _) = failure(&host, &["hydrate", "copy", "--wait", "--timeout", "0"]);
        assert_eq!((status, kind.as_str()), (Some(3), "timed_out"));

        // The address has other bytes now.
        origin.ok(&["rename", "v", "kept"]);
        origin.ok(&["rename", "other", "v"]);
        let server = origin.serve(&["--listen", &listen]);
        let (status, kind, message) = failure(&host, &["hydrate", "copy", "--wait"]);
        assert_eq!((status, kind.as_str()), (Some(1), "source_lost"), "{message}");
        assert!(message.contains("cannot become complete") && message.contains("--add-source"), "{message}");
        assert!(message.contains(&server.uri("v@s")), "{message}");
        if served {
            let info = host.json(&["show", "copy"]);
            assert_eq!(info.pointer("/hydration/sources/0/refused"), Some(&Value::from(true)), "{info}");
            assert!(host.ok(&["show", "copy"]).contains("refused"));
        }
        // Once the address serves the right export, it is used again.
        for (name, new) in [("v", "other"), ("kept", "v")] {
            origin.ok(&["rename", name, new]);
        }
        let info = host.json(&["hydrate", "copy", "--wait", "--timeout", "1h"]);
        assert_eq!(info["state"], "created", "{info}");
        let fetched = info.pointer("/hydration/sources/0/bytes_fetched").and_then(Value::as_u64);
        assert!(fetched > Some(0), "{info}");
        assert!(host.bytes("copy") == fs::read(origin.path("v")).unwrap());
        server.stop();
        drop(owner);
    }
}

#[test]
fn the_patience_with_a_source_is_what_the_user_said() {
    let origin = Host::new();
    write_image(&origin, "v", 3);
    let server = origin.serve(&["--listen", "127.0.0.1:0"]);
    let (hasty, _first) = paused_fork(&server, &["--source-timeout", "2s"]);
    let (patient, _second) = paused_fork(&server, &["--source-timeout", "1h"]);
    assert_eq!(hasty.kind(&["list", "--source-timeout", "5s"]), "invalid_input");
    let read = |host: &Host, name: &str| {
        let mut command = host.command(&["--json", "export", name, "-"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    signal(&server.child, libc::SIGSTOP);
    let mut waiting = read(&patient, "copy");
    let failed = read(&hasty, "copy").wait_with_output().unwrap();
    assert!(!failed.status.success());
    let error: Value = serde_json::from_slice(&failed.stderr).unwrap();
    assert_eq!(error.pointer("/error/kind"), Some(&Value::from("source_lost")), "{error}");
    assert!(waiting.try_wait().unwrap().is_none(), "who has patience waits on");
    signal(&server.child, libc::SIGCONT);
    assert!(waiting.wait_with_output().unwrap().stdout == fs::read(origin.path("v")).unwrap());
}

#[test]
fn an_export_that_was_killed_leaves_what_was_there() {
    let origin = Host::new();
    write_image(&origin, "v", 4);
    let source = origin.serve(&["--listen", "127.0.0.1:0"]);
    for old in [None, Some("old bytes")] {
        let (host, _owner) = paused_fork(&source, &[]);
        let files = || fs::read_dir(host.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        let before = files();
        if let Some(old) = old {
            fs::write(host.path("image"), old).unwrap();
        }
        signal(&source.child, libc::SIGSTOP);
        let mut child = host.command(&["export", "copy", "image"]).stderr(Stdio::null()).spawn().unwrap();
        until("the export waits for the source", || {
            host.json(&["show", "copy"]).pointer("/hydration/readers_waiting").and_then(Value::as_u64) > Some(0)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        match old {
            None => assert_eq!(files(), before),
            Some(old) => assert_eq!(fs::read(host.path("image")).unwrap(), old.as_bytes()),
        }
        signal(&source.child, libc::SIGCONT);
        host.ok(&["export", "copy", "image"]);
        assert!(fs::read(host.path("image")).unwrap() == fs::read(origin.path("v")).unwrap());
    }
}

#[test]
fn a_server_with_few_descriptors_says_so_and_breaks_nothing() {
    let origin = Host::new();
    write_image(&origin, "v", 5);
    let source = origin.serve(&["--listen", "127.0.0.1:0"]);
    let host = Host::new();
    let few = host.serve_with_descriptors(48, &[]);
    let mut forked = Vec::new();
    for number in 0..16 {
        let name = format!("fork{number}");
        // A volume has no identity, so each of them has a root and connections of its own.
        let output = host.run(&["fork", &source.uri("v"), &name]);
        let error = String::from_utf8(output.stderr).unwrap();
        match output.status.success() {
            true => forked.push(name),
            false => assert!(error.contains("ulimit -n"), "{error}"),
        }
        // Everything else works on.
        host.ok(&["create", &format!("plain{number}"), "--size", "1M"]);
    }
    assert!(!forked.is_empty());
    for name in &forked {
        host.ok(&["hydrate", name, "--wait"]);
    }
    host.ok(&["fork", &source.uri("v"), "afterwards"]);
    host.ok(&["hydrate", "afterwards", "--wait"]);
    assert_eq!(host.volumes().len(), 16 + forked.len() + 1);
    few.stop();
    host.ok(&["check"]);
    assert!(host.bytes("afterwards") == fs::read(origin.path("v")).unwrap());
}

#[test]
fn what_keeps_a_hydration_from_going_on_is_said() {
    let origin = Host::new();
    write_image(&origin, "v", 6);
    let source = origin.serve(&["--listen", "127.0.0.1:0"]);
    let host = Host::new();
    host.ok(&["fork", &source.uri("v@s"), "copy"]);
    // The hydration ended with the command that created the fork.
    assert!(host.ok(&["list"]).contains("stopped "), "{}", host.ok(&["list"]));
    assert_eq!(host.json(&["show", "copy"]).pointer("/hydration/state"), Some(&Value::from("stopped")));
    assert!(host.ok(&["show", "copy"]).contains("volfork serve"));
    host.ok(&["hydrate", "copy", "--pause"]);
    assert!(host.ok(&["list"]).contains("paused "), "{}", host.ok(&["list"]));
    let _owner = host.serve(&[]);
    assert!(host.ok(&["list"]).contains("paused "));
    let told = host.ok(&["hydrate", "copy", "--resume", "--rate", "1K", "--deadline", "1m"]);
    assert!(told.contains("the rate limit of 1.0 KiB/s keeps it from its deadline") && told.contains("--rate"), "{told}");
    assert!(host.ok(&["list"]).contains("hydrating "), "{}", host.ok(&["list"]));
    assert!(!host.ok(&["hydrate", "copy", "--rate", "0"]).contains("deadline"));
}

/// The identity of a snapshot stays when its volume gets another name.
#[test]
fn a_source_that_was_renamed_is_found_by_its_new_address() {
    let origin = Host::new();
    write_image(&origin, "v", 7);
    let listen = format!("unix:{}", origin.path("socket").display());
    let server = origin.serve(&["--listen", &listen]);
    let (host, _owner) = paused_fork(&server, &[]);
    server.stop();
    origin.ok(&["rename", "v", "moved"]);
    let server = origin.serve(&["--listen", &listen]);
    let (_, _, message) = failure(&host, &["hydrate", "copy", "--resume", "--wait"]);
    assert!(message.contains("no export 'v@s'") && message.contains("--add-source"), "{message}");
    host.ok(&["hydrate", "copy", "--add-source", &server.uri("moved@s")]);
    let info = host.json(&["hydrate", "copy", "--wait"]);
    assert_eq!(info["state"], "created", "{info}");
    assert!(host.bytes("copy") == fs::read(origin.path("v")).unwrap());
}

#[test]
fn traces_are_shown_dropped_and_recorded_by_command() {
    let host = Host::new();
    write_image(&host, "v", 8);
    host.ok(&["fork", "v@s", "machine"]);
    assert_eq!(host.kind(&["trace", "record", "machine"]), "unsupported");
    let owner = host.serve(&[]);
    host.ok(&["trace", "drop", "v@s"]);
    assert!(host.ok(&["trace", "show", "v@s"]).contains("no trace"));
    assert!(host.ok(&["trace", "record", "machine"]).contains("being recorded"));
    host.ok(&["export", "machine", "copy.img"]);
    let shown = host.json(&["trace", "show", "v@s"]);
    assert_eq!(shown.pointer("/runs/0/end"), Some(&Value::from(IMAGE_BYTES)), "{shown}");
    host.ok(&["trace", "drop", "v@s"]);
    assert_eq!(host.json(&["trace", "show", "machine"])["recording"], false);
    assert_eq!(host.kind(&["trace", "show", "v@none"]), "not_found");
    owner.stop();
}
