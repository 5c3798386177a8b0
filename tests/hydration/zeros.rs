//! Zero ranges are not fetched, whichever address reports them, and across losses of addresses.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use volfork::source::{OnArrival, Part, ReadClass, Source, SourceError, SourceErrorKind, SourceExtent, SourceOpener};
use volfork::volume::VolumeState;
use volfork::{Store, StoreOptions};

use crate::read;
use crate::stage::PATIENCE;
use crate::steps::settle;

/// As much of each of these is data.
const SLOT: u64 = 128 << 20;
const DATA: u64 = 1 << 20;
/// Most bytes that a server without extended headers tells of at once.
const ANSWER_MAX: u64 = (1 << 32) - (64 << 10);

/// When a host dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Death {
    /// As it is asked for its zeros; the question is never answered.
    Asked,
    /// As it is asked for its zeros; the connection ends.
    AskedAndReset,
    /// After so many reads.
    Reads(usize),
}

/// Hosts with the same sparse bytes, of which some are alive.
struct Hosts {
    size_bytes: u64,
    has_data: bool,
    identity: Option<String>,
    /// The hosts that die, one after the other, and when: then the other one is back.
    deaths: Mutex<Vec<(usize, Death)>>,
    alive: Mutex<[bool; 2]>,
    reads: [AtomicUsize; 2],
    bytes: AtomicU64,
    questions: AtomicUsize,
    over: Mutex<bool>,
    ended: Condvar,
}

impl Hosts {
    fn new(size_bytes: u64, has_data: bool, identity: Option<&str>, deaths: &[(usize, Death)]) -> Arc<Self> {
        Arc::new(Self {
            size_bytes,
            has_data,
            identity: identity.map(str::to_owned),
            deaths: Mutex::new(deaths.iter().copied().rev().collect()),
            alive: Mutex::new([true; 2]),
            reads: Default::default(),
            bytes: AtomicU64::new(0),
            questions: AtomicUsize::new(0),
            over: Mutex::default(),
            ended: Condvar::new(),
        })
    }

    fn data_bytes(&self) -> u64 {
        if self.has_data { self.size_bytes / SLOT * DATA } else { 0 }
    }

    /// Whether a host dies of this.
    fn dies(&self, host: usize, of: impl Fn(Death) -> bool) -> bool {
        let mut deaths = self.deaths.lock();
        if !deaths.last().is_some_and(|(who, death)| *who == host && of(*death)) {
            return false;
        }
        deaths.pop();
        *self.alive.lock() = [host == 1, host == 0];
        true
    }

    fn lost(&self) -> SourceError {
        SourceError { kind: SourceErrorKind::Lost, message: "it is gone".into() }
    }

    fn bytes_of(&self, range: &Range<u64>) -> Bytes {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        // All reads are of whole blocks.
        for (block, at) in bytes.chunks_mut(4096).zip(range.clone().step_by(4096)) {
            if self.has_data && at % SLOT < DATA {
                block.fill((at / 4096 % 250) as u8 + 1);
            }
        }
        bytes.into()
    }
}

/// A connection to one of them.
struct Host(Arc<Hosts>, usize);

impl Source for Host {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes
    }

    fn read(&self, range: Range<u64>, _: ReadClass, mut arrival: OnArrival) {
        let hosts = &self.0;
        let number = hosts.reads[self.1].fetch_add(1, Ordering::SeqCst);
        if hosts.dies(self.1, |death| matches!(death, Death::Reads(most) if number >= most)) || !hosts.alive.lock()[self.1] {
            return arrival.end(Err(hosts.lost()));
        }
        hosts.bytes.fetch_add(range.end - range.start, Ordering::SeqCst);
        arrival.part(Part::new(range.start, hosts.bytes_of(&range)));
        arrival.end(Ok(()));
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>, SourceError> {
        let hosts = &self.0;
        hosts.questions.fetch_add(1, Ordering::SeqCst);
        if hosts.dies(self.1, |death| death == Death::Asked) {
            let mut over = hosts.over.lock();
            while !*over {
                hosts.ended.wait(&mut over);
            }
        }
        if hosts.dies(self.1, |death| death == Death::AskedAndReset) || !hosts.alive.lock()[self.1] {
            return Err(hosts.lost());
        }
        let end = range.end.min(range.start + ANSWER_MAX);
        let mut extents = Vec::new();
        let mut at = range.start;
        while at < end {
            let is_data = hosts.has_data && at % SLOT < DATA;
            let next = match (hosts.has_data, is_data) {
                (false, _) => end,
                (true, true) => at / SLOT * SLOT + DATA,
                (true, false) => (at / SLOT + 1) * SLOT,
            };
            extents.push(SourceExtent { bytes: next.min(end) - at, zero: !is_data });
            at = next;
        }
        Ok(extents)
    }

    fn identity(&self) -> Option<String> {
        self.0.identity.clone()
    }

    fn describe(&self) -> String {
        format!("host {}", self.1)
    }
}

