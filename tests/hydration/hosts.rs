//! Stores that serve each other over NBD.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use volfork::serve::{Listener, NbdServer, NbdServerOptions};
use volfork::source::{Arrival, NbdOptions, NbdSource, OnArrival, ReadClass, Source, SourceExt, SourceOpener, UriSources};
use volfork::store::HydrationControl;
use volfork::wire::constants::{CMD_CACHE, CMD_READ, CMD_WRITE, OPT_EXPORT_NAME};
use volfork::wire::{HeaderMode, OptionRequest, ReplyHeader, Request};
use volfork::{ErrorKind, Store, StoreOptions};

use crate::stage::{Actor, PATIENCE, Play, Stage};
use crate::{pattern, read};

/// A request of a plain client for one block.
fn request(command: u16, cookie: u64, offset: u64) -> Vec<u8> {
    Request { flags: 0, command, cookie, offset, length: 4096 }.encode(false)
}

/// A store and its server.
struct Host {
    store: Store,
    server: Option<NbdServer>,
    uri: String,
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self::with(Arc::new(UriSources::default()))
    }

    fn with(sources: Arc<dyn SourceOpener>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions::default().with_sources(sources);
        let store = Store::create(dir.path().join("store"), options).unwrap();
        let (server, uri) = serve(&store, dir.path());
        Self { store, server: Some(server), uri, dir }
    }

    fn export(&self, name: &str) -> String {
        self.uri.replace("nbd+unix:///", &format!("nbd+unix:///{name}"))
    }

    /// A client without options.
    fn plain_client(&self, export: &str) -> UnixStream {
        let mut client = UnixStream::connect(self.dir.path().join("nbd.sock")).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.read_exact(&mut [0; 18]).unwrap();
        client.write_all(&[&3u32.to_be_bytes()[..], &OptionRequest::encode(OPT_EXPORT_NAME, export.as_bytes())].concat()).unwrap();
        client.read_exact(&mut [0; 10]).unwrap();
        client
    }

    fn stop(&mut self) {
        self.server.take().into_iter().for_each(NbdServer::shutdown);
    }

    /// A volume with a snapshot `s`; answers its bytes.
    fn fill(&self, name: &str, seed: u64, bytes: usize) -> Vec<u8> {
        let data = pattern(seed, bytes);
        let volume = self.store.create_volume(name, bytes as u64).unwrap();
        volume.write_at(&data, 0).unwrap();
        volume.create_snapshot("s").unwrap();
        data
    }

    fn finish(&self, name: &str) {
        assert!(self.store.wait_hydrated(name, PATIENCE).unwrap(), "{:?}", self.store.show(name).unwrap());
    }
}

pub fn serve(store: &Store, dir: &Path) -> (NbdServer, String) {
    let listener = Listener::parse(&format!("unix:{}", dir.join("nbd.sock").display())).unwrap();
    let uri = listener.uri();
    (NbdServer::start(Arc::new(store.clone()), vec![listener], NbdServerOptions::default()).unwrap(), uri)
}

/// Bytes fetched by the hydration of a volume that is still running, or was.
fn fetched(host: &Host, name: &str) -> u64 {
    host.store.show(name).unwrap().hydration.bytes_fetched
}

#[test]
fn checksums_travel_and_blocks_damaged_at_the_source_fail() {
    let (mut a, b) = (Host::new(), Host::new());
    let data = a.fill("v", 1, (4 << 20) + 1000);
    let snapshot = a.store.snapshot("v", "s").unwrap();
    let checksums = snapshot.checksums(0..snapshot.size_bytes()).unwrap();
    assert_eq!(checksums.len(), 1025);
    for (block, checksum) in data.chunks(4096).zip(&checksums) {
        let mut whole = block.to_vec();
        whole.resize(4096, 0);
        assert_eq!(*checksum, Some(crc32fast::hash(&whole)));
    }
    let fork = b.store.fork(&a.export("v@s"), "f").unwrap();
    b.finish("f");
    assert!(read(&fork, 0, data.len()).unwrap() == data);
    a.stop();
}

