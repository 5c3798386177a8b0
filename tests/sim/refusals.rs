//! Refusals of a store: writes after a failed sync, and calls for which there is no space.

use std::sync::atomic::Ordering;

use volfork::ErrorKind;

use crate::disk::Fault;
use crate::model::{SECTOR, WINDOW_START};
use crate::world::World;
use crate::{Named, seeds};

#[test]
fn a_failed_write_or_sync_refuses_writes_until_reopened() {
    for seed in seeds(4) {
        let _named = Named("a failed write or sync", seed);
        for k in 1.. {
            let mut world = World::new(seed * 3 + 1);
            world.open().unwrap();
            world.create().unwrap();
            for _ in 0..2 {
                world.write_sectors("v1", 0..8).unwrap();
                world.flush("v1").unwrap();
            }
            world.write_sectors("v1", 8..16).unwrap();
            let before = world.disk.operations();
            world.disk.fail_at(before + k, Fault::Eio);
            let outcome = world.write_sectors("v1", 0..8).and_then(|()| world.flush("v1"));
            if world.disk.operations() < before + k {
                outcome.unwrap();
                break;
            }
            world.log.push(format!("EIO at operation {k}: {outcome:?}"));
            assert!(outcome.is_err(), "{}", world.story());
            world.disk.clear_faults();
            let again = world.write_sectors("v1", 24..32).unwrap_err();
            assert_eq!(again.kind(), ErrorKind::Poisoned, "{}", world.story());
            assert_eq!(world.flush("v1").unwrap_err().kind(), ErrorKind::Poisoned, "{}", world.story());
            world.store().volume("v1").unwrap().read_at(&mut [0; SECTOR as usize], WINDOW_START).unwrap();
            world.crash();
            world.write_sectors("v1", 24..32).unwrap();
            world.flush("v1").unwrap();
        }
    }
}

#[test]
fn a_patch_has_a_bounded_number_of_parts() {
    let mut world = World::new(1);
    world.open().unwrap();
    world.fork_source().unwrap();
    world.toggle_source();
    let volume = world.store().volume("v1").unwrap();
    let parts = (0..2048).take_while(|part| volume.write_at(&[1], 2 * part).is_ok()).count();
    assert_eq!(parts, 64, "the next part has to wait for the rest of the block, and the source is lost");
    // One that joins two of them needs no room.
    volume.write_at(&[1], 1).unwrap();
}

/// Their records would need space in the journal that there is not, and a flush that follows needs what was reserved.
#[test]
fn patches_are_refused_cleanly_when_the_journal_is_full() {
    for seed in seeds(2) {
        let _named = Named("a journal that cannot grow", seed);
        let mut world = World::new(seed * 3 + 1);
        world.open().unwrap();
        world.create().unwrap();
        world.fork_source().unwrap();
        world.sources.0.lost.store(true, Ordering::SeqCst);
        // There is room for bytes, but not for what the journal takes at once.
        world.disk.set_capacity(Some(world.disk.used_pages() + 200));
        let patch = |world: &mut World| world.write_sectors("v2", 1..8);
        let refused = (0..2_000).find_map(|_| patch(&mut world).err()).expect("the journal has room for ever");
        assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused}");
        // With single bytes the last room is used up, and then there is none for a new block either.
        let volume = world.store().volume("v2").unwrap();
        let refused = (0..2_000).find_map(|_| volume.write_at(&[0], 0).err()).expect("the journal has room for ever");
        assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused}");
        let refused = (0..4).find_map(|block| world.write_sectors("v1", 8 * block..8 * block + 8).err());
        assert_eq!(refused.expect("the journal has room for blocks").kind(), ErrorKind::NoSpace);
        // Those of other blocks, too, which take no room in memory then.
        for number in 0..5_000 {
            let first = 8 * (1 + number % 15) + 1;
            assert_eq!(world.write_sectors("v2", first..first + 7).unwrap_err().kind(), ErrorKind::NoSpace);
        }
        world.flush_all();
        // With room for a few steps of the journal there is room for them.
        world.disk.set_capacity(Some(world.disk.used_pages() + 1024));
        patch(&mut world).unwrap();
        world.flush_all();
        world.sources.0.lost.store(false, Ordering::SeqCst);
        world.crash();
    }
}
