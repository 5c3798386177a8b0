//! Real clients against the server, real servers as sources, and a server that is killed.
//!
//! Needs the programs that `.ci/run` installs; a missing one fails the test that needs it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_pcg::Pcg64;
use rand_pcg::rand_core::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use volfork::serve::{Export, Exports, Listener, NbdServer, NbdServerOptions};
use volfork::source::{NbdOptions, UriSources};
use volfork::{Store, StoreOptions};

const MIB: usize = 1 << 20;
/// `nbdsh` is a module of the system's Python.
const PYTHON: &str = "/usr/bin/python3";

fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    Pcg64::seed_from_u64(seed).fill_bytes(&mut data);
    data
}

fn start(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs a program to its end; answers what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = start(program, arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot be run ({error}): see .ci/run for the packages"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?} failed: {text}");
    text
}

/// A child that is killed when the test ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for something that another process does, for at most 20 seconds.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(20), "{what} did not happen");
        std::thread::yield_now();
    }
}

/// Whether somebody listens on a socket: it is there a moment before.
fn answers(socket: &str) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

struct Host {
    dir: tempfile::TempDir,
    store: Store,
    server: Option<NbdServer>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let nbd = NbdOptions::default().with_give_up_after(Duration::from_millis(300));
        let options = StoreOptions::default().with_sources(Arc::new(UriSources { nbd }));
        let store = Store::create(dir.path().join("store"), options).unwrap();
        let socket = dir.path().join("sock");
        let listener = Listener::parse(&format!("unix:{}", socket.display())).unwrap();
        let server = NbdServer::start(Arc::new(store.clone()), vec![listener], NbdServerOptions::default()).unwrap();
        Self { dir, store, server: Some(server) }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.path("sock"))
    }

    fn volume(&self, name: &str, data: &[u8]) {
        let volume = self.store.create_volume(name, data.len() as u64).unwrap();
        volume.write_at(data, 0).and_then(|()| volume.flush()).unwrap();
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        let volume = self.store.volume(name).unwrap();
        let mut bytes = vec![0; volume.size_bytes() as usize];
        volume.read_at(&mut bytes, 0).unwrap();
        bytes
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown();
        }
    }
}

#[test]
fn nbdinfo_sees_exports_as_they_are() {
    let host = Host::new();
    host.volume("a", &pattern(1, 4 * MIB));
    host.store.volume("a").unwrap().discard(MIB as u64, MIB as u64).unwrap();
    host.store.create_snapshot("a", "s").unwrap();
    let list = run("nbdinfo", &["--list", &host.uri("")]);
    assert!(list.contains("export=\"a\"") && list.contains("export=\"a@s\""), "{list}");
    let volume = run("nbdinfo", &["--json", &host.uri("a")]);
    for part in ["\"can_multi_conn\": true", "\"is_read_only\": false", "\"export-size\": 4194304", "qemu:allocation-depth"] {
        assert!(volume.contains(part), "{part}: {volume}");
    }
    assert!(run("nbdinfo", &["--json", &host.uri("a@s")]).contains("\"is_read_only\": true"));
    let map = |context: &str, export: &str| {
        let map = run("nbdinfo", &[&format!("--map={context}"), &host.uri(export)]);
        let row = |line: &str| line.split_whitespace().take(3).map(|number| number.parse().unwrap()).collect();
        map.lines().map(row).collect::<Vec<Vec<u64>>>()
    };
    let mib = MIB as u64;
    assert_eq!(map("base:allocation", "a"), [[0, mib, 0], [mib, mib, 3], [2 * mib, 2 * mib, 0]]);
    assert_eq!(map("x-volfork:missing", "a"), [[0, 4 * mib, 0]]);
    // What was written and discarded since a snapshot, of a volume and of a later snapshot.
    let volume = host.store.volume("a").unwrap();
    volume.write_at(&[1; 5000], 0).and_then(|()| volume.discard(3 * mib, 8192)).unwrap();
    let changed = [[0, 8192, 1], [8192, 3 * mib - 8192, 0], [3 * mib, 8192, 1], [3 * mib + 8192, mib - 8192, 0]];
    assert_eq!(map("qemu:dirty-bitmap:s", "a"), changed);
    host.store.create_snapshot("a", "t").unwrap();
    volume.write_at(&[1; 4096], 2 * mib).unwrap();
    assert_eq!(map("qemu:dirty-bitmap:s", "a@t"), changed);
    assert_eq!(map("qemu:dirty-bitmap:t", "a"), [[0, 2 * mib, 0], [2 * mib, 4096, 1], [2 * mib + 4096, 2 * mib - 4096, 0]]);
    assert!(!run("nbdinfo", &["--json", &host.uri("a@s")]).contains("dirty-bitmap:t"), "a snapshot does not stand on a later one");
}

