//! Several threads: one is held inside the disk while another one makes a call that has to wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use volfork::Store;
use volfork::io::Disk as _;

use crate::hold::{Beside, Kind, beside};
use crate::model::{SECTOR, SnapshotModel, VolumeModel, WINDOW_START, sector_bytes};
use crate::random::Random;
use crate::world::{Outcome, World};
use crate::{Named, seeds};

/// A store with a volume whose first block was flushed twice, so that its extent is marked.
fn marked(seed: u64) -> World {
    // Checkpoints are not due.
    let mut world = World::new(seed * 3 + 1);
    world.open().unwrap();
    world.create().unwrap();
    for _ in 0..2 {
        world.write_sectors("v1", 0..8).unwrap();
        world.flush("v1").unwrap();
    }
    // Every choice of what survives comes.
    world.random = Random::new(seed);
    world
}

/// A write of some sectors in a thread of its own. The model has it as one that may have happened.
fn write_beside(world: &mut World, sectors: std::ops::Range<usize>, tag: u64) -> Beside<Outcome> {
    let volume = world.store().volume("v1").unwrap();
    let model = world.model.get_mut("v1").unwrap();
    model.begin_write(sectors.clone(), tag);
    model.end_write(sectors.clone(), tag);
    world.log.push(format!("write v1 {sectors:?} = {tag}, beside"));
    let data = sector_bytes(tag).repeat(sectors.len());
    beside(move || volume.write_at(&data, WINDOW_START + sectors.start as u64 * SECTOR))
}

fn flush_beside(world: &World, name: &str) -> Beside<Outcome> {
    let volume = world.store().volume(name).unwrap();
    beside(move || volume.flush())
}

/// Background work until it is told to stop.
pub fn work_beside(world: &World) -> (Arc<AtomicBool>, Beside<()>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, store): (_, Store) = (Arc::clone(&stop), world.store().clone());
    let work = move || {
        while !stopped.load(Ordering::SeqCst) && store.step().is_ok() {
            std::thread::yield_now();
        }
    };
    (stop, beside(work))
}

#[test]
fn a_flush_waits_for_names_that_another_thread_makes_durable() {
    for seed in seeds(8) {
        let _named = Named("names of two threads", seed);
        let mut world = marked(seed);
        world.create().unwrap();
        // The cleaner creates a checksum file. Before it syncs the directory, a file of the other volume is created.
        world.disk.holds.hold(Kind::Write, ".crc");
        let (stop, worker) = work_beside(&world);
        world.disk.holds.await_held();
        world.write_sectors("v2", 0..8).unwrap();
        world.disk.holds.hold(Kind::SyncNames, "layers");
        world.disk.holds.release();
        world.disk.holds.await_held();
        let flush = flush_beside(&world, "v2");
        if flush.ends_soon() {
            world.disk.power_off();
        }
        world.disk.holds.release();
        flush.join().unwrap();
        world.model.get_mut("v2").unwrap().flush();
        stop.store(true, Ordering::SeqCst);
        worker.join();
        world.crash();
    }
}

#[test]
fn a_flush_waits_for_the_writer_of_a_block_that_no_frame_has() {
    for seed in seeds(6) {
        let _named = Named("a writer of a fresh block", seed);
        let mut world = marked(seed);
        world.write_sectors("v1", 40..48).unwrap();
        world.model.get_mut("v1").unwrap().flush();
        world.disk.holds.hold(Kind::Write, ".data");
        let write = write_beside(&mut world, 40..48, 9_000);
        world.disk.holds.await_held();
        let flush = flush_beside(&world, "v1");
        if flush.ends_soon() {
            world.disk.power_off();
        }
        world.disk.holds.release();
        flush.join().unwrap();
        let _ = write.join();
        world.crash();
    }
}

#[test]
fn a_writer_waits_for_the_round_that_names_its_block() {
    for seed in seeds(12) {
        let _named = Named("a write in a round", seed);
        let mut world = marked(seed);
        world.write_sectors("v1", 40..48).unwrap();
        world.disk.holds.hold(Kind::Sync, if seed % 2 == 0 { "journal" } else { ".data" });
        let flush = flush_beside(&world, "v1");
        world.disk.holds.await_held();
        world.model.get_mut("v1").unwrap().flush();
        let write = write_beside(&mut world, 40..48, 9_000);
        write.ends_soon();
        world.disk.holds.release();
        flush.join().unwrap();
        write.join().unwrap();
        world.crash();
    }
}

