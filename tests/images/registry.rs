//! A scripted registry: redirects, errors, and which host gets the login.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use volfork::content::Digest;
use volfork::image::{ManifestSource, Platform, RegistryLogin, RegistryOptions, RegistrySource, Version};
use volfork::{ErrorKind, Store, StoreOptions};

use crate::fixture::{Archive, Host, Layout};
use crate::programs::check;

/// `Authorization: Basic` of alice with the password secret.
const BASIC: &str = "Basic YWxpY2U6c2VjcmV0";

/// What is asked: its path, and its header `Authorization`, or nothing.
type Asked = (String, String);

/// Status, further headers and body.
type Answer = (u16, String, Vec<u8>);

/// A server on this machine, and what it was asked.
struct Fake {
    port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Fake {
    fn start(answer: impl Fn(&Asked, u16) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let log = Arc::clone(&asked);
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Some(request) = read_request(&stream) {
                    log.lock().unwrap().push(request.clone());
                    let (status, headers, body) = answer(&request, port);
                    let length = body.len();
                    let head = format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
                    let _ = (&stream).write_all(&[head.as_bytes(), &body].concat());
                }
            }
        });
        Self { port, asked }
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn source(&self, login_for: &str) -> RegistrySource {
        let login = RegistryLogin { host: login_for.into(), user: "alice".into(), password: "secret".into() };
        RegistrySource::open(&format!("{}/team/app", self.host()), &RegistryOptions::default().with_plain_http(false).with_login(login))
            .unwrap()
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn read_request(stream: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let headers = lines.map_while(|line| line.ok().filter(|line| !line.is_empty()));
    let authorization = headers.filter_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case("authorization").then(|| value.trim().to_owned())
    });
    Some((path, authorization.last().unwrap_or_default()))
}

fn asks(challenge: &str) -> Answer {
    (401, format!("WWW-Authenticate: {challenge}\r\n"), Vec::new())
}

fn gives(body: &[u8]) -> Answer {
    (200, String::new(), body.to_vec())
}

fn tag() -> Version {
    Version::Tag("v1".into())
}

const MANIFEST_PATH: &str = "/v2/team/app/manifests/v1";

#[test]
fn a_password_is_told_to_a_registry_that_asks_for_it() {
    let open = Fake::start(|_, _| gives(b"{}"));
    assert_eq!(open.source(&open.host()).manifest(&tag()).unwrap().bytes, b"{}");
    assert_eq!(open.asked(), [(MANIFEST_PATH.into(), String::new())]);
    let basic = Fake::start(|asked, _| if asked.1 == BASIC { gives(b"{}") } else { asks("Basic realm=\"r\"") });
    let source = basic.source(&basic.host());
    source.manifest(&tag()).unwrap();
    source.manifest(&tag()).unwrap();
    let told: Vec<_> = basic.asked().into_iter().map(|(_, authorization)| authorization).collect();
    assert_eq!(told, ["", BASIC, BASIC]);
}

#[test]
fn a_password_is_for_one_registry() {
    let other = Fake::start(|_, _| asks("Basic realm=\"r\""));
    for host in ["registry.example", "127.0.0.1", ""] {
        let error = other.source(host).manifest(&tag()).unwrap_err();
        assert!(error.kind() == ErrorKind::ReadOnly && error.to_string().contains(&format!("VOLFORK_REGISTRY_HOST={}", other.host())));
    }
    assert!(other.asked().iter().all(|(_, authorization)| authorization.is_empty()), "{:?}", other.asked());
}

#[test]
fn registry_tokens_are_requested_and_renewed() {
    let issued = Mutex::new(0);
    let fake = Fake::start(move |(path, authorization), port| {
        let mut issued = issued.lock().unwrap();
        match path.split_once('?') {
            Some(("/token", query)) => {
                assert!(query.contains("scope=repository%3Ateam%2Fapp%3Apull") && query.contains("service=s"), "{query}");
                *issued += 1;
                gives(format!("{{\"token\":\"t{issued}\"}}").as_bytes())
            }
            // Each token is good for one manifest.
            _ if *authorization == format!("Bearer t{issued}") && *issued > 0 => {
                *issued += 100;
                gives(b"{}")
            }
            _ => asks(&format!("Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"s\"")),
        }
    });
    let source = fake.source(&fake.host());
    source.manifest(&tag()).unwrap();
    source.manifest(&tag()).unwrap();
    for (path, authorization) in fake.asked() {
        assert_eq!(path.starts_with("/token"), authorization == BASIC, "{path} {authorization}");
    }
    assert_eq!(fake.asked().len(), 6);
}

