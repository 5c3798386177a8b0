//! Sources that are being closed, and calls of the store meanwhile.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Store, StoreOptions, options};
use crate::source::{OnArrival, ReadClass, Source, SourceError, SourceErrorKind, SourceOpener};
use crate::sync::{Condvar, Mutex, mpsc, sim, thread};

/// Less than any patience with a source.
const AT_ONCE: Duration = Duration::from_millis(100);

/// A host whose sources are closed, or dropped, when it says so.
struct Host {
    by_destructor: bool,
    begun: mpsc::Sender<()>,
    may_end: Mutex<bool>,
    changed: Condvar,
}

impl Host {
    fn block(&self) {
        let _ = self.begun.send(());
        let mut may_end = self.may_end.lock();
        while !*may_end {
            self.changed.wait(&mut may_end);
        }
    }

    fn let_end(&self) {
        *self.may_end.lock() = true;
        self.changed.notify_all();
    }
}

struct Far {
    host: Arc<Host>,
    asked: Mutex<Vec<OnArrival>>,
}

struct Opener(Arc<Host>);

impl SourceOpener for Opener {
    fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        if uri != "far://x" {
            return Err(SourceError { kind: SourceErrorKind::Lost, message: "nobody answers".into() });
        }
        Ok(Arc::new(Far { host: Arc::clone(&self.0), asked: Mutex::default() }))
    }
}

impl Source for Far {
    fn size_bytes(&self) -> u64 {
        64 << 10
    }

    fn read(&self, _: Range<u64>, _: ReadClass, arrival: OnArrival) {
        self.asked.lock().push(arrival);
    }

    fn describe(&self) -> String {
        "far://x".into()
    }

    fn close(&self) {
        if !self.host.by_destructor {
            self.host.block();
        }
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        if self.host.by_destructor {
            self.host.block();
        }
    }
}

/// Virtual time passes only while every task waits for it.
fn prompt() -> sim::Config {
    sim::Config {
        early: Some(sim::Early { one_in: 0, within: Duration::ZERO }),
        nap_one_in: Some(0),
        slow: Some(sim::SlowPlaces { one_in: 0, nap_one_in: 1 }),
        step: Some(Duration::ZERO),
        ..sim::Config::default()
    }
}

/// `end` makes the source of the fork useless; the close of its connection ends after everything else.
fn history(path: &Path, by_destructor: bool, end: fn(&Store)) {
    let (begun, has_begun) = mpsc::channel();
    let host = Arc::new(Host { by_destructor, begun, may_end: Mutex::new(false), changed: Condvar::new() });
    let sources = Some(Arc::new(Opener(Arc::clone(&host))) as _);
    let store = Store::create(path, StoreOptions { sources, ..options() }).unwrap();
    store.create_volume("local", 64 << 10).unwrap();
    store.fork("far://x", "f").unwrap();
    thread::scope(|scope| {
        let ending = scope.spawn(|| end(&store));
        has_begun.recv().unwrap();
        let before = sim::now();
        assert!(store.volume_names().contains(&"local".into()));
        store.list().unwrap();
        store.fork("local", "other").unwrap();
        ending.join().unwrap();
        assert!(sim::now() - before < AT_ONCE, "calls waited {:?} for a source", sim::now() - before);
    });
    host.let_end();
    store.close().unwrap();
}

#[test]
fn no_call_waits_for_a_source_that_is_being_closed() {
    let dir = tempfile::tempdir().unwrap();
    let ends: [fn(&Store); 2] = [
        |store| store.destroy_volume("f", false).unwrap(),
        |store| store.0.core.remote.set_sources("f", &["far://y".into()], &["far://x".into()]).unwrap(),
    ];
    for (number, end) in ends.into_iter().enumerate() {
        for by_destructor in [false, true] {
            for seed in sim::seeds(10) {
                let path = dir.path().join(format!("{number}-{by_destructor}-{seed}"));
                sim::run(seed, prompt(), move || history(&path, by_destructor, end)).unwrap();
            }
        }
    }
}
