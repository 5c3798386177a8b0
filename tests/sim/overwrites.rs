//! Blocks written again, in place or after a discard, with a crash at every operation and many choices of what survives.

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
fn overwrites_of_flushed_blocks_are_durable_with_the_fork_that_shows_them() {
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
