//! Forks of one remote snapshot by its address: they share one root layer.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use roaring::RoaringBitmap;
use volfork::store::HydrationControl;
use volfork::volume::{EventKind, HydrationState, OnEvent, VolumeState};
use volfork::{Store, Volume};

use crate::stage::{Actor, Play, Stage};
use crate::steps::{paused_fork, settle, store};
use crate::{Trial, options, pattern, paused, read, resumed};

const IDENTITY: &str = "host/7";
const MIB: usize = 1 << 20;

fn snapshot(stage: &Stage, uri: &str, data: &[u8]) -> Arc<Actor> {
    stage.add(Actor { identity: Some(IDENTITY.into()), ..Actor::new(uri, data) })
}

/// Writes a MiB that is not the source's, durably, and answers what the whole is then.
fn overwrite(volume: &Volume, data: &[u8], range: Range<usize>) -> Vec<u8> {
    let mut whole = data.to_vec();
    whole[range.clone()].copy_from_slice(&pattern(99, range.len()));
    volume.write_at(&whole[range.clone()], range.start as u64).unwrap();
    volume.flush().unwrap();
    whole
}

/// The store opened again, and the names of the volumes that are told to be hydrated.
fn store_again(directory: &Path, stage: &Stage) -> (Store, Arc<Mutex<Vec<String>>>) {
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let hydrated = Arc::clone(&told);
    let on_event: OnEvent = Arc::new(move |event| {
        assert_eq!(event.kind, EventKind::Hydrated);
        hydrated.lock().unwrap().extend(event.volumes.clone());
    });
    (Store::open(directory, options(stage).with_threads(false).with_on_event(on_event)).unwrap(), told)
}

/// The blocks of the source that a store holds.
fn held(store: &Store) -> Option<RoaringBitmap> {
    store.holdings()[IDENTITY].present.clone()
}

/// Lets the store find out what nobody needs.
fn tidy(store: &Store) {
    for _ in 0..50 {
        store.step().unwrap();
    }
}

#[test]
fn what_one_fork_needs_no_more_is_fetched_for_the_next_one() {
    let (dir, stage) = (tempfile::tempdir().unwrap(), Stage::default());
    let store = store(dir.path(), &stage);
    let data = pattern(71, 4 * MIB);
    let actor = snapshot(&stage, "a://", &data);
    let first = paused_fork(&store, &actor, "first");
    read(&first, MIB as u64, 2 * MIB).unwrap();
    // Of what is there nobody needs the second MiB, and of what is missing nobody the fourth.
    let mut changed = overwrite(&first, &data, MIB..2 * MIB);
    changed = overwrite(&first, &changed, 3 * MIB..4 * MIB);
    tidy(&store);
    assert_eq!(held(&store), Some((512..768).collect()));
    let before = actor.bytes_read();
    let second = store.fork("a://", "second").unwrap();
    assert!(read(&second, MIB as u64, 4096).unwrap() == data[MIB..MIB + 4096]);
    store.control_hydration("second", &resumed()).unwrap();
    settle(&store);
    for (volume, expected) in [(&first, &changed), (&second, &data)] {
        assert_eq!(store.show(&volume.name()).unwrap().source, None);
        assert!(read(volume, 0, 4 * MIB).unwrap() == *expected);
    }
    assert_eq!(actor.bytes_read() - before, 3 << 20, "{:?}", actor.reads());
}