/// As many exports as are asked for, all of one volume.
struct Many(Store, usize);

impl Exports for Many {
    fn open(&self, _: &str) -> volfork::Result<Export> {
        self.0.volume("v").map(Export::Volume)
    }

    fn names(&self) -> Vec<String> {
        (0..self.1).map(|number| format!("export-{number}")).collect()
    }
}

#[test]
fn thousands_of_exports_are_listed() {
    const COUNT: usize = 6000;
    let host = Host::new();
    host.volume("v", &[1; 4096]);
    let socket = host.path("many");
    let listener = Listener::parse(&format!("unix:{socket}")).unwrap();
    let server = NbdServer::start(Arc::new(Many(host.store.clone(), COUNT)), vec![listener], NbdServerOptions::default()).unwrap();
    let list = run("nbdinfo", &["--list", "--json", &format!("nbd+unix:///?socket={socket}")]);
    assert_eq!(list.matches("\"export-name\": ").count(), COUNT);
    let list = run("qemu-nbd", &["--list", "-k", &socket]);
    assert_eq!(list.matches("export: 'export-").count(), COUNT);
    server.shutdown();
}

/// Sockets whose paths other programs cannot even name, and such whose names mean something in a URI.
#[test]
fn sockets_with_long_and_odd_paths_are_served_and_forked_from() {
    let host = Host::new();
    let data = pattern(13, MIB);
    host.volume("v", &data);
    for (number, name) in [&"y".repeat(120), "a b", "a+b", "a&b=c", "a%41", "a#b?c", "größe"].into_iter().enumerate() {
        let listener = Listener::parse(&format!("unix:{}", host.path(name))).unwrap();
        let uri = listener.uri();
        let server = NbdServer::start(Arc::new(host.store.clone()), vec![listener], NbdServerOptions::default()).unwrap();
        let of_volume = uri.replace("///?", "///v?");
        let fork = format!("fork-{number}");
        fork_and_verify(&host, &of_volume, &fork, &data);
        // qemu as well as libnbd read addresses their own way.
        if name.len() < 100 {
            assert_eq!(run("nbdinfo", &["--size", &of_volume]).trim(), data.len().to_string(), "{name}");
        }
        // qemu decodes a query before it takes it apart, and then its parts again.
        if name.len() < 100 && !name.contains(['&', '%']) {
            assert!(run("qemu-img", &["info", "-f", "raw", &of_volume]).contains("1 MiB"), "{name}");
        }
        server.shutdown();
        assert!(!Path::new(&host.path(name)).exists(), "{name} is left behind");
    }
}

