//! Leases: a fork of a live volume is one instant, and what forks need is not destroyed in silence.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use volfork::serve::{Export, Exports, Listener, NbdClients, NbdServer, NbdServerOptions};
use volfork::source::{LeaseAction, LeaseRequest, UriSources};
use volfork::volume::{ForkOptions, LeaseInfo, VolumeState};
use volfork::{Clock, ErrorKind, LeaseId, Store, StoreOptions};

use crate::hosts::serve;
use crate::stage::PATIENCE;
use crate::{pattern, paused, read, resumed};

pub const DAY: Duration = Duration::from_secs(86_400);
pub const BLOCK: usize = 4096;

/// A clock that a test moves.
#[derive(Default)]
pub struct Hand {
    pub monotonic: AtomicU64,
    pub unix: AtomicU64,
}

impl Hand {
    pub fn go_on(&self, time: Duration) {
        self.monotonic.fetch_add(time.as_secs(), Ordering::SeqCst);
        self.unix.fetch_add(time.as_secs(), Ordering::SeqCst);
    }
}

impl Clock for Hand {
    fn monotonic(&self) -> Duration {
        Duration::from_secs(1000 + self.monotonic.load(Ordering::SeqCst))
    }

    fn unix(&self) -> Duration {
        Duration::from_secs(1_000_000 + self.unix.load(Ordering::SeqCst))
    }
}

/// A store that can be opened again, and its server.
pub struct Host {
    pub store: Store,
    pub server: Option<NbdServer>,
    uri: String,
    pub clock: Arc<Hand>,
    pub dir: tempfile::TempDir,
}

impl Host {
    pub fn new() -> Self {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Arc::<Hand>::default());
        let store = Store::create(dir.path().join("store"), Self::options(&clock)).unwrap();
        let (server, uri) = serve(&store, dir.path());
        Self { store, server: Some(server), uri, clock, dir }
    }

    pub fn options(clock: &Arc<Hand>) -> StoreOptions {
        StoreOptions::default().with_sources(Arc::new(UriSources::default())).with_clock(Arc::clone(clock) as _)
    }

    pub fn stop(&mut self) {
        self.server.take().into_iter().for_each(NbdServer::shutdown);
        self.store.close().unwrap();
    }

    pub fn start(&mut self) {
        self.store = Store::open(self.dir.path().join("store"), Self::options(&self.clock)).unwrap();
        self.server = Some(serve(&self.store, self.dir.path()).0);
    }

    pub fn export(&self, name: &str) -> String {
        self.uri.replace("nbd+unix:///", &format!("nbd+unix:///{name}"))
    }

    fn clients(&self) -> NbdClients {
        self.server.as_ref().unwrap().clients()
    }

    pub fn leases(&self) -> Vec<LeaseInfo> {
        self.store.show("v").unwrap().leases
    }

    pub fn finish(&self, name: &str) {
        assert!(self.store.wait_hydrated(name, PATIENCE).unwrap(), "{:?}", self.store.show(name).unwrap());
    }

    /// A volume `v` with these bytes.
    pub fn fill(&self, data: &[u8]) {
        self.store.create_volume("v", data.len() as u64).unwrap().write_at(data, 0).unwrap();
    }

    pub fn await_snapshots(&self, expected: &[&str]) {
        until(|| self.store.snapshot_names("v").unwrap() == expected, || format!("{:?}", self.store.snapshots("v")));
    }

    /// A fork of which nothing more comes by itself.
    pub fn paused_fork(&self, uri: &str, name: &str) {
        self.store.fork(uri, name).unwrap();
        self.store.control_hydration(name, &paused()).unwrap();
    }
}

pub fn until(mut is_so: impl FnMut() -> bool, what: impl Fn() -> String) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{}", what());
        std::thread::yield_now();
    }
}

pub fn take(number: u8, fork: &str) -> LeaseRequest {
    LeaseRequest { action: LeaseAction::Take, id: LeaseId([number; 16]), fork: fork.into(), host: "far".into(), identity: String::new() }
}

