//! The root layers that need a source: their hydrators, from the first fetch until the source is not needed any more.

use std::sync::{Arc, Weak};

use super::reclaim::Reclaim;
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{ShapeRecord, SourceRecord};
use crate::hydrate::{Budget, Crew, Hydrator, HydratorConfig, HydratorStatus};
use crate::ids::{LayerId, LeaseId};
use crate::layer::{Layer, Layers};
use crate::source::{Connector, Source};
use crate::volume::blocks::Blocks;
use crate::volume::event::{EventKind, Events, Told};
use crate::volume::fence::Fence;
use crate::volume::state::{Hydrations, Lessees, Shape};

/// Looks at a root that is complete but not durable, after which the end of its hydration is left to the next step.
const LOOKS_MAX: u32 = 8;

/// Makes, starts and ends the hydrators of a store.
pub struct Roots {
    pub layers: Arc<Layers>,
    pub shape: Arc<Shape>,
    pub blocks: Arc<Blocks>,
    pub hydrations: Arc<Hydrations>,
    pub reclaim: Arc<Reclaim>,
    pub lessees: Arc<Lessees>,
    pub events: Arc<Events>,
    pub fence: Arc<Fence>,
    pub sources: Option<Arc<Connector>>,
    /// Runs the hydrations.
    pub crew: Arc<Crew>,
    pub budget: Arc<Budget>,
    pub clock: Arc<dyn Clock>,
    /// Backfill runs in threads; otherwise [`Roots::step`] does it.
    pub threads: bool,
}

/// Names of the volumes that need the source of a root.
fn volumes_over(catalog: &Catalog, root: LayerId) -> Vec<String> {
    let over = catalog.volumes().filter(|(_, volume)| catalog.needed_root(volume.head) == Some(root));
    over.map(|(_, volume)| volume.name.clone()).collect()
}

/// The error for a fork from elsewhere in a store that was opened without sources.
pub fn no_sources() -> Error {
    Error::new(ErrorKind::Unsupported, "this store was opened without sources: set StoreOptions::sources to reach other hosts")
}

impl Roots {
    /// Makes the hydrator of a recovered root layer and starts it.
    ///
    /// # Errors
    /// There is no way to reach sources.
    pub fn resume(self: &Arc<Self>, layer: &Arc<Layer>, record: SourceRecord) -> Result<()> {
        let origin = self.shape.catalog().layer(layer.id).map(|entry| entry.origin.clone()).unwrap_or_default();
        let hydrator = self.add(layer, record, origin, None)?;
        self.start(&hydrator);
        Ok(())
    }

    /// Makes the hydrator of a root layer, so that what is missing can be read. `origin` is the identity of the bytes, or empty.
    ///
    /// # Errors
    /// There is no way to reach sources.
    pub fn add(
        self: &Arc<Self>,
        layer: &Arc<Layer>,
        record: SourceRecord,
        origin: String,
        source: Option<Arc<dyn Source>>,
    ) -> Result<Arc<Hydrator>> {
        let opener = self.sources.as_ref().ok_or_else(no_sources)?.opener();
        let id = layer.id;
        let this = Arc::downgrade(self);
        let on_change =
            move |status, error: Option<String>| this.upgrade().into_iter().for_each(|this| this.tell_status(id, status, error.clone()));
        let this = Arc::downgrade(&self.reclaim);
        let look_above = move |hydrator: &Hydrator| this.upgrade().into_iter().for_each(|reclaim| reclaim.look_above(hydrator));
        let (this, identity) = (Arc::downgrade(&self.lessees), origin.clone());
        let hold = move |uri: &str| this.upgrade()?.hold(id, &identity, uri);
        let (this, clock) = (Arc::downgrade(&self.lessees), Arc::clone(&self.clock));
        let on_lease = move |uri: &str, lease: LeaseId, lapse| {
            this.upgrade().into_iter().for_each(|lessees| lessees.note_lease((lease, id), uri, lapse, (clock.monotonic(), clock.unix())));
        };
        let hydrator = Hydrator::new(
            HydratorConfig {
                layers: Arc::clone(&self.layers),
                layer: Arc::clone(layer),
                record,
                origin,
                opener,
                clock: Arc::clone(&self.clock),
                block_size: self.blocks.block_size,
                budget: Arc::clone(&self.budget),
                on_change: Box::new(on_change),
                look_above: Box::new(look_above),
                hold: Box::new(hold),
                on_lease: Arc::new(on_lease),
            },
            source,
        );
        self.hydrations.add(&hydrator);
        if self.fence.check().is_err() {
            // A close that has stopped the hydrators that were there waits for all.
            hydrator.stop();
        }
        Ok(hydrator)
    }

