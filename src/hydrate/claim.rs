//! Ranges under way: each is fetched once.

use std::ops::Range;

use super::hydrator::{Hydrator, State};

/// A range that its holder fetches, and nobody else. Given back when it is dropped, however that comes: those who wait for the range
/// look again.
pub(super) struct Claim<'a> {
    hydrator: &'a Hydrator,
    pub run: Range<u64>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.hydrator.state.lock().under_way.remove(&self.run.start);
        self.hydrator.changed.notify_all();
    }
}

impl Hydrator {
    /// Takes the missing parts of the range that nobody fetches yet, in pieces of at most `bytes_max`.
    pub(super) fn claim(&self, blocks: Range<u64>, bytes_max: u64) -> Vec<Claim<'_>> {
        let blocks_max = self.config.block_size.block_of(bytes_max).max(1);
        let mut claimed = Vec::new();
        let mut state = self.state.lock();
        // Looked at under the lock: a block that is not under way here was stored before, or not at all.
        for run in self.missing_runs(blocks) {
            let mut start = run.start;
            while start < run.end {
                if let Some(end) = state.end_of_under_way(start) {
                    start = end;
                    continue;
                }
                let end = state.next_under_way(start).min(run.end).min(start + blocks_max);
                state.under_way.insert(start, end);
                claimed.push(Claim { hydrator: self, run: start..end });
                start = end;
            }
        }
        claimed
    }
}

impl State {
    /// If the block is under way, the block after its range.
    fn end_of_under_way(&self, block: u64) -> Option<u64> {
        self.under_way.range(..=block).next_back().map(|(_, end)| *end).filter(|end| *end > block)
    }

    /// The first block after `block` that is under way.
    fn next_under_way(&self, block: u64) -> u64 {
        self.under_way.range(block + 1..).next().map_or(u64::MAX, |(start, _)| *start)
    }

    /// Whether a part of the range is under way.
    pub(super) fn is_under_way(&self, run: &Range<u64>) -> bool {
        self.end_of_under_way(run.start).is_some() || self.next_under_way(run.start) < run.end
    }
}
