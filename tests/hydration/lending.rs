//! Leases under failures: servers that die or hang, clocks that jump, and requests whose caller has gone.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use volfork::serve::{Export, Exports, Listener, NbdServer, NbdServerOptions};
use volfork::source::{Lease, LeaseAction, LeaseRequest, LeasedSource, Source, SourceError, SourceErrorKind, SourceOpener};
use volfork::volume::ForkOptions;
use volfork::wire::LeaseGrant;
use volfork::{Error, ErrorKind, LeaseId, Store, StoreOptions};

use crate::leases::{DAY, Hand, Host, take, until};
use crate::stage::{Actor, Play, Stage};
use crate::{pattern, read, resumed};

/// A host that serves what it has, and gives this for a lease.
struct Odd(Store, fn() -> volfork::Result<LeaseGrant>);

impl Exports for Odd {
    fn open(&self, name: &str) -> volfork::Result<Export> {
        Exports::open(&self.0, name)
    }

    fn names(&self) -> Vec<String> {
        Exports::names(&self.0)
    }

    fn lease(&self, _: &str, _: &LeaseRequest, _: &str) -> volfork::Result<Option<LeaseGrant>> {
        (self.1)().map(Some)
    }
}

fn serve_odd(host: &mut Host, lease: fn() -> volfork::Result<LeaseGrant>) -> NbdServer {
    host.server.take().into_iter().for_each(NbdServer::shutdown);
    let listener = Listener::parse(&format!("unix:{}", host.dir.path().join("nbd.sock").display())).unwrap();
    NbdServer::start(Arc::new(Odd(host.store.clone(), lease)), vec![listener], NbdServerOptions::default()).unwrap()
}

#[test]
fn a_server_that_cannot_record_leases_serves_old_forks() {
    let (mut a, mut b) = (Host::new(), Host::new());
    let data = pattern(1, 8 << 20);
    a.fill(&data);
    b.paused_fork(&a.export("v"), "f");
    b.stop();
    a.stop();
    a.start();
    let _full = serve_odd(&mut a, || Err(Error::new(ErrorKind::NoSpace, "the disk is full")));
    b.start();
    let error = b.store.fork(&a.export("v"), "g").map(drop).unwrap_err();
    assert!(error.to_string().contains("the disk is full"), "{error}");
    b.store.control_hydration("f", &resumed()).unwrap();
    b.finish("f");
    assert!(read(&b.store.volume("f").unwrap(), 0, data.len()).unwrap() == data);
}

#[test]
fn a_lease_of_what_is_written_is_none_of_an_instant() {
    let (mut a, b) = (Host::new(), Host::new());
    a.fill(&pattern(6, 1 << 20));
    let _liar = serve_odd(&mut a, || Ok(LeaseGrant { lapse: DAY, export: "v".into() }));
    let error = b.store.fork(&a.export("v"), "f").map(drop).unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("different instants"), "{error}");
}

#[test]
fn a_date_that_was_wrong_keeps_no_lease_for_ever() {
    let mut a = Host::new();
    a.fill(&pattern(2, 1 << 20));
    a.clock.unix.fetch_add(10_000 * DAY.as_secs(), Ordering::SeqCst);
    a.store.lease(("v", None), &take(1, "f"), "here").unwrap();
    a.clock.unix.fetch_sub(10_000 * DAY.as_secs(), Ordering::SeqCst);
    a.stop();
    a.start();
    a.clock.go_on(6 * DAY);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        a.clock.go_on(Duration::from_secs(6));
        assert_eq!(a.leases().len(), 1);
        std::thread::sleep(Duration::from_millis(100));
    }
    a.clock.go_on(DAY);
    a.await_snapshots(&[]);
}

#[test]
fn a_long_renewed_lease_is_returned_after_a_server_outage() {
    let (mut a, b) = (Host::new(), Host::new());
    a.fill(&pattern(3, 8 << 20));
    b.paused_fork(&a.export("v"), "f");
    for day in (3..15).step_by(3) {
        let before = a.leases()[0].renewed_at;
        a.clock.go_on(3 * DAY);
        b.clock.go_on(3 * DAY);
        until(|| a.leases()[0].renewed_at > before, || format!("day {day}: {:?}", a.leases()));
    }
    a.stop();
    let socket = a.dir.path().join("nbd.sock");
    let silent = UnixListener::bind(&socket).unwrap();
    b.store.destroy_volume("f", false).unwrap();
    silent.set_nonblocking(true).unwrap();
    // It is told twice, and does not hear it.
    for _ in 0..2 {
        until(|| silent.accept().is_ok(), || "nobody is told".into());
        b.clock.go_on(Duration::from_secs(61));
    }
    drop(silent);
    std::fs::remove_file(socket).unwrap();
    a.start();
    b.clock.go_on(Duration::from_secs(61));
    a.await_snapshots(&[]);
    assert_eq!(a.leases(), []);
}

