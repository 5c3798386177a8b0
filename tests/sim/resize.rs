//! Resizes are atomic across a crash, and bytes that were cut off do not come back.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use volfork::volume::ForkOptions;
use volfork::{ErrorKind, Store, StoreOptions};

use crate::clock::SimClock;
use crate::disk::{Fault, SimDisk};
use crate::hold::{Kind, beside};
use crate::model::{SECTOR, WINDOW_SECTORS, WINDOW_START};
use crate::random::Random;
use crate::world::World;
use crate::{Named, seeds};

const BLOCK_SECTORS: usize = 8;

/// A world with a volume whose window is full, and flushed twice, so that it is overwritten in place.
fn full(seed: u64) -> World {
    let mut world = World::new(seed * 3 + 1);
    world.open().unwrap();
    world.create().unwrap();
    for _ in 0..2 {
        world.write_sectors("v1", 0..WINDOW_SECTORS).unwrap();
        world.flush("v1").unwrap();
    }
    world.random = Random::new(seed);
    world
}

/// The power goes off at each operation of a shrink, and of the growth after it.
#[test]
fn a_shrink_is_there_with_its_zeros_or_not_at_all() {
    for seed in seeds(6) {
        for at in 1.. {
            let _named = Named("a shrink with a power loss", seed);
            let mut world = full(seed);
            let before = world.disk.operations();
            world.disk.fail_at(before + at, Fault::Crash);
            // In the middle of a block, which other writes have changed since they were flushed.
            let changed = world.write_sectors("v1", 80..84);
            let outcome = changed
                .and_then(|()| world.resize_to("v1", 83))
                .and_then(|()| world.flush("v1"))
                .and_then(|()| world.resize_to("v1", WINDOW_SECTORS));
            let reached = world.disk.operations() >= before + at;
            assert!(reached || outcome.is_ok(), "{outcome:?}");
            world.crash();
            // What is not to be seen is looked at, too.
            world.resize_to("v1", WINDOW_SECTORS).unwrap();
            world.compare();
            if !reached {
                break;
            }
        }
    }
}

/// Forks and snapshots have what was cut off or the new size, and never bytes that come back when they grow.
#[test]
fn a_fork_beside_a_shrink_has_either_size_and_its_bytes() {
    for seed in seeds(8) {
        let _named = Named("a fork beside a shrink", seed);
        let world = full(seed);
        let (volume, store) = (world.store().volume("v1").unwrap(), world.store().clone());
        let size_bytes = WINDOW_START + (BLOCK_SECTORS as u64 + 1) * SECTOR;
        world.disk.holds.hold(Kind::Write, ".data");
        let shrinking = store.clone();
        let shrink = || beside(move || shrinking.resize("v1", size_bytes, true));
        // Either a write is under way, so that the two meet at the gate; or the shrink is held where it writes, if it does.
        let (shrink, writer) = if seed % 2 == 0 {
            let writer = beside(move || volume.write_at(&[9; 512], WINDOW_START));
            world.disk.holds.await_held();
            (shrink(), Some(writer))
        } else {
            (shrink(), None)
        };
        shrink.ends_soon();
        let forking = store.clone();
        let fork = beside(move || {
            forking.fork("v1", "f")?;
            forking.create_snapshot("v1", "s")?;
            forking.fork("v1@s", "g").map(drop)
        });
        fork.ends_soon();
        // A shrink that does not write is not waited for any more.
        world.disk.holds.hold(Kind::Write, "nothing");
        world.disk.holds.release_all();
        if let Some(writer) = writer {
            writer.join().unwrap();
        }
        shrink.join().unwrap();
        fork.join().unwrap();
        let mut old = vec![0; WINDOW_SECTORS * SECTOR as usize];
        let full_bytes = WINDOW_START + old.len() as u64;
        let mut before = None;
        for name in ["v1", "f", "g"] {
            let volume = store.volume(name).unwrap();
            let was = volume.size_bytes();
            volume.resize(full_bytes, false).unwrap();
            volume.read_at(&mut old, WINDOW_START).unwrap();
            let kept = ((was - WINDOW_START) as usize).min(old.len());
            assert!(old[kept..].iter().all(|byte| *byte == 0), "{name} had {was} bytes");
            let start = before.get_or_insert_with(|| old[..(size_bytes - WINDOW_START) as usize].to_vec());
            assert!(old.starts_with(start), "{name}");
        }
    }
}

