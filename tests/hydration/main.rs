//! Hydration from scripted sources, and between stores that serve each other.
mod bad;
mod events;
mod freed;
mod hedging;
mod holdings;
mod hosts;
mod leases;
mod lending;
mod lifecycle;
mod patches;
#[path = "../../src/random.rs"]
mod random;
mod refusals;
mod rude;
mod shared;
mod stage;
mod steps;
mod traces;
mod waiting;
mod zeros;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use stage::{Actor, PATIENCE, Play, Stage};
use volfork::source::ReadClass;
use volfork::store::HydrationControl;
use volfork::volume::{Event, EventKind, HydrationPriority, HydrationState, VolumeState};
use volfork::{ErrorKind, Store, StoreOptions, Volume};

/// Bytes that are nowhere zero, and differ from block to block.
pub fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| ((at / 4096).wrapping_mul(31).wrapping_add(at).wrapping_add(seed * 7) % 255 + 1) as u8).collect()
}

/// Real files and these sources.
pub fn options(stage: &Stage) -> StoreOptions {
    StoreOptions::default().with_sources(Arc::new(stage.clone()))
}

fn paused() -> HydrationControl {
    HydrationControl::default().with_paused(true)
}

fn resumed() -> HydrationControl {
    HydrationControl::default().with_paused(false)
}

/// A store and the sources that it knows.
pub struct Trial {
    /// The sources.
    pub stage: Stage,
    /// The store.
    pub store: Store,
    _dir: tempfile::TempDir,
}

impl Trial {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stage = Stage::default();
        Self { store: Store::create(dir.path(), options(&stage)).unwrap(), stage, _dir: dir }
    }

    /// A fork whose backfill is stopped before it read anything: bulk reads of `actor` hang until then.
    fn paused_fork(&self, actor: &Actor, name: &str) -> Volume {
        actor.play(|_, class| if class == ReadClass::Ahead { Play::Hang } else { Play::Answer });
        let volume = self.store.fork(&actor.uri, name).unwrap();
        self.store.control_hydration(name, &paused()).unwrap();
        volume
    }

    fn finish(&self, name: &str) {
        assert!(self.store.wait_hydrated(name, PATIENCE).unwrap(), "{:?}", self.store.show(name).unwrap());
    }
}

/// Bytes of a volume.
pub fn read(volume: &Volume, offset: u64, bytes: usize) -> volfork::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    volume.read_at(&mut buffer, offset).map(|()| buffer)
}

#[test]
fn a_block_is_fetched_once_however_many_readers_want_it() {
    let trial = Trial::new();
    let data = pattern(1, 8 << 20);
    let actor = trial.stage.add(Actor::new("a://", &data));
    actor.play(|_, _| Play::Hang);
    let volume = trial.store.fork("a://", "v").unwrap();
    let readers: Vec<_> = (0..16)
        .map(|number| {
            let (volume, expected) = (volume.clone(), data[5 << 20..(5 << 20) + 8192].to_vec());
            std::thread::spawn(move || assert!(read(&volume, 5 << 20, 8192).unwrap() == expected, "reader {number}"))
        })
        .collect();
    actor.await_read(|range, _| range.contains(&(5 << 20)));
    actor.play(|_, _| Play::Answer);
    while readers.iter().any(|reader| !reader.is_finished()) {
        actor.release();
        std::thread::yield_now();
    }
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    trial.finish("v");
    assert_eq!(actor.bytes_read(), 8 << 20, "each block once: {:?}", actor.reads());
    assert!(read(&volume, 0, 8 << 20).unwrap() == data);
}

