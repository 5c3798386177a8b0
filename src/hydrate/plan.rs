//! What to fetch next of that for which nobody waits.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::hydrator::Hydrator;
use super::progress::FetchClass;
use crate::source::{Source, SourceError};
use crate::sync::mpsc::{RecvTimeoutError, channel};
use crate::sync::thread::JoinHandle;

/// Bytes whose zero ranges are asked for at once, of a server that has to look for them.
const MAP_BYTES: u64 = 1 << 30;
/// So long is waited for the answer, so that zeros do not travel; then it goes on without: an address that does not answer must
/// not hold up the others.
const MAP_PATIENCE: Duration = Duration::from_secs(2);

/// Answers that are asked for one after another: a server that tells of a few bytes at a time is not worth it.
const MAP_ANSWERS_MAX: usize = 16 << 10;

/// How far sequential backfill has come.
#[derive(Default)]
pub struct Plan {
    /// The next block.
    cursor: u64,
    /// Pieces of [`MAP_BYTES`] whose zero ranges are known.
    mapped: HashSet<u64>,
    /// All zero ranges are known.
    all_mapped: bool,
    /// Threads that wait for answers that take long. They change the layer, so they end before the plan does.
    asking: Vec<JoinHandle<()>>,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // A panic in a thread was printed there.
        self.asking.drain(..).for_each(|thread| drop(thread.join()));
    }
}

impl Plan {
    /// Blocks that failed, or were fetched by readers who gave up, are looked for again.
    pub fn start_again(&mut self) {
        self.cursor = 0;
    }

    /// Claims the next missing blocks that somebody needs and nobody fetches, at most `bytes_max`: what readers will probably
    /// want, then what an earlier fork wanted, then the rest in order. `peer` is asked for zero ranges.
    pub fn claim_next(&mut self, hydrator: &Hydrator, peer: Asked<'_>, bytes_max: u64) -> Option<(Range<u64>, FetchClass)> {
        for class in [FetchClass::Ahead, FetchClass::Trace] {
            while let Some(range) = hydrator.pop(class) {
                self.map_zeros(hydrator, peer, range.start);
                if let Some(run) = hydrator.claim_needed(range.clone(), bytes_max) {
                    if run.end < range.end {
                        hydrator.push_back(class, run.end..range.end);
                    }
                    return Some((run, class));
                }
            }
        }
        let config = &hydrator.config;
        let blocks = config.layer.source_blocks().unwrap_or(0);
        let step = config.block_size.block_of(bytes_max).max(1);
        while self.cursor < blocks {
            self.map_zeros(hydrator, peer, self.cursor);
            // Requests begin and end at multiples of their size, so that few of them are cut.
            let window = self.cursor..(self.cursor + step).next_multiple_of(step).min(blocks);
            match hydrator.claim_needed(window.clone(), bytes_max) {
                Some(run) => {
                    self.cursor = run.end;
                    return Some((run, FetchClass::Backfill));
                }
                None => self.cursor = window.end,
            }
        }
        None
    }

    /// A run was claimed in vain.
    pub fn put_back(&mut self, hydrator: &Hydrator, run: Range<u64>, class: FetchClass) {
        hydrator.end_claim(&run);
        match class {
            FetchClass::Ahead | FetchClass::Trace => hydrator.push_back(class, run),
            FetchClass::Demand | FetchClass::Backfill => self.cursor = self.cursor.min(run.start),
        }
    }

    /// Asks which bytes around a block are zero, unless that is known, and makes their blocks zero: zeros do not travel.
    fn map_zeros(&mut self, hydrator: &Hydrator, peer: Asked<'_>, block: u64) {
        let config = &hydrator.config;
        let size_bytes = config.record.size_bytes;
        let piece = config.block_size.offset_of(block) / MAP_BYTES;
        if self.all_mapped || !self.mapped.insert(piece) {
            return;
        }
        // A volfork snapshot answers from its presence map, for all of it at once.
        let mut range = piece * MAP_BYTES..((piece + 1) * MAP_BYTES).min(size_bytes);
        if peer.source.identity().is_some() {
            range = 0..size_bytes;
            self.all_mapped = true;
        }
        // The blocks of a source that cannot tell are fetched, and zeros seen on arrival.
        if !self.ask_zeros(hydrator, peer, range) {
            self.all_mapped = false;
            self.mapped.remove(&piece);
        }
    }

