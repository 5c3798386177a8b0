//! Recording in which order a fork first touches the blocks it inherited, for later forks of the same snapshot.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use roaring::RoaringBitmap;

use super::core::Core;
use crate::catalog::{Catalog, VolumeEntry};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{TRACE_RUNS_MAX, Trace};
use crate::ids::{LayerId, VolumeId};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

/// Blocks of one touch: a touch is noted in units, so that a trace stays short.
const UNIT_BLOCKS: u32 = 16;
/// How long after the fork touches are noted.
const RECORDING_TIME: Duration = Duration::from_secs(600);

/// Forks that are recorded at once, at most.
const RECORDERS_MAX: usize = 64;

#[derive(Default)]
struct Touches {
    /// The sealed layer that the fork stands on.
    layer: LayerId,
    until: Duration,
    /// Units seen.
    seen: RoaringBitmap,
    trace: Trace,
    /// Has something that the file has not.
    changed: bool,
}

/// The recording of one fork, for the sealed layer it stands on. What others have recorded of that layer stays before it.
pub struct Recorder {
    fork: VolumeId,
    active: AtomicBool,
    touches: Mutex<Touches>,
}

/// What is known of the order in which forks first touch a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TraceInfo {
    /// Runs of bytes, in that order.
    pub runs: Vec<Range<u64>>,
    /// A fork is being recorded.
    pub recording: bool,
}

impl Recorder {
    fn new(layer: LayerId, fork: VolumeId, until: Duration) -> Arc<Self> {
        let touches = Mutex::new(Touches { layer, until, ..Touches::default() });
        Arc::new(Self { fork, active: AtomicBool::new(true), touches })
    }

    fn layer(&self) -> LayerId {
        self.touches.lock().layer
    }

    /// Whether it records touches of a layer now.
    fn is_of(&self, layer: LayerId) -> bool {
        self.active.load(Ordering::Relaxed) && self.layer() == layer
    }

    /// Nothing more comes: the next look at the recordings saves and ends it.
    pub fn end(&self) {
        self.active.store(false, Ordering::Relaxed);
    }

    /// Begins anew.
    fn restart(&self, layer: LayerId, until: Duration) {
        *self.touches.lock() = Touches { layer, until, ..Touches::default() };
        self.active.store(true, Ordering::Relaxed);
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

    /// Begins to record the touches of a fork that stands on `layer`, unless another one is recorded.
    pub(super) fn record_touches(&self, layer: LayerId, fork: VolumeId) -> Option<Arc<Recorder>> {
        let mut recorders = self.recorders.lock();
        if recorders.len() >= RECORDERS_MAX || recorders.iter().any(|recorder| recorder.is_of(layer)) {
            return None;
        }
        let recorder = Recorder::new(layer, fork, self.clock.monotonic() + RECORDING_TIME);
        recorders.push(Arc::clone(&recorder));
        Some(recorder)
    }

    /// The layer whose trace is meant: that of a snapshot, or the one on which a volume stands.
    fn traced_layer(&self, volume: &str, snapshot: Option<&str>) -> Result<LayerId> {
        let catalog = self.catalog();
        if let Some(snapshot) = snapshot {
            return Ok(catalog.snapshot(volume, snapshot)?.1.layer);
        }
        let id = self.volume_id(&catalog, volume)?;
        let parent = catalog.volume(id).and_then(|entry| catalog.layer(entry.head)?.parent);
        parent.ok_or_else(|| {
            let message = format!("volume '{volume}' is no fork and has no snapshot, so it has no trace: name a fork, or NAME@SNAP");
            Error::new(ErrorKind::InvalidInput, message)
        })
    }

    /// In which order forks first touched a snapshot, or what a volume stands on.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::InvalidInput`].
    pub fn trace(&self, volume: &str, snapshot: Option<&str>) -> Result<TraceInfo> {
        let layer = self.traced_layer(volume, snapshot)?;
        // The latest recording is on its way to the file; one that cannot be written is shown as far as it was.
        let _ = self.save_traces();
        let recording = self.recorders.lock().iter().any(|recorder| recorder.is_of(layer));
        let bytes = |run: &Range<u32>| self.block_size.offset_of(u64::from(run.start))..self.block_size.offset_of(u64::from(run.end));
        let trace = self.layers.load_trace(layer).unwrap_or_default();
        Ok(TraceInfo { runs: trace.runs.iter().map(bytes).collect(), recording })
    }

    /// Forgets it, and ends a recording that is under way.
    ///
    /// # Errors
    /// As [`Core::trace`]; an I/O error.
    pub fn drop_trace(&self, volume: &str, snapshot: Option<&str>) -> Result<()> {
        let layer = self.traced_layer(volume, snapshot)?;
        self.end_recordings(layer);
        self.layers.save_trace(layer, &Trace::default())
    }

    /// Begins to record what a volume touches of what it stands on, for ten minutes. A recording of another fork of it ends.
    ///
    /// # Errors
    /// As [`Core::trace`].
    pub fn record_trace(self: &Arc<Self>, volume: &str) -> Result<()> {
        let head = self.head(volume)?;
        let layer = self.traced_layer(volume, None)?;
        // What was recorded until now is kept.
        let _ = self.save_traces();
        self.end_recordings(layer);
        let until = self.clock.monotonic() + RECORDING_TIME;
        let recorder = head.recorder.get_or_init(|| Recorder::new(layer, head.id, until));
        recorder.restart(layer, until);
        let mut recorders = self.recorders.lock();
        recorders.retain(|other| other.fork != head.id);
        recorders.push(Arc::clone(recorder));
        Ok(())
    }

    fn end_recordings(&self, layer: LayerId) {
        self.recorders.lock().retain(|recorder| {
            let is_of_layer = recorder.layer() == layer;
            if is_of_layer {
                recorder.active.store(false, Ordering::Relaxed);
            }
            !is_of_layer
        });
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
            let (layer, until, changed) = {
                let mut touches = recorder.touches.lock();
                let changed = std::mem::take(&mut touches.changed).then(|| touches.trace.clone());
                (touches.layer, touches.until, changed)
            };
            // The layer's files may be on their way out; what is written then is swept with them.
            let is_gone = self.layers.get(layer).is_none();
            let saved = match changed.filter(|_| !is_gone) {
                Some(own) => {
                    // A trace of an earlier fork, or one that came with the source meanwhile, tells of a whole run.
                    let known = self.layers.load_trace(layer).unwrap_or_default();
                    self.layers.save_trace(layer, &known.and_then(&own))
                }
                None => Ok(()),
            };
            if now >= until || is_gone || saved.is_err() || !recorder.active.load(Ordering::Relaxed) {
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
