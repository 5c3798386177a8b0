//! Forks of sources, where a disk, a source or another thread is not as it should be at the wrong moment.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{BLOCK, on};
use crate::error::ErrorKind;
use crate::format::{HydrationSettings, SourceRecord};
use crate::ids::LayerId;
use crate::io::faulty::FaultyDisk;
use crate::limits::Limits;
use crate::source::{OnArrival, ReadClass, Source, SourceError, SourceErrorKind, SourceOpener, UriSources};
use crate::store::{Store, StoreOptions};
use crate::sync::{Mutex, mpsc, thread};
use crate::volume::{Queue, Request, Volume};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store on a disk, and a fork of an image of sevens.
fn fork_of_image(directory: &Path, disk: &FaultyDisk, bytes: usize) -> (Store, Volume) {
    let image = directory.join("image");
    std::fs::write(&image, vec![7; bytes]).unwrap();
    let sources = Some(Arc::new(UriSources::default()) as _);
    let store = Store::create(directory.join("store"), StoreOptions { sources, ..on(disk) }).unwrap();
    let fork = store.fork(&format!("file://{}", image.display()), "f").unwrap();
    (store, fork)
}

/// The kernel tells of a failed write-back once. A repair that hears of it takes it from the round of all others who wrote.
#[test]
fn a_failed_sync_of_a_repair_poisons_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let (store, fork) = fork_of_image(directory.path(), &disk, 16 << 20);
    let mut block = [0; BLOCK as usize];
    fork.read_at(&mut block, 0).unwrap();
    store.0.core.layers.barriers.sync_fresh().unwrap();
    let mut damaged = 0;
    for entry in std::fs::read_dir(directory.path().join("store/layers")).unwrap().map(Result::unwrap) {
        if entry.path().extension().is_some_and(|kind| kind == "data") {
            std::fs::OpenOptions::new().write(true).open(entry.path()).unwrap().write_all_at(&[9; 16], 0).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1);
    // What this brings waits for its round.
    fork.read_at(&mut block, 8 << 20).unwrap();
    disk.fail_syncs(true);
    // Whether the reader gets the block is not the point: the source has it.
    drop(fork.read_at(&mut block, 0));
    disk.fail_syncs(false);
    assert_eq!(fork.write_at(&[1; BLOCK as usize], 1 << 20).unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(fork.flush().unwrap_err().kind(), ErrorKind::Poisoned);
}

/// A block that was written in part is put together from the source and the parts, whether the result can be kept or not.
#[test]
fn a_patched_block_of_a_poisoned_store_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let (store, fork) = fork_of_image(directory.path(), &disk, 64 * BLOCK as usize);
    fork.write_at(&[0xaa; 100], 5 * BLOCK + 7).unwrap();
    fork.flush().unwrap();
    let other = store.create_volume("other", 1 << 20).unwrap();
    other.write_at(&[1; BLOCK as usize], 0).unwrap();
    disk.fail_syncs(true);
    other.flush().unwrap_err();
    assert_eq!(other.write_at(&[1; BLOCK as usize], 0).unwrap_err().kind(), ErrorKind::Poisoned);
    let mut found = [0; 3 * BLOCK as usize];
    fork.read_at(&mut found, 4 * BLOCK).unwrap();
    let mut expected = [7; 3 * BLOCK as usize];
    expected[BLOCK as usize + 7..][..100].fill(0xaa);
    assert!(found == expected);
}

/// A source that answers no read.
#[derive(Default)]
struct Hung(Mutex<Vec<OnArrival>>);

impl Source for Hung {
    fn size_bytes(&self) -> u64 {
        64 << 20
    }

    fn read(&self, _: Range<u64>, _: ReadClass, arrival: OnArrival) {
        self.0.lock().push(arrival);
    }

    fn describe(&self) -> String {
        "hung".into()
    }