    /// Tells an event. This may be the thread of a reader that holds what the holder of the catalogue waits for, so the names of the
    /// volumes are looked up when the event is told.
    fn tell_status(self: &Arc<Self>, root: LayerId, status: HydratorStatus, error: Option<String>) {
        let kind = match status {
            HydratorStatus::Degraded => EventKind::Degraded,
            HydratorStatus::NoSpace => EventKind::NoSpace,
            HydratorStatus::Running | HydratorStatus::Paused | HydratorStatus::Complete => EventKind::Recovered,
        };
        let shape = Arc::downgrade(&self.shape);
        let volumes = move || Weak::upgrade(&shape).map_or_else(Vec::new, |shape| volumes_over(&shape.catalog(), root));
        self.events.note(Told { kind, volumes: Box::new(volumes), error });
    }

    /// Starts backfill. If no thread can be started, [`Roots::step`] tries again; meanwhile blocks that are read are fetched.
    pub fn start(self: &Arc<Self>, hydrator: &Arc<Hydrator>) {
        if !self.threads {
            return;
        }
        let (this, id) = (Arc::downgrade(self), hydrator.layer().id);
        // A failure shows at the next write; hydration is finished again at the next open.
        let finish = move || this.upgrade().is_none_or(|this| this.finish(id).unwrap_or(true));
        let _ = hydrator.start_backfill(&self.crew, finish);
    }

    /// Makes a complete root layer independent of its source, durably. `false` if blocks are still missing.
    ///
    /// 1. The blocks are made durable, without any lock. Otherwise a crash could keep the record that detaches the root and lose a block
    ///    that only the source had.
    /// 2. With the roots held, the root is looked at again: a fork that joined meanwhile may show blocks that nothing needed before, and
    ///    blocks that came since step 1 may not be durable. If so, the walk begins again.
    /// 3. With the catalogue locked, the record is queued. A fork that comes later finds a root without a hydrator and attaches it anew.
    /// 4. The record is waited for, without any lock. If a crash comes before it is durable, the next opening finds nothing missing.
    /// 5. Only then the sources are closed: until the record is queued, a reader may still demand a block.
    ///
    /// # Errors
    /// The barrier failed.
    pub fn finish(&self, root: LayerId) -> Result<bool> {
        let Some(hydrator) = self.hydrations.get(root) else { return Ok(false) };
        let mut looks = 0..LOOKS_MAX;
        let (volumes, ticket) = loop {
            if !hydrator.is_complete() || looks.next().is_none() {
                return Ok(false);
            }
            self.layers.barriers.sync([root])?;
            // Asks the sources, so it comes before the locks.
            let progress = hydrator.progress();
            let _roots = self.reclaim.hold_roots();
            if !hydrator.is_complete() || hydrator.layer().needs_sync() {
                continue;
            }
            let mut catalog = self.shape.catalog();
            if catalog.layer(root).is_none() {
                return Ok(false);
            }
            self.hydrations.keep_progress(root, progress);
            let volumes = volumes_over(&catalog, root);
            break (volumes, self.shape.change(&mut catalog, None, vec![ShapeRecord::Detach(root)])?);
        };
        match self.layers.barriers.wait_shape(ticket) {
            Err(error) if error.kind() == ErrorKind::NotDurable => {}
            other => other?,
        }
        hydrator.finish();
        self.hydrations.remove(root);
        // Every patch above can be merged now, also one that was passed over.
        *self.blocks.next_patch.lock() = (LayerId(0), 0);
        self.events.note(Told { kind: EventKind::Hydrated, volumes: Box::new(move || volumes), error: None });
        Ok(true)
    }

    /// Without threads: one step of every hydrator. With threads: starts the hydrators that have no thread, for want of threads, or of
    /// space or descriptors at their end.
    ///
    /// # Errors
    /// The barrier at the end of a hydration failed.
    pub fn step(self: &Arc<Self>) -> Result<bool> {
        if self.threads {
            if self.layers.healthy().is_ok() {
                for hydrator in self.hydrations.all().iter().filter(|hydrator| hydrator.is_asleep()) {
                    // A root whose record is not queued yet has no block that a round may name.
                    let is_known = self.shape.catalog().layer(hydrator.layer().id).is_some();
                    if is_known {
                        self.start(hydrator);
                    }
                }
            }
            return Ok(false);
        }
        let mut busy = false;
        for hydrator in self.hydrations.all() {
            busy |= hydrator.backfill_step();
            busy |= self.finish(hydrator.layer().id)?;
        }
        Ok(busy)
    }

    /// Fails every read that waits for a source now. Later reads ask again.
    pub fn give_up_waiting(&self) {
        self.sources.iter().for_each(|sources| sources.give_up());
        self.hydrations.all().iter().for_each(|hydrator| hydrator.give_up_waiting());
    }
}
