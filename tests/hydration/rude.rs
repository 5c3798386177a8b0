//! Sources that break their contract: panic, dropped callbacks, late or missing answers. Only their own requests may fail.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use volfork::source::{OnArrival, Part, ReadClass, Source, SourceError, SourceErrorKind, SourceExtent, SourceOpener, SourceStats};
use volfork::{ErrorKind, Store, StoreOptions, Volume};

use crate::hedging::begin;
use crate::stage::PATIENCE;
use crate::{pattern, paused, read, resumed};

const BYTES: usize = 2 << 20;

/// What a source does instead of its duty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Nothing wrong.
    Good,
    DropsReads,
    PanicsInReads,
    /// Keeps the callback, and panics.
    PanicsAndKeeps,
    SaysThatItIsClosed,
    EndsWithoutBytes,
    EndsWithoutTheLastBytes,
    /// Parts that begin and end anywhere.
    CutsAnywhere,
    /// Parts that are nowhere near.
    SendsForeignBytes,
    /// Reads of 2,048 bytes at most.
    TakesSmallReads,
    NeverAnswers,
    /// Its reads do not return.
    HangsInReads,
    NeverTellsZeros,
    PanicsInEverythingElse,
    OpensNever,
    PanicsWhenOpened,
    ClosesNever,
    SaysImpossibleLimits,
}

struct Scene {
    data: Bytes,
    manner: Mutex<Manner>,
    /// Callbacks that are never called.
    kept: Mutex<Vec<OnArrival>>,
    reads: AtomicUsize,
    released: Mutex<bool>,
    changed: Condvar,
}

impl Scene {
    /// Waits until the test is over.
    fn hang(&self) {
        let mut released = self.released.lock();
        while !*released {
            self.changed.wait(&mut released);
        }
    }

    fn is(&self, manner: Manner) -> bool {
        *self.manner.lock() == manner
    }

    fn release(&self) {
        *self.released.lock() = true;
        self.changed.notify_all();
    }
}

struct Rude(Arc<Scene>);

impl Source for Rude {
    fn size_bytes(&self) -> u64 {
        self.0.data.len() as u64
    }

    fn read_bytes_max(&self) -> u32 {
        match *self.0.manner.lock() {
            Manner::TakesSmallReads => 2048,
            Manner::SaysImpossibleLimits => 0,
            _ => 1 << 20,
        }
    }

    fn read(&self, range: Range<u64>, _: ReadClass, mut arrival: OnArrival) {
        self.0.reads.fetch_add(1, Ordering::SeqCst);
        let slice = |range: Range<u64>| self.0.data.slice(range.start as usize..range.end as usize);
        let manner = *self.0.manner.lock();
        match manner {
            Manner::DropsReads => return,
            Manner::PanicsInReads => panic!("in a read"),
            Manner::PanicsAndKeeps => {
                self.0.kept.lock().push(arrival);
                panic!("in a read, with its callback elsewhere");
            }
            Manner::SaysThatItIsClosed => {
                return arrival.end(Err(SourceError { kind: SourceErrorKind::Closed, message: "closed".into() }));
            }
            Manner::NeverAnswers | Manner::ClosesNever => return self.0.kept.lock().push(arrival),
            Manner::HangsInReads => return self.0.hang(),
            Manner::EndsWithoutBytes => {}
            Manner::EndsWithoutTheLastBytes => arrival.part(Part::new(range.start, slice(range.start..range.end - 1))),
            Manner::CutsAnywhere => {
                // The pieces come in no order, and some twice.
                let cuts: Vec<_> = (range.start..range.end).step_by(5000).collect();
                for start in cuts.iter().rev().chain(cuts.iter().step_by(7)) {
                    arrival.part(Part::new(*start, slice(*start..(start + 5000).min(range.end))));
                }
            }
            Manner::SendsForeignBytes => {
                arrival.part(Part::new(u64::MAX - 10, Bytes::from(vec![1; 4096])));
                arrival.part(Part::new(range.end + (1 << 30), Bytes::from(vec![1; 4096])));
                arrival.part(Part::new(range.start, Bytes::new()));
            }
            _ => arrival.part(Part::new(range.start, slice(range))),
        }
        arrival.end(Ok(()));
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>, SourceError> {
        match *self.0.manner.lock() {
            Manner::NeverTellsZeros => {}
            Manner::PanicsInEverythingElse => panic!("in extents"),
            _ => return Ok(vec![SourceExtent { bytes: range.end - range.start, zero: false }]),
        }
        self.0.hang();
        Ok(Vec::new())
    }

    fn trace(&self) -> Result<Vec<Range<u64>>, SourceError> {
        assert!(!self.0.is(Manner::PanicsInEverythingElse), "in trace");
        Ok(Vec::new())
    }

    fn describe(&self) -> String {
        assert!(!self.0.is(Manner::PanicsInEverythingElse), "in describe");
        "rude".into()
    }

    fn stats(&self) -> SourceStats {
        assert!(!self.0.is(Manner::PanicsInEverythingElse), "in stats");
        SourceStats::default()
    }

    fn close(&self) {
        assert!(!self.0.is(Manner::PanicsInEverythingElse), "in close");
        if self.0.is(Manner::ClosesNever) {
            self.0.hang();
        }
    }
}

#[derive(Clone, Default)]
struct Rudes(Arc<Mutex<HashMap<String, Arc<Scene>>>>);

impl SourceOpener for Rudes {
    fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        let scene = Arc::clone(&self.0.lock()[uri]);
        let manner = *scene.manner.lock();
        match manner {
            Manner::OpensNever => scene.hang(),
            Manner::PanicsWhenOpened => panic!("in open"),
            _ => {}
        }
        Ok(Arc::new(Rude(scene)))
    }
}

