//! Hydrators over a layer in a directory, with sources that do what a test tells them and a clock that stands still.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use roaring::RoaringBitmap;

use super::connect::connect_aside;
use super::pace::Sending;
use super::{Budget, Hydrator, HydratorConfig};
use crate::clock::Clock;
use crate::format::{HydrationSettings, SourceRecord};
use crate::ids::LayerId;
use crate::io::SystemDisk;
use crate::layer::{BlockRead, Layer, Layers, bare_layers};
use crate::limits::Limits;
use crate::place::{Block, BlockSize, BlockSpan};
use crate::source::{OnArrival, Part, ReadClass, Source, SourceError, SourceErrorKind, SourceOpener};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::mpsc::channel;

const BLOCK: usize = 4096;
const URI: &str = "far://x";

/// A clock that goes on when a test says so.
#[derive(Default)]
struct Still(Mutex<Duration>);

impl Still {
    fn go_on(&self, time: Duration) {
        *self.0.lock() += time;
    }
}

impl Clock for Still {
    fn monotonic(&self) -> Duration {
        *self.0.lock()
    }

    fn unix(&self) -> Duration {
        Duration::from_secs(1_000_000) + self.monotonic()
    }
}

/// What is at the source.
struct Far {
    data: Bytes,
    /// How reads fail; `None`: they do not.
    fails: Mutex<Option<SourceErrorKind>>,
    /// Reads end well without bytes.
    is_empty: AtomicBool,
    /// Blocks that were asked for.
    reads: Mutex<Vec<Range<u64>>>,
    opened: AtomicUsize,
    closed: Mutex<Vec<usize>>,
}

/// A connection, by its number from 1 on.
struct Way(Arc<Far>, usize);

struct Ways(Arc<Far>);

impl SourceOpener for Ways {
    fn open(&self, _uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        Ok(Arc::new(Way(Arc::clone(&self.0), self.0.opened.fetch_add(1, Ordering::SeqCst) + 1)))
    }
}

impl Source for Way {
    fn size_bytes(&self) -> u64 {
        self.0.data.len() as u64
    }

    fn read_bytes_max(&self) -> u32 {
        4 << 20
    }

    fn read(&self, range: Range<u64>, _class: ReadClass, mut arrival: OnArrival) {
        self.0.reads.lock().push(range.start / BLOCK as u64..range.end.div_ceil(BLOCK as u64));
        if let Some(kind) = *self.0.fails.lock() {
            return arrival.end(Err(SourceError { kind, message: format!("{URI} fails") }));
        }
        if self.0.is_empty.load(Ordering::SeqCst) {
            return arrival.end(Ok(()));
        }
        arrival.part(Part::new(range.start, self.0.data.slice(range.start as usize..range.end as usize)));
        arrival.end(Ok(()));
    }

    fn describe(&self) -> String {
        URI.into()
    }

    fn close(&self) {
        self.0.closed.lock().push(self.1);
    }
}

/// A hydrator, without a thread of its own, and all that it works with.
struct Scene {
    layers: Arc<Layers>,
    layer: Arc<Layer>,
    clock: Arc<Still>,
    far: Arc<Far>,
    hydrator: Arc<Hydrator>,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn new(data: Vec<u8>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layers = Arc::new(bare_layers(Arc::new(SystemDisk::new()), dir.path(), Limits::DEFAULT));
        let size_bytes = data.len() as u64;
        let layer = layers.add(LayerId(1), None, Some(size_bytes.div_ceil(BLOCK as u64)));
        layer.seal();
        let clock = Arc::<Still>::default();
        clock.go_on(Duration::from_secs(100));
        let (reads, opened) = (Mutex::default(), AtomicUsize::new(0));
        let far = Arc::new(Far {
            data: data.into(),
            fails: Mutex::default(),
            is_empty: AtomicBool::new(false),
            reads,
            opened,
            closed: Mutex::default(),
        });
        let config = HydratorConfig {
            layers: Arc::clone(&layers),
            layer: Arc::clone(&layer),
            record: SourceRecord { uris: vec![URI.into()], size_bytes, settings: HydrationSettings::default() },
            origin: String::new(),
            opener: Arc::new(Ways(Arc::clone(&far))),
            clock: Arc::clone(&clock) as _,
            block_size: BlockSize::DEFAULT,
            budget: Arc::<Budget>::default(),
            on_change: Box::new(|_, _| {}),
            look_above: Box::new(|_| {}),
            hold: Box::new(|_| None),
            on_lease: Arc::new(|_, _, _| {}),
        };
        Self { layers, layer, clock, far, hydrator: Hydrator::new(config, None), _dir: dir }
    }