#[test]
fn a_chain_of_hosts_knows_that_its_bytes_are_the_same() {
    let (mut a, mut b, c) = (Host::new(), Host::new(), Host::new());
    let data = a.fill("v", 2, 24 << 20);
    b.store.fork(&a.export("v@s"), "f").unwrap();
    b.store.create_snapshot("f", "s").unwrap();
    let identity = a.store.snapshot("v", "s").unwrap().identity();
    assert_eq!(b.store.snapshot("f", "s").unwrap().identity(), identity, "the same bytes, elsewhere");
    // A fork of a fork that still hydrates: what is missing there is fetched there first, once.
    let fork = c.store.fork(&[b.export("f@s"), a.export("v@s")], "g").unwrap();
    assert!(read(&fork, 20 << 20, 4096).unwrap() == data[20 << 20..(20 << 20) + 4096]);
    c.finish("g");
    b.finish("f");
    assert!(read(&fork, 0, data.len()).unwrap() == data);
    assert_eq!(c.store.show("g").unwrap().hydration.bytes_missing, 0);
    // The origin is gone; the other host has all of it.
    a.stop();
    let d = Host::new();
    let fork = d.store.fork(&[a.export("v@s"), b.export("f@s")], "h").unwrap();
    d.finish("h");
    assert!(read(&fork, 0, data.len()).unwrap() == data);
    // What was written above is another snapshot.
    b.store.volume("f").unwrap().write_at(&[1; 4096], 0).unwrap();
    b.store.create_snapshot("f", "t").unwrap();
    assert_ne!(b.store.snapshot("f", "t").unwrap().identity(), identity);
    b.stop();
    drop(c.dir);
}

#[test]
fn a_source_that_returns_with_another_snapshot_is_refused() {
    let (mut a, b) = (Host::new(), Host::new());
    let data = a.fill("v", 3, 8 << 20);
    b.store.fork(&a.export("v@s"), "f").unwrap();
    let paused = volfork::store::HydrationControl::default().with_paused(true);
    b.store.control_hydration("f", &paused).unwrap();
    a.stop();
    // Another snapshot under the same name.
    a.store.destroy_by_force(("v", Some("s")), false, |_| Ok(())).unwrap();
    a.store.volume("v").unwrap().write_at(&[1; 4096], 4096).unwrap();
    a.store.create_snapshot("v", "s").unwrap();
    let (server, _) = serve(&a.store, a.dir.path());
    let fork = b.store.volume("f").unwrap();
    let had = fetched(&b, "f");
    if had < 8 << 20 {
        let missing = (0..data.len() as u64 / 4096).rev().map(|block| block * 4096);
        let refused = missing.map(|offset| read(&fork, offset, 4096)).find_map(Result::err).expect("a missing block cannot be had");
        assert!(refused.to_string().contains("another one now"), "{refused}");
        assert_eq!(a.store.show("v").unwrap().leases, [], "what it does not need is not kept for it");
    }
    server.shutdown();
}

#[test]
fn a_sparse_snapshot_costs_what_it_holds() {
    let (mut a, b) = (Host::new(), Host::new());
    let volume = a.store.create_volume("v", 4 << 40).unwrap();
    for place in [0, 1 << 30, 3 << 40] {
        volume.write_at(&pattern(4, 1 << 20), place).unwrap();
    }
    volume.create_snapshot("s").unwrap();
    let fork = b.store.fork(&a.export("v@s"), "f").unwrap();
    b.finish("f");
    let info = b.store.show("f").unwrap();
    assert_eq!((info.blocks.present, info.blocks.missing), (3 * 256, 0));
    assert!(read(&fork, 3 << 40, 1 << 20).unwrap() == pattern(4, 1 << 20));
    a.stop();
}

