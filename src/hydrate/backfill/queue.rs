//! The queue of ranges that backfill fetches first: read-ahead, then traces of earlier forks.

use std::collections::VecDeque;
use std::ops::Range;

use super::ahead::Readers;
use crate::format::TRACE_RUNS_MAX;
use crate::hydrate::progress::FetchClass;
use crate::sync::{Mutex, Rank};

/// Most queued ranges of traces; further ones are dropped.
const FOLLOWED_MAX: usize = 4 * TRACE_RUNS_MAX;
/// Most queued ranges of read-ahead; the oldest ones are dropped.
const AHEAD_MAX: usize = 64;

#[derive(Default)]
struct State {
    readers: Readers,
    ahead: VecDeque<Range<u64>>,
    trace: VecDeque<Range<u64>>,
    /// A trace is known, or was asked for.
    followed: bool,
}

/// The queue of one root layer.
pub struct Queue(Mutex<State>);

impl Default for Queue {
    fn default() -> Self {
        Self(Mutex::ranked(Rank::FirstRanges, State::default()))
    }
}

impl Queue {
    /// Notes a miss of a reader and queues the predicted read-ahead, up to block `end`. Blocks have `block_bytes` bytes.
    pub fn miss(&self, blocks: &Range<u64>, block_bytes: u64, end: u64) {
        let mut state = self.0.lock();
        let ahead = state.readers.miss(blocks, block_bytes);
        // The ranges of the most recent miss go to the front.
        for range in ahead.into_iter().rev().map(|range| range.start..range.end.min(end)).filter(|range| !range.is_empty()) {
            state.ahead.push_front(range);
        }
        state.ahead.truncate(AHEAD_MAX);
    }

    /// Queues the runs of a trace, in their order.
    pub fn follow(&self, runs: impl IntoIterator<Item = Range<u64>>) {
        let mut state = self.0.lock();
        // The source need not be asked for a trace any more.
        state.followed = true;
        // Each fork may add runs, up to the bound.
        let room = FOLLOWED_MAX.saturating_sub(state.trace.len());
        state.trace.extend(runs.into_iter().take(room));
    }

    /// Whether a trace is known, or was asked for.
    pub fn is_followed(&self) -> bool {
        self.0.lock().followed
    }

    /// Notes that the source is asked for a trace.
    pub fn set_followed(&self) {
        self.0.lock().followed = true;
    }

    /// Takes the next range of a class.
    pub fn pop(&self, class: FetchClass) -> Option<Range<u64>> {
        self.0.lock().of(class)?.pop_front()
    }

    /// Puts the rest of a range back to the front.
    pub fn put_back(&self, class: FetchClass, range: Range<u64>) {
        let mut state = self.0.lock();
        state.of(class).into_iter().for_each(|ranges| ranges.push_front(range.clone()));
    }
}

impl State {
    /// The queue of a class; `Demand` and `Backfill` have none.
    fn of(&mut self, class: FetchClass) -> Option<&mut VecDeque<Range<u64>>> {
        match class {
            FetchClass::Ahead => Some(&mut self.ahead),
            FetchClass::Trace => Some(&mut self.trace),
            FetchClass::Demand | FetchClass::Backfill => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_miss_goes_first_and_the_oldest_are_given_up() {
        let queue = Queue::default();
        for number in 0..1000u64 {
            queue.miss(&(number * 1_000_000..number * 1_000_000 + 1), 4096, u64::MAX);
        }
        let mut popped = std::iter::from_fn(|| queue.pop(FetchClass::Ahead));
        assert!(popped.next().is_some_and(|first| first.start > 999 * 1_000_000));
        assert!(popped.count() < AHEAD_MAX);
    }

    #[test]
    fn guesses_end_with_the_source() {
        let queue = Queue::default();
        queue.miss(&(99..100), 4096, 100);
        while let Some(range) = queue.pop(FetchClass::Ahead) {
            assert!(range.end <= 100, "{range:?}");
        }
    }

    #[test]
    fn traces_are_kept_in_order_and_bounded() {
        let queue = Queue::default();
        assert!(!queue.is_followed());
        queue.follow((0..u64::MAX).map(|at| at..at + 1));
        assert!(queue.is_followed());
        assert_eq!(queue.pop(FetchClass::Trace), Some(0..1));
        queue.put_back(FetchClass::Trace, 7..8);
        assert_eq!((queue.pop(FetchClass::Trace), queue.pop(FetchClass::Trace)), (Some(7..8), Some(1..2)));
        assert_eq!(std::iter::from_fn(|| queue.pop(FetchClass::Trace)).count(), FOLLOWED_MAX - 2);
        assert_eq!(queue.pop(FetchClass::Backfill), None);
    }
}