#[test]
fn fifty_forks_of_one_snapshot_fetch_each_block_once() {
    let data = pattern(2, 2 << 20);
    // Whether two addresses have the same bytes only an identity tells.
    for (identity, times) in [(Some("host/7".to_owned()), 1), (None, 50)] {
        let trial = Trial::new();
        let actor = trial.stage.add(Actor { identity, ..Actor::new("a://", &data) });
        std::thread::scope(|scope| {
            for number in 0..50 {
                let store = &trial.store;
                scope.spawn(move || store.fork("a://", &format!("v{number}")).unwrap());
            }
        });
        for number in 0..50 {
            trial.finish(&format!("v{number}"));
            assert!(read(&trial.store.volume(&format!("v{number}")).unwrap(), 0, 2 << 20).unwrap() == data);
        }
        assert_eq!(actor.bytes_read(), times * (2 << 20));
    }
    // Forks of a fork share its blocks.
    let trial = Trial::new();
    let actor = trial.stage.add(Actor::new("a://", &data));
    let first = trial.paused_fork(&actor, "v");
    let forks: Vec<Volume> = (0..50).map(|number| first.fork(&format!("w{number}")).unwrap()).collect();
    let readers: Vec<_> = forks
        .into_iter()
        .map(|fork| {
            let expected = data.clone();
            std::thread::spawn(move || assert!(read(&fork, 0, 2 << 20).unwrap() == expected))
        })
        .collect();
    while readers.iter().any(|reader| !reader.is_finished()) {
        actor.release();
        std::thread::yield_now();
    }
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    let waited: u64 = actor.reads().iter().filter(|(_, class)| *class == ReadClass::Waited).map(|(range, _)| range.end - range.start).sum();
    assert!(waited <= 2 << 20, "{waited} bytes were read for 50 forks of one fork");
}

#[test]
fn a_reader_does_not_wait_for_bulk_that_was_not_sent() {
    let trial = Trial::new();
    let data = pattern(3, 64 << 20);
    let actor = trial.stage.add(Actor::new("a://", &data));
    // The first bulk requests hang: what is behind them is queued.
    actor.play(|_, class| if class == ReadClass::Ahead { Play::Hang } else { Play::Answer });
    let volume = trial.store.fork("a://", "v").unwrap();
    actor.await_read(|_, class| class == ReadClass::Ahead);
    let last = (64 << 20) - 4096;
    assert!(read(&volume, last, 4096).unwrap() == data[last as usize..]);
    let (first, _) = actor.reads().into_iter().find(|(_, class)| *class == ReadClass::Waited).unwrap();
    assert_eq!(first, last..64 << 20, "the block that is wanted, and no more, goes first");
    actor.play(|_, _| Play::Answer);
    actor.release();
    trial.finish("v");
    assert_eq!(actor.bytes_read(), 64 << 20);
}

#[test]
fn readers_are_released_as_bytes_arrive() {
    let trial = Trial::new();
    let data = pattern(4, 4 << 20);
    let actor = trial.stage.add(Actor::new("a://", &data));
    // The part that begins a bulk request comes; its end does not.
    actor.play(|_, _| Play::Answer);
    let volume = trial.paused_fork(&actor, "v");
    actor.play(|range, _| if range.contains(&(1 << 20)) && range.start < 1 << 20 { Play::Hang } else { Play::Answer });
    let far = volume.clone();
    let whole = std::thread::spawn(move || read(&far, (1 << 20) - 65536, 131_072).unwrap());
    actor.await_read(|range, class| class == ReadClass::Waited && range.contains(&(1 << 20)));
    actor.release();
    assert!(whole.join().unwrap() == data[(1 << 20) - 65536..(1 << 20) + 65536]);
}

#[test]
fn damaged_bytes_are_fetched_again_then_elsewhere_then_reported() {
    let trial = Trial::new();
    let data = pattern(5, 1 << 20);
    let actor = |uri: &str| Actor { identity: Some("host/7".into()), has_checksums: true, ..Actor::new(uri, &data) };
    let (a, b) = (trial.stage.add(actor("a://")), trial.stage.add(actor("b://")));
    let volume = trial.paused_fork(&a, "v");
    // Once: the same address is asked again.
    let damaged = AtomicUsize::new(0);
    a.play(move |_, class| match class {
        ReadClass::Ahead => Play::Hang,
        ReadClass::Waited if damaged.fetch_add(1, Ordering::SeqCst) == 0 => Play::Damage,
        _ => Play::Answer,
    });
    assert!(read(&volume, 0, 4096).unwrap() == data[..4096]);
    // Always, and nobody else is known: reported, and not stored.
    a.play(|_, class| if class == ReadClass::Ahead { Play::Hang } else { Play::Damage });
    let error = read(&volume, 65536, 4096).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceLost);
    assert!(error.to_string().contains("a:// sent bytes at offset 65536 that do not match their checksum"), "{error}");
    // Always, but there is another address.
    let add = HydrationControl::default().with_add_sources(vec!["b://".into()]);
    trial.store.control_hydration("v", &add).unwrap();
    assert!(read(&volume, 65536, 4096).unwrap() == data[65536..65536 + 4096]);
    assert_eq!(b.bytes_read() % 4096, 0);
    // Backfill does the same.
    a.play(|_, _| Play::Damage);
    a.release();
    trial.store.control_hydration("v", &resumed()).unwrap();
    trial.finish("v");
    assert!(read(&volume, 0, 1 << 20).unwrap() == data);
}

