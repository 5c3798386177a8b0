//! Access rights of a store, and the list of connected clients.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use volfork::wire::OptionRequest;
use volfork::wire::constants::OPT_EXPORT_NAME;

use crate::host::{Host, Server};

/// Runs the binary with an umask.
fn masked(host: &Host, umask: &str, arguments: &[&str]) -> Command {
    let command = host.command(&[]);
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")]).arg(command.get_program()).args(arguments);
    shell.env("VOLFORK_STORE", host.store()).env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS").current_dir(host.directory.path());
    shell
}

fn ok(output: Output) -> Output {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o7777
}

/// A path and all below it, with their modes.
fn modes(path: &Path) -> Vec<(PathBuf, u32)> {
    let mut all = vec![(path.to_owned(), mode(path))];
    if path.is_dir() {
        all.extend(fs::read_dir(path).unwrap().flat_map(|entry| modes(&entry.unwrap().path())));
    }
    all
}

fn is_private(store: &Path) {
    let all = modes(store);
    assert!(all.len() > 5, "{all:?}");
    for (path, mode) in all {
        assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o600 }, "{} is {mode:o}", path.display());
    }
}

#[test]
fn a_store_is_for_its_owner_whatever_the_umask_says() {
    let host = Host::bare();
    ok(masked(&host, "0", &["init"]).output().unwrap());
    fs::write(host.path("image"), [7; 9000]).unwrap();
    ok(masked(&host, "0", &["import", "v", "image"]).output().unwrap());
    ok(masked(&host, "000", &["snapshot", "v", "s"]).output().unwrap());
    let (elsewhere, inside) = (host.path("elsewhere.sock"), host.store().join("nbd.sock"));
    let listen = [format!("unix:{}", inside.display()), format!("unix:{}", elsewhere.display())];
    let server = host.served(masked(&host, "0", &["--json", "serve", "--listen", &listen[0], "--listen", &listen[1]]));
    is_private(&host.store());
    assert_eq!(mode(&elsewhere), 0o600);
    ok(masked(&host, "0", &["fork", "v@s", "w"]).output().unwrap());
    is_private(&host.store());
    server.stop();
    // What is the user's own is made as the user's other files are.
    for (umask, expected) in [("0", 0o666), ("027", 0o640)] {
        let image = host.path(umask);
        ok(masked(&host, umask, &["export", "v", image.to_str().unwrap()]).output().unwrap());
        assert_eq!(mode(&image), expected);
    }
}

/// As older programs left it.
fn open_to_all(store: &Path) {
    for (path, _) in modes(store) {
        fs::set_permissions(&path, Permissions::from_mode(if path.is_dir() { 0o755 } else { 0o644 })).unwrap();
    }
}

#[test]
fn a_store_that_others_could_use_is_closed_to_them_with_a_word() {
    let host = Host::new();
    host.import("v", 1);
    open_to_all(&host.store());
    let output = ok(host.run(&["--json", "list"]));
    let note: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert!(note["message"].as_str().unwrap().contains("other users"), "{note}");
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()[0]["name"], "v");
    is_private(&host.store());
    assert_eq!(ok(host.run(&["list"])).stderr, b"");
    // A directory that has something else in it is left to its user, and what is the store's is not.
    open_to_all(&host.store());
    let notes = host.store().join("notes");
    fs::write(&notes, "mine").unwrap();
    fs::set_permissions(&notes, Permissions::from_mode(0o644)).unwrap();
    let output = ok(host.run(&["list"]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("other users"), "{output:?}");
    assert_eq!((mode(&host.store()), mode(&notes)), (0o755, 0o644));
    fs::remove_file(&notes).unwrap();
    ok(host.run(&["list"]));
    is_private(&host.store());
}

