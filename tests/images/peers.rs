//! Images made by other programs, and a registry that is another program.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use volfork::{Store, StoreOptions};

use crate::fixture::{Host, content};
use crate::programs::{Registry, Umoci, check, debugfs};

fn volfork(host: &Host, arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_volfork"))
        .args(["--store", host.directory.path().join("other").to_str().unwrap()])
        .args(arguments)
        .stdin(Stdio::null())
        .env("DOCKER_CONFIG", host.directory.path())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

fn json(host: &Host, arguments: &[&str]) -> Value {
    let (done, text, errors) = volfork(host, &[&["--json"], arguments].concat());
    assert!(done, "{arguments:?}: {text}{errors}");
    serde_json::from_str(&text).unwrap()
}

/// A layout with an image of two layers, made by `umoci`.
fn umoci_layout(directory: &Path) -> Umoci {
    let layout = Umoci::new(&directory.join("layout"));
    let tree = directory.join("tree");
    std::fs::create_dir_all(tree.join("etc")).unwrap();
    std::fs::write(tree.join("etc/issue"), "made by umoci\n").unwrap();
    std::fs::write(tree.join("data"), vec![7; 300_000]).unwrap();
    std::os::unix::fs::symlink("etc/issue", tree.join("link")).unwrap();
    layout.begin("v1", None);
    layout.insert("v1", &tree, "/");
    std::fs::write(tree.join("data"), vec![8; 100_000]).unwrap();
    layout.insert("v1", &tree.join("data"), "/data");
    layout
}

#[test]
fn images_of_other_programs_import_from_layout_and_registry() {
    let host = Host::new();
    let directory = host.directory.path();
    let layout = umoci_layout(directory);
    let registry = Registry::start(directory, None);
    let remote = format!("{}/team/app:v1", registry.address);
    layout.push("v1", &remote, "oci");
    // Docker's own media types, as many registries have them.
    let docker = format!("{}/team/app:docker", registry.address);
    layout.push("v1", &docker, "v2s2");
    let from = layout.name("v1");

    let here = json(&host, &["image", "show", &from]);
    let there = json(&host, &["image", "show", &remote]);
    assert_eq!((&here["digest"], &here["layers"], &here["bytes"]), (&there["digest"], &there["layers"], &there["bytes"]));
    assert_eq!(here["layers"].as_array().unwrap().len(), 2);

    let imported = json(&host, &["image", "import", &remote, "remote"]);
    assert_eq!((&imported["start"]["layers_reused"], &imported["start"]["cached"]), (&0.into(), &false.into()));
    assert_eq!(imported["start"]["bytes_fetched"], here["bytes"]);
    // The layout has the same layers: nothing is fetched.
    let (done, text, _) = volfork(&host, &["image", "import", &from, "local"]);
    assert!(done && text.contains("cached"), "{text}");
    let (done, text, errors) = volfork(&host, &["image", "import", &docker, "docker"]);
    assert!(done && text.contains("cached"), "{text}{errors}");
    // Another store takes them from the layout by itself, and has the same bytes.
    let name = from.parse().unwrap();
    let source = volfork::image::open_source(&name, &Default::default()).unwrap();
    volfork::image::import_image(&host.store, &*source, &name, "v", &Default::default(), &mut |_| Ok(())).unwrap();
    let own = host.export("v");
    check(&own);
    let other = Store::open(directory.join("other"), StoreOptions::default()).unwrap();
    assert!(content(&other, "remote") == content(&host.store, "v"));
    other.close().unwrap();
    drop(other);
    assert_eq!(debugfs(&own, "cat /etc/issue"), b"made by umoci\n");
    assert!(debugfs(&own, "cat /data") == vec![8; 100_000]);

    let listed = json(&host, &["image", "list"]);
    assert_eq!(listed["layers"].as_array().unwrap().len(), 2);
    assert_eq!(listed["images"].as_array().unwrap().len(), 3);
    let (done, text, _) = volfork(&host, &["image", "list"]);
    assert!(done && text.contains("VOLUME") && text.contains(&remote), "{text}");

    for (reference, wanted) in [
        (format!("{}/team/app:absent", registry.address), "not in the registry"),
        (format!("{}/team/absent:v1", registry.address), "not in the registry"),
        ("127.0.0.1:1/team/app:v1".into(), "cannot be read"),
        (layout.name("absent"), "has no tag 'absent'"),
    ] {
        let (done, _, errors) = volfork(&host, &["image", "import", &reference, "bad"]);
        assert!(!done && errors.contains(wanted), "{reference}: {errors}");
    }
    let (done, _, errors) = volfork(&host, &["image", "show", &remote, "--platform", "plan9/mips"]);
    assert!(!done && errors.contains("it has linux/"), "{errors}");
}

#[test]
fn the_process_that_serves_the_store_imports_for_others() {
    let host = Host::new();
    umoci_layout(host.directory.path());
    let store = host.directory.path().join("other");
    assert!(volfork(&host, &["init"]).0);
    let mut server = Command::new(env!("CARGO_BIN_EXE_volfork"))
        .args(["--json", "--store", store.to_str().unwrap(), "serve"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(server.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    // A relative name is one of the client's directory.
    let client = Command::new(env!("CARGO_BIN_EXE_volfork"))
        .args(["--json", "--store", store.to_str().unwrap(), "image", "import", "oci:layout:v1", "v"])
        .current_dir(host.directory.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&client.stdout).into_owned() + &String::from_utf8_lossy(&client.stderr);
    let listed = json(&host, &["list"]);
    let starts = json(&host, &["image", "list"])["starts"].clone();
    rustix::process::kill_process(rustix::process::Pid::from_child(&server), rustix::process::Signal::TERM).unwrap();
    let _ = output.read_to_string(&mut line);
    assert!(server.wait().unwrap().success());
    assert!(client.status.success() && text.contains("\"layers\":2"), "{text}");
    assert_eq!(listed[0]["name"], "v", "{listed}");
    // The server counts how long starts take, and logs each.
    assert_eq!((&starts["fetched"]["count"], &starts["cached"]["count"]), (&1.into(), &0.into()), "{starts}");
    assert!(line.contains("\"event\":\"image_ready\"") && line.contains("\"cached\":false"), "{line}");
}
