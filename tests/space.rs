//! Space: destroyed, discarded and hidden blocks give their space back, also when the store is closed at once; counts agree with the
//! files in every chain of layers.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use volfork::{ErrorKind, Store, StoreOptions};

const BLOCK: u64 = 4096;
const DATA_BYTES: u64 = 8 << 20;

fn options() -> StoreOptions {
    StoreOptions::default().with_threads(false)
}

/// Bytes allocated for the layers of a store.
fn allocated(store: &Path) -> u64 {
    let files = fs::read_dir(store.join("layers")).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum()
}

fn filled(path: &Path) -> Store {
    let store = Store::create(path, options()).unwrap();
    let volume = store.create_volume("v", 64 << 20).unwrap();
    volume.write_at(&vec![1; DATA_BYTES as usize], 0).unwrap();
    volume.flush().unwrap();
    store
}

#[test]
fn discards_return_space_even_if_the_store_closes_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = filled(directory.path());
    assert!(allocated(directory.path()) >= DATA_BYTES);
    store.volume("v").unwrap().discard(0, DATA_BYTES - BLOCK).unwrap();
    store.close().unwrap();
    assert!(allocated(directory.path()) < 1 << 20, "{} bytes", allocated(directory.path()));
    let store = Store::open(directory.path(), options()).unwrap();
    let mut last = vec![0; BLOCK as usize];
    store.volume("v").unwrap().read_at(&mut last, DATA_BYTES - BLOCK).unwrap();
    assert!(last.iter().all(|byte| *byte == 1));
}

#[test]
fn what_a_destroyed_snapshot_alone_showed_gives_its_space_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = filled(directory.path());
    store.create_snapshot("v", "s").unwrap();
    store.volume("v").unwrap().write_at(&vec![2; DATA_BYTES as usize], 0).unwrap();
    store.close().unwrap();
    assert!(allocated(directory.path()) >= 2 * DATA_BYTES);
    let store = Store::open(directory.path(), options()).unwrap();
    store.destroy_snapshot("v", "s").unwrap();
    store.close().unwrap();
    assert!(allocated(directory.path()) < DATA_BYTES + (1 << 20), "{} bytes", allocated(directory.path()));
    let store = Store::open(directory.path(), options()).unwrap();
    assert_eq!(store.scrub(None).unwrap().errors, Vec::<String>::new());
    store.destroy_volume("v", false).unwrap();
    store.close().unwrap();
    assert_eq!(fs::read_dir(directory.path().join("layers")).unwrap().count(), 0);
}

#[test]
fn destroys_anywhere_in_a_chain_leave_the_others_their_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::create(directory.path(), options()).unwrap();
    store.create_volume("v", 1 << 20).unwrap();
    let mut model = vec![0; 1 << 20];
    let mut forks = BTreeMap::new();
    for layer in 0..9u8 {
        // Each layer hides a half of the one below.
        let range = usize::from(layer) * 32768..usize::from(layer) * 32768 + 65536;
        model[range.clone()].fill(layer + 1);
        store.volume("v").unwrap().write_at(&model[range.clone()], range.start as u64).unwrap();
        store.create_snapshot("v", &format!("s{layer}")).unwrap();
        if layer % 4 == 0 {
            store.fork(&format!("v@s{layer}"), &format!("f{layer}")).unwrap();
            forks.insert(format!("f{layer}"), model.clone());
        }
    }
    forks.insert("v".into(), model);
    for snapshot in ["s4", "s0", "s8", "s3", "s5", "s1", "s7", "s2", "s6"] {
        store.destroy_snapshot("v", snapshot).unwrap();
        while store.step().unwrap() {}
        store.close().unwrap();
        store = Store::open(directory.path(), options()).unwrap();
        for (name, bytes) in &forks {
            let mut read = vec![9; bytes.len()];
            store.volume(name).unwrap().read_at(&mut read, 0).unwrap();
            assert!(read == *bytes, "{name} after {snapshot}");
        }
    }
    for (name, _) in forks {
        store.destroy_volume(&name, false).unwrap();
    }
    store.close().unwrap();
    assert_eq!(fs::read_dir(directory.path().join("layers")).unwrap().count(), 0);
    assert_eq!(Store::check(directory.path(), options()).unwrap().violations, Vec::<String>::new());
}

