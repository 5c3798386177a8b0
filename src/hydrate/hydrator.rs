//! The assembler: makes the parts of the hydrator of one root layer and connects them.

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
use super::parts::{Parts, Received};
use super::progress::{HydratorStatus, Progress};
use super::root::Root;
use crate::clock::Clock;
use crate::error::Result;
use crate::format::{HydrationSettings, SourceRecord};
use crate::layer::{Layer, Layers};
use crate::place::BlockSize;
use crate::source::{Source, SourceError, SourceOpener};
use crate::sync::time::Instant;
use crate::sync::{Mutex, Rank};

/// Everything that a hydrator is made of.
pub struct HydratorConfig {
    /// The layers of the store.
    pub layers: Arc<Layers>,
    /// The root layer.
    pub layer: Arc<Layer>,
    /// Addresses and settings, as the journal has them.
    pub record: SourceRecord,
    /// Identity of the bytes, or empty.
    pub origin: String,
    /// Opens sources.
    pub opener: Arc<dyn SourceOpener>,
    /// Source of time.
    pub clock: Arc<dyn Clock>,
    /// Block size of the store.
    pub block_size: BlockSize,
    /// Bandwidth budget that the hydrations of the store share.
    pub budget: Arc<Budget>,
    /// Called when the status changes.
    pub on_change: OnChange,
    /// Looks up which blocks the layers above hide, and calls [`Hydrator::set_covered`] and [`Hydrator::set_hidden`].
    pub look_above: Box<dyn Fn(&Hydrator) + Send + Sync>,
    /// The lease to hold at an address that is opened.
    pub hold: Hold,
    /// Called with each lease that an address has granted, and the time after which it lapses.
    pub on_lease: OnLease,
}

/// One root layer, with the sources of its bytes.
pub struct Hydrator {
    pub(super) parts: Arc<Parts>,
}

impl Hydrator {
    /// A hydrator that uses `source`. Without one it connects when it first needs to.
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
                received: Mutex::ranked(Rank::Received, Received::default()),
                news,
                wake: Mutex::ranked(Rank::HydrationWake, None),
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

    /// Returns when every block of the range is present. Blocks that are being fetched already are waited for (single flight).
    ///
    /// # Errors
    /// [`crate::ErrorKind::SourceLost`] after the bounded retries of every source, for as long as [`SourceOpener::patience`] says; an I/O
    /// error of the layer's file.
    pub fn demand(&self, blocks: Range<u64>) -> Result<()> {
        demand::demand(&self.parts, blocks)
    }

    /// Reads blocks of the source into `buffer`, beginning with block `first`, without looking at the layer or storing anything.
    ///
    /// # Errors
    /// [`crate::ErrorKind::SourceLost`].
    pub fn read_through(&self, first: u64, buffer: &mut [u8]) -> Result<()> {
        demand::read_through(&self.parts, first, buffer)
    }

    /// Starts backfill on the threads of the store, unless it runs or was stopped. It ends by [`Hydrator::stop`], or when nothing is
    /// missing and `finish` returns true; if that returns false, blocks are missing after all, and backfill goes on.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start_backfill(&self, crew: &Arc<Crew>, finish: impl Fn() -> bool + Send + Sync + 'static) -> std::io::Result<()> {
        backfill::begin(&self.parts, crew, Arc::new(finish))
    }

    /// Runs one bounded round of backfill on the caller's thread, without waiting for time to pass. Returns whether it did anything. If
    /// not, the missing blocks wait for time, for a source, or for the fetches of readers.
    pub fn backfill_step(&self) -> bool {
        backfill::step(&self.parts)
    }

    /// Refuses a source whose size or identity is not that of the forked bytes.
    ///
    /// # Errors
    /// [`crate::source::SourceErrorKind::Changed`].
    pub fn check_source(&self, uri: &str, source: &dyn Source) -> std::result::Result<(), SourceError> {
        self.parts.addresses.check_source(uri, source)
    }

    /// Sets the blocks that the layers above hide durably.
    pub fn set_hidden(&self, hidden: RoaringBitmap) {
        self.parts.cover.set_hidden(hidden);
        self.parts.tell();
    }

    /// Sets the blocks that are hidden once all writes above are durable. Returns whether other blocks are missing.
    pub fn set_covered(&self, covered: RoaringBitmap) -> bool {
        self.parts.cover.set_covered(covered);
        self.parts.next_needed(0).is_some()
    }

    /// Notes a new fork on the layer, which needs all of its blocks. Replaces the addresses; all are tried at once.
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

    /// Replaces the addresses; those that stay keep their state.
    pub fn set_uris(&self, uris: &[String]) {
        self.parts.addresses.set_uris(uris);
        self.parts.tell();
    }

    /// Queues these runs, in their order, to be fetched before the rest.
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

    /// Whether every needed block is present, and nothing is under way.
    pub fn is_complete(&self) -> bool {
        self.parts.is_complete()
    }

    /// Status, counts and addresses, for reports.
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

    /// Fails all readers that wait for a source now; later reads connect again. Readers are given up before the connections are, so that a
    /// reader that connects meanwhile sees one of the two.
    pub fn give_up_waiting(&self) {
        self.parts.waiters.give_up();
        self.parts.addresses.give_up();
        self.parts.tell();
    }

    /// Marks the hydration as complete, and closes the sources. The caller has made all needed blocks durable, and then the record that
    /// detaches the root: after a crash nothing asks the sources for them.
    ///
    /// 1. The end is marked first. No backfill begins after it, and a running one ends at its next step. When its guard drops, it finds
    ///    the hydration complete and does not leave the budget a second time: a later fork may have attached the root anew by then, and
    ///    its hydration has the same layer id.
    /// 2. Readers fail from here on instead of waiting for a lost address. This comes before step 4, so that a reader whose connection
    ///    closes there does not wait for it to return.
    /// 3. The hydration leaves the budget, which wakes the hydrations that wait for a share of it.
    /// 4. The addresses stop: under one lock they are marked and their sources are taken, and then the sources are closed without it. A
    ///    connection that comes later finds the mark and closes, so that none stays open. Waits for the opener end.
    /// 5. The news come last. A thread that looked at the parts before steps 1 to 4 wakes, and one that looks later sees all of them.
    ///
    /// [`Hydrator::stop`] runs the same steps when a store closes, also at the same time: a step may run twice, and the mark of a complete
    /// hydration stays.
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

    /// Waits until the hydration is complete. False at the timeout, or if it was stopped before.
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

    /// Whether backfill should run but does not.
    pub fn is_asleep(&self) -> bool {
        self.parts.life.is_asleep()
    }

    /// Whether backfill has begun and not ended.
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