#[test]
fn a_later_fork_fetches_only_discarded_blocks_of_a_root() {
    let (dir, stage) = (tempfile::tempdir().unwrap(), Stage::default());
    let data = pattern(72, 4 * MIB);
    let actor = snapshot(&stage, "a://", &data);
    let changed = {
        let store = store(dir.path(), &stage);
        let first = store.fork("a://", "first").unwrap();
        settle(&store);
        assert_eq!(actor.bytes_read(), 4 << 20);
        actor.play(|_, _| Play::Fail);
        let second = store.fork("a://", "second").unwrap();
        assert_eq!(store.show("second").unwrap().hydration.state, HydrationState::None);
        let changed = overwrite(&first, &data, MIB..2 * MIB);
        settle(&store);
        let third = store.fork("a://", "third").unwrap();
        assert!(read(&second, 0, 4 * MIB).unwrap() == data && read(&third, 0, 4 * MIB).unwrap() == data);
        // Without these, nobody sees the second MiB of the root any more.
        for volume in [second, third] {
            store.destroy_volume(&volume.name(), false).unwrap();
        }
        settle(&store);
        assert_eq!(held(&store), Some((0..256).chain(512..1024).collect()));
        store.close().unwrap();
        changed
    };
    actor.play(|_, _| Play::Answer);
    {
        let (store, _) = store_again(dir.path(), &stage);
        let fourth = paused_fork(&store, &actor, "fourth");
        let info = store.show("fourth").unwrap();
        assert_eq!((info.blocks.missing, info.state), (256, VolumeState::Hydrating));
        // The first one was complete, and needs nobody.
        let info = store.show("first").unwrap();
        assert_eq!((info.blocks.missing, info.state, info.source), (0, VolumeState::Created, None));
        let first = store.volume("first").unwrap();
        first.create_snapshot("s").unwrap();
        let own = store.snapshot("first", "s").unwrap().identity();
        assert_eq!(store.holdings()[&own].present, None, "it is whole");
        assert!(store.wait_hydrated("first", Duration::ZERO).unwrap() && !store.wait_hydrated("fourth", Duration::ZERO).unwrap());
        assert!(read(&fourth, 2 * MIB as u64 - 4096, 8192).unwrap() == data[2 * MIB - 4096..2 * MIB + 4096]);
        assert_eq!(actor.bytes_read(), (4 << 20) + 4096);
        store.close().unwrap();
    }
    // What was attached again is so after another start, too.
    let (store, told) = store_again(dir.path(), &stage);
    assert_eq!(store.show("first").unwrap().state, VolumeState::Created);
    store.control_hydration("fourth", &resumed()).unwrap();
    settle(&store);
    assert_eq!(actor.bytes_read(), 5 << 20);
    assert_eq!(*told.lock().unwrap(), ["fourth"]);
    store.fork("a://", "fifth").unwrap();
    for (name, expected) in [("first", &changed), ("fourth", &data), ("fifth", &data)] {
        assert_eq!(store.show(name).unwrap().source, None, "{name}");
        assert!(read(&store.volume(name).unwrap(), 0, 4 * MIB).unwrap() == *expected, "{name}");
    }
    assert_eq!(actor.bytes_read(), 5 << 20);
}

/// An identity is a claim of whoever serves it.
#[test]
fn a_claimed_identity_serves_only_forks_that_named_it() {
    let (dir, stage) = (tempfile::tempdir().unwrap(), Stage::default());
    let store = store(dir.path(), &stage);
    let (data, poison) = (pattern(73, 4 * MIB), vec![0x66; 4 * MIB]);
    let honest = snapshot(&stage, "honest://", &data);
    let actor = |uri: &str| Actor { identity: Some(IDENTITY.into()), has_checksums: true, ..Actor::new(uri, &poison) };
    let evil = stage.add(actor("evil://"));
    let both = ["honest://".to_owned(), "evil://".to_owned()];
    // One is complete before anybody else comes, another one while the victim is under way.
    let first = store.fork("evil://", "first").unwrap();
    settle(&store);
    assert!(read(&first, 0, 4 * MIB).unwrap() == poison, "who names it has what it gives");
    let victim = paused_fork(&store, &honest, "victim");
    let second = store.fork("evil://", "second").unwrap();
    let mixed = store.fork(&both, "mixed").unwrap();
    let addresses = |store: &Store, name: &str| -> Vec<String> {
        store.show(name).unwrap().hydration.sources.into_iter().map(|source| source.uri).collect()
    };
    assert_eq!(addresses(&store, "victim"), ["honest://"]);
    assert_eq!(addresses(&store, "mixed"), both);
    let later = store.fork("honest://", "later").unwrap();
    store.control_hydration("victim", &resumed()).unwrap();
    let asked = honest.bytes_read();
    settle(&store);
    for volume in [&victim, &later] {
        assert!(read(volume, 0, 4 * MIB).unwrap() == data, "{}", volume.name());
    }
    assert!(read(&second, 0, 4 * MIB).unwrap() == poison);
    assert!(honest.bytes_read() - asked <= 8 << 20, "forks that name the same address share their blocks");
    assert!(evil.bytes_read() <= 8 << 20);
    drop((first, victim, second, mixed, later));
    // Opened again, it is known still who named what; an address that was removed has left its bytes.
    for name in ["first", "second", "mixed", "later"] {
        store.destroy_volume(name, false).unwrap();
    }
    store.fork(&both, "half").unwrap();
    store.control_hydration("half", &paused()).unwrap();
    let control = HydrationControl::default().with_remove_sources(vec!["evil://".into()]);
    store.control_hydration("half", &control).unwrap();
    store.close().unwrap();
    let (store, _) = store_again(dir.path(), &stage);
    assert_eq!(addresses(&store, "half"), ["honest://"]);
    let asked = honest.bytes_read();
    let last = store.fork("honest://", "last").unwrap();
    assert!(read(&last, 0, 4 * MIB).unwrap() == data);
    assert_eq!(honest.bytes_read(), asked, "it has the blocks of the victim, which came from there alone");
    assert!(store.show("half").unwrap().blocks.missing > 0, "it was joined by nobody");
}

