//! How long readers wait for a source that does not answer: not without end, and all of them together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use volfork::source::ReadClass;
use volfork::{Clock, ErrorKind, Store, StoreOptions, SystemClock};

use crate::stage::{Actor, Play, Stage};
use crate::{Trial, options, pattern, read};

/// The machine's clock, and as many seconds as the test has let pass.
#[derive(Default)]
struct Ahead(SystemClock, AtomicU64);

impl Clock for Ahead {
    fn monotonic(&self) -> Duration {
        self.0.monotonic() + Duration::from_secs(self.1.load(Ordering::SeqCst))
    }

    fn unix(&self) -> Duration {
        self.0.unix()
    }
}

#[test]
fn who_waits_for_one_block_is_told_of_its_loss_at_once() {
    const READERS: u64 = 8;
    let dir = tempfile::tempdir().unwrap();
    let (stage, clock) = (Stage::default(), Arc::new(Ahead::default()));
    let store = Store::create(dir.path(), StoreOptions { clock: Arc::clone(&clock) as _, ..options(&stage) }).unwrap();
    let trial = Trial { stage, store, _dir: dir };
    let data = pattern(41, 8 << 20);
    let actor = trial.stage.add(Actor::new("a://", &data));
    let volume = trial.paused_fork(&actor, "v");
    actor.play(|_, _| Play::Hang);
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let volume = volume.clone();
            std::thread::spawn(move || read(&volume, 4 << 20, 4096))
        })
        .collect();
    while trial.store.show("v").unwrap().hydration.readers_waiting < READERS {
        std::thread::yield_now();
    }
    actor.await_read(|_, class| class == ReadClass::Waited);
    clock.1.store(60, Ordering::SeqCst);
    // Whoever asks again hangs.
    actor.fail_held();
    for reader in readers {
        assert_eq!(reader.join().unwrap().unwrap_err().kind(), ErrorKind::SourceLost);
    }
    let asked = actor.reads().iter().filter(|(_, class)| *class == ReadClass::Waited).count();
    assert_eq!(asked, 1, "one request for all of them");
    // Who comes later asks anew.
    actor.play(|_, class| if class == ReadClass::Ahead { Play::Hang } else { Play::Answer });
    assert!(read(&volume, 4 << 20, 4096).unwrap() == data[4 << 20..(4 << 20) + 4096]);
}

#[test]
fn who_waits_can_be_given_up_and_later_readers_ask_again() {
    let trial = Trial::new();
    let data = pattern(42, 8 << 20);
    let actor = trial.stage.add(Actor::new("a://", &data));
    let volume = trial.paused_fork(&actor, "v");
    actor.play(|_, _| Play::Hang);
    let readers: Vec<_> = [4 << 20, 4 << 20, 6 << 20]
        .into_iter()
        .map(|offset| {
            let volume = volume.clone();
            std::thread::spawn(move || read(&volume, offset, 4096))
        })
        .collect();
    while trial.store.show("v").unwrap().hydration.readers_waiting < 3 {
        std::thread::yield_now();
    }
    trial.store.give_up_waiting();
    for reader in readers {
        assert_eq!(reader.join().unwrap().unwrap_err().kind(), ErrorKind::SourceLost);
    }
    actor.play(|_, _| Play::Answer);
    assert!(read(&volume, 4 << 20, 4096).unwrap() == data[4 << 20..(4 << 20) + 4096]);
}