/// Sources that give leases of themselves.
#[derive(Clone, Default)]
struct Lender {
    stage: Stage,
    /// Those that were given, and those that were not given back.
    given: Arc<AtomicUsize>,
    lent: Arc<Mutex<BTreeSet<LeaseId>>>,
    /// What becomes of the next that is given back.
    hearing: Arc<(Mutex<Hearing>, Condvar)>,
    silence: Arc<Silence>,
}

/// Hosts with this in their addresses do not answer questions about leases once they are silent.
const SILENT: &str = "silent";

#[derive(Default)]
struct Silence {
    silent: Mutex<bool>,
    changed: Condvar,
    asked: AtomicUsize,
}

impl Silence {
    fn set(&self, silent: bool) {
        *self.silent.lock() = silent;
        self.changed.notify_all();
    }

    fn keep(&self) {
        let mut silent = self.silent.lock();
        self.asked.fetch_add(usize::from(*silent), Ordering::SeqCst);
        self.changed.wait_while(&mut silent, |silent| *silent);
    }
}

#[derive(Default, PartialEq)]
enum Hearing {
    #[default]
    Good,
    /// It is not heard.
    Deaf,
    /// It is not answered.
    Bad,
    /// It waits for an answer.
    Waiting,
}

impl SourceOpener for Lender {
    fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        self.stage.open(uri)
    }

    fn open_leased(&self, uri: &str, request: &LeaseRequest) -> Result<LeasedSource, SourceError> {
        Ok(LeasedSource { source: self.open(uri)?, lease: self.lease(uri, request)? })
    }

    fn lease(&self, uri: &str, request: &LeaseRequest) -> Result<Option<Lease>, SourceError> {
        if uri.contains(SILENT) {
            self.silence.keep();
        }
        if request.action == LeaseAction::Release {
            let mut hearing = self.hearing.0.lock();
            if *hearing == Hearing::Deaf {
                *hearing = Hearing::Good;
                return Err(SourceError { kind: SourceErrorKind::Lost, message: "nobody hears".into() });
            }
            if *hearing == Hearing::Bad {
                *hearing = Hearing::Waiting;
                self.hearing.1.wait_while(&mut hearing, |hearing| *hearing == Hearing::Waiting);
                return Ok(None);
            }
        }
        let mut lent = self.lent.lock();
        if request.action == LeaseAction::Release {
            lent.remove(&request.id);
            return Ok(None);
        }
        lent.insert(request.id);
        self.given.fetch_add(1, Ordering::SeqCst);
        Ok(Some(Lease { uri: uri.to_owned(), lapse: DAY }))
    }
}

impl Lender {
    fn await_returned(&self, given: usize) {
        let is_so = || self.given.load(Ordering::SeqCst) >= given && self.lent.lock().is_empty();
        until(is_so, || format!("{} given, {:?}", self.given.load(Ordering::SeqCst), self.lent.lock()));
    }
}

#[test]
fn a_lease_that_arrives_too_late_is_given_back() {
    let ends: [fn(&Store); 2] = [|store| store.give_up_waiting(), |store| store.close().unwrap()];
    for end in ends {
        let (dir, lender) = (tempfile::tempdir().unwrap(), Lender::default());
        let actor = lender.stage.add(Actor::new("a://", &pattern(4, 1 << 20)));
        let options = StoreOptions::default().with_sources(Arc::new(lender.clone()));
        let store = Store::create(dir.path(), options).unwrap();
        actor.hang_open(true);
        std::thread::scope(|scope| {
            let forking = scope.spawn(|| store.fork("a://", "f").map(drop));
            actor.await_open(1);
            end(&store);
            assert!(forking.join().unwrap().is_err());
        });
        actor.hang_open(false);
        lender.await_returned(1);
    }
}

#[test]
fn a_lease_that_is_still_asked_for_is_not_taken_for_given_back() {
    let (dir, lender, clock) = (tempfile::tempdir().unwrap(), Lender::default(), Arc::<Hand>::default());
    let actor = lender.stage.add(Actor::new("a://", &pattern(9, 1 << 20)));
    let (sources, clock_too) = (Some(Arc::new(lender.clone()) as _), Arc::clone(&clock) as _);
    let mut options = StoreOptions::default().with_clock(clock_too).with_threads(false);
    options.sources = sources;
    let store = Store::create(dir.path(), options).unwrap();
    actor.hang_open(true);
    std::thread::scope(|scope| {
        let forking = scope.spawn(|| store.fork("a://", "f").map(drop));
        actor.await_open(1);
        store.give_up_waiting();
        assert!(forking.join().unwrap().is_err());
    });
    while store.step().unwrap() {}
    // It is given now, and what is said then is not heard.
    *lender.hearing.0.lock() = Hearing::Deaf;
    actor.hang_open(false);
    until(|| *lender.hearing.0.lock() == Hearing::Good, || "nothing is given back".into());
    assert_eq!(lender.lent.lock().len(), 1);
    let is_returned = || {
        clock.go_on(Duration::from_secs(61));
        store.step().unwrap();
        lender.lent.lock().is_empty()
    };
    until(is_returned, || format!("{:?}", lender.lent.lock()));
}

