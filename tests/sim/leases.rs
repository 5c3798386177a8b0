//! A loss of power at each operation while leases are taken, renewed and given back, on either side.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use volfork::source::{Lease, LeaseAction, LeaseRequest, LeasedSource, Source, SourceError, SourceErrorKind, SourceOpener};
use volfork::store::HydrationControl;
use volfork::volume::ForkOptions;
use volfork::{Error, ErrorKind, LeaseId, Store, StoreOptions};

use crate::clock::SimClock;
use crate::disk::{Fault, SimDisk};
use crate::hold::{Kind, beside};
use crate::model::WINDOW_START;
use crate::random::Random;
use crate::source::{STEADY, SimSources};
use crate::{Named, seeds};

const PLACE: &str = "/sim";
const BLOCK: usize = 4096;

fn options(disk: &SimDisk, sources: Option<Arc<dyn SourceOpener>>) -> StoreOptions {
    let mut options =
        StoreOptions::default().with_disk(Arc::new(disk.clone())).with_clock(Arc::new(SimClock::default())).with_threads(false);
    options.sources = sources;
    options
}

fn request(action: LeaseAction, number: u8) -> LeaseRequest {
    LeaseRequest { action, id: LeaseId([number; 16]), fork: "f".into(), host: "far".into(), identity: String::new() }
}

fn settle(store: &Store) {
    while store.step().unwrap() {}
}

/// What was acknowledged to hosts: the first byte of the snapshot that each lease holds.
type Given = BTreeMap<u8, (String, u8)>;

/// Two instants of a volume, the first of which two forks share; then a lease ends, and one of a user's snapshot comes.
fn lend(store: &Store, given: &mut Given) -> volfork::Result<()> {
    let volume = store.volume("v")?;
    let mut take = |number, export: (&str, Option<&str>), byte| {
        let grant = store.lease(export, &request(LeaseAction::Take, number), "there")?;
        given.insert(number, (grant.expect("what was taken is given").export, byte));
        Ok(())
    };
    volume.write_at(&[2; BLOCK], 0)?;
    take(1, ("v", None), 2)?;
    take(2, ("v", None), 2)?;
    volume.write_at(&[3; BLOCK], 0)?;
    take(3, ("v", None), 3)?;
    volume.write_at(&[4; BLOCK], 0)?;
    take(4, ("v", Some("s")), 1)?;
    take(1, ("v", None), 2)?;
    given.remove(&3);
    store.lease(("v", None), &request(LeaseAction::Release, 3), "there")?;
    volume.flush()
}

#[test]
fn a_crash_keeps_both_lease_and_snapshot_or_neither() {
    for seed in seeds(3) {
        for at in 1.. {
            let _named = Named("leases with a power loss", seed);
            let disk = SimDisk::default();
            let store = Store::create(Path::new(PLACE), options(&disk, None)).unwrap();
            let volume = store.create_volume("v", 8 * BLOCK as u64).unwrap();
            volume.write_at(&[1; BLOCK], 0).unwrap();
            store.create_snapshot("v", "s").unwrap();
            let before = disk.operations();
            disk.fail_at(before + at, Fault::Crash);
            let mut given = Given::new();
            let outcome = lend(&store, &mut given);
            let reached = disk.operations() >= before + at;
            assert!(reached || outcome.is_ok(), "operation {at}: {outcome:?}");
            disk.power_off();
            drop((volume, store));
            disk.crash(&mut Random::new(seed));
            let store = Store::open(Path::new(PLACE), options(&disk, None)).unwrap();
            settle(&store);
            let leased: BTreeSet<String> = store.show("v").unwrap().leases.into_iter().map(|lease| lease.snapshot).collect();
            let mut held: BTreeSet<String> = store.snapshot_names("v").unwrap().into_iter().collect();
            assert!(held.remove("s") && leased.iter().filter(|name| *name != "s").eq(&held), "operation {at}: {leased:?}, {held:?}");
            for (number, (export, byte)) in &given {
                let again = store.lease(("v", None), &request(LeaseAction::Take, *number), "there").unwrap().unwrap();
                assert_eq!(again.export, *export, "operation {at}: lease {number}");
                let snapshot = store.snapshot("v", export.split_once('@').unwrap().1).unwrap();
                let mut first = [0];
                snapshot.read_at(&mut first, 0).unwrap();
                assert_eq!(first, [*byte], "operation {at}: {export}");
            }
            // Gives all leases back.
            (1..=4).for_each(|number| drop(store.lease(("v", None), &request(LeaseAction::Release, number), "there").unwrap()));
            settle(&store);
            assert_eq!(store.snapshot_names("v").unwrap(), ["s"]);
            store.close().unwrap();
            assert_eq!(Store::check(Path::new(PLACE), options(&disk, None)).unwrap().violations, Vec::<String>::new());
            if !reached {
                break;
            }
        }
    }
}

