//! The assembler: makes the parts that the volumes of a store share, and puts them together.
//!
//! Each part owns its locks and knows the parts below it; none knows `Core`.

use std::sync::Arc;
use std::time::Duration;

use super::blocks::Blocks;
use super::event::{EventKind, Events, OnEvent, Told};
use super::fence::{Fence, Pass};
use super::foreground::Foreground;
use super::hydration::{Reclaim, Recordings, Roots};
use super::lease::Borrowing;
#[cfg(feature = "serve")]
use super::limiter::Limiters;
use super::pool::Pool;
use super::report::{Report, Viewers};
use super::shape::{Heads, Lending, Remote, Volumes};
use super::state::{Hydrations, Leases, Lessees, Shape};
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::error::Result;
use crate::hydrate::{Budget, Crew};
use crate::ids::LayerId;
use crate::io::RingKind;
use crate::layer::Layers;
use crate::place::BlockSize;
use crate::source::{Connector, SourceOpener, await_closed};
use crate::sync::{Mutex, Rank, RwLock};

/// Freed layers whose files a store that is being closed removes.
const UNLINKED_AT_END: usize = 4096;

/// Components and settings that the volumes of a store share.
pub struct CoreConfig {
    pub layers: Arc<Layers>,
    /// The shape as recovery found it.
    pub catalog: Catalog,
    /// Fixed when the store is created.
    pub block_size: BlockSize,
    /// Identity of the store, in hexadecimal digits.
    pub store_id: String,
    /// Which kind of queue to make; `None` is the best one the machine allows.
    pub ring: Option<RingKind>,
    /// Opens addresses of forks; `None`: the store has no sources.
    pub sources: Option<Arc<dyn SourceOpener>>,
    pub clock: Arc<dyn Clock>,
    /// Background work runs in threads; otherwise the caller steps it.
    pub threads: bool,
    /// The embedder's callback for events of the background, if it has one.
    pub on_event: Option<OnEvent>,
    /// A lease of a fork of another host lapses when it was not renewed for this long.
    pub lease: Duration,
}

/// The parts that the volumes of a store share.
pub struct Core {
    pub pool: Arc<Pool>,
    pub layers: Arc<Layers>,
    pub shape: Arc<Shape>,
    pub hydrations: Arc<Hydrations>,
    pub blocks: Arc<Blocks>,
    pub recordings: Arc<Recordings>,
    pub reclaim: Arc<Reclaim>,
    pub roots: Arc<Roots>,
    pub borrowing: Arc<Borrowing>,
    pub volumes: Arc<Volumes>,
    pub remote: Remote,
    pub lending: Lending,
    pub report: Report,
    events: Arc<Events>,
    sources: Option<Arc<Connector>>,
    threads: bool,
}

/// The parts on which the others stand.
struct Ground {
    pool: Arc<Pool>,
    layers: Arc<Layers>,
    shape: Arc<Shape>,
    hydrations: Arc<Hydrations>,
    lessees: Arc<Lessees>,
    blocks: Arc<Blocks>,
    events: Arc<Events>,
    sources: Option<Arc<Connector>>,
    crew: Arc<Crew>,
    budget: Arc<Budget>,
    clock: Arc<dyn Clock>,
    threads: bool,
}

impl Ground {
    fn new(config: CoreConfig, opened_at: Duration) -> Self {
        let CoreConfig { layers, catalog, block_size, clock, threads, .. } = config;
        let crew = Crew::new(&config.store_id);
        let (fence, budget) = (Arc::<Fence>::default(), Arc::<Budget>::default());
        let lessees = Arc::new(Lessees::new(config.sources.clone(), &catalog, opened_at));
        let sources = config.sources.map(|opener| Arc::new(Connector::new(opener)));
        let events = Events::new(config.on_event, Arc::clone(&fence), threads);
        let pool = Arc::new(Pool::new(fence, config.ring));
        let hydrations = Arc::<Hydrations>::default();
        let shape = Arc::new(Shape::new(catalog, Arc::clone(&layers), Arc::clone(&hydrations), Arc::clone(&lessees)));
        let blocks = Arc::new(Blocks {
            layers: Arc::clone(&layers),
            block_size,
            shape: Arc::clone(&shape),
            hydrations: Arc::clone(&hydrations),
            foreground: Foreground::new(Arc::clone(&budget), Arc::clone(&clock)),
            has_sources: sources.is_some(),
            forgetting: RwLock::ranked(Rank::Forgetting, ()),
            next_patch: Mutex::ranked(Rank::NextPatch, (LayerId(0), 0)),
        });
        Self { pool, layers, shape, hydrations, lessees, blocks, events, sources, crew, budget, clock, threads }
    }

    fn recordings(&self) -> Arc<Recordings> {
        Arc::new(Recordings {
            layers: Arc::clone(&self.layers),
            shape: Arc::clone(&self.shape),
            hydrations: Arc::clone(&self.hydrations),
            block_size: self.blocks.block_size,
            clock: Arc::clone(&self.clock),
            recorders: Mutex::ranked(Rank::Recorders, Vec::new()),
        })
    }

    fn reclaim(&self) -> Arc<Reclaim> {
        Arc::new(Reclaim {
            layers: Arc::clone(&self.layers),
            shape: Arc::clone(&self.shape),
            blocks: Arc::clone(&self.blocks),
            hydrations: Arc::clone(&self.hydrations),
            roots: Mutex::ranked(Rank::Roots, ()),
        })
    }