#[test]
fn nothing_is_written_behind_the_end_while_a_volume_shrinks() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), options()).unwrap();
    let (size, place) = (8 << 20, 4 << 20);
    let volume = store.create_volume("v", size).unwrap();
    for round in 0..50 {
        let writing = volume.clone();
        let (sender, began) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            let error = loop {
                match writing.write_at(&[1; 8192], place) {
                    Ok(()) => drop(sender.send(())),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
        });
        began.recv().unwrap();
        store.resize("v", place + 100, true).unwrap();
        writer.join().unwrap();
        store.resize("v", size, false).unwrap();
        let mut bytes = [9; 8192];
        volume.read_at(&mut bytes, place).unwrap();
        let (kept, cut) = bytes.split_at(100);
        assert!(kept.iter().all(|byte| *byte == 1) && cut.iter().all(|byte| *byte == 0), "round {round}");
    }
}

#[test]
fn a_cut_range_reads_as_zero_and_stays_in_snapshots() {
    let directory = tempfile::tempdir().unwrap();
    let store = filled(directory.path());
    store.create_snapshot("v", "s").unwrap();
    store.fork("v", "f").unwrap();
    let cut = DATA_BYTES / 2 + 100;
    assert_eq!(store.resize("v", cut, false).unwrap_err().kind(), ErrorKind::InvalidInput);
    store.resize("v", cut, true).unwrap();
    let volume = store.volume("v").unwrap();
    assert_eq!(volume.read_at(&mut [0; 2], cut - 1).unwrap_err().kind(), ErrorKind::OutOfRange);
    store.resize("v", DATA_BYTES, false).unwrap();
    store.close().unwrap();
    let store = Store::open(directory.path(), options()).unwrap();
    let mut bytes = vec![9; DATA_BYTES as usize];
    store.volume("v").unwrap().read_at(&mut bytes, 0).unwrap();
    let (kept, gone) = bytes.split_at(cut as usize);
    assert!(kept.iter().all(|byte| *byte == 1) && gone.iter().all(|byte| *byte == 0));
    for old in [store.volume("f").unwrap().read_at(&mut bytes, 0), store.snapshot("v", "s").unwrap().read_at(&mut bytes, 0)] {
        old.unwrap();
    }
    assert!(bytes.iter().all(|byte| *byte == 1));
    store.volume("f").unwrap().write_zeroes(0, DATA_BYTES).unwrap();
    store.snapshot("v", "s").unwrap().read_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 1));
}

#[test]
fn counts_agree_with_a_model() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), options()).unwrap();
    store.create_volume("a", 64 * BLOCK).unwrap();
    let write = |name: &str, block: u64, blocks: usize| {
        store.volume(name).unwrap().write_at(&vec![7; blocks * BLOCK as usize], block * BLOCK).unwrap();
    };
    write("a", 0, 16);
    store.create_snapshot("a", "one").unwrap();
    write("a", 8, 16);
    store.create_snapshot("a", "two").unwrap();
    store.volume("a").unwrap().discard(0, 4 * BLOCK).unwrap();
    store.fork("a@one", "b").unwrap();
    store.fork("a@one", "c").unwrap();
    write("c", 15, 2);
    store.fork("c", "d").unwrap();
    let infos = store.list().unwrap();
    let seen: Vec<_> = infos
        .iter()
        .map(|info| (info.name.as_str(), info.depth, info.blocks.present, info.blocks.zero, info.blocks.unique, info.blocks.shared))
        .collect();
    let expected = [("a", 3, 20, 44, 0, 20), ("b", 2, 16, 48, 0, 16), ("c", 3, 17, 47, 0, 17), ("d", 3, 17, 47, 0, 17)];
    assert_eq!(seen, expected);
    for info in infos {
        assert_eq!(store.show(&info.name).unwrap(), info);
    }
    let snapshots = store.snapshots("a").unwrap();
    let seen: Vec<_> = snapshots.iter().map(|info| (info.depth, info.blocks.present, info.blocks.unique)).collect();
    assert_eq!(seen, [(1, 16, 0), (2, 24, 0)]);
    store.destroy_volume("a", true).unwrap();
    store.destroy_volume("b", false).unwrap();
    store.destroy_volume("d", false).unwrap();
    assert_eq!(store.show("c").unwrap().blocks.unique, 17, "nobody else is left");
}

#[test]
fn every_snapshot_of_a_long_chain_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), options()).unwrap();
    let volume = store.create_volume("v", 1 << 30).unwrap();
    for number in 0..500u64 {
        volume.write_at(&[1; 8], number * BLOCK).unwrap();
        store.create_snapshot("v", &format!("s{number}")).unwrap();
    }
    for (number, info) in (1u64..).zip(store.snapshots("v").unwrap()) {
        assert_eq!((info.depth, info.blocks.present), (number, number));
    }
}
