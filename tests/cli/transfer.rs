//! `import` and `export`: counted bytes, images that do not fit, notes.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::host::{Host, signal, until, wait};

/// Zeros that a source does not tell from data.
#[test]
fn an_export_of_a_fork_that_is_not_whole_counts_what_is_there() {
    let host = Host::new();
    let image = host.path("image");
    let file = File::create(&image).unwrap();
    file.set_len(16 << 20).unwrap();
    file.write_all_at(&vec![7; 1 << 20], 3 << 20).unwrap();
    let socket = host.path("source.sock");
    let mut source = Command::new("nbdkit")
        .args(["--foreground", "--exit-with-parent", "--readonly", "--filter=noextents", "--unix", socket.to_str().unwrap(), "file"])
        .arg(&image)
        .stdin(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("nbdkit cannot be run ({error}): see .ci/run for the packages"));
    until("the source listens", || socket.exists());
    let server = host.serve(&[]);
    host.ok(&["fork", &format!("nbd+unix:///?socket={}", socket.display()), "f"]);
    host.ok(&["hydrate", "f", "--pause"]);
    let moved = host.json_of_stderr(&["export", "f", "out"]);
    assert_eq!((&moved["size_bytes"], &moved["data_bytes"]), (&Value::from(16 << 20), &Value::from(1 << 20)));
    let out = host.path("out");
    assert!(fs::read(&out).unwrap() == fs::read(&image).unwrap());
    assert!(fs::metadata(&out).unwrap().blocks() * 512 < 2 << 20, "{} blocks", fs::metadata(&out).unwrap().blocks());
    server.stop();
    source.kill().unwrap();
    wait(&mut source);
}

#[test]
fn an_export_that_does_not_fit_says_how_much_fits() {
    let host = Host::new();
    host.ok(&["create", "v", "--size", "1G"]);
    fs::write(host.path("out"), "what was there").unwrap();
    let command = host.command(&["--json", "export", "v", "out"]);
    let mut shell = Command::new("sh");
    // 100,000 times 512 bytes: what the user may write stands for what the file system can hold.
    shell.args(["-c", "ulimit -f 100000; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    let output = shell.current_dir(host.directory.path()).env("VOLFORK_STORE", host.store()).stdin(Stdio::null()).output().unwrap();
    let failure: Value = serde_json::from_slice(&output.stderr).unwrap_or_else(|_| panic!("{output:?}"));
    let (kind, message) = (&failure["error"]["kind"], failure["error"]["message"].as_str().unwrap());
    let place = fs::canonicalize(host.directory.path()).unwrap();
    assert!(kind == "no_space" && message.contains("(51200000 bytes)") && message.contains("(1073741824 bytes)"), "{message}");
    assert!(message.contains(place.to_str().unwrap()), "{message}");
    assert_eq!(fs::read(host.path("out")).unwrap(), b"what was there");
}

#[test]
fn server_logs_have_one_shape_and_sighup_ends_nothing() {
    let host = Host::new();
    let mut server = host.command(&["--json", "serve"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    let mut seen = vec![next()];
    signal(&server, libc::SIGHUP);
    // A fork from a source that ends: complete, and told so.
    let origin = Host::new();
    origin.import("v", 1);
    let source = origin.serve(&["--listen", "127.0.0.1:0"]);
    host.ok(&["fork", &source.uri("v"), "copy"]);
    host.ok(&["hydrate", "copy", "--wait"]);
    seen.push(next());
    signal(&server, libc::SIGTERM);
    assert!(wait(&mut server).success());
    let events: Vec<_> = seen.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["listening", "hydrated"]);
    assert_eq!(seen[1]["volumes"], serde_json::json!(["copy"]));
    for line in &seen {
        assert!(humantime::parse_rfc3339(line["time"].as_str().unwrap()).is_ok(), "{line}");
    }
    source.stop();
}

#[test]
fn a_size_that_clients_do_not_reach_is_told() {
    let host = Host::new();
    let told = |arguments: &[&str]| {
        let output = host.run(arguments);
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(told(&["create", "even", "--size", "1M"]).is_empty());
    let odd = told(&["create", "odd", "--size", "1000000B"]);
    assert!(odd.contains("last 576") && odd.contains("volfork extend odd --size 1003520B"), "{odd}");
    let line: Value = serde_json::from_str(&told(&["--json", "extend", "even", "--size", "1048577"])).unwrap();
    assert_eq!(line["event"], "note");
    assert!(told(&["-q", "create", "quiet", "--size", "1000001B"]).is_empty());
    assert!(told(&["extend", "odd", "--size", "1003520B"]).is_empty());
    fs::write(host.path("image"), [1; 513]).unwrap();
    assert!(told(&["import", "small", "image"]).contains("last 513"));
}

#[test]
fn a_fork_may_be_larger_than_its_source() {
    let host = Host::new();
    let bytes: Vec<u8> = (0..9001u32).map(|byte| byte as u8 | 1).collect();
    host.pipe_in("base", &bytes);
    host.ok(&["snapshot", "base", "s"]);
    let server = host.serve(&[]);
    let other = Host::new();
    let grown: Vec<u8> = bytes.iter().copied().chain(std::iter::repeat_n(0, (1 << 20) - bytes.len())).collect();
    let uri = server.uri("base@s");
    for (place, source) in [(&host, "base"), (&host, "base@s"), (&other, uri.as_str())] {
        let made = place.json(&["fork", source, "grown", "--size", "1M"]);
        assert_eq!((&made["name"], &made["size_bytes"], &made["labels"]), (&"grown".into(), &(1 << 20).into(), &serde_json::json!({})));
        assert!(place.bytes("grown") == grown, "{source}");
        place.ok(&["destroy", "grown"]);
        // Nothing is left of one that is refused.
        let before = place.volumes();
        assert_eq!(place.kind(&["fork", source, "small", "--size", "9000B"]), "invalid_input");
        assert_eq!(place.volumes(), before);
    }
    server.stop();
}