#[test]
fn a_group_uses_what_it_was_given() {
    let host = Host::bare();
    ok(masked(&host, "077", &["init", "--group-access"]).output().unwrap());
    ok(masked(&host, "077", &["create", "v", "--size", "1M"]).output().unwrap());
    ok(masked(&host, "077", &["snapshot", "v", "s"]).output().unwrap());
    let server = host.served(masked(&host, "077", &["--json", "serve"]));
    for (path, mode) in modes(&host.store()) {
        let expected = match path.file_name().and_then(|name| name.to_str()) {
            Some("control.sock" | "lock") => 0o600,
            Some("nbd.sock") => 0o660,
            _ if path.is_dir() => 0o2750,
            _ => 0o640,
        };
        assert_eq!(mode, expected, "{} is {mode:o}", path.display());
    }
    server.stop();
    let taken = host.path("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("file"), "mine").unwrap();
    let error = host.fails(1, &["--store", taken.to_str().unwrap(), "init", "--group-access"]);
    assert!(error.contains("nothing else"), "{error}");
}

/// Chooses an export, the old and short way.
fn choose<S: Read + Write>(mut socket: S, export: &str) -> S {
    socket.read_exact(&mut [0; 18]).unwrap();
    socket.write_all(&[&3u32.to_be_bytes()[..], &OptionRequest::encode(OPT_EXPORT_NAME, export.as_bytes())].concat()).unwrap();
    socket.read_exact(&mut [0; 10]).unwrap();
    socket
}

fn tcp_client(server: &Server, export: &str) -> TcpStream {
    choose(TcpStream::connect(server.uris[0].strip_prefix("nbd://").unwrap()).unwrap(), export)
}

#[test]
fn who_is_connected_is_told_and_can_be_disconnected() {
    let host = Host::new();
    host.ok(&["create", "v", "--size", "1M"]);
    host.ok(&["snapshot", "v", "s"]);
    let path = host.path("sock");
    let server = host.serve(&["--listen", "127.0.0.1:0", "--listen", &format!("unix:{}", path.display())]);
    assert_eq!(host.json(&["show", "v"])["connections"], Value::Array(Vec::new()));
    let mut first = tcp_client(&server, "v");
    let mut second = choose(UnixStream::connect(&path).unwrap(), "v");
    let mut third = tcp_client(&server, "v@s");
    let client = |address: String, export: &str| serde_json::json!({ "address": address, "export": export });
    let (first_at, third_at) = (first.local_addr().unwrap().to_string(), third.local_addr().unwrap().to_string());
    let expected =
        vec![client(first_at.clone(), "v"), client(format!("process {}", std::process::id()), "v"), client(third_at.clone(), "v@s")];
    assert_eq!(host.json(&["show", "v"])["connections"], Value::Array(expected));
    let text = host.ok(&["show", "v"]);
    assert!(text.contains(&format!("'v' from {first_at}")) && text.contains(&format!("'v@s' from {third_at}")), "{text}");
    // By the name that it has now.
    host.ok(&["rename", "v", "w"]);
    let error = host.fails(1, &["destroy", "w", "--recursive"]);
    assert!(error.contains("volfork disconnect w"), "{error}");
    assert_eq!(host.kind(&["disconnect", "v"]), "not_found");
    assert_eq!(host.json(&["disconnect", "w"]), serde_json::json!({ "name": "w", "connections": 2 }));
    assert_eq!((first.read(&mut [0; 1]).unwrap(), second.read(&mut [0; 1]).unwrap()), (0, 0));
    let error = host.fails(1, &["destroy", "w", "--recursive"]);
    assert!(error.contains("volfork disconnect w@s"), "{error}");
    assert!(host.ok(&["disconnect", "w@s"]).contains("ended 1 connections to 'w@s'"));
    assert_eq!(third.read(&mut [0; 1]).unwrap(), 0);
    assert!(host.ok(&["disconnect", "w@s"]).contains("nobody was connected"));
    host.ok(&["destroy", "w", "--recursive"]);
    server.stop();
    host.ok(&["create", "v", "--size", "1M"]);
    assert_eq!(host.json(&["disconnect", "v"])["connections"], 0);
}