impl Rudes {
    fn add(&self, uri: &str, data: &[u8], manner: Manner) -> Arc<Scene> {
        let scene = Arc::new(Scene {
            data: Bytes::copy_from_slice(data),
            manner: Mutex::new(manner),
            kept: Mutex::default(),
            reads: AtomicUsize::new(0),
            released: Mutex::default(),
            changed: Condvar::new(),
        });
        self.0.lock().insert(uri.to_owned(), Arc::clone(&scene));
        scene
    }
}

/// A store and a fork of well-behaved sources with these addresses, which fetches nothing by itself.
struct Trial {
    scenes: Vec<Arc<Scene>>,
    store: Store,
    volume: Volume,
    data: Vec<u8>,
    _dir: tempfile::TempDir,
}

impl Trial {
    fn new(uris: &[&str]) -> Self {
        let (dir, rudes, data) = (tempfile::tempdir().unwrap(), Rudes::default(), pattern(61, BYTES));
        let scenes = uris.iter().map(|uri| rudes.add(uri, &data, Manner::NeverAnswers)).collect();
        let options = StoreOptions::default().with_sources(Arc::new(rudes.clone()));
        let store = Store::create(dir.path(), options).unwrap();
        let uris: Vec<String> = uris.iter().map(|uri| (*uri).to_owned()).collect();
        let volume = store.fork(&uris, "v").unwrap();
        store.control_hydration("v", &paused()).unwrap();
        // What backfill began with is over: nothing is under way.
        store.give_up_waiting();
        Self { scenes, store, volume, data, _dir: dir }
    }

    fn behave(&self, scene: usize, manner: Manner) {
        *self.scenes[scene].manner.lock() = manner;
    }

    fn waiting(&self) -> u64 {
        self.store.show("v").unwrap().hydration.readers_waiting
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.scenes.iter().for_each(|scene| scene.release());
    }
}

/// Manners that cost a read its address.
const LOSSES: [Manner; 11] = [
    Manner::DropsReads,
    Manner::PanicsInReads,
    Manner::PanicsAndKeeps,
    Manner::SaysThatItIsClosed,
    Manner::EndsWithoutBytes,
    Manner::EndsWithoutTheLastBytes,
    Manner::SendsForeignBytes,
    Manner::PanicsWhenOpened,
    Manner::SaysImpossibleLimits,
    Manner::DropsReads,
    Manner::EndsWithoutBytes,
];

#[test]
fn a_source_that_breaks_its_contract_costs_its_own_reads() {
    for manner in LOSSES {
        let trial = Trial::new(&["a://"]);
        trial.behave(0, manner);
        let outcome = begin(&trial.volume, 1 << 20, 8192).recv_timeout(PATIENCE).expect("a reader waits without end");
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::SourceLost, "{manner:?}");
        assert_eq!(trial.waiting(), 0, "{manner:?}");
        assert!(trial.store.show("v").unwrap().hydration.sources[0].errors > 0, "{manner:?}");
        // It is put right, and everything goes on.
        trial.behave(0, Manner::Good);
        trial.store.control_hydration("v", &resumed()).unwrap();
        assert!(trial.store.wait_hydrated("v", PATIENCE).unwrap(), "{manner:?}");
        assert!(read(&trial.volume, 0, BYTES).unwrap() == trial.data, "{manner:?}");
        trial.store.close().unwrap();
    }
}

#[test]
fn another_address_serves_what_a_broken_source_does_not() {
    for manner in LOSSES {
        let trial = Trial::new(&["a://", "b://"]);
        trial.behave(0, manner);
        trial.behave(1, Manner::Good);
        let outcome = begin(&trial.volume, 1 << 20, 8192).recv_timeout(PATIENCE).expect("a reader waits without end");
        assert!(outcome.unwrap() == trial.data[1 << 20..(1 << 20) + 8192], "{manner:?}");
        trial.store.control_hydration("v", &resumed()).unwrap();
        assert!(trial.store.wait_hydrated("v", PATIENCE).unwrap(), "{manner:?}");
        assert!(read(&trial.volume, 0, BYTES).unwrap() == trial.data, "{manner:?}");
    }
}

