//! Readers that wait for missing blocks: how many, for how long, and what they are told.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use crate::hydrate::pace::Waits;
use crate::sync::Mutex;

/// A reader that has waited this long for another reader's fetch shares its failure instead of retrying.
const SHARED_PATIENCE: Duration = Duration::from_secs(10);
/// How often all readers that wait for addresses to come back ask together.
const TRY_INTERVAL: Duration = Duration::from_secs(1);
/// Failures that are kept for readers that wait.
const FAILURES_MAX: usize = 256;

/// A reader that waits.
#[derive(Clone, Copy)]
pub struct Waiter {
    began: Duration,
    patience: Duration,
    /// How often waiting had been given up when it began.
    given_up: u64,
}

/// When a reader asked, and how often an address had come back until then.
#[derive(Clone, Copy)]
pub struct Asked {
    at: Duration,
    returns: u64,
}

/// A request that brought nothing.
struct Failure {
    run: Range<u64>,
    at: Duration,
    /// An address was away, and may give the range later.
    may_return: bool,
}

/// What a reader does that could not reach an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Asks again.
    Now,
    /// Looks again after this time, or when something has changed.
    After(Duration),
    /// Is told of the loss.
    Never,
}

#[derive(Default)]
struct State {
    count: u32,
    /// When readers waited.
    waits: Waits,
    /// How often it was said that no reader that waits then is to wait any longer.
    given_up: u64,
    stopped: bool,
    failures: VecDeque<Failure>,
    /// How often an address that had failed gave something again.
    returns: u64,
    /// When a reader was told the latest time that an address stayed away for as long as readers wait: those that come soon do not
    /// wait for it again.
    lost_at: Option<Duration>,
    /// When the next reader that waits for an address to come back may ask.
    next_try: Duration,
}

/// The readers of one root layer that wait.
#[derive(Default)]
pub struct Waiters(Mutex<State>);

impl State {
    fn has_given_up(&self, waiter: Waiter) -> bool {
        self.given_up != waiter.given_up
    }

    /// Whether a reader waits on for addresses that cannot be reached.
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
    /// A reader begins to wait. A reader that is counted can be given up: both at once.
    pub fn enter(&self, now: Duration, patience: Duration) -> Waiter {
        let mut state = self.0.lock();
        state.count += 1;
        Waiter { began: now, patience, given_up: state.given_up }
    }

    /// A reader has what it waited for, or an error. Answers whether none is left.
    pub fn leave(&self, now: Duration) -> bool {
        let mut state = self.0.lock();
        state.count -= 1;
        state.waits.note(now);
        state.count == 0
    }

    /// Readers that wait now.
    pub fn count(&self) -> u32 {
        self.0.lock().count
    }

    /// Whether any reader has waited so far.
    pub fn any(&self) -> bool {
        self.0.lock().waits.any()
    }

    /// Whether readers wait, or will soon.
    pub fn expects_more(&self, now: Duration) -> bool {
        let state = self.0.lock();
        state.count > 0 || state.waits.more_to_come(now)
    }

    /// How often waiting was given up.
    pub fn given_up(&self) -> u64 {
        self.0.lock().given_up
    }

    /// Whether waiting was given up since a reader began.
    pub fn has_given_up(&self, waiter: Waiter) -> bool {
        self.0.lock().has_given_up(waiter)
    }

    /// Lets no reader that waits now wait any longer.
    pub fn give_up(&self) {
        self.0.lock().given_up += 1;
    }

    /// Lets no reader wait for an address any more.
    pub fn stop(&self) {
        self.0.lock().stopped = true;
    }

    /// A moment.
    pub fn asks(&self, now: Duration) -> Asked {
        Asked { at: now, returns: self.0.lock().returns }
    }

    /// An address that had failed has given something again.
    pub fn note_return(&self) {
        let mut state = self.0.lock();
        state.returns += 1;
        state.lost_at = None;
    }

    /// Keeps in mind that a request brought nothing. `may_return`: an address was away, and may give it later.
    pub fn note_failed(&self, run: Range<u64>, at: Duration, may_return: bool) {
        let mut state = self.0.lock();
        if state.failures.len() >= FAILURES_MAX {
            state.failures.pop_front();
        }
        state.failures.push_back(Failure { run, at, may_return });
    }

    /// Whether a reader has waited in vain for blocks of which `missing` are still missing: given up, or long enough for a request of
    /// somebody else. Otherwise readers of one block would ask one after the other, and the last of them would wait many times as long as
    /// the first.
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

    /// Whether a reader that could not reach an address is to be told so; others that come soon are told at once then.
    pub fn has_waited_enough(&self, waiter: Waiter, now: Duration) -> bool {
        self.0.lock().has_waited_enough(waiter, now)
    }

    /// What a reader does that asked, and could not reach an address.
    pub fn retry(&self, waiter: Waiter, asked: Asked, now: Duration) -> Retry {
        let mut state = self.0.lock();
        if state.stopped || state.has_given_up(waiter) || state.has_waited_enough(waiter, now) {
            return Retry::Never;
        }
        // One that comes and goes must not be asked each time that it gives something to somebody else.
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
