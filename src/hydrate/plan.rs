//! What to fetch next of that for which nobody waits.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::claim::Claim;
use super::hydrator::Hydrator;
use super::progress::FetchClass;
use super::questions::Questions;
use crate::source::Source;

/// Bytes whose zero ranges are asked for at once, of a server that has to look for them.
const MAP_BYTES: u64 = 1 << 30;

/// How far sequential backfill has come.
#[derive(Default)]
pub struct Plan {
    /// The next block.
    cursor: u64,
    /// Pieces of [`MAP_BYTES`] whose zero ranges are known.
    mapped: HashSet<u64>,
    /// All zero ranges are known.
    all_mapped: bool,
    pub questions: Questions,
}

impl Plan {
    /// Blocks that failed, or were fetched by readers who gave up, are looked for again.
    pub fn start_again(&mut self) {
        self.cursor = 0;
    }

    /// Claims the next missing blocks that somebody needs and nobody fetches, at most `bytes_max`: what readers will probably
    /// want, then what an earlier fork wanted, then the rest in order. `peer` is asked for zero ranges.
    pub fn claim_next<'a>(&mut self, hydrator: &'a Hydrator, peer: Asked<'_>, bytes_max: u64) -> Option<(Claim<'a>, FetchClass)> {
        for class in [FetchClass::Ahead, FetchClass::Trace] {
            while let Some(range) = hydrator.pop(class) {
                self.map_zeros(hydrator, peer, range.start);
                if let Some(claim) = hydrator.claim_needed(range.clone(), bytes_max) {
                    if claim.run.end < range.end {
                        hydrator.push_back(class, claim.run.end..range.end);
                    }
                    return Some((claim, class));
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
                Some(claim) => {
                    self.cursor = claim.run.end;
                    return Some((claim, FetchClass::Backfill));
                }
                None => self.cursor = window.end,
            }
        }
        None
    }

    /// A run was claimed in vain.
    pub fn put_back(&mut self, hydrator: &Hydrator, claim: Claim<'_>, class: FetchClass) {
        let run = claim.run.clone();
        drop(claim);
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
        if self.all_mapped || self.questions.is_asked(peer.uri) || !self.mapped.insert(piece) {
            return;
        }
        // A volfork snapshot answers from its presence map, for all of it at once.
        let mut range = piece * MAP_BYTES..((piece + 1) * MAP_BYTES).min(size_bytes);
        if peer.source.identity().is_some() {
            range = 0..size_bytes;
            self.all_mapped = true;
        }
        // The blocks of a source that cannot tell are fetched, and zeros seen on arrival.
        if !self.questions.ask_zeros(hydrator, peer.uri, peer.source, range, peer.aside) {
            self.all_mapped = false;
            self.mapped.remove(&piece);
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
    fn pop(&self, class: FetchClass) -> Option<Range<u64>> {
        let mut state = self.state.lock();
        if class == FetchClass::Ahead { state.ahead.pop_front() } else { state.trace.pop_front() }
    }

    fn push_back(&self, class: FetchClass, range: Range<u64>) {
        let mut state = self.state.lock();
        if class == FetchClass::Ahead { state.ahead.push_front(range) } else { state.trace.push_front(range) }
    }

    /// Claims the first part of a range that is missing, needed and not under way.
    fn claim_needed(&self, range: Range<u64>, bytes_max: u64) -> Option<Claim<'_>> {
        for run in self.missing_runs(range) {
            let needed = {
                let state = self.state.lock();
                let is_needed = |block: &u64| !state.hidden.contains(*block as u32);
                let start = run.clone().find(is_needed);
                start.map(|start| start..(start..run.end).find(|block| !is_needed(block)).unwrap_or(run.end))
            };
            // One request at a time; the others are given back, and found again.
            if let Some(first) = self.claim(needed.unwrap_or(0..0), bytes_max).into_iter().next() {
                return Some(first);
            }
        }
        None
    }
}