#[test]
fn a_source_with_other_bytes_is_refused() {
    let trial = Trial::new();
    let data = pattern(6, 1 << 20);
    let actor = |uri: &str, identity: Option<&str>, data: &[u8]| {
        trial.stage.add(Actor { identity: identity.map(str::to_owned), ..Actor::new(uri, data) })
    };
    let a = actor("a://", Some("host/7"), &data);
    actor("same://", Some("host/7"), &data);
    actor("later://", Some("host/8"), &data);
    actor("unknown://", None, &data);
    actor("shorter://", Some("host/7"), &data[..4096]);
    trial.paused_fork(&a, "v");
    let add = |uri: &str| {
        let control = HydrationControl::default().with_add_sources(vec![uri.into()]);
        trial.store.control_hydration("v", &control)
    };
    for (uri, why) in
        [("later://", "host/8"), ("unknown://", "reports no identity"), ("shorter://", "4096 bytes"), ("none://", "not on stage")]
    {
        let error = add(uri).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains(why), "{uri}: {error}");
    }
    let sources = add("same://").unwrap().sources;
    assert_eq!(sources.iter().map(|source| source.uri.as_str()).collect::<Vec<_>>(), ["a://", "same://"]);
    let remove = |uri: &str| {
        let control = HydrationControl::default().with_remove_sources(vec![uri.into()]);
        trial.store.control_hydration("v", &control)
    };
    assert_eq!(remove("later://").unwrap_err().kind(), ErrorKind::NotFound);
    remove("a://").unwrap();
    assert_eq!(remove("same://").unwrap_err().kind(), ErrorKind::InvalidInput, "the last address stays");
}

#[test]
fn a_fork_survives_its_origin_if_another_address_has_it() {
    let trial = Trial::new();
    let data = pattern(7, 32 << 20);
    let (a, b) = (trial.stage.add(Actor::new("a://", &data)), trial.stage.add(Actor::new("b://", &data)));
    a.play(|_, _| Play::Hang);
    b.play(|_, class| if class == ReadClass::Ahead { Play::Hang } else { Play::Answer });
    let volume = trial.store.fork(&["a://".into(), "b://".into()], "v").unwrap();
    a.await_read(|_, _| true);
    a.lose(true);
    a.play(|_, _| Play::Answer);
    b.play(|_, _| Play::Answer);
    a.release();
    b.release();
    assert!(read(&volume, 20 << 20, 4096).unwrap() == data[20 << 20..(20 << 20) + 4096]);
    trial.finish("v");
    assert!(read(&volume, 0, 32 << 20).unwrap() == data);
    assert!(b.bytes_read() > 0);
}

#[test]
fn several_sources_share_the_work() {
    let trial = Trial::new();
    let data = pattern(8, 64 << 20);
    let actors = ["a://", "b://", "c://"].map(|uri| trial.stage.add(Actor::new(uri, &data)));
    let uris: Vec<String> = actors.iter().map(|actor| actor.uri.clone()).collect();
    trial.store.fork(&uris, "v").unwrap();
    trial.finish("v");
    let shares: Vec<u64> = actors.iter().map(|actor| actor.bytes_read()).collect();
    assert_eq!(shares.iter().sum::<u64>(), 64 << 20, "each block once");
    assert!(shares.iter().all(|share| *share > 1 << 20), "{shares:?}");
}

