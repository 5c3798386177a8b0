//! Asking a source which of its bytes are zero, in bounded turns.

use std::ops::Range;
use std::time::Duration;

use crate::source::{Source, SourceError, SourceExtent};
use crate::sync::time::Instant;

/// How long zeros are gathered before they are told.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// Runs of zeros that are gathered before they are told.
const GATHERED_MAX: usize = 16 << 10;
/// Answers that are asked for one after another: a server that tells of a few bytes at a time is not worth it.
const ANSWERS_MAX: usize = 16 << 10;

/// A look at a range of a source. Each run is told once and whole, however many answers it takes, unless these are slow; a run that
/// reaches the end of the range is followed to its own end.
pub struct Scan {
    range: Range<u64>,
    answers_left: usize,
    /// Everything before this is known.
    at: u64,
    /// Where the run begins that reaches as far as that.
    run: Option<u64>,
    whole: Vec<Range<u64>>,
}

/// What one turn has found.
pub struct Found {
    /// Ranges of bytes that are zero.
    pub zeros: Vec<Range<u64>>,
    /// The source failed.
    pub error: Option<SourceError>,
    /// What is left.
    pub rest: Option<Scan>,
}

impl Scan {
    pub fn new(range: Range<u64>) -> Self {
        Self { at: range.start, range, answers_left: ANSWERS_MAX, run: None, whole: Vec::new() }
    }

    /// Asks until there is something to tell.
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
