//! The real engine on a simulated disk: crashes at every operation, failures of every operation, and a model that knows what
//! the contract allows.
//!
//! `VOLFORK_SIM_SEEDS=N` runs N histories instead of the default; `VOLFORK_SIM_SEED=S` runs only seed S.
mod checkpoints;
mod clock;
mod connections;
mod disk;
mod edges;
mod forced;
mod hold;
mod images;
mod leases;
mod model;
mod overwrites;
mod patches;
#[path = "../../src/random.rs"]
mod random;
mod refusals;
mod resize;
mod rounds;
mod shared;
mod source;
mod space;
mod threads;
mod world;

use std::ops::Range;
use std::sync::atomic::Ordering;

use disk::Fault;
use random::Random;
use volfork::ErrorKind;
use world::{Outcome, World};

fn seeds(default: u64) -> Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("VOLFORK_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("VOLFORK_SIM_SEEDS").unwrap_or(default),
    }
}

/// Prints the seed of a history that panics.
struct Named(&'static str, u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} failed: repeat with VOLFORK_SIM_SEED={}", self.0, self.1);
        }
    }
}

/// Runs a history until the power goes off or it ends.
fn run(world: &mut World, acts: u64) -> Outcome {
    world.open()?;
    for _ in 0..acts {
        world.act()?;
    }
    Ok(())
}

#[test]
fn long_histories_with_crashes_and_reopenings() {
    for seed in seeds(700) {
        let _named = Named("a long history", seed);
        let mut world = World::new(seed);
        if seed % 5 == 4 {
            world.disk.shorten_transfers(seed);
        }
        world.open().unwrap();
        for _ in 0..3 {
            if world.random.below(4) > 0 {
                let after = 1 + world.random.below(if seed % 2 == 0 { 400 } else { 60 });
                world.disk.fail_at(world.disk.operations() + after, Fault::Crash);
            }
            let mut outcome = Ok(());
            for _ in 0..60 {
                outcome = world.act();
                if outcome.is_err() {
                    break;
                }
            }
            match outcome {
                Ok(()) if world.random.below(3) == 0 => match world.close() {
                    Ok(()) => world.verify_reopened(),
                    Err(_) => world.crash(),
                },
                Ok(()) => world.crash(),
                Err(error) => {
                    assert!(world.disk.is_off(), "an operation failed without a fault: {error}\n{}", world.story());
                    world.crash();
                }
            }
        }
    }
}

#[test]
fn a_crash_at_every_operation_of_short_histories() {
    for seed in seeds(40) {
        let _named = Named("a short history", seed);
        let mut rehearsal = World::new(seed);
        run(&mut rehearsal, 14).unwrap();
        for at in 1..=rehearsal.disk.operations() {
            let mut world = World::new(seed);
            world.disk.fail_at(at, Fault::Crash);
            let ended = run(&mut world, 14);
            assert!(ended.is_err() || at >= world.disk.operations(), "operation {at} did not fail");
            world.crash();
            // What was recovered can be recovered again, and written.
            for _ in 0..3 {
                world.act().unwrap();
            }
            world.crash();
        }
    }
}

/// One kind of change.
type Change = fn(&mut World) -> Outcome;

/// Every kind of change, with names for messages.
const CHANGES: [(&str, Change); 15] = [
    ("create", World::create),
    ("fork", |world| world.fork("v1")),
    ("snapshot", |world| world.snapshot("v1")),
    ("fork of a snapshot", |world| world.fork_snapshot("v1")),
    ("fork of a source", World::fork_source),
    ("rename", |world| world.rename("v1")),
    ("resize", |world| world.resize("v1")),
    ("destroy", |world| world.destroy("v1")),
    ("destroy of a snapshot", |world| world.destroy_snapshot("v1")),
    ("flush", |world| world.flush("v1")),
    ("background work", World::step),
    ("snapshot of an image", |world| world.snapshot_image("v1")),
    ("fork of an image", World::fork_image),
    ("labels", |world| world.relabel("v1")),
    ("limits", |world| world.limit("v1")),
];

fn prepared(seed: u64) -> World {
    let mut world = World::new(seed);
    world.open().unwrap();
    world.create().unwrap();
    for _ in 0..6 {
        world.act().unwrap();
    }
    if !world.model.contains_key("v1") {
        return prepared(seed + 10_000);
    }
    world.snapshot("v1").unwrap();
    for _ in 0..4 {
        world.act().unwrap();
    }
    if world.model.contains_key("v1") { world } else { prepared(seed + 10_000) }
}

