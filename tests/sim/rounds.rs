//! Barrier rounds beside writers, discards and destroys: a completed flush survives the loss of power.

use std::path::Path;
use std::sync::Arc;

use volfork::io::Disk as _;
use volfork::{Store, StoreOptions, Volume};

use crate::clock::SimClock;
use crate::disk::{Fault, SimDisk};
use crate::hold::{Beside, Kind, beside};
use crate::random::Random;
use crate::world::Outcome;
use crate::{Named, seeds};

const BLOCK: u64 = 4096;

fn options(disk: &SimDisk) -> StoreOptions {
    StoreOptions::default().with_disk(Arc::new(disk.clone())).with_clock(Arc::new(SimClock::default())).with_threads(false)
}

/// A store with volumes whose first extent is marked.
fn marked(disk: &SimDisk, names: &[&str]) -> (Store, Vec<Volume>) {
    let store = Store::create(Path::new("store"), options(disk)).unwrap();
    let volumes: Vec<Volume> = names.iter().map(|name| store.create_volume(name, 8 << 20).unwrap()).collect();
    for volume in volumes.iter().cycle().take(2 * names.len()) {
        write(volume, 0, 1);
        volume.flush().unwrap();
    }
    (store, volumes)
}

fn write(volume: &Volume, block: u64, byte: u8) {
    volume.write_at(&[byte; BLOCK as usize], block * BLOCK).unwrap();
}

fn write_beside(volume: &Volume, block: u64, bytes: Vec<u8>) -> Beside<Outcome> {
    let volume = volume.clone();
    beside(move || volume.write_at(&bytes, block * BLOCK))
}

fn flush_beside(volume: &Volume) -> Beside<Outcome> {
    let volume = volume.clone();
    beside(move || volume.flush())
}

/// A round that has begun in its first layer, where it waits for a writer.
struct WaitingRound {
    writer: Beside<Outcome>,
    /// The flushes of the two volumes that are in it.
    flushes: [Beside<Outcome>; 2],
}

/// Lets a round of `first` and `second` begin and wait for a writer of `first`, whose layer is the lower one. Of `second` the round has
/// what was queued, and it has not begun there. Until the disk lets the writer go on, the round waits.
fn waiting_round(disk: &SimDisk, [first, second, other]: [&Volume; 3]) -> WaitingRound {
    write(first, 10, 1);
    write(other, 10, 1);
    disk.holds.hold(Kind::Sync, "journal");
    let before = flush_beside(other);
    disk.holds.await_held();
    let flushes = [flush_beside(first), flush_beside(second)];
    assert!(!flushes[0].ends_soon() && !flushes[1].ends_soon());
    disk.holds.hold(Kind::Write, ".data");
    let writer = write_beside(first, 10, vec![2; BLOCK as usize]);
    disk.holds.await_held();
    // The round of the other volume ends, and the next one begins.
    disk.holds.release();
    before.join().unwrap();
    assert!(!flushes[0].ends_soon(), "its round has begun, and waits");
    WaitingRound { writer, flushes }
}

fn lose_power(disk: &SimDisk, store: Store, seed: u64) -> Store {
    disk.power_off();
    drop(store);
    disk.crash(&mut Random::new(seed));
    Store::open(Path::new("store"), options(disk)).unwrap()
}

/// Every sector of the block holds one of these bytes.
fn assert_holds(store: &Store, name: &str, block: u64, allowed: &[u8]) {
    let mut bytes = [0xee; BLOCK as usize];
    store.volume(name).unwrap().read_at(&mut bytes, block * BLOCK).unwrap();
    let holds = |sector: &[u8]| allowed.iter().any(|byte| sector.iter().all(|found| found == byte));
    assert!(bytes.chunks(512).all(holds), "block {block} of {name} holds {}, allowed are {allowed:?}", bytes[0]);
}

/// F1: other blocks of the extent are admitted to a second writer while a round waits for a first one.
#[test]
fn a_flush_names_a_completed_write_whose_block_is_wanted_again() {
    for seed in seeds(12) {
        let _named = Named("two writers and a flush", seed);
        let disk = SimDisk::default();
        let (store, volumes) = marked(&disk, &["v"]);
        let v = &volumes[0];
        write(v, 10, 2);
        write(v, 11, 3);
        disk.holds.hold(Kind::Write, ".data");
        let first = write_beside(v, 10, vec![4; BLOCK as usize]);
        disk.holds.await_held();
        let flush = flush_beside(v);
        assert!(!flush.ends_soon(), "it waits for the writer");
        let second = write_beside(v, 11, vec![5; BLOCK as usize]);
        assert!(!second.ends_soon(), "it waits for the round");
        disk.holds.hold(Kind::Sync, "journal");
        disk.holds.release();
        first.join().unwrap();
        disk.holds.await_held();
        disk.holds.release();
        flush.join().unwrap();
        disk.power_off();
        let _ = second.join();
        drop(volumes);
        let store = lose_power(&disk, store, seed);
        assert_holds(&store, "v", 11, &[3, 5]);
        assert_holds(&store, "v", 10, &[4]);
    }
}