#[test]
fn the_order_of_first_touches_travels_with_the_snapshot() {
    let (mut a, b) = (Host::new(), Host::new());
    a.fill("v", 5, 16 << 20);
    drop(a.store.fork("v@s", "recorded").unwrap());
    // As a server does for its clients: the fork is opened anew.
    let local = a.store.volume("recorded").unwrap();
    for place in [9u64, 2, 13, 4] {
        read(&local, place << 20, 4096).unwrap();
    }
    // The recording is written when the store closes.
    a.stop();
    drop(local);
    a.store.close().unwrap();
    let options = StoreOptions::default().with_sources(Arc::new(UriSources::default()));
    a.store = Store::open(a.dir.path().join("store"), options).unwrap();
    let places: Vec<u64> = a.store.snapshot("v", "s").unwrap().trace().iter().map(|run| run.start >> 20).collect();
    assert_eq!(places, [9, 2, 13, 4]);
    let (server, uri) = serve(&a.store, a.dir.path());
    a.uri = uri;
    let rate = volfork::store::HydrationControl::default().with_rate_bytes_per_second(1);
    b.store.fork(&a.export("v@s"), "f").unwrap();
    b.store.control_hydration("f", &rate).unwrap();
    b.store.control_hydration("f", &volfork::store::HydrationControl::default().with_rate_bytes_per_second(0)).unwrap();
    b.store.create_snapshot("f", "s").unwrap();
    b.finish("f");
    let travelled: Vec<u64> = b.store.snapshot("f", "s").unwrap().trace().iter().map(|run| run.start >> 20).collect();
    assert_eq!(travelled, [9, 2, 13, 4], "it goes on from host to host");
    server.shutdown();
}

#[test]
fn a_server_that_never_answers_is_given_up_and_readers_are_told() {
    let stage = Stage::default();
    let actor = stage.add(Actor::new("a://", &pattern(20, 1 << 20)));
    actor.play(|_, _| Play::Hang);
    let mut a = Host::with(Arc::new(stage));
    a.store.fork("a://", "v").unwrap();
    // The server of `a` takes requests, and connections again and again, but has nothing to answer.
    let nbd = NbdOptions::default().with_request_timeout(std::time::Duration::from_millis(100));
    let b = Host::with(Arc::new(UriSources { nbd }));
    let fork = b.store.fork(&a.export("v"), "f").unwrap();
    let error = read(&fork, 4096, 4096).unwrap_err();
    assert!(error.kind() == ErrorKind::SourceLost && error.to_string().contains("does not answer"), "{error}");
    actor.play(|_, _| Play::Answer);
    actor.release();
    b.finish("f");
    assert!(read(&fork, 0, 1 << 20).unwrap() == pattern(20, 1 << 20));
    a.stop();
}

#[test]
fn many_readers_of_a_silent_server_wait_as_long_as_one() {
    const READERS: usize = 300;
    let stage = Stage::default();
    let actor = stage.add(Actor::new("a://", &pattern(23, 4 << 20)));
    actor.play(|_, _| Play::Hang);
    let mut a = Host::with(Arc::new(stage));
    a.store.fork("a://", "v").unwrap();
    let nbd = NbdOptions::default().with_request_timeout(std::time::Duration::from_millis(600)).with_connections(1);
    let b = Host::with(Arc::new(UriSources { nbd }));
    let fork = b.store.fork(&a.export("v"), "f").unwrap();
    let paused = volfork::store::HydrationControl::default().with_paused(true);
    b.store.control_hydration("f", &paused).unwrap();
    // More than there can be under way on the connections.
    let readers: Vec<_> = (0..READERS as u64)
        .map(|number| {
            let fork = fork.clone();
            std::thread::spawn(move || read(&fork, (2 << 20) + number * 4096, 4096).unwrap_err().kind())
        })
        .collect();
    readers.into_iter().for_each(|reader| assert_eq!(reader.join().unwrap(), ErrorKind::SourceLost));
    actor.play(|_, _| Play::Answer);
    actor.release();
    a.stop();
}

#[test]
fn a_server_stops_while_its_readers_wait_for_a_hung_source() {
    let stage = Stage::default();
    let actor = stage.add(Actor::new("a://", &pattern(24, 4 << 20)));
    actor.play(|_, _| Play::Hang);
    let a = Host::with(Arc::new(stage));
    a.store.fork("a://", "v").unwrap();
    let listener = Listener::parse(&format!("unix:{}", a.dir.path().join("other.sock").display())).unwrap();
    let uri = listener.uri().replace("nbd+unix:///", "nbd+unix:///v");
    let options = NbdServerOptions::default().with_shutdown_timeout(std::time::Duration::from_millis(50));
    let server = NbdServer::start(Arc::new(a.store.clone()), vec![listener], options).unwrap();
    let b = Host::new();
    b.store.fork(&uri, "f").unwrap();
    while a.store.show("v").unwrap().hydration.readers_waiting == 0 {
        std::thread::yield_now();
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        server.shutdown();
        sender.send(()).unwrap();
    });
    receiver.recv_timeout(PATIENCE).expect("the server waits for a source that does not answer");
    // The store goes on.
    actor.play(|_, _| Play::Answer);
    actor.release();
    a.finish("v");
    b.store.close().unwrap();
}

