//! Background work: giving back space, ending and renewing leases, merging patches with fetched blocks, hashing extents after a crash,
//! clearing dirty marks, checkpoints, and sweeping files without an owner.
//!
//! Each step is bounded and can be repeated after a crash.

use std::sync::Arc;
use std::time::Duration;

use super::health::Watch;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::StorePaths;
use crate::io::{Disk, DiskSpace};
use crate::layer::Layer;
use crate::sync::thread::{JoinHandle, current};
use crate::sync::{Condvar, Mutex, Rank};
use crate::volume::Core;

/// How often an idle thread looks for work.
const IDLE_INTERVAL: Duration = Duration::from_millis(200);
/// How often dirty marks of idle extents are cleared, and hidden blocks are looked for.
const CLEAN_INTERVAL: Duration = Duration::from_secs(5);

/// Shortest time between two checkpoints.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Default)]
struct State {
    stopping: bool,
    cleaned_at: Duration,
    checkpoint_at: Duration,
    /// Earliest next sweep, after one that failed.
    sweep_at: Duration,
    /// Space of the file system at the last look.
    space: Option<DiskSpace>,
    /// Layers whose files may hold allocated space of blocks that are not present.
    unswept: Vec<Arc<Layer>>,
    orphans: bool,
    thread: Option<JoinHandle<()>>,
}

/// Background work of a store.
pub struct Background {
    core: Arc<Core>,
    paths: StorePaths,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
    watch: Arc<Watch>,
}

struct Shared {
    state: Mutex<State>,
    woken: Condvar,
}

impl Background {
    pub fn new(core: Arc<Core>, paths: StorePaths, disk: Arc<dyn Disk>, clock: Arc<dyn Clock>) -> Self {
        let shared = Arc::new(Shared { state: Mutex::ranked(Rank::Background, State::default()), woken: Condvar::new() });
        shared.state.lock().cleaned_at = clock.monotonic();
        Self { core, paths, disk, clock, shared, watch: Arc::default() }
    }

    /// Schedules the sweep of files that belong to no layer and, after a crash (`unclean`), of allocated space of blocks that are not
    /// present.
    pub fn note_opened(&self, unclean: bool) {
        let mut state = self.shared.state.lock();
        state.orphans = true;
        if unclean {
            state.unswept = self.core.layers.all();
        }
    }

    pub(super) fn core(&self) -> &Core {
        &self.core
    }

    pub(super) fn watch(&self) -> &Watch {
        &self.watch
    }

    pub(super) fn disk_space(&self) -> std::io::Result<DiskSpace> {
        self.disk.space(self.paths.root())
    }

    /// Whether the sweep for space that a crash left allocated has ended.
    pub fn is_swept(&self) -> bool {
        self.shared.state.lock().unswept.is_empty()
    }

    pub fn start(&self) -> Result<()> {
        let worker = Self {
            core: Arc::clone(&self.core),
            paths: self.paths.clone(),
            disk: Arc::clone(&self.disk),
            clock: Arc::clone(&self.clock),
            shared: Arc::clone(&self.shared),
            watch: Arc::clone(&self.watch),
        };
        let thread = crate::sync::thread::Builder::new().name("volfork-background".into()).spawn(move || worker.run());
        self.shared.state.lock().thread = Some(thread.map_err(|error| Error::io("cannot start the background thread", error))?);
        Ok(())
    }

    fn run(&self) {
        let _own = self.core.pool.fence.adopt_thread();
        loop {
            // No step loses data by failing: the step is repeated, or the store refuses the next write with the error.
            let busy = self.step().unwrap_or(false);
            let mut state = self.shared.state.lock();
            if state.stopping {
                return;
            }
            if !busy {
                self.shared.woken.wait_for(&mut state, IDLE_INTERVAL);
            }
            if state.stopping {
                return;
            }
        }
    }

