//! What the volumes of a store share.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use roaring::RoaringBitmap;

use super::births::Coming;
use super::event::{EventKind, Events, OnEvent, Told};
use super::fence::{Fence, Pass};
use super::head::Head;
use super::leases::Leases;
use super::lessees::Lessees;
use super::queue::Workers;
use super::trace::Recorder;
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{ShapeRecord, SourceRecord};
use crate::hydrate::{Budget, Hydrator, HydratorConfig, HydratorStatus, Progress};
use crate::ids::{LayerId, LeaseId, VolumeId};
use crate::io::RingKind;
use crate::layer::{Layer, Layers, Ticket};
use crate::place::BlockSize;
use crate::source::{Connector, Source, SourceOpener};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, RwLock};

/// Freed layers whose files a store that is being closed removes.
const UNLINKED_AT_END: usize = 4096;

/// What the volumes of a store are made with.
pub struct CoreConfig {
    /// The layers.
    pub layers: Arc<Layers>,
    /// The shape.
    pub catalog: Catalog,
    /// Block size.
    pub block_size: BlockSize,
    /// Identity of the store, in hexadecimal digits.
    pub store_id: String,
    /// Which kind of queue to make; `None` is the best one the machine allows.
    pub ring: Option<RingKind>,
    /// How to reach sources.
    pub sources: Option<Arc<dyn SourceOpener>>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Backfill runs in threads (otherwise somebody steps it).
    pub threads: bool,
    /// Told of what happens in the background.
    pub on_event: Option<OnEvent>,
    /// Leases of forks of other hosts lapse after so long.
    pub lease: Duration,
}

/// The shared state of the volumes of a store.
pub struct Core {
    /// Every public call passes it.
    pub(crate) fence: Arc<Fence>,
    pub(super) layers: Arc<Layers>,
    catalog: Mutex<Catalog>,
    pub(super) block_size: BlockSize,
    pub(super) store_id: String,
    pub(super) ring: Option<RingKind>,
    pub(super) sources: Option<Connector>,
    pub(super) clock: Arc<dyn Clock>,
    threads: bool,
    heads: Mutex<HashMap<VolumeId, Weak<Head>>>,
    hydrators: Mutex<BTreeMap<LayerId, Arc<Hydrator>>>,
    /// Those of layers that were freed, which may still have something under way.
    stopped: Mutex<BTreeMap<LayerId, Arc<Hydrator>>>,
    /// What the hydrations that are over had done, while their roots live and the store is open.
    hydrated: Mutex<BTreeMap<LayerId, Progress>>,
    /// Reads so far that waited for a source.
    pub(super) demands: AtomicU64,
    /// What the hydrators share.
    pub(super) budget: Arc<Budget>,
    events: Option<Arc<Events>>,
    pub(super) workers: Workers,
    /// Recordings under way.
    pub(super) recorders: Mutex<Vec<Arc<Recorder>>>,
    /// Freed layers whose files can go once the round has ended.
    freed: Mutex<Vec<(Ticket, LayerId)>>,
    /// Where the next look for patches to merge begins.
    pub(super) next_patch: Mutex<(LayerId, u32)>,
    /// Held while what nobody above a root can see is looked for and acted on, and while a fork is put on a root that stands
    /// already, which shows all of it again. Locked before the catalogue.
    pub(super) roots: Mutex<()>,
    /// Volumes that are on their way. Locked after the catalogue.
    pub(super) births: Mutex<BTreeMap<String, Coming>>,
    /// Snapshots whose records are not durable yet. Locked after the catalogue.
    pub(super) arriving: Mutex<BTreeMap<(VolumeId, String), Ticket>>,
    /// Readers of each snapshot that is open. Locked after the catalogue.
    pub(super) pins: Mutex<BTreeMap<(VolumeId, String), usize>>,
    /// Of forks of other hosts.
    pub(super) leases: Leases,
    /// At other hosts.
    pub(super) lessees: Lessees,
    /// Held for writing while a layer forgets blocks that others hide, and for reading by those that walk a chain and add up what
    /// they find: a block moves from one layer's presence to another's. Locked after the catalogue.
    pub(super) forgetting: RwLock<()>,
    /// Something was hidden or freed: blocks may be dead.
    pub(super) reclaim: crate::sync::atomic::AtomicBool,
}

