//! Commands that a script repeats because it lost their answer.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::host::{Host, signal, wait};

/// Asks as the command line does.
fn ask(host: &Host, request: &Value) -> UnixStream {
    let mut stream = UnixStream::connect(host.store().join("control.sock")).unwrap();
    stream.write_all(format!("{request}\n").as_bytes()).unwrap();
    stream
}

/// Asks, and goes away when the answer comes, without reading it.
fn lose_answer(host: &Host, request: &Value) {
    ask(host, request).read_exact(&mut [0]).unwrap();
}

#[test]
fn a_command_whose_answer_was_lost_is_repeated_safely() {
    let host = Host::new();
    host.ok(&["create", "v", "--size", "1M"]);
    let server = host.serve(&[]);
    lose_answer(&host, &json!({ "fork": { "source": "v", "also": [], "name": "f" } }));
    assert_eq!(host.kind(&["fork", "v", "f"]), "exists");
    // What is there tells whether it is what was asked for.
    assert_eq!(host.json(&["show", "f"])["parent"], "v");
    lose_answer(&host, &json!({ "snapshot": { "volume": "v", "snapshot": "s" } }));
    assert_eq!(host.kind(&["snapshot", "v", "s"]), "exists");
    for (lost, again) in [(json!({ "By": 1 << 20 }), "+1M"), (json!({ "To": 2 << 20 }), "2M")] {
        lose_answer(&host, &json!({ "extend": { "name": "v", "growth": lost, "from": 1 << 20 } }));
        for _ in 0..2 {
            let size = &host.json(&["extend", "v", "--size", again, "--from", "1M"])["size_bytes"];
            assert_eq!(*size, 2 << 20, "{again}");
        }
    }
    // Somebody else has made it larger.
    host.ok(&["extend", "v", "--size", "+1M"]);
    assert_eq!(host.kind(&["extend", "v", "--size", "+1M", "--from", "1M"]), "invalid_input");
    assert_eq!(host.json(&["show", "v"])["size_bytes"], 3 << 20);
    for (target, lost) in [("v@s", json!({ "volume": "v", "snapshot": "s" })), ("v", json!({ "volume": "v", "snapshot": null }))] {
        lose_answer(&host, &json!({ "destroy": { "target": lost, "recursive": false } }));
        assert_eq!(host.kind(&["destroy", target]), "not_found");
    }
    assert_eq!(host.volumes(), ["f"]);
    server.stop();
}

#[test]
fn a_command_that_was_killed_before_it_was_begun_is_not_done() {
    let host = Host::new();
    host.ok(&["create", "v", "--size", "1M"]);
    let server = host.serve(&[]);
    signal(&server.child, libc::SIGSTOP);
    for request in [
        json!({ "extend": { "name": "v", "growth": { "By": 1 << 20 } } }),
        json!({ "snapshot": { "volume": "v", "snapshot": "s" } }),
        json!({ "fork": { "source": "v", "also": [], "name": "f" } }),
        json!({ "destroy": { "target": { "volume": "v", "snapshot": null }, "recursive": false } }),
    ] {
        drop(ask(&host, &request));
    }
    signal(&server.child, libc::SIGCONT);
    assert_eq!(host.volumes(), ["v"]);
    assert_eq!((&host.json(&["show", "v"])["size_bytes"], host.json(&["snapshots", "v"])), (&(1 << 20).into(), json!([])));
    server.stop();
}

#[test]
fn what_several_commands_add_is_added_up() {
    let host = Host::new();
    host.ok(&["create", "v", "--size", "1M"]);
    let server = host.serve(&[]);
    let grow = || host.command(&["extend", "v", "--size", "+1M"]).stdout(Stdio::null()).spawn().unwrap();
    let growing: Vec<_> = (0..8).map(|_| grow()).collect();
    for mut child in growing {
        assert!(wait(&mut child).success());
    }
    assert_eq!(host.json(&["show", "v"])["size_bytes"], 9 << 20);
    server.stop();
}
