//! Recording in which order a fork first touches the blocks it inherited, for later forks of the same snapshot.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::recorder::Recorder;
use crate::catalog::{Catalog, VolumeEntry};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Trace;
use crate::ids::{LayerId, VolumeId};
use crate::layer::Layers;
use crate::place::BlockSize;
use crate::sync::{Mutex, OnceLock};
use crate::volume::state::{Hydrations, Shape};

/// How long after the fork touches are noted.
const RECORDING_TIME: Duration = Duration::from_secs(600);
/// Most forks that are recorded at once.
const RECORDERS_MAX: usize = 64;

/// The recordings that are under way.
pub struct Recordings {
    pub layers: Arc<Layers>,
    pub shape: Arc<Shape>,
    pub hydrations: Arc<Hydrations>,
    pub block_size: BlockSize,
    pub clock: Arc<dyn Clock>,
    pub recorders: Mutex<Vec<Arc<Recorder>>>,
}

/// A moment by both clocks.
#[derive(Clone, Copy)]
pub struct Now {
    pub monotonic: Duration,
    pub unix_seconds: u64,
}

/// What is known of the order in which forks first touch a snapshot.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// let volume = store.create_volume("base", 1 << 20)?;
/// volume.write_at(&[1; 1 << 20], 0)?;
/// volume.create_snapshot("v1")?;
/// let fork = store.fork("base@v1", "machine")?;
/// store.record_trace("machine")?;
/// fork.read_at(&mut [0; 4096], 512 << 10)?;
/// fork.read_at(&mut [0; 4096], 0)?;
///
/// let trace = store.trace("base", Some("v1"))?;
/// assert!(trace.recording);
/// // Ranges of bytes, in the order in which the fork touched them. They are wider than what was read.
/// assert_eq!(trace.runs.iter().map(|run| run.start).collect::<Vec<_>>(), [512 << 10, 0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TraceInfo {
    /// Runs of bytes, in that order, in whole units of 16 blocks: the last one may end past the end of the volume.
    pub runs: Vec<Range<u64>>,
    /// A fork is being recorded.
    pub recording: bool,
}

impl Recordings {
    /// The recording of a fork, while it is under way.
    pub fn get(&self, fork: VolumeId) -> Option<Arc<Recorder>> {
        self.recorders.lock().iter().find(|recorder| recorder.fork() == fork).cloned()
    }

    /// The time at this moment. The clock is a seam: no lock is held.
    pub fn now(&self) -> Now {
        Now { monotonic: self.clock.monotonic(), unix_seconds: self.clock.unix().as_secs() }
    }

    /// Begins to record the touches of a fork that stands on `layer`, unless another fork of it is being recorded.
    pub fn begin(&self, layer: LayerId, fork: VolumeId) -> Option<Arc<Recorder>> {
        self.begin_at(layer, fork, self.now())
    }

    fn begin_at(&self, layer: LayerId, fork: VolumeId, now: Now) -> Option<Arc<Recorder>> {
        let mut recorders = self.recorders.lock();
        if recorders.len() >= RECORDERS_MAX || recorders.iter().any(|recorder| recorder.is_of(layer)) {
            return None;
        }
        let recorder = Recorder::new(layer, fork, now.monotonic + RECORDING_TIME);
        recorders.push(Arc::clone(&recorder));
        Some(recorder)
    }

    /// The layer whose trace is meant: that of a snapshot, or the one on which a volume stands.
    fn traced_layer(&self, volume: &str, snapshot: Option<&str>) -> Result<LayerId> {
        let catalog = self.shape.catalog();
        if let Some(snapshot) = snapshot {
            return Ok(catalog.snapshot(volume, snapshot)?.1.layer);
        }
        let id = self.shape.volume_id(&catalog, volume)?;
        let parent = catalog.volume(id).and_then(|entry| catalog.layer(entry.head)?.parent);
        parent.ok_or_else(|| {
            let message = format!("volume '{volume}' is no fork and has no snapshot, so it has no trace: name a fork, or NAME@SNAP");
            Error::new(ErrorKind::InvalidInput, message)
        })
    }

    /// The trace of a snapshot, or of the snapshot below a volume: the order in which forks first touched its blocks.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::InvalidInput`].
    pub fn trace(&self, volume: &str, snapshot: Option<&str>) -> Result<TraceInfo> {
        let layer = self.traced_layer(volume, snapshot)?;
        // The latest recording is on its way to the file; one that cannot be written is shown as far as it was.
        let _ = self.save();
        let recording = self.recorders.lock().iter().any(|recorder| recorder.is_of(layer));
        let bytes = |run: &Range<u32>| self.block_size.offset_of(u64::from(run.start))..self.block_size.offset_of(u64::from(run.end));
        let trace = self.layers.load_trace(layer).unwrap_or_default();
        Ok(TraceInfo { runs: trace.runs.iter().map(bytes).collect(), recording })
    }

