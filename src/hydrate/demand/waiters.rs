//! The set of readers that wait for missing blocks: their number, their patience, and the failures that they share.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use crate::hydrate::pace::Waits;
use crate::sync::{Mutex, Rank};

/// A reader that has waited this long for another reader's fetch shares its failure instead of retrying.
const SHARED_PATIENCE: Duration = Duration::from_secs(10);
/// Interval at which one of the readers that wait for a lost address asks again.
const TRY_INTERVAL: Duration = Duration::from_secs(1);
/// Most failures that are kept for waiting readers; the oldest are dropped.
const FAILURES_MAX: usize = 256;

/// A waiting reader.
#[derive(Clone, Copy)]
pub struct Waiter {
    began: Duration,
    patience: Duration,
    /// Value of `given_up` when it began.
    given_up: u64,
}

/// When a reader asked, and the value of `returns` at that time.
#[derive(Clone, Copy)]
pub struct Asked {
    at: Duration,
    returns: u64,
}

/// A failed request.
struct Failure {
    run: Range<u64>,
    at: Duration,
    /// An address could not be reached, and may give the range later.
    may_return: bool,
}

/// What a reader does after it could not reach an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Asks again.
    Now,
    /// Decides again after this time, or after news.
    After(Duration),
    /// Fails with the loss.
    Never,
}

#[derive(Default)]
struct State {
    count: u32,
    /// Recent waits, from which further ones are predicted.
    waits: Waits,
    /// Number of calls of [`Waiters::give_up`].
    given_up: u64,
    stopped: bool,
    failures: VecDeque<Failure>,
    /// How often an address succeeded after a failure.
    returns: u64,
    /// When a reader last failed because its patience with a lost address was over. Readers that come soon after that do not wait for the
    /// address again.
    lost_at: Option<Duration>,
    /// When the next of the readers that wait for a lost address may ask.
    next_try: Duration,
}

/// The waiting readers of one root layer.
pub struct Waiters(Mutex<State>);

impl Default for Waiters {
    fn default() -> Self {
        Self(Mutex::ranked(Rank::WaitingReaders, State::default()))
    }
}

impl State {
    fn has_given_up(&self, waiter: Waiter) -> bool {
        self.given_up != waiter.given_up
    }

    /// Whether a reader still has patience with lost addresses.
    fn is_patient(&self, waiter: Waiter, now: Duration) -> bool {
        let is_recent = |at: Duration| now.saturating_sub(at) < waiter.patience;
        is_recent(waiter.began) && !self.lost_at.is_some_and(is_recent)
    }

    fn has_waited_enough(&mut self, waiter: Waiter, now: Duration) -> bool {
        let is_over = !self.is_patient(waiter, now);
        if is_over {
            self.lost_at = Some(now);
        }
        is_over
    }
}

impl Waiters {
    /// Adds a reader. It is counted and reads `given_up` under one lock, so that a give-up reaches every counted reader.
    pub fn enter(&self, now: Duration, patience: Duration) -> Waiter {
        let mut state = self.0.lock();
        state.count += 1;
        Waiter { began: now, patience, given_up: state.given_up }
    }

    /// Removes a reader that has its blocks, or an error. Returns whether it was the last one.
    pub fn leave(&self, now: Duration) -> bool {
        let mut state = self.0.lock();
        state.count -= 1;
        state.waits.note(now);
        state.count == 0
    }

    /// Number of readers that wait now.
    pub fn count(&self) -> u32 {
        self.0.lock().count
    }

    /// Whether any wait has ended so far.
    pub fn any(&self) -> bool {
        self.0.lock().waits.any()
    }

    /// Whether a reader waits, or one is expected to wait soon.
    pub fn expects_more(&self, now: Duration) -> bool {
        let state = self.0.lock();
        state.count > 0 || state.waits.more_to_come(now)
    }

    /// Number of give-ups so far.
    pub fn given_up(&self) -> u64 {
        self.0.lock().given_up
    }

    /// Whether this reader was given up.
    pub fn has_given_up(&self, waiter: Waiter) -> bool {
        self.0.lock().has_given_up(waiter)
    }

    /// Ends the waits of all present readers.
    pub fn give_up(&self) {
        self.0.lock().given_up += 1;
    }

    /// Makes later readers fail at once instead of waiting for a lost address.
    pub fn stop(&self) {
        self.0.lock().stopped = true;
    }

    /// The present moment, for [`Waiters::retry`].
    pub fn asks(&self, now: Duration) -> Asked {
        Asked { at: now, returns: self.0.lock().returns }
    }

    /// Notes that an address has succeeded after a failure.
    pub fn note_return(&self) {
        let mut state = self.0.lock();
        state.returns += 1;
        state.lost_at = None;
    }

    /// Notes a failed request, for the readers that wait for its range. `may_return`: an address could not be reached, and may give the
    /// range later.
    pub fn note_failed(&self, run: Range<u64>, at: Duration, may_return: bool) {
        let mut state = self.0.lock();
        if state.failures.len() >= FAILURES_MAX {
            state.failures.pop_front();
        }
        state.failures.push_back(Failure { run, at, may_return });
    }

