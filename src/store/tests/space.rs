//! Giving back space: what is left when a store is closed, or what could not be given back, is found again.

use std::os::unix::fs::MetadataExt;

use super::*;

const PIECES: u64 = 200;

/// Blocks that the data files of a store occupy.
fn data_blocks(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory.join("layers")).unwrap().map(|file| file.unwrap().path());
    let data = files.filter(|path| path.extension().is_some_and(|extension| extension == "data"));
    data.map(|path| path.metadata().unwrap().blocks() * 512 / BLOCK).sum()
}

/// Discards blocks of a volume, two in each extent. Beside each there is one that stays.
fn discard_pieces(store: &Store) {
    let volume = store.create_volume("v", 1 << 30).unwrap();
    let pieces = || (0..PIECES).map(|piece| piece << 21);
    pieces().for_each(|offset| volume.write_at(&[1; 2 * BLOCK as usize], offset).unwrap());
    volume.flush().unwrap();
    pieces().for_each(|offset| volume.discard(offset, BLOCK).unwrap());
    volume.flush().unwrap();
}

fn check_pieces(store: &Store) {
    let volume = store.volume("v").unwrap();
    for offset in (0..PIECES).map(|piece| piece << 21) {
        let mut blocks = [9; 2 * BLOCK as usize];
        volume.read_at(&mut blocks, offset).unwrap();
        assert_eq!((blocks[0], blocks[BLOCK as usize]), (0, 1), "at {offset}");
    }
}

fn few() -> StoreOptions {
    StoreOptions { limits: Limits { punches_at_end: 20, ..options().limits }, ..options() }
}

/// Giving back space piece by piece may take minutes: nobody waits for that to stop a server.
#[test]
fn reclaiming_much_space_stops_at_close_and_resumes_at_open() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), few()).unwrap();
    discard_pieces(&store);
    store.close().unwrap();
    drop(store);
    let blocks = || data_blocks(directory.path());
    assert!(blocks() > PIECES + PIECES / 2, "{} blocks", blocks());
    let store = open(directory.path());
    store.close().unwrap();
    assert!(blocks() > PIECES + PIECES / 2, "nobody has looked yet: {} blocks", blocks());
    let store = open(directory.path());
    steps(&store, 20);
    assert!(blocks() <= PIECES + 1, "{} blocks", blocks());
    check_pieces(&store);
    store.close().unwrap();
}

/// A store that is opened for short commands only may never be swept to the end.
#[test]
fn a_store_closed_before_its_sweep_returns_known_space() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), few()).unwrap();
    discard_pieces(&store);
    drop(store);
    let before = data_blocks(directory.path());
    let store = Store::open(directory.path(), few()).unwrap();
    let volume = store.volume("v").unwrap();
    (0..PIECES).for_each(|piece| volume.discard((piece << 21) + BLOCK, BLOCK).unwrap());
    volume.flush().unwrap();
    drop((volume, store));
    assert!(data_blocks(directory.path()) <= before - 20, "{} of {before} blocks", data_blocks(directory.path()));
}

/// A store with discarded pieces that does what it can while `fail` is on, is closed when that is over, and is opened again: then it has
/// given back their space. `reopened`: it was opened again before the fault, too.
fn gives_space_back_after(fail: fn(&FaultyDisk, bool), plain: StoreOptions, reopened: bool) {
    let (directory, disk) = (tempfile::tempdir().unwrap(), FaultyDisk::default());
    let faulty = || StoreOptions { disk: Arc::new(disk.clone()), ..plain.clone() };
    let mut store = Store::create(directory.path(), faulty()).unwrap();
    discard_pieces(&store);
    if reopened {
        drop(store);
        store = Store::open(directory.path(), faulty()).unwrap();
    }
    fail(&disk, true);
    while store.step().is_ok() {}
    fail(&disk, false);
    store.close().unwrap();
    drop(store);
    let store = Store::open(directory.path(), faulty()).unwrap();
    steps(&store, 20);
    let blocks = data_blocks(directory.path());
    assert!(blocks <= PIECES + 1, "{blocks} blocks");
    check_pieces(&store);
}

#[test]
fn space_that_could_not_be_given_back_is_given_back_later() {
    gives_space_back_after(FaultyDisk::fail_punches, options(), false);
}

#[test]
fn space_that_could_not_be_looked_for_is_found_later() {
    gives_space_back_after(FaultyDisk::fail_opens, few(), true);
}