    /// Blocks that are nowhere zero.
    fn with_blocks(count: usize) -> Self {
        Self::new((0..count).flat_map(|block| [block as u8 % 255 + 1; BLOCK]).collect())
    }

    fn root(&self) -> &super::root::Root {
        &self.hydrator.parts.root
    }

    /// What the layer has of a block; `None`: it is missing.
    fn block(&self, block: u32) -> Option<Vec<u8>> {
        let block = Block::new(block);
        if self.layer.missing(block.extent()).contains(block.index()) {
            return None;
        }
        let mut bytes = vec![0; BLOCK];
        if self.layer.holds(block) {
            assert!(matches!(self.layers.blocks.read(&self.layer, block, &mut bytes), Ok(BlockRead::Verified)), "block {block}");
        }
        Some(bytes)
    }

    /// Bytes of the source.
    fn far_bytes(&self, blocks: Range<u64>) -> Bytes {
        let at = |block: u64| (block as usize * BLOCK).min(self.far.data.len());
        self.far.data.slice(at(blocks.start)..at(blocks.end))
    }

    /// Backfill, as far as it comes while the clock stands still. Answers whether nothing is missing.
    fn backfill(&self) -> bool {
        assert!((0..100).any(|_| !self.hydrator.backfill_step()), "it says for ever that it did something");
        self.hydrator.is_complete()
    }

    /// Requests since the last look.
    fn requests(&self) -> usize {
        std::mem::take(&mut *self.far.reads.lock()).len()
    }

    fn set(&self, change: impl FnOnce(&mut HydrationSettings)) {
        let mut settings = self.hydrator.settings();
        change(&mut settings);
        self.hydrator.set_settings(settings);
    }
}

/// Every arrangement of zeros and data in a window of blocks, some of them over the end of an extent, and the last one at the end
/// of the source; the blocks between the windows are not here yet.
#[test]
fn exactly_the_blocks_that_came_as_zeros_are_zero() {
    const WINDOW: usize = 8;
    const STRIDE: usize = WINDOW + 3;
    const BLOCKS: usize = 255 * STRIDE + WINDOW;
    for last_is_data in [false, true] {
        let mut data = vec![0; BLOCKS * BLOCK];
        for block in 0..BLOCKS {
            // The blocks between are data: one that becomes zero with its neighbours is damage.
            let (pattern, at) = (block / STRIDE, block % STRIDE);
            if at >= WINDOW || pattern >> at & 1 == 1 {
                // Zero but for one byte, which may be the last one.
                data[(block + 1) * BLOCK - 1 - block % 2 * 4000] = block as u8 | 1;
            }
        }
        data.truncate(BLOCKS * BLOCK - 1000);
        *data.last_mut().unwrap() = u8::from(last_is_data);
        let scene = Scene::new(data);
        let expected = |block: usize| {
            let mut bytes = scene.far_bytes(block as u64..block as u64 + 1).to_vec();
            bytes.resize(BLOCK, 0);
            bytes
        };
        for pattern in 0..256 {
            let window = (pattern * STRIDE) as u64..(pattern * STRIDE + WINDOW) as u64;
            scene.root().fill(&window, &scene.far_bytes(window.clone())).unwrap();
        }
        for block in 0..BLOCKS {
            let found = scene.block(block as u32);
            let (pattern, at) = (block / STRIDE, block % STRIDE);
            let wanted = (at < WINDOW).then(|| expected(block));
            assert!(found == wanted, "block {at} of window {pattern:#b}: here {}, wanted {}", found.is_some(), wanted.is_some());
        }
        // What came before does not change what comes later.
        assert!(scene.backfill());
        assert!((0..BLOCKS).all(|block| scene.block(block as u32).is_some_and(|found| found == expected(block))));
    }
}