#[test]
fn copies_go_both_ways_over_many_connections() {
    let host = Host::new();
    let data = pattern(2, 24 * MIB + 512);
    host.volume("a", &data);
    let image = host.path("image");
    run("nbdcopy", &["--connections=4", "--requests=32", &host.uri("a"), &image]);
    assert!(std::fs::read(&image).unwrap() == data);
    host.store.create_volume("b", data.len() as u64).unwrap();
    run("nbdcopy", &["--connections=4", "--flush", &image, &host.uri("b")]);
    assert!(host.bytes("b") == data);
    // The plugin fails if a byte that comes back is not the one it gave.
    host.store.create_volume("c", 64 * MIB as u64).unwrap();
    let there_and_back = format!("nbdcopy \"$uri\" '{0}' && nbdcopy '{0}' \"$uri\"", host.uri("c"));
    run("nbdkit", &["-U", "-", "sparse-random", "64M", "seed=7", "--run", &there_and_back]);
}

#[test]
fn clients_start_the_server_themselves_by_socket_activation() {
    let host = Host::new();
    let data = pattern(12, 3 * MIB);
    host.volume("a", &data);
    host.store.close().unwrap();
    let (store, image) = (host.path("store"), host.path("image"));
    let binary = env!("CARGO_BIN_EXE_volfork");
    run("nbdcopy", &["--", "[", binary, "--store", &store, "serve", "]", &image]);
    assert!(std::fs::read(&image).unwrap() == data);
}

#[test]
fn qemu_reads_writes_zeroes_and_maps() {
    let host = Host::new();
    let data = pattern(3, 8 * MIB);
    host.volume("a", &data);
    let (image, uri) = (host.path("image"), host.uri("a"));
    std::fs::write(&image, &data).unwrap();
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &uri, &image]);
    let copy = host.path("copy.qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, &copy]);
    run("qemu-img", &["compare", "-F", "raw", &copy, &image]);
    let commands = [
        "write -P 0xab 1000 5000",
        "flush",
        "read -P 0xab 1000 5000",
        "write -z 64k 128k",
        "read -P 0 64k 128k",
        "write -z -u 1M 1M",
        "read -P 0 1M 1M",
        "write -z -u -n 2M 64k",
        "read -P 0 2M 64k",
        "write -f -P 7 300k 64k",
        "read -P 7 300k 64k",
        "discard 4M 1M",
        "read -P 0 4M 1M",
        "aio_write -P 9 5M 64k",
        "aio_write -P 8 5184k 64k",
        "aio_flush",
        "read -P 9 5M 64k",
        "read -P 8 5184k 64k",
    ];
    let mut arguments = vec!["-f", "raw"];
    arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
    arguments.push(&uri);
    let text = run("qemu-io", &arguments);
    assert!(!text.contains("failed") && !text.contains("error"), "{text}");
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    assert!(map.contains("{ \"start\": 1048576, \"length\": 1114112, \"depth\": 0, \"present\": true, \"zero\": true"), "{map}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    let host = Host::new();
    host.store.create_volume("a", 64 * MIB as u64).unwrap();
    let uri = format!("--uri={}", host.uri("a"));
    let common = ["--bs=4k", "--iodepth=32", "--size=32M", "--verify=crc32c", "--verify_fatal=1", "--randseed=5"];
    let mut arguments = vec!["--name=x", "--rw=randrw", "--ioengine=nbd", uri.as_str()];
    arguments.extend(common);
    assert!(run("fio", &arguments).contains("err= 0"));
}

#[test]
fn invalid_requests_get_errors_and_the_connection_goes_on() {
    let host = Host::new();
    host.volume("a", &pattern(4, MIB));
    host.store.create_snapshot("a", "s").unwrap();
    let script = r#"
import errno
h.set_strict_mode(0)
def fails(what, call, number):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == number, (what, error)
    else:
        raise AssertionError(what)
size = h.get_size()
fails("read past the end", lambda: h.pread(512, size), errno.EINVAL)
fails("write past the end", lambda: h.pwrite(b"x" * 512, size - 100), errno.ENOSPC)
fails("trim past the end", lambda: h.trim(512, size), errno.EINVAL)
fails("unknown flag", lambda: h.pread(512, 0, 1 << 9), errno.EINVAL)
fails("status without a context", lambda: h.block_status(512, 0, lambda *a: 0), errno.EINVAL)
h.pwrite(b"y" * 3, 7, nbd.CMD_FLAG_FUA)
assert h.pread(5, 6)[1:4] == b"yyy"
h.flush()
"#;
    run(PYTHON, &["-m", "nbd", "-u", &host.uri("a"), "-c", script]);
    let read_only = "import errno\nh.set_strict_mode(0)\ntry:\n h.pwrite(b'x', 0)\n \
        assert False\nexcept nbd.Error as e:\n assert e.errnum == errno.EPERM, e\nh.pread(1, 0)";
    run(PYTHON, &["-m", "nbd", "-u", &host.uri("a@s"), "-c", read_only]);
}

/// Undoes mounts, also after a failure.
struct Mounted(String);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = start("umount", &["-l", &self.0]).stderr(Stdio::null()).status();
    }
}