    /// Forgets it, and ends a recording that is under way.
    ///
    /// # Errors
    /// As [`Recordings::trace`]; an I/O error.
    pub fn drop_trace(&self, volume: &str, snapshot: Option<&str>) -> Result<()> {
        let layer = self.traced_layer(volume, snapshot)?;
        self.end_recordings(layer);
        self.layers.save_trace(layer, &Trace::default())
    }

    /// Begins to record for ten minutes what a volume touches of what it stands on; `own` is the recording that its head has, if any. A
    /// recording of another fork of the same layer ends.
    ///
    /// # Errors
    /// As [`Recordings::trace`].
    pub fn restart(&self, volume: &str, fork: VolumeId, own: &OnceLock<Arc<Recorder>>) -> Result<()> {
        let layer = self.traced_layer(volume, None)?;
        // What was recorded until now is kept.
        let _ = self.save();
        self.end_recordings(layer);
        let until = self.now().monotonic + RECORDING_TIME;
        let recorder = own.get_or_init(|| Recorder::new(layer, fork, until));
        recorder.restart(layer, until);
        let mut recorders = self.recorders.lock();
        recorders.retain(|other| other.fork() != fork);
        recorders.push(Arc::clone(recorder));
        Ok(())
    }

    fn end_recordings(&self, layer: LayerId) {
        self.recorders.lock().retain(|recorder| {
            let is_of_layer = recorder.layer() == layer;
            if is_of_layer {
                recorder.end();
            }
            !is_of_layer
        });
    }

    /// Goes on to record a fork that was made a moment ago by a process that has ended. The catalogue is locked, so the caller tells
    /// the time.
    pub fn begin_young(&self, catalog: &Catalog, fork: VolumeId, entry: &VolumeEntry, now: Now) -> Option<Arc<Recorder>> {
        let age = Duration::from_secs(now.unix_seconds.saturating_sub(entry.created_at));
        if entry.parent.is_empty() || entry.snapshots.iter().next().is_some() || age >= RECORDING_TIME {
            return None;
        }
        let base = catalog.layer(entry.head)?.parent?;
        let is_named = catalog.layer(base).is_some_and(|layer| layer.names > 0 || layer.source.is_some());
        is_named.then(|| self.begin_at(base, fork, now)).flatten()
    }

    /// Lets what is still at a source be fetched in the order in which earlier forks of the layer touched it, if that was recorded.
    pub fn follow(&self, layer: LayerId) {
        let root = self.shape.catalog().needed_root(layer);
        let Some(hydrator) = root.and_then(|root| self.hydrations.get(root)) else { return };
        // The latest recording is on its way to the file.
        let _ = self.save();
        if let Some(trace) = self.layers.load_trace(layer) {
            hydrator.follow(trace.runs.into_iter().map(|run| u64::from(run.start)..u64::from(run.end)));
        }
    }

    /// What was recorded of the same snapshot at an earlier fork from elsewhere holds for a new root layer, too.
    pub fn inherit(&self, root: LayerId) {
        if self.layers.load_trace(root).is_some() {
            return;
        }
        let same: Vec<LayerId> = {
            let catalog = self.shape.catalog();
            let origin = catalog.layer(root).map(|entry| entry.origin.clone()).unwrap_or_default();
            catalog.roots_of(&origin).map(|(layer, _)| layer).filter(|layer| *layer != root).collect()
        };
        // The latest recording is on its way to the file.
        let _ = if same.is_empty() { Ok(()) } else { self.save() };
        if let Some(trace) = same.into_iter().filter_map(|layer| self.layers.load_trace(layer)).max_by_key(|trace| trace.runs.len()) {
            // Advice: without the file, later forks have to do without.
            let _ = self.layers.save_trace(root, &trace);
        }
    }

    /// Writes what was recorded since the last call, and ends recordings that are old or full.
    ///
    /// # Errors
    /// An I/O error: the recording is given up.
    pub fn save(&self) -> Result<()> {
        let now = self.clock.monotonic();
        let recorders = self.recorders.lock().clone();
        for recorder in recorders {
            let (layer, changed) = (recorder.layer(), recorder.take_changed());
            // The layer's files may be on their way out; a file that is written then is swept with them.
            let is_gone = self.layers.get(layer).is_none();
            let saved = match changed.filter(|_| !is_gone) {
                Some(own) => {
                    // A trace of an earlier fork, or one that came with the source meanwhile, tells of a whole run.
                    let known = self.layers.load_trace(layer).unwrap_or_default();
                    self.layers.save_trace(layer, &known.and_then(&own))
                }
                None => Ok(()),
            };
            if is_gone || saved.is_err() || recorder.is_over(now) {
                recorder.end();
                self.recorders.lock().retain(|other| !Arc::ptr_eq(other, &recorder));
            }
            saved?;
        }
        Ok(())
    }
}
