//! Stores with small limits: what overflows at real ones only after hours.

mod checkpoints;
mod forks;
mod killed;
mod limits;
mod shortage;
mod space;
mod unfinished;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Store, StoreOptions};
use crate::clock::Clock;
use crate::error::ErrorKind;
use crate::io::faulty::FaultyDisk;
use crate::limits::{Limits, SET_RECORD_BYTES_MIN};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::volume::{Request, Volume};

const BLOCK: u64 = 4096;

/// Each look at the clock lets a second pass.
#[derive(Default)]
struct FastClock(AtomicU64);

impl Clock for FastClock {
    fn monotonic(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.0.fetch_add(1, Ordering::Relaxed))
    }

    fn unix(&self) -> std::time::Duration {
        std::time::Duration::from_secs(1_700_000_000)
    }
}

fn options() -> StoreOptions {
    let limits = Limits {
        set_record_bytes_max: SET_RECORD_BYTES_MIN,
        state_frame_bytes: 8 << 10,
        frame_payload_bytes_max: 64 << 10,
        journal_reserve_bytes: 16 << 10,
        journal_grow_bytes: 16 << 10,
        opening_reserve_bytes: 64 << 10,
        reserve_step_bytes: 4 << 10,
        fresh_blocks_max: 1000,
        ..Limits::DEFAULT
    };
    StoreOptions { threads: false, limits, ..StoreOptions::default() }
}

fn open(path: &Path) -> Store {
    Store::open(path, options()).unwrap()
}

/// A fork of a volume with bytes everywhere is trimmed in many places: its presence does not fit into one frame.
#[test]
fn a_layer_in_very_many_pieces_is_closed_and_opened() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), options()).unwrap();
    store.create_volume("base", 32 << 30).unwrap().write_at(&[1; 1 << 20], 0).unwrap();
    store.create_snapshot("base", "s").unwrap();
    let guest = store.fork("base@s", "guest").unwrap();
    let pieces: Vec<u64> = (0..50_000u64).map(|piece| piece * 37 % 2_000_000).collect();
    for (number, block) in pieces.iter().enumerate() {
        guest.discard(block * BLOCK, BLOCK).unwrap();
        if number % 2000 == 0 {
            guest.flush().unwrap();
        }
    }
    guest.write_at(&[2; BLOCK as usize], 5 << 30).unwrap();
    let before = store.show("guest").unwrap();
    drop(guest);
    store.close().unwrap();
    drop(store);
    for _ in 0..2 {
        assert_eq!(Store::check(directory.path(), options()).unwrap().violations, Vec::<String>::new());
        let store = open(directory.path());
        assert_eq!(store.show("guest").unwrap(), before);
        let guest = store.volume("guest").unwrap();
        let mut block = [9; BLOCK as usize];
        for number in 0..256 {
            guest.read_at(&mut block, number * BLOCK).unwrap();
            assert_eq!(block[0], u8::from(!pieces.contains(&number)), "block {number}");
        }
        drop(guest);
        store.close().unwrap();
    }
}

fn on(disk: &FaultyDisk) -> StoreOptions {
    StoreOptions { disk: Arc::new(disk.clone()), clock: Arc::new(FastClock::default()), ..options() }
}

/// What a killed process leaves.
pub(super) fn killed(store: &Path, to: &Path) {
    std::fs::create_dir_all(to.join("layers")).unwrap();
    for directory in [store.to_owned(), store.join("layers")] {
        for entry in std::fs::read_dir(&directory).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
            let path = to.join(entry.path().strip_prefix(store).unwrap());
            std::fs::copy(entry.path(), path).unwrap();
        }
    }
}

fn steps(store: &Store, count: usize) {
    for _ in 0..count {
        store.step().unwrap();
    }
}