impl Core {
    /// Starts with a recovered shape.
    pub fn new(config: CoreConfig) -> Arc<Self> {
        let fence = Arc::<Fence>::default();
        let events = config.on_event.map(|on_event| Events::new(on_event, Arc::clone(&fence)));
        let opened_at = config.clock.monotonic();
        Arc::new(Self {
            leases: Leases::new(config.lease, opened_at),
            lessees: Lessees::new(config.sources.clone(), &config.catalog, opened_at),
            fence,
            layers: config.layers,
            catalog: Mutex::new(config.catalog),
            block_size: config.block_size,
            store_id: config.store_id,
            ring: config.ring,
            sources: config.sources.map(Connector::new),
            clock: config.clock,
            threads: config.threads,
            heads: Mutex::default(),
            hydrators: Mutex::default(),
            stopped: Mutex::default(),
            hydrated: Mutex::default(),
            demands: AtomicU64::new(0),
            budget: Arc::default(),
            events,
            workers: Workers::default(),
            recorders: Mutex::default(),
            freed: Mutex::default(),
            next_patch: Mutex::new((LayerId(0), 0)),
            roots: Mutex::default(),
            births: Mutex::default(),
            arriving: Mutex::default(),
            pins: Mutex::default(),
            forgetting: RwLock::default(),
            reclaim: crate::sync::atomic::AtomicBool::new(true),
        })
    }

    /// The id of the store.
    pub fn store_id(&self) -> &str {
        &self.store_id
    }

