//! What goes on while a checkpoint is written.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{BLOCK, killed, on};
use crate::error::{ErrorKind, Result};
use crate::io::faulty::FaultyDisk;
use crate::store::Store;
use crate::sync::mpsc::{Receiver, Sender, channel};
use crate::sync::{Mutex, thread};

/// Long enough for a call that waits for nothing, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Holds each sync of a thread until it is let go on.
struct Held {
    /// What is about to be synced; ends with the thread.
    syncs: Receiver<PathBuf>,
    go_on: Sender<()>,
}

/// A checkpoint on a thread of its own, each of whose syncs is held.
fn held_checkpoint(store: &Store, disk: &FaultyDisk) -> (Held, thread::JoinHandle<Result<()>>) {
    let (told, syncs) = channel();
    let (go_on, gone_on) = channel();
    let (store, hooked) = (store.clone(), disk.clone());
    let (ready, begun) = channel();
    let checkpoint = thread::spawn(move || {
        let own = thread::current().id();
        let seam = Mutex::new((told, gone_on));
        hooked.before_each_sync(Some(Arc::new(move |path: &Path| {
            if thread::current().id() == own {
                let (told, gone_on): &(Sender<PathBuf>, Receiver<()>) = &seam.lock();
                let _ = (told.send(path.to_owned()), gone_on.recv());
            }
        })));
        ready.send(()).unwrap();
        let written = store.0.core.shape.checkpoint();
        hooked.before_each_sync(None);
        written
    });
    begun.recv().unwrap();
    (Held { syncs, go_on }, checkpoint)
}

/// Runs calls on a thread of their own, and fails if they do not return.
fn returns(what: String, calls: impl FnOnce() + Send + 'static) {
    let (ended, end) = channel();
    let caller = thread::spawn(move || {
        calls();
        ended.send(()).unwrap();
    });
    end.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what}: a call waits for the checkpoint"));
    caller.join().unwrap();
}

/// Calls that make nothing durable.
fn looks(store: &Store) {
    store.volume("idle").unwrap();
    assert_eq!(store.show("v").unwrap().name, "v");
    assert!(store.list().unwrap().len() >= 3);
    assert_eq!(store.snapshots("damaged").unwrap().len(), 1);
    let volume = store.volume("v").unwrap();
    volume.write_at(&[4; BLOCK as usize], 9 * BLOCK).unwrap();
    volume.read_at(&mut [0; BLOCK as usize], 9 * BLOCK).unwrap();
    let damage = store.volume("damaged").unwrap().read_at(&mut [0; BLOCK as usize], 0).unwrap_err();
    assert_eq!(damage.kind(), ErrorKind::Corrupt);
    let found = store.scrub(Some("damaged")).unwrap();
    assert!(found.affected.contains_key("snapshot 'damaged@s'"), "{found:?}");
}

/// Calls that end with a round.
fn changes(store: &Store, number: usize) {
    let volume = store.volume("v").unwrap();
    volume.write_at(&[u8::try_from(number).unwrap(); BLOCK as usize], 0).unwrap();
    volume.flush().unwrap();
    store.fork("v", &format!("fork-{number}")).unwrap();
    store.create_snapshot("v", &format!("s-{number}")).unwrap();
    let fork = store.volume(&format!("fork-{number}")).unwrap();
    fork.discard(0, BLOCK).unwrap();
    fork.flush().unwrap();
    store.resize("idle", (u64::try_from(number).unwrap() + 1) << 20, true).unwrap();
}

/// The store before the checkpoint: with a damaged block, blocks that no frame names yet, and checksums that no page has.
fn prepared(path: &Path, disk: &FaultyDisk) -> Store {
    let store = Store::create(path, on(disk)).unwrap();
    for name in ["v", "idle", "damaged"] {
        store.create_volume(name, 64 << 20).unwrap();
    }
    let damaged = store.volume("damaged").unwrap();
    damaged.write_at(&[1; BLOCK as usize], 0).unwrap();
    damaged.flush().unwrap();
    store.create_snapshot("damaged", "s").unwrap();
    let layer = std::fs::read_dir(path.join("layers")).unwrap().map(|entry| entry.unwrap().path());
    let data = layer.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "data")).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(data).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[9; 512], 0).unwrap();
    store.volume("v").unwrap().write_at(&[7; BLOCK as usize], 5 * BLOCK).unwrap();
    store
}

