//! The command line with the real binary: every command, its exit status, its JSON, alone and while a server owns the store.
mod access;
mod devices;
mod host;
mod hydration;
mod ids;
mod killed;
mod leases;
mod limits;
#[path = "../tls/pki.rs"]
mod pki;
mod repeats;
mod replace;
mod tls;
mod transfer;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Child, Stdio};

use host::{Host, make_image, names, signal, until, wait};
use serde_json::Value;

#[test]
fn usage_is_status_2_and_help_is_status_0() {
    let host = Host::bare();
    for arguments in [&["nonsense"][..], &[], &["create", "v"], &["create", "v", "--size", "x"], &["hydrate", "v", "--pause", "--resume"]] {
        assert_eq!(host.run(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert!(host.fails(2, &["create", "v", "--size", "10"]).contains("write 10G or 10M, or 10B for bytes"));
    for arguments in [&["--json", "create", "v", "--size", "x"][..], &["show", "--json"], &["--json", "destroy", "@s"]] {
        let error: Value = serde_json::from_str(&host.fails(2, arguments)).unwrap();
        assert_eq!(error["error"]["kind"], "usage", "{error}");
        assert!(error["error"]["message"].as_str().unwrap().contains("--help"), "{error}");
    }
    assert!(host.ok(&["--help"]).contains("Exit status"));
    assert!(host.ok(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
    assert!(host.ok(&["completions", "bash"]).contains("volfork"));
    assert!(!host.store().exists());
}

#[test]
fn a_missing_store_is_named_and_only_init_and_import_make_one() {
    let host = Host::bare();
    for arguments in
        [&["list"][..], &["create", "v", "--size", "1M"], &["show", "v"], &["check"], &["scrub"], &["serve"], &["fork", "v", "w"]]
    {
        let error = host.fails(1, arguments);
        assert!(error.contains("init") && error.contains(host.store().to_str().unwrap()), "{arguments:?}: {error}");
        assert_eq!(host.kind(arguments), "not_found");
    }
    assert!(!host.store().exists());
    host.import("v", 1);
    assert_eq!(host.volumes(), ["v"]);
    assert_eq!(host.kind(&["init"]), "exists");
}

#[test]
fn init_takes_a_block_size() {
    let host = Host::bare();
    assert_eq!(host.json(&["init", "--block-size", "16K"])["block_size"], 16384);
    assert_eq!(host.json(&["create", "v", "--size", "1G"])["block_size"], 16384);
    let other = Host::bare();
    other.fails(2, &["init", "--block-size", "5000"]);
    other.ok(&["--store", other.path("elsewhere").to_str().unwrap(), "init"]);
    assert!(other.path("elsewhere").is_dir() && !other.store().exists());
}

#[test]
fn show_has_the_promised_fields() {
    let host = Host::new();
    host.ok(&["create", "v", "--size", "10G"]);
    let info = host.json(&["show", "v"]);
    for (pointer, value) in [
        ("/name", Value::from("v")),
        ("/state", "created".into()),
        ("/size_bytes", (10u64 << 30).into()),
        ("/block_size", 4096.into()),
        ("/parent", Value::Null),
        ("/source", Value::Null),
        ("/blocks/present", 0.into()),
        ("/blocks/missing", 0.into()),
        ("/blocks/unique", 0.into()),
        ("/blocks/shared", 0.into()),
        ("/hydration/state", "none".into()),
        ("/hydration/bytes_fetched", 0.into()),
        ("/hydration/bytes_missing", 0.into()),
        ("/hydration/last_error", Value::Null),
    ] {
        assert_eq!(info.pointer(pointer), Some(&value), "{pointer} of {info}");
    }
    for pointer in ["/id", "/created_at", "/depth", "/blocks/zero", "/hydration/rate_bytes_per_second", "/hydration/eta_seconds"] {
        assert!(info.pointer(pointer).is_some(), "{pointer} of {info}");
    }
    assert_eq!(host.json(&["list"]).as_array().unwrap()[0]["id"], info["id"]);
    let table = host.ok(&["list"]);
    assert!(table.contains("NAME") && table.contains("10.0 GiB"), "{table}");
    assert!(host.ok(&["show", "v"]).contains("10.0 GiB"));
    assert_eq!(host.ok(&["-q", "list"]), "v\n");
    assert_eq!(host.ok(&["-q", "create", "w", "--size", "1M"]), "");
}

#[test]
fn volumes_live_and_end() {
    let host = Host::new();
    let bytes = host.import("v", 1);
    assert_eq!(host.kind(&["create", "v", "--size", "1M"]), "exists");
    assert_eq!(host.kind(&["import", "v", host.path("v.img").to_str().unwrap()]), "exists");

    let snapshot = host.json(&["snapshot", "v", "one"]);
    assert_eq!((snapshot["volume"].as_str(), snapshot["name"].as_str()), (Some("v"), Some("one")));
    host.ok(&["snapshot", "v", "two"]);
    assert_eq!(host.kind(&["snapshot", "v", "two"]), "exists");
    assert_eq!(names(&host.json(&["snapshots", "v"])), ["one", "two"]);
    let refused = host.fails(1, &["show", "v@one"]);
    assert!(refused.contains("no snapshot is meant here"), "{refused}");
    assert!(host.ok(&["snapshots", "v"]).contains("v@one"));

    assert_eq!(host.json(&["fork", "v", "from-volume"])["parent"], "v");
    assert_eq!(host.json(&["fork", "v@one", "from-snapshot"])["parent"], "v@one");
    for name in ["v", "v@one", "from-volume", "from-snapshot"] {
        assert!(host.bytes(name) == bytes, "{name}");
    }

    assert_eq!(host.json(&["extend", "v", "--size", "+1M"])["size_bytes"], bytes.len() + (1 << 20));
    assert_eq!(host.json(&["extend", "v", "--size", "20M"])["size_bytes"], 20 << 20);
    assert_eq!(host.kind(&["extend", "v", "--size", "1M"]), "invalid_input");
    assert_eq!(host.bytes("v").len(), 20 << 20);
    assert!(host.bytes("v@one") == bytes);

    let id = host.json(&["show", "v"])["id"].clone();
    assert_eq!(host.json(&["rename", "v", "renamed"])["id"], id);
    assert_eq!(host.kind(&["show", "v"]), "not_found");
    assert_eq!(host.kind(&["rename", "renamed", "from-volume"]), "exists");

    assert_eq!(host.kind(&["destroy", "renamed"]), "busy");
    assert_eq!(host.json(&["destroy", "renamed@one"])["destroyed"], "renamed@one");
    assert_eq!(host.kind(&["destroy", "renamed@one"]), "not_found");
    host.ok(&["destroy", "renamed", "--recursive"]);
    assert_eq!(host.volumes(), ["from-snapshot", "from-volume"]);
    assert!(host.bytes("from-snapshot") == bytes && host.bytes("from-volume") == bytes);

    let scrubbed = host.json(&["scrub"]);
    assert!(scrubbed["blocks_verified"].as_u64().unwrap() > 0 && scrubbed["errors"].as_array().unwrap().is_empty(), "{scrubbed}");
    host.ok(&["scrub", "from-volume"]);
    assert_eq!(host.kind(&["scrub", "v"]), "not_found");
    let checked = host.json(&["check"]);
    assert!(checked["volumes"] == 2 && checked["violations"].as_array().unwrap().is_empty(), "{checked}");
}

#[test]
fn images_go_in_and_out_whole_and_sparse() {
    let host = Host::bare();
    let bytes = host.import("v", 7);
    assert_eq!(host.json(&["show", "v"])["size_bytes"], bytes.len());

    let out = host.path("out.img");
    let moved = host.json_of_stderr(&["export", "v", out.to_str().unwrap()]);
    assert_eq!(moved["size_bytes"], bytes.len());
    assert!(fs::read(&out).unwrap() == bytes);
    assert!(fs::metadata(&out).unwrap().blocks() * 512 < 2 << 20, "{} blocks", fs::metadata(&out).unwrap().blocks());
    // Old and longer content goes away.
    fs::write(&out, vec![1; 20 << 20]).unwrap();
    host.ok(&["export", "v", out.to_str().unwrap()]);
    assert!(fs::read(&out).unwrap() == bytes);

    // Standard input and output, as pipes and as files.
    host.pipe_in("piped", &bytes);
    assert!(host.bytes("piped") == bytes);
    assert!(host.command(&["import", "redirected", "-"]).stdin(File::open(&out).unwrap()).status().unwrap().success());
    let file = File::create(host.path("redirected.img")).unwrap();
    assert!(host.command(&["export", "redirected", "-"]).stdout(file).status().unwrap().success());
    assert!(fs::read(host.path("redirected.img")).unwrap() == bytes);
}

#[test]
fn a_failed_import_or_export_leaves_nothing() {
    let host = Host::new();
    fs::write(host.path("disk.qcow2"), [b"QFI\xfb".as_slice(), &[0; 4092]].concat()).unwrap();
    assert!(host.fails(1, &["import", "v", "disk.qcow2"]).contains("qemu-img convert"));
    fs::write(host.path("empty"), "").unwrap();
    assert_eq!(host.kind(&["import", "v", "empty"]), "invalid_input");
    assert_eq!(host.kind(&["import", "v", "none"]), "not_found");
    assert_eq!(host.kind(&["import", "v", "."]), "invalid_input");
    assert!(host.volumes().is_empty());
    host.ok(&["import", "v", "disk.qcow2", "--raw"]);
    assert_eq!(host.json(&["show", "v"])["size_bytes"], 4096);

    assert_eq!(host.kind(&["export", "none", "out"]), "not_found");
    assert_eq!(host.kind(&["export", "v@none", "out"]), "not_found");
    assert!(!host.path("out").exists());
    assert_eq!(host.kind(&["show", "none"]), "not_found");
    assert_eq!(host.kind(&["fork", "none", "w"]), "not_found");
    assert_eq!(host.kind(&["create", "", "--size", "1M"]), "invalid_input");
}

#[test]
fn an_interrupted_import_is_undone() {
    // Also one that has sent nothing yet.
    for (served, bytes) in [(false, 4 << 20), (true, 4 << 20), (false, 0), (true, 0)] {
        let host = Host::new();
        let server = served.then(|| host.serve(&[]));
        let mut child = host.command(&["import", "v", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&vec![1; bytes]).unwrap();
        let owner = format!("(process {})", child.id());
        until("the import begins", || match (&server, bytes) {
            (None, _) => fs::read_to_string(host.store().join("lock")).unwrap().contains(&owner),
            (Some(server), 0) => server.has_a_command(),
            (Some(_), _) => !host.volumes().is_empty(),
        });
        // Not SIGINT: a job that a shell runs beside others ignores it, until the process takes it over.
        signal(&child, libc::SIGTERM);
        assert!(!wait(&mut child).success());
        // The pipe is still open: the end of the client is enough.
        until("the half-made volume goes", || host.volumes().is_empty());
        until("the server has undone it", || server.as_ref().is_none_or(|server| !server.has_a_command()));
        drop(stdin);
        host.import("v", 1);
        drop(server);
    }
}

#[test]
fn an_import_that_was_killed_is_swept_by_the_next_command() {
    let host = Host::new();
    host.ok(&["create", "mine.importing", "--size", "1M"]);
    let mut child = host.command(&["import", "v", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&vec![1; 4 << 20]).unwrap();
    until("something is written", || fs::read_dir(host.store().join("layers")).unwrap().count() > 0);
    child.kill().unwrap();
    wait(&mut child);
    assert_eq!(host.volumes(), ["mine.importing"]);
    host.import("v", 1);
    assert_eq!(host.json(&["show", "v"])["labels"], serde_json::json!({}));
}

#[test]
fn an_import_takes_no_names_but_its_own() {
    let host = Host::new();
    let bytes = host.import("x.importing", 1);
    host.ok(&["snapshot", "x.importing", "s"]);
    host.import("x", 2);
    assert_eq!(host.volumes(), ["x", "x.importing"]);
    assert!(host.bytes("x.importing@s") == bytes);
    // Names that are given while an import goes on.
    let server = host.serve(&[]);
    for ends in [true, false] {
        let mut child = host.command(&["import", "y", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&vec![1; 4 << 20]).unwrap();
        until("the import begins", || host.volumes().iter().any(|name| name.starts_with("y.importing-")));
        host.ok(&["fork", "x", "y.importing"]);
        host.ok(&["rename", "y.importing", "y.other"]);
        host.ok(&["rename", "y.other", "y.importing"]);
        assert_eq!(host.kind(&["fork", "x", "y"]), "exists");
        assert_eq!(host.kind(&["import", "y", "x.img"]), "exists");
        if ends {
            drop(stdin);
            assert!(wait(&mut child).success());
            host.ok(&["destroy", "y"]);
        } else {
            signal(&child, libc::SIGTERM);
            assert!(!wait(&mut child).success());
            until("the import is undone", || !server.has_a_command());
        }
        assert_eq!(host.volumes(), ["x", "x.importing", "y.importing"]);
        assert!(host.bytes("y.importing") == host.bytes("x"));
        host.ok(&["destroy", "y.importing"]);
    }
    server.stop();
}

#[test]
fn commands_work_while_a_server_owns_the_store() {
    let host = Host::new();
    let bytes = host.import("v", 3);
    let server = host.serve(&[]);
    let socket = fs::metadata(host.store().join("control.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    assert!(server.uris[0].starts_with("nbd+unix://"), "{:?}", server.uris);

    host.ok(&["create", "w", "--size", "1M"]);
    host.ok(&["snapshot", "v", "s"]);
    host.ok(&["fork", "v@s", "forked"]);
    host.ok(&["extend", "w", "--size", "+1M"]);
    host.ok(&["rename", "w", "x"]);
    let imported = host.import("served", 9);
    host.pipe_in("piped", &bytes);
    assert_eq!(host.volumes(), ["forked", "piped", "served", "v", "x"]);
    assert_eq!(names(&host.json(&["snapshots", "v"])), ["s"]);
    assert_eq!(host.json(&["show", "x"])["size_bytes"], 2 << 20);
    assert!(
        host.bytes("forked") == bytes && host.bytes("served") == imported && host.bytes("v@s") == bytes && host.bytes("piped") == bytes
    );
    host.ok(&["export", "served", "out"]);
    assert!(fs::read(host.path("out")).unwrap() == imported);
    host.ok(&["destroy", "forked"]);
    host.ok(&["hydrate", "v"]);
    host.ok(&["scrub"]);
    assert_eq!(host.kind(&["show", "none"]), "not_found");
    assert_eq!(host.kind(&["export", "none", "none"]), "not_found");
    assert!(!host.path("none").exists());
    assert_eq!(host.kind(&["check"]), "busy");
    assert_eq!(host.kind(&["serve"]), "locked");

    server.stop();
    assert!(!host.store().join("control.sock").exists());
    assert!(host.bytes("piped") == bytes);
    host.ok(&["check"]);
}

#[test]
fn a_killed_server_is_replaced() {
    let host = Host::new();
    let bytes = host.import("v", 3);
    let mut server = host.serve(&[]);
    signal(&server.child, libc::SIGKILL);
    wait(&mut server.child);
    assert!(host.store().join("control.sock").exists());
    assert!(host.bytes("v") == bytes);
    host.serve(&[]).stop();
}

#[test]
fn a_server_that_was_stopped_is_not_waited_for() {
    let host = Host::new();
    let server = host.serve(&[]);
    signal(&server.child, libc::SIGSTOP);
    let error = host.fails(1, &["create", "v", "--size", "1M"]);
    let number = server.child.id().to_string();
    assert!(error.contains(&format!("process {number}")) && error.contains(&format!("kill -CONT {number}")), "{error}");
    signal(&server.child, libc::SIGCONT);
    // What was given up is not done afterwards.
    host.ok(&["create", "w", "--size", "1M"]);
    assert_eq!(host.volumes(), ["w"]);
    server.stop();
}

#[test]
fn a_lock_names_its_owner() {
    let host = Host::new();
    let server = host.serve(&[]);
    fs::remove_file(host.store().join("control.sock")).unwrap();
    let error = host.fails(1, &["list"]);
    assert!(error.contains("volfork serve"), "{error}");
    assert_eq!(host.kind(&["list"]), "locked");
    server.stop();
}

#[test]
fn commands_that_make_the_store_at_once_share_it() {
    let host = Host::bare();
    fs::write(host.path("image"), [1; 4096]).unwrap();
    let import = |index| host.command(&["-q", "import", &format!("v{index}"), "image"]).spawn().unwrap();
    let children: Vec<Child> = (0..3).map(import).collect();
    for mut child in children {
        assert!(wait(&mut child).success());
    }
    assert_eq!(host.volumes(), ["v0", "v1", "v2"]);
}

#[test]
fn short_commands_wait_for_one_another() {
    let host = Host::new();
    let spawn = |index| host.command(&["create", &format!("v{index}"), "--size", "1M"]).stdout(Stdio::null()).spawn().unwrap();
    let children: Vec<Child> = (0..8).map(spawn).collect();
    for mut child in children {
        assert!(wait(&mut child).success());
    }
    assert_eq!(host.volumes().len(), 8);
    // So does a server: it may be started while a command runs.
    let mut import = host.command(&["import", "piped", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let owner = host.store().join("lock");
    until("the import has the store", || fs::read_to_string(&owner).is_ok_and(|owner| owner.contains("import")));
    std::thread::scope(|scope| {
        let server = scope.spawn(|| host.serve(&[]));
        // Nothing shows that it waits. Should it not come to that, nothing fails.
        std::thread::sleep(std::time::Duration::from_millis(200));
        import.stdin.take().unwrap().write_all(b"bytes").unwrap();
        assert!(wait(&mut import).success());
        server.join().unwrap().stop();
    });
}

#[test]
fn a_fork_from_another_host_hydrates() {
    let origin = Host::new();
    let bytes = origin.import("v", 5);
    origin.ok(&["snapshot", "v", "s"]);
    let socket = format!("unix:{}", origin.path("nbd.sock").display());
    for listen in ["127.0.0.1:0", &socket] {
        let server = origin.serve(&["--listen", listen]);
        // A fork from elsewhere makes the store.
        let host = Host::bare();
        let forked = host.json(&["fork", &server.uri("v@s"), "copy"]);
        assert_eq!(forked["size_bytes"], bytes.len());
        host.ok(&["hydrate", "copy", "--pause"]);
        host.ok(&["hydrate", "copy", "--rate", "1G"]);
        assert!(host.bytes("copy") == bytes);
        host.ok(&["hydrate", "copy", "--resume", "--wait"]);
        let info = host.json(&["show", "copy"]);
        assert_eq!((info["state"].as_str(), &info["blocks"]["missing"]), (Some("created"), &Value::from(0)), "{info}");
        server.stop();
        assert!(host.bytes("copy") == bytes);
        host.ok(&["scrub"]);
    }
    let host = Host::bare();
    assert!(!host.kind(&["fork", "nbd+unix:///v?socket=/nonexistent", "copy"]).is_empty());
}

#[test]
fn a_hydrating_fork_is_steered_and_uses_every_source() {
    let (origin, other) = (Host::new(), Host::bare());
    // Large enough that it is not over before it can be steered.
    let bytes: Vec<u8> = (0..96u64 << 20).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect();
    fs::write(origin.path("image"), &bytes).unwrap();
    origin.ok(&["import", "v", "image"]);
    origin.ok(&["snapshot", "v", "s"]);
    let first = origin.serve(&["--listen", "127.0.0.1:0"]);
    other.ok(&["fork", &first.uri("v@s"), "v"]);
    other.ok(&["snapshot", "v", "s"]);
    other.ok(&["hydrate", "v", "--wait"]);
    let second = other.serve(&["--listen", "127.0.0.1:0"]);

    let host = Host::new();
    let served = host.serve(&["--listen", "127.0.0.1:0"]);
    host.ok(&["fork", &first.uri("v@s"), "copy", "--also", &second.uri("v@s")]);
    host.ok(&["hydrate", "copy", "--pause", "--deadline", "2h", "--priority", "low", "--rate", "1"]);
    let info = host.json(&["show", "copy"]);
    // It may have been quicker all the same.
    if info["state"] == "hydrating" {
        let hydration = &info["hydration"];
        let uris: Vec<&str> = hydration["sources"].as_array().unwrap().iter().map(|source| source["uri"].as_str().unwrap()).collect();
        assert_eq!(uris, [first.uri("v@s"), second.uri("v@s")], "{info}");
        assert_eq!((hydration["state"].as_str(), hydration["priority"].as_str()), (Some("paused"), Some("low")), "{info}");
        assert!(hydration["deadline"].as_u64() > Some(1_700_000_000) && hydration["fetched"]["demand"].is_u64(), "{info}");
        assert!(host.ok(&["show", "copy"]).contains("ROUND TRIP"));
        // Another snapshot is no source of this one.
        origin.ok(&["create", "w", "--size", &bytes.len().to_string()]);
        origin.ok(&["snapshot", "w", "s"]);
        assert_eq!(host.kind(&["hydrate", "copy", "--add-source", &first.uri("w@s")]), "invalid_input");
        host.ok(&["hydrate", "copy", "--remove-source", &first.uri("v@s")]);
    }
    first.stop();
    host.ok(&["hydrate", "copy", "--resume", "--rate", "0", "--deadline", "0", "--wait"]);
    assert!(host.bytes("copy") == bytes);
    second.stop();
    served.stop();
}

#[test]
fn a_reader_that_leaves_ends_the_list_quietly() {
    let host = Host::new();
    host.ok(&["create", "v", "--size", "1M"]);
    let mut child = host.command(&["list"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut error = String::new();
    child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert!(wait(&mut child).success() && error.is_empty(), "{error}");
}

#[test]
fn the_demonstration_keeps_its_promises_and_cleans_up() {
    let host = Host::bare();
    let place = host.path("place");
    let place_name = place.to_str().unwrap();
    let numbers = host.json(&["demo", "--size", "48M", "--dir", place_name]);
    for key in ["import_seconds", "fork_seconds", "first_read_seconds", "hydrated_seconds", "verify_seconds", "sha256", "reads"] {
        assert!(!numbers[key].is_null(), "{key} of {numbers}");
    }
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0);

    make_image(&host.path("image"), 4);
    let said = host.ok(&["demo", "image", "--dir", place_name, "--keep"]);
    for word in ["import", "fork", "first read", "hydrated", "verified"] {
        assert!(said.contains(word), "{said}");
    }
    let kept = fs::read_dir(&place).unwrap().next().unwrap().unwrap().path();
    assert!(host.ok(&["--store", kept.join("host-b").to_str().unwrap(), "list"]).contains("disk"));
    assert!(host.path("image").exists());
}