/// Marks are made and cleared again and again, and nothing new is written.
#[test]
fn a_full_disk_takes_overwrites_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let store = Store::create(directory.path(), on(&disk)).unwrap();
    let volume = store.create_volume("v", 1 << 30).unwrap();
    let write = |byte: u8| (0..64).try_for_each(|extent| volume.write_at(&[byte; BLOCK as usize], extent << 22));
    for byte in 0..2 {
        write(byte).unwrap();
        volume.flush().unwrap();
        steps(&store, 60);
    }
    disk.set_full(true);
    for round in 0..200u32 {
        write(round as u8).unwrap_or_else(|error| panic!("round {round}: {error}"));
        volume.flush().unwrap_or_else(|error| panic!("round {round}: {error}"));
        steps(&store, 30);
    }
    assert_eq!(volume.write_at(&[1; BLOCK as usize], 900 << 20).unwrap_err().kind(), ErrorKind::NoSpace);
    volume.flush().unwrap();
    drop(volume);
    store.close().unwrap();
    let store = Store::open(directory.path(), on(&disk)).unwrap();
    let mut block = [0; BLOCK as usize];
    store.volume("v").unwrap().read_at(&mut block, 63 << 22).unwrap();
    assert_eq!(block[0], 199);
}

/// Options of a store without background threads.
#[test]
fn a_full_disk_takes_discards_and_a_destroy_after_them() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let store = Store::create(directory.path(), on(&disk)).unwrap();
    let volume = store.create_volume("v", 1 << 30).unwrap();
    volume.write_at(&[1; 1 << 20], 0).unwrap();
    volume.create_snapshot("s").unwrap();
    disk.set_full(true);
    for number in 0..6000 {
        let done = volume.discard(number * BLOCK, BLOCK).and_then(|()| volume.flush());
        done.unwrap_or_else(|error| panic!("discard {number}: {error}"));
    }
    // Nor is a flush needed to make room.
    for number in 6000..12_000 {
        volume.discard(number * BLOCK, BLOCK).unwrap_or_else(|error| panic!("discard {number}: {error}"));
    }
    store.destroy_snapshot("v", "s").unwrap();
    volume.flush().unwrap();
    steps(&store, 100);
    volume.flush().unwrap();
}

/// Runs of blocks that only a snapshot shows come in groups of so many, far from one another.
const RUNS_TOGETHER: u64 = 128;

/// The first block of a run of two blocks, of which the volume has overwritten the first.
fn run_start(run: u64) -> u64 {
    run / RUNS_TOGETHER * 8192 + run % RUNS_TOGETHER * 2
}

fn fragmented(store: &Store, runs: u64) {
    let volume = store.create_volume("v", 4 << 30).unwrap();
    for run in (0..runs).step_by(RUNS_TOGETHER as usize) {
        volume.write_at(&vec![7; (2 * RUNS_TOGETHER * BLOCK) as usize], run_start(run) * BLOCK).unwrap();
    }
    volume.create_snapshot("s").unwrap();
    for run in 0..runs {
        volume.write_at(&[8; BLOCK as usize], run_start(run) * BLOCK).unwrap();
    }
    volume.flush().unwrap();
    steps(store, 100);
}

/// The blocks that only it showed are in more pieces than a frame, or the reserve, has room for.
#[test]
fn destroying_a_snapshot_in_very_many_pieces_makes_room() {
    const RUNS: u64 = 47 * RUNS_TOGETHER;
    for (full, has_pages) in [(false, false), (true, true), (true, false)] {
        let directory = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::default();
        let limits = Limits { frame_payload_bytes_max: 10 << 10, state_frame_bytes: 4 << 10, fresh_blocks_max: 200, ..options().limits };
        let on = || StoreOptions { limits, ..on(&disk) };
        let store = Store::create(directory.path(), on()).unwrap();
        fragmented(&store, RUNS);
        if has_pages {
            // Else the state carries their checksums, and grows.
            store.0.core.shape.checkpoint().unwrap();
        }
        disk.set_full(full);
        store.destroy_snapshot("v", "s").unwrap();
        steps(&store, 1000);
        let volume = store.volume("v").unwrap();
        volume.write_at(&[9; BLOCK as usize], 0).unwrap();
        volume.flush().unwrap();
        let held: u64 = store.0.core.layers.all().iter().map(|layer| layer.with_presence(|presence| presence.present.len())).sum();
        assert_eq!(held, 2 * RUNS, "what nobody shows is forgotten");
        drop(volume);
        store.close().unwrap();
        let store = Store::open(directory.path(), on()).unwrap();
        let volume = store.volume("v").unwrap();
        let mut block = [0; BLOCK as usize];
        for run in (0..RUNS).step_by(97) {
            for (within, byte) in [(0, if run == 0 { 9 } else { 8 }), (1, 7)] {
                volume.read_at(&mut block, (run_start(run) + within) * BLOCK).unwrap();
                assert_eq!(block[0], byte);
            }
        }
    }
}

