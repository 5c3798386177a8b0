//! What handles keep alive, and what `close` ends.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use volfork::volume::Request;
use volfork::{ErrorKind, Store, StoreOptions};

const BLOCK_BYTES: u64 = 4096;

fn options() -> StoreOptions {
    StoreOptions::default().with_threads(false)
}

/// A volume whose block 0 was 1 at snapshot `s0` and 2 at `s1`.
fn two_snapshots(dir: &Path) -> Store {
    let store = Store::create(dir, options()).unwrap();
    let volume = store.create_volume("v", 64 << 20).unwrap();
    for (byte, snapshot) in [(1, "s0"), (2, "s1")] {
        volume.write_at(&[byte; BLOCK_BYTES as usize], 0).unwrap();
        volume.create_snapshot(snapshot).unwrap();
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
    assert_eq!(kind(volume.create_snapshot("f")), closed);
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
    assert_eq!(kind(store.scrub(None)), closed);
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
    let scrubbed = store.scrub_with(None, &mut |_| {
        calls += 1;
        store.close().unwrap();
        ControlFlow::Continue(())
    });
    assert_eq!((kind(scrubbed), calls), (Some(ErrorKind::Closed), 1));
}

/// Hides what `s1` shows from the head, destroys `s1`, and lets the background take what nobody can see.
fn overwrite_and_destroy_s1(store: &Store) -> volfork::Result<()> {
    let volume = store.volume("v")?;
    volume.write_at(&[3; BLOCK_BYTES as usize], 0)?;
    volume.flush()?;
    let destroyed = store.destroy_snapshot("v", "s1");
    while store.step()? {}
    volume.flush()?;
    while store.step()? {}
    destroyed
}

#[test]
fn a_snapshot_that_is_read_is_not_destroyed() {
    for touched in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let store = two_snapshots(dir.path());
        let (open, again) = (store.snapshot("v", "s1").unwrap(), store.snapshot("v", "s1").unwrap());
        let mut bytes = [0; BLOCK_BYTES as usize];
        if touched {
            open.read_at(&mut bytes, 0).unwrap();
        }
        let (told, shown) = (open.checksums(0..BLOCK_BYTES).unwrap(), open.allocation(0..1 << 20, 4).unwrap());
        let refused = overwrite_and_destroy_s1(&store).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy);
        assert!(refused.to_string().contains("'v@s1' is open for 2 readers"), "{refused}");
        assert_eq!(kind(store.destroy_volume("v", true)), Some(ErrorKind::Busy));
        open.read_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [2; BLOCK_BYTES as usize]);
        assert_eq!(open.checksums(0..BLOCK_BYTES).unwrap(), told);
        assert_eq!(open.allocation(0..1 << 20, 4).unwrap(), shown);
        // A queue keeps it open without the handle; whoever comes last lets go.
        let mut queue = open.queue(1).unwrap();
        drop((open, again));
        assert_eq!(kind(store.destroy_snapshot("v", "s1")), Some(ErrorKind::Busy));
        queue.submit(1, Request::Read { offset: 0, bytes: 1 }).unwrap();
        let mut done = Vec::new();
        queue.wait(&mut done, None).unwrap();
        assert_eq!(&done.pop().unwrap().result.unwrap()[..], [2]);
        drop(queue);
        // Only the name that is read is kept.
        let _other = store.snapshot("v", "s0").unwrap();
        store.destroy_snapshot("v", "s1").unwrap();
        assert_eq!(kind(store.snapshot("v", "s1")), Some(ErrorKind::NotFound));
    }
}