#[test]
fn a_file_system_lives_on_a_volume() {
    let host = Host::new();
    host.store.create_volume("a", 64 * MIB as u64).unwrap();
    let (fuse, place) = (host.path("fuse"), host.path("place"));
    std::fs::create_dir(&fuse).unwrap();
    std::fs::create_dir(&place).unwrap();
    let _fuse = Mounted(fuse.clone());
    let _process = Process(start("nbdfuse", &[&fuse, &host.uri("a")]).spawn().expect("nbdfuse runs: see .ci/run for the packages"));
    let file = format!("{fuse}/nbd");
    until("the fuse mount", || Path::new(&file).exists());
    run("mkfs.ext4", &["-q", "-F", &file]);
    {
        let _mounted = Mounted(place.clone());
        run("mount", &["-o", "loop", &file, &place]);
        for number in 0..50 {
            std::fs::write(format!("{place}/{number}"), pattern(number, 10_000 * number as usize)).unwrap();
        }
        std::fs::remove_file(format!("{place}/7")).unwrap();
        run("umount", &[&place]);
    }
    run("e2fsck", &["-fn", &file]);
    host.store.volume("a").unwrap().fork("b").unwrap();
    let image = host.path("image");
    std::fs::write(&image, host.bytes("b")).unwrap();
    run("e2fsck", &["-fn", &image]);
}

#[test]
fn an_export_goes_into_a_file_that_keeps_its_size() {
    let host = Host::new();
    let noise = pattern(5, 3 * MIB);
    host.volume("a", &noise);
    let mut image = vec![0; 2 * MIB];
    image[MIB..MIB + 9000].copy_from_slice(&pattern(6, 9000));
    std::fs::write(host.path("image"), &image).unwrap();
    let fuse = host.path("fuse");
    std::fs::create_dir(&fuse).unwrap();
    let _fuse = Mounted(fuse.clone());
    let _process = Process(start("nbdfuse", &[&fuse, &host.uri("a")]).spawn().expect("nbdfuse runs: see .ci/run for the packages"));
    let file = format!("{fuse}/nbd");
    until("the fuse mount", || Path::new(&file).exists());
    let store = host.path("other");
    let volfork = |arguments: &[&str]| run(env!("CARGO_BIN_EXE_volfork"), &[&["--store", &store][..], arguments].concat());
    volfork(&["import", "v", &host.path("image")]);
    volfork(&["export", "v", &file]);
    let found = host.bytes("a");
    assert!(found[..image.len()] == image && found[image.len()..] == noise[image.len()..]);
}

fn fork_and_verify(host: &Host, uri: &str, name: &str, data: &[u8]) {
    let fork = host.store.fork(uri, name).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut part = vec![0; 100_000];
    for offset in [data.len() - part.len(), 12_345, data.len() / 2] {
        fork.read_at(&mut part, offset as u64).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(part == data[offset..offset + part.len()], "{name} at {offset}");
    }
    assert!(host.store.wait_hydrated(name, Duration::from_secs(60)).unwrap(), "{name}: {:?}", host.store.show(name).unwrap().hydration);
    assert!(host.bytes(name) == data, "{name}");
    let info = host.store.show(name).unwrap();
    assert_eq!((info.blocks.missing, info.source), (0, None), "{name}");
}