    fn close(&self) {
        for arrival in std::mem::take(&mut *self.0.lock()) {
            arrival.end(Err(SourceError { kind: SourceErrorKind::Closed, message: "closed".into() }));
        }
    }
}

struct OpensHung;

impl SourceOpener for OpensHung {
    fn open(&self, _: &str) -> Result<Arc<dyn Source>, SourceError> {
        Ok(Arc::new(Hung::default()))
    }
}

/// A store with threads, whose sources hang.
fn hung_options() -> StoreOptions {
    StoreOptions { sources: Some(Arc::new(OpensHung)), ..StoreOptions::default() }
}

/// Waits until a reader waits for the source; then drops the queue, which must end.
fn drop_while_a_source_hangs(store: &Store, queue: Queue) {
    while store.show("f").unwrap().hydration.readers_waiting == 0 {
        thread::yield_now();
    }
    let (sender, dropped) = mpsc::channel();
    thread::spawn(move || {
        drop(queue);
        sender.send(()).unwrap_or_default();
    });
    dropped.recv_timeout(PATIENCE).expect("the drop of a queue waits for a source");
}

fn write(offset: u64, bytes: usize) -> Request {
    Request::Write { offset, data: vec![1; bytes].into(), fua: false }
}

#[test]
fn dropping_a_queue_does_not_wait_for_a_write_on_a_source() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), hung_options()).unwrap();
    let fork = store.fork("x://y", "f").unwrap();
    let mut queue = fork.queue(256).unwrap();
    // More pieces of one block than a patch may have: the last ones need the rest of the block.
    (0..80).for_each(|token| queue.submit(token, write(token * 50, 10)).unwrap());
    drop_while_a_source_hangs(&store, queue);
}

#[test]
fn dropping_a_snapshot_queue_does_not_wait_for_hung_reads() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), hung_options()).unwrap();
    store.fork("x://y", "f").unwrap().create_snapshot("s").unwrap();
    let mut queue = store.snapshot("f", "s").unwrap().queue(1024).unwrap();
    // More than there are workers.
    (0..300).for_each(|token| queue.submit(token, Request::Read { offset: token << 16, bytes: 4096 }).unwrap());
    queue.submit(300, write(0, 4096)).unwrap();
    drop_while_a_source_hangs(&store, queue);
}

/// Otherwise a round could name blocks of a root that no record tells of, and after a crash the fork would read zeros.
#[test]
fn background_work_hydrates_no_unrecorded_root() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), hung_options()).unwrap();
    let core = &store.0.core;
    // As a fork does before it has queued the record of its root.
    let layer = core.layers.add(LayerId(77), None, Some(16));
    let source = SourceRecord { uris: vec!["x://z".into()], size_bytes: 16 * BLOCK, settings: HydrationSettings::default() };
    let unrecorded = core.roots.add(&layer, source, String::new(), None).unwrap();
    core.roots.step().unwrap();
    assert!(unrecorded.is_asleep(), "its hydration runs before its root is recorded");
    store.fork("x://y", "f").unwrap();
    let asleep = core.hydrations.all().iter().filter(|hydrator| hydrator.is_asleep()).count();
    assert_eq!(asleep, 1, "a recorded root is hydrated");
    core.hydrations.stop(LayerId(77));
    store.close().unwrap();
}

/// What a fork has to sync stays small, however much was written since the last round.
#[test]
fn much_that_is_written_is_written_back_before_a_sync() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let store = Store::create(directory.path(), StoreOptions { limits: Limits::DEFAULT, ..on(&disk) }).unwrap();
    let volume = store.create_volume("v", 64 << 20).unwrap();
    let write = |mib: u64| (0..mib).for_each(|number| volume.write_at(&vec![1; 1 << 20], number << 20).unwrap());
    write(20);
    assert_eq!(disk.write_backs(), 2);
    // A round has synced the rest.
    volume.flush().unwrap();
    write(7);
    assert_eq!(disk.write_backs(), 2);
    write(1);
    assert_eq!(disk.write_backs(), 3);
}
