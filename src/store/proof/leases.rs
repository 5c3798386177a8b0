//! Leases at other hosts: forks, their ends and a close, beside hosts that answer late or not at all, or panic.

use std::collections::BTreeSet;
use std::ops::Range;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Store, StoreOptions, options, run_in_store};
use crate::error::ErrorKind;
use crate::ids::LeaseId;
use crate::source::{
    Lease, LeaseAction, LeaseRequest, LeasedSource, OnArrival, Part, ReadClass, Source, SourceError, SourceErrorKind, SourceOpener,
};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, sim, thread};

const BYTES: u64 = 64 << 10;
/// Longest time that a close may take: far less than hosts which do not answer. Timers that fire early make it longer than it is.
const CLOSE_MAX: Duration = Duration::from_secs(60);
/// Time after which a call to a host without an answer ends.
const SILENCE: Duration = Duration::from_secs(200);

/// What is at the end of such an address is never read, so that its lease is needed.
const UNREAD: &str = "unread";
/// Hosts with such names never answer a question about a lease.
const SILENT: &str = "silent";

/// Hosts that lend, and what they have lent.
#[derive(Default)]
struct Hosts {
    lent: Mutex<BTreeSet<LeaseId>>,
    calm: AtomicBool,
    closed: AtomicBool,
    /// When a question about a lease was last heard, in seconds.
    heard: AtomicU64,
    renewed_late: AtomicBool,
}

impl Hosts {
    /// Whatever may become of a question before it is heard, and after.
    fn disturb(&self) -> Result<(), SourceError> {
        if self.calm.load(Ordering::SeqCst) {
            return Ok(());
        }
        match sim::below(12) {
            0 => resume_unwind(Box::new("the opener panics")),
            1 => thread::sleep(SILENCE),
            2 => return Err(SourceError { kind: SourceErrorKind::Lost, message: "nobody answers".into() }),
            3..6 => thread::sleep(Duration::from_millis(sim::below(3000))),
            _ => {}
        }
        Ok(())
    }

    fn hear(&self, uri: &str, request: &LeaseRequest) -> Option<Lease> {
        let mut lent = self.lent.lock();
        if request.action == LeaseAction::Release {
            lent.remove(&request.id);
            return None;
        }
        lent.insert(request.id);
        Some(Lease { uri: uri.to_owned(), lapse: Duration::from_secs(9) })
    }
}

impl SourceOpener for Hosts {
    fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        self.disturb()?;
        Ok(Arc::new(Zeros { uri: uri.to_owned(), answers: !uri.ends_with(UNREAD) && sim::below(2) == 0, asked: Mutex::default() }))
    }

    fn open_leased(&self, uri: &str, request: &LeaseRequest) -> Result<LeasedSource, SourceError> {
        self.disturb()?;
        let lease = self.hear(uri, request);
        Ok(LeasedSource { source: self.open(uri)?, lease })
    }

    fn lease(&self, uri: &str, request: &LeaseRequest) -> Result<Option<Lease>, SourceError> {
        if request.action != LeaseAction::Release && self.closed.load(Ordering::SeqCst) {
            // A panic would be the opener's.
            self.renewed_late.store(true, Ordering::SeqCst);
        }
        if uri.starts_with(SILENT) {
            thread::sleep(SILENCE * 1000);
        }
        self.disturb()?;
        let lease = self.hear(uri, request);
        self.heard.store(sim::now().as_secs(), Ordering::SeqCst);
        self.disturb()?;
        Ok(lease)
    }
}

/// Bytes that are zero; reads of one that does not answer end when it is closed.
struct Zeros {
    uri: String,
    answers: bool,
    asked: Mutex<Vec<OnArrival>>,
}

impl Source for Zeros {
    fn size_bytes(&self) -> u64 {
        BYTES
    }