#[test]
fn a_lease_granted_while_its_store_closes_is_given_back() {
    let (dir, lender) = (tempfile::tempdir().unwrap(), Lender::default());
    lender.stage.add(Actor::new("a://", &pattern(7, 1 << 20)));
    let options = StoreOptions::default().with_sources(Arc::new(lender.clone()));
    let store = Store::create(dir.path(), options).unwrap();
    // The callback that admits forks may close the store.
    let mut admit = |_: u64, _: &mut BTreeMap<String, String>| store.close();
    let forked = store.fork_admitted(&["a://".into()], "f", &ForkOptions::default(), &mut admit);
    assert_eq!(forked.map(drop).unwrap_err().kind(), ErrorKind::Closed);
    lender.await_returned(1);
}

#[test]
fn what_is_given_back_while_its_store_is_closed_is_said_again() {
    let (dir, lender) = (tempfile::tempdir().unwrap(), Lender::default());
    let actor = lender.stage.add(Actor::new("a://", &pattern(8, 1 << 20)));
    actor.play(|_, _| Play::Hang);
    let options = StoreOptions::default().with_sources(Arc::new(lender.clone()));
    let store = Store::create(dir.path(), options).unwrap();
    store.fork("a://", "f").unwrap();
    *lender.hearing.0.lock() = Hearing::Bad;
    store.destroy_volume("f", false).unwrap();
    until(|| *lender.hearing.0.lock() == Hearing::Waiting, || "nothing is given back".into());
    store.close().unwrap();
    assert_eq!(*lender.lent.lock(), BTreeSet::new());
    *lender.hearing.0.lock() = Hearing::Good;
    lender.hearing.1.notify_all();
}

#[test]
fn a_lease_that_comes_when_its_fork_is_gone_is_given_back() {
    let (dir, lender) = (tempfile::tempdir().unwrap(), Lender::default());
    let data = pattern(5, 8 << 20);
    let [a, b] = ["a://", "b://"].map(|uri| lender.stage.add(Actor::new(uri, &data)));
    a.play(|_, _| Play::Hang);
    b.hang_open(true);
    let options = StoreOptions::default().with_sources(Arc::new(lender.clone()));
    let store = Store::create(dir.path(), options).unwrap();
    store.fork(&["a://".into(), "b://".into()], "f").unwrap();
    b.await_open(1);
    store.destroy_volume("f", false).unwrap();
    b.hang_open(false);
    lender.await_returned(2);
}

/// A store with forks of three hosts that fall silent, and one of a host that does not.
fn fork_of_silent_hosts(lender: &Lender, clock: &Arc<Hand>, path: &std::path::Path) -> Store {
    let options = StoreOptions::default().with_sources(Arc::new(lender.clone())).with_clock(Arc::clone(clock) as _);
    let store = Store::create(path, options).unwrap();
    for (number, host) in ["silent1", "silent2", "silent3", "good"].into_iter().enumerate() {
        let uri = format!("{host}://");
        lender.stage.add(Actor::new(&uri, &pattern(10 + number as u64, 1 << 20))).play(|_, _| Play::Hang);
        store.fork(&uri, host).unwrap();
    }
    lender.silence.set(true);
    store
}

#[test]
fn hosts_that_never_answer_do_not_delay_the_renewal_at_another() {
    let (dir, lender, clock) = (tempfile::tempdir().unwrap(), Lender::default(), Arc::<Hand>::default());
    let store = fork_of_silent_hosts(&lender, &clock, dir.path());
    clock.go_on(DAY / 3);
    until(|| lender.silence.asked.load(Ordering::SeqCst) > 0, || "nobody is asked".into());
    for renewals in 1..4 {
        until(|| lender.given.load(Ordering::SeqCst) >= 4 + renewals, || format!("{} given", lender.given.load(Ordering::SeqCst)));
        clock.go_on(DAY / 3);
    }
    store.close().unwrap();
    lender.silence.set(false);
}

#[test]
fn silent_hosts_do_not_keep_other_leases_from_being_returned() {
    let (dir, lender) = (tempfile::tempdir().unwrap(), Lender::default());
    let store = fork_of_silent_hosts(&lender, &Arc::default(), dir.path());
    store.volume_names().iter().for_each(|name| store.destroy_volume(name, false).unwrap());
    store.close().unwrap();
    assert_eq!(lender.lent.lock().len(), 3);
    lender.silence.set(false);
}
