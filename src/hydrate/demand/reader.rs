//! The loop of a reader that waits for missing blocks.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::fetch::{REQUEST_BYTES, Unfetched, WaitedFetch};
use super::waiters::{Asked, Retry, Waiter};
use crate::error::Result;
use crate::hydrate::parts::Parts;
use crate::place::wide;
use crate::source::{SourceError, SourceErrorKind, SourceExt};

/// Successful fetches in a row that store nothing, after which a reader fails. A concurrent fill of the same block can cause a single
/// one.
const IN_VAIN_MAX: u32 = 8;

/// Guard of a waiting reader, which is counted until dropped.
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
    /// The missing runs at their latest change, and the time of that change.
    latest: (Vec<Range<u64>>, Duration),
}

/// Returns when every block of the range is present. Blocks that are being fetched already are waited for (single flight).
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

/// Reads blocks of the source into `buffer`, beginning with block `first`, without looking at the layer or storing anything.
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
    /// One turn of the loop. Returns whether every block is present.
    ///
    /// 1. The count of the news is noted before anything else: a change after this point ends the wait of step 6 at once, so no wake is
    ///    lost.
    /// 2. Missing ranges that nobody fetches are claimed, under the lock that rules out fetching a block that was just stored.
    /// 3. If a fetch that the reader has waited for failed, it shares the failure: readers of one block would otherwise retry one after the
    ///    other, and the last one would wait many times as long. A fetch notes its failure before its claims end, so a reader that has
    ///    claimed the same range afterwards finds it.
    /// 4. Claimed ranges are fetched on this thread. After a loss the reader waits until it may ask again.
    /// 5. If nothing could be claimed and nothing is missing, the read is done. If what is missing is not under way any more, the loop
    ///    looks again: the fetch has failed, and the first reader that looks claims the range.
    /// 6. Otherwise it waits for the news of the other fetches. If these bring nothing for longer than the patience with bulk, it asks
    ///    another address for the first range, without a claim.
    fn step(&mut self, is_first: bool) -> Result<bool> {
        let (parts, waiter) = (self.parts, self.waiter);
        let seen = parts.news.seen();
        let asked = parts.waiters.asks(parts.now());
        let claimed = parts.claim(&self.blocks, REQUEST_BYTES, usize::MAX);
        if let Err(error) = self.check_failures() {
            // Others may have seen these claims, and wait for their end.
            drop(claimed);
            parts.news.tell();
            return Err(error);
        }
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
        // Step 6.
        let patience = parts.addresses.look(|peers| peers.bulk_patience());
        match patience.map(|patience| (self.latest.1 + patience).saturating_sub(now)) {
            Some(Duration::ZERO) => self.race(asked)?,
            left => parts.news.wait(seen, left),
        }
        Ok(false)
    }

    /// Fetches the first missing blocks without a claim, because the fetch that holds the claim has stalled.
    fn race(&self, asked: Asked) -> Result<()> {
        let blocks_max = self.parts.root.block_size.block_of(REQUEST_BYTES).max(1);
        let Some(first) = self.latest.0.first() else { return Ok(()) };
        let run = first.start..first.end.min(first.start + blocks_max);
        match WaitedFetch::run(self.parts, self.waiter, std::iter::once((run, None))) {
            Ok(()) => Ok(()),
            Err(failed) => self.wait_for_return(failed, asked),
        }
    }

    /// Handles the end of a fetch of claimed runs. After a failure it waits until the fetch may be repeated.
    fn note_fetched(&mut self, fetched: std::result::Result<(), Unfetched>, runs: &[Range<u64>], asked: Asked) -> Result<()> {
        if let Err(failed) = fetched {
            return self.wait_for_return(failed, asked);
        }
        let in_vain = runs.iter().any(|run| self.parts.root.missing_runs(run) == std::slice::from_ref(run));
        self.fetches_in_vain = if in_vain { self.fetches_in_vain + 1 } else { 0 };
        if self.fetches_in_vain >= IN_VAIN_MAX {
            // The layer stores no blocks any more, or forgets them at once.
            return Err(self.parts.lost(&closed("the layer does not store the fetched blocks: the volume may have been destroyed")));
        }
        Ok(())
    }

    /// Fails if the reader shares the failure of another fetch, or was given up.
    fn check_failures(&self) -> Result<()> {
        let parts = self.parts;
        if !parts.waiters.fails(self.waiter, parts.now(), || parts.root.missing_runs(&self.blocks)) {
            return Ok(());
        }
        let last = parts.health.last_error().map(|message| SourceError { kind: SourceErrorKind::Lost, message });
        Err(parts.lost(&last.unwrap_or_else(super::fetch::given_up_error)))
    }

    /// Waits after a failed fetch until the reader may ask again.
    ///
    /// # Errors
    /// That of the fetch, if no address may come back, or the patience is over.
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

    /// Queues read-ahead for this miss.
    fn look_ahead(&self) {
        let parts = self.parts;
        if !parts.throttle.settings().paused {
            let end = parts.root.layer.source_blocks().unwrap_or(0);
            parts.queue.miss(&self.blocks, parts.root.block_size.bytes(), end);
            parts.tell();
        }
    }
}
