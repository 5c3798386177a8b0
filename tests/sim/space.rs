//! ENOSPC at each operation of a checkpoint: the store works on as before, or refuses writes.

use std::collections::BTreeMap;

use volfork::ErrorKind;

use crate::disk::Fault;
use crate::random::Random;
use crate::world::{Outcome, World};
use crate::{Named, seeds};

/// Choices of what survives, for each operation.
const CHOICES: u64 = 8;

/// A store in which a checkpoint is due. The last frame names block 1 of v1, in an extent that is marked already.
fn due(seed: u64) -> World {
    // Checkpoints are due early.
    let mut world = World::new(seed * 3);
    world.open().unwrap();
    world.create().unwrap();
    world.create().unwrap();
    for _ in 0..2 {
        world.write_sectors("v1", 0..8).unwrap();
        world.flush("v1").unwrap();
    }
    world.grow_journal();
    world.write_sectors("v1", 8..16).unwrap();
    world.flush("v1").unwrap();
    world
}

/// Block 1 is written again, and perhaps flushed; then a new one is flushed.
fn go_on(world: &mut World, how: u64) -> Outcome {
    if how == 0 {
        world.write_sectors("v1", 16..24)?;
        world.flush("v1")?;
    }
    world.write_sectors("v1", 8..16)?;
    if how == 1 { world.flush("v1") } else { Ok(()) }
}

#[test]
fn a_checkpoint_without_space_changes_nothing() {
    for seed in seeds(2) {
        for how in 0..3 {
            let _named = Named("a checkpoint without space", seed);
            let mut made = false;
            for k in 1.. {
                let mut reached = true;
                for choice in 0..CHOICES {
                    let mut world = due(seed);
                    let before = world.disk.operations();
                    world.disk.fail_at(before + k, Fault::Enospc);
                    let files = world.disk.files();
                    let stepped = world.store().step();
                    reached = world.disk.operations() >= before + k;
                    made |= world.disk.files() != files && !reached;
                    world.log.push(format!("no space at operation {k} of a checkpoint: {stepped:?}"));
                    world.disk.clear_faults();
                    // After a sync that failed, nothing is known.
                    if let Err(error) = go_on(&mut world, how) {
                        assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}\n{}", world.story());
                    }
                    world.random = Random::new(seed * 1000 + choice);
                    world.crash();
                }
                if !reached {
                    break;
                }
            }
            assert!(made, "no checkpoint was due");
        }
    }
}

/// A store that lost power, before it is opened again.
fn lost_power(seed: u64) -> World {
    let mut world = World::new(seed * 3 + 1);
    world.open().unwrap();
    world.create().unwrap();
    world.write_sectors("v1", 0..8).unwrap();
    world.flush("v1").unwrap();
    // In an extent without a mark, so that their checksums are relied on.
    world.write_sectors("v1", 64..88).unwrap();
    world.flush("v1").unwrap();
    world.disk.power_off();
    world.close().unwrap_err();
    world.disk.crash(&mut world.random);
    world
}

#[test]
fn opening_without_space_at_any_operation_loses_nothing() {
    for seed in seeds(2) {
        let _named = Named("opening without space", seed);
        for k in 1.. {
            let mut world = lost_power(seed);
            let before = world.disk.operations();
            world.disk.fail_at(before + k, Fault::Enospc);
            let opened = world.open();
            let reached = world.disk.operations() >= before + k;
            world.log.push(format!("no space at operation {k} of opening: {opened:?}"));
            world.disk.clear_faults();
            if opened.is_err() {
                world.open().unwrap();
            }
            world.crash();
            if !reached {
                break;
            }
        }
    }
}

/// The power goes off at each operation of opening after a power loss, and of a checkpoint.
#[test]
fn a_crash_anywhere_in_open_or_checkpoint_loses_nothing() {
    for seed in seeds(1) {
        let _named = Named("a crash while the state is written", seed);
        for opening in [true, false] {
            for k in 1.. {
                let mut reached = true;
                for choice in 0..if opening { 2 * CHOICES } else { CHOICES / 2 } {
                    let mut world = if opening { lost_power(seed) } else { due(seed) };
                    let before = world.disk.operations();
                    world.disk.fail_at(before + k, Fault::Crash);
                    let done = if opening { world.open() } else { world.store().step().map(drop) };
                    reached = world.disk.operations() >= before + k;
                    world.log.push(format!("the power goes off at operation {k}: {done:?}"));
                    world.random = Random::new(seed * 1000 + choice);
                    world.crash();
                }
                if !reached {
                    break;
                }
            }
        }
    }
}

