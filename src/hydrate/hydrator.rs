//! A root layer and its source.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use roaring::RoaringBitmap;

use super::pace::{Pace, Rate};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind};
use crate::format::{HydrationSettings, SourceRecord};
use crate::ids::BlockSize;
use crate::layer::{Layer, Layers};
use crate::source::{Source, SourceError, SourceErrorKind, SourceExt, SourceOpener};

/// First and longest pause before a lost source is tried again.
const RETRY_PAUSES: Range<Duration> = Duration::from_millis(250)..Duration::from_secs(5);

/// What a hydrator works with.
pub struct HydratorConfig {
    /// The layers of the store.
    pub layers: Arc<Layers>,
    /// The root layer.
    pub layer: Arc<Layer>,
    /// What is known of the source.
    pub record: SourceRecord,
    /// How to connect.
    pub opener: Arc<dyn SourceOpener>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Block size of the store.
    pub block_size: BlockSize,
}

/// What backfill does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HydratorStatus {
    /// Fetching, or about to.
    Running,
    /// Stopped by an operator.
    Paused,
    /// The source does not answer.
    Degraded,
    /// Nothing is missing any more.
    Complete,
}

/// Counts of a hydrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What backfill does.
    pub status: HydratorStatus,
    /// Bytes received from the source.
    pub bytes_fetched: u64,
    /// Bytes a second, over the last seconds.
    pub rate_bytes_per_second: u64,
    /// Pause and cap.
    pub settings: HydrationSettings,
    /// The latest error of the source.
    pub last_error: Option<String>,
}

/// One root layer and its source.
pub struct Hydrator {
    pub(super) config: HydratorConfig,
    pub(super) state: Mutex<State>,
    /// Notified when ranges arrive, fail, or settings change.
    pub(super) changed: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    pub source: Option<Arc<dyn Source>>,
    /// Blocks under way: first block -> block after the last.
    pub under_way: BTreeMap<u64, u64>,
    /// Blocks that nobody above needs.
    pub hidden: RoaringBitmap,
    pub settings: HydrationSettings,
    pub pace: Pace,
    pub rate: Rate,
    pub bytes_fetched: u64,
    pub last_error: Option<String>,
    /// Failures in a row, and when to try again.
    pub failures: u32,
    pub retry_at: Duration,
    /// Readers that wait.
    pub demands: u32,
    pub stopped: bool,
    pub complete: bool,
    pub backfill_running: bool,
}

