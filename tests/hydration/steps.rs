//! Background work without threads, step by step (`Store::step`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use volfork::volume::VolumeState;
use volfork::{Clock, Store};

use crate::stage::{Actor, PATIENCE, Play, Stage};
use crate::{options, pattern, paused, read, resumed};

const BLOCK: usize = 4096;

/// Time stands still.
struct Still;

impl Clock for Still {
    fn monotonic(&self) -> Duration {
        Duration::from_secs(1000)
    }

    fn unix(&self) -> Duration {
        Duration::from_secs(1_000_000)
    }
}

/// A store that does nothing by itself.
pub fn store(directory: &std::path::Path, stage: &Stage) -> Store {
    Store::create(directory, options(stage).with_threads(false)).unwrap()
}

/// Does what there is to do.
pub fn settle(store: &Store) {
    let begun = Instant::now();
    while store.step().unwrap() {
        assert!(begun.elapsed() < PATIENCE, "there is always more to do");
    }
}

/// A fork that fetches nothing before it is told to.
pub fn paused_fork(store: &Store, actor: &Actor, name: &str) -> volfork::Volume {
    let volume = store.fork(&actor.uri, name).unwrap();
    store.control_hydration(name, &paused()).unwrap();
    volume
}

#[test]
fn what_every_fork_has_overwritten_is_not_fetched() {
    let (dir, stage) = (tempfile::tempdir().unwrap(), Stage::default());
    let store = store(dir.path(), &stage);
    let data = pattern(61, 4 << 20);
    let actor = stage.add(Actor::new("a://", &data));
    let volume = paused_fork(&store, &actor, "v");
    let fork = volume.fork("w").unwrap();
    // One needs the first MiB, the other the third; the second is needed by nobody, of the fourth each has a part.
    let (mut expected, mut forked) = (data.clone(), data.clone());
    for (volume, expected, seed, range) in
        [(&volume, &mut expected, 62, 1 << 20..(3 << 20) + (512 << 10)), (&fork, &mut forked, 63, 0..2 << 20)]
    {
        let bytes = pattern(seed, range.len());
        volume.write_at(&bytes, range.start as u64).unwrap();
        expected[range].copy_from_slice(&bytes);
        volume.flush().unwrap();
    }
    store.control_hydration("v", &resumed()).unwrap();
    settle(&store);
    let mut fetched = vec![0; data.len() / BLOCK];
    for (range, _) in actor.reads() {
        fetched[range.start as usize / BLOCK..range.end as usize / BLOCK].iter_mut().for_each(|count| *count += 1);
    }
    let is_needed = |block: usize| !(256..512).contains(&block);
    assert!((0..fetched.len()).all(|block| fetched[block] == usize::from(is_needed(block))), "{:?}", actor.reads());
    for (name, volume, expected) in [("v", &volume, expected), ("w", &fork, forked)] {
        let info = store.show(name).unwrap();
        assert_eq!((info.blocks.missing, info.source), (0, None), "{name}");
        assert!(read(volume, 0, data.len()).unwrap() == expected, "{name}");
    }
}

/// A block that is overwritten, but not flushed, is missing for as long as a crash would bring the source's bytes back.
#[test]
fn unflushed_overwrites_become_durable_and_are_not_fetched() {
    let (dir, stage) = (tempfile::tempdir().unwrap(), Stage::default());
    let store = store(dir.path(), &stage);
    let data = pattern(66, 4 << 20);
    let actor = stage.add(Actor::new("a://", &data));
    // The source cannot read its second and third MiB.
    actor.play(|range, _| if range.start < 3 << 20 && range.end > 1 << 20 { Play::Fail } else { Play::Answer });
    let volume = paused_fork(&store, &actor, "v");
    let below = volume.fork("w").unwrap();
    for (volume, seed, range) in [(&volume, 67, 0..2 << 20), (&volume, 68, 2 << 20..4 << 20), (&below, 69, 0..4 << 20)] {
        volume.write_at(&pattern(seed, range.len()), range.start as u64).unwrap();
    }
    assert_eq!(store.show("v").unwrap().blocks.missing, 0);
    store.control_hydration("v", &resumed()).unwrap();
    settle(&store);
    assert_eq!(actor.reads(), [], "nobody needs any of its bytes");
    for name in ["v", "w"] {
        let info = store.show(name).unwrap();
        assert_eq!((info.state, info.source, info.hydration.last_error), (VolumeState::Created, None, None), "{name}");
    }
    drop((volume, below));
    // As after a crash: what hid the source's bytes is there.
    store.close().unwrap();
    let store = Store::open(dir.path(), options(&stage).with_threads(false)).unwrap();
    assert!(read(&store.volume("w").unwrap(), 0, 4 << 20).unwrap() == pattern(69, 4 << 20));
}