    /// Asks in a thread of its own, if there can be one. `false`: the address has failed.
    fn ask_zeros(&mut self, hydrator: &Hydrator, peer: Asked<'_>, range: Range<u64>) -> bool {
        let (sender, receiver) = channel();
        let (uri, source) = (peer.uri.to_owned(), Arc::clone(peer.source));
        let aside = hydrator.this.upgrade().filter(|_| peer.aside).and_then(|this| {
            let range = range.clone();
            let ask = move || {
                let result = this.take_zeros(&*source, range);
                if let Err(error) = &result {
                    this.note_error(&uri, error);
                }
                // Nobody listens any more if it took long.
                let _ = sender.send(result.is_ok());
            };
            crate::sync::thread::Builder::new().name("hydrate-zeros".into()).spawn(ask).ok()
        });
        let Some(thread) = aside else {
            return hydrator.take_zeros(&**peer.source, range).inspect_err(|error| hydrator.note_error(peer.uri, error)).is_ok();
        };
        self.asking.retain(|thread| !thread.is_finished());
        self.asking.push(thread);
        match receiver.recv_timeout(MAP_PATIENCE) {
            Ok(known) => known,
            Err(RecvTimeoutError::Timeout) => true,
            Err(RecvTimeoutError::Disconnected) => false,
        }
    }
}

/// The address that is asked.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub uri: &'a str,
    pub source: &'a Arc<dyn Source>,
    /// Whether threads may be used.
    pub aside: bool,
}

impl Hydrator {
    /// Makes blocks zero of which the source says so.
    fn take_zeros(&self, source: &dyn Source, mut range: Range<u64>) -> Result<(), SourceError> {
        let config = &self.config;
        let size_bytes = config.record.size_bytes;
        for _ in 0..MAP_ANSWERS_MAX {
            let before = range.start;
            if before >= range.end {
                break;
            }
            for extent in source.extents(range.clone())? {
                let next = range.start.saturating_add(extent.bytes).min(range.end);
                let first = config.block_size.blocks_for(range.start);
                let last = if next == size_bytes { config.block_size.blocks_for(next) } else { config.block_size.block_of(next) };
                if extent.zero && first < last {
                    config.layers.fill_zero(&config.layer, first as u32..=(last - 1) as u32);
                }
                range.start = next;
            }
            if range.start == before {
                break;
            }
        }
        Ok(())
    }

    fn pop(&self, class: FetchClass) -> Option<Range<u64>> {
        let mut state = self.state.lock();
        if class == FetchClass::Ahead { state.ahead.pop_front() } else { state.trace.pop_front() }
    }

    fn push_back(&self, class: FetchClass, range: Range<u64>) {
        let mut state = self.state.lock();
        if class == FetchClass::Ahead { state.ahead.push_front(range) } else { state.trace.push_front(range) }
    }

    /// Claims the first part of a range that is missing, needed and not under way.
    fn claim_needed(&self, range: Range<u64>, bytes_max: u64) -> Option<Range<u64>> {
        for run in self.missing_runs(range) {
            let needed = {
                let state = self.state.lock();
                let is_needed = |block: &u64| !state.hidden.contains(*block as u32);
                let start = run.clone().find(is_needed);
                start.map(|start| start..(start..run.end).find(|block| !is_needed(block)).unwrap_or(run.end))
            };
            let mut claimed = self.claim(needed.unwrap_or(0..0), bytes_max).into_iter();
            if let Some(first) = claimed.next() {
                // One request at a time; the others are found again.
                claimed.for_each(|other| self.end_claim(&other));
                return Some(first);
            }
        }
        None
    }
}