    pub fn stop(&self) {
        let thread = {
            let mut state = self.shared.state.lock();
            state.stopping = true;
            state.thread.take()
        };
        self.shared.woken.notify_all();
        // A callback on this very thread may close the store: then it is not joined. It sees `stopping` when the callback returns.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != current().id()) {
            // A panic in the thread was printed there.
            let _ = thread.join();
        }
    }

    /// Does one bounded piece of work, and returns whether there was any. A piece that fails does not stop the others: its error is
    /// returned once there is nothing else to do.
    pub fn step(&self) -> Result<bool> {
        let (core, layers) = (&self.core, &self.core.layers);
        if layers.healthy().is_err_and(|error| error.kind() == ErrorKind::ReadOnly) {
            return Ok(false);
        }
        let works: [&dyn Fn() -> Result<bool>; 10] = [
            &|| core.shape.unlink_step(),
            &|| layers.punch.step(),
            &|| self.checkpoint_step(),
            &|| self.sweep_step(),
            &|| core.blocks.merge_step(),
            &|| core.reclaim.reclaim_step(),
            &|| self.rehash_step(),
            // An instant that cannot be destroyed now is tried again later.
            &|| Ok(core.lending.sweep_instants().unwrap_or(false)),
            &|| self.clean_step().map(|()| false),
            &|| {
                let leased = core.borrowing.step();
                Ok(core.roots.step()? | leased?)
            },
        ];
        let mut failed = None;
        for work in works {
            match work() {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let outcome = failed.map_or(Ok(false), Err);
        self.watch.note(&outcome);
        let space = self.shared.state.lock().space;
        self.watch.tell(core, space);
        outcome
    }

    fn checkpoint_step(&self) -> Result<bool> {
        let now = self.clock.monotonic();
        let due_at = self.shared.state.lock().checkpoint_at;
        if now < due_at || !self.core.layers.checkpoints.is_due() {
            return Ok(false);
        }
        match self.core.shape.checkpoint() {
            Err(error) if !error.is_shortage() => Err(error),
            Ok(()) if !self.core.layers.checkpoints.is_due() => Ok(true),
            outcome => {
                // The checkpoint failed and the old journal goes on. It is tried again, when there may be room.
                self.shared.state.lock().checkpoint_at = now + CHECKPOINT_INTERVAL;
                Ok(outcome.is_ok())
            }
        }
    }

    fn sweep_step(&self) -> Result<bool> {
        let now = self.clock.monotonic();
        let (orphans, layer) = {
            let state = self.shared.state.lock();
            if now < state.sweep_at {
                return Ok(false);
            }
            (state.orphans, state.unswept.last().cloned())
        };
        let orphaned = if orphans { self.sweep_orphans() } else { Ok(()) };
        let looked = layer.is_some();
        let swept = layer.as_ref().map_or(Ok(()), |layer| self.core.layers.punch.find_garbage(layer));
        let mut state = self.shared.state.lock();
        state.orphans &= orphaned.is_err();
        if let (Some(layer), true) = (layer, swept.is_ok()) {
            // In a store without threads another caller of `step` may have taken the last layer meanwhile.
            state.unswept.retain(|other| other.id != layer.id);
        }
        let outcome = orphaned.and(swept);
        if outcome.is_err() {
            state.sweep_at = now + CLEAN_INTERVAL;
        }
        outcome.map(|()| orphans || looked)
    }

    /// Removes files that nothing refers to: layers freed before a crash, journals that were replaced.
    fn sweep_orphans(&self) -> Result<()> {
        let list =
            |path: &std::path::Path| self.disk.list(path).map_err(|error| Error::io(format!("cannot list {}", path.display()), error));
        let directory = self.paths.layers();
        for name in list(&directory)? {
            let Some((layer, _)) = StorePaths::parse_layer(&name) else { continue };
            if self.core.shape.is_unknown(layer) {
                self.remove(&directory.join(&name))?;
            }
        }
        let current = self.core.layers.journal_number();
        for name in list(self.paths.root())? {
            if StorePaths::journal_number(&name).is_some_and(|number| number < current) {
                self.remove(&self.paths.root().join(&name))?;
            }
        }
        Ok(())
    }

    fn remove(&self, path: &std::path::Path) -> Result<()> {
        match self.disk.remove(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("cannot remove {}", path.display()), error))
            }
            _ => Ok(()),
        }
    }

    fn rehash_step(&self) -> Result<bool> {
        for layer in self.core.layers.unverified() {
            if self.core.layers.cleaning.rehash_step(&layer)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn clean_step(&self) -> Result<()> {
        let now = self.clock.monotonic();
        {
            let mut state = self.shared.state.lock();
            if now.saturating_sub(state.cleaned_at) < CLEAN_INTERVAL {
                return Ok(());
            }
            state.cleaned_at = now;
        }
        let space = self.disk_space().ok();
        self.shared.state.lock().space = space;
        self.core.layers.punch_again();
        // A layer whose marks cannot be cleared now must not stop the others, or the work below.
        let mut cleaned = Ok(());
        for layer in self.core.layers.marked() {
            cleaned = cleaned.and(self.core.layers.cleaning.clean(&layer).map(drop));
        }
        self.core.shape.note_hiding();
        // A lease that cannot end now is tried again later.
        let _ = self.core.lending.lapse_leases();
        // A trace only orders later fetches: one that cannot be written is dropped.
        let _ = self.core.recordings.save();
        // A round makes queued records durable although no caller flushes, and superseded patches give back their room.
        let superseded: Vec<_> = self.core.layers.superseded().into_iter().map(|layer| layer.id).collect();
        let synced =
            if superseded.is_empty() { self.core.layers.barriers.sync_if_queued() } else { self.core.layers.barriers.sync(superseded) };
        synced.and(cleaned)
    }
}