#[test]
fn every_change_fails_cleanly_at_every_operation() {
    for seed in seeds(6) {
        for (name, change) in CHANGES {
            for fault in [Fault::Eio, Fault::Crash, Fault::Enospc] {
                let _named = Named(name, seed);
                for k in 1.. {
                    let mut world = prepared(seed);
                    let before = world.disk.operations();
                    world.disk.fail_at(before + k, fault);
                    let outcome = change(&mut world);
                    let reached = world.disk.operations() >= before + k;
                    world.log.push(format!("{name}: fault at its operation {k}: {outcome:?}"));
                    // After a failed sync nothing is known, so the process goes, and the power with it.
                    world.crash();
                    if !reached {
                        break;
                    }
                }
            }
        }
    }
}

#[test]
fn a_full_disk_fails_writes_and_nothing_else() {
    for seed in seeds(150) {
        let _named = Named("a full disk", seed);
        let mut world = World::new(seed);
        world.open().unwrap();
        world.create().unwrap();
        world.disk.set_capacity(Some(world.disk.used_pages() + 20 + seed % 60));
        let mut refused = 0;
        for _ in 0..120 {
            match world.act() {
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}\n{}", world.story());
                    refused += 1;
                    world.log.push(format!("refused: {error}"));
                    world.take_refused();
                    // Reads, flush and destroy keep working.
                    world.compare();
                    let names: Vec<String> = world.model.keys().cloned().collect();
                    for name in &names {
                        world.flush(name).unwrap();
                    }
                    if let Some(name) = names.first().filter(|_| refused % 5 == 0) {
                        world.destroy(name).unwrap();
                    }
                }
            }
        }
        world.crash();
    }
}

#[test]
fn space_comes_back_after_a_destroy_and_after_a_crash() {
    for seed in seeds(60) {
        let _named = Named("reclaiming", seed);
        let mut world = World::new(seed);
        world.open().unwrap();
        for _ in 0..60 {
            world.act().unwrap();
        }
        let names: Vec<String> = world.model.keys().cloned().collect();
        for name in names {
            world.destroy(&name).unwrap();
        }
        if seed % 2 == 0 {
            world.crash();
        }
        world.settle();
        assert_eq!(world.layer_files(), 0, "files of destroyed volumes are left\n{}", world.story());
    }
}

/// Space that was to be given back when the store was closed, or that a crash before left, is given back after the next opening.
#[test]
fn space_comes_back_although_the_store_was_closed_before() {
    for seed in seeds(24) {
        let _named = Named("reclaiming after a close", seed);
        let mut world = World::new(seed);
        let reopen = |world: &mut World| {
            world.close().unwrap();
            world.open().unwrap();
        };
        let settled = |world: &mut World| {
            reopen(world);
            world.settle();
            world.disk.used_pages()
        };
        world.open().unwrap();
        world.create().unwrap();
        let before = settled(&mut world);
        world.write_sectors("v1", 0..model::WINDOW_SECTORS).unwrap();
        if seed % 2 == 0 {
            world.flush("v1").unwrap();
            world.discard_sectors("v1", 0..model::WINDOW_SECTORS).unwrap();
        } else {
            // Their frame is lost, if not their bytes.
            world.crash();
            world.discard_sectors("v1", 0..model::WINDOW_SECTORS).unwrap();
            reopen(&mut world);
        }
        let after = settled(&mut world);
        // Checksums and marks take a little.
        assert!(after < before + 8, "{before} pages were used, {after} are\n{}", world.story());
    }
}

