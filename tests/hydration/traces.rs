//! Traces: the recorded order of first reads, and the forks that are fetched in that order.

use std::time::Instant;

use roaring::RoaringBitmap;
use volfork::source::ReadClass;
use volfork::volume::TraceInfo;
use volfork::{ErrorKind, Store, StoreOptions, Volume};

use crate::stage::{Actor, PATIENCE, Play};
use crate::{Trial, pattern, read, resumed};

const PLACES: [u64; 4] = [9, 2, 13, 4];

/// Starts of the first reads of bulk that came behind the first `skip` reads.
fn first_places(actor: &Actor, skip: usize) -> Vec<u64> {
    actor.reads().into_iter().skip(skip).map(|(range, _)| range.start >> 20).take(PLACES.len()).collect()
}

#[test]
fn a_later_fork_from_elsewhere_follows_the_first_one() {
    let trial = Trial::new();
    let data = pattern(61, 16 << 20);
    let actor = trial.stage.add(Actor { identity: Some("host/7".into()), ..Actor::new("a://", &data) });
    let first = trial.paused_fork(&actor, "first");
    for place in PLACES {
        read(&first, place << 20, 4096).unwrap();
    }
    actor.play(|_, _| Play::Answer);
    actor.release();
    trial.store.control_hydration("first", &resumed()).unwrap();
    trial.finish("first");
    // When nobody sees the snapshot any more, it is fetched again for the next one.
    first.write_at(&pattern(62, 16 << 20), 0).unwrap();
    first.flush().unwrap();
    let begun = Instant::now();
    while trial.store.holdings()["host/7"].present != Some(RoaringBitmap::new()) {
        assert!(begun.elapsed() < PATIENCE, "nothing is given back");
        std::thread::yield_now();
    }
    let skip = actor.reads().len();
    trial.store.fork("a://", "second").unwrap();
    trial.finish("second");
    assert_eq!(first_places(&actor, skip), PLACES);
    // Another snapshot has another order.
    let other = trial.stage.add(Actor { identity: Some("host/8".into()), ..Actor::new("b://", &data) });
    trial.store.fork("b://", "other").unwrap();
    trial.finish("other");
    assert_eq!(other.reads().iter().map(|(range, _)| range.start).min(), other.reads().first().map(|(range, _)| range.start));
}

#[test]
fn a_source_trace_outlives_a_recording_just_begun() {
    let trial = Trial::new();
    let data = pattern(62, 16 << 20);
    let runs: Vec<_> = PLACES.into_iter().map(|place| place << 20..(place << 20) + 65536).collect();
    let actor = trial.stage.add(Actor { identity: Some("host/7".into()), trace: runs, ..Actor::new("a://", &data) });
    actor.play(|_, class| if class == ReadClass::Ahead { Play::Hang } else { Play::Answer });
    let volume = trial.store.fork("a://", "v").unwrap();
    actor.await_read(|range, class| class == ReadClass::Ahead && range.start == PLACES[0] << 20);
    read(&volume, 7 << 20, 4096).unwrap();
    actor.play(|_, _| Play::Answer);
    actor.release();
    volume.create_snapshot("s").unwrap();
    trial.finish("v");
    // The recording is written when the store closes, if it is.
    drop(volume);
    let Trial { stage, store, _dir: dir } = trial;
    store.close().unwrap();
    let store = volfork::Store::open(dir.path(), crate::options(&stage)).unwrap();
    let places: Vec<u64> = store.snapshot("v", "s").unwrap().trace().iter().map(|run| run.start >> 20).collect();
    assert_eq!(places, [&PLACES[..], &[7]].concat(), "what only this fork touched comes behind it");
}

/// The first fork reads its partition table, the second one starts a machine.
#[test]
fn one_small_read_does_not_fix_the_trace_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), StoreOptions::default()).unwrap();
    let origin = store.create_volume("v", 16 << 20).unwrap();
    origin.write_at(&pattern(64, 16 << 20), 0).unwrap();
    origin.create_snapshot("s").unwrap();
    let places = |store: &Store| -> Vec<u64> { store.trace("v", Some("s")).unwrap().runs.iter().map(|run| run.start >> 20).collect() };
    let touch = |fork: &Volume, places: &[u64]| places.iter().for_each(|place| drop(read(fork, place << 20, 512).unwrap()));
    touch(&store.fork("v@s", "first").unwrap(), &[0]);
    assert_eq!(places(&store), [0]);
    // A recording lasts as long as its process, or ten minutes.
    store.close().unwrap();
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    store.destroy_volume("first", false).unwrap();
    let second = store.fork("v@s", "second").unwrap();
    touch(&second, &PLACES);
    assert_eq!(places(&store), [&[0], &PLACES[..]].concat());
    assert!(store.trace("second", None).unwrap().recording, "a volume names what it stands on");
    // A wrong one is forgotten, with its recording, and another one made by command.
    store.drop_trace("v", Some("s")).unwrap();
    touch(&second, &[6]);
    assert_eq!(store.trace("v", Some("s")).unwrap(), TraceInfo::default());
    store.record_trace("second").unwrap();
    touch(&second, &[5, 0]);
    assert_eq!(places(&store), [5, 0]);
    assert_eq!(store.record_trace("v").map_err(|error| error.kind()), Ok(()), "it stands on its own snapshot");
    store.create_volume("alone", 4096).unwrap();
    assert_eq!(store.record_trace("alone").unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(store.trace("v", Some("none")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(places(&store), [5, 0]);
}

#[test]
fn a_trace_is_recorded_for_a_fork_of_an_earlier_process() {
    let stage = crate::stage::Stage::default();
    let data = pattern(63, 16 << 20);
    let runs: Vec<_> = PLACES.into_iter().map(|place| place << 20..(place << 20) + 65536).collect();
    let make = |uri: &str, identity: &str, trace| Actor { identity: Some(identity.into()), trace, ..Actor::new(uri, &data) };
    let (told, silent) = (stage.add(make("a://", "host/7", runs)), stage.add(make("b://", "host/8", Vec::new())));
    let dir = tempfile::tempdir().unwrap();
    {
        let store = volfork::Store::create(dir.path(), crate::options(&stage).with_threads(false)).unwrap();
        store.fork("a://", "told").unwrap();
        store.fork("b://", "silent").unwrap();
        store.close().unwrap();
    }
    assert_eq!((told.reads().len(), silent.reads().len()), (0, 0));
    silent.play(|_, class| if class == ReadClass::Ahead { Play::Hang } else { Play::Answer });
    let store = volfork::Store::open(dir.path(), crate::options(&stage)).unwrap();
    assert!(store.wait_hydrated("told", PATIENCE).unwrap());
    assert_eq!(first_places(&told, 0), PLACES);
    let volume = store.volume("silent").unwrap();
    for place in PLACES {
        read(&volume, place << 20, 4096).unwrap();
    }
    silent.play(|_, _| Play::Answer);
    silent.release();
    volume.create_snapshot("s").unwrap();
    assert!(store.wait_hydrated("silent", PATIENCE).unwrap());
    drop(volume);
    store.close().unwrap();
    let store = volfork::Store::open(dir.path(), crate::options(&stage)).unwrap();
    let places: Vec<u64> = store.snapshot("silent", "s").unwrap().trace().iter().map(|run| run.start >> 20).collect();
    assert_eq!(places, PLACES);
}