#[test]
fn tokens_are_not_asked_for_where_others_can_listen() {
    let elsewhere = Fake::start(|_, _| gives(b"{\"token\":\"t\"}"));
    let port = elsewhere.port;
    let fake = Fake::start(move |_, _| asks(&format!("Bearer realm=\"http://localhost:{port}/token\",service=\"s\"")));
    let error = fake.source(&fake.host()).manifest(&tag()).unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("neither https nor on the same host"), "{error}");
    assert!(elsewhere.asked().is_empty());
}

#[test]
fn whom_a_registry_leads_to_is_told_nothing() {
    let content = b"a layer";
    let good = Fake::start(|_, _| gives(content));
    let greedy = Fake::start(|_, _| asks("Basic realm=\"r\""));
    let (good_port, greedy_port) = (good.port, greedy.port);
    let fake = Fake::start(move |(path, authorization), _| match authorization.is_empty() {
        true => asks("Basic realm=\"r\""),
        false if path.contains(&Digest::of(content).to_string()) => (307, format!("Location: http://localhost:{good_port}/x\r\n"), vec![]),
        false => (307, format!("Location: http://localhost:{greedy_port}/x\r\n"), vec![]),
    });
    let source = fake.source(&fake.host());
    let mut read = Vec::new();
    source.open_blob(&Digest::of(content)).unwrap().read_to_end(&mut read).unwrap();
    assert_eq!(read, content);
    assert_eq!(source.open_blob(&Digest::of(b"other")).err().unwrap().kind(), ErrorKind::ReadOnly);
    for (path, authorization) in [good.asked(), greedy.asked()].concat() {
        assert_eq!((path.as_str(), authorization.as_str()), ("/x", ""));
    }
    assert_eq!((good.asked().len(), greedy.asked().len()), (1, 1));
}