#[test]
fn a_block_is_never_filled_over_another_fill() {
    let scene = Scene::with_blocks(8);
    let root = scene.root();
    let late = root.parts_to_fill(&(0..6), &scene.far_bytes(0..6)).pop().unwrap();
    assert_eq!(late.span.span(), BlockSpan::new(0, 6));
    // Meanwhile two of them come from elsewhere.
    root.fill(&(1..2), &Bytes::from(vec![0; BLOCK])).unwrap();
    root.fill(&(3..4), &Bytes::from(vec![200; BLOCK])).unwrap();
    assert!(root.admit_part(&late).unwrap().is_none(), "two blocks would be written twice");
    let left = root.parts_left(&late);
    assert_eq!(left.iter().map(|part| part.span.indices.range()).collect::<Vec<_>>(), [0..1, 2..3, 4..6]);
    for part in left {
        root.admit_part(&part).unwrap().unwrap().write(&part.bytes).unwrap();
    }
    let found: Vec<_> = (0..8).map(|block| scene.block(block).map(|bytes| bytes[0])).collect();
    assert_eq!(found, [Some(1), Some(0), Some(3), Some(200), Some(5), Some(6), None, None]);
    // Nothing is held any more: its blocks can be taken again.
    assert!(root.admit_part(&late).unwrap().is_none());
}

#[test]
fn a_hydration_is_not_complete_before_its_requests_have_ended() {
    let scene = Scene::with_blocks(8);
    // A reader asks for a block, and while it waits everything is overwritten above.
    let claim = scene.hydrator.parts.claim(&(5..6), 1 << 20, 1).pop();
    assert!(claim.is_some());
    scene.hydrator.set_hidden((0..8).collect());
    assert!(!scene.hydrator.is_complete(), "the source would be closed under a reader");
    drop(claim);
    assert!(scene.hydrator.is_complete());
}

#[test]
fn blocks_that_nobody_needs_are_neither_fetched_nor_missed() {
    let scene = Scene::with_blocks(1000);
    let hidden: RoaringBitmap = (100..200).chain(500..501).chain(900..1000).collect();
    scene.hydrator.set_hidden(hidden.clone());
    assert!(scene.backfill(), "it is never complete");
    for block in 0..1000 {
        assert_eq!(scene.block(block).is_none(), hidden.contains(block), "block {block}");
        assert_eq!(scene.far.reads.lock().iter().any(|run| run.contains(&u64::from(block))), !hidden.contains(block), "block {block}");
    }
}

#[test]
fn what_readers_will_want_is_not_guessed_during_a_pause() {
    for paused in [false, true] {
        let scene = Scene::with_blocks(2000);
        scene.set(|settings| settings.paused = paused);
        for block in 1000..1010 {
            scene.hydrator.demand(block..block + 1).unwrap();
        }
        // Guesses are fetched whatever the cap: those of a pause would all come at once at its end.
        scene.set(|settings| settings.paused = false);
        assert!(scene.backfill());
        let fetched = scene.hydrator.progress().fetched;
        assert_eq!((fetched.demand, fetched.ahead > 0), (10 * BLOCK as u64, !paused), "paused: {paused}");
    }
}

#[test]
fn a_failed_address_is_retried_at_once_on_request() {
    let scene = Scene::with_blocks(100);
    *scene.far.fails.lock() = Some(SourceErrorKind::Lost);
    assert!(scene.hydrator.backfill_step() && scene.requests() > 0);
    *scene.far.fails.lock() = None;
    assert!(!scene.backfill() && scene.requests() == 0, "an address that failed a moment ago is let be");
    scene.hydrator.retry_now();
    assert!(scene.backfill());
    // Nor is it waited for space any longer.
    let scene = Scene::with_blocks(100);
    scene.hydrator.parts.note_unstored(&crate::error::Error::new(crate::error::ErrorKind::NoSpace, "full"));
    assert!(!scene.backfill() && scene.requests() == 0);
    scene.hydrator.retry_now();
    assert!(scene.backfill());
}

#[test]
fn an_end_without_bytes_is_a_failure_with_a_pause() {
    let scene = Scene::with_blocks(100);
    scene.far.is_empty.store(true, Ordering::SeqCst);
    assert!(scene.hydrator.backfill_step() && scene.requests() > 0);
    assert!(!scene.backfill() && scene.requests() == 0, "it is asked again and again while time stands still");
    assert!(scene.hydrator.demand(0..1).is_err() && scene.hydrator.progress().readers_waiting == 0);
    scene.far.is_empty.store(false, Ordering::SeqCst);
    scene.hydrator.retry_now();
    assert!(scene.backfill());
}

