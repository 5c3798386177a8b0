//! Two stores and the NBD protocol between them under the seeded scheduler.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Listener, NbdServer, NbdServerOptions};
use crate::place::length;
use crate::source::{NbdOptions, NbdSource, Source, SourceErrorKind, SourceExt, UriSources};
use crate::store::{Store, proof};
use crate::sync::{sim, thread};

const BYTES: u64 = 1 << 20;
const HALF: u64 = BYTES / 2;

fn history(path: &Path) {
    let options = proof::options;
    let near = Store::create(path.join("near"), options()).unwrap();
    let origin = near.create_volume("origin", BYTES).unwrap();
    let written: Vec<u8> = (0..=u8::MAX).flat_map(|block| [block; 4096]).collect();
    let (first, half) = (&written[..length(HALF)], length(HALF));
    origin.write_at(first, 0).unwrap();
    origin.create_snapshot("base").unwrap();
    let socket = path.join("socket");
    let listener = Listener::parse(&format!("unix:{}", socket.display())).unwrap();
    let server = NbdServer::start(Arc::new(near.clone()), vec![listener], NbdServerOptions::default()).unwrap();

    let far = Store::create(path.join("far"), crate::store::StoreOptions { sources: Some(Arc::new(UriSources::default())), ..options() })
        .unwrap();
    let uri = format!("nbd+unix:///origin@base?socket={}", socket.display());
    let fork = far.fork(&[uri], "fork").unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..4 {
                let offset = sim::below(HALF - 8192);
                let mut buffer = [0; 8192];
                fork.read_at(&mut buffer, offset).unwrap();
                assert!(buffer == written[length(offset)..][..8192], "other bytes than at the source");
            }
        });
        scope.spawn(|| {
            for _ in 0..4 {
                let offset = HALF + sim::below(HALF - 100);
                fork.write_at(&[200; 100], offset).unwrap();
            }
            fork.flush().unwrap();
        });
    });
    assert!(far.wait_hydrated("fork", Duration::from_secs(3600)).unwrap(), "hydration does not end");
    let mut buffer = vec![0; half];
    fork.read_at(&mut buffer, 0).unwrap();
    assert!(buffer == *first, "other bytes than at the source");
    far.close().unwrap();
    server.shutdown();
    // No connection keeps the store open any more, and no handle.
    drop((origin, near));
    Store::open(path.join("near"), options()).unwrap().close().unwrap();
}

#[test]
fn a_fork_from_elsewhere_is_read_written_and_hydrated() {
    for seed in sim::seeds(15) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        sim::run(seed, sim::Config::default(), move || history(&path)).unwrap();
    }
}

/// Sources are read while their server goes and comes back, and closed while others read.
fn comings_and_goings(path: &Path) {
    let store = Store::create(path.join("store"), proof::options()).unwrap();
    let volume = store.create_volume("v", BYTES).unwrap();
    volume.write_at(&vec![7; length(BYTES)], 0).unwrap();
    volume.create_snapshot("s").unwrap();
    let socket = path.join("socket");
    let serve = || {
        let listener = Listener::parse(&format!("unix:{}", socket.display())).unwrap();
        NbdServer::start(Arc::new(store.clone()), vec![listener], NbdServerOptions::default()).unwrap()
    };
    let uri = format!("nbd+unix:///v@s?socket={}", socket.display());
    let server = serve();
    let open = || NbdSource::open(&uri, NbdOptions::default()).unwrap();
    let (source, other) = (open(), open());
    let read = |source: &NbdSource| {
        let start = sim::below(BYTES / 2);
        let result = source.read_blocking(start..start + BYTES / 4);
        assert!(result.as_ref().map_or(true, |bytes| bytes.iter().all(|byte| *byte == 7)), "other bytes than at the source");
        result.map(drop).map_err(|error| error.kind)
    };
    thread::scope(|scope| {
        // A read that finds no server in time, or loses it too often, is lost; nothing else may become of it before the close.
        let reads = || (0..4).for_each(|_| assert!(matches!(read(&source), Ok(()) | Err(SourceErrorKind::Lost | SourceErrorKind::Closed))));
        scope.spawn(reads);
        scope.spawn(reads);
        scope.spawn(|| while read(&other) != Err(SourceErrorKind::Closed) {});
        server.shutdown();
        let server = serve();
        other.close();
        // Whatever was lost before: the server is found again.
        let until = sim::now() + Duration::from_secs(600);
        while read(&source).is_err() {
            assert!(sim::now() < until, "the server is not found again");
            thread::sleep(Duration::from_secs(1));
        }
        source.close();
        assert_eq!(read(&source), Err(SourceErrorKind::Closed));
        server.shutdown();
    });
    drop((source, other, volume));
    store.close().unwrap();
}

#[test]
fn a_server_that_comes_back_is_found_again() {
    for seed in sim::seeds(25) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        sim::run(seed, sim::Config::default(), move || comings_and_goings(&path)).unwrap();
    }
}
