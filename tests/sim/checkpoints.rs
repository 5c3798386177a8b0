//! Changes in the middle of a checkpoint, and a fault at a later operation of it.

use volfork::ErrorKind;

use crate::disk::Fault;
use crate::hold::{Kind, beside};
use crate::random::Random;
use crate::world::{Outcome, World};
use crate::{Named, seeds};

/// Changes that are made in the middle of a checkpoint.
const CHANGES: u64 = 5;

/// One random change that waits for no background work.
fn change(world: &mut World) -> Outcome {
    let Some(name) = world.some_volume() else { return world.create() };
    match world.random.below(16) {
        0..=3 => world.write(&name),
        4..=6 => world.flush(&name),
        7..=8 => world.discard(&name),
        9 => world.fork(&name),
        10 => world.snapshot(&name),
        11 => world.fork_snapshot(&name),
        12 => world.destroy_snapshot(&name),
        13 => world.resize(&name),
        14 if name != "v2" => world.destroy(&name),
        _ => world.relabel(&name),
    }
}

/// A store in which a checkpoint is due, with marks, a fork of a source with patches, and blocks that wait for their record.
fn due(seed: u64) -> World {
    // Checkpoints are due early.
    let mut world = World::new(seed * 3);
    world.open().unwrap();
    world.create().unwrap();
    world.create().unwrap();
    world.fork_source().unwrap();
    for _ in 0..2 {
        world.write_sectors("v1", 0..32).unwrap();
        world.flush("v1").unwrap();
    }
    world.snapshot("v1").unwrap();
    world.write_sectors("v1", 16..40).unwrap();
    world.write_sectors("v2", 0..64).unwrap();
    world.write_sectors("v3", 3..20).unwrap();
    world.flush("v3").unwrap();
    (0..10).for_each(|_| change(&mut world).unwrap());
    world.grow_journal();
    (0..4).for_each(|_| change(&mut world).unwrap());
    world
}

/// How far a try came.
#[derive(PartialEq)]
enum Came {
    /// The checkpoint has no such operation.
    Unheld,
    /// The fault came.
    Faulted,
    /// The checkpoint ended before the fault. `is_last`: changes wait for the switch from the next operation on.
    Ended { is_last: bool },
}

/// A checkpoint is held before its write or sync number `at`. Changes are made meanwhile, and operation `after` from there on fails.
fn interrupted(seed: u64, at: u64, after: u64, fault: Fault) -> Came {
    let mut world = due(seed);
    let is_journal = |path: &std::path::PathBuf| path.to_string_lossy().contains("journal.");
    let journals = |world: &World| world.disk.files().into_iter().filter(is_journal).collect::<Vec<_>>();
    let before = journals(&world);
    world.disk.holds.hold_after(at);
    let store = world.store().clone();
    // Space is given back before.
    let step = beside(move || (0..8).try_for_each(|_| store.step().map(drop)));
    let Some((kind, path)) = world.disk.holds.await_one(&step) else {
        step.join().unwrap();
        return Came::Unheld;
    };
    (0..CHANGES).for_each(|_| change(&mut world).unwrap());
    world.disk.fail_at(world.disk.operations() + after, fault);
    world.disk.holds.release_all();
    let stepped = step.join();
    world.log.push(format!("held at {kind:?} {}, {fault:?} at operation {after}: {stepped:?}", path.display()));
    let is_faulted = world.disk.is_off() || !world.disk.has_faults();
    assert!(is_faulted || (stepped.is_ok() && journals(&world) != before), "no checkpoint was made\n{}", world.story());
    if !world.disk.is_off() {
        world.disk.clear_faults();
        let failed = (0..4).find_map(|_| change(&mut world).err());
        // After a sync that failed, nothing is known.
        assert!(failed.is_none_or(|error| is_faulted && error.kind() == ErrorKind::Poisoned), "{}", world.story());
    }
    world.random = Random::new(seed * 1000 + after);
    world.crash();
    if is_faulted { Came::Faulted } else { Came::Ended { is_last: kind == Kind::SyncNames && path.ends_with("store") } }
}

#[test]
fn changes_in_a_checkpoint_outlive_any_fault_after_them() {
    let mut tries = 0;
    for seed in seeds(1) {
        let _named = Named("changes in a checkpoint", seed);
        for (number, fault) in [Fault::Crash, Fault::Eio, Fault::Enospc].into_iter().enumerate() {
            for at in 0.. {
                // Each operation is met in one of the histories of twelve seeds.
                let mut afters = (1 + (seed + at + 4 * number as u64) % 12..).step_by(12);
                let mut try_next = || interrupted(seed, at, afters.next().expect("it has no end"), fault);
                let came = std::iter::repeat_with(&mut try_next).inspect(|_| tries += 1).find(|came| *came != Came::Faulted);
                match came {
                    Some(Came::Ended { is_last: false }) => {}
                    _ => break,
                }
            }
        }
    }
    assert!(tries > 10, "{tries} tries");
}