#[test]
fn a_login_without_its_registry_is_refused() {
    let import = |reference: &str, host: Option<&str>| {
        let directory = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_volfork"));
        command.args(["image", "show", reference]).current_dir(directory.path()).env("DOCKER_CONFIG", directory.path());
        command.env("VOLFORK_REGISTRY_USER", "alice").env("VOLFORK_REGISTRY_PASSWORD", "secret");
        command.envs(host.map(|host| ("VOLFORK_REGISTRY_HOST", host)));
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    let fake = Fake::start(|_, _| asks("Basic realm=\"r\""));
    let reference = format!("{}/team/app:v1", fake.host());
    assert!(import(&reference, None).contains("a login is for one registry: set VOLFORK_REGISTRY_HOST"));
    assert!(fake.asked().is_empty());
    // A directory needs none.
    assert!(import("oci:absent", None).contains("not an image layout"));
    assert!(import(&reference, Some(&fake.host())).contains("does not let us read"));
    assert_eq!(fake.asked().last().unwrap().1, BASIC);
}

#[test]
fn a_killed_import_leaves_only_whole_layers() {
    let (host, layout) = (Host::new(), Layout::new());
    let [first, second] = [b"1", b"2"].map(|content| layout.layer(Archive::new().file(&format!("f{}", content[0]), content)));
    let manifest = layout.manifest(&[&first, &second], &Platform::here().architecture);
    let blobs = layout.path().join("blobs/sha256");
    let manifest = std::fs::read(layout.blob_path(&manifest["digest"])).unwrap();
    let stalled = format!("/v2/team/app/blobs/{}", second.descriptor["digest"].as_str().unwrap());
    let (release, released) = std::sync::mpsc::channel::<()>();
    let fake = Fake::start({
        let stalled = stalled.clone();
        move |(path, _), _| {
            if *path == stalled {
                let _ = released.recv();
            }
            match path.rsplit_once("/blobs/sha256:") {
                Some((_, digest)) => gives(&std::fs::read(blobs.join(digest)).unwrap()),
                None => gives(&manifest),
            }
        }
    });
    let store = host.directory.path().join("other");
    let command = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_volfork"));
        command.args(["--json", "--store", store.to_str().unwrap(), "image", "import", &format!("{}/team/app:v1", fake.host()), "v"]);
        command.env("DOCKER_CONFIG", host.directory.path());
        command
    };
    let mut killed = command().spawn().unwrap();
    let begun = std::time::Instant::now();
    while !fake.asked().iter().any(|(path, _)| *path == stalled) {
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{:?}", fake.asked());
        std::thread::yield_now();
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    drop(release);
    let output = command().output().unwrap();
    let imported: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!((&imported["start"]["layers"], &imported["start"]["layers_reused"]), (&2.into(), &1.into()), "{imported}");
    let other = Host { directory: host.directory, store: Store::open(&store, StoreOptions::default()).unwrap() };
    assert_eq!(other.store.volume_names(), ["v"]);
    check(&other.export("v"));
}

#[test]
fn clients_share_a_layer_fetch_and_survive_a_killed_one() {
    let (host, layout) = (Host::new(), Layout::new());
    let layers = ["base", "one", "two"].map(|name| layout.layer(Archive::new().file(name, name.as_bytes())));
    let digests = layers.each_ref().map(|layer| format!("/v2/team/app/blobs/{}", layer.descriptor["digest"].as_str().unwrap()));
    let manifests = [1, 2].map(|above| {
        let manifest = layout.manifest(&[&layers[0], &layers[above]], &Platform::here().architecture);
        std::fs::read(layout.blob_path(&manifest["digest"])).unwrap()
    });
    let blobs = layout.path().join("blobs/sha256");
    let stalled = digests[1].clone();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let fake = Fake::start(move |(path, _), _| {
        if *path == stalled {
            let _ = released.recv();
        }
        match path.rsplit_once("/blobs/sha256:") {
            Some((_, digest)) => gives(&std::fs::read(blobs.join(digest)).unwrap()),
            None => gives(&manifests[usize::from(path.ends_with("two"))]),
        }
    });
    let asked = |path: &String| fake.asked().iter().filter(|(asked, _)| asked == path).count();
    let store = host.directory.path().join("other");
    let spawn = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_volfork"));
        command.args(["--json", "--store", store.to_str().unwrap()]).args(arguments).stdout(std::process::Stdio::piped());
        command.env("DOCKER_CONFIG", host.directory.path()).spawn().unwrap()
    };
    let import = |tag: &str, volume: &str| spawn(&["image", "import", &format!("{}/team/app:{tag}", fake.host()), volume]);
    assert!(spawn(&["init"]).wait().unwrap().success());
    let mut server = spawn(&["serve"]);
    let mut ready = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    // The first one has made the base, and waits for its other layer.
    let mut killed = import("one", "killed");
    let begun = std::time::Instant::now();
    while asked(&digests[1]) == 0 {
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{:?}", fake.asked());
        std::thread::yield_now();
    }
    let others = [import("two", "two"), import("one", "one")];
    killed.kill().unwrap();
    killed.wait().unwrap();
    drop(release);
    for other in others {
        let output = other.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!([0, 2].map(|layer| asked(&digests[layer])), [1, 1], "{:?}", fake.asked());
    // SAFETY: kill takes no pointers, and the child was not waited for, so its number is its own.
    assert_eq!(unsafe { libc::kill(server.id() as i32, libc::SIGTERM) }, 0);
    assert!(server.wait().unwrap().success());
    let other = Host { directory: host.directory, store: Store::open(&store, StoreOptions::default()).unwrap() };
    for name in ["one", "two"] {
        check(&other.export(name));
    }
}

#[test]
fn tokens_that_expire_during_an_import_are_replaced() {
    let (host, layout) = (Host::new(), Layout::new());
    let layers = [1, 2, 3].map(|number| layout.layer(Archive::new().file(&format!("f{number}"), &[number; 9000])));
    let manifest = layout.manifest(&layers.each_ref(), &Platform::here().architecture);
    let manifest = std::fs::read(layout.blob_path(&manifest["digest"])).unwrap();
    let blobs = layout.path().join("blobs/sha256");
    let (issued, good_for) = (Mutex::new(0), Mutex::new(0));
    let fake = Fake::start(move |(path, authorization), port| {
        let (mut issued, mut good_for) = (issued.lock().unwrap(), good_for.lock().unwrap());
        if path.starts_with("/token") {
            // Each is good for two requests.
            (*issued, *good_for) = (*issued + 1, 2);
            return gives(format!("{{\"token\":\"t{issued}\"}}").as_bytes());
        }
        if *good_for == 0 || *authorization != format!("Bearer t{issued}") {
            return asks(&format!("Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"s\",error=\"invalid_token\""));
        }
        *good_for -= 1;
        match path.rsplit_once("/blobs/sha256:") {
            Some((_, digest)) => gives(&std::fs::read(blobs.join(digest)).unwrap()),
            None => gives(&manifest),
        }
    });
    let name = format!("{}/team/app:v1", fake.host()).parse().unwrap();
    let options = volfork::image::ImportOptions::default();
    let source = fake.source(&fake.host());
    let imported = volfork::image::import_image(&host.store, &source, &name, "v", &options, &mut |_| Ok(())).unwrap();
    assert_eq!((imported.start.layers, imported.start.layers_reused), (3, 0));
    assert_eq!(fake.asked().iter().filter(|(path, _)| path.starts_with("/token")).count(), 3, "{:?}", fake.asked());
    check(&host.export("v"));
}