/// A discard to the end takes the last block as a whole only while that is the end.
#[test]
fn a_discard_spares_what_was_written_behind_its_end() {
    for seed in seeds(4) {
        let _named = Named("a discard beside a growth", seed);
        let mut world = full(seed);
        world.resize_to("v1", 83).unwrap();
        let store = world.store().clone();
        let volume = store.volume("v1").unwrap();
        let size_bytes = volume.size_bytes();
        let stop = Arc::new(AtomicBool::new(false));
        let (discarding, stopped) = (volume.clone(), Arc::clone(&stop));
        let discard = beside(move || {
            while !stopped.load(Ordering::SeqCst) {
                // Refused while it would end behind the volume.
                let _ = discarding.discard(WINDOW_START + 100, size_bytes - WINDOW_START - 100);
            }
        });
        for _ in 0..100 {
            volume.resize(size_bytes + 512, false).unwrap();
            volume.write_at(&[9; 512], size_bytes).unwrap();
            for _ in 0..3 {
                let mut behind = [0; 512];
                volume.read_at(&mut behind, size_bytes).unwrap();
                assert_eq!(behind, [9; 512]);
            }
            volume.resize(size_bytes, true).unwrap();
        }
        stop.store(true, Ordering::SeqCst);
        discard.join();
    }
}

/// A shrink of a large volume over a parent is a short record that means many zeros: a container of the state for each 65,536 blocks. On a
/// full disk only as many are taken as the next state has space for, and at least one.
#[test]
fn shrinks_on_a_full_disk_leave_space_for_the_next_state() {
    const FORKS: u64 = 12;
    let disk = SimDisk::default();
    let options =
        || StoreOptions::default().with_disk(Arc::new(disk.clone())).with_clock(Arc::new(SimClock::default())).with_threads(false);
    let store = Store::create(Path::new("store"), options()).unwrap();
    let volume = store.create_volume("v", 16 << 40).unwrap();
    volume.write_at(&[1; 4096], 0).unwrap();
    store.create_snapshot("v", "s").unwrap();
    let forks: Vec<String> = (0..FORKS).map(|number| format!("f{number}")).collect();
    for fork in &forks {
        store.fork("v@s", fork).unwrap();
    }
    volume.flush().unwrap();
    disk.set_capacity(Some(disk.used_pages()));
    let mut sizes = Vec::new();
    for fork in &forks {
        match store.resize(fork, 4096, true) {
            Ok(()) => sizes.push(4096),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
                sizes.push(16 << 40);
            }
        }
        assert_eq!(Some(&store.show(fork).unwrap().size_bytes), sizes.last(), "{fork}");
    }
    println!("{sizes:?}");
    assert_eq!(sizes[0], 4096, "what gives back space has a reserve");
    drop(volume);
    let mut store = Some(store);
    // Each opening writes the state into the other file.
    for seed in 0..4 {
        disk.power_off();
        drop(store.take());
        disk.crash(&mut Random::new(seed));
        let opened = Store::open(Path::new("store"), options()).expect("a store opens on a full disk");
        for (fork, size) in forks.iter().zip(&sizes) {
            assert_eq!(opened.show(fork).unwrap().size_bytes, *size, "{fork}");
        }
        store = Some(opened);
    }
    store.unwrap().close().unwrap();
}

/// A fork that is larger than its source is there with its size and zeros behind the source's end, or not at all, and nothing is left.
#[test]
fn a_fork_of_a_larger_size_is_whole_or_not_there() {
    const END: u64 = WINDOW_START + 83 * SECTOR;
    const SIZE: u64 = WINDOW_START + WINDOW_SECTORS as u64 * SECTOR + 77;
    for at in 1.. {
        let _named = Named("a fork of a larger size with a power loss", at);
        let mut world = full(1);
        // The last block has other bytes behind the end.
        world.resize_to("v1", 83).unwrap();
        world.snapshot("v1").unwrap();
        let snapshot = world.store().snapshot_names("v1").unwrap().remove(0);
        let mut expected = vec![0; (SIZE - WINDOW_START) as usize];
        world.store().volume("v1").unwrap().read_at(&mut expected[..(END - WINDOW_START) as usize], WINDOW_START).unwrap();
        let before = world.disk.operations();
        world.disk.fail_at(before + at, Fault::Crash);
        let options = ForkOptions::default().with_size_bytes(SIZE);
        let made = world.store().fork_with(&[format!("v1@{snapshot}")], "large", &options).map(drop);
        let reached = world.disk.operations() >= before + at;
        assert!(reached || made.is_ok(), "{made:?}");
        world.restart_without_looking(true);
        let store = world.store();
        store.sweep_unfinished().unwrap();
        let mut names = store.volume_names();
        names.sort();
        match &names[..] {
            [large, first] if large == "large" && first == "v1" => {
                let (fork, mut found) = (store.volume("large").unwrap(), vec![1; expected.len()]);
                fork.read_at(&mut found, WINDOW_START).unwrap();
                assert!(fork.size_bytes() == SIZE && found == expected, "operation {at}");
                assert_eq!(store.show("large").unwrap().labels, store.show("v1").unwrap().labels);
            }
            [first] => assert!(first == "v1" && made.is_err(), "operation {at}: {made:?}"),
            _ => panic!("operation {at}: {names:?}"),
        }
        if !reached {
            break;
        }
    }
}