/// Pages of checksums have no space; what they would say is in the journal again, also after another opening.
#[test]
fn a_store_opens_when_checksum_pages_have_no_space() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let (path, copy) = (directory.path().join("store"), directory.path().join("killed"));
    let store = Store::create(&path, on(&disk)).unwrap();
    let volume = store.create_volume("v", 16 << 30).unwrap();
    for extent in 0..200u64 {
        volume.write_at(&[1; BLOCK as usize], extent << 22).unwrap();
    }
    volume.flush().unwrap();
    killed(&path, &copy);
    disk.set_full(true);
    for _ in 0..3 {
        let store = Store::open(&copy, on(&disk)).unwrap();
        assert_eq!(store.scrub(None).unwrap().errors, Vec::<String>::new());
        let volume = store.volume("v").unwrap();
        for number in 0..300 {
            volume.discard((1 << 30) + number * BLOCK, BLOCK).unwrap();
            volume.flush().unwrap();
        }
        steps(&store, 30);
        volume.flush().unwrap();
        drop(volume);
        store.close().unwrap();
    }
}

/// A sync fails, and the page cache calls clean what it could not write.
#[test]
fn opening_after_a_failed_sync_distrusts_the_page_cache() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let store = Store::create(directory.path(), on(&disk)).unwrap();
    let volume = store.create_volume("v", 64 << 20).unwrap();
    for byte in 0..2 {
        // The first extent is marked.
        volume.write_at(&[byte; 4 * BLOCK as usize], 0).unwrap();
        volume.flush().unwrap();
    }
    volume.write_at(&[2; BLOCK as usize], 0).unwrap();
    volume.write_at(&[2; BLOCK as usize], 8 << 20).unwrap();
    disk.fail_syncs(true);
    assert_eq!(volume.flush().unwrap_err().kind(), ErrorKind::Io);
    disk.fail_syncs(false);
    drop(volume);
    store.close().unwrap_err();
    drop(store);
    let store = Store::open(directory.path(), on(&disk)).unwrap();
    let volume = store.volume("v").unwrap();
    let read = |offset| {
        let mut block = [9; BLOCK as usize];
        volume.read_at(&mut block, offset).map(|()| block[0])
    };
    let seen = [0, 8 << 20].map(|offset| read(offset).unwrap());
    volume.flush().unwrap();
    disk.drop_caches();
    assert_eq!([0, 8 << 20].map(|offset| read(offset).unwrap()), seen, "a flush was acknowledged");
}

/// What a kill left of a store whose volume `v` had so many extents overwritten: all of them are marked, and unverified. The disk
/// fails as it is told from here on.
fn with_marked_extents(disk: &FaultyDisk, directory: &Path, extents: u64) -> PathBuf {
    let (path, copy) = (directory.join("store"), directory.join("killed"));
    let store = Store::create(&path, on(disk)).unwrap();
    let volume = store.create_volume("v", 64 << 20).unwrap();
    for _ in 0..2 {
        (0..extents).for_each(|extent| volume.write_at(&[1; 2 * BLOCK as usize], extent << 22).unwrap());
        volume.flush().unwrap();
    }
    // Pages of checksums in files, and in no cache.
    store.0.core.shape.checkpoint().unwrap();
    killed(&path, &copy);
    copy
}

/// Whether a byte that changes in a file of the volume `v` is found: its extent was hashed before.
fn notices_damage(store: &Store, path: &Path, offset: u64) -> bool {
    let layer = store.0.core.layers.all()[0].id;
    let data = path.join("layers").join(format!("{layer}.data"));
    let mut bytes = std::fs::read(&data).unwrap();
    bytes[offset as usize] ^= 1;
    std::fs::write(&data, bytes).unwrap();
    let read = store.volume("v").unwrap().read_at(&mut [0; BLOCK as usize], offset);
    read.is_err_and(|error| error.kind() == ErrorKind::Corrupt)
}

