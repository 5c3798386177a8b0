//! Fetching what nobody waits for.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;

use super::hydrator::Hydrator;
use super::writes::Writes;
use crate::io::Ring;
use crate::source::{Source, SourceError};

/// Bytes of one request.
const REQUEST_BYTES: u64 = 1 << 20;
/// Requests under way at once.
const REQUESTS_MAX: usize = 16;
/// While readers wait, a new request is made only so often: backfill yields, but never starves.
const FLOOR_INTERVAL: Duration = Duration::from_millis(20);
/// Bytes whose zero ranges are asked for at once.
const MAP_BYTES: u64 = 1 << 30;
/// Fetched bytes after which progress is made durable.
const RECORD_BYTES: u64 = 64 << 20;

type Arrival = (Range<u64>, Result<Bytes, SourceError>);

/// The state of one run of backfill over a root layer.
struct Backfill<'a> {
    hydrator: &'a Hydrator,
    cursor: u64,
    mapped: u64,
    under_way: usize,
    last_request: Duration,
    unrecorded_bytes: u64,
    sender: Sender<Arrival>,
    receiver: Receiver<Arrival>,
    /// `None`: fetched bytes are stored on this thread, one after the other.
    writes: Option<Writes<'a>>,
}

impl Hydrator {
    /// Starts backfill in a thread of its own; it ends when nothing is missing, or by [`Hydrator::stop`].
    /// `complete` is called once at the end if nothing is missing.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start_backfill(self: &Arc<Self>, complete: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        self.state.lock().backfill_running = true;
        let hydrator = Arc::clone(self);
        let started = std::thread::Builder::new().name(format!("hydrate-{}", self.config.layer.id)).spawn(move || {
            // Without a ring it goes on, only slower.
            let mut backfill = Backfill::new(&hydrator, Writes::ring().ok());
            while backfill.round(true) {}
            drop(backfill);
            let done = hydrator.is_complete() && !hydrator.state.lock().stopped;
            if done {
                complete();
            }
            hydrator.state.lock().backfill_running = false;
            hydrator.changed.notify_all();
        });
        if started.is_err() {
            self.state.lock().backfill_running = false;
        }
        started.map(drop)
    }

    /// One bounded round of backfill on the caller's thread, without waiting for time to pass. Answers whether anything is
    /// left to do.
    pub fn backfill_step(&self) -> bool {
        let mut backfill = Backfill::new(self, None);
        backfill.round(false);
        while backfill.under_way > 0 {
            backfill.take_arrival(None);
        }
        !self.is_complete()
    }

    /// Forgets the latest failure, so that the source is tried at once.
    pub fn retry_now(&self) {
        self.state.lock().retry_at = Duration::ZERO;
        self.changed.notify_all();
    }
}

impl<'a> Backfill<'a> {
    fn new(hydrator: &'a Hydrator, ring: Option<Ring>) -> Self {
        let (sender, receiver) = channel();
        let writes = ring.map(|ring| Writes::new(hydrator, ring));
        Self { hydrator, cursor: 0, mapped: 0, under_way: 0, last_request: Duration::ZERO, unrecorded_bytes: 0, sender, receiver, writes }
    }

    fn is_writing(&self) -> bool {
        self.writes.as_ref().is_some_and(|writes| !writes.is_empty())
    }

    /// Makes requests, takes what has arrived, waits a little if there is nothing else to do. `false` at the end.
    fn round(&mut self, may_wait: bool) -> bool {
        let hydrator = self.hydrator;
        if hydrator.state.lock().stopped {
            while self.under_way > 0 {
                self.take_arrival(None);
            }
            return false;
        }
        let pause = self.request_more();
        if self.under_way > 0 || self.is_writing() {
            self.take_arrival(may_wait.then_some(pause.unwrap_or(Duration::from_secs(60))).or(Some(Duration::ZERO)));
        } else if hydrator.is_complete() {
            self.record();
            return false;
        } else if may_wait {
            // Blocks that a reader fetches, or that failed, are looked for again from the start.
            self.cursor = 0;
            let mut state = hydrator.state.lock();
            if !state.stopped {
                hydrator.changed.wait_for(&mut state, pause.unwrap_or(FLOOR_INTERVAL));
            }
        }
        true
    }

    /// Fills the window. If something keeps it from being full, says for how long.
    fn request_more(&mut self) -> Option<Duration> {
        while self.under_way < REQUESTS_MAX && self.writes.as_ref().is_none_or(|writes| !writes.is_full()) {
            let now = self.hydrator.config.clock.monotonic();
            if let Some(pause) = self.must_pause(now) {
                return Some(pause);
            }
            let source = match self.hydrator.source() {
                Ok(source) => source,
                Err(error) => {
                    self.hydrator.note_outcome(Err(&error));
                    continue;
                }
            };
            let run = self.next_run(&*source)?;
            let range = self.hydrator.byte_range(&run);
            let cap = self.hydrator.settings().rate_bytes_per_second;
            let taken = self.hydrator.state.lock().pace.take(now, cap, range.end - range.start);
            if let Err(pause) = taken {
                self.cursor = run.start;
                return Some(pause);
            }
            for run in self.hydrator.claim(std::slice::from_ref(&run), REQUEST_BYTES.min(u64::from(source.read_bytes_max()))) {
                self.under_way += 1;
                self.last_request = now;
                let (sender, waker) = (self.sender.clone(), self.writes.as_ref().map(Writes::waker));
                let range = self.hydrator.byte_range(&run);
                let done = move |result| {
                    drop(sender.send((run, result)));
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                };
                source.read(range, Box::new(done));
            }
        }
        None
    }

