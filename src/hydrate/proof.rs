//! Hydrations on the threads of one store under the seeded scheduler: sources that answer late, never, or by a panic, and hydrations that
//! are stopped at any moment.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Budget, Crew, Hydrator, HydratorConfig};
use crate::clock::Clock;
use crate::format::{HydrationSettings, SourceRecord};
use crate::ids::LayerId;
use crate::io::SystemDisk;
use crate::layer::{Layers, bare_layers};
use crate::limits::Limits;
use crate::place::BlockSize;
use crate::source::{OnArrival, Part, ReadClass, Source, SourceError, SourceErrorKind, SourceOpener};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, sim, thread};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 24;
const HYDRATIONS: u64 = 3;

/// How a source answers reads.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Promptly,
    /// Another thread answers.
    Late,
    Never,
    /// The first read panics.
    Panics,
}

struct Far {
    manner: Manner,
    reads: AtomicUsize,
    late: Mutex<Vec<(Range<u64>, OnArrival)>>,
}

struct Link(Arc<Far>);

#[derive(Clone)]
struct Opener(Arc<Far>);

/// The clock of the run.
struct Virtual;

impl Clock for Virtual {
    fn monotonic(&self) -> Duration {
        Duration::from_secs(1000) + sim::now()
    }

    fn unix(&self) -> Duration {
        Duration::from_secs(1_000_000) + sim::now()
    }
}

impl SourceOpener for Opener {
    fn open(&self, _uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        Ok(Arc::new(Link(Arc::clone(&self.0))))
    }
}

fn answer(range: &Range<u64>, mut arrival: OnArrival) {
    arrival.part(Part::new(range.start, Bytes::from(vec![7; (range.end - range.start) as usize])));
    arrival.end(Ok(()));
}

impl Source for Link {
    fn size_bytes(&self) -> u64 {
        BLOCKS * BLOCK
    }

    fn read_bytes_max(&self) -> u32 {
        64 << 10
    }

    fn read(&self, range: Range<u64>, _class: ReadClass, arrival: OnArrival) {
        match (self.0.manner, self.0.reads.fetch_add(1, Ordering::SeqCst)) {
            (Manner::Panics, 0) => std::panic::resume_unwind(Box::new("a source panics")),
            (Manner::Promptly | Manner::Panics, _) => answer(&range, arrival),
            (Manner::Late | Manner::Never, _) => self.0.late.lock().push((range, arrival)),
        }
    }

    fn describe(&self) -> String {
        "far://x".into()
    }

    fn close(&self) {
        self.0.late.lock().clear();
    }
}

fn hydrator(layers: &Arc<Layers>, budget: &Arc<Budget>, number: u64, far: &Arc<Far>, looks: &Arc<AtomicUsize>) -> Arc<Hydrator> {
    let layer = layers.add(LayerId(number as u32), None, Some(BLOCKS));
    layer.seal();
    let looks = Arc::clone(looks);
    let config = HydratorConfig {
        layers: Arc::clone(layers),
        layer,
        record: SourceRecord {
            uris: vec![format!("far://{number}/x")],
            size_bytes: BLOCKS * BLOCK,
            settings: HydrationSettings::default(),
        },
        origin: String::new(),
        opener: Arc::new(Opener(Arc::clone(far))),
        clock: Arc::new(Virtual),
        block_size: BlockSize::DEFAULT,
        budget: Arc::clone(budget),
        on_change: Box::new(|_, _| {}),
        // An errand that panics costs itself.
        look_above: Box::new(move |_| {
            if looks.fetch_add(1, Ordering::SeqCst) == 0 && sim::below(2) == 0 {
                std::panic::resume_unwind(Box::new("a look panics"));
            }
        }),
        hold: Box::new(|_| None),
        on_lease: Arc::new(|_, _, _| {}),
    };
    Hydrator::new(config, None)
}