/// The process is killed between the new name of a checkpoint and its end, and the power goes off while the store is opened again. What
/// the killed one wrote to the superblock may be in the page cache alone: until it is durable, the journal before is not written over.
#[test]
fn a_kill_in_a_checkpoint_then_a_crash_in_open_lose_nothing() {
    for seed in seeds(1) {
        let _named = Named("a kill in a checkpoint, and a crash in opening", seed);
        for killed_at in 1.. {
            let mut reached = true;
            for off_at in (1..).step_by(3) {
                let mut world = due(seed);
                let before = world.disk.operations();
                world.disk.fail_at(before + killed_at, Fault::Crash);
                let stepped = world.store().step();
                reached = world.disk.operations() >= before + killed_at;
                world.log.push(format!("killed at operation {killed_at} of a checkpoint: {stepped:?}"));
                world.die();
                let is_journal = |path: &&std::path::PathBuf| path.to_string_lossy().contains("journal.");
                if world.disk.files().iter().filter(is_journal).count() < 2 {
                    // The old one is the only one, or the spare already.
                    break;
                }
                world.disk.fail_at(world.disk.operations() + off_at, Fault::Crash);
                let opened = world.open();
                let is_off = world.disk.is_off();
                world.log.push(format!("the power goes off at operation {off_at} of opening: {opened:?}"));
                world.random = Random::new(seed * 1000 + off_at);
                world.crash();
                if !is_off {
                    break;
                }
            }
            if !reached {
                break;
            }
        }
    }
}

#[test]
fn a_checkpoint_without_space_leaves_no_file_behind() {
    // A single failure does no harm, because the checkpoint is made in another way then; a lasting one makes that fail, too.
    for lasting in [1, 1000] {
        let mut failed = false;
        for k in 1.. {
            let world = due(1);
            let before = world.disk.operations();
            (0..lasting).for_each(|more| world.disk.fail_at(before + k + more, Fault::Enospc));
            let files = world.disk.files();
            let stepped = world.store().step();
            let reached = world.disk.operations() >= before + k;
            world.disk.clear_faults();
            if stepped.is_ok() {
                let is_journal = |path: &&std::path::PathBuf| path.to_string_lossy().contains("journal.");
                let journals: Vec<_> = world.disk.files().into_iter().filter(|path| is_journal(&path)).collect();
                assert_eq!(journals.len(), 1, "no space at operation {k} and {lasting}: {journals:?}");
                failed |= reached && files.contains(&journals[0]);
            }
            if !reached {
                break;
            }
        }
        assert!(failed || lasting == 1, "no checkpoint was without space");
    }
}

/// What needs room in the journal takes none of what is kept for flushes and destroys, however much is asked for.
#[test]
fn flush_and_destroy_keep_journal_room_on_a_full_disk() {
    const VOLUMES: usize = 200;
    let mut world = World::new(1);
    world.open().unwrap();
    for _ in 0..VOLUMES {
        world.create().unwrap();
    }
    world.write_sectors("v1", 0..64).unwrap();
    world.flush("v1").unwrap();
    world.disk.set_capacity(Some(world.disk.used_pages()));
    let mut number = 0;
    let refused = loop {
        let labels = BTreeMap::from([("k".to_owned(), format!("{number:01000}"))]);
        match world.store().set_labels("v1", labels.clone()) {
            Ok(()) => world.model.get_mut("v1").unwrap().labels = labels,
            Err(error) => break error,
        }
        number += 1;
        assert!(number < 100_000, "the journal has room for ever");
    };
    assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused}");
    for number in 2..=VOLUMES {
        world.destroy(&format!("v{number}")).unwrap();
    }
    for block in 0..8 {
        world.discard_sectors("v1", 8 * block..8 * block + 8).unwrap();
        world.flush("v1").unwrap();
    }
    world.disk.set_capacity(None);
    world.crash();
}

/// What a running store keeps for the next opening is enough for it.
#[test]
fn a_store_opens_on_a_disk_that_is_full_to_the_last_page() {
    for seed in seeds(12) {
        let _named = Named("opening on a full disk", seed);
        let mut world = World::new(seed * 3 + 1);
        world.open().unwrap();
        world.create().unwrap();
        world.write_sectors("v1", 0..64).unwrap();
        world.flush("v1").unwrap();
        world.disk.set_capacity(Some(world.disk.used_pages()));
        world.random = Random::new(seed);
        if seed % 2 == 0 { world.kill() } else { world.crash() }
    }
}