/// F2: a block that the last frame names is overwritten in place only when a later frame is durable, not when it is appended.
#[test]
fn a_block_of_the_last_frame_stays_until_a_later_one_is_durable() {
    for seed in seeds(40) {
        let _named = Named("an overwrite beside a flush", seed);
        let disk = SimDisk::default();
        let (store, volumes) = marked(&disk, &["v", "w"]);
        let (v, w) = (&volumes[0], &volumes[1]);
        write(v, 1, 2);
        // One frame has the block and a fork.
        write(w, 1, 7);
        disk.holds.hold(Kind::Sync, "journal");
        let first = flush_beside(w);
        disk.holds.await_held();
        let flush = flush_beside(v);
        let fork = {
            let store = store.clone();
            beside(move || store.fork("w", "fork").map(drop))
        };
        assert!(!flush.ends_soon() && !fork.ends_soon());
        disk.holds.release();
        first.join().unwrap();
        flush.join().unwrap();
        fork.join().unwrap();
        write(w, 2, 8);
        disk.holds.hold(Kind::Sync, "journal");
        let next = flush_beside(w);
        disk.holds.await_held();
        let overwrite = write_beside(v, 1, vec![3; BLOCK as usize]);
        overwrite.ends_soon();
        disk.power_off();
        let _ = (next.join(), overwrite.join());
        drop(volumes);
        let store = lose_power(&disk, store, seed);
        assert_holds(&store, "v", 1, &[2, 3]);
        assert_holds(&store, "fork", 1, &[7]);
    }
}

/// F3: space that is garbage from an earlier life of a block is not punched before its second end is durable.
#[test]
fn a_block_discarded_twice_is_punched_after_the_second() {
    for seed in seeds(40) {
        let _named = Named("two discards of a block", seed);
        let disk = SimDisk::default();
        let (store, volumes) = marked(&disk, &["v"]);
        let v = &volumes[0];
        // In an extent without a mark, whose blocks are verified after a crash.
        write(v, 1024, 1);
        v.flush().unwrap();
        v.discard(1024 * BLOCK, BLOCK).unwrap();
        v.flush().unwrap();
        write(v, 1024, 2);
        v.flush().unwrap();
        write(v, 5, 3);
        v.flush().unwrap();
        v.discard(1024 * BLOCK, BLOCK).unwrap();
        store.step().unwrap();
        drop(volumes);
        let store = lose_power(&disk, store, seed);
        assert_holds(&store, "v", 1024, &[2, 0]);
    }
}

/// F31: a round that names nothing and appends no frame proves nothing of what the latest frame names.
#[test]
fn an_empty_round_does_not_prove_the_blocks_of_the_last_frame() {
    for seed in seeds(40) {
        let _named = Named("an empty round", seed);
        let disk = SimDisk::default();
        let (store, volumes) = marked(&disk, &["v"]);
        let v = &volumes[0];
        write(v, 10, 2);
        disk.holds.hold(Kind::Write, ".data");
        // A fresh block and a new one.
        let both = write_beside(v, 10, vec![3; 2 * BLOCK as usize]);
        disk.holds.await_held();
        let flush = flush_beside(v);
        assert!(!flush.ends_soon(), "its round waits for that writer");
        disk.holds.release();
        both.join().unwrap();
        flush.join().unwrap();
        v.flush().unwrap();
        write(v, 10, 4);
        v.flush().unwrap();
        drop(volumes);
        if seed % 2 == 0 {
            let store = lose_power(&disk, store, seed);
            assert_holds(&store, "v", 10, &[4]);
        } else {
            // The process is killed, and the page cache stays.
            disk.power_off();
            drop(store);
            disk.restart();
            assert_holds(&Store::open(Path::new("store"), options(&disk)).unwrap(), "v", 10, &[4]);
        }
    }
}