#[test]
fn every_server_is_a_source() {
    let host = Host::new();
    let mut data = pattern(6, 12 * MIB);
    data[2 * MIB..6 * MIB].fill(0);
    let image = host.path("image");
    std::fs::write(&image, &data).unwrap();
    host.volume("own", &data);
    fork_and_verify(&host, &host.uri("own"), "from-volfork", &data);
    let socket = host.path("qemu");
    let _qemu = Process(start("qemu-nbd", &["-r", "-t", "-e", "8", "-f", "raw", "-k", &socket, "-x", "x", &image]).spawn().unwrap());
    until("qemu-nbd's socket", || answers(&socket));
    fork_and_verify(&host, &format!("nbd+unix:///x?socket={socket}"), "from-qemu", &data);
    let filters: [(&str, &[&str], &[&str]); 6] = [
        ("plain", &[], &[]),
        ("noextents", &["--filter=noextents"], &[]),
        ("error", &["--filter=error"], &["error-pread-rate=5%"]),
        ("delay", &["--filter=delay"], &["rdelay=5ms"]),
        ("blocksize", &["--filter=blocksize-policy"], &["blocksize-minimum=4096", "blocksize-maximum=64K", "blocksize-error-policy=error"]),
        ("simple", &["--no-sr"], &[]),
    ];
    for (name, before, after) in filters {
        let socket = host.path(name);
        let mut arguments = vec!["-f", "-r", "-U", socket.as_str()];
        arguments.extend(before);
        arguments.extend(["file", image.as_str()]);
        arguments.extend(after);
        let _server = Process(start("nbdkit", &arguments).spawn().expect("nbdkit runs: see .ci/run for the packages"));
        until("nbdkit's socket", || answers(&socket));
        fork_and_verify(&host, &format!("nbd+unix:///?socket={socket}"), name, &data);
    }
}

#[test]
fn a_whole_block_server_is_refused_for_an_odd_size() {
    let host = Host::new();
    let (image, socket) = (host.path("image"), host.path("kit"));
    let more = ["--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-error-policy=error"];
    for bytes in [8 * MIB + 2048, 1_000_000] {
        std::fs::write(&image, pattern(9, bytes)).unwrap();
        let _server = nbdkit_file(&socket, &image, &more);
        let error = host.store.fork(&format!("nbd+unix:///?socket={socket}"), "crooked").expect_err("its end can never be read");
        assert_eq!(error.kind(), volfork::ErrorKind::InvalidInput);
        let text = error.to_string();
        assert!(text.contains(&format!("{bytes} bytes")) && text.contains("4096") && text.contains("make its size"), "{text}");
    }
    // A server that does not insist gives all of it.
    let data = pattern(9, 1_000_000);
    let _server = nbdkit_file(&socket, &image, &["--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-error-policy=allow"]);
    fork_and_verify(&host, &format!("nbd+unix:///?socket={socket}"), "lenient", &data);
}

fn nbdkit_file(socket: &str, image: &str, more: &[&str]) -> Process {
    let _ = std::fs::remove_file(socket);
    let mut arguments = vec!["-f", "-r", "-U", socket];
    arguments.extend(more.iter().filter(|argument| argument.starts_with('-')));
    arguments.extend(["file", image]);
    arguments.extend(more.iter().filter(|argument| !argument.starts_with('-')));
    let server = Process(start("nbdkit", &arguments).spawn().expect("nbdkit runs: see .ci/run for the packages"));
    until("nbdkit's socket", || answers(socket));
    server
}

