//! What a handle keeps alive, and what closing a store ends.

use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use volfork::volume::Request;
use volfork::{ErrorKind, Store, StoreOptions};

const BLOCK_BYTES: u64 = 4096;

fn options() -> StoreOptions {
    StoreOptions { threads: false, ..StoreOptions::default() }
}

/// A volume whose block 0 was 1 at snapshot `s0` and 2 at `s1`.
fn two_snapshots(dir: &Path) -> Store {
    let store = Store::create(dir, options()).unwrap();
    let volume = store.create_volume("v", 64 << 20).unwrap();
    for (byte, snapshot) in [(1, "s0"), (2, "s1")] {
        volume.write_at(&[byte; BLOCK_BYTES as usize], 0).unwrap();
        volume.snapshot(snapshot).unwrap();
    }
    store
}

fn kind<T>(result: volfork::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

#[test]
fn a_closed_store_refuses_every_call_reads_included() {
    let dir = tempfile::tempdir().unwrap();
    let store = two_snapshots(dir.path());
    let (volume, snapshot) = (store.volume("v").unwrap(), store.snapshot("v", "s1").unwrap());
    store.close().unwrap();
    // It may belong to somebody else now.
    let other = Store::open(dir.path(), options()).unwrap();
    let closed = Some(ErrorKind::Closed);
    let mut bytes = [0; 4096];
    assert_eq!(kind(volume.read_at(&mut bytes, 0)), closed);
    assert_eq!(kind(volume.write_at(&bytes, 0)), closed);
    assert_eq!(kind(volume.flush()), closed);
    assert_eq!(kind(volume.discard(0, 1)), closed);
    assert_eq!(kind(volume.write_zeroes(0, 1)), closed);
    assert_eq!(kind(volume.fork("f")), closed);
    assert_eq!(kind(volume.snapshot("f")), closed);
    assert_eq!(kind(volume.resize(1 << 30, false)), closed);
    assert_eq!(kind(volume.prefetch(0, 1)), closed);
    assert_eq!(kind(volume.runs(0..1, 1)), closed);
    assert_eq!(kind(volume.allocation(0..1, 1)), closed);
    assert_eq!(kind(volume.changed_since("s1", &(0..1), 1)), closed);
    assert_eq!(kind(volume.queue(1)), closed);
    assert_eq!(kind(snapshot.read_at(&mut bytes, 0)), closed);
    assert_eq!(kind(snapshot.checksums(0..BLOCK_BYTES)), closed);
    assert_eq!(kind(snapshot.allocation(0..1, 1)), closed);
    assert_eq!(kind(snapshot.queue(1)), closed);
    assert_eq!(snapshot.trace(), []);
    assert_eq!(kind(store.volume("v")), closed);
    assert_eq!(kind(store.snapshot("v", "s1")), closed);
    assert_eq!(kind(store.create_volume("w", 1)), closed);
    assert_eq!(kind(store.fork("v@s1", "w")), closed);
    assert_eq!(kind(store.fork("file:///w", "w")), closed);
    assert_eq!(kind(store.list()), closed);
    assert_eq!(kind(store.show("v")), closed);
    assert_eq!(kind(store.rename("v", "w")), closed);
    assert_eq!(kind(store.destroy_snapshot("v", "s1")), closed);
    assert_eq!(kind(store.destroy_volume("v", true)), closed);
    assert_eq!(kind(store.scrub(None, &mut |_| {})), closed);
    assert_eq!(kind(store.step()), closed);
    assert_eq!(kind(store.wait_hydrated("v", Duration::ZERO)), closed);
    assert_eq!(store.holdings().len(), 0);
    assert_eq!(store.volume_names(), ["v"]);
    assert_eq!((volume.name().as_str(), volume.size_bytes()), ("v", 64 << 20));
    store.close().unwrap();
    other.close().unwrap();
}

/// The progress of a scrub may close the store, and a close from elsewhere does not wait for the scrub's end.
#[test]
fn a_scrub_ends_when_its_store_is_closed_in_the_middle() {
    let dir = tempfile::tempdir().unwrap();
    let store = two_snapshots(dir.path());
    let mut calls = 0;
    let scrubbed = store.scrub(None, &mut |_| {
        calls += 1;
        store.close().unwrap();
    });
    assert_eq!((kind(scrubbed), calls), (Some(ErrorKind::Closed), 1));
}