/// A panic on the way of a reader, or of backfill, gives back what it held.
#[test]
fn whoever_panics_gives_back_what_it_held() {
    let scene = Scene::with_blocks(100);
    let parts = &scene.hydrator.parts;
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let claims = parts.claim(&(0..100), 4096, usize::MAX);
        assert_eq!(claims.len(), 100);
        let sent = parts.budget.begin_now(Duration::ZERO, "far", 1 << 40);
        let host: Arc<str> = "far".into();
        let _sending = Sending::new(&parts.budget, &parts.clock, &host, sent);
        assert!(parts.budget.begin(Duration::ZERO, LayerId(1), "far", 1 << 20, true).is_err());
        panic!("a reader panics");
    }));
    assert!(caught.is_err());
    assert_eq!(parts.claim(&(0..100), 4096, usize::MAX).len(), 100, "blocks are claimed by nobody");
    assert!(parts.budget.begin(Duration::ZERO, LayerId(1), "far", 1 << 20, true).is_ok(), "a window stays full");
    assert!(scene.backfill());
}

#[test]
fn a_source_that_changed_is_closed_and_connected_to_again() {
    for (kind, connections) in [(SourceErrorKind::Changed, 2), (SourceErrorKind::Lost, 1), (SourceErrorKind::Failed, 1)] {
        let scene = Scene::with_blocks(100);
        *scene.far.fails.lock() = Some(kind);
        assert!(scene.hydrator.backfill_step());
        // What changed may be the right one again; what is lost connects by itself.
        while scene.far.closed.lock().len() < connections - 1 {
            crate::sync::thread::yield_now();
        }
        assert_eq!(scene.far.closed.lock().len(), connections - 1, "{kind:?}");
        *scene.far.fails.lock() = None;
        scene.clock.go_on(Duration::from_secs(5));
        assert!(scene.backfill(), "{kind:?}");
        assert_eq!(scene.far.opened.load(Ordering::SeqCst), connections, "{kind:?}");
    }
}

#[test]
fn a_refused_attempt_to_connect_is_made_again_after_a_pause() {
    let scene = Scene::with_blocks(1);
    let addresses = &scene.hydrator.parts.addresses;
    // As many calls of the host as may run wait for this test, and as many as may wait stand behind them.
    let (begun, has_begun) = channel();
    let gates: Vec<_> = (0..3)
        .map(|_| {
            let (begun, (gate, opened)) = (begun.clone(), channel::<()>());
            addresses.aside(URI, move || {
                begun.send(()).unwrap();
                let _ = opened.recv();
            });
            gate
        })
        .collect();
    (0..3).for_each(|_| has_begun.recv().unwrap());
    (0..5000).for_each(|_| addresses.aside(URI, || {}));
    let unconnected = || addresses.ready().unconnected.len();
    assert_eq!(unconnected(), 1);
    let seen = scene.hydrator.parts.news.seen();
    connect_aside(&scene.hydrator.parts, addresses.begin_connecting(URI).unwrap());
    assert_ne!(scene.hydrator.parts.news.seen(), seen, "readers look again");
    assert_eq!(unconnected(), 0);
    drop(gates);
    scene.clock.go_on(Duration::from_secs(1));
    assert_eq!(unconnected(), 1, "later it is tried again");
}

#[test]
fn a_deadline_goes_before_readers_that_wait() {
    let (near, far) = (1_000_000 + 110, u64::MAX);
    for (deadline, comes) in [(0, true), (0, false), (near, true), (near, false), (far, true), (far, false)] {
        let scene = Scene::with_blocks(4096);
        if comes {
            // A quarter of a MiB a second, as far as it is known.
            for _ in 0..3 {
                scene.hydrator.parts.note_bytes(URI, super::progress::FetchClass::Demand, 256 << 10);
                scene.clock.go_on(Duration::from_secs(1));
            }
        }
        scene.set(|settings| settings.deadline = deadline);
        let waiters = &scene.hydrator.parts.waiters;
        waiters.enter(scene.clock.monotonic(), Duration::ZERO);
        scene.hydrator.backfill_step();
        // As many requests as there is room for; otherwise one, and the next a while later.
        let is_due = deadline == near || (deadline == far && !comes);
        assert_eq!(scene.requests() > 1, is_due, "deadline {deadline}, bytes come: {comes}");
        waiters.leave(scene.clock.monotonic());
        scene.hydrator.backfill_step();
        assert!(scene.requests() > 1, "nobody waits");
    }
}