#[test]
fn other_bytes_are_kept_apart() {
    let trial = Trial::new();
    let data = pattern(73, 4 * MIB);
    let other = pattern(74, 4 * MIB);
    let a = snapshot(&trial.stage, "a://", &data);
    let first = trial.paused_fork(&a, "first");
    // The same address serves another snapshot now.
    trial.stage.add(Actor { identity: Some("host/8".into()), ..Actor::new("a://", &other) });
    let second = trial.store.fork("a://", "second").unwrap();
    trial.finish("second");
    assert!(read(&second, 0, 4 * MIB).unwrap() == other);
    // Whatever it says: what has another size has other bytes.
    snapshot(&trial.stage, "a://", &other[..MIB]);
    let third = trial.store.fork("a://", "third").unwrap();
    trial.finish("third");
    assert!(read(&third, 0, MIB).unwrap() == other[..MIB]);
    snapshot(&trial.stage, "a://", &data);
    a.play(|_, _| Play::Answer);
    a.fail_held();
    trial.store.control_hydration("first", &resumed()).unwrap();
    trial.finish("first");
    assert!(read(&first, 0, 4 * MIB).unwrap() == data);
}

#[test]
fn forks_made_while_a_root_completes_have_its_bytes() {
    const ROUNDS: usize = 60;
    const FORKS: usize = 4;
    let data = Arc::new(pattern(75, MIB));
    for round in 0..ROUNDS {
        let trial = Trial::new();
        let actor = snapshot(&trial.stage, "a://", &data);
        let begin = Arc::new(Barrier::new(FORKS));
        let one = |number: usize| {
            let (store, data, begin) = (trial.store.clone(), Arc::clone(&data), Arc::clone(&begin));
            std::thread::spawn(move || {
                let name = format!("f{number}");
                begin.wait();
                for turn in 0..4 {
                    let volume = store.fork("a://", &name).unwrap();
                    // Hides half of the root, so that it may be complete without that.
                    let changed = overwrite(&volume, &data, (number % 2) * MIB / 2..(number % 2 + 1) * MIB / 2);
                    assert!(read(&volume, 0, MIB).unwrap() == changed, "round {round}, fork {number}, turn {turn}");
                    if turn < 3 {
                        drop(volume);
                        store.destroy_volume(&name, false).unwrap();
                    }
                }
            })
        };
        let threads: Vec<_> = (0..FORKS).map(one).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        (0..FORKS).for_each(|number| trial.finish(&format!("f{number}")));
        assert!(actor.bytes_read() >= 1 << 19);
        trial.store.close().unwrap();
    }
}