    /// Lets a public call in, until it ends.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub fn enter(&self) -> Result<Pass<&Fence>> {
        self.fence.enter()
    }

    /// The shape, locked. Taken before any owner map and any layer's state.
    pub fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock()
    }

    /// The layers.
    pub fn layers(&self) -> &Arc<Layers> {
        &self.layers
    }

    /// Block size.
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The open head of a volume, opened if it is not.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn head(self: &Arc<Self>, name: &str) -> Result<Arc<Head>> {
        let catalog = self.catalog();
        let id = self.volume_id(&catalog, name)?;
        let mut heads = self.heads.lock();
        if let Some(head) = heads.get(&id).and_then(Weak::upgrade) {
            return Ok(head);
        }
        let entry = catalog.volume(id).ok_or_else(|| gone(id))?;
        let head = Head::new(self, id, self.layers.require(entry.head)?, entry.size_bytes);
        if let Some(recorder) = self.recorder(id).or_else(|| self.record_young(&catalog, id, entry)) {
            // A fork is recorded however often it is opened; this head is new.
            let _ = head.recorder.set(recorder);
        }
        heads.insert(id, Arc::downgrade(&head));
        Ok(head)
    }

    /// Remembers a head that was made together with its volume.
    pub(super) fn adopt(&self, head: &Arc<Head>) {
        self.heads.lock().insert(head.id, Arc::downgrade(head));
    }

    /// Forgets the head of a volume that was destroyed.
    pub(super) fn disown(&self, head: &Head) {
        self.heads.lock().remove(&head.id);
        // Another fork is recorded from now on.
        head.recorder.get().into_iter().for_each(|recorder| recorder.end());
    }

    /// The time, if hydrations want to know how long the requests of the foreground take.
    pub(super) fn began(&self) -> Option<Duration> {
        self.budget.latencies().is_watched().then(|| self.clock.monotonic())
    }

    /// Notes how long a request took that needed no source.
    pub(super) fn note_latency(&self, began: Option<Duration>) {
        if let Some(began) = began {
            self.budget.latencies().note(self.clock.monotonic().saturating_sub(began));
        }
    }

    /// Makes changes of shape in memory and puts them into the next round, together with the completed writes of `sync`.
    ///
    /// # Errors
    /// The records do not fit the shape: a bug, after which the store refuses writes.
    pub(super) fn change(&self, catalog: &mut Catalog, sync: Option<LayerId>, records: Vec<ShapeRecord>) -> Result<Ticket> {
        let mut freed = Vec::new();
        for record in &records {
            freed.extend(catalog.apply(record).map_err(|error| Error::new(ErrorKind::Corrupt, format!("the catalogue: {error}")))?);
        }
        for layer in &freed {
            // Before the layer is freed: readers that it fails then are told of a source that is gone.
            let hydrator = self.hydrators.lock().remove(layer);
            if let Some(hydrator) = hydrator {
                hydrator.stop();
                self.stopped.lock().insert(*layer, hydrator);
            }
            self.hydrated.lock().remove(layer);
        }
        let may_end_leases = |record: &ShapeRecord| matches!(record, ShapeRecord::Detach(_) | ShapeRecord::Sources(..));
        let ends_leases = !freed.is_empty() || records.iter().any(may_end_leases);
        let ticket = self.layers.enqueue_freeing(sync, records, &freed);
        if ends_leases {
            self.lessees.note_end(ticket);
        }
        self.freed.lock().extend(freed.into_iter().map(|layer| (ticket, layer)));
        self.reclaim.store(true, Ordering::Release);
        Ok(ticket)
    }

    /// Whether nothing refers to a layer, nor will after a crash: files that it may have can go. Those of a layer that was freed
    /// a moment ago wait for the end of the round that has its record; they go in [`Core::unlink_step`].
    pub fn is_unknown(&self, layer: LayerId) -> bool {
        // Under the catalogue's lock, with which layers are added (before their files are made) and freed.
        let catalog = self.catalog();
        catalog.layer(layer).is_none() && self.layers.get(layer).is_none() && self.freed.lock().iter().all(|(_, freed)| *freed != layer)
    }

    /// Removes the files of one layer that is durably free. Answers whether there was one.
    ///
    /// # Errors
    /// An I/O error; the files are swept at the next open.
    pub fn unlink_step(&self) -> Result<bool> {
        let layer = {
            let mut freed = self.freed.lock();
            let mut stopped = self.stopped.lock();
            // What the hydration of a layer has under way ends before its files go.
            let is_left = |layer| stopped.get(layer).is_none_or(|hydrator| !hydrator.is_running());
            let at = freed.iter().position(|(ticket, layer)| self.layers.is_done(*ticket) && is_left(layer));
            let Some(at) = at else { return Ok(false) };
            let layer = freed.swap_remove(at).1;
            stopped.remove(&layer);
            layer
        };
        self.layers.remove_files(layer).map(|()| true)
    }

    /// The hydrator of a root layer, while it needs its source.
    pub fn hydrator(&self, layer: LayerId) -> Option<Arc<Hydrator>> {
        self.hydrators.lock().get(&layer).cloned()
    }

    /// What the hydration of a root layer had done when it was over, if that was since the store was opened.
    pub(super) fn hydrated(&self, layer: LayerId) -> Option<Progress> {
        self.hydrated.lock().get(&layer).cloned()
    }

    /// Waits for every hydration that was stopped, those of layers that were freed included.
    pub fn join_hydrations(&self) {
        let stopped: Vec<_> = self.stopped.lock().values().cloned().collect();
        self.hydrators().iter().chain(&stopped).for_each(|hydrator| hydrator.join());
    }

    /// All hydrators.
    pub fn hydrators(&self) -> Vec<Arc<Hydrator>> {
        self.hydrators.lock().values().cloned().collect()
    }

    /// Fails everybody who waits for a source now; later reads ask again.
    pub fn give_up_waiting(&self) {
        self.sources.iter().for_each(Connector::give_up);
        self.hydrators().iter().for_each(|hydrator| hydrator.give_up_waiting());
    }

    /// Begins to hydrate a root layer.
    ///
    /// # Errors
    /// There is no way to reach sources.
    pub fn hydrate(self: &Arc<Self>, layer: &Arc<Layer>, record: SourceRecord, source: Option<Arc<dyn Source>>) -> Result<()> {
        let origin = self.catalog().layer(layer.id).map(|entry| entry.origin.clone()).unwrap_or_default();
        let hydrator = self.add_hydrator(layer, record, origin, source)?;
        self.start_hydration(&hydrator);
        Ok(())
    }

    /// Makes the hydrator of a root layer, so that what is missing can be read. `origin` is the identity of the bytes, or empty.
    ///
    /// # Errors
    /// There is no way to reach sources.
    pub(super) fn add_hydrator(
        self: &Arc<Self>,
        layer: &Arc<Layer>,
        record: SourceRecord,
        origin: String,
        source: Option<Arc<dyn Source>>,
    ) -> Result<Arc<Hydrator>> {
        let opener = self.sources.as_ref().ok_or_else(no_sources)?.opener();
        let (this, id) = (Arc::downgrade(self), layer.id);
        let on_change = move |status, error: Option<String>| {
            let kind = match status {
                HydratorStatus::Degraded => EventKind::Degraded,
                HydratorStatus::NoSpace => EventKind::NoSpace,
                HydratorStatus::Running | HydratorStatus::Paused | HydratorStatus::Complete => EventKind::Recovered,
            };
            if let Some(core) = this.upgrade() {
                // This may be the thread of a reader, who may hold what the holder of the catalogue waits for.
                let this = Weak::clone(&this);
                core.tell(kind, move || this.upgrade().map_or_else(Vec::new, |core| volumes_over(&core.catalog(), id)), error);
            }
        };
        let this = Arc::downgrade(self);
        let look_above = move |hydrator: &Hydrator| this.upgrade().into_iter().for_each(|core| core.look_above(hydrator));
        let this = Arc::downgrade(self);
        let identity = origin.clone();
        let hold = move |uri: &str| this.upgrade()?.lessees.hold(id, &identity, uri);
        let this = Arc::downgrade(self);
        let on_lease = move |uri: &str, lease: LeaseId, lapse| {
            this.upgrade().into_iter().for_each(|core| core.note_lease((lease, id), uri, lapse, core.clock.monotonic()));
        };
        let hydrator = Hydrator::new(
            HydratorConfig {
                layers: Arc::clone(&self.layers),
                layer: Arc::clone(layer),
                record,
                origin,
                opener,
                clock: Arc::clone(&self.clock),
                block_size: self.block_size,
                budget: Arc::clone(&self.budget),
                on_change: Box::new(on_change),
                look_above: Box::new(look_above),
                hold: Box::new(hold),
                on_lease: Arc::new(on_lease),
            },
            source,
        );
        self.hydrators.lock().insert(layer.id, Arc::clone(&hydrator));
        if self.fence.check().is_err() {
            // A close that has stopped those that were there waits for all.
            hydrator.stop();
        }
        Ok(hydrator)
    }

    /// Begins to fetch what nobody waits for. If no thread can be started, that is tried again in the background; meanwhile what is
    /// read is fetched.
    pub(super) fn start_hydration(self: &Arc<Self>, hydrator: &Arc<Hydrator>) {
        if !self.threads {
            return;
        }
        let (core, id) = (Arc::downgrade(self), hydrator.layer().id);
        // A failure shows at the next write; hydration is finished again at the next open.
        let finish = move || core.upgrade().is_none_or(|core| core.finish_hydration(id).unwrap_or(true));
        let _ = hydrator.start_backfill(finish);
    }

    /// Makes a complete root layer independent of its source, durably. `false` if blocks are still missing.
    ///
    /// # Errors
    /// The barrier failed.
    pub fn finish_hydration(&self, layer: LayerId) -> Result<bool> {
        let Some(hydrator) = self.hydrator(layer) else { return Ok(false) };
        let (volumes, ticket) = {
            // A fork that comes meanwhile may show blocks that nobody needed.
            let _roots = self.roots.lock();
            if !hydrator.is_complete() {
                return Ok(false);
            }
            // The blocks are durable before the record that says nobody needs the source. Backfill has seen to most of them.
            self.layers.barriers.sync([layer])?;
            let mut catalog = self.catalog();
            if catalog.layer(layer).is_none() {
                return Ok(false);
            }
            // Before the sources are closed, and with them their counters.
            self.hydrated.lock().insert(layer, hydrator.progress());
            let volumes = volumes_over(&catalog, layer);
            (volumes, self.change(&mut catalog, None, vec![ShapeRecord::Detach(layer)])?)
        };
        match self.layers.barriers.wait_shape(ticket) {
            // The blocks are durable. If a crash comes before the record is, the next opening finds nothing missing.
            Err(error) if error.kind() == ErrorKind::NotDurable => {}
            other => other?,
        }
        hydrator.finish();
        self.hydrators.lock().remove(&layer);
        // Every patch above can be merged now, those that were passed over as well.
        *self.next_patch.lock() = (LayerId(0), 0);
        self.tell(EventKind::Hydrated, || volumes, None);
        Ok(true)
    }

    fn tell(&self, kind: EventKind, volumes: impl FnOnce() -> Vec<String> + Send + 'static, error: Option<String>) {
        if let Some(events) = &self.events {
            events.note(Told { kind, volumes: Box::new(volumes), error }, self.threads);
        }
    }

    /// Tells that others could use files of the store, and how many, or that nobody knows.
    pub fn note_restricted(&self, files: std::io::Result<usize>) {
        let error = match files {
            Ok(0) => return,
            Ok(_) => None,
            Err(error) => Some(format!("their modes cannot be set: {error}")),
        };
        self.tell(EventKind::Restricted, Vec::new, error);
    }

    /// Without threads: tells what has happened. The callback may close the store, so the caller holds no pass.
    pub fn tell_events(&self) {
        if let (Some(events), false) = (&self.events, self.threads) {
            events.tell();
        }
    }

    /// Whether background work runs in threads.
    pub(super) fn has_threads(&self) -> bool {
        self.threads
    }

    /// Whether sources can be reached.
    pub fn can_hydrate(&self) -> bool {
        self.sources.is_some()
    }

    /// Set when blocks may have become invisible.
    pub fn reclaim_flag(&self) -> &crate::sync::atomic::AtomicBool {
        &self.reclaim
    }

    /// Without threads: one step of every hydrator. With threads: starts those that have none, for want of threads, or of space or
    /// descriptors at their end.
    ///
    /// # Errors
    /// The barrier at the end of a hydration failed.
    pub fn step_hydration(self: &Arc<Self>) -> Result<bool> {
        let mut busy = false;
        if self.threads && self.layers.healthy().is_ok() {
            for hydrator in self.hydrators().iter().filter(|hydrator| hydrator.is_asleep()) {
                // A root whose record is not queued yet has no block that a round may name.
                let is_known = self.catalog().layer(hydrator.layer().id).is_some();
                if is_known {
                    self.start_hydration(hydrator);
                }
            }
        }
        if !self.threads {
            for hydrator in self.hydrators() {
                busy |= hydrator.backfill_step();
                busy |= self.finish_hydration(hydrator.layer().id)?;
            }
        }
        Ok(busy)
    }

    /// Writes the state anew; changes of shape wait meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] leaves everything as it was.
    pub fn checkpoint(&self) -> Result<()> {
        let catalog = self.catalog();
        self.layers.checkpoints.write(catalog.records(), None, false)
    }

    /// Makes everything durable and verifiable, and refuses writes from then on. `swept`: no space is left to be looked for.
    ///
    /// # Errors
    /// An I/O error; what was flushed before is safe.
    pub fn shut_down(&self, swept: bool) -> Result<()> {
        // Nobody is connected to any more, and what happened until now is told.
        self.sources.iter().for_each(Connector::close);
        self.events.iter().for_each(Events::stop);
        // A trace is advice: the store closes without it.
        let _ = self.save_traces();
        // What was hidden or freed since the last look gives its space back before the end; a store that refuses writes keeps it.
        let _ = self.reclaim_step();
        let catalog = self.catalog();
        let result = self.layers.shut_down(catalog.records(), swept);
        for _ in 0..UNLINKED_AT_END {
            // What is left is swept at the next open.
            if !self.unlink_step().unwrap_or(false) {
                break;
            }
        }
        self.heads.lock().clear();
        result
    }

    /// Tells every hydrator which blocks nobody above its root can see.
    pub(super) fn tell_hidden(&self, hidden: impl Fn(LayerId) -> Option<RoaringBitmap>) {
        for hydrator in self.hydrators() {
            if let Some(hidden) = hidden(hydrator.layer().id) {
                hydrator.set_hidden(hidden);
            }
        }
    }
}

/// Names of the volumes that need the source of a root.
fn volumes_over(catalog: &Catalog, root: LayerId) -> Vec<String> {
    let over = catalog.volumes().filter(|(_, volume)| catalog.needed_root(volume.head) == Some(root));
    over.map(|(_, volume)| volume.name.clone()).collect()
}

/// The error for a volume that was destroyed while somebody had it open.
pub(super) fn gone(id: VolumeId) -> Error {
    Error::new(ErrorKind::NotFound, format!("volume {id} was destroyed"))
}

/// The error for a fork from elsewhere in a store that was opened without sources.
pub(super) fn no_sources() -> Error {
    Error::new(ErrorKind::Unsupported, "this store was opened without sources: set StoreOptions::sources to reach other hosts")
}
