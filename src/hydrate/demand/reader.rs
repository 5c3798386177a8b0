//! What a reader does until its blocks are here.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::fetch::{REQUEST_BYTES, Unfetched, WaitedFetch};
use super::waiters::{Asked, Retry, Waiter};
use crate::error::Result;
use crate::hydrate::parts::Parts;
use crate::place::wide;
use crate::source::{SourceError, SourceErrorKind, SourceExt};

/// Fetches in a row that end well and leave nothing in the layer, before a reader is told that there is nothing to wait for. A fill of
/// the same block that is under way makes one of them.
const IN_VAIN_MAX: u32 = 8;

/// Counts a reader that waits until it is dropped.
struct Counted<'a>(&'a Parts);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if self.0.waiters.leave(self.0.now()) {
            self.0.tell();
        }
    }
}

/// One reader and the blocks that it waits for.
struct Reader<'a> {
    parts: &'a Arc<Parts>,
    blocks: Range<u64>,
    waiter: Waiter,
    fetches_in_vain: u32,
    /// What was missing at the latest change, and when that was.
    latest: (Vec<Range<u64>>, Duration),
}

/// Returns when every block of the range is here. Blocks that are under way already are waited for, not fetched again.
///
/// # Errors
/// [`crate::ErrorKind::SourceLost`] after the bounded retries of every source, for as long as
/// [`SourceOpener::patience`](crate::source::SourceOpener::patience) says; an I/O error of the layer's file.
pub fn demand(parts: &Arc<Parts>, blocks: Range<u64>) -> Result<()> {
    let waiter = parts.waiters.enter(parts.now(), parts.patience);
    let _counted = Counted(parts);
    let mut reader = Reader { parts, blocks, waiter, fetches_in_vain: 0, latest: (Vec::new(), Duration::ZERO) };
    let mut is_first = true;
    while !reader.step(std::mem::take(&mut is_first))? {}
    Ok(())
}

/// Fills `buffer` with blocks of the source from `first` on, whatever the layer has, and stores nothing.
///
/// # Errors
/// [`crate::ErrorKind::SourceLost`].
pub fn read_through(parts: &Parts, first: u64, buffer: &mut [u8]) -> Result<()> {
    let blocks = parts.root.block_size.blocks_for(wide(buffer.len()));
    let range = parts.root.byte_range(&(first..first + blocks));
    let mut tried = Vec::new();
    let given_up = parts.waiters.given_up();
    let mut failure = closed("there is no address to ask");
    while let Some(uri) = parts.addresses.next_waited(&tried) {
        let source = parts.addresses.source_while(&uri, || parts.waiters.given_up() == given_up);
        match source.and_then(|source| source.read_blocking(range.clone())) {
            Ok(bytes) => {
                buffer[..bytes.len()].copy_from_slice(&bytes);
                buffer[bytes.len()..].fill(0);
                return Ok(());
            }
            Err(error) => failure = error,
        }
        tried.push(uri);
    }
    Err(parts.lost(&failure))
}

fn closed(message: &str) -> SourceError {
    SourceError { kind: SourceErrorKind::Closed, message: message.into() }
}

impl Reader<'_> {
    /// One look: fetches what nobody else does, or waits for what others fetch. Answers whether every block is here.
    ///
    /// The news are noted before the look, so that whatever comes after it ends the wait.
    fn step(&mut self, is_first: bool) -> Result<bool> {
        let (parts, waiter) = (self.parts, self.waiter);
        let seen = parts.news.seen();
        self.check_failures()?;
        let asked = parts.waiters.asks(parts.now());
        let claimed = parts.claim(&self.blocks, REQUEST_BYTES, usize::MAX);
        if is_first {
            self.look_ahead();
        }
        if !claimed.is_empty() {
            let runs: Vec<_> = claimed.iter().map(|claim| claim.run.clone()).collect();
            let fetched = WaitedFetch::run(parts, waiter, claimed.into_iter().map(|claim| (claim.run.clone(), Some(claim))));
            self.note_fetched(fetched, &runs, asked)?;
            return Ok(false);
        }
        let missing = parts.root.missing_runs(&self.blocks);
        if missing.is_empty() {
            return Ok(true);
        }
        if parts.waiters.has_given_up(waiter) || !parts.claims.meet(&missing) {
            return Ok(false);
        }
        let now = parts.now();
        if missing != self.latest.0 {
            self.latest = (missing, now);
        }
        // A range that failed is claimed by the first reader that looks again.
        let patience = parts.addresses.look(|peers| peers.bulk_patience());
        match patience.map(|patience| (self.latest.1 + patience).saturating_sub(now)) {
            Some(Duration::ZERO) => self.race(asked)?,
            left => parts.news.wait(seen, left),
        }
        Ok(false)
    }

    /// Asks another address for the first blocks of what a fetch of somebody else does not bring.
    fn race(&self, asked: Asked) -> Result<()> {
        let blocks_max = self.parts.root.block_size.block_of(REQUEST_BYTES).max(1);
        let Some(first) = self.latest.0.first() else { return Ok(()) };
        let run = first.start..first.end.min(first.start + blocks_max);
        match WaitedFetch::run(self.parts, self.waiter, std::iter::once((run, None))) {
            Ok(()) => Ok(()),
            Err(failed) => self.wait_for_return(failed, asked),
        }
    }

    /// A fetch of claimed runs has ended. One that failed is made again when it is time.
    fn note_fetched(&mut self, fetched: std::result::Result<(), Unfetched>, runs: &[Range<u64>], asked: Asked) -> Result<()> {
        if let Err(failed) = fetched {
            return self.wait_for_return(failed, asked);
        }
        let in_vain = runs.iter().any(|run| self.parts.root.missing_runs(run) == std::slice::from_ref(run));
        self.fetches_in_vain = if in_vain { self.fetches_in_vain + 1 } else { 0 };
        if self.fetches_in_vain >= IN_VAIN_MAX {
            // The layer takes no blocks any more, or forgets them at once.
            return Err(self.parts.lost(&closed("what came is not needed any more")));
        }
        Ok(())
    }

    /// Fails if the reader has waited for its blocks in vain.
    fn check_failures(&self) -> Result<()> {
        let parts = self.parts;
        if !parts.waiters.fails(self.waiter, parts.now(), || parts.root.missing_runs(&self.blocks)) {
            return Ok(());
        }
        let last = parts.health.last_error().map(|message| SourceError { kind: SourceErrorKind::Lost, message });
        Err(parts.lost(&last.unwrap_or_else(super::fetch::given_up_error)))
    }

    /// Returns when it is time to ask again for what could not be had because an address cannot be reached.
    ///
    /// # Errors
    /// That of the fetch, if it is not worth waiting, or was waited for long enough.
    fn wait_for_return(&self, failed: Unfetched, asked: Asked) -> Result<()> {
        if !failed.may_return {
            return Err(failed.error);
        }
        loop {
            let seen = self.parts.news.seen();
            match self.parts.waiters.retry(self.waiter, asked, self.parts.now()) {
                Retry::Now => return Ok(()),
                Retry::Never => return Err(failed.error),
                Retry::After(pause) => self.parts.news.wait(seen, Some(pause)),
            }
        }
    }

    /// Guesses what will be read next, and lets it be fetched.
    fn look_ahead(&self) {
        let parts = self.parts;
        if !parts.throttle.settings().paused {
            let end = parts.root.layer.source_blocks().unwrap_or(0);
            parts.queue.miss(&self.blocks, parts.root.block_size.bytes(), end);
            parts.tell();
        }
    }
}