#[test]
fn parts_of_blocks_give_back_their_room_although_nobody_reads() {
    /// As many as there is room for.
    const PATCHES: u64 = 4096;
    let (dir, stage) = (tempfile::tempdir().unwrap(), Stage::default());
    let store = store(dir.path(), &stage);
    let data = pattern(64, (PATCHES as usize + 1) * BLOCK);
    let actor = stage.add(Actor::new("a://", &data));
    actor.play(|_, _| Play::Fail);
    let volume = paused_fork(&store, &actor, "v");
    let patch = |volume: &volfork::Volume, block: u64| volume.write_at(&[9; 3], block * BLOCK as u64 + 5);
    (0..PATCHES).for_each(|block| patch(&volume, block).unwrap());
    assert!(patch(&volume, PATCHES).is_err(), "there is room for more of them than this test fills");
    actor.play(|_, _| Play::Answer);
    store.control_hydration("v", &resumed()).unwrap();
    settle(&store);
    volume.flush().unwrap();
    settle(&store);
    assert_eq!(store.show("v").unwrap().source, None);
    actor.play(|_, _| Play::Fail);
    let other = paused_fork(&store, &actor, "w");
    for block in 0..PATCHES {
        patch(&other, block).unwrap_or_else(|error| panic!("block {block}: merged parts take room still: {error}"));
    }
    let mut expected = data.clone();
    expected.chunks_mut(BLOCK).take(PATCHES as usize).for_each(|block| block[5..8].fill(9));
    assert!(read(&volume, 0, data.len()).unwrap() == expected);
}

#[test]
fn resuming_a_hydration_retries_a_failed_address_at_once() {
    let (dir, stage) = (tempfile::tempdir().unwrap(), Stage::default());
    let options = options(&stage).with_threads(false).with_clock(Arc::new(Still));
    let store = Store::create(dir.path(), options).unwrap();
    let data = pattern(65, 4 << 20);
    let actor = stage.add(Actor::new("a://", &data));
    actor.play(|_, _| Play::Fail);
    let volume = store.fork("a://", "v").unwrap();
    let try_again = || assert!((0..20).any(|_| !store.step().unwrap()), "it says for ever that it did something");
    try_again();
    let asked = actor.reads().len();
    assert!(asked > 0 && store.show("v").unwrap().state == VolumeState::Degraded);
    actor.play(|_, _| Play::Answer);
    try_again();
    assert_eq!(actor.reads().len(), asked, "an address that failed a moment ago is let be");
    store.control_hydration("v", &resumed()).unwrap();
    settle(&store);
    assert_eq!(store.show("v").unwrap().source, None);
    assert!(read(&volume, 0, data.len()).unwrap() == data);
}

/// A time that the test makes pass, in milliseconds.
#[derive(Default)]
struct Passing(AtomicU64);

impl Clock for Passing {
    fn monotonic(&self) -> Duration {
        Duration::from_secs(1000) + Duration::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn unix(&self) -> Duration {
        Duration::from_secs(1_000_000)
    }
}

#[test]
fn a_host_that_is_lost_is_tried_by_one_fork_for_all() {
    is_tried_by_one_for_all(FORKS);
}

/// The host is there again, but what most forks come from cannot be read any more.
#[test]
fn a_host_that_answers_with_errors_is_not_lost() {
    is_tried_by_one_for_all(1);
}

const FORKS: usize = 20;

/// `well`: forks whose exports can be read when their host is back.
fn is_tried_by_one_for_all(well: usize) {
    let (dir, stage, clock) = (tempfile::tempdir().unwrap(), Stage::default(), Arc::new(Passing::default()));
    let options = options(&stage).with_threads(false).with_clock(clock.clone());
    let store = Store::create(dir.path(), options).unwrap();
    let data = pattern(66, 256 << 10);
    let pass = |millis, until: &dyn Fn() -> bool| {
        for _ in 0..100 {
            clock.0.fetch_add(millis, Ordering::SeqCst);
            assert!((0..20 * FORKS).any(|_| !store.step().unwrap()), "it says for ever that it did something");
            if until() {
                return true;
            }
        }
        false
    };
    let mut actors = Vec::new();
    for number in 0..FORKS {
        let actor = stage.add(Actor::new(&format!("nbd://host/base@s{number}"), &data));
        paused_fork(&store, &actor, &format!("v{number}"));
        actor.lose(true);
        actors.push(actor);
    }
    (0..FORKS).for_each(|number| drop(store.control_hydration(&format!("v{number}"), &resumed()).unwrap()));
    let asked = || actors.iter().map(|actor| actor.reads().len()).sum::<usize>();
    // Each is asked once, and then one of them each second.
    pass(100, &|| false);
    assert!((FORKS + 5..=FORKS + 11).contains(&asked()), "asked {} times in ten seconds", asked());
    // When it answers one, the others need not wait for one another.
    actors[..FORKS - well].iter().for_each(|actor| actor.play(|_, _| Play::Fail));
    actors.iter().for_each(|actor| actor.lose(false));
    let is_whole = || (FORKS - well..FORKS).all(|number| store.show(&format!("v{number}")).unwrap().source.is_none());
    let before = clock.0.load(Ordering::SeqCst);
    assert!(pass(100, &is_whole));
    let took = clock.0.load(Ordering::SeqCst) - before;
    assert!(took <= 6500, "the last one was asked after {took} ms");
}