#[test]
fn a_slow_read_is_sent_to_another_address_too() {
    let trial = Trial::new();
    let data = pattern(9, 8 << 20);
    let (a, b) = (trial.stage.add(Actor::new("a://", &data)), trial.stage.add(Actor::new("b://", &data)));
    b.play(|_, class| if class == ReadClass::Ahead { Play::Hang } else { Play::Answer });
    a.play(|_, class| if class == ReadClass::Ahead { Play::Hang } else { Play::Answer });
    let volume = trial.store.fork(&["a://".into(), "b://".into()], "v").unwrap();
    trial.store.control_hydration("v", &paused()).unwrap();
    // Both have answered, so that what is usual is known; then neither of them does, and then one.
    for block in 0..32u64 {
        read(&volume, block * 65536 * 2, 4096).unwrap();
    }
    let first = if a.reads().iter().filter(|(_, class)| *class == ReadClass::Waited).count() > 16 { (&a, &b) } else { (&b, &a) };
    first.0.play(|_, _| Play::Hang);
    let expected = &data[(7 << 20) + 65536..(7 << 20) + 69632];
    assert!(read(&volume, (7 << 20) + 65536, 4096).unwrap() == expected, "the other address answers");
    first.1.await_read(|range, class| class == ReadClass::Waited && range.start == (7 << 20) + 65536);
}

#[test]
fn who_waits_for_bulk_that_does_not_come_asks_another_address() {
    let trial = Trial::new();
    let data = pattern(21, 16 << 20);
    let (a, b) = (trial.stage.add(Actor::new("a://", &data)), trial.stage.add(Actor::new("b://", &data)));
    // What `a` was asked for in bulk hangs, and the block is one of those.
    a.play(|_, _| Play::Hang);
    b.play(|_, class| if class == ReadClass::Ahead { Play::Hang } else { Play::Answer });
    let volume = trial.store.fork(&["a://".into(), "b://".into()], "v").unwrap();
    a.await_read(|_, class| class == ReadClass::Ahead);
    let (range, _) = a.reads().into_iter().find(|(_, class)| *class == ReadClass::Ahead).unwrap();
    let expected = &data[range.start as usize..][..8192];
    assert!(read(&volume, range.start, 8192).unwrap() == expected, "the other address has it");
    // An address of which nothing is known yet is not waited for without end either.
    trial.store.control_hydration("v", &paused()).unwrap();
    let last = (16 << 20) - 4096;
    assert!(read(&volume, last, 4096).unwrap() == data[last as usize..]);
    // What comes late changes nothing.
    a.play(|_, _| Play::Answer);
    b.play(|_, _| Play::Answer);
    a.release();
    b.release();
    trial.store.control_hydration("v", &resumed()).unwrap();
    trial.finish("v");
    assert!(read(&volume, 0, 16 << 20).unwrap() == data);
    let info = trial.store.show("v").unwrap();
    assert_eq!(info.hydration.bytes_missing, 0);
}

#[test]
fn zeros_that_arrive_take_no_space() {
    let trial = Trial::new();
    let mut data = pattern(71, 64 * 4096);
    data[16 * 4096..32 * 4096].fill(0);
    let actor = trial.stage.add(Actor::new("a://", &data));
    // Nobody has told yet where the zeros are.
    actor.hang_extents(true);
    trial.store.fork("a://", "v").unwrap();
    let bytes = read(&trial.store.volume("v").unwrap(), 0, data.len());
    let blocks = trial.store.show("v").unwrap().blocks;
    actor.hang_extents(false);
    assert!(bytes.unwrap() == data);
    assert_eq!((blocks.present, blocks.zero, blocks.missing), (48, 16, 0));
    trial.finish("v");
}

#[test]
fn an_address_without_block_status_delays_no_other() {
    let trial = Trial::new();
    let data = pattern(22, 16 << 20);
    let (a, b) = (trial.stage.add(Actor::new("a://", &data)), trial.stage.add(Actor::new("b://", &data)));
    a.play(|_, _| Play::Hang);
    a.hang_extents(true);
    let volume = trial.store.fork(&["a://".into(), "b://".into()], "v").unwrap();
    // All that `a` was not asked for comes from `b`, while the question for zeros is still open.
    b.await_read(|range, class| class == ReadClass::Ahead && range.end == 16 << 20);
    assert!(a.was_asked_extents(), "the address that was forked is asked first");
    a.hang_extents(false);
    a.play(|_, _| Play::Answer);
    a.release();
    trial.finish("v");
    assert!(read(&volume, 0, 16 << 20).unwrap() == data);
}

