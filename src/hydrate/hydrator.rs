//! The assembler: makes the parts that stand for one root layer, and puts them together.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use roaring::RoaringBitmap;

use super::addresses::{Addresses, Hold, OnLease, Terms};
use super::backfill;
use super::claims::Claims;
use super::crew::Crew;
use super::demand;
use super::health::{Health, OnChange};
use super::news::News;
use super::pace::{Budget, Throttle};
use super::parts::Parts;
use super::progress::{HydratorStatus, Progress};
use super::root::Root;
use crate::clock::Clock;
use crate::error::Result;
use crate::format::{HydrationSettings, SourceRecord};
use crate::layer::{Layer, Layers};
use crate::place::BlockSize;
use crate::source::{Source, SourceError, SourceOpener};
use crate::sync::time::Instant;

/// What a hydrator works with.
pub struct HydratorConfig {
    /// The layers of the store.
    pub layers: Arc<Layers>,
    /// The root layer.
    pub layer: Arc<Layer>,
    /// What is known of the source.
    pub record: SourceRecord,
    /// Identity of the bytes, or empty.
    pub origin: String,
    /// How to connect.
    pub opener: Arc<dyn SourceOpener>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Block size of the store.
    pub block_size: BlockSize,
    /// What the hydrations of the store share.
    pub budget: Arc<Budget>,
    /// Told of degradation and recovery.
    pub on_change: OnChange,
    /// Looks at what stands on the layer, and calls [`Hydrator::set_covered`] and [`Hydrator::set_hidden`].
    pub look_above: Box<dyn Fn(&Hydrator) + Send + Sync>,
    /// The lease to hold at an address that is opened.
    pub hold: Hold,
    /// Told of a lease that an address has given, and of the time after which it lapses.
    pub on_lease: OnLease,
}

/// One root layer and where its bytes can be had.
pub struct Hydrator {
    pub(super) parts: Arc<Parts>,
}