/// Three hydrations, of which one may be stopped. Those that are not end if their source answers; those that are stopped end at once.
fn history(dir: &Path, manner: Manner, stops: bool) {
    let layers = Arc::new(bare_layers(Arc::new(SystemDisk::new()), dir, Limits::DEFAULT));
    let (budget, looks, crew) = (Arc::<Budget>::default(), Arc::default(), Crew::new("0123456789"));
    let far = |manner| Arc::new(Far { manner, reads: AtomicUsize::new(0), late: Mutex::default() });
    let fars: Vec<_> = (0..HYDRATIONS).map(|number| far(if number == 0 { manner } else { Manner::Promptly })).collect();
    let finished = Arc::new(AtomicUsize::new(0));
    let all: Vec<_> = fars.iter().zip(1..).map(|(far, number)| hydrator(&layers, &budget, number, far, &looks)).collect();
    for hydrator in &all {
        let (this, finished) = (Arc::downgrade(hydrator), Arc::clone(&finished));
        let finish = move || {
            // The first end comes too early.
            if finished.fetch_add(1, Ordering::SeqCst) == 0 {
                return false;
            }
            this.upgrade().into_iter().for_each(|this| this.finish());
            true
        };
        hydrator.start_backfill(&crew, finish).unwrap();
    }
    let first = &all[0];
    thread::scope(|scope| {
        scope.spawn(|| {
            while manner == Manner::Late && first.is_running() {
                let late = std::mem::take(&mut *fars[0].late.lock());
                late.into_iter().for_each(|(range, arrival)| answer(&range, arrival));
                thread::sleep(Duration::from_millis(1));
            }
        });
        scope.spawn(|| {
            // A reader beside backfill: a wake from elsewhere.
            if matches!(manner, Manner::Promptly | Manner::Panics) {
                let _ = first.demand(3..5);
            }
        });
        if stops || manner == Manner::Never {
            thread::sleep(Duration::from_millis(sim::below(40)));
            first.stop();
        }
        // What a silent source owes keeps no other from its end, nor this from stopping.
        all.iter().for_each(|hydrator| hydrator.join());
    });
    for hydrator in all.iter().skip(usize::from(stops || manner == Manner::Never)) {
        assert!(hydrator.wait_finished(Duration::ZERO) && hydrator.is_complete());
    }
    assert!(first.parts.claims.is_empty(), "a claim outlives its hydration");
    // A pause after a panic, and the start; a step that has lost its wake comes after a minute.
    assert!(sim::now() < Duration::from_secs(30), "a wake was lost: {:?}", sim::now());
    crew.close();
}

#[test]
fn hydrations_end_whatever_one_of_them_does() {
    let dir = tempfile::tempdir().unwrap();
    for manner in [Manner::Promptly, Manner::Late, Manner::Never, Manner::Panics] {
        for stops in [false, true] {
            for seed in sim::seeds(20) {
                let path = dir.path().join(format!("{}-{stops}-{seed}", manner as u8));
                sim::run(seed, sim::Config::default(), move || history(&path, manner, stops)).unwrap();
            }
        }
    }
}

/// Readers have waited long for one block whose request fails. News of other blocks may wake them at that moment; none asks again.
fn failure_shared(dir: &Path) {
    const READERS: u32 = 3;
    let layers = Arc::new(bare_layers(Arc::new(SystemDisk::new()), dir, Limits::DEFAULT));
    let far = Arc::new(Far { manner: Manner::Never, reads: AtomicUsize::new(0), late: Mutex::default() });
    let hydrator = hydrator(&layers, &Arc::default(), 1, &far, &Arc::default());
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| hydrator.demand(3..5).unwrap_err());
        }
        while hydrator.parts.waiters.count() < READERS || far.late.lock().is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_secs(60));
        scope.spawn(|| hydrator.parts.news.tell());
        for (_, arrival) in std::mem::take(&mut *far.late.lock()) {
            arrival.end(Err(SourceError { kind: SourceErrorKind::Failed, message: "cannot be read".into() }));
        }
    });
    assert_eq!(far.reads.load(Ordering::SeqCst), 1, "a reader asked again");
    assert!(hydrator.parts.claims.is_empty());
}

#[test]
fn readers_share_a_failure_whenever_they_wake() {
    let dir = tempfile::tempdir().unwrap();
    for seed in sim::seeds(100) {
        let path = dir.path().join(seed.to_string());
        sim::run(seed, sim::Config::default(), move || failure_shared(&path)).unwrap();
    }
}
