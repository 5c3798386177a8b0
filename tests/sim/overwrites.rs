//! Blocks that are written again, in place or after a discard: a crash at every operation, with many choices of which writes survive.

use crate::disk::Fault;
use crate::random::Random;
use crate::world::{Outcome, World};
use crate::{Named, seeds};

/// Choices of what survives, for each history and operation.
const CHOICES: u64 = 12;

/// Runs a history with a crash at each of its operations, many times with other survivors.
fn crash_everywhere(seed: u64, history: &dyn Fn(&mut World) -> Outcome) {
    let mut rehearsal = World::new(seed);
    rehearsal.open().unwrap();
    let before = rehearsal.disk.operations();
    history(&mut rehearsal).unwrap();
    for at in before + 1..=rehearsal.disk.operations() {
        for choice in 0..CHOICES {
            let mut world = World::new(seed);
            world.open().unwrap();
            world.disk.fail_at(at, Fault::Crash);
            let _ = history(&mut world);
            world.random = Random::new(seed * 1000 + choice);
            world.crash();
        }
    }
}

/// What is flushed is written again, and the fork or snapshot that follows has to have it, or not exist.
#[test]
fn overwrites_are_durable_with_the_fork_that_shows_them() {
    for seed in seeds(8) {
        let _named = Named("overwrites before a fork", seed);
        crash_everywhere(seed, &|world| {
            world.create()?;
            world.write_sectors("v1", 0..48)?;
            world.flush("v1")?;
            // A second frame, so that overwriting the blocks of the first is not what makes it.
            world.write_sectors("v1", 64..72)?;
            world.flush("v1")?;
            world.write_sectors("v1", 8..8 + 8 * (1 + seed as usize % 4))?;
            if seed % 2 == 0 { world.fork("v1") } else { world.snapshot("v1") }
        });
    }
}

/// A block is discarded and written again: the record that ends it must not come behind the one that makes it present again.
#[test]
fn blocks_written_again_after_a_discard_survive() {
    for seed in seeds(8) {
        let _named = Named("a write after a discard", seed);
        crash_everywhere(seed, &|world| {
            world.create()?;
            if seed % 2 == 0 {
                world.snapshot("v1")?;
            }
            for _ in 0..2 {
                world.write_sectors("v1", 0..32)?;
                world.flush("v1")?;
                world.discard_sectors("v1", 0..32)?;
                world.write_sectors("v1", 8 * (seed as usize % 3)..24)?;
                if seed % 4 < 2 {
                    world.store().step()?;
                }
                world.flush("v1")?;
                world.store().step()?;
            }
            Ok(())
        });
    }
}

/// A block is overwritten and discarded. The later contents of its space must not make recovery drop the fork that followed.
#[test]
fn a_fork_does_not_depend_on_blocks_that_were_discarded_before() {
    for seed in seeds(12) {
        let _named = Named("a fork after a discard", seed);
        let mut world = World::new(seed * 3 + 1);
        world.open().unwrap();
        world.create().unwrap();
        world.write_sectors("v1", 0..32).unwrap();
        world.flush("v1").unwrap();
        world.write_sectors("v1", 64..72).unwrap();
        world.flush("v1").unwrap();
        world.write_sectors("v1", 0..32).unwrap();
        world.discard_sectors("v1", 0..16).unwrap();
        world.fork("v1").unwrap();
        world.store().step().unwrap();
        world.crash();
    }
}

/// After a crash space is looked for that nobody holds; blocks whose end is not durable are somebody's still.
#[test]
fn sweeping_leaves_blocks_whose_end_is_not_durable() {
    for seed in seeds(12) {
        let _named = Named("a discard while sweeping", seed);
        let mut world = World::new(seed * 3 + 1);
        world.open().unwrap();
        world.create().unwrap();
        world.write_sectors("v1", 0..32).unwrap();
        world.flush("v1").unwrap();
        world.crash();
        world.discard_sectors("v1", 0..32).unwrap();
        for _ in 0..4 {
            world.store().step().unwrap();
        }
        world.crash();
    }
}

