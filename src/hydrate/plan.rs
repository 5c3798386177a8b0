//! Chooses what backfill fetches next.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::claim::Claim;
use super::hydrator::Hydrator;
use super::progress::FetchClass;
use super::questions::Questions;
use crate::source::Source;

/// Bytes whose zero ranges are asked for at once, of a server that has to look for them. A run of zeros is followed beyond.
const MAP_BYTES: u64 = 1 << 30;

/// How far sequential backfill has come.
#[derive(Default)]
pub struct Plan {
    /// The next block.
    cursor: u64,
    /// Which zero ranges each address was asked for. All are asked: one may not know, die, or not answer.
    mapped: HashMap<String, Mapped>,
    pub questions: Questions,
}

impl Plan {
    /// Blocks that failed, or were fetched by readers who gave up, are looked for again.
    pub fn start_again(&mut self) {
        self.cursor = 0;
    }

    /// Whether the next claim looks at all blocks.
    pub fn is_at_start(&self) -> bool {
        self.cursor == 0
    }

    /// Claims the next missing blocks that somebody needs and nobody fetches, at most `bytes_max`: what readers will probably
    /// want, then what an earlier fork wanted, then the rest in order. `peer` is asked for zero ranges.
    pub fn claim_next<'a>(&mut self, hydrator: &'a Hydrator, peer: Asked<'_>, bytes_max: u64) -> Option<(Claim<'a>, FetchClass)> {
        let step = hydrator.config.block_size.block_of(bytes_max).max(1);
        for class in [FetchClass::Ahead, FetchClass::Trace] {
            while let Some(range) = hydrator.pop(class) {
                let Some(start) = hydrator.next_needed(range.start).filter(|start| *start < range.end) else { continue };
                self.map_zeros(hydrator, peer, start);
                let window = start..(start + step).min(range.end);
                let (claim, next, _) = hydrator.claim_allowed(peer, &window, bytes_max);
                if next < range.end {
                    hydrator.push_back(class, next..range.end);
                }
                if let Some(claim) = claim {
                    return Some((claim, class));
                }
            }
        }
        if self.cursor == 0 {
            hydrator.look_above();
        }
        // What this address could not give a moment ago is left to the others: they begin there.
        let (mut at, mut is_left) = (self.cursor, false);
        // From one missing block to the next: what is there, zeros of any length included, is one step.
        while let Some(start) = hydrator.next_needed(at) {
            self.map_zeros(hydrator, peer, start);
            // Requests begin and end at multiples of their size, so that few of them are cut.
            let window = start..(start / step + 1) * step;
            let (claim, next, left) = hydrator.claim_allowed(peer, &window, bytes_max);
            is_left |= left;
            at = next;
            if !is_left {
                self.cursor = next;
            }
            if let Some(claim) = claim {
                return Some((claim, FetchClass::Backfill));
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

    /// Asks an address which bytes around a block are zero, unless that was done, and makes their blocks zero: zeros do not travel.
    fn map_zeros(&mut self, hydrator: &Hydrator, peer: Asked<'_>, block: u64) {
        let config = &hydrator.config;
        let size_bytes = config.record.size_bytes;
        let piece = config.block_size.offset_of(block) / MAP_BYTES;
        if self.questions.is_asked(peer.uri) {
            return;
        }
        let mapped = self.mapped.entry(peer.uri.to_owned()).or_default();
        // A volfork snapshot answers from its presence map, for all of it at once.
        let is_quick = peer.source.identity().is_some();
        if mapped.all || std::mem::replace(&mut mapped.all, is_quick) || !mapped.pieces.insert(piece) {
            return;
        }
        let range = if is_quick { 0..size_bytes } else { piece * MAP_BYTES..((piece + 1) * MAP_BYTES).min(size_bytes) };
        // The blocks of a source that cannot tell are fetched, and zeros seen on arrival.
        if !self.questions.ask_zeros(hydrator, peer.uri, peer.source, range, peer.aside) {
            self.mapped.remove(peer.uri);
        }
    }

    /// Takes what addresses have answered. Those that have failed are asked anew when they are back.
    pub fn take_answers(&mut self, hydrator: &Hydrator) {
        for uri in self.questions.take_answers(hydrator) {
            self.mapped.remove(&uri);
        }
    }
}

/// What an address was asked for.
#[derive(Default)]
struct Mapped {
    all: bool,
    /// Pieces of [`MAP_BYTES`].
    pieces: HashSet<u64>,
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

    /// As [`Hydrator::claim_needed`], of what this address may be asked for. Answers as well where the rest begins, and whether some of
    /// what is before that was left out: the address could not give it a moment ago.
    fn claim_allowed(&self, peer: Asked<'_>, range: &Range<u64>, bytes_max: u64) -> (Option<Claim<'_>>, u64, bool) {
        let now = self.config.clock.monotonic();
        let allowed = {
            let state = self.state.lock();
            let known = state.peers.list.iter().find(|known| known.uri == peer.uri);
            known.map_or_else(|| Some(range.clone()), |known| known.allowed(range, now))
        };
        let Some(allowed) = allowed else { return (None, range.end, true) };
        let claim = self.claim_needed(allowed.clone(), bytes_max);
        let next = claim.as_ref().map_or(allowed.end, |claim| claim.run.end);
        (claim, next, allowed.start > range.start)
    }

    /// Claims the first part of a range that is missing, needed and not under way.
    fn claim_needed(&self, range: Range<u64>, bytes_max: u64) -> Option<Claim<'_>> {
        for run in self.missing_runs(range) {
            let needed = {
                let state = self.state.lock();
                let is_needed = |block: &u64| !state.covered.contains(*block as u32);
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
