//! Recording in which order a fork first touches the blocks it inherited, for later forks of the same snapshot.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use roaring::RoaringBitmap;

use super::core::Core;
use crate::catalog::{Catalog, VolumeEntry};
use crate::error::Result;
use crate::format::{TRACE_RUNS_MAX, Trace};
use crate::ids::{LayerId, VolumeId};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

/// Blocks of one touch: a touch is noted in units, so that a trace stays short.
const UNIT_BLOCKS: u32 = 16;
/// How long after the fork touches are noted.
const RECORDING_TIME: Duration = Duration::from_secs(600);

#[derive(Default)]
struct Touches {
    /// Units seen.
    seen: RoaringBitmap,
    trace: Trace,
    /// Differs from the file.
    changed: bool,
}

/// The recording of one fork, for the sealed layer it stands on.
pub struct Recorder {
    layer: LayerId,
    fork: VolumeId,
    until: Duration,
    active: AtomicBool,
    /// The layer's trace is the one that is recorded here.
    own: AtomicBool,
    touches: Mutex<Touches>,
}

impl Recorder {
    fn new(layer: LayerId, fork: VolumeId, until: Duration) -> Arc<Self> {
        Arc::new(Self { layer, fork, until, active: AtomicBool::new(true), own: AtomicBool::new(false), touches: Mutex::default() })
    }

    /// Notes a read of blocks.
    pub fn touch(&self, blocks: Range<u64>) {
        if !self.active.load(Ordering::Relaxed) || blocks.is_empty() {
            return;
        }
        let mut touches = self.touches.lock();
        let touches = &mut *touches;
        for unit in (blocks.start / u64::from(UNIT_BLOCKS)) as u32..=((blocks.end - 1) / u64::from(UNIT_BLOCKS)) as u32 {
            if !touches.seen.insert(unit) {
                continue;
            }
            touches.changed = true;
            let start = unit * UNIT_BLOCKS;
            let end = start.saturating_add(UNIT_BLOCKS);
            match touches.trace.runs.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => touches.trace.runs.push(start..end),
            }
        }
        if touches.trace.runs.len() >= TRACE_RUNS_MAX {
            self.active.store(false, Ordering::Relaxed);
        }
    }
}

impl Core {
    /// The recording of a fork, while it is under way.
    pub(super) fn recorder(&self, fork: VolumeId) -> Option<Arc<Recorder>> {
        self.recorders.lock().iter().find(|recorder| recorder.fork == fork).cloned()
    }

    /// Begins to record the touches of a fork that stands on `layer`, unless that was done before.
    pub(super) fn record_touches(&self, layer: LayerId, fork: VolumeId) -> Option<Arc<Recorder>> {
        let mut recorders = self.recorders.lock();
        if recorders.iter().any(|recorder| recorder.layer == layer) || self.layers.load_trace(layer).is_some() {
            return None;
        }
        let recorder = Recorder::new(layer, fork, self.clock.monotonic() + RECORDING_TIME);
        recorders.push(Arc::clone(&recorder));
        Some(recorder)
    }

    /// A fork that was made a moment ago, by a process that is gone, is recorded for the rest of the time.
    pub(super) fn record_young(&self, catalog: &Catalog, fork: VolumeId, entry: &VolumeEntry) -> Option<Arc<Recorder>> {
        let age = Duration::from_secs(self.unix_seconds().saturating_sub(entry.created_at));
        if entry.parent.is_empty() || entry.snapshots.iter().next().is_some() || age >= RECORDING_TIME {
            return None;
        }
        let base = catalog.layer(entry.head)?.parent?;
        let is_named = catalog.layer(base).is_some_and(|layer| layer.names > 0 || layer.source.is_some());
        is_named.then(|| self.record_touches(base, fork)).flatten()
    }

    /// What was recorded of the same snapshot at an earlier fork from elsewhere holds for a new root layer, too.
    pub(super) fn inherit_trace(&self, root: LayerId) {
        if self.layers.load_trace(root).is_some() {
            return;
        }
        let same: Vec<LayerId> = {
            let catalog = self.catalog();
            let origin = catalog.layer(root).map(|entry| entry.origin.clone()).unwrap_or_default();
            catalog.roots_of(&origin).map(|(layer, _)| layer).filter(|layer| *layer != root).collect()
        };
        // The latest recording is on its way to the file.
        let _ = if same.is_empty() { Ok(()) } else { self.save_traces() };
        if let Some(trace) = same.into_iter().filter_map(|layer| self.layers.load_trace(layer)).max_by_key(|trace| trace.runs.len()) {
            // Advice: without the file, later forks have to do without.
            let _ = self.layers.save_trace(root, &trace);
        }
    }

    /// Writes what was recorded since the last call, and ends recordings that are old or full.
    ///
    /// # Errors
    /// An I/O error: the recording is given up.
    pub fn save_traces(&self) -> Result<()> {
        let now = self.clock.monotonic();
        let recorders = self.recorders.lock().clone();
        for recorder in recorders {
            let old = now >= recorder.until || self.layers.get(recorder.layer).is_none();
            // A trace that came with the source meanwhile tells of a whole run; this one has only begun.
            let told = !recorder.own.load(Ordering::Relaxed) && self.layers.load_trace(recorder.layer).is_some();
            let over = old || told || !recorder.active.load(Ordering::Relaxed);
            let changed = {
                let mut touches = recorder.touches.lock();
                std::mem::take(&mut touches.changed).then(|| touches.trace.clone())
            };
            let saved = match changed {
                // The layer's files may be on their way out; what is written then is swept with them.
                Some(trace) if !told && self.layers.get(recorder.layer).is_some() => {
                    recorder.own.store(true, Ordering::Relaxed);
                    self.layers.save_trace(recorder.layer, &trace)
                }
                _ => Ok(()),
            };
            if over || saved.is_err() {
                recorder.active.store(false, Ordering::Relaxed);
                self.recorders.lock().retain(|other| !Arc::ptr_eq(other, &recorder));
            }
            saved?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_noted_once_in_the_order_of_their_first_touch() {
        let recorder = Recorder::new(LayerId(1), VolumeId(1), Duration::ZERO);
        for blocks in [100..101, 0..1, 16..40, 101..102, 5..6, 40..41] {
            recorder.touch(blocks);
        }
        assert_eq!(recorder.touches.lock().trace.runs, [96..112, 0..48]);
    }

    #[test]
    fn a_recording_is_bounded() {
        let recorder = Recorder::new(LayerId(1), VolumeId(1), Duration::ZERO);
        for block in 0..3 * TRACE_RUNS_MAX as u64 {
            recorder.touch(block * 32..block * 32 + 1);
        }
        assert_eq!(recorder.touches.lock().trace.runs.len(), TRACE_RUNS_MAX);
    }
}
