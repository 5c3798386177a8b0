//! Asks a source which of its bytes are zero, in bounded turns.

use std::ops::Range;
use std::time::Duration;

use crate::source::{Source, SourceError, SourceExtent};
use crate::sync::time::Instant;

/// Longest time of a turn, after which the runs found so far are reported.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// Most runs that a turn reports.
const GATHERED_MAX: usize = 16 << 10;
/// Most requests of a turn: a server that reports a few bytes at a time is not worth more.
const ANSWERS_MAX: usize = 16 << 10;

/// A search for zeros in a range of a source. A run is reported once and whole, even if it takes many replies, unless they are slow. A
/// run that reaches the end of the range is followed to its own end.
pub struct Scan {
    range: Range<u64>,
    answers_left: usize,
    /// Offset up to which the source has answered.
    at: u64,
    /// Start of the run of zeros that ends there, if any.
    run: Option<u64>,
    whole: Vec<Range<u64>>,
}

/// Result of one turn.
pub struct Found {
    /// Byte ranges that are zero.
    pub zeros: Vec<Range<u64>>,
    /// The error of the source, if it failed.
    pub error: Option<SourceError>,
    /// The search to continue, if it has not ended.
    pub rest: Option<Scan>,
}

impl Scan {
    pub fn new(range: Range<u64>) -> Self {
        Self { at: range.start, range, answers_left: ANSWERS_MAX, run: None, whole: Vec::new() }
    }

    /// Runs one turn. Blocks on the source.
    pub fn turn(mut self, source: &dyn Source) -> Found {
        let size_bytes = source.size_bytes();
        let started = Instant::now();
        while self.answers_left > 0 {
            self.answers_left -= 1;
            let before = self.at;
            let end = if before < self.range.end { self.range.end } else { size_bytes };
            if before >= end || (before >= self.range.end && self.run.is_none()) {
                break;
            }
            match source.extents(before..end) {
                Ok(extents) => extents.iter().for_each(|extent| self.add(extent, end)),
                Err(error) => return Found { zeros: self.take(), error: Some(error), rest: None },
            }
            if self.at == before {
                break;
            }
            if started.elapsed() > TELL_INTERVAL || self.whole.len() > GATHERED_MAX {
                return Found { zeros: self.take(), error: None, rest: Some(self) };
            }
        }
        Found { zeros: self.take(), error: None, rest: None }
    }

    fn add(&mut self, extent: &SourceExtent, end: u64) {
        let next = self.at.saturating_add(extent.bytes).min(end);
        match (extent.zero, self.run) {
            (true, None) if self.at < next => self.run = Some(self.at),
            (false, Some(start)) => {
                self.whole.push(start..self.at);
                self.run = None;
            }
            _ => {}
        }
        self.at = next;
    }

    fn take(&mut self) -> Vec<Range<u64>> {
        let mut zeros = std::mem::take(&mut self.whole);
        if let Some(start) = &mut self.run {
            zeros.push(*start..self.at);
            *start = self.at;
        }
        zeros
    }
}