#[test]
fn a_returned_source_is_used_again_and_a_changed_one_refused() {
    let host = Host::new();
    let data = pattern(8, 16 * MIB);
    let (image, socket) = (host.path("image"), host.path("kit"));
    std::fs::write(&image, &data).unwrap();
    let uri = format!("nbd+unix:///?socket={socket}");
    let state = |wanted: &str| {
        let info = host.store.show("a").unwrap();
        serde_json::to_value(info.state).unwrap() == wanted
    };
    let first = nbdkit_file(&socket, &image, &["--filter=delay", "rdelay=50ms"]);
    let fork = host.store.fork(&uri, "a").unwrap();
    fork.read_at(&mut [0; 4096], 0).unwrap();
    drop(first);
    until("degradation", || state("degraded"));
    fork.write_at(&[7; 4096], 9 * MIB as u64).and_then(|()| fork.flush()).unwrap();
    fork.read_at(&mut [0; 4096], 0).unwrap();
    // A source of another size is not the one that was forked.
    std::fs::write(host.path("other"), &data[..MIB]).unwrap();
    let other = nbdkit_file(&socket, &host.path("other"), &[]);
    until("refusal", || host.store.show("a").unwrap().hydration.last_error.is_some_and(|error| error.contains("bytes now")));
    assert!(!state("created"));
    drop(other);
    // A fork that was refused once is opened anew with the store.
    let _second = nbdkit_file(&socket, &image, &[]);
    host.store.control_hydration("a", &volfork::store::HydrationControl::default().with_paused(false)).unwrap();
    assert!(host.store.wait_hydrated("a", Duration::from_secs(60)).unwrap(), "{:?}", host.store.show("a").unwrap().hydration);
    let mut expected = data;
    expected[9 * MIB..9 * MIB + 4096].fill(7);
    assert!(host.bytes("a") == expected);
}

/// `volfork serve` as a process of its own.
struct Served {
    process: Process,
    store: PathBuf,
    socket: String,
}

impl Served {
    fn start(dir: &Path) -> Self {
        let (store, socket) = (dir.join("store"), dir.join("served.sock").display().to_string());
        let mut command = start(env!("CARGO_BIN_EXE_volfork"), &["--json", "serve", "--listen", &format!("unix:{socket}")]);
        let mut child = command.env("VOLFORK_STORE", &store).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert!(ready.contains("listening"), "{ready}");
        Self { process: Process(child), store, socket }
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket)
    }
}

#[test]
fn a_device_goes_on_after_its_server_restarts() {
    const WRITES: usize = 8;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path().join("store"), StoreOptions::default()).unwrap();
    store.create_volume("a", 4 * MIB as u64).and_then(|_| store.close()).unwrap();
    let mut served = Served::start(dir.path());
    let device = format!("driver=nbd,server.type=unix,server.path={},export=a,reconnect-delay=60", served.socket);
    // Without buffers it takes its commands one by one. They are under way when a server ends, which is halted before.
    let mut qemu = start("stdbuf", &["-i0", "-oL", "qemu-io", "--image-opts", &device]);
    let mut qemu = Process(qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("stdbuf runs"));
    let (mut commands, lines) = (qemu.0.stdin.take().unwrap(), BufReader::new(qemu.0.stdout.take().unwrap()).lines());
    let mut lines = lines.map_while(Result::ok).inspect(|line| assert!(!line.contains("failed"), "{line}"));
    let mut expected = Vec::new();
    for (seed, fault) in [(1, None), (2, Some(Signal::TERM)), (3, Some(Signal::KILL)), (4, None)] {
        let pid = Pid::from_child(&served.process.0);
        fault.map_or(Ok(()), |_| kill_process(pid, Signal::STOP)).unwrap();
        for number in 0..WRITES {
            writeln!(commands, "aio_write -P {seed} {} 64k", expected.len() + number * (64 << 10)).unwrap();
        }
        writeln!(commands, "aio_flush\nflush").unwrap();
        expected.resize(expected.len() + WRITES * (64 << 10), seed);
        if let Some(fault) = fault {
            kill_process(pid, fault).and_then(|()| kill_process(pid, Signal::CONT)).unwrap();
            served.process.0.wait().unwrap();
            served = Served::start(dir.path());
        }
        assert_eq!(lines.by_ref().filter(|line| line.contains("wrote")).take(WRITES).count(), WRITES);
    }
    drop(commands);
    lines.for_each(drop);
    assert!(qemu.0.wait().unwrap().success());
    drop(served);
    let store = Store::open(dir.path().join("store"), StoreOptions::default()).unwrap();
    let mut bytes = vec![0; expected.len()];
    store.volume("a").unwrap().read_at(&mut bytes, 0).unwrap();
    assert!(bytes == expected);
}