/// What it has sent is carried out, but nobody takes what it wanted to read.
#[test]
fn reads_of_a_hung_source_do_not_keep_a_departed_client() {
    let stage = Stage::default();
    let actor = stage.add(Actor::new("a://", &pattern(26, 4 << 20)));
    actor.play(|_, _| Play::Hang);
    let a = Host::with(Arc::new(stage));
    let volume = a.store.fork("a://", "v").unwrap();
    let mut client = a.plain_client("v");
    let reads = (0..3).flat_map(|number| request(CMD_READ, number, (2 << 20) + number * 8192));
    let write = request(CMD_WRITE, 3, 4096).into_iter().chain([7; 4096]);
    client.write_all(&reads.chain(write).collect::<Vec<_>>()).unwrap();
    while a.store.show("v").unwrap().hydration.readers_waiting < 3 {
        std::thread::yield_now();
    }
    // With a reply that it has not taken its end would be an error of the socket.
    client.read_exact(&mut [0; 16]).unwrap();
    drop(client);
    let until = Instant::now() + PATIENCE;
    while a.server.as_ref().unwrap().connections() > 0 {
        assert!(Instant::now() < until, "the connection waits for the source");
        std::thread::yield_now();
    }
    assert!(read(&volume, 4096, 4096).unwrap() == [7; 4096]);
    actor.play(|_, _| Play::Answer);
    actor.release();
    a.finish("v");
}

#[test]
fn hints_about_unavailable_blocks_block_no_client() {
    let stage = Stage::default();
    let actor = stage.add(Actor::new("a://", &pattern(25, 4 << 20)));
    actor.play(|_, _| Play::Hang);
    let a = Host::with(Arc::new(stage));
    a.store.fork("a://", "v").unwrap().write_at(&[9; 4096], 0).unwrap();
    let mut client = a.plain_client("v");
    // More requests than may be under way.
    let hints = (1..=300).flat_map(|number| request(CMD_CACHE, number, number * 8192));
    client.write_all(&hints.chain(request(CMD_READ, 0, 0)).collect::<Vec<_>>()).unwrap();
    let mut reply = [0; 16];
    while ReplyHeader::decode(&reply, HeaderMode::Simple) != Ok(ReplyHeader::Simple { error: 0, cookie: 0 }) {
        client.read_exact(&mut reply).expect("the read is not served");
    }
    let mut bytes = [0; 4096];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [9; 4096]);
    actor.play(|_, _| Play::Answer);
    actor.release();
    a.finish("v");
}

#[test]
fn a_near_source_gets_more_connections_when_busy() {
    let a = Host::new();
    let data = a.fill("v", 71, 8 << 20);
    let server = a.server.as_ref().unwrap();
    let until = Instant::now() + PATIENCE;
    // A busy machine makes a source look far at its first round trip, too.
    let source = loop {
        let source = UriSources::default().open(&a.export("v@s")).unwrap();
        if source.stats().round_trip.is_some_and(|time| time < Duration::from_millis(5)) {
            break source;
        }
        source.close();
        while server.connections() > 0 {
            assert!(Instant::now() < until, "the connections of a closed source stay");
            std::thread::yield_now();
        }
    };
    for block in 0..50u64 {
        let range = block * 4096..(block + 1) * 4096;
        assert!(source.read_blocking(range.clone()).unwrap() == data[range.start as usize..range.end as usize]);
        assert_eq!(server.connections(), 1, "a reader that waits shares the machine with handshakes");
    }
    let until = Instant::now() + PATIENCE;
    while server.connections() <= NbdOptions::default().connections {
        assert!(Instant::now() < until, "bulk has {} connections", server.connections());
        // Each read measures how near the source is, which a busy machine makes look far.
        let (sender, receiver) = std::sync::mpsc::channel();
        let ended = move |arrival| sender.send(matches!(arrival, Arrival::End(Ok(())))).expect("the test waits");
        source.read(0..1 << 20, ReadClass::Ahead, OnArrival::new(ended));
        while !receiver.recv_timeout(PATIENCE).expect("the read ends") {}
    }
    source.close();
}

