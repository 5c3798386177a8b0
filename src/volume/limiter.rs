//! Keeping the limits of what the clients of a volume ask of it together.
//!
//! A request that the rates do not let begin yet takes its tokens in advance, and has a [`Turn`], which knows when it may begin. Each
//! connection has at most one, so connections take turns, whatever each has sent. The waiting is theirs: nothing here waits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::format::VolumeLimits;
use crate::ids::VolumeId;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, Rank};
use crate::tokens::{Flow, Tokens};

/// What a volume without a burst of its own may do at once, as the time in which its rates allow it.
const BURST: Duration = Duration::from_millis(100);
/// A request begins this much before its time rather than wait: waits are longer than what it costs to wake.
const EARLY: Duration = Duration::from_micros(500);
/// How often a waiting connection looks whether the limits were changed, times the number of those that wait.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const LOOK_EVERY_MAX: Duration = Duration::from_secs(1);

/// Keeps the limits of one volume.
pub struct Limiter {
    clock: Arc<dyn Clock>,
    is_limited: AtomicBool,
    state: Mutex<State>,
}

struct State {
    limits: VolumeLimits,
    /// Counts the changes of the limits.
    period: u64,
    operations: Tokens,
    bytes: Tokens,
    /// Turns of this period that have not begun, and their bytes.
    ahead: (u64, u64),
}

/// A request that has taken its tokens and has not begun. They are given back if it is dropped.
pub struct Turn {
    limiter: Arc<Limiter>,
    bytes: u64,
    due: Duration,
    period: u64,
}

fn flow(limits: VolumeLimits, per_second: Option<u64>) -> Option<Flow> {
    let burst = limits.burst_millis.map_or(BURST, Duration::from_millis);
    per_second.map(|per_second| Flow { per_second, burst })
}

impl State {
    fn flows(&self) -> (Option<Flow>, Option<Flow>) {
        (flow(self.limits, self.limits.iops), flow(self.limits, self.limits.bytes_per_second))
    }

    /// Takes the tokens of a request; answers when it may begin.
    fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        let (operations, rate) = self.flows();
        let first = operations.map_or(Duration::ZERO, |flow| self.operations.take_ahead(now, flow, 1));
        let second = rate.filter(|_| bytes > 0).map_or(Duration::ZERO, |flow| self.bytes.take_ahead(now, flow, bytes));
        self.ahead = (self.ahead.0 + 1, self.ahead.1.saturating_add(bytes));
        now.saturating_add(first.max(second))
    }

    /// Forgets a turn of this period.
    fn leave(&mut self, bytes: u64) {
        self.ahead = (self.ahead.0.saturating_sub(1), self.ahead.1.saturating_sub(bytes));
    }
}

impl Limiter {
    fn new(clock: &Arc<dyn Clock>, limits: VolumeLimits) -> Arc<Self> {
        let none = VolumeLimits::default();
        let state = State { limits: none, period: 0, operations: Tokens::default(), bytes: Tokens::default(), ahead: (0, 0) };
        let state = Mutex::ranked(Rank::Limiter, state);
        let limiter = Self { clock: Arc::clone(clock), is_limited: AtomicBool::new(false), state };
        limiter.set(limits);
        Arc::new(limiter)
    }

    /// Whether there are limits.
    #[inline]
    pub fn is_limited(&self) -> bool {
        self.is_limited.load(Ordering::Relaxed)
    }

    /// Changes the limits. Requests that wait take their tokens anew, in whatever order they look; what was done before counts on.
    fn set(&self, limits: VolumeLimits) {
        let now = self.clock.monotonic();
        let mut state = self.state.lock();
        let (old_operations, old_bytes) = state.flows();
        let (operations, bytes) = std::mem::take(&mut state.ahead);
        state.limits = limits;
        state.period += 1;
        let (new_operations, new_bytes) = state.flows();
        go_on(&mut state.operations, now, (old_operations, new_operations), operations);
        go_on(&mut state.bytes, now, (old_bytes, new_bytes), bytes);
        self.is_limited.store(limits.is_some(), Ordering::Relaxed);
    }