impl Hydrator {
    /// A hydrator that uses `source`, or connects when it first needs to.
    pub fn new(config: HydratorConfig, source: Option<Arc<dyn Source>>) -> Arc<Self> {
        let settings = config.record.settings;
        let state = State { source, settings, ..State::default() };
        Arc::new(Self { config, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Number of the root layer.
    pub fn layer(&self) -> &Arc<Layer> {
        &self.config.layer
    }

    /// Address of the source.
    pub fn uri(&self) -> &str {
        &self.config.record.uri
    }

    /// The source, connected.
    pub(super) fn source(&self) -> Result<Arc<dyn Source>, SourceError> {
        {
            let state = self.state.lock();
            if state.stopped {
                let message = format!("{} is not used any more", self.uri());
                return Err(SourceError { kind: SourceErrorKind::Closed, message });
            }
            if let Some(source) = &state.source {
                return Ok(Arc::clone(source));
            }
        }
        let source = self.config.opener.open(self.uri())?;
        let expected = self.config.record.size_bytes;
        if source.size_bytes() != expected {
            let message = format!("{} has {} bytes now, it had {expected} when it was forked", self.uri(), source.size_bytes());
            return Err(SourceError { kind: SourceErrorKind::Changed, message });
        }
        let mut state = self.state.lock();
        Ok(Arc::clone(state.source.get_or_insert(source)))
    }

    /// Notes how a request to the source ended.
    pub(super) fn note_outcome(&self, result: Result<u64, &SourceError>) {
        let now = self.config.clock.monotonic();
        let mut state = self.state.lock();
        // A handle whose export has changed is of no use; what is there at the next try may be the right one again.
        let useless = matches!(result, Err(error) if error.kind == SourceErrorKind::Changed);
        let discarded = if useless { state.source.take() } else { None };
        match result {
            Ok(bytes) => {
                state.failures = 0;
                state.bytes_fetched += bytes;
                let total = state.bytes_fetched;
                state.rate.note(now, total);
            }
            Err(error) => {
                state.last_error = Some(error.message.clone());
                state.failures = state.failures.saturating_add(1);
                let pause = RETRY_PAUSES.start.saturating_mul(1 << (state.failures - 1).min(8));
                state.retry_at = now + pause.min(RETRY_PAUSES.end);
            }
        }
        drop(state);
        if let Some(source) = discarded {
            source.close();
        }
    }

    /// The engine's error for one of the source.
    pub(super) fn lost(&self, error: &SourceError) -> Error {
        Error::new(
            ErrorKind::SourceLost,
            format!("a block is still only at the source {}, which failed: {}; the rest of the volume works", self.uri(), error.message),
        )
    }

    /// Tells which blocks nobody needs.
    pub fn set_hidden(&self, hidden: RoaringBitmap) {
        self.state.lock().hidden = hidden;
        self.changed.notify_all();
    }

    /// Changes pause and cap.
    pub fn set_settings(&self, settings: HydrationSettings) {
        self.state.lock().settings = settings;
        self.changed.notify_all();
    }

    /// Pause and cap.
    pub fn settings(&self) -> HydrationSettings {
        self.state.lock().settings
    }

    /// Whether every block that anybody needs is here.
    pub fn is_complete(&self) -> bool {
        let state = self.state.lock();
        let blocks = self.config.layer.source_blocks.unwrap_or(0);
        if blocks == 0 {
            return true;
        }
        let mut missing = RoaringBitmap::new();
        missing.insert_range(0..=(blocks - 1) as u32);
        missing -= &state.hidden;
        state.under_way.is_empty() && self.config.layer.with_presence(|presence| missing.is_subset(&presence.covered()))
    }

    /// Counts so far.
    pub fn progress(&self) -> Progress {
        let now = self.config.clock.monotonic();
        let state = self.state.lock();
        let status = match &*state {
            State { complete: true, .. } => HydratorStatus::Complete,
            State { failures: 1.., .. } => HydratorStatus::Degraded,
            State { settings: HydrationSettings { paused: true, .. }, .. } => HydratorStatus::Paused,
            _ => HydratorStatus::Running,
        };
        Progress {
            status,
            bytes_fetched: state.bytes_fetched,
            rate_bytes_per_second: state.rate.bytes_per_second(now, state.bytes_fetched),
            settings: state.settings,
            last_error: state.last_error.clone(),
        }
    }

    /// Fills `buffer` with blocks of the source from `first` on, whatever the layer has, and stores nothing.
    ///
    /// # Errors
    /// [`ErrorKind::SourceLost`].
    pub fn read_through(&self, first: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let blocks = self.config.block_size.blocks_for(buffer.len() as u64);
        let range = self.byte_range(&(first..first + blocks));
        let fetched = self.source().and_then(|source| source.read_blocking(range));
        let bytes = fetched.map_err(|error| self.lost(&error))?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        buffer[bytes.len()..].fill(0);
        Ok(())
    }

    /// Nothing is missing any more: closes the source.
    pub fn finish(&self) {
        self.state.lock().complete = true;
        self.stop();
    }

    /// Ends backfill and closes the source; readers of missing blocks fail from now on.
    pub fn stop(&self) {
        let source = {
            let mut state = self.state.lock();
            state.stopped = true;
            state.source.take()
        };
        self.changed.notify_all();
        if let Some(source) = source {
            source.close();
        }
    }

    /// Waits until nothing is missing any more; `false` at the timeout, or when it was stopped before.
    pub fn wait_finished(&self, timeout: Duration) -> bool {
        let until = std::time::Instant::now().checked_add(timeout);
        let mut state = self.state.lock();
        while !state.complete && !state.stopped {
            match until {
                Some(until) if self.changed.wait_until(&mut state, until).timed_out() => break,
                Some(_) => {}
                None => self.changed.wait(&mut state),
            }
        }
        state.complete
    }

    /// Waits until backfill has ended.
    pub fn join(&self) {
        let mut state = self.state.lock();
        while state.backfill_running {
            self.changed.wait(&mut state);
        }
    }
}