#[test]
fn a_fork_of_a_live_volume_is_one_instant_and_its_snapshot_goes() {
    const BLOCKS: u64 = 1024;
    let (a, b) = (Host::new(), Host::new());
    a.fill(&[1; BLOCKS as usize * BLOCK]);
    // One writer overwrites block after block, so an instant is a number up to some block, and the one before behind it.
    let (rounds, stop) = (AtomicU64::new(1), AtomicBool::new(false));
    let writer = a.store.volume("v").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let round = rounds.load(Ordering::SeqCst) + 1;
                (0..BLOCKS).for_each(|block| writer.write_at(&[round as u8; BLOCK], block * BLOCK as u64).unwrap());
                rounds.store(round, Ordering::SeqCst);
            }
        });
        b.paused_fork(&a.export("v"), "f");
        let forked = rounds.load(Ordering::SeqCst);
        until(|| rounds.load(Ordering::SeqCst) > forked + 2, || "the writer stands still".into());
        b.store.control_hydration("f", &resumed()).unwrap();
        b.finish("f");
        stop.store(true, Ordering::SeqCst);
    });
    let bytes = read(&b.store.volume("f").unwrap(), 0, BLOCKS as usize * BLOCK).unwrap();
    let numbers: Vec<u8> = bytes.chunks(BLOCK).map(|block| block[0]).collect();
    assert!(bytes.chunks(BLOCK).all(|block| block.iter().all(|byte| *byte == block[0])));
    let (first, last) = (numbers[0], numbers[numbers.len() - 1]);
    assert!(numbers.is_sorted_by(|left, right| left >= right) && first - last <= 1, "{numbers:?}");
    a.await_snapshots(&[]);
    assert_eq!(a.leases(), []);
    let info = b.store.show("f").unwrap();
    assert!(!info.live_source && info.parent == Some(a.export("v")), "{info:?}");
}

#[test]
fn a_fork_of_a_live_volume_survives_the_restart_of_both_hosts() {
    let (mut a, mut b) = (Host::new(), Host::new());
    let data = pattern(1, 16 << 20);
    a.fill(&data);
    b.paused_fork(&a.export("v"), "f");
    a.store.volume("v").unwrap().write_at(&vec![9; 16 << 20], 0).unwrap();
    let leases = a.leases();
    assert_eq!((leases.len(), leases[0].fork.as_str()), (1, "f"));
    b.stop();
    a.stop();
    a.start();
    assert_eq!(a.leases(), leases);
    b.start();
    b.store.control_hydration("f", &resumed()).unwrap();
    b.finish("f");
    assert!(read(&b.store.volume("f").unwrap(), 0, data.len()).unwrap() == data);
    a.await_snapshots(&[]);
    b.stop();
    a.stop();
}

#[test]
fn a_lost_host_returns_its_leases_when_reopened() {
    let (mut a, mut b) = (Host::new(), Host::new());
    a.fill(&pattern(2, 8 << 20));
    b.paused_fork(&a.export("v"), "f");
    a.stop();
    b.store.destroy_volume("f", false).unwrap();
    b.stop();
    // One that has the store open for a moment does not wait for a host that may be gone.
    let socket = a.dir.path().join("nbd.sock");
    let silent = UnixListener::bind(&socket).unwrap();
    silent.set_nonblocking(true).unwrap();
    let options = Host::options(&b.clock).with_threads(false);
    Store::open(b.dir.path().join("store"), options).unwrap().close().unwrap();
    assert_eq!(silent.accept().map(drop).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    drop(silent);
    std::fs::remove_file(socket).unwrap();
    a.start();
    assert_eq!(a.leases().len(), 1);
    b.start();
    a.await_snapshots(&[]);
    assert_eq!(a.leases(), []);
}

#[test]
fn a_snapshot_that_forks_need_is_destroyed_by_force_alone() {
    let (mut a, b) = (Host::new(), Host::new());
    let data = pattern(3, 16 << 20);
    a.fill(&data);
    a.store.create_snapshot("v", "s").unwrap();
    a.store.volume("v").unwrap().write_at(&[7; BLOCK], 0).unwrap();
    b.paused_fork(&a.export("v@s"), "f");
    // Nobody is connected after a restart: only the lease tells.
    a.stop();
    a.start();
    let address = a.leases()[0].address.clone();
    assert!(address.starts_with("process "), "{address}");
    for refused in [a.store.destroy_snapshot("v", "s"), a.store.destroy_volume("v", true)] {
        let error = refused.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Busy, "{text}");
        assert!(text.contains("1 fork of other hosts: 'f' of host ") && text.contains(&address) && text.contains("by force"), "{text}");
    }
    // The fork is connected while its snapshot goes.
    let fork = b.store.volume("f").unwrap();
    let missing = b.store.show("f").unwrap().hydration.bytes_missing;
    assert!(missing > 0);
    until(|| !a.clients().list().is_empty() || read(&fork, 12 << 20, BLOCK).is_err(), || "nobody connects".into());
    let clients = a.clients();
    let end = |exports: &[String]| exports.iter().try_for_each(|export| clients.disconnect(export, PATIENCE).map(drop));
    a.store.destroy_by_force(("v", Some("s")), false, end).unwrap();
    assert_eq!((a.leases(), a.store.snapshot_names("v").unwrap()), (vec![], vec![]));
    b.store.control_hydration("f", &resumed()).unwrap();
    until(|| b.store.show("f").unwrap().state == VolumeState::Degraded, || format!("{:?}", b.store.show("f")));
    // A volume, and an instant of it.
    b.paused_fork(&a.export("v"), "g");
    let error = a.store.destroy_volume("v", false).unwrap_err();
    assert!(error.kind() == ErrorKind::Busy && error.to_string().contains("'g' of host"), "{error}");
    a.store.destroy_by_force(("v", None), false, end).unwrap();
    assert_eq!(a.store.volume_names(), Vec::<String>::new());
}