    fn must_pause(&self, now: Duration) -> Option<Duration> {
        let state = self.hydrator.state.lock();
        if state.stopped || state.settings.paused {
            return Some(Duration::from_secs(60));
        }
        if state.failures > 0 && now < state.retry_at {
            return Some(state.retry_at - now);
        }
        let since = now.saturating_sub(self.last_request);
        if state.demands > 0 && since < FLOOR_INTERVAL {
            return Some(FLOOR_INTERVAL - since);
        }
        None
    }

    /// The next missing blocks that somebody needs and nobody fetches, at most one request's worth.
    fn next_run(&mut self, source: &dyn Source) -> Option<Range<u64>> {
        let config = &self.hydrator.config;
        let blocks = config.layer.source_blocks.unwrap_or(0);
        let request_blocks = config.block_size.block_of(REQUEST_BYTES.min(u64::from(source.read_bytes_max()))).max(1);
        while self.cursor < blocks {
            if self.cursor >= self.mapped {
                self.map_zeros(source);
            }
            let window = self.cursor..(self.cursor + request_blocks).next_multiple_of(request_blocks).min(blocks);
            let run = self.hydrator.missing_runs(window.clone()).into_iter().find_map(|run| self.needed(run));
            match run {
                Some(run) => {
                    self.cursor = run.end;
                    return Some(run);
                }
                None => self.cursor = window.end,
            }
        }
        None
    }

    /// The first part of a run that is needed and not under way.
    fn needed(&self, run: Range<u64>) -> Option<Range<u64>> {
        let state = self.hydrator.state.lock();
        let free = |block: &u64| {
            !state.hidden.contains(*block as u32) && state.under_way.range(..=*block).next_back().is_none_or(|(_, end)| end <= block)
        };
        let start = run.clone().find(free)?;
        let end = (start..run.end).find(|block| !free(block)).unwrap_or(run.end);
        Some(start..end)
    }

    /// Asks which bytes from the cursor on are zero, and makes their blocks zero.
    fn map_zeros(&mut self, source: &dyn Source) {
        let config = &self.hydrator.config;
        let start = config.block_size.offset_of(self.cursor);
        let end = (start + MAP_BYTES).min(config.record.size_bytes);
        // A source that cannot tell is asked again for the next part; the blocks are fetched, and zeros seen on arrival.
        let extents = source.extents(start..end).unwrap_or_default();
        let mut offset = start;
        for extent in extents {
            let next = (offset + extent.bytes).min(end);
            let (first, mut last) = (config.block_size.blocks_for(offset), config.block_size.block_of(next));
            if next == config.record.size_bytes {
                last = config.block_size.blocks_for(next);
            }
            if extent.zero && first < last {
                config.layers.fill_zero(&config.layer, first as u32..=(last - 1) as u32);
            }
            offset = next;
        }
        let reached = if offset > start { offset } else { end };
        self.mapped = config.block_size.block_of(reached).max(self.cursor + 1);
    }

    /// Takes what has arrived, waiting for something to happen at most so long (`None`: until an arrival comes).
    fn take_arrival(&mut self, wait: Option<Duration>) {
        if self.writes.is_some() {
            return self.take_arrivals(wait.unwrap_or(Duration::from_millis(100)));
        }
        let arrival = match wait {
            None => self.receiver.recv().ok(),
            Some(wait) => self.receiver.recv_timeout(wait).ok(),
        };
        let Some((run, result)) = arrival else { return };
        self.under_way -= 1;
        let bytes = self.hydrator.byte_range(&run);
        let filled = self.hydrator.arrive(run, result);
        self.note_stored(if filled.is_ok() { bytes.end - bytes.start } else { 0 });
    }

    /// With a ring: begins to store everything that has arrived.
    fn take_arrivals(&mut self, wait: Duration) {
        let mut stored = 0;
        let Some(writes) = &mut self.writes else { return };
        let mut took = false;
        while let Ok((run, result)) = self.receiver.try_recv() {
            took = true;
            self.under_way -= 1;
            match self.hydrator.accept(&run, result) {
                Ok(bytes) => {
                    stored += bytes.len() as u64;
                    writes.store(run, &bytes);
                }
                Err(_) => self.hydrator.end_claim(&run),
            }
        }
        // Whoever sends an arrival wakes the ring behind it. An error of the ring leaves its writes to the next round.
        let _ = writes.wait(if took { Duration::ZERO } else { wait });
        self.note_stored(stored);
    }

    fn note_stored(&mut self, bytes: u64) {
        self.unrecorded_bytes += bytes;
        if self.unrecorded_bytes >= RECORD_BYTES || self.hydrator.config.layers.under_pressure() {
            self.record();
        }
    }

    /// Makes progress durable. An error shows at the next write, which the store then refuses.
    fn record(&mut self) {
        self.unrecorded_bytes = 0;
        let _ = self.hydrator.config.layers.sync([self.hydrator.config.layer.id]);
    }
}
