//! Forks of one source share a root: a block that one fork needs no more may still be needed by another, before and after a crash.

use std::sync::atomic::Ordering;

use crate::disk::Fault;
use crate::hold::{Kind, beside};
use crate::model::{SECTOR, VOLUME_BYTES, VolumeModel, WINDOW_SECTORS};
use crate::source::{STEADY, source_tags};
use crate::threads::work_beside;
use crate::world::{Outcome, World};
use crate::{Named, seeds};

/// Forks that come and go, and overwrite so much that their root loses most of what it had.
fn come_and_go(world: &mut World, compare: bool) -> Outcome {
    world.open()?;
    for _ in 0..8 {
        world.fork_source()?;
        for _ in 0..1 + world.random.below(4) {
            let names: Vec<String> = world.model.keys().cloned().collect();
            let name = &names[world.random.below(names.len() as u64) as usize];
            match world.random.below(6) {
                0 if names.len() > 1 => world.destroy(name)?,
                1 => world.snapshot(name)?,
                2 => world.step()?,
                _ => {
                    let blocks = WINDOW_SECTORS as u64 / 8;
                    let (from, to) = (world.random.below(blocks), world.random.below(blocks));
                    world.write_sectors(name, from.min(to) as usize * 8..(from.max(to) + 1) as usize * 8)?;
                    world.flush(name)?;
                }
            }
        }
        // Now and then the root becomes complete, and gives back what nobody sees.
        if world.random.below(2) == 0 {
            // Without power backfill waits, and tells nobody.
            while world.store().step()? && !world.disk.is_off() {}
        }
        if compare {
            world.compare();
        }
    }
    Ok(())
}

#[test]
fn short_lived_forks_have_source_bytes_after_any_crash() {
    let mut again = 0;
    for seed in seeds(60) {
        let _named = Named("forks that come and go", seed);
        let mut rehearsal = World::new(seed);
        come_and_go(&mut rehearsal, true).unwrap();
        let operations = rehearsal.disk.operations();
        again += u64::from(rehearsal.sources.0.bytes_read.load(Ordering::SeqCst) > WINDOW_SECTORS as u64 * SECTOR);
        rehearsal.crash();
        for point in 0..12 {
            let mut world = World::new(seed);
            world.disk.fail_at(1 + (operations * point + seed) / 12, Fault::Crash);
            let outcome = come_and_go(&mut world, false);
            assert!(outcome.is_ok() || world.disk.is_off(), "{outcome:?}\n{}", world.story());
            world.crash();
            while world.store().step().unwrap() {}
            world.compare();
        }
    }
    assert!(again > 0, "no history fetched a block again");
}

#[test]
fn a_fork_made_as_its_root_completes_has_all_bytes() {
    for seed in seeds(6) {
        let _named = Named("a fork beside the end of a hydration", seed);
        // Checkpoints are not due.
        let mut world = World::new(seed * 3 + 1);
        world.open().unwrap();
        world.fork_source().unwrap();
        // Nobody needs the root; what it knows of zeros is made durable before it is let go.
        world.write_sectors("v1", 0..WINDOW_SECTORS).unwrap();
        world.flush("v1").unwrap();
        world.disk.holds.hold(Kind::Sync, "journal");
        let (stop, worker) = work_beside(&world);
        world.disk.holds.await_held();
        let store = world.store().clone();
        let fork = beside(move || store.fork(STEADY, "v2").map(drop));
        assert!(!fork.ends_soon(), "it does not wait for the journal");
        world.disk.holds.release();
        fork.join().unwrap();
        world.model.insert("v2".into(), VolumeModel::new(source_tags(), VOLUME_BYTES));
        world.compare();
        stop.store(true, Ordering::SeqCst);
        worker.join();
        while world.store().step().unwrap() {}
        world.compare();
        world.crash();
    }
}