/// More overwritten blocks than one frame names: they are durable before the frame that seals their layer.
#[test]
fn many_overwrites_are_durable_with_the_fork_showing_them() {
    const BYTES: usize = 65 << 20;
    const STEP: usize = 4 << 20;
    let fill = |world: &World, byte: u8| -> Outcome {
        let volume = world.store().volume("big")?;
        (0..BYTES).step_by(STEP).try_for_each(|offset| volume.write_at(&vec![byte; STEP.min(BYTES - offset)], offset as u64))?;
        volume.flush()
    };
    for parity in 0..2 {
        for k in 1.. {
            let mut world = World::new(1);
            world.open().unwrap();
            world.store().create_volume("big", BYTES as u64 + 4096).unwrap();
            fill(&world, 1).unwrap();
            let volume = world.store().volume("big").unwrap();
            // A second frame, so that overwriting the blocks of the first is not what makes it.
            volume.write_at(&[1; 4096], BYTES as u64).unwrap();
            volume.flush().unwrap();
            (0..BYTES).step_by(STEP).for_each(|offset| volume.write_at(&vec![2; STEP.min(BYTES - offset)], offset as u64).unwrap());
            // In which order files are synced depends on that.
            (0..parity).for_each(|_| drop(world.store().volume("big").unwrap().read_at(&mut [0; 512], 0)));
            let before = world.disk.operations();
            world.disk.fail_at(before + k, Fault::Crash);
            let forked = world.store().fork("big", "fork").map(drop);
            let reached = world.disk.operations() >= before + k;
            drop(volume);
            world.random = (0..).map(Random::new).find(|random| random.clone().below(4) == 0).unwrap();
            world.restart_without_looking(true);
            match world.store().volume("fork") {
                Err(error) => assert!(forked.is_err() && error.kind() == volfork::ErrorKind::NotFound, "{error}"),
                Ok(fork) => {
                    let mut bytes = vec![0; BYTES];
                    fork.read_at(&mut bytes, 0).unwrap();
                    assert!(bytes.iter().all(|byte| *byte == 2), "operation {k}: the fork has older bytes");
                }
            }
            if !reached {
                break;
            }
        }
    }
}

/// Blocks are written over flushed zeros that hide a snapshot's; before a frame names them the state is written anew.
#[test]
fn a_checkpoint_keeps_flushed_zeros_below_undurable_blocks() {
    for seed in seeds(24) {
        let _named = Named("a checkpoint with fresh blocks over zeros", seed);
        // Checkpoints are due early.
        let mut world = World::new(seed * 3);
        world.open().unwrap();
        world.create().unwrap();
        world.create().unwrap();
        world.write_sectors("v1", 0..16).unwrap();
        world.snapshot("v1").unwrap();
        world.discard_sectors("v1", 0..16).unwrap();
        world.flush("v1").unwrap();
        world.write_sectors("v1", 0..8).unwrap();
        world.grow_journal();
        world.store().step().unwrap();
        world.crash();
    }
}

/// An overwritten block is not durable when the mark of its extent is cleared; then the flush of another volume makes a frame.
#[test]
fn a_mark_is_cleared_only_when_the_blocks_are_durable() {
    for seed in seeds(24) {
        let _named = Named("cleaning after an overwrite", seed);
        let mut world = World::new(seed * 3 + 1);
        world.open().unwrap();
        world.create().unwrap();
        world.create().unwrap();
        for _ in 0..2 {
            world.write_sectors("v1", 0..24).unwrap();
            world.flush("v1").unwrap();
        }
        world.write_sectors("v1", 0..24).unwrap();
        // Every look at the clock lets time pass: marks are looked at several times.
        for _ in 0..800 {
            world.store().step().unwrap();
        }
        world.write_sectors("v2", 0..8).unwrap();
        world.flush("v2").unwrap();
        world.crash();
    }
}
