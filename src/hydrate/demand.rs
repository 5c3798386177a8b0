//! Readers that wait for missing blocks.

use std::ops::Range;
use std::sync::mpsc;

use bytes::Bytes;

use super::hydrator::{Hydrator, State};
use crate::error::Result;
use crate::source::SourceError;

type Arrival = (Range<u64>, std::result::Result<Bytes, SourceError>);

impl Hydrator {
    /// Returns when every block of the range is here. Blocks that are under way already are waited for, not fetched again.
    ///
    /// # Errors
    /// [`crate::ErrorKind::SourceLost`] after the source's own bounded retries; an I/O error of the layer's file.
    pub fn demand(&self, blocks: Range<u64>) -> Result<()> {
        self.state.lock().demands += 1;
        let result = self.demand_counted(blocks);
        self.state.lock().demands -= 1;
        self.changed.notify_all();
        result
    }

    fn demand_counted(&self, blocks: Range<u64>) -> Result<()> {
        loop {
            let missing = self.missing_runs(blocks.clone());
            if missing.is_empty() {
                return Ok(());
            }
            let source = self.source().map_err(|error| {
                self.note_outcome(Err(&error));
                self.lost(&error)
            })?;
            let claimed = self.claim(&missing, u64::from(source.read_bytes_max()));
            if claimed.is_empty() {
                let mut state = self.state.lock();
                // Woken when a range arrives or fails; a range that failed is claimed above, by whoever comes first.
                if missing.iter().any(|run| state.is_under_way(run)) {
                    self.changed.wait(&mut state);
                }
                continue;
            }
            let (sender, receiver) = mpsc::channel::<Arrival>();
            let count = claimed.len();
            for run in claimed {
                let sender = sender.clone();
                source.read(self.byte_range(&run), Box::new(move |result| drop(sender.send((run, result)))));
            }
            drop(sender);
            let mut outcome = Ok(());
            for (run, result) in receiver.iter().take(count) {
                outcome = outcome.and(self.arrive(run, result));
            }
            outcome?;
        }
    }

    /// Bytes of a claimed range have arrived, or will not: stores them and ends the claim.
    pub(super) fn arrive(&self, run: Range<u64>, result: std::result::Result<Bytes, SourceError>) -> Result<()> {
        let stored =
            self.accept(&run, result).and_then(|bytes| self.fill(run.clone(), &bytes).inspect_err(|error| self.note_unstored(error)));
        self.end_claim(&run);
        stored
    }

    /// Backfill pauses as it does for a lost source: there may be space again later.
    pub(super) fn note_unstored(&self, error: &crate::error::Error) {
        let message = format!("fetched blocks cannot be stored: {error}");
        self.note_outcome(Err(&SourceError { kind: crate::source::SourceErrorKind::Failed, message }));
    }

    /// Nobody fetches the range any more: wakes those who wait for it.
    pub(super) fn end_claim(&self, run: &Range<u64>) {
        self.state.lock().under_way.remove(&run.start);
        self.changed.notify_all();
    }

    /// Counts an answer of the source; gives the bytes if they are as many as were asked for.
    pub(super) fn accept(&self, run: &Range<u64>, result: std::result::Result<Bytes, SourceError>) -> Result<Bytes> {
        let expected = self.byte_range(run);
        match result {
            Ok(bytes) if bytes.len() as u64 == expected.end - expected.start => {
                self.note_outcome(Ok(bytes.len() as u64));
                Ok(bytes)
            }
            Ok(bytes) => {
                let message = format!("{} sent {} bytes for a read of {}", self.uri(), bytes.len(), expected.end - expected.start);
                let error = SourceError { kind: crate::source::SourceErrorKind::Changed, message };
                self.note_outcome(Err(&error));
                Err(self.lost(&error))
            }
            Err(error) => {
                self.note_outcome(Err(&error));
                Err(self.lost(&error))
            }
        }
    }

    /// Takes the parts of the runs that nobody fetches yet, in pieces of at most `bytes_max`.
    pub(super) fn claim(&self, runs: &[Range<u64>], bytes_max: u64) -> Vec<Range<u64>> {
        let blocks_max = self.config.block_size.block_of(bytes_max).max(1);
        let mut state = self.state.lock();
        let mut claimed = Vec::new();
        for run in runs {
            let mut start = run.start;
            while start < run.end {
                if let Some(end) = state.end_of_under_way(start) {
                    start = end;
                    continue;
                }
                let end = state.next_under_way(start).min(run.end).min(start + blocks_max);
                state.under_way.insert(start, end);
                claimed.push(start..end);
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

    fn is_under_way(&self, run: &Range<u64>) -> bool {
        self.end_of_under_way(run.start).is_some() || self.next_under_way(run.start) < run.end
    }
}