    /// Whether a reader fails with the failure of another fetch: it was given up, or has waited for [`SHARED_PATIENCE`], and a failure
    /// concerns its `missing` blocks. Without this, readers of one block would retry one after the other, and the last one would wait many
    /// times as long as the first.
    pub fn fails(&self, waiter: Waiter, now: Duration, missing: impl FnOnce() -> Vec<Range<u64>>) -> bool {
        let state = self.0.lock();
        let given_up = state.has_given_up(waiter);
        let is_new = now.saturating_sub(waiter.began) < SHARED_PATIENCE;
        if !given_up && (is_new || state.failures.is_empty()) {
            return false;
        }
        let (is_patient, missing) = (state.is_patient(waiter, now), missing());
        let concerns = |failure: &Failure| {
            let is_missing = missing.iter().any(|other| other.start < failure.run.end && failure.run.start < other.end);
            failure.at >= waiter.began && !(failure.may_return && is_patient) && is_missing
        };
        !missing.is_empty() && (given_up || state.failures.iter().any(concerns))
    }

    /// Whether the patience of a reader with lost addresses is over. If so, readers that come soon fail at once.
    pub fn has_waited_enough(&self, waiter: Waiter, now: Duration) -> bool {
        self.0.lock().has_waited_enough(waiter, now)
    }

    /// Decides what a reader does that has asked and could not reach an address.
    pub fn retry(&self, waiter: Waiter, asked: Asked, now: Duration) -> Retry {
        let mut state = self.0.lock();
        if state.stopped || state.has_given_up(waiter) || state.has_waited_enough(waiter, now) {
            return Retry::Never;
        }
        // An unstable address must not be asked by every reader each time that it succeeds for one of them.
        if state.returns != asked.returns && now.saturating_sub(asked.at) >= TRY_INTERVAL {
            return Retry::Now;
        }
        if now >= state.next_try {
            state.next_try = now + TRY_INTERVAL;
            return Retry::Now;
        }
        let over = waiter.began.saturating_add(waiter.patience);
        Retry::After(state.next_try.min(over).saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn one_of_all_that_wait_for_a_lost_host_asks_at_a_time() {
        let waiters = Waiters::default();
        let (one, other) = (waiters.enter(seconds(100), PATIENCE), waiters.enter(seconds(100), PATIENCE));
        let asked = waiters.asks(seconds(100));
        assert_eq!(waiters.retry(one, asked, seconds(100)), Retry::Now);
        assert_eq!(waiters.retry(other, asked, seconds(100)), Retry::After(TRY_INTERVAL));
        assert_eq!(waiters.retry(other, asked, seconds(101)), Retry::Now);
        assert_eq!(waiters.retry(one, asked, seconds(101)), Retry::After(TRY_INTERVAL));
        waiters.note_return();
        assert_eq!(waiters.retry(one, asked, seconds(101)), Retry::Now, "it is back");
    }

    #[test]
    fn after_a_loss_readers_are_told_at_once_for_a_while() {
        let waiters = Waiters::default();
        let first = waiters.enter(seconds(100), PATIENCE);
        let asked = waiters.asks(seconds(100));
        assert_eq!(waiters.retry(first, asked, seconds(130)), Retry::Never);
        let second = waiters.enter(seconds(131), PATIENCE);
        assert_eq!(waiters.retry(second, asked, seconds(131)), Retry::Never);
        waiters.note_return();
        assert_eq!(waiters.retry(second, waiters.asks(seconds(132)), seconds(132)), Retry::Now);
    }

    #[test]
    fn a_failure_is_shared_by_readers_that_waited_long_for_it() {
        let waiters = Waiters::default();
        let (late, early) = (waiters.enter(seconds(108), seconds(0)), waiters.enter(seconds(100), seconds(0)));
        waiters.note_failed(5..9, seconds(109), false);
        let fails = |waiter, missing: Range<u64>| waiters.fails(waiter, seconds(111), || std::iter::once(missing).collect());
        assert!(fails(early, 8..20) && !fails(late, 8..20), "a reader asks once itself");
        assert!(!fails(early, 9..20), "other blocks did not fail");
        assert!(!waiters.fails(early, seconds(111), Vec::new), "all have come");
        waiters.give_up();
        assert!(fails(late, 9..20) && !waiters.fails(late, seconds(111), Vec::new));
        assert!(!fails(waiters.enter(seconds(111), PATIENCE), 9..20), "it began after that");
    }

    #[test]
    fn the_last_reader_that_leaves_is_seen() {
        let waiters = Waiters::default();
        waiters.enter(seconds(1), PATIENCE);
        waiters.enter(seconds(1), PATIENCE);
        assert!(waiters.expects_more(seconds(1)) && !waiters.any());
        assert!(!waiters.leave(seconds(2)) && waiters.any());
        assert!(waiters.leave(seconds(9)) && waiters.count() == 0);
        assert!(!waiters.expects_more(seconds(9)), "their waits were far apart");
    }
}
