//! The event callback: it may be slow, panic, or close the store.

use std::sync::{Arc, mpsc};

use parking_lot::{Condvar, Mutex};
use volfork::Store;
use volfork::source::ReadClass;
use volfork::volume::{EventKind, OnEvent};

use crate::hedging::begin;
use crate::stage::{Actor, PATIENCE, Play, Stage};
use crate::{options, pattern, paused, read, resumed};

/// A callback that waits until it is let go, and a store that has something to tell it.
struct Callback {
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Callback {
    fn called(&self) -> usize {
        self.state.lock().0
    }

    fn call(&self) {
        let mut state = self.state.lock();
        state.0 += 1;
        self.changed.notify_all();
        while !state.1 {
            self.changed.wait(&mut state);
        }
    }

    fn await_call(&self) {
        let mut state = self.state.lock();
        while state.0 == 0 {
            assert!(!self.changed.wait_for(&mut state, PATIENCE).timed_out(), "nothing is told");
        }
    }

    fn let_go(&self) {
        self.state.lock().1 = true;
        self.changed.notify_all();
    }
}

fn callback() -> Arc<Callback> {
    Arc::new(Callback { state: Mutex::default(), changed: Condvar::new() })
}

#[test]
fn a_callback_that_takes_long_holds_up_nobody() {
    let (dir, stage, callback) = (tempfile::tempdir().unwrap(), Stage::default(), callback());
    let data = pattern(71, 2 << 20);
    let actor = stage.add(Actor::new("a://", &data));
    let called = Arc::clone(&callback);
    let on_event: OnEvent = Arc::new(move |_| called.call());
    let store = Store::create(dir.path(), options(&stage).with_on_event(on_event)).unwrap();
    actor.play(|_, class| if class == ReadClass::Ahead { Play::Hang } else { Play::Lose });
    let volume = store.fork("a://", "v").unwrap();
    store.control_hydration("v", &paused()).unwrap();
    // The reader's failure is an event, and its thread does not wait for the callback; nor does the next one, which recovers.
    assert!(begin(&volume, 0, 4096).recv_timeout(PATIENCE).expect("a reader waits for a callback").is_err());
    callback.await_call();
    actor.play(|_, class| if class == ReadClass::Ahead { Play::Hang } else { Play::Answer });
    assert!(begin(&volume, 0, 4096).recv_timeout(PATIENCE).expect("a reader waits for a callback").unwrap() == data[..4096]);
    assert_eq!(callback.called(), 1, "one after the other");
    callback.let_go();
    store.close().unwrap();
    assert_eq!(callback.called(), 2, "what has happened is told before the store is closed");
}

#[test]
fn a_callback_that_panics_costs_its_own_event() {
    let (dir, stage, callback) = (tempfile::tempdir().unwrap(), Stage::default(), callback());
    let data = pattern(72, 2 << 20);
    let actor = stage.add(Actor::new("a://", &data));
    callback.let_go();
    let called = Arc::clone(&callback);
    let on_event: OnEvent = Arc::new(move |event| {
        called.call();
        assert!(event.kind == EventKind::Hydrated, "a callback panics");
    });
    let store = Store::create(dir.path(), options(&stage).with_on_event(on_event)).unwrap();
    actor.play(|_, _| Play::Lose);
    let volume = store.fork("a://", "v").unwrap();
    assert!(begin(&volume, 0, 4096).recv_timeout(PATIENCE).expect("a reader waits").is_err());
    callback.await_call();
    actor.play(|_, _| Play::Answer);
    store.control_hydration("v", &resumed()).unwrap();
    assert!(store.wait_hydrated("v", PATIENCE).unwrap());
    assert!(read(&volume, 0, 2 << 20).unwrap() == data);
    store.close().unwrap();
    assert_eq!(callback.called(), 3, "degraded, recovered, hydrated");
}

#[test]
fn a_callback_may_close_the_store() {
    for threads in [true, false] {
        let (dir, stage, slot) = (tempfile::tempdir().unwrap(), Stage::default(), Arc::new(Mutex::new(None::<Store>)));
        stage.add(Actor::new("a://", &pattern(73, 1 << 20)));
        let (sender, receiver) = mpsc::channel();
        let held = Arc::clone(&slot);
        let on_event: OnEvent = Arc::new(move |_| {
            let store = held.lock().take().expect("one event");
            drop(sender.send(store.close()));
        });
        let store = Store::create(dir.path(), options(&stage).with_on_event(on_event).with_threads(threads)).unwrap();
        *slot.lock() = Some(store.clone());
        store.fork("a://", "v").unwrap();
        while !threads && store.step().is_ok() {}
        receiver.recv_timeout(PATIENCE).expect("closing waits for the callback that closes").unwrap();
        store.close().unwrap();
        Store::open(dir.path(), options(&stage)).unwrap().close().unwrap();
    }
}