#[test]
fn what_an_earlier_fork_touched_comes_first_and_in_its_order() {
    let trial = Trial::new();
    let data = pattern(10, 32 << 20);
    let runs: Vec<_> = [20u64, 3, 11, 30].into_iter().map(|place| place << 20..(place << 20) + 65536).collect();
    let actor = trial.stage.add(Actor { trace: runs.clone(), ..Actor::new("a://", &data) });
    trial.store.fork("a://", "v").unwrap();
    trial.finish("v");
    let first: Vec<_> = actor.reads().into_iter().map(|(range, _)| range).take(4).collect();
    assert_eq!(first, runs, "the trace comes before everything else");
    assert!(trial.store.show("v").unwrap().source.is_none());
}

#[test]
fn a_sequential_reader_finds_its_blocks_there() {
    const BYTES: u64 = 16 << 20;
    let trial = Trial::new();
    let data = pattern(11, BYTES as usize);
    let actor = trial.stage.add(Actor::new("a://", &data));
    // Bulk waits; what is read ahead does not.
    actor.play(|_, class| if class == ReadClass::Ahead { Play::Hang } else { Play::Answer });
    let volume = trial.store.fork("a://", "v").unwrap();
    let rate = HydrationControl::default().with_rate_bytes_per_second(1);
    trial.store.control_hydration("v", &rate).unwrap();
    actor.play(|_, _| Play::Answer);
    let waited = || actor.reads().iter().filter(|(_, class)| *class == ReadClass::Waited).count();
    let start = BYTES / 2;
    for offset in (start..BYTES).step_by(4096) {
        let before = waited();
        assert!(read(&volume, offset, 4096).unwrap() == data[offset as usize..][..4096]);
        if waited() > before && offset + 4096 < BYTES {
            // What comes next is on its way before it is asked for.
            actor.await_read(|range, class| class == ReadClass::Ahead && range.contains(&(offset + 4096)));
        }
    }
    assert!(waited() < 12, "{} reads of {} had to wait", waited(), (BYTES - start) / 4096);
    let fetched = trial.store.show("v").unwrap().hydration.fetched;
    assert!(fetched.demand < fetched.ahead / 8, "{fetched:?}");
    assert!(fetched.backfill <= 4 << 20, "the largest request is more than a byte a second allows: {fetched:?}");
    actor.release();
}

#[test]
fn readers_that_never_stop_do_not_starve_backfill() {
    let trial = Trial::new();
    let data = pattern(12, 24 << 20);
    let actor = trial.stage.add(Actor::new("a://", &data));
    // From now on somebody waits for block 0, for ever.
    actor.play(|range, _| if range.start == 0 { Play::Hang } else { Play::Answer });
    let volume = trial.store.fork("a://", "v").unwrap();
    let waiting = volume.clone();
    let reader = std::thread::spawn(move || read(&waiting, 0, 4096));
    actor.await_read(|range, _| range.start == 0);
    actor.await_read(|range, class| class == ReadClass::Ahead && range.end == 24 << 20);
    actor.play(|_, _| Play::Answer);
    actor.release();
    assert!(reader.join().unwrap().unwrap() == data[..4096]);
    trial.finish("v");
}