#[test]
fn a_lease_lapses_by_silence_and_never_right_after_open() {
    let (mut a, mut b) = (Host::new(), Host::new());
    a.fill(&pattern(4, 8 << 20));
    b.paused_fork(&a.export("v"), "f");
    b.stop();
    // The clock was set, or the store was closed for long.
    a.stop();
    a.clock.unix.fetch_add(8 * DAY.as_secs(), Ordering::SeqCst);
    a.start();
    a.clock.go_on(Duration::from_secs(1800));
    let cleaned = Instant::now();
    while cleaned.elapsed() < Duration::from_secs(1) {
        assert_eq!(a.leases().len(), 1, "nobody could renew it");
        a.clock.go_on(Duration::from_secs(1));
        std::thread::sleep(Duration::from_millis(100));
    }
    a.clock.go_on(Duration::from_secs(3600));
    a.await_snapshots(&[]);
    // The fork learns of it when it requests a destroyed block.
    b.start();
    b.store.control_hydration("f", &resumed()).unwrap();
    until(|| b.store.show("f").unwrap().state == VolumeState::Degraded, || format!("{:?}", b.store.show("f")));
}

#[test]
fn a_date_that_is_set_ends_no_lease() {
    let (a, mut b) = (Host::new(), Host::new());
    a.fill(&pattern(9, 1 << 20));
    b.paused_fork(&a.export("v"), "f");
    let lease = LeaseRequest { action: LeaseAction::Take, ..take(1, "g") };
    a.store.lease(("v", None), &lease, "here").unwrap();
    b.stop();
    a.clock.go_on(Duration::from_secs(7200));
    a.clock.unix.fetch_add(8 * DAY.as_secs(), Ordering::SeqCst);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        a.clock.go_on(Duration::from_secs(6));
        assert!(a.leases().iter().any(|lease| lease.fork == "g"));
        std::thread::sleep(Duration::from_millis(100));
    }
    a.clock.go_on(7 * DAY);
    a.await_snapshots(&[]);
}

#[test]
fn a_paused_fork_renews_its_lease_without_a_connection() {
    let (a, b) = (Host::new(), Host::new());
    let data = pattern(5, 8 << 20);
    a.fill(&data);
    b.paused_fork(&a.export("v"), "f");
    for day in (3..30).step_by(3) {
        let before = a.leases()[0].renewed_at;
        // Connections that nobody uses are closed.
        b.clock.go_on(Duration::from_secs(60));
        until(|| a.clients().list().is_empty(), || format!("{:?}", a.clients().list()));
        a.clock.go_on(3 * DAY);
        b.clock.go_on(3 * DAY);
        until(|| a.leases()[0].renewed_at > before, || format!("day {day}: {:?}", a.leases()));
    }
    b.store.control_hydration("f", &resumed()).unwrap();
    b.finish("f");
    assert!(read(&b.store.volume("f").unwrap(), 0, data.len()).unwrap() == data);
    a.await_snapshots(&[]);
}

