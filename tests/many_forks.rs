//! Threads, descriptors and memory do not grow with the hydrations of a store. It is a test program of its own, because it counts those of
//! the whole process.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use volfork::source::{OnArrival, Part, ReadClass, Source, SourceError, SourceOpener};
use volfork::store::HydrationControl;
use volfork::{Store, StoreOptions};

/// Hydrations, each of a source of its own.
const FORKS: u64 = 1000;
/// Sources that do not answer reads, and others that do not even open when the store is opened again.
const SILENT: Range<u64> = 100..115;
const CLOSED: Range<u64> = 115..120;
const BLOCK: u64 = 4096;
const BYTES: u64 = 64 * BLOCK;
const PATIENCE: Duration = Duration::from_secs(60);

/// Threads of the engine while it hydrates, at most.
const THREADS_MAX: usize = 32;
/// Descriptors that the process may have, and those that the engine has while it hydrates, at most.
const LIMIT: u64 = 1024;
const DESCRIPTORS_MAX: usize = 300;
/// Resident bytes above those of the idle store, at most.
const MEMORY_MAX: u64 = 64 << 20;

/// What a source has at a block.
fn block_of(source: u64, block: u64) -> [u8; BLOCK as usize] {
    let mut bytes = [(source % 251) as u8 + 1; BLOCK as usize];
    bytes[..8].copy_from_slice(&block.to_le_bytes());
    bytes
}

/// All sources, by the numbers in their addresses.
#[derive(Default)]
struct Far {
    is_silent: Mutex<bool>,
    /// Reads that the source holds back without an answer.
    held: Mutex<Vec<(u64, Range<u64>, OnArrival)>>,
    /// Calls that do not return before the end.
    hanging: Mutex<BTreeMap<u64, std::sync::mpsc::Sender<()>>>,
}

struct One(u64, Arc<Far>);

#[derive(Clone)]
struct Opener(Arc<Far>);

impl SourceOpener for Opener {
    fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        let number = uri.rsplit('/').next().and_then(|number| number.parse().ok()).expect("an address of the test");
        if CLOSED.contains(&number) && *self.0.is_silent.lock() {
            let (sender, receiver) = std::sync::mpsc::channel::<()>();
            self.0.hanging.lock().insert(number, sender);
            let _ = receiver.recv();
        }
        Ok(Arc::new(One(number, Arc::clone(&self.0))))
    }
}

fn answer(number: u64, range: &Range<u64>, mut arrival: OnArrival) {
    let blocks = range.start / BLOCK..range.end / BLOCK;
    let bytes: Vec<u8> = blocks.flat_map(|block| block_of(number, block)).collect();
    arrival.part(Part::new(range.start, bytes.into()));
    arrival.end(Ok(()));
}

impl Source for One {
    fn size_bytes(&self) -> u64 {
        BYTES
    }

    fn read(&self, range: Range<u64>, _class: ReadClass, arrival: OnArrival) {
        match SILENT.contains(&self.0) && *self.1.is_silent.lock() {
            true => self.1.held.lock().push((self.0, range, arrival)),
            false => answer(self.0, &range, arrival),
        }
    }

    fn describe(&self) -> String {
        format!("far://{0}.example/{0}", self.0)
    }
}

/// Threads, descriptors and resident bytes of this process.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    threads: usize,
    descriptors: usize,
    resident_bytes: u64,
}

impl Used {
    fn now() -> Self {
        let count = |folder: &str| std::fs::read_dir(folder).map_or(0, Iterator::count);
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kilobytes: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
        Self { threads: count("/proc/self/task"), descriptors: count("/proc/self/fd"), resident_bytes: kilobytes << 10 }
    }

    fn most(&mut self) {
        let now = Self::now();
        self.threads = self.threads.max(now.threads);
        self.descriptors = self.descriptors.max(now.descriptors);
        self.resident_bytes = self.resident_bytes.max(now.resident_bytes);
    }
}

fn name(number: u64) -> String {
    format!("f{number}")
}

#[test]
fn many_hydrations_run_on_few_threads() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(LIMIT), maximum }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let far = Arc::<Far>::default();
    let options = || StoreOptions::default().with_sources(Arc::new(Opener(Arc::clone(&far))));
    let store = Store::create(dir.path(), options()).unwrap();
    let paused = |paused| HydrationControl::default().with_paused(paused);
    for number in 0..FORKS {
        let uri = format!("far://{number}.example/{number}");
        store.fork(&*uri, &name(number)).unwrap();
        store.control_hydration(&name(number), &paused(true)).unwrap();
    }
    store.close().unwrap();
    *far.is_silent.lock() = true;
    let outside = Used::now();
    let store = Store::open(dir.path(), options()).unwrap();
    let idle = Used::now();
    let mut most = idle;
    for number in 0..FORKS {
        store.control_hydration(&name(number), &paused(false)).unwrap();
        most.most();
    }
    let ends = |number: &u64| !SILENT.contains(number) && !CLOSED.contains(number);
    for number in (0..FORKS).filter(ends) {
        while !store.wait_hydrated(&name(number), Duration::from_millis(20)).unwrap() {
            most.most();
        }
        most.most();
    }
    println!("without the store {outside:?}, idle {idle:?}, most {most:?}");
    for number in (0..FORKS).filter(ends) {
        let volume = store.volume(&name(number)).unwrap();
        let mut bytes = vec![0; BYTES as usize];
        volume.read_at(&mut bytes, 0).unwrap();
        let right = bytes.chunks(BLOCK as usize).zip(0..).all(|(found, block)| *found == block_of(number, block));
        assert!(right, "fork {number}");
    }
    assert!(most.threads - outside.threads <= THREADS_MAX, "{most:?}, {outside:?} without the store");
    assert!(most.descriptors - outside.descriptors <= DESCRIPTORS_MAX, "{most:?}, {outside:?} without the store");
    assert!(most.resident_bytes - idle.resident_bytes <= MEMORY_MAX, "{most:?}, {idle:?} idle");
    // Those that were silent go on when they answer.
    *far.is_silent.lock() = false;
    far.hanging.lock().clear();
    for (number, range, arrival) in std::mem::take(&mut *far.held.lock()) {
        answer(number, &range, arrival);
    }
    for number in SILENT.start..CLOSED.end {
        assert!(store.wait_hydrated(&name(number), PATIENCE).unwrap(), "{:?}", store.show(&name(number)).unwrap());
    }
    store.close().unwrap();
}
