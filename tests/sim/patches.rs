//! Patches of missing blocks: with a source that comes and goes, below forks and snapshots, across losses of power.

use std::sync::atomic::Ordering;

use crate::disk::Fault;
use crate::model::WINDOW_START;
use crate::random::Random;
use crate::source::source_tags;
use crate::world::{Outcome, World};
use crate::{Named, seeds};

/// One random operation, the source possibly lost.
fn act(world: &mut World) -> Outcome {
    match world.random.below(10) {
        0 => world.toggle_source(),
        1 | 2 => world.peek(),
        _ => match world.act() {
            Err(error) if !world.disk.is_off() => world.take_lost(&error),
            other => return other,
        },
    }
    Ok(())
}

fn run(world: &mut World, acts: u64) -> Outcome {
    world.open()?;
    world.fork_source()?;
    world.toggle_source();
    for _ in 0..acts {
        act(world)?;
    }
    Ok(())
}

/// The life of the store ends somehow.
fn end(world: &mut World) {
    match world.random.below(4) {
        0 if !world.disk.is_off() => match world.close() {
            Ok(()) => world.verify_reopened(),
            Err(_) => world.crash(),
        },
        1 if !world.disk.is_off() => world.kill(),
        _ => world.crash(),
    }
}

#[test]
fn long_histories_while_the_source_comes_and_goes() {
    for seed in seeds(400) {
        let _named = Named("a history without a source", seed);
        let mut world = World::new(seed);
        world.open().unwrap();
        for _ in 0..3 {
            if world.random.below(3) == 0 {
                let after = 1 + world.random.below(200);
                world.disk.fail_at(world.disk.operations() + after, Fault::Crash);
            }
            let outcome = world.fork_source().and_then(|()| (0..50).try_for_each(|_| act(&mut world)));
            if let Err(error) = outcome {
                assert!(world.disk.is_off(), "an operation failed without a fault: {error}\n{}", world.story());
            }
            end(&mut world);
        }
    }
}

#[test]
fn a_crash_at_every_operation_with_patches() {
    for seed in seeds(40) {
        let _named = Named("a short history without a source", seed);
        let mut rehearsal = World::new(seed);
        run(&mut rehearsal, 16).unwrap();
        for at in 1..=rehearsal.disk.operations() {
            let mut world = World::new(seed);
            world.disk.fail_at(at, Fault::Crash);
            let ended = run(&mut world, 16);
            assert!(ended.is_err() || at >= world.disk.operations(), "operation {at} did not fail");
            world.crash();
            for _ in 0..3 {
                world.act().unwrap();
            }
            world.crash();
        }
    }
}

#[test]
fn a_kill_at_every_operation_with_patches() {
    for seed in seeds(12) {
        let _named = Named("a killed process", seed);
        let mut rehearsal = World::new(seed);
        run(&mut rehearsal, 16).unwrap();
        for at in 1..=rehearsal.disk.operations() {
            let mut world = World::new(seed);
            world.disk.fail_at(at, Fault::Crash);
            let _ = run(&mut world, 16);
            world.kill();
        }
    }
}

/// A flushed patch is superseded by a whole block that no frame has yet; then the state is written anew.
#[test]
fn a_checkpoint_keeps_a_flushed_patch_of_an_undurable_block() {
    for seed in seeds(60) {
        let _named = Named("a checkpoint with patches", seed * 3);
        // Checkpoints are due often.
        let mut world = World::new(seed * 3);
        world.open().unwrap();
        world.fork_source().unwrap();
        world.create().unwrap();
        world.toggle_source();
        for part in 0..6 {
            world.write_sectors("v1", 8 * part + 1..8 * part + 3).unwrap();
        }
        world.flush("v1").unwrap();
        if seed % 2 == 0 {
            world.snapshot("v1").unwrap();
            world.write_sectors("v1", 5..7).unwrap();
        }
        // Whole blocks; those of another volume's flush must not take them along.
        world.write_sectors("v1", 0..24).unwrap();
        if seed % 3 == 0 {
            world.toggle_source();
        }
        world.grow_journal();
        world.step().unwrap();
        world.crash();
    }
}

#[test]
fn a_full_disk_refuses_patches_and_keeps_what_was_there() {
    for seed in seeds(100) {
        let _named = Named("a full disk with patches", seed);
        let mut world = World::new(seed);
        world.open().unwrap();
        world.fork_source().unwrap();
        world.flush_all();
        world.toggle_source();
        world.disk.set_capacity(Some(world.disk.used_pages() + seed % 12));
        for _ in 0..60 {
            match world.act() {
                Ok(()) => {}
                Err(error) if error.kind() == volfork::ErrorKind::NoSpace => {
                    world.log.push(format!("refused: {error}"));
                    // Everything can be read although nothing can be stored.
                    world.sources.0.lost.store(false, Ordering::SeqCst);
                    world.take_refused();
                    world.compare();
                    world.flush_all();
                    world.sources.0.lost.store(true, Ordering::SeqCst);
                }
                Err(error) => world.take_lost(&error),
            }
        }
        world.crash();
    }
}

#[test]
fn paused_backfill_fetches_nothing_and_resumes_in_place() {
    let paused = |paused| volfork::store::HydrationControl::default().with_paused(paused);
    for seed in seeds(12) {
        let _named = Named("a pause", seed);
        let mut world = World::new(seed * 3 + 1);
        world.open().unwrap();
        world.fork_source().unwrap();
        world.store().control_hydration("v1", &paused(true)).unwrap();
        let fetched = |world: &World| world.sources.0.bytes_read.load(Ordering::SeqCst);
        let mut bytes = [0; 8192];
        world.store().volume("v1").unwrap().read_at(&mut bytes, WINDOW_START).unwrap();
        for round in 0..3 {
            for _ in 0..20 {
                world.store().step().unwrap();
            }
            assert_eq!(fetched(&world), 8192, "only what was read");
            match round {
                0 => world.close().unwrap(),
                1 => {
                    world.flush("v1").unwrap();
                    world.restart_without_looking(true);
                    continue;
                }
                _ => break,
            }
            world.open().unwrap();
        }
        world.store().control_hydration("v1", &paused(false)).unwrap();
        world.settle();
        assert_eq!(fetched(&world), source_tags().len() as u64 * 512, "each block once");
        world.compare();
    }
}

#[test]
fn patches_are_merged_in_the_background_and_fetched_once() {
    for seed in seeds(60) {
        let _named = Named("merging", seed);
        let mut world = World::new(seed);
        world.open().unwrap();
        world.fork_source().unwrap();
        world.toggle_source();
        let mut random = Random::new(seed);
        for _ in 0..12 {
            let start = random.below(120) as usize;
            world.write_sectors("v1", start..start + 1 + random.below(7) as usize).unwrap();
            if random.below(4) == 0 {
                world.snapshot("v1").unwrap();
            }
        }
        world.toggle_source();
        world.settle();
        let info = world.store().show("v1").unwrap();
        assert_eq!((info.blocks.missing, info.source), (0, None), "{}", world.story());
        let fetched = world.sources.0.bytes_read.load(Ordering::SeqCst);
        assert!(fetched <= source_tags().len() as u64 * 512, "{fetched} bytes were fetched");
        // Nothing is needed from the source any more, and reads have nothing left to merge.
        world.toggle_source();
        world.store().volume("v1").unwrap().read_at(&mut [0; 4096], WINDOW_START).unwrap();
        world.compare();
        world.crash();
    }
}