#[test]
fn a_mark_stays_if_a_write_comes_while_it_is_cleared() {
    for seed in seeds(6) {
        let _named = Named("a write while cleaning", seed);
        let mut world = marked(seed);
        world.disk.holds.hold(Kind::Sync, ".crc");
        let (stop, worker) = work_beside(&world);
        world.disk.holds.await_held();
        world.write_sectors("v1", 0..8).unwrap();
        stop.store(true, Ordering::SeqCst);
        world.disk.holds.release();
        worker.join();
        world.flush("v1").unwrap();
        world.crash();
    }
}

#[test]
fn a_fork_waits_for_writes_that_began_before() {
    for seed in seeds(4) {
        let _named = Named("a fork and a write", seed);
        let mut world = marked(seed);
        world.disk.holds.hold(Kind::Write, ".data");
        let write = write_beside(&mut world, 0..8, 9_000);
        world.disk.holds.await_held();
        let store = world.store().clone();
        let fork = beside(move || store.fork("v1", "fork"));
        let look = |world: &World| {
            let mut bytes = [0; SECTOR as usize];
            world.store().volume("fork").unwrap().read_at(&mut bytes, WINDOW_START).unwrap();
            bytes
        };
        let early = fork.ends_soon().then(|| look(&world));
        world.disk.holds.release();
        write.join().unwrap();
        fork.join().unwrap();
        assert!(early.is_none_or(|early| early == look(&world)), "the fork changed after it was made");
        world.model.get_mut("v1").unwrap().flush();
        let forked = world.model["v1"].clone();
        let content = SnapshotModel { sectors: forked.live, size_bytes: forked.size_bytes, chain: None };
        world.model.insert("fork".into(), VolumeModel::new(content.sectors, content.size_bytes));
        world.crash();
    }
}

#[test]
fn writers_of_parts_of_one_block_take_turns() {
    for seed in seeds(4) {
        let _named = Named("two writers of a block", seed);
        let mut world = marked(seed);
        world.disk.holds.hold(Kind::Write, ".data");
        let first = write_beside(&mut world, 0..1, 9_000);
        world.disk.holds.await_held();
        let second = write_beside(&mut world, 1..2, 9_001);
        second.ends_soon();
        world.disk.holds.release();
        first.join().unwrap();
        second.join().unwrap();
        world.compare();
        world.flush("v1").unwrap();
        world.crash();
    }
}

/// The record may be lost with the power, and then the volume is still there.
#[test]
fn files_of_a_destroyed_volume_stay_until_its_end_is_durable() {
    for seed in seeds(12) {
        let _named = Named("a destroy that is not durable", seed);
        let mut world = marked(seed);
        if seed % 2 == 1 {
            // Files that nothing refers to are looked for after an opening.
            world.restart_without_looking(false);
        }
        let (disk, files) = (world.disk.clone(), world.layer_files());
        let mut left = 0;
        let mut after = world.model.clone();
        after.remove("v1");
        let ended = world.change("destroy v1".into(), after, |store| {
            disk.holds.hold(Kind::Sync, "journal");
            let destroying = store.clone();
            let destroy = beside(move || destroying.destroy_volume("v1", true));
            disk.holds.await_held();
            let stepped = store.step();
            // Any other round may make names durable now.
            disk.sync_dir(&World::root().join("layers")).unwrap();
            left = disk.files().iter().filter(|path| path.starts_with(World::root().join("layers"))).count();
            disk.power_off();
            destroy.join().and(stepped.map(drop))
        });
        assert!(ended.is_err(), "the power was off");
        world.crash();
        assert_eq!(left, files, "{}", world.story());
    }
}

/// A flush just before a head is replaced, with its gate closed: the clock is asked there, before rounds have to wait.
#[test]
fn a_flush_covers_earlier_writes_when_the_head_is_replaced() {
    for seed in seeds(16) {
        let _named = Named("a flush in the middle of a fork", seed);
        let mut world = marked(seed);
        // In place, or a new block.
        world.write_sectors("v1", if seed % 4 < 2 { 40..48 } else { 0..8 }).unwrap();
        let (volume, disk) = (world.store().volume("v1").unwrap(), world.disk.clone());
        world.clock.at_next_date(move || {
            volume.flush().unwrap();
            disk.power_off();
        });
        let ended = if seed % 2 == 0 { world.fork("v1") } else { world.snapshot("v1") };
        assert!(ended.is_err() && world.disk.is_off(), "the store asks for no date");
        world.model.get_mut("v1").unwrap().flush();
        world.crash();
    }
}