struct Ways(Arc<Hosts>);

impl SourceOpener for Ways {
    fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        let host = usize::from(uri == "b://");
        if self.0.alive.lock()[host] { Ok(Arc::new(Host(Arc::clone(&self.0), host))) } else { Err(self.0.lost()) }
    }
}

fn store(hosts: &Arc<Hosts>, threads: bool) -> (Store, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions::default().with_sources(Arc::new(Ways(Arc::clone(hosts)))).with_threads(threads);
    (Store::create(dir.path(), options).unwrap(), dir)
}

#[test]
fn a_run_of_zeros_is_one_step_whatever_its_length() {
    const SIZE: u64 = 16 << 40;
    let hosts = Hosts::new(SIZE, false, None, &[]);
    let (store, _dir) = store(&hosts, false);
    let volume = store.fork("a://", "v").unwrap();
    let mut steps = 0;
    while store.step().unwrap() {
        steps += 1;
        assert!(steps < 100, "step by step through {:?}", store.show("v").unwrap().blocks);
    }
    let info = store.show("v").unwrap();
    assert_eq!((info.state, info.blocks.zero, info.blocks.present), (VolumeState::Created, 1 << 32, 0));
    // As few as the answers' length allows, and those that find the end.
    let questions = hosts.questions.load(Ordering::SeqCst) as u64;
    assert!(questions <= SIZE.div_ceil(ANSWER_MAX) + 1, "{questions} questions");
    assert_eq!(hosts.bytes.load(Ordering::SeqCst), 0);
    assert!(read(&volume, SIZE - 4096, 4096).unwrap() == [0; 4096]);
}

#[test]
fn zeros_do_not_travel_whichever_of_two_hosts_dies_and_when() {
    use Death::{Asked, AskedAndReset, Reads};
    let orders: [&[(usize, Death)]; 8] = [
        &[],
        &[(0, Asked)],
        &[(0, AskedAndReset)],
        &[(0, Asked), (1, Reads(5)), (0, Reads(3))],
        &[(0, Reads(0)), (1, Asked), (0, Reads(9))],
        &[(0, Reads(4)), (1, Reads(4)), (0, Reads(12)), (1, AskedAndReset)],
        &[(1, Asked)],
        &[(1, AskedAndReset), (0, Reads(7)), (1, Reads(7))],
    ];
    for identity in [Some("host/7"), None] {
        // Each question that is never answered costs the patience of one.
        for deaths in orders.iter().skip(if identity.is_some() { 0 } else { 4 }) {
            let hosts = Hosts::new(8 << 30, true, identity, deaths);
            let (store, _dir) = store(&hosts, true);
            let volume = store.fork(&["a://".into(), "b://".into()], "v").unwrap();
            let complete = store.wait_hydrated("v", PATIENCE).unwrap();
            assert!(complete, "{deaths:?}: {:?}", store.show("v").unwrap().hydration);
            let (bytes, data) = (hosts.bytes.load(Ordering::SeqCst), hosts.data_bytes());
            assert!(bytes <= data + data / 20, "{deaths:?}, {identity:?}: {bytes} bytes were sent of {data}");
            for slot in [0, 31, 63] {
                let range = slot * SLOT + DATA - 8192..slot * SLOT + DATA + 8192;
                assert!(read(&volume, range.start, 16384).unwrap() == hosts.bytes_of(&range)[..], "{deaths:?}");
            }
            *hosts.over.lock() = true;
            hosts.ended.notify_all();
            store.close().unwrap();
        }
    }
}

/// The step of a store without threads asks on its own thread: what it is told is used, too.
#[test]
fn zeros_between_data_are_told_to_a_store_without_threads() {
    let hosts = Hosts::new(1 << 30, true, None, &[]);
    let (store, _dir) = store(&hosts, false);
    let volume = store.fork("a://", "v").unwrap();
    settle(&store);
    assert_eq!(hosts.bytes.load(Ordering::SeqCst), hosts.data_bytes());
    let range = DATA - 4096..DATA + 4096;
    assert!(read(&volume, range.start, 8192).unwrap() == hosts.bytes_of(&range)[..]);
}