/// F32: a discard between the gathering of a round and its beginning in the layer.
#[test]
fn a_discard_beside_a_round_restores_nothing_older() {
    for seed in seeds(20) {
        let _named = Named("a discard beside a round", seed);
        let disk = SimDisk::default();
        let (store, volumes) = marked(&disk, &["a", "v", "c"]);
        let [a, v, c] = &volumes[..] else { panic!("three volumes") };
        write(v, 10, 1);
        v.flush().unwrap();
        v.create_snapshot("s").unwrap();
        write(v, 0, 1);
        v.flush().unwrap();
        write(v, 10, 2);
        let WaitingRound { writer, flushes } = waiting_round(&disk, [a, v, c]);
        let discard = {
            let v = v.clone();
            beside(move || v.discard(10 * BLOCK, BLOCK))
        };
        discard.ends_soon();
        disk.holds.release();
        writer.join().unwrap();
        flushes.into_iter().for_each(|flush| flush.join().unwrap());
        disk.power_off();
        let _ = discard.join();
        drop(volumes);
        assert_holds(&lose_power(&disk, store, seed), "v", 10, &[2, 0]);
    }
}

/// F16: a volume is destroyed between the beginning of a round that has it and its turn in it.
#[test]
fn a_destroy_in_the_middle_of_a_round_leaves_the_accounts_right() {
    let disk = SimDisk::default();
    let (store, volumes) = marked(&disk, &["a", "z", "c"]);
    let [a, z, c] = &volumes[..] else { panic!("three volumes") };
    z.write_at(&vec![1; 4 << 20], 0).unwrap();
    let WaitingRound { writer, flushes: [flush_a, flush_z] } = waiting_round(&disk, [a, z, c]);
    let destroy = {
        let store = store.clone();
        beside(move || store.destroy_volume("z", true))
    };
    destroy.ends_soon();
    disk.holds.release();
    writer.join().unwrap();
    flush_a.join().unwrap();
    let _ = flush_z.join();
    destroy.join().unwrap();
    let before = store.barriers();
    for block in 100..200 {
        write(a, block, 3);
    }
    assert_eq!(store.barriers(), before, "a write is no barrier");
}

/// A volume is destroyed between the gathering of a round that has its flush and the round's turn in it: the flush is acknowledged
/// before the record of the destruction is durable, so the flushed bytes are there if the volume is.
#[test]
fn a_flush_counts_until_a_destroy_beside_it_is_durable() {
    let mut back = 0;
    for seed in seeds(20) {
        let _named = Named("a flush beside a destroy", seed);
        let disk = SimDisk::default();
        let (store, volumes) = marked(&disk, &["a", "v", "c"]);
        let [a, v, c] = &volumes[..] else { panic!("three volumes") };
        write(v, 10, 2);
        let WaitingRound { writer, flushes } = waiting_round(&disk, [a, v, c]);
        let destroy = {
            let store = store.clone();
            beside(move || store.destroy_volume("v", true))
        };
        assert!(!destroy.ends_soon(), "it waits for its round");
        disk.holds.hold(Kind::Sync, "journal");
        disk.holds.release();
        writer.join().unwrap();
        disk.holds.await_held();
        disk.holds.hold(Kind::Sync, "journal");
        disk.holds.release();
        flushes.into_iter().for_each(|flush| flush.join().unwrap());
        // The round with the record of the destruction.
        disk.holds.await_held();
        disk.power_off();
        let _ = destroy.join();
        drop(volumes);
        let store = lose_power(&disk, store, seed);
        if store.volume("v").is_ok() {
            back += 1;
            assert_holds(&store, "v", 10, &[2]);
        }
    }
    assert!(back > 0, "no loss of power came before the destruction was durable");
}

/// F24: blocks of idle volumes that wait for their record are made durable by whoever feels the pressure, once.
#[test]
fn blocks_of_idle_volumes_do_not_make_every_write_a_barrier() {
    let disk = SimDisk::default();
    let store = Store::create(Path::new("store"), options(&disk)).unwrap();
    let volumes: Vec<Volume> = (0..20).map(|number| store.create_volume(&format!("v{number}"), 64 << 20).unwrap()).collect();
    for volume in &volumes {
        for extent in 0..4 {
            volume.write_at(&vec![1; 4 << 20], extent << 22).unwrap();
        }
    }
    let before = store.barriers();
    for block in 0..200 {
        write(&volumes[19], (32 << 20) / BLOCK + block, 2);
    }
    assert!(store.barriers() - before <= 1, "{} barriers for 200 writes that nobody flushed", store.barriers() - before);
}