#[test]
fn a_killed_server_loses_nothing_that_was_flushed() {
    let rounds = std::env::var("VOLFORK_KILL_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5u64);
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    std::fs::write(&image, pattern(9, 48 * MIB)).unwrap();
    let kit = dir.path().join("kit").display().to_string();
    let _source = nbdkit_file(&kit, image.to_str().unwrap(), &["--filter=rate", "rate=200M"]);
    let store = Store::create(dir.path().join("store"), StoreOptions::default()).unwrap();
    store.create_volume("a", 64 * MIB as u64).and_then(|_| store.close()).unwrap();
    drop(store);
    let mut written = 0u64;
    for round in 0..rounds {
        let mut served = Served::start(dir.path());
        if round == 0 {
            let fork = ["fork", &format!("nbd+unix:///?socket={kit}"), "far"].map(str::to_owned);
            let status = Command::new(env!("CARGO_BIN_EXE_volfork")).env("VOLFORK_STORE", &served.store).args(fork).status().unwrap();
            assert!(status.success());
        }
        // Writes numbered blocks, flushes after each, and says which; it is read until the server is killed in the middle.
        let script = format!(
            "import struct\nn = {written}\nwhile True:\n \
             n += 1\n h.pwrite(struct.pack('<Q', n) * 512, n % 3000 * 4096)\n h.flush()\n print(n, flush=True)"
        );
        let mut writer = start(PYTHON, &["-m", "nbd", "-u", &served.uri("a"), "-c", &script]);
        let mut writer = Process(writer.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("python3 runs"));
        let mut lines = BufReader::new(writer.0.stdout.take().unwrap()).lines();
        for _ in 0..100 + round * 37 {
            written = lines.next().expect("the writer goes on").unwrap().parse().unwrap();
        }
        served.process.0.kill().unwrap();
        served.process.0.wait().unwrap();
        written = lines.map_while(Result::ok).filter_map(|line| line.parse().ok()).last().unwrap_or(written);
        drop(writer);
        let sources: Arc<UriSources> = Arc::default();
        let store = Store::open(dir.path().join("store"), StoreOptions::default().with_sources(sources)).unwrap();
        let volume = store.volume("a").unwrap();
        for number in written.saturating_sub(2990).max(1)..=written {
            let mut block = [0; 4096];
            volume.read_at(&mut block, number % 3000 * 4096).unwrap();
            let found = u64::from_le_bytes(block[..8].try_into().unwrap());
            // The writer may have been one further than it said.
            assert!(
                found == number || found == number + 3000 || number + 3000 > written + 1 && found >= number,
                "block of {number} holds {found}"
            );
        }
        if round + 1 == rounds {
            assert!(store.wait_hydrated("far", Duration::from_secs(60)).unwrap());
            let mut all = vec![0; 48 * MIB];
            store.volume("far").unwrap().read_at(&mut all, 0).unwrap();
            assert!(all == pattern(9, 48 * MIB));
        }
        assert_eq!(store.scrub(None).unwrap().errors, Vec::<String>::new());
        store.close().unwrap();
    }
}