    /// Takes the tokens of a request that transfers so many bytes, which then waits for its turn.
    pub fn queue(self: &Arc<Self>, bytes: u64) -> Turn {
        let now = self.clock.monotonic();
        let mut state = self.state.lock();
        Turn { limiter: Arc::clone(self), bytes, due: state.take(now, bytes), period: state.period }
    }
}

/// Lets a bucket go on under other limits, with `ahead` tokens given back; one that had no limit begins full.
fn go_on(tokens: &mut Tokens, now: Duration, flows: (Option<Flow>, Option<Flow>), ahead: u64) {
    match flows {
        (Some(old), _) => {
            tokens.fill(now, old);
            tokens.give_back(ahead);
        }
        (None, Some(new)) => *tokens = Tokens::full(now, new),
        (None, None) => {}
    }
}

impl Turn {
    /// How long to wait before the next call; `None` once the request may begin.
    pub fn wait(&mut self) -> Option<Duration> {
        let now = self.limiter.clock.monotonic();
        let mut state = self.limiter.state.lock();
        if self.period != state.period {
            (self.due, self.period) = (state.take(now, self.bytes), state.period);
        }
        let wait = self.due.saturating_sub(now);
        let others = u32::try_from(state.ahead.0).unwrap_or(u32::MAX);
        let look = LOOK_EVERY.saturating_mul(others).clamp(LOOK_EVERY, LOOK_EVERY_MAX);
        (wait > EARLY).then(|| wait.min(look))
    }

    /// The request begins: its tokens are spent.
    pub fn begin(mut self) {
        let limiter = Arc::clone(&self.limiter);
        let mut state = limiter.state.lock();
        if self.period == state.period {
            state.leave(self.bytes);
        }
        // Nothing is given back then.
        self.period = u64::MAX;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.limiter.state.lock();
        if self.period == state.period {
            state.leave(self.bytes);
            state.operations.give_back(1);
            state.bytes.give_back(self.bytes);
        }
    }
}

/// What keeps the limits of the volumes that have, or had, clients. Locked after the catalogue.
pub struct Limiters(Mutex<HashMap<VolumeId, Arc<Limiter>>>);

impl Default for Limiters {
    fn default() -> Self {
        Self(Mutex::ranked(Rank::Limiters, HashMap::new()))
    }
}

impl Limiters {
    /// That of a volume, which is the same until the store is closed: a client that connects again finds no full bucket. `limits`: those of
    /// the catalogue; `None` if the volume is gone.
    pub fn get(&self, volume: VolumeId, clock: &Arc<dyn Clock>, limits: Option<VolumeLimits>) -> Arc<Limiter> {
        let Some(limits) = limits else { return Limiter::new(clock, VolumeLimits::default()) };
        if let Some(known) = self.known(volume) {
            return known;
        }
        let limiter = Limiter::new(clock, limits);
        self.0.lock().insert(volume, Arc::clone(&limiter));
        limiter
    }

    fn known(&self, volume: VolumeId) -> Option<Arc<Limiter>> {
        self.0.lock().get(&volume).cloned()
    }

    /// Changes the limits of a volume.
    pub fn set(&self, volume: VolumeId, limits: VolumeLimits) {
        self.known(volume).into_iter().for_each(|limiter| limiter.set(limits));
    }

