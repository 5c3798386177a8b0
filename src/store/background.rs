//! Work that no call waits for: giving back space, ending and renewing leases, merging patches with what has come from a source, hashing
//! after a crash, clearing marks, checkpoints, sweeping.
//!
//! Each step is bounded, and every one can be done again after a crash.

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

/// How often the thread looks for work when it had none.
const IDLE_INTERVAL: Duration = Duration::from_millis(200);
/// How often marks of extents at rest are cleared, and hidden blocks looked for.
const CLEAN_INTERVAL: Duration = Duration::from_secs(5);

/// Time between checkpoints at least.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Default)]
struct State {
    stopping: bool,
    cleaned_at: Duration,
    checkpoint_at: Duration,
    /// When it is swept again after that could not be done.
    sweep_at: Duration,
    /// Space of the file system at the last look.
    space: Option<DiskSpace>,
    /// Layers whose files may have allocated blocks that are not present.
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

    /// Files of layers that no longer exist are swept; after a crash, space that nobody holds is looked for.
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

    /// Whether space that a crash left has been looked for everywhere.
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
            // An error shows at the next write, which the store then refuses, or is tried again: no step loses anything.
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
        // A callback on the thread itself may close the store; the thread looks at `stopping` when that is done.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != current().id()) {
            // A panic in the thread was printed there; nothing here depends on how it ended.
            let _ = thread.join();
        }
    }

    /// One bounded piece of work. What cannot be done does not keep the rest from being done: its error is answered when there was nothing
    /// else to do.
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
            // One that cannot go now goes later.
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
                // The old journal goes on, or not all pages could be written; tried again when there may be room.
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
            // Another caller of a store without threads may have taken the last one meanwhile.
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
        // A layer whose marks cannot be cleared now does not keep the others, or what follows, from being done.
        let mut cleaned = Ok(());
        for layer in self.core.layers.marked() {
            cleaned = cleaned.and(self.core.layers.cleaning.clean(&layer).map(drop));
        }
        self.core.shape.note_hiding();
        // Those that cannot end now end later.
        let _ = self.core.lending.lapse_leases();
        // A trace is advice: what cannot be written is given up.
        let _ = self.core.recordings.save();
        // What was queued becomes durable although nobody flushes, and patches that nobody needs give back their room.
        let superseded: Vec<_> = self.core.layers.superseded().into_iter().map(|layer| layer.id).collect();
        let synced =
            if superseded.is_empty() { self.core.layers.barriers.sync_if_queued() } else { self.core.layers.barriers.sync(superseded) };
        synced.and(cleaned)
    }
}