/// F15: a crash undoes a fork and leaves the file of its layer; the number is not given to a new layer, whose file a sweep would
/// remove.
#[test]
fn the_number_of_a_layer_that_a_crash_undid_is_not_given_again() {
    let mut shown = false;
    for seed in seeds(60) {
        let _named = Named("a fork that a crash undid", seed);
        let disk = SimDisk::default();
        let (store, volumes) = marked(&disk, &["v"]);
        disk.holds.hold(Kind::Sync, "journal");
        let fork = {
            let store = store.clone();
            beside(move || store.fork("v", "f").map(drop))
        };
        disk.holds.await_held();
        // The new head gets a file, and something makes its name durable.
        write(&volumes[0], 1, 2);
        disk.sync_dir(Path::new("store/layers")).unwrap();
        disk.power_off();
        let _ = fork.join();
        drop(volumes);
        let store = lose_power(&disk, store, seed);
        let left: Vec<_> = disk.files().into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "data")).collect();
        if left.len() < 2 || store.volume("f").is_ok() {
            continue;
        }
        shown = true;
        write(&store.create_volume("c", 8 << 20).unwrap(), 0, 9);
        let made: Vec<_> = disk.files().into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "data")).collect();
        assert_eq!(made.len(), left.len() + 1, "the new volume has a file of its own");
        while store.step().unwrap() {}
        assert_holds(&store, "c", 0, &[9]);
    }
    assert!(shown, "no crash left a file without a record");
}

/// Pages that a checkpoint wrote, and whose file the cleaner syncs, are durable before the journal that has their checksums is replaced.
#[test]
fn a_checkpoint_waits_for_pages_that_the_cleaner_syncs() {
    for seed in seeds(12) {
        let _named = Named("a checkpoint beside the cleaner", seed);
        let disk = SimDisk::default();
        let options = || options(&disk).with_checkpoint_bytes(4096);
        let store = Store::create(Path::new("store"), options()).unwrap();
        let (v, w) = (store.create_volume("v", 16 << 20).unwrap(), store.create_volume("w", 16 << 20).unwrap());
        for _ in 0..2 {
            write(&v, 0, 1);
            v.flush().unwrap();
        }
        let step_beside = || {
            let (store, disk) = (store.clone(), disk.clone());
            beside(move || {
                while !disk.is_off() {
                    let _ = store.step();
                }
            })
        };
        // The first layer's page of extent 0 is written by the cleaner, which is held there.
        disk.holds.hold(Kind::Write, "layers/0.crc");
        let cleaner = step_beside();
        disk.holds.await_held();
        // Those of extent 1 of both layers have changed, and a checkpoint is due.
        for block in 0..300 {
            write(&v, 1024 + 2 * block, 2);
            write(&w, 1024 + 2 * block, 3);
        }
        v.flush().unwrap();
        w.flush().unwrap();
        let checkpoint = step_beside();
        disk.holds.hold(Kind::Sync, "layers/0.crc");
        disk.holds.release();
        disk.holds.await_held();
        disk.holds.release();
        checkpoint.ends_soon();
        disk.power_off();
        let _ = (cleaner.join(), checkpoint.join());
        drop((v, w));
        let store = lose_power(&disk, store, seed);
        for block in 0..300 {
            assert_holds(&store, "v", 1024 + 2 * block, &[2]);
            assert_holds(&store, "w", 1024 + 2 * block, &[3]);
        }
    }
}

/// A write that fails in the middle leaves sectors old and new. A fork keeps what they were when it was made.
#[test]
fn a_fork_keeps_what_a_refused_overwrite_left() {
    const BLOCKS: usize = 4;
    let mut torn = 0;
    for seed in seeds(60) {
        let _named = Named("a fork after a refused overwrite", seed);
        let disk = SimDisk::default();
        let (store, volumes) = marked(&disk, &["v"]);
        let v = &volumes[0];
        for block in 0..BLOCKS as u64 {
            write(v, block, 1);
        }
        v.flush().unwrap();
        // What they are is proven, and their extent is marked.
        for block in 0..BLOCKS as u64 {
            write(v, block, 2);
            v.flush().unwrap();
        }
        disk.shorten_transfers(seed);
        disk.fail_at(disk.operations() + 2, Fault::Enospc);
        let refused = v.write_at(&[3; BLOCKS * BLOCK as usize], 0).is_err();
        disk.clear_faults();
        store.fork("v", "fork").unwrap();
        let read = |store: &Store| {
            let mut bytes = vec![0; BLOCKS * BLOCK as usize];
            store.volume("fork").unwrap().read_at(&mut bytes, 0).unwrap();
            bytes
        };
        let before = read(&store);
        torn += usize::from(refused && before.contains(&3));
        drop(volumes);
        let store = lose_power(&disk, store, seed);
        assert!(read(&store) == before, "the fork has changed");
    }
    assert!(torn > 0, "no write was refused in the middle");
}