impl Hydrator {
    /// A hydrator that uses `source`, or connects when it first needs to.
    pub fn new(config: HydratorConfig, source: Option<Arc<dyn Source>>) -> Arc<Self> {
        let HydratorConfig { record, origin, opener, clock, budget, look_above, hold, on_lease, .. } = config;
        let news = Arc::<News>::default();
        let patience = opener.patience();
        let terms = Terms { size_bytes: record.size_bytes, origin, hold, on_lease, clock: Arc::clone(&clock), budget: Arc::clone(&budget) };
        let root = Root { layers: config.layers, layer: config.layer, block_size: config.block_size, size_bytes: record.size_bytes };
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let look = move || this.upgrade().into_iter().for_each(|this| look_above(&this));
            let parts = Parts {
                root,
                claims: Claims::new(Arc::clone(&news)),
                addresses: Addresses::new(&record.uris, source, opener, terms),
                waiters: demand::Waiters::default(),
                queue: backfill::Queue::default(),
                cover: super::cover::Cover::default(),
                throttle: Throttle::new(record.settings),
                health: Health::new(config.on_change),
                life: super::life::Life::default(),
                received: crate::sync::Mutex::default(),
                news,
                wake: crate::sync::Mutex::default(),
                budget,
                clock,
                patience,
                look: Box::new(look),
            };
            Self { parts: Arc::new(parts) }
        })
    }

    /// The root layer.
    pub fn layer(&self) -> &Arc<Layer> {
        &self.parts.root.layer
    }

    /// Returns when every block of the range is here. Blocks that are under way already are waited for, not fetched again.
    ///
    /// # Errors
    /// [`crate::ErrorKind::SourceLost`] after the bounded retries of every source, for as long as [`SourceOpener::patience`] says; an I/O
    /// error of the layer's file.
    pub fn demand(&self, blocks: Range<u64>) -> Result<()> {
        demand::demand(&self.parts, blocks)
    }

    /// Fills `buffer` with blocks of the source from `first` on, whatever the layer has, and stores nothing.
    ///
    /// # Errors
    /// [`crate::ErrorKind::SourceLost`].
    pub fn read_through(&self, first: u64, buffer: &mut [u8]) -> Result<()> {
        demand::read_through(&self.parts, first, buffer)
    }

    /// Starts backfill on the threads of the store, unless it runs or was stopped; it ends when nothing is missing, or by
    /// [`Hydrator::stop`]. When nothing is missing, `finish` is called; `false` says that there is more to do.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start_backfill(&self, crew: &Arc<Crew>, finish: impl Fn() -> bool + Send + Sync + 'static) -> std::io::Result<()> {
        backfill::begin(&self.parts, crew, Arc::new(finish))
    }

    /// One bounded round of backfill on the caller's thread, without waiting for time to pass. Answers whether it did anything:
    /// otherwise what is missing waits for time, for a source or for what readers fetch.
    pub fn backfill_step(&self) -> bool {
        backfill::step(&self.parts)
    }

    /// Refuses a source that has other bytes than those that were forked, as far as it tells.
    ///
    /// # Errors
    /// [`crate::source::SourceErrorKind::Changed`].
    pub fn check_source(&self, uri: &str, source: &dyn Source) -> std::result::Result<(), SourceError> {
        self.parts.addresses.check_source(uri, source)
    }

    /// Tells which blocks nobody needs.
    pub fn set_hidden(&self, hidden: RoaringBitmap) {
        self.parts.cover.set_hidden(hidden);
        self.parts.tell();
    }

    /// Tells which blocks nobody will need once everything above is durable. Answers whether others are missing.
    pub fn set_covered(&self, covered: RoaringBitmap) -> bool {
        self.parts.cover.set_covered(covered);
        self.parts.next_needed(0).is_some()
    }

    /// One more fork stands on the layer, and shows all of it. These are the addresses from now on; all are tried at once.
    pub fn add_fork(&self, uris: &[String]) {
        self.parts.cover.clear();
        self.set_uris(uris);
        self.retry_now();
    }

    /// Changes pause and pace.
    pub fn set_settings(&self, settings: HydrationSettings) {
        let parts = &self.parts;
        parts.throttle.set_settings(settings);
        parts.cover.look_soon();
        parts.budget.set_priority(parts.root.layer.id, settings.priority);
        parts.tell();
    }

    /// Pause and pace.
    pub fn settings(&self) -> HydrationSettings {
        self.parts.throttle.settings()
    }

    /// The addresses.
    pub fn uris(&self) -> Vec<String> {
        self.parts.addresses.uris()
    }

    /// Changes the addresses.
    pub fn set_uris(&self, uris: &[String]) {
        self.parts.addresses.set_uris(uris);
        self.parts.tell();
    }

    /// Fetches these blocks before the rest, in this order.
    pub fn follow(&self, runs: impl IntoIterator<Item = Range<u64>>) {
        self.parts.queue.follow(runs);
        self.parts.tell();
    }

    /// Forgets failures, so that every address is tried at once.
    pub fn retry_now(&self) {
        self.parts.addresses.retry_now();
        self.parts.health.retry_now();
        self.parts.tell();
    }

    /// Whether every block that anybody needs is here, and nothing is under way.
    pub fn is_complete(&self) -> bool {
        self.parts.is_complete()
    }

    /// Counts so far.
    pub fn progress(&self) -> Progress {
        let parts = &self.parts;
        let settings = parts.throttle.settings();
        let (status, last_error) = parts.health.status();
        let fetched = parts.received.lock().bytes;
        let status = match (parts.life.is_complete(), status) {
            (true, _) => HydratorStatus::Complete,
            (_, HydratorStatus::Degraded) => HydratorStatus::Degraded,
            _ if settings.paused => HydratorStatus::Paused,
            _ => status,
        };
        Progress {
            status,
            fetched,
            rate_bytes_per_second: parts.bytes_per_second(),
            settings,
            readers_waiting: u64::from(parts.waiters.count()),
            sources: parts.addresses.info(),
            last_error,
        }
    }

    /// Fails everybody who waits for a source now; later reads connect again. Readers are told before the connections are given up: a
    /// reader that connects meanwhile sees one or the other.
    pub fn give_up_waiting(&self) {
        self.parts.waiters.give_up();
        self.parts.addresses.give_up();
        self.parts.tell();
    }

    /// Nothing is missing any more: closes the sources.
    pub fn finish(&self) {
        self.end(true);
    }

    /// Ends backfill and closes the sources; readers of missing blocks fail from now on.
    pub fn stop(&self) {
        self.end(false);
    }

    fn end(&self, complete: bool) {
        let parts = &self.parts;
        parts.life.stop(complete);
        parts.waiters.stop();
        parts.budget.leave(parts.root.layer.id);
        parts.addresses.stop();
        parts.tell();
    }

    /// Waits until nothing is missing any more; `false` at the timeout, or when it was stopped before.
    pub fn wait_finished(&self, timeout: Duration) -> bool {
        let until = Instant::now().checked_add(timeout);
        let life = &self.parts.life;
        loop {
            let seen = self.parts.news.seen();
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if life.is_stopped() || left.is_some_and(|left| left.is_zero()) {
                return life.is_complete();
            }
            self.parts.news.wait(seen, left);
        }
    }

    /// Whether backfill is to run and does not.
    pub fn is_asleep(&self) -> bool {
        self.parts.life.is_asleep()
    }

    /// Whether backfill has not ended.
    pub fn is_running(&self) -> bool {
        self.parts.life.is_running()
    }

    /// Waits until backfill has ended.
    pub fn join(&self) {
        loop {
            let seen = self.parts.news.seen();
            if !self.parts.life.is_running() {
                return;
            }
            self.parts.news.wait(seen, None);
        }
    }
}
