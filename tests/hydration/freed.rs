//! Forks that are destroyed while they hydrate leave nothing behind: no files, no counted blocks.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use volfork::source::{OnArrival, Part, ReadClass, Source, SourceError, SourceErrorKind, SourceOpener};
use volfork::{Store, StoreOptions, Volume};

use crate::stage::PATIENCE;

/// A source that answers at once, on the thread that asks, until it is closed.
struct Quick {
    size_bytes: u64,
    identity: Option<String>,
    closed: AtomicBool,
}

impl Source for Quick {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_bytes_max(&self) -> u32 {
        32 << 20
    }

    fn read(&self, range: Range<u64>, _: ReadClass, mut arrival: OnArrival) {
        if self.closed.load(Ordering::SeqCst) {
            return arrival.end(Err(SourceError { kind: SourceErrorKind::Closed, message: "closed".into() }));
        }
        arrival.part(Part::new(range.start, vec![0x41; (range.end - range.start) as usize].into()));
        arrival.end(Ok(()));
    }

    fn identity(&self) -> Option<String> {
        self.identity.clone()
    }

    fn describe(&self) -> String {
        "quick".into()
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }
}

struct Quicks(u64, Option<String>);

impl SourceOpener for Quicks {
    fn open(&self, _: &str) -> Result<Arc<dyn Source>, SourceError> {
        Ok(Arc::new(Quick { size_bytes: self.0, identity: self.1.clone(), closed: AtomicBool::new(false) }))
    }
}

fn store(directory: &Path, quick: Quicks) -> (Store, Volume) {
    let store = Store::create(directory, StoreOptions::default().with_sources(Arc::new(quick))).unwrap();
    let volume = store.create_volume("w", 16 << 20).unwrap();
    (store, volume)
}

/// Barriers that writes of new blocks cost. Blocks that are counted for ever make each of them one.
fn barriers_of_writes(store: &Store, volume: &Volume) -> u64 {
    volume.write_zeroes(0, 16 << 20).unwrap();
    volume.flush().unwrap();
    let before = store.barriers();
    (0..100).for_each(|block| volume.write_at(&[1; 4096], block * 4096).unwrap());
    store.barriers() - before
}

/// Files of layers, once no more than `most` are left.
fn await_files(directory: &Path, most: usize) {
    let until = Instant::now() + PATIENCE;
    loop {
        let names: Vec<_> = std::fs::read_dir(directory.join("layers")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        if names.len() <= most {
            return;
        }
        assert!(Instant::now() < until, "files of destroyed forks are left: {names:?}");
        std::thread::yield_now();
    }
}

#[test]
fn forks_destroyed_while_hydrating_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (store, volume) = store(dir.path(), Quicks(256 << 20, None));
    assert_eq!(barriers_of_writes(&store, &volume), 0);
    for number in 0..30 {
        store.fork("quick://", "f").unwrap();
        while store.show("f").unwrap().hydration.bytes_fetched < (number % 5) << 20 {
            std::thread::yield_now();
        }
        store.destroy_volume("f", false).unwrap();
    }
    // Its own data and checksums.
    await_files(dir.path(), 2);
    assert!(barriers_of_writes(&store, &volume) <= 1, "blocks of forks that are gone count");
    store.close().unwrap();
    await_files(dir.path(), 2);
}

#[test]
fn a_root_that_is_freed_while_rounds_begin_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, volume) = store(dir.path(), Quicks(1 << 20, Some("host/7".into())));
    std::thread::scope(|scope| {
        for number in 0..4u64 {
            let store = &store;
            scope.spawn(move || {
                for _ in 0..10 {
                    let name = format!("f{number}");
                    let fork = store.fork("quick://", &name).unwrap();
                    fork.write_at(&[5; 1 << 18], (number % 2) << 19).unwrap();
                    fork.flush().unwrap();
                    fork.read_at(&mut [0; 1 << 18], 0).unwrap();
                    drop(fork);
                    store.destroy_volume(&name, false).unwrap();
                }
            });
        }
    });
    await_files(dir.path(), 2);
    assert!(barriers_of_writes(&store, &volume) <= 1, "blocks of forks that are gone count");
    store.close().unwrap();
}