#[test]
fn a_lost_source_harms_only_what_was_not_fetched_and_heals() {
    for seed in seeds(100) {
        let _named = Named("a lost source", seed);
        let mut world = World::new(seed);
        world.open().unwrap();
        world.fork_source().unwrap();
        let volume = world.store().volume("v1").unwrap();
        let mut sector = [0; 512];
        let near = model::WINDOW_START;
        volume.read_at(&mut sector, near).unwrap();
        world.sources.0.lost.store(true, Ordering::SeqCst);
        volume.read_at(&mut sector, near).unwrap();
        let missing = near + 32 * 512;
        assert_eq!(volume.read_at(&mut sector, missing).unwrap_err().kind(), ErrorKind::SourceLost);
        volume.write_at(&[7; 4096], missing).unwrap();
        volume.read_at(&mut sector, missing).unwrap();
        assert_eq!(sector, [7; 512]);
        // A part of a missing block is written without the source, and can be read; the rest of the block cannot.
        volume.write_at(&[8; 1000], near + 48 * 512).unwrap();
        volume.read_at(&mut sector, near + 48 * 512 + 100).unwrap();
        assert_eq!(sector, [8; 512]);
        assert_eq!(volume.read_at(&mut sector, near + 50 * 512).unwrap_err().kind(), ErrorKind::SourceLost);
        volume.flush().unwrap();
        drop(volume);
        if seed % 2 == 0 {
            world.restart_without_looking(seed % 4 == 0);
        }
        let volume = world.store().volume("v1").unwrap();
        volume.read_at(&mut sector, near + 48 * 512 + 400).unwrap();
        assert_eq!(sector, [8; 512]);
        let _ = volume.read_at(&mut [0; 512], missing + 4096);
        assert_eq!(format!("{:?}", world.store().show("v1").unwrap().state), "Degraded");
        world.sources.0.lost.store(false, Ordering::SeqCst);
        let fetched = world.sources.0.bytes_read.load(Ordering::SeqCst);
        world.settle();
        let info = world.store().show("v1").unwrap();
        assert_eq!((format!("{:?}", info.state), info.blocks.missing, info.source), ("Created".into(), 0, None));
        let all = world.sources.0.bytes_read.load(Ordering::SeqCst);
        assert!(all <= (model::WINDOW_SECTORS as u64) * 512, "{all} bytes were fetched, {fetched} of them before: some twice");
        let mut random = Random::new(seed);
        let at = near + random.below(16) * 512;
        volume.read_at(&mut sector, at).unwrap();
        assert_eq!(sector, model::sector_bytes(source::source_tags()[((at - near) / 512) as usize]));
        let mut merged = [0; 4096];
        volume.read_at(&mut merged, near + 48 * 512).unwrap();
        assert_eq!(merged[..1000], [8; 1000]);
        assert_eq!(merged[1000..1024], model::sector_bytes(source::source_tags()[49])[488..]);
        assert_eq!(merged[1024..1536], model::sector_bytes(source::source_tags()[50]));
    }
}

#[test]
fn a_flipped_bit_is_found_and_named() {
    for seed in seeds(30) {
        let _named = Named("a flipped bit", seed);
        let mut world = World::new(seed);
        world.open().unwrap();
        world.create().unwrap();
        let volume = world.store().volume("v1").unwrap();
        volume.write_at(&[3; 65536], model::WINDOW_START).unwrap();
        world.flush_all();
        drop(volume);
        if seed % 2 == 0 {
            world.close().unwrap();
            world.open().unwrap();
        }
        let mut random = Random::new(seed);
        let offset = model::WINDOW_START + random.below(65536);
        let path = world.disk.files().into_iter().find(|path| path.extension().is_some_and(|kind| kind == "data")).unwrap();
        world.disk.flip_bit(&path, offset);
        let volume = world.store().volume("v1").unwrap();
        let error = volume.read_at(&mut [0; 65536], model::WINDOW_START).unwrap_err();
        let place = error.corruption().expect("the place is known");
        assert_eq!((place.block, place.volume.as_deref(), place.offset_bytes), (offset / 4096, Some("v1"), offset / 4096 * 4096));
        let report = world.store().scrub(None).unwrap();
        assert_eq!(report.errors.len(), 1, "{:?}", report.errors);
    }
}

#[test]
fn a_failing_lying_source_harms_nobody_beside_another() {
    for seed in seeds(150) {
        let _named = Named("a moody source", seed);
        let mut world = World::new(seed);
        world.moody = true;
        world.sources.0.moods.store(seed * 1000, Ordering::SeqCst);
        world.open().unwrap();
        for _ in 0..3 {
            world.fork_source().unwrap();
            for _ in 0..12 {
                world.act().unwrap();
            }
        }
        world.compare();
        world.settle();
        for info in world.store().list().unwrap() {
            assert_eq!((info.blocks.missing, info.source), (0, None), "{}\n{}", info.name, world.story());
        }
        world.crash();
    }
}