#[test]
fn handles_of_a_destroyed_volume_answer_errors_not_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), options()).unwrap();
    let volume = store.create_volume("v", 16 << 20).unwrap();
    volume.write_at(&[7; 1 << 20], 0).unwrap();
    volume.create_snapshot("s").unwrap();
    assert_eq!(volume.allocation(0..16 << 20, 4).unwrap().len(), 2);
    store.destroy_volume("v", true).unwrap();
    store.create_volume("v", 16 << 20).unwrap();
    let gone = Some(ErrorKind::NotFound);
    assert_eq!(kind(volume.allocation(0..16 << 20, 4)), gone);
    assert_eq!(kind(volume.runs(0..16 << 20, 4)), gone);
    assert_eq!(kind(volume.changed_since("s", &(0..1), 4)), gone);
    assert_eq!(kind(volume.prefetch(0, 1)), gone);
    assert_eq!(kind(volume.read_at(&mut [0], 0)), gone);
    assert_eq!(kind(volume.write_at(&[0], 0)), gone);
    assert_eq!(kind(volume.discard(0, 1 << 20)), gone);
    assert_eq!(kind(volume.flush()), gone);
    assert_eq!(kind(volume.queue(1)), gone);
    // And nothing happens to the volume that has the name now.
    assert_eq!(kind(volume.fork("f")), gone);
    assert_eq!(kind(volume.create_snapshot("s")), gone);
    assert_eq!(kind(volume.resize(1 << 20, true)), gone);
    assert_eq!(store.volume("v").unwrap().size_bytes(), 16 << 20);
    assert_eq!(store.snapshot_names("v").unwrap(), [""; 0]);
}

/// A handle acts on its volume, whatever that is called and whatever else has its name by then.
#[test]
fn a_handle_acts_on_its_volume_while_names_move() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), options()).unwrap();
    let handles: Vec<_> = [1, 2]
        .map(|byte| {
            let volume = store.create_volume(&format!("v{byte}"), 1 << 20).unwrap();
            volume.write_at(&[byte; 512], 0).unwrap();
            volume
        })
        .into();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for (from, to) in [("v1", "x"), ("v2", "v1"), ("x", "v2")] {
                    store.rename(from, to).unwrap();
                }
            }
        });
        for round in 0..40 {
            for (number, volume) in handles.iter().enumerate() {
                let fork = volume.fork(&format!("f{round}.{number}")).unwrap();
                let mut byte = [0];
                fork.read_at(&mut byte, 0).unwrap();
                assert_eq!(byte, [number as u8 + 1]);
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_store_keeps_its_place_when_the_process_goes_elsewhere() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::env::set_current_dir(here.path()).unwrap();
    let store = Store::create(Path::new("store"), options()).unwrap();
    std::env::set_current_dir(there.path()).unwrap();
    let volume = store.create_volume("v", 1 << 20).unwrap();
    volume.write_at(&[1; 4096], 0).unwrap();
    volume.flush().unwrap();
    volume.read_at(&mut [0; 4096], 0).unwrap();
    store.close().unwrap();
    assert!(!there.path().join("store").exists());
    assert!(Store::check(here.path().join("store"), options()).unwrap().violations.is_empty());
}

#[test]
fn a_store_stays_open_while_a_handle_of_it_exists() {
    let dir = tempfile::tempdir().unwrap();
    drop(two_snapshots(dir.path()));
    let open = || Store::open(dir.path(), options());
    let mut bytes = [0; BLOCK_BYTES as usize];
    let volume = open().unwrap().volume("v").unwrap();
    volume.write_at(&[3; BLOCK_BYTES as usize], 0).unwrap();
    assert_eq!(kind(open()), Some(ErrorKind::Locked));
    let mut queue = volume.queue(1).unwrap();
    drop(volume);
    queue.submit(1, Request::Flush).unwrap();
    let mut completions = Vec::new();
    queue.wait(&mut completions, None).unwrap();
    completions.remove(0).result.unwrap();
    assert_eq!(kind(open()), Some(ErrorKind::Locked));
    drop(queue);
    let snapshot = open().unwrap().snapshot("v", "s1").unwrap();
    snapshot.read_at(&mut bytes, 0).unwrap();
    assert_eq!((bytes[0], kind(open())), (2, Some(ErrorKind::Locked)));
    drop(snapshot);
    let fork = open().unwrap().volume("v").unwrap().fork("f").unwrap();
    fork.read_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes[0], 3);
    drop(fork);
    open().unwrap();
}