/// An extent that cannot be read keeps neither others from being hashed, nor scrub from reading them.
#[test]
fn an_unreadable_extent_does_not_stop_what_is_done_for_others() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let path = with_marked_extents(&disk, directory.path(), 8);
    let store = Store::open(&path, on(&disk)).unwrap();
    disk.fail_reads_below(2 * BLOCK);
    steps(&store, 300);
    assert!(notices_damage(&store, &path, 5 << 22));
    let report = store.scrub(None).unwrap();
    assert_eq!((report.blocks_damaged, report.blocks_verified), (3, 16), "{:?}", report.errors);
    disk.fail_reads_below(0);
    assert_eq!(store.scrub(None).unwrap().blocks_damaged, 1);
}

/// A page of checksums that the disk cannot give any more costs its own extent, and not all that is done in the background.
#[test]
fn an_unreadable_page_of_checksums_stops_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let path = with_marked_extents(&disk, directory.path(), 4);
    let store = Store::open(&path, on(&disk)).unwrap();
    disk.fail_pages_below(4096);
    for _ in 0..300 {
        // The mark of that extent cannot be cleared, which is told.
        let _ = store.step();
    }
    assert!(notices_damage(&store, &path, 3 << 22), "the other extents were hashed");
    disk.fail_pages_below(0);
    assert_eq!(store.scrub(None).unwrap().blocks_damaged, 1);
    store.volume("v").unwrap().read_at(&mut [0; BLOCK as usize], 0).unwrap();
}

/// Blocks behind the end of a file that lost it are not made zeros by hashing, nor by a write behind them.
#[test]
fn a_lost_block_is_damaged_for_good() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let (path, copy) = (directory.path().join("store"), directory.path().join("killed"));
    let store = Store::create(&path, on(&disk)).unwrap();
    let volume = store.create_volume("v", 64 << 20).unwrap();
    for _ in 0..2 {
        volume.write_at(&[1; 1 << 20], 0).unwrap();
        volume.flush().unwrap();
    }
    killed(&path, &copy);
    let layer = store.0.core.layers.all()[0].id;
    let data = std::fs::OpenOptions::new().write(true).open(copy.join("layers").join(format!("{layer}.data"))).unwrap();
    data.set_len(512 << 10).unwrap();
    let store = Store::open(&copy, on(&disk)).unwrap();
    while store.step().unwrap() {}
    let volume = store.volume("v").unwrap();
    volume.write_at(&[5; BLOCK as usize], 2 << 20).unwrap();
    let mut block = [9; BLOCK as usize];
    volume.read_at(&mut block, 500 << 10).unwrap();
    assert_eq!(volume.read_at(&mut block, 800 << 10).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(store.scrub(None).unwrap().blocks_damaged, 128);
    volume.write_at(&[6; BLOCK as usize], 800 << 10).unwrap();
    volume.read_at(&mut block, 800 << 10).unwrap();
    assert_eq!(block[0], 6, "what is written again is there");
}

/// Checksums that are written anew after a crash are synced by every round that makes all volumes durable, not only by rounds of their
/// volume.
#[test]
fn an_extent_that_was_hashed_again_is_synced_with_all_others() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("store"), directory.path().join("killed"));
    let store = Store::create(&path, options()).unwrap();
    let volume = store.create_volume("v", 8 << 20).unwrap();
    for _ in 0..2 {
        volume.write_at(&[1; BLOCK as usize], 0).unwrap();
        volume.flush().unwrap();
    }
    killed(&path, &copy);
    let store = open(&copy);
    let layers = &store.0.core.layers;
    let layer = &layers.unverified()[0];
    while layers.cleaning.rehash_step(layer).unwrap() {}
    assert!(layer.needs_sync(), "its bytes were written again");
    layers.barriers.sync_fresh().unwrap();
    assert!(!layer.needs_sync());
}