#[test]
fn closing_a_connecting_source_leaves_no_connection() {
    let host = Host::new();
    host.fill("v", 61, 1 << 20);
    for round in 0..200 {
        let source = NbdSource::open(&host.export("v@s"), NbdOptions::default()).unwrap();
        // Further connections are made for bulk meanwhile, in any order with this.
        source.read(0..4096, ReadClass::Ahead, OnArrival::new(drop));
        (0..round).for_each(|_| std::thread::yield_now());
        source.close();
    }
    let until = Instant::now() + PATIENCE;
    while host.server.as_ref().unwrap().connections() > 0 {
        assert!(Instant::now() < until, "{} connections stay", host.server.as_ref().unwrap().connections());
        std::thread::yield_now();
    }
}

/// A host that has the snapshot open is waited for; one that comes later is told that it is gone. Nobody gets zeros.
#[test]
fn a_snapshot_that_another_host_forks_is_not_destroyed_under_it() {
    let (mut a, b) = (Host::new(), Host::new());
    let data = a.fill("v", 9, 16 << 20);
    let paused = HydrationControl::default().with_paused(true);
    for name in ["f", "g"] {
        b.store.fork(&a.export("v@s"), name).unwrap();
        b.store.control_hydration(name, &paused).unwrap();
    }
    let fork = b.store.volume("f").unwrap();
    assert!(read(&fork, 12 << 20, 4096).unwrap() == data[12 << 20..][..4096]);
    a.store.volume("v").unwrap().write_at(&vec![9; 16 << 20], 0).unwrap();
    a.store.volume("v").unwrap().flush().unwrap();
    for refused in [a.store.destroy_snapshot("v", "s"), a.store.destroy_volume("v", true)] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Busy);
    }
    assert!(read(&fork, 8 << 20, 4096).unwrap() == data[8 << 20..][..4096]);
    // Nobody is connected any more; what comes then finds no snapshot.
    a.stop();
    assert_eq!(a.store.destroy_snapshot("v", "s").unwrap_err().kind(), ErrorKind::Busy, "both forks need it still");
    a.store.destroy_by_force(("v", Some("s")), false, |_| Ok(())).unwrap();
    let (server, _) = serve(&a.store, a.dir.path());
    let resumed = HydrationControl::default().with_paused(false);
    b.store.control_hydration("f", &resumed).unwrap();
    let mut lost = 0;
    for block in (0..data.len() as u64).step_by(4096) {
        match read(&fork, block, 4096) {
            Ok(bytes) => assert!(bytes == data[block as usize..][..4096], "block at {block}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::SourceLost, "{error}");
                lost += 1;
                break;
            }
        }
    }
    assert!(lost > 0 || fetched(&b, "f") >= 16 << 20, "what is missing cannot be had");
    b.store.close().unwrap();
    server.shutdown();
}

#[test]
fn a_store_without_sources_says_that_blocks_are_missing() {
    let (mut a, b) = (Host::new(), Host::new());
    a.fill("v", 10, 8 << 20);
    b.store.fork(&a.export("v@s"), "f").unwrap();
    b.store.control_hydration("f", &HydrationControl::default().with_paused(true)).unwrap();
    b.store.close().unwrap();
    a.stop();
    let store = Store::open(b.dir.path().join("store"), StoreOptions::default()).unwrap();
    if store.show("f").unwrap().hydration.bytes_missing == 0 {
        // It was quicker than the pause.
        return;
    }
    let unsupported = |result: volfork::Result<()>| assert_eq!(result.unwrap_err().kind(), ErrorKind::Unsupported);
    unsupported(store.wait_hydrated("f", PATIENCE).map(drop));
    unsupported(store.control_hydration("f", &HydrationControl::default().with_paused(false)).map(drop));
    let more = HydrationControl::default().with_add_sources(vec![a.export("v@s")]);
    unsupported(store.control_hydration("f", &more).map(drop));
    let fork = store.volume("f").unwrap();
    let lost = (0..8 << 20).step_by(4096).find_map(|offset| read(&fork, offset, 4096).err()).unwrap();
    assert_eq!(lost.kind(), ErrorKind::SourceLost);
    assert!(lost.to_string().contains("opened without sources"), "{lost}");
}