#[test]
fn forks_that_share_a_root_share_its_lease() {
    let (a, b) = (Host::new(), Host::new());
    let data = pattern(6, 8 << 20);
    a.fill(&data);
    // Nothing was written between them, so both are of one instant.
    b.paused_fork(&a.export("v"), "f");
    b.paused_fork(&a.export("v"), "g");
    until(|| a.leases().len() == 1, || format!("{:?}", a.leases()));
    assert_eq!(a.store.snapshot_names("v").unwrap().len(), 1);
    b.store.destroy_volume("f", false).unwrap();
    b.store.control_hydration("g", &paused()).unwrap();
    assert_eq!(a.leases().len(), 1, "the other one needs it");
    b.store.control_hydration("g", &resumed()).unwrap();
    b.finish("g");
    assert!(read(&b.store.volume("g").unwrap(), 0, data.len()).unwrap() == data);
    a.await_snapshots(&[]);
    // What was written since is another instant.
    b.paused_fork(&a.export("v"), "h");
    a.store.volume("v").unwrap().write_at(&[1; BLOCK], 0).unwrap();
    b.paused_fork(&a.export("v"), "i");
    assert_eq!(a.store.snapshot_names("v").unwrap().len(), 2);
}

/// A server that knows no leases, as those of others.
struct Foreign(Store);

impl Exports for Foreign {
    fn open(&self, name: &str) -> volfork::Result<Export> {
        Exports::open(&self.0, name)
    }

    fn names(&self) -> Vec<String> {
        Exports::names(&self.0)
    }
}

#[test]
fn a_written_export_without_snapshots_is_forked_by_name() {
    let (a, mut b) = (Host::new(), Host::new());
    let data = pattern(7, 1 << 20);
    a.fill(&data);
    a.store.create_snapshot("v", "s").unwrap();
    let listener = Listener::parse(&format!("unix:{}", a.dir.path().join("foreign.sock").display())).unwrap();
    let uri = |name: &str| a.export(name).replace("nbd.sock", "foreign.sock");
    let _server = NbdServer::start(Arc::new(Foreign(a.store.clone())), vec![listener], NbdServerOptions::default()).unwrap();
    let error = b.store.fork(&uri("v"), "f").map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("different instants") && error.to_string().contains("accept that"), "{error}");
    b.store.fork(&uri("v@s"), "read-only").unwrap();
    let live = ForkOptions::default().with_live(true);
    b.store.fork_with(&[uri("v")], "f", &live).unwrap();
    // `live` makes no difference if the source gives leases.
    b.store.fork_with(&[a.export("v")], "leased", &live).unwrap();
    ["f", "read-only", "leased"].iter().for_each(|name| b.finish(name));
    b.stop();
    b.start();
    for (name, live) in [("f", true), ("read-only", false), ("leased", false)] {
        assert_eq!(b.store.show(name).unwrap().live_source, live, "{name}");
        assert!(read(&b.store.volume(name).unwrap(), 0, data.len()).unwrap() == data);
    }
    assert_eq!(a.leases(), []);
}