#[test]
fn nothing_waits_for_a_checkpoint_but_a_round_for_its_switch() {
    let directory = tempfile::tempdir().unwrap();
    let (path, disk) = (directory.path().join("store"), FaultyDisk::default());
    let store = prepared(&path, &disk);
    let (held, checkpoint) = held_checkpoint(&store, &disk);
    let (mut syncs, mut switches) = (Vec::new(), false);
    while let Ok(synced) = held.syncs.recv() {
        let (beside, number) = (store.clone(), syncs.len());
        let what = format!("sync {number} of {}", synced.display());
        returns(what.clone(), move || looks(&beside));
        if !switches {
            let beside = store.clone();
            returns(what, move || changes(&beside, number));
        }
        // The name is durable before the switch; after it the checkpoint leads.
        switches |= synced == path;
        let copy = directory.path().join(format!("killed-{number}"));
        killed(&path, &copy);
        syncs.push((synced, copy));
        held.go_on.send(()).unwrap();
    }
    checkpoint.join().unwrap().unwrap();
    assert!(syncs.iter().any(|(synced, _)| synced.ends_with("superblock")), "{syncs:?}");
    let before = syncs.iter().position(|(synced, _)| *synced == path).unwrap();
    assert!(before >= 2, "{syncs:?}");
    // A process that is killed at any of these moments has made all of it durable that has returned.
    for (number, (synced, copy)) in syncs.iter().enumerate() {
        let opened = Store::open(copy, on(&FaultyDisk::default())).unwrap();
        let last = number.min(before);
        let mut block = [0; BLOCK as usize];
        for earlier in 0..=last {
            let what = format!("change {earlier} at sync {number} of {}", synced.display());
            opened.snapshot("v", &format!("s-{earlier}")).unwrap_or_else(|error| panic!("{what}: {error}"));
            opened.volume(&format!("fork-{earlier}")).unwrap().read_at(&mut block, 0).unwrap();
            assert_eq!(block, [0; BLOCK as usize], "{what}");
        }
        opened.volume("v").unwrap().read_at(&mut block, 0).unwrap();
        assert_eq!(usize::from(block[0]), last);
        assert_eq!(opened.show("idle").unwrap().size_bytes, (u64::try_from(last).unwrap() + 1) << 20);
        opened.close().unwrap();
    }
    store.close().unwrap();
}

/// The rounds that ended meanwhile cannot be read from the journal, but memory has all that they say.
#[test]
fn a_journal_that_cannot_be_read_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let (path, disk) = (directory.path().join("store"), FaultyDisk::default());
    let store = prepared(&path, &disk);
    let (held, checkpoint) = held_checkpoint(&store, &disk);
    let before = store.0.core.layers.journal_number();
    held.syncs.recv().unwrap();
    changes(&store, 1);
    disk.fail_reads_of_journals(true);
    held.go_on.send(()).unwrap();
    while held.syncs.recv().is_ok() {
        held.go_on.send(()).unwrap();
    }
    checkpoint.join().unwrap().unwrap();
    disk.fail_reads_of_journals(false);
    assert_eq!(store.0.core.layers.journal_number(), before + 1);
    changes(&store, 2);
    let copy = directory.path().join("killed");
    killed(&path, &copy);
    let opened = Store::open(&copy, on(&FaultyDisk::default())).unwrap();
    for number in [1, 2] {
        opened.snapshot("v", &format!("s-{number}")).unwrap();
        opened.volume(&format!("fork-{number}")).unwrap();
    }
    opened.close().unwrap();
    store.close().unwrap();
}