    /// Removes that of a volume that was destroyed.
    pub fn remove(&self, volume: VolumeId) {
        self.0.lock().remove(&volume);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that a test sets, in milliseconds.
    struct Hand(Mutex<u64>);

    impl Clock for Hand {
        fn monotonic(&self) -> Duration {
            Duration::from_millis(*self.0.lock())
        }

        fn unix(&self) -> Duration {
            self.monotonic()
        }
    }

    struct Stage {
        hand: Arc<Hand>,
        limiter: Arc<Limiter>,
    }

    impl Stage {
        fn new(limits: VolumeLimits) -> Self {
            let hand = Arc::new(Hand(Mutex::new(5000)));
            let clock: Arc<dyn Clock> = Arc::clone(&hand) as _;
            Self { limiter: Limiter::new(&clock, limits), hand }
        }

        fn pass(&self, millis: u64) {
            *self.hand.0.lock() += millis;
        }

        /// How many requests of so many bytes may begin now.
        fn begin_all(&self, bytes: u64) -> usize {
            (0..10_000)
                .take_while(|_| {
                    let mut turn = self.limiter.queue(bytes);
                    let begins = turn.wait().is_none();
                    if begins {
                        turn.begin();
                    }
                    begins
                })
                .count()
        }
    }

    fn limits() -> VolumeLimits {
        VolumeLimits::default()
    }

    #[test]
    fn rates_hold_over_time_and_a_burst_comes_once() {
        let stage = Stage::new(limits().with_iops(1000).with_bytes_per_second(4 << 20).with_burst_millis(2000));
        assert_eq!(stage.begin_all(512), 2001, "the operations of two seconds");
        stage.pass(1000);
        assert_eq!(stage.begin_all(8192), 1000, "the operations of one second");
        let mut begun = 0;
        for _ in 0..10_000 {
            stage.pass(1);
            begun += stage.begin_all(8192);
        }
        assert!((5144..=5146).contains(&begun), "{begun} of 8 KiB in 10 s at 4 MiB/s, when 24 of them were left");
        stage.pass(1_000_000);
        assert_eq!(stage.begin_all(0), 2001, "an idle volume saves no more than its burst");
    }

    #[test]
    fn connections_go_in_turns() {
        let stage = Stage::new(limits().with_iops(10));
        assert_eq!(stage.begin_all(0), 2);
        let mut turns: Vec<Turn> = (0..3).map(|_| stage.limiter.queue(0)).collect();
        for _ in 0..3 {
            stage.pass(100);
            assert!(turns.iter_mut().skip(1).all(|turn| turn.wait().is_some()), "the first one first");
            assert!(turns[0].wait().is_none());
            turns.remove(0).begin();
            turns.push(stage.limiter.queue(0));
        }
        // One that goes leaves its place to those that come.
        turns.clear();
        stage.pass(100);
        assert_eq!(stage.begin_all(0), 1);
    }

    #[test]
    fn limits_that_change_count_for_those_that_wait() {
        let stage = Stage::new(limits().with_bytes_per_second(1000));
        assert!(!Stage::new(limits()).limiter.is_limited() && stage.limiter.is_limited());
        assert_eq!(stage.begin_all(100_000), 1);
        let mut turns = [stage.limiter.queue(5000), stage.limiter.queue(0)];
        assert!(turns[0].wait().is_some() && turns[1].wait().is_none(), "no bytes are no debt");
        // The debt of 99,900 bytes is paid in a tenth of a second then.
        stage.limiter.set(limits().with_bytes_per_second(1_000_000));
        assert!(turns[0].wait().is_some());
        stage.pass(100);
        assert!(turns[0].wait().is_none());
        stage.limiter.set(limits().with_iops(1));
        assert_eq!(turns.iter_mut().filter_map(Turn::wait).count(), 0, "a new limit begins with a burst");
        let mut third = stage.limiter.queue(0);
        assert!(third.wait().is_some());
        stage.limiter.set(limits());
        assert!(third.wait().is_none() && !stage.limiter.is_limited());
        drop((turns, third));
        assert_eq!(stage.limiter.state.lock().ahead, (0, 0));
    }

    #[test]
    fn a_volume_has_one_limiter_until_it_is_destroyed() {
        let stage = Stage::new(limits());
        let (clock, limiters): (Arc<dyn Clock>, _) = (stage.hand.clone(), Limiters::default());
        let get = |limits| limiters.get(VolumeId(1), &clock, limits);
        let first = get(Some(limits().with_iops(1)));
        assert!(Arc::ptr_eq(&first, &get(Some(limits().with_iops(1)))));
        limiters.set(VolumeId(1), limits());
        assert!(!first.is_limited());
        limiters.remove(VolumeId(1));
        assert!(!Arc::ptr_eq(&first, &get(None)) && limiters.known(VolumeId(1)).is_none());
    }
}