    fn read(&self, range: Range<u64>, _: ReadClass, mut arrival: OnArrival) {
        if !self.answers {
            self.asked.lock().push(arrival);
            return;
        }
        arrival.part(Part::new(range.start, vec![0; (range.end - range.start) as usize].into()));
        arrival.end(Ok(()));
    }

    fn identity(&self) -> Option<String> {
        Some(self.uri.clone())
    }

    fn describe(&self) -> String {
        self.uri.clone()
    }

    fn close(&self) {
        self.asked.lock().clear();
    }
}

fn with(hosts: &Arc<Hosts>) -> StoreOptions {
    StoreOptions { sources: Some(Arc::clone(hosts) as _), ..options() }
}

/// Forks of a few hosts; some of them end.
fn fork_and_destroy(store: &Store, task: u64) {
    for number in 0..3 {
        let name = format!("f{task}-{number}");
        match store.fork(&format!("host{}://x", sim::below(3)), &name).map(drop) {
            Ok(()) => {}
            Err(error) => assert!(matches!(error.kind(), ErrorKind::SourceLost | ErrorKind::Closed), "{error}"),
        }
        thread::sleep(Duration::from_millis(sim::below(4000)));
        if sim::below(2) == 0 {
            let destroyed = store.destroy_volume(&name, false);
            let is_expected = |kind| matches!(kind, ErrorKind::NotFound | ErrorKind::Closed);
            assert!(destroyed.as_ref().err().is_none_or(|error| is_expected(error.kind())), "{destroyed:?}");
        }
    }
}

fn history(path: &Path) {
    let hosts = Arc::<Hosts>::default();
    let store = Store::create(path, with(&hosts)).unwrap();
    thread::scope(|scope| {
        for task in 0..3 {
            let store = &store;
            scope.spawn(move || fork_and_destroy(store, task));
        }
        thread::sleep(Duration::from_millis(sim::below(15_000)));
        if sim::below(2) == 0 {
            store.give_up_waiting();
        }
        let begun = sim::now();
        store.close().unwrap();
        hosts.closed.store(true, Ordering::SeqCst);
        assert!(sim::now() - begun < CLOSE_MAX, "a close took {:?}", sim::now() - begun);
    });
    drop(store);
    // What was asked for and came late is given back by itself.
    thread::sleep(SILENCE * 3);
    assert!(!hosts.renewed_late.load(Ordering::SeqCst), "a closed store renews a lease");
    hosts.calm.store(true, Ordering::SeqCst);
    hosts.closed.store(false, Ordering::SeqCst);
    let store = Store::open(path, with(&hosts)).unwrap();
    store.volume_names().iter().for_each(|name| store.destroy_volume(name, false).unwrap());
    for _ in 0..100 {
        if hosts.lent.lock().is_empty() {
            break;
        }
        thread::sleep(Duration::from_secs(2));
    }
    assert_eq!(hosts.lent.lock().len(), 0, "a lease is not given back");
    store.close().unwrap();
}

#[test]
fn a_store_is_closed_in_time_and_gives_every_lease_back() {
    for seed in sim::seeds(20) {
        run_in_store(seed, history).unwrap();
    }
}

/// Their openers do not return, and each is asked again every minute and a half.
#[test]
fn hosts_that_never_answer_do_not_end_the_renewals_at_others() {
    let history = |path: &Path| {
        let hosts = Arc::<Hosts>::default();
        hosts.calm.store(true, Ordering::SeqCst);
        let store = Store::create(path, with(&hosts)).unwrap();
        for host in ["silent1", "silent2", "silent3", "good"] {
            store.fork(&format!("{host}://x/{UNREAD}"), host).unwrap();
        }
        thread::sleep(Duration::from_secs(1000));
        let heard = hosts.heard.load(Ordering::SeqCst);
        assert!(sim::now().as_secs() - heard < 30, "renewed at {heard} s, and it is {:?}", sim::now());
        store.close().unwrap();
    };
    for seed in sim::seeds(2) {
        run_in_store(seed, history).unwrap();
    }
}