#[test]
fn leases_and_what_they_hold_are_bounded() {
    let (a, b) = (Host::new(), Host::new());
    a.fill(&[1; 2 * BLOCK]);
    let volume = a.store.volume("v").unwrap();
    for number in 0..64 {
        volume.write_at(&[number; BLOCK], 0).unwrap();
        let grant = a.store.lease(("v", None), &take(number, "f"), "here").unwrap().unwrap();
        assert_eq!(a.store.lease(("v", None), &take(number, "f"), "here").unwrap().unwrap(), grant, "to ask again changes nothing");
    }
    // The same instant has room, another one has not.
    a.store.lease(("v", None), &take(64, "f"), "here").unwrap();
    volume.write_at(&[0; BLOCK], 0).unwrap();
    let error = b.store.fork(&a.export("v"), "f").map(drop).unwrap_err();
    assert!(error.to_string().contains("volume 'v' has 64 snapshots for forks of other hosts already"), "{error}");
    let hold = LeaseRequest { action: LeaseAction::Hold, ..take(65, "f") };
    assert_eq!(a.store.lease(("v", None), &hold, "here").unwrap_err().kind(), ErrorKind::Unsupported);
    let release = LeaseRequest { action: LeaseAction::Release, ..take(0, "f") };
    assert_eq!(a.store.lease(("v", None), &release, "here").unwrap(), None);
    b.store.fork(&a.export("v"), "f").unwrap();
    b.finish("f");
    until(|| a.leases().len() == 64, || format!("{} leases", a.leases().len()));
    // Leases of one snapshot, by many at once.
    volume.create_snapshot("s").unwrap();
    let given = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..32u64 {
            let (store, given) = (&a.store, &given);
            scope.spawn(move || {
                for number in 0..130u64 {
                    let mut request = take(0, "f");
                    request.id.0[..8].copy_from_slice(&(1 + thread * 1000 + number).to_le_bytes());
                    given.fetch_add(u64::from(store.lease(("v", Some("s")), &request, "here").is_ok()), Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(given.load(Ordering::SeqCst) as usize + 64, 4096);
    assert_eq!(a.leases().len(), 4096);
    let error = b.store.fork(&a.export("v@s"), "g").map(drop).unwrap_err();
    assert!(error.to_string().contains("4096 leases of this store already"), "{error}");
}

/// Whether the superblock in force says that there may be leases, which keeps older programs from the store.
fn says_leases(host: &Host) -> bool {
    let slots = std::fs::read(host.dir.path().join("store/superblock")).unwrap();
    let generation = |slot: &&[u8]| u64::from_le_bytes(slot[16..24].try_into().unwrap());
    slots.chunks(4096).max_by_key(generation).unwrap()[48] & 2 != 0
}

#[test]
fn a_store_says_that_it_has_leases_from_the_first_to_the_last() {
    let (mut a, mut b) = (Host::new(), Host::new());
    a.fill(&pattern(8, 8 << 20));
    a.store.create_snapshot("v", "s").unwrap();
    assert!(!says_leases(&a) && !says_leases(&b));
    b.paused_fork(&a.export("v@s"), "f");
    assert!(says_leases(&a) && says_leases(&b));
    [&mut a, &mut b].into_iter().for_each(|host| {
        host.stop();
        host.start();
        assert!(says_leases(host));
    });
    b.store.control_hydration("f", &resumed()).unwrap();
    b.finish("f");
    until(|| a.leases().is_empty(), || format!("{:?}", a.leases()));
    [&mut b, &mut a].into_iter().for_each(|host| {
        host.stop();
        host.start();
        assert!(!says_leases(host), "older programs can read it again");
    });
}

#[test]
fn a_server_that_answers_nonsense_costs_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let uri = format!("nbd+unix:///v?socket={}", dir.path().join("s").display());
    let answers: [&[u8]; 4] = [b"", b"\0\0\0\0\0\0\0\0\0\0\0\x01v", b"\0\0\0\0\0\0\0\x09\0\0\0\0", b"\0\0\0\0\0\0\0\x09\xff\xff\xff\xff"];
    let rude = std::thread::spawn(move || {
        let mut answers = answers.into_iter().peekable();
        while answers.peek().is_some() {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").unwrap();
            let mut header = [0; 20];
            stream.read_exact(&mut header).unwrap();
            let length = u32::from_be_bytes(header[16..].try_into().unwrap()) as usize;
            let mut request = vec![0; length];
            stream.read_exact(&mut request).unwrap();
            // What it may have given is given back, on connections of their own.
            let is_release = LeaseRequest::decode(&request).unwrap().1.action == LeaseAction::Release;
            let Some(data) = (if is_release { None } else { answers.next() }) else { continue };
            let option = &header[12..16];
            let reply = |kind: [u8; 4], data: &[u8]| {
                [b"\0\x03\xe8\x89\x04\x55\x65\xa9", option, &kind, &(data.len() as u32).to_be_bytes(), data].concat()
            };
            let kind: [u8; 4] = option.try_into().unwrap();
            // The client may have left in disgust.
            let _ = stream.write_all(&[reply(kind, data), reply([0, 0, 0, 1], b"")].concat());
        }
    });
    let b = Host::new();
    for _ in answers {
        let error = b.store.fork(&uri, "f").map(drop).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("does not speak NBD"), "{error}");
    }
    rude.join().unwrap();
    assert_eq!(b.store.volume_names(), Vec::<String>::new());
}