    fn roots(&self, reclaim: &Arc<Reclaim>) -> Arc<Roots> {
        Arc::new(Roots {
            layers: Arc::clone(&self.layers),
            shape: Arc::clone(&self.shape),
            blocks: Arc::clone(&self.blocks),
            hydrations: Arc::clone(&self.hydrations),
            reclaim: Arc::clone(reclaim),
            lessees: Arc::clone(&self.lessees),
            events: Arc::clone(&self.events),
            fence: Arc::clone(&self.pool.fence),
            sources: self.sources.clone(),
            crew: Arc::clone(&self.crew),
            budget: Arc::clone(&self.budget),
            clock: Arc::clone(&self.clock),
            threads: self.threads,
        })
    }

    fn borrowing(&self) -> Arc<Borrowing> {
        Arc::new(Borrowing {
            layers: Arc::clone(&self.layers),
            shape: Arc::clone(&self.shape),
            lessees: Arc::clone(&self.lessees),
            fence: Arc::clone(&self.pool.fence),
            clock: Arc::clone(&self.clock),
            threads: self.threads,
        })
    }

    fn volumes(&self, recordings: &Arc<Recordings>, leases: Leases) -> Arc<Volumes> {
        Arc::new(Volumes {
            layers: Arc::clone(&self.layers),
            shape: Arc::clone(&self.shape),
            blocks: Arc::clone(&self.blocks),
            pool: Arc::clone(&self.pool),
            leases: Arc::new(leases),
            recordings: Arc::clone(recordings),
            heads: Heads::default(),
            #[cfg(feature = "serve")]
            limiters: Limiters::default(),
            clock: Arc::clone(&self.clock),
        })
    }

    fn report(&self, store_id: String) -> Report {
        Report {
            layers: Arc::clone(&self.layers),
            shape: Arc::clone(&self.shape),
            hydrations: Arc::clone(&self.hydrations),
            block_size: self.blocks.block_size,
            store_id,
        }
    }
}

impl Core {
    /// Starts with a recovered shape.
    pub fn new(config: CoreConfig) -> Arc<Self> {
        let (opened_at, store_id, lease) = (config.clock.monotonic(), config.store_id.clone(), config.lease);
        let ground = Ground::new(config, opened_at);
        let (recordings, reclaim, borrowing) = (ground.recordings(), ground.reclaim(), ground.borrowing());
        let roots = ground.roots(&reclaim);
        let volumes = ground.volumes(&recordings, Leases::new(lease, opened_at));
        let remote = Remote {
            volumes: Arc::clone(&volumes),
            roots: Arc::clone(&roots),
            borrowing: Arc::clone(&borrowing),
            sources: ground.sources.clone(),
        };
        let lending = Lending { volumes: Arc::clone(&volumes), store_id: store_id.clone() };
        let report = ground.report(store_id);
        let Ground { pool, layers, shape, hydrations, blocks, events, sources, threads, .. } = ground;
        Arc::new(Self {
            pool,
            layers,
            shape,
            hydrations,
            blocks,
            recordings,
            reclaim,
            roots,
            borrowing,
            volumes,
            remote,
            lending,
            report,
            events,
            sources,
            threads,
        })
    }

    /// Lets a public call in, until it ends.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Closed`].
    pub fn enter(&self) -> Result<Pass<&Fence>> {
        self.pool.fence.enter()
    }

    /// Begins to record what a volume touches of what it stands on.
    ///
    /// # Errors
    /// As [`Recordings::trace`].
    pub fn record_trace(&self, volume: &str) -> Result<()> {
        let head = self.volumes.open(volume)?;
        self.recordings.restart(volume, head.id, &head.recorder)
    }

    /// The volumes and snapshots that stand on a layer now.
    pub fn viewers(&self, layer: LayerId) -> Viewers {
        Viewers::above(&self.layers, &self.shape.catalog(), self.blocks.block_size, layer)
    }

    /// Tells of a change of the store's health.
    pub fn tell_health(&self, kind: EventKind, error: Option<String>) {
        self.events.note(Told { kind, volumes: Box::new(Vec::new), error });
    }

    /// Tells that others could use files of the store, and how many, or that their number is not known.
    pub fn note_restricted(&self, files: std::io::Result<usize>) {
        let error = match files {
            Ok(0) => return,
            Ok(_) => None,
            Err(error) => Some(format!("their modes cannot be set: {error}")),
        };
        self.events.note(Told { kind: EventKind::Restricted, volumes: Box::new(Vec::new), error });
    }

    /// Without threads: tells what has happened. The callback may close the store, so the caller holds no pass.
    pub fn tell_events(&self) {
        if !self.threads {
            self.events.tell();
        }
    }

    /// Makes everything durable and verifiable, and refuses writes from then on. `swept`: no space is left to be looked for.
    ///
    /// # Errors
    /// An I/O error; what was flushed before is safe.
    pub fn shut_down(&self, swept: bool) -> Result<()> {
        self.roots.crew.close();
        // No connection is open any more, and what happened until now is told.
        self.sources.iter().for_each(|sources| sources.close());
        if self.sources.is_some() {
            await_closed();
        }
        self.events.stop();
        // A trace is advice: the store closes without it.
        let _ = self.recordings.save();
        // What was hidden or freed since the last look gives its space back before the end; a store that refuses writes keeps it.
        let _ = self.reclaim.reclaim_step();
        let result = self.shape.shut_down(swept);
        for _ in 0..UNLINKED_AT_END {
            // What is left is swept at the next open.
            if !self.shape.unlink_step().unwrap_or(false) {
                break;
            }
        }
        self.volumes.heads.clear();
        result
    }
}