#[test]
fn pace_can_be_changed_while_it_runs() {
    let trial = Trial::new();
    let data = pattern(13, 8 << 20);
    let actor = trial.stage.add(Actor::new("a://", &data));
    let volume = trial.paused_fork(&actor, "v");
    let info = trial.store.show("v").unwrap();
    assert_eq!((info.state, info.hydration.state), (VolumeState::Hydrating, HydrationState::Paused));
    let before = actor.reads().len();
    assert!(read(&volume, 4 << 20, 4096).unwrap() == data[4 << 20..(4 << 20) + 4096], "readers are served all the same");
    assert!(actor.reads().len() > before);
    // More than one, so that there is a rate.
    read(&volume, 6 << 20, 4096).unwrap();
    let paused = trial.store.show("v").unwrap().hydration;
    assert_eq!((paused.rate_bytes_per_second, paused.eta_seconds), (0, None), "what is paused has no end");
    let control =
        HydrationControl::default().with_rate_bytes_per_second(100 << 20).with_deadline_seconds(600).with_priority(HydrationPriority::High);
    let info = trial.store.control_hydration("v", &control).unwrap();
    assert_eq!((info.rate_limit_bytes_per_second, info.priority), (Some(100 << 20), HydrationPriority::High));
    assert!(info.deadline.is_some_and(|deadline| deadline > 1_700_000_000));
    let info = trial.store.control_hydration("v", &resumed().with_deadline_seconds(0)).unwrap();
    assert_eq!(info.deadline, None);
    actor.play(|_, _| Play::Answer);
    actor.release();
    trial.finish("v");
    let info = trial.store.show("v").unwrap();
    assert_eq!((info.state, info.hydration.state, info.hydration.bytes_missing), (VolumeState::Created, HydrationState::None, 0));
}

#[test]
fn settings_and_sources_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::default();
    let data = pattern(14, 8 << 20);
    let actor = |uri: &str| Actor { identity: Some("host/7".into()), ..Actor::new(uri, &data) };
    let (a, _b) = (stage.add(actor("a://")), stage.add(actor("b://")));
    let trial = Trial { store: Store::create(dir.path(), options(&stage)).unwrap(), stage, _dir: dir };
    trial.paused_fork(&a, "v");
    let control = HydrationControl::default()
        .with_rate_bytes_per_second(5 << 20)
        .with_priority(HydrationPriority::Low)
        .with_add_sources(vec!["b://".into()]);
    let before = trial.store.control_hydration("v", &control).unwrap();
    trial.store.close().unwrap();
    let store = Store::open(trial._dir.path(), options(&trial.stage)).unwrap();
    let after = store.show("v").unwrap().hydration;
    assert_eq!(
        (after.state, after.rate_limit_bytes_per_second, after.priority),
        (HydrationState::Paused, Some(5 << 20), HydrationPriority::Low)
    );
    let uris = |info: &volfork::volume::HydrationInfo| info.sources.iter().map(|source| source.uri.clone()).collect::<Vec<_>>();
    assert_eq!(uris(&after), uris(&before));
    a.lose(true);
    a.play(|_, _| Play::Answer);
    store.control_hydration("v", &resumed().with_rate_bytes_per_second(0)).unwrap();
    assert!(store.wait_hydrated("v", PATIENCE).unwrap(), "the address that was added is used");
    assert!(read(&store.volume("v").unwrap(), 0, 8 << 20).unwrap() == data);
}

#[test]
fn events_tell_of_loss_return_and_completion() {
    let events: Arc<(Mutex<Vec<Event>>, Condvar)> = Arc::default();
    let heard = Arc::clone(&events);
    let on_event = move |event: &Event| {
        heard.0.lock().push(event.clone());
        heard.1.notify_all();
    };
    let wait = |kind: EventKind| {
        let mut list = events.0.lock();
        while !list.iter().any(|event| event.kind == kind) {
            assert!(!events.1.wait_for(&mut list, PATIENCE).timed_out(), "{kind:?} did not come: {list:?}");
        }
        list.iter().find(|event| event.kind == kind).unwrap().clone()
    };
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::default();
    let actor = stage.add(Actor::new("a://", &pattern(15, 8 << 20)));
    let lost = Arc::new(AtomicBool::new(true));
    let store = Store::create(dir.path(), options(&stage).with_on_event(Arc::new(on_event))).unwrap();
    let gone = Arc::clone(&lost);
    actor.play(move |_, _| if gone.load(Ordering::SeqCst) { Play::Fail } else { Play::Answer });
    store.fork("a://", "v").unwrap();
    store.fork("v", "w").unwrap();
    let event = wait(EventKind::Degraded);
    assert!(event.error.is_some_and(|error| error.contains("cannot read")));
    assert_eq!(store.show("v").unwrap().state, VolumeState::Degraded);
    lost.store(false, Ordering::SeqCst);
    wait(EventKind::Recovered);
    assert_eq!(wait(EventKind::Hydrated).volumes, ["v", "w"]);
    assert_eq!(store.show("w").unwrap().state, VolumeState::Created);
}