#[test]
fn parts_that_begin_and_end_anywhere_are_put_together() {
    for manner in [Manner::CutsAnywhere, Manner::TakesSmallReads, Manner::PanicsInEverythingElse, Manner::NeverTellsZeros] {
        let trial = Trial::new(&["a://"]);
        trial.behave(0, manner);
        let outcome = begin(&trial.volume, (1 << 20) + 100, 9000).recv_timeout(PATIENCE).expect("a reader waits without end");
        assert!(outcome.unwrap() == trial.data[(1 << 20) + 100..][..9000], "{manner:?}");
        trial.store.control_hydration("v", &resumed()).unwrap();
        assert!(trial.store.wait_hydrated("v", PATIENCE).unwrap(), "{manner:?}");
        assert!(read(&trial.volume, 0, BYTES).unwrap() == trial.data, "{manner:?}");
    }
}

#[test]
fn waits_for_a_silent_source_end_when_the_store_closes() {
    for manner in [Manner::NeverAnswers, Manner::ClosesNever, Manner::OpensNever, Manner::NeverTellsZeros] {
        let trial = Trial::new(&["a://"]);
        trial.behave(0, manner);
        if manner != Manner::NeverTellsZeros {
            let reader = begin(&trial.volume, 1 << 20, 8192);
            while trial.waiting() == 0 {
                std::thread::yield_now();
            }
            trial.store.give_up_waiting();
            let outcome = reader.recv_timeout(PATIENCE).expect("a reader waits without end");
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::SourceLost, "{manner:?}");
            assert_eq!(trial.waiting(), 0, "{manner:?}");
        }
        // Backfill waits for it too, and another reader.
        trial.store.control_hydration("v", &resumed()).unwrap();
        let reader = begin(&trial.volume, 0, 4096);
        let (closed, store) = (std::sync::mpsc::channel(), trial.store.clone());
        std::thread::spawn(move || drop(closed.0.send(store.close())));
        closed.1.recv_timeout(PATIENCE).expect("closing waits without end").unwrap();
        let outcome = reader.recv_timeout(PATIENCE).expect("a reader waits without end");
        assert!(outcome.is_err() || manner == Manner::NeverTellsZeros, "{manner:?}");
    }
}

#[test]
fn a_fork_of_an_address_that_never_opens_can_be_given_up() {
    let trial = Trial::new(&["a://"]);
    trial.behave(0, Manner::OpensNever);
    let (store, (sender, receiver)) = (trial.store.clone(), std::sync::mpsc::channel());
    std::thread::spawn(move || drop(sender.send(store.fork("a://", "other").map(drop))));
    // The name is announced before the address is asked.
    while trial.store.list().unwrap().len() < 2 {
        std::thread::yield_now();
    }
    trial.store.give_up_waiting();
    let forked = receiver.recv_timeout(PATIENCE).expect("the fork waits without end");
    assert_eq!(forked.unwrap_err().kind(), ErrorKind::SourceLost);
    assert_eq!(trial.store.volume_names(), ["v"]);
}

#[test]
fn a_source_that_ends_reads_without_bytes_is_asked_seldom() {
    let trial = Trial::new(&["a://"]);
    trial.behave(0, Manner::EndsWithoutBytes);
    trial.scenes[0].reads.store(0, Ordering::SeqCst);
    trial.store.control_hydration("v", &resumed()).unwrap();
    // Each failure makes the pause longer, so there are about as many reads as failures, and a window of them at most before the first.
    let errors = || trial.store.show("v").unwrap().hydration.sources[0].errors;
    let reads = || trial.scenes[0].reads.load(Ordering::SeqCst) as u64;
    while errors() < 4 {
        assert!(reads() < 1000, "it is asked again and again");
        std::thread::yield_now();
    }
    // Backfill has at most a window of requests under way.
    let (reads, errors) = (reads(), errors());
    assert!(reads <= errors + 64, "{reads} reads for {errors} errors");
}

#[test]
fn reads_that_do_not_return_stop_no_other_hydration() {
    let (dir, rudes, data) = (tempfile::tempdir().unwrap(), Rudes::default(), pattern(62, BYTES));
    let store = Store::create(dir.path(), StoreOptions::default().with_sources(Arc::new(rudes.clone()))).unwrap();
    let fork = |name: &str, manner| {
        let uri = format!("{name}://");
        let scene = rudes.add(&uri, &data, manner);
        store.fork(&*uri, name).unwrap();
        scene
    };
    let hung: Vec<_> = ["a", "b", "c", "d"].iter().map(|name| fork(name, Manner::HangsInReads)).collect();
    fork("good", Manner::Good);
    let hydrated = store.wait_hydrated("good", PATIENCE);
    hung.iter().for_each(|scene| {
        *scene.manner.lock() = Manner::Good;
        scene.release();
    });
    assert!(hydrated.unwrap(), "it waits for others");
    store.close().unwrap();
}