/// Directories that were made for a store are durable before it is: power loss must not take a store with flushed volumes as a whole.
#[test]
fn the_directories_above_a_new_store_are_synced() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let path = directory.path().join("a/b/store");
    Store::create(&path, on(&disk)).unwrap();
    let synced = disk.synced_directories();
    let first = |wanted: &Path| synced.iter().position(|path| path == wanted).unwrap_or_else(|| panic!("{wanted:?}: {synced:?}"));
    let above = [directory.path().to_owned(), directory.path().join("a"), directory.path().join("a/b")];
    assert!(above.iter().all(|above| first(above) < first(&path)));
}

/// The process was killed between making them and syncing them.
#[test]
fn directories_of_an_earlier_try_are_synced_from_above() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let path = directory.path().join("a/b/store");
    std::fs::create_dir_all(&path).unwrap();
    // What was there before need not let itself be synced.
    disk.fail_sync_of_names(directory.path().parent().unwrap(), libc::EACCES);
    Store::create(&path, on(&disk)).unwrap();
    let synced = disk.synced_directories();
    for above in [directory.path().to_owned(), directory.path().join("a"), directory.path().join("a/b")] {
        assert!(synced.contains(&above), "{above:?}: {synced:?}");
    }
}

/// A page of checksums that was read before it was changed, written and dropped does not come into the cache after that.
#[test]
fn an_old_page_of_checksums_does_not_come_into_the_cache() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let small = || StoreOptions { checksum_cache_bytes: 1, ..on(&disk) };
    let store = Store::create(directory.path(), small()).unwrap();
    let volume = store.create_volume("v", 1 << 30).unwrap();
    let write = |volume: &Volume, block: u64| volume.write_at(&[1; BLOCK as usize], block * BLOCK).unwrap();
    (0..200).for_each(|extent| write(&volume, extent * 1024));
    drop(volume);
    store.close().unwrap();
    let store = Store::open(directory.path(), small()).unwrap();
    let volume = store.volume("v").unwrap();
    let (beside, meanwhile) = (store.clone(), volume.clone());
    disk.after_next_page(move || {
        write(&meanwhile, 7);
        meanwhile.flush().unwrap();
        beside.0.core.shape.checkpoint().unwrap();
        // Others take its place in the cache.
        let layers = &beside.0.core.layers;
        let layer = &layers.all()[0];
        for extent in (1..200).cycle() {
            if layers.blocks.cached_page(layer, crate::place::Extent::FIRST).is_none() {
                break;
            }
            meanwhile.read_at(&mut [0; BLOCK as usize], extent * 1024 * BLOCK).unwrap();
        }
    });
    let mut block = [0; BLOCK as usize];
    volume.read_at(&mut block, 0).unwrap();
    volume.read_at(&mut block, 7 * BLOCK).unwrap();
    assert_eq!(block[0], 1);
}

/// A write whose file cannot be opened has changed nothing: it fails alone.
#[test]
fn a_lack_of_descriptors_before_a_write_breaks_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let store = Store::create(directory.path(), on(&disk)).unwrap();
    let volume = store.create_volume("v", 64 << 20).unwrap();
    volume.write_at(&[1; 1 << 20], 0).unwrap();
    drop(volume);
    store.close().unwrap();
    let store = Store::open(directory.path(), on(&disk)).unwrap();
    let volume = store.volume("v").unwrap();
    let mut queue = volume.queue(1).unwrap();
    let mut by_queue = |data: &'static [u8]| {
        queue.submit(0, Request::Write { offset: 0, data: data.into(), fua: false }).unwrap();
        let mut done = Vec::new();
        queue.wait(&mut done, None).unwrap();
        done.remove(0).result.map(drop)
    };
    disk.fail_opens(true);
    assert_eq!(volume.write_at(&[2; BLOCK as usize], 0).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(volume.write_at(&[2; 100], 100).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(by_queue(&[2; BLOCK as usize]).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(by_queue(&[2; 512 << 10]).unwrap_err().kind(), ErrorKind::Io);
    volume.flush().unwrap();
    disk.fail_opens(false);
    let mut block = [0; BLOCK as usize];
    volume.read_at(&mut block, 0).unwrap();
    assert_eq!(block, [1; BLOCK as usize]);
    by_queue(&[3; 512 << 10]).unwrap();
    volume.flush().unwrap();
}