#[test]
fn snapshots_for_forks_elsewhere_are_bounded() {
    const MOST: u64 = 1024;
    let disk = SimDisk::default();
    let store = Store::create(Path::new(PLACE), options(&disk, None)).unwrap();
    let mut given = 0u64;
    let refused = loop {
        let name = format!("v{}", given / 64);
        let volume = store.volume(&name).or_else(|_| store.create_volume(&name, BLOCK as u64)).unwrap();
        volume.write_at(&given.to_le_bytes(), 0).unwrap();
        let mut take = request(LeaseAction::Take, 0);
        take.id.0[..8].copy_from_slice(&given.to_le_bytes());
        match store.lease((&name, None), &take, "there") {
            Ok(_) => given += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(given, MOST);
    let text = refused.to_string();
    assert!(refused.kind() == ErrorKind::Busy && text.contains("this store has 1024 snapshots for forks of other hosts already"), "{text}");
}

#[test]
fn all_instants_go_when_many_are_not_needed_any_more() {
    let store = Store::create(Path::new(PLACE), options(&SimDisk::default(), None)).unwrap();
    let mut readers = Vec::new();
    let ask = |action, volume: &str, number: u16| {
        let mut request = request(action, 0);
        request.id.0[..2].copy_from_slice(&number.to_le_bytes());
        store.lease((volume, None), &request, "there").unwrap()
    };
    for number in 0..300u16 {
        let name = format!("v{}", number / 60);
        let volume = store.volume(&name).or_else(|_| store.create_volume(&name, BLOCK as u64)).unwrap();
        volume.write_at(&number.to_le_bytes(), 0).unwrap();
        let export = ask(LeaseAction::Take, &name, number).unwrap().export;
        readers.push(store.snapshot(&name, export.split_once('@').unwrap().1).unwrap());
        ask(LeaseAction::Release, &name, number);
    }
    settle(&store);
    assert_eq!(store.volume_names().iter().map(|name| store.snapshot_names(name).unwrap().len()).sum::<usize>(), 300);
    drop(readers);
    settle(&store);
    assert!(store.volume_names().iter().all(|name| store.snapshot_names(name).unwrap().is_empty()));
}

#[test]
fn a_returned_lease_stays_away_after_a_crash() {
    for seed in seeds(10) {
        let _named = Named("a lease that was given back, and a power loss", seed);
        let disk = SimDisk::default();
        let store = Store::create(Path::new(PLACE), options(&disk, None)).unwrap();
        store.create_volume("v", BLOCK as u64).unwrap().write_at(&[1], 0).unwrap();
        store.lease(("v", None), &request(LeaseAction::Take, 1), "there").unwrap();
        store.lease(("v", None), &request(LeaseAction::Release, 1), "there").unwrap();
        disk.power_off();
        drop(store);
        disk.crash(&mut Random::new(seed));
        let store = Store::open(Path::new(PLACE), options(&disk, None)).unwrap();
        settle(&store);
        assert_eq!((store.show("v").unwrap().leases, store.snapshot_names("v").unwrap()), (vec![], vec![]));
    }
}

#[test]
fn a_lease_holds_for_the_time_that_its_fork_was_told() {
    const WEEK: u64 = 7 * 86_400;
    let disk = SimDisk::default();
    let with = |lease| options(&disk, None).with_lease(lease);
    let store = Store::create(Path::new(PLACE), with(Duration::from_secs(4 * WEEK))).unwrap();
    store.create_volume("v", BLOCK as u64).unwrap();
    let told = store.lease(("v", None), &request(LeaseAction::Take, 1), "there").unwrap().unwrap().lapse;
    store.close().unwrap();
    // Another time is for those that are given or renewed from now on.
    let store = Store::open(Path::new(PLACE), with(Duration::ZERO)).unwrap();
    let second = store.lease(("v", None), &request(LeaseAction::Take, 2), "there").unwrap().unwrap().lapse;
    let lapses: Vec<_> = store.show("v").unwrap().leases.iter().map(|lease| lease.lapses_at - lease.renewed_at).collect();
    assert_eq!((lapses, told.as_secs(), second.as_secs()), (vec![4 * WEEK, 1], 4 * WEEK, 1));
}

#[test]
fn instants_are_not_listed_as_bases_for_changes() {
    let store = Store::create(Path::new(PLACE), options(&SimDisk::default(), None)).unwrap();
    let volume = store.create_volume("v", BLOCK as u64).unwrap();
    volume.write_at(&[1], 0).unwrap();
    store.create_snapshot("v", "s").unwrap();
    for number in 2..5 {
        volume.write_at(&[number], 0).unwrap();
        store.lease(("v", None), &request(LeaseAction::Take, number), "there").unwrap();
    }
    // An NBD server lists the latest ones, and these would leave the user's no room.
    assert_eq!((volume.snapshots_below(), store.snapshot_names("v").unwrap().len()), (vec!["s".to_owned()], 4));
}

#[test]
fn a_number_stands_for_one_lease() {
    let store = Store::create(Path::new(PLACE), options(&SimDisk::default(), None)).unwrap();
    for name in ["v", "w"] {
        store.create_volume(name, BLOCK as u64).unwrap().write_at(name.as_bytes(), 0).unwrap();
        store.create_snapshot(name, "s").unwrap();
    }
    let take = |export| store.lease(export, &request(LeaseAction::Take, 1), "there");
    assert_eq!(take(("v", Some("s"))).unwrap().unwrap().export, "v@s");
    for other in [("w", None), ("w", Some("s")), ("v", Some("t"))] {
        assert_eq!(take(other).unwrap_err().kind(), ErrorKind::Busy, "{other:?}");
    }
    // It is renewed whatever its volume is called by now.
    store.rename("v", "u").unwrap();
    let held = store.lease(("v", Some("s")), &request(LeaseAction::Hold, 1), "there").unwrap().unwrap().export;
    assert_eq!(held, "u@s");
}

/// A snapshot may take long: the fork that asked for it, or its host, may be gone by then.
#[test]
fn a_lease_returned_before_its_request_is_not_granted() {
    let store = Store::create(Path::new(PLACE), options(&SimDisk::default(), None)).unwrap();
    store.create_volume("v", BLOCK as u64).unwrap().write_at(&[1], 0).unwrap();
    store.create_snapshot("v", "s").unwrap();
    store.volume("v").unwrap().write_at(&[2], 0).unwrap();
    let ask = |action, snapshot, number| store.lease(("v", snapshot), &request(action, number), "there");
    for (number, snapshot) in [(1, None), (2, Some("s"))] {
        assert_eq!(ask(LeaseAction::Release, snapshot, number).unwrap(), None);
        let refused = ask(LeaseAction::Take, snapshot, number).unwrap_err();
        assert!(refused.kind() == ErrorKind::Busy && refused.to_string().contains("given back already"), "{refused}");
        assert_eq!((store.show("v").unwrap().leases, store.snapshot_names("v").unwrap()), (vec![], vec!["s".to_owned()]));
        // Another one is.
        ask(LeaseAction::Take, snapshot, number + 10).unwrap().unwrap();
        ask(LeaseAction::Release, snapshot, number + 10).unwrap();
        settle(&store);
    }
}

/// A fork that did not wait for the answer says it again.
#[test]
fn ending_a_lease_twice_is_durable_at_either_answer() {
    for seed in seeds(6) {
        let _named = Named("a lease that is given back twice at once, and a power loss", seed);
        let disk = SimDisk::default();
        let store = Store::create(Path::new(PLACE), options(&disk, None)).unwrap();
        store.create_volume("v", BLOCK as u64).unwrap().write_at(&[1], 0).unwrap();
        store.lease(("v", None), &request(LeaseAction::Take, 1), "there").unwrap();
        let release = || {
            let store = store.clone();
            beside(move || store.lease(("v", None), &request(LeaseAction::Release, 1), "there").map(drop))
        };
        disk.holds.hold(Kind::Sync, "journal");
        let first = release();
        disk.holds.await_held();
        let second = release();
        if second.ends_soon() {
            disk.power_off();
        }
        disk.holds.release();
        let answered = [first.join(), second.join()].iter().any(volfork::Result::is_ok);
        disk.power_off();
        drop(store);
        disk.crash(&mut Random::new(seed));
        let store = Store::open(Path::new(PLACE), options(&disk, None)).unwrap();
        assert!(!answered || store.show("v").unwrap().leases.is_empty());
    }
}

#[test]
fn what_is_about_to_be_destroyed_by_force_is_not_leased() {
    let store = Store::create(Path::new(PLACE), options(&SimDisk::default(), None)).unwrap();
    store.create_volume("v", BLOCK as u64).unwrap().write_at(&[1], 0).unwrap();
    let instant = store.lease(("v", None), &request(LeaseAction::Take, 1), "there").unwrap().unwrap().export;
    let mut refused = None;
    let end = |_: &[String]| {
        // The volume is as it was, and another fork comes.
        refused = Some(store.lease(("v", None), &request(LeaseAction::Take, 2), "there").map(drop).unwrap_err().kind());
        Ok(())
    };
    store.destroy_by_force(("v", instant.split_once('@').map(|(_, snapshot)| snapshot)), false, end).unwrap();
    assert_eq!((refused, store.show("v").unwrap().leases), (Some(ErrorKind::Busy), vec![]));
    store.lease(("v", None), &request(LeaseAction::Take, 3), "there").unwrap();
    // A refusal that no force lifts disturbs nobody.
    store.create_snapshot("v", "s").unwrap();
    let error = store.destroy_by_force(("v", None), false, |exports| panic!("{exports:?} are ended")).unwrap_err();
    assert!(error.kind() == ErrorKind::Busy && error.to_string().contains("all together with it"), "{error}");
}

/// A source that gives leases of itself.
#[derive(Clone)]
struct Lender {
    sources: SimSources,
    lent: Arc<Mutex<BTreeSet<LeaseId>>>,
    asked: Arc<AtomicUsize>,
    /// It does not hear what is given back.
    deaf: Arc<AtomicBool>,
    lapse: Duration,
}

impl Default for Lender {
    fn default() -> Self {
        let lapse = Duration::from_secs(3600);
        Self { sources: SimSources::default(), lent: Arc::default(), asked: Arc::default(), deaf: Arc::default(), lapse }
    }
}

impl SourceOpener for Lender {
    fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        self.sources.open(uri)
    }

    fn open_leased(&self, uri: &str, request: &LeaseRequest) -> Result<LeasedSource, SourceError> {
        Ok(LeasedSource { source: self.open(uri)?, lease: self.lease(uri, request)? })
    }

    fn lease(&self, uri: &str, request: &LeaseRequest) -> Result<Option<Lease>, SourceError> {
        let mut lent = self.lent.lock().unwrap();
        match request.action {
            LeaseAction::Release if self.deaf.load(Ordering::SeqCst) => {
                self.asked.fetch_add(1, Ordering::SeqCst);
                return Err(SourceError { kind: SourceErrorKind::Lost, message: "nobody hears".into() });
            }
            LeaseAction::Release => drop(lent.remove(&request.id)),
            _ => drop(lent.insert(request.id)),
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        let lease = Lease { uri: uri.to_owned(), lapse: self.lapse };
        Ok((request.action != LeaseAction::Release).then_some(lease))
    }
}

impl Lender {
    fn lent(&self) -> usize {
        self.lent.lock().unwrap().len()
    }
}

fn steps(store: &Store, count: usize) {
    for _ in 0..count {
        store.step().unwrap();
    }
}

/// A fork that gets its lease and is not made.
fn refused_fork(store: &Store, name: &str) -> volfork::Error {
    let mut refuse = |_: u64, _: &mut BTreeMap<String, String>| Err(Error::new(ErrorKind::InvalidInput, "not admitted"));
    store.fork_admitted(&[STEADY.into()], name, &ForkOptions::default(), &mut refuse).map(drop).unwrap_err()
}

/// A fork that stands, one that gets its lease and is not made, and the end of the first. All leases are given back.
fn borrow(store: &Store, lender: &Lender, stands: &mut bool) -> volfork::Result<()> {
    store.fork(STEADY, "f")?;
    *stands = true;
    let refused = refused_fork(store, "g");
    if refused.kind() != ErrorKind::InvalidInput {
        return Err(refused);
    }
    store.control_hydration("f", &HydrationControl::default().with_paused(true))?;
    while lender.lent() > 1 {
        store.step()?;
    }
    *stands = false;
    store.destroy_volume("f", false)?;
    while lender.lent() > 0 {
        store.step()?;
    }
    Ok(())
}

#[test]
fn leases_without_a_fork_are_returned_after_any_crash() {
    for seed in seeds(1) {
        for at in 1.. {
            let _named = Named("leases of forks with a power loss", seed);
            let (disk, lender) = (SimDisk::default(), Lender::default());
            let with = || options(&disk, Some(Arc::new(lender.clone())));
            let store = Store::create(Path::new(PLACE), with()).unwrap();
            let before = disk.operations();
            disk.fail_at(before + at, Fault::Crash);
            let mut stands = false;
            let outcome = borrow(&store, &lender, &mut stands);
            let reached = disk.operations() >= before + at;
            assert!(reached || outcome.is_ok(), "operation {at}: {outcome:?}");
            disk.power_off();
            // Neither is heard what it says as it ends, nor for a while afterwards.
            lender.deaf.store(true, Ordering::SeqCst);
            drop(store);
            disk.crash(&mut Random::new(seed));
            let store = Store::open(Path::new(PLACE), with()).unwrap();
            let forked = store.volume("f").is_ok();
            assert!(forked || !stands, "operation {at}");
            steps(&store, 50);
            assert!(!forked || lender.lent() > 0, "operation {at}: the fork needs its lease");
            if forked {
                store.destroy_volume("f", false).unwrap();
            }
            store.close().unwrap();
            lender.deaf.store(false, Ordering::SeqCst);
            let store = Store::open(Path::new(PLACE), with()).unwrap();
            steps(&store, 50);
            assert_eq!(lender.lent(), 0, "operation {at}");
            store.close().unwrap();
            // Nothing is left of them.
            let asked = lender.asked.load(Ordering::SeqCst);
            let store = Store::open(Path::new(PLACE), with()).unwrap();
            steps(&store, 50);
            store.close().unwrap();
            assert_eq!(lender.asked.load(Ordering::SeqCst), asked, "operation {at}");
            assert_eq!(Store::check(Path::new(PLACE), with()).unwrap().violations, Vec::<String>::new());
            if !reached {
                break;
            }
        }
    }
}

#[test]
fn leases_that_no_fork_got_are_remembered_up_to_a_bound() {
    const MOST: usize = 256;
    let (disk, lender) = (SimDisk::default(), Lender::default());
    let with = || options(&disk, Some(Arc::new(lender.clone())));
    let store = Store::create(Path::new(PLACE), with()).unwrap();
    lender.deaf.store(true, Ordering::SeqCst);
    (0..MOST + 5).for_each(|_| assert_eq!(refused_fork(&store, "f").kind(), ErrorKind::InvalidInput));
    store.close().unwrap();
    lender.deaf.store(false, Ordering::SeqCst);
    let store = Store::open(Path::new(PLACE), with()).unwrap();
    steps(&store, 100);
    assert_eq!(lender.lent(), 5);
}

#[test]
fn a_new_lease_of_another_address_is_kept_or_returned() {
    for destroyed in [true, false] {
        let (disk, lender) = (SimDisk::default(), Lender::default());
        let with = || options(&disk, Some(Arc::new(lender.clone())));
        let store = Store::create(Path::new(PLACE), with()).unwrap();
        let fork = store.fork(STEADY, "f").unwrap();
        let mut control = HydrationControl::default().with_paused(true).with_add_sources(vec!["sim://y".into()]);
        store.control_hydration("f", &control).unwrap();
        control = HydrationControl::default().with_remove_sources(vec![STEADY.into()]);
        store.control_hydration("f", &control).unwrap();
        assert_eq!(lender.lent.lock().unwrap().len(), 1);
        fork.read_at(&mut [0; BLOCK], WINDOW_START).unwrap();
        assert_eq!(lender.lent.lock().unwrap().len(), 2);
        // Nothing goes on in the background between that and the end.
        if destroyed {
            store.destroy_volume("f", false).unwrap();
        }
        drop(fork);
        store.close().unwrap();
        if !destroyed {
            assert_eq!(lender.lent.lock().unwrap().len(), 1, "the fork needs it");
            let store = Store::open(Path::new(PLACE), with()).unwrap();
            store.destroy_volume("f", false).unwrap();
            store.close().unwrap();
        }
        assert_eq!(*lender.lent.lock().unwrap(), BTreeSet::new());
    }
}

#[test]
fn a_lease_that_lapses_at_once_is_not_renewed_without_end() {
    let lender = Lender { lapse: Duration::ZERO, ..Lender::default() };
    let store = Store::create(Path::new(PLACE), options(&SimDisk::default(), Some(Arc::new(lender.clone())))).unwrap();
    store.fork(STEADY, "f").unwrap();
    store.control_hydration("f", &HydrationControl::default().with_paused(true)).unwrap();
    for _ in 0..200 {
        store.step().unwrap();
    }
    assert!(lender.asked.load(Ordering::SeqCst) < 100, "{} times", lender.asked.load(Ordering::SeqCst));
}

#[test]
fn leases_are_renewed_while_no_new_one_has_space() {
    const OTHER: &str = "sim://y";
    let (disk, lender) = (SimDisk::default(), Lender { lapse: Duration::from_secs(6), ..Lender::default() });
    let store = Store::create(Path::new(PLACE), options(&disk, Some(Arc::new(lender.clone())))).unwrap();
    let pause = |name: &str, add: &[&str], remove: &[&str]| {
        let [add_sources, remove_sources] = [add, remove].map(|uris| uris.iter().map(|uri| (*uri).to_owned()).collect());
        store.control_hydration(
            name,
            &HydrationControl::default().with_paused(true).with_add_sources(add_sources).with_remove_sources(remove_sources),
        )
    };
    store.fork("sim://z", "leased").unwrap();
    pause("leased", &[], &[]).unwrap();
    let volume = store.fork(STEADY, "f").unwrap();
    pause("f", &[OTHER], &[]).unwrap();
    pause("f", &[], &[STEADY]).unwrap();
    steps(&store, 20);
    assert_eq!(lender.lent(), 1);
    let (mut numbers, mut is_full) = (0.., false);
    while !is_full {
        // The space that a checkpoint gives back is used, too.
        settle(&store);
        disk.set_capacity(Some(disk.used_pages()));
        let mut create = || store.create_volume(&format!("v{}", numbers.next().unwrap()), BLOCK as u64);
        is_full = create().is_err();
        while create().is_ok() {}
    }
    volume.read_at(&mut [0; BLOCK], WINDOW_START).unwrap();
    assert_eq!(lender.lent(), 2);
    let asked = lender.asked.load(Ordering::SeqCst);
    // Time passes as it is looked at. Each step may tell that there is no space for the record.
    let is_renewed = || lender.asked.load(Ordering::SeqCst) > asked + 2;
    let renewed = (0..2000).any(|_| {
        let _ = store.step();
        is_renewed()
    });
    assert!(renewed, "the lease of the other fork is not renewed");
}
