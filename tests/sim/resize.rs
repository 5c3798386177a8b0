//! Changes of size: either before or after, and what was cut off does not come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::disk::Fault;
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
