//! What the hydrations of a store share: the way to each host, and the patience of the foreground.
//!
//! # Invariants
//! - Bytes under way to a host are counted in one window, however many volumes come from there.
//! - A host that was lost is tried again by one hydration at a time, not by all that fetch from there.
//! - Of the hydrations that wait for the way to a host, those go on first that have a deadline to keep, and of them, as of the others,
//!   the one that had the least (relative to its share): start-time fair queuing (Goyal, Vin and Cheng, 1996).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::foreground::{Guard, Latencies};
use super::window::{Sent, Window};
use crate::clock::Clock;
use crate::format::HydrationPriority;
use crate::ids::LayerId;
use crate::sync::Mutex;

/// A hydration that was told to wait asks again after so long; one that does not is not waited for any more.
const PATIENCE: Duration = Duration::from_millis(200);
/// A hydration may be so many bytes ahead of one that waits.
const LEAD_BYTES: u64 = 4 << 20;

/// A host that was lost is tried again so often, however many hydrations fetch from there.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Lets one hydration look again. Called under the lock of the budget: it takes no lock but its own.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// One hydration.
#[derive(Default)]
struct Share {
    /// Bytes so far, relative to its share.
    used: u64,
    weight: u64,
    /// It has a deadline to keep, and is late.
    is_due: bool,
    /// The host that it was last told to wait for, and when.
    waits: Option<(String, Duration)>,
    wake: Option<Wake>,
}

impl Share {
    fn wake(&self) {
        if let Some(wake) = &self.wake {
            wake();
        }
    }

    fn waits_for(&self, host: &str, now: Duration) -> bool {
        self.waits.as_ref().is_some_and(|(waits, asked)| waits == host && now.saturating_sub(*asked) < PATIENCE * 2)
    }
}

#[derive(Default)]
struct State {
    windows: HashMap<String, Window>,
    /// Windows with bytes under way.
    busy: usize,
    /// Hosts that were lost and have not answered since, and when the next try is due.
    lost: HashMap<String, Duration>,
    shares: BTreeMap<LayerId, Share>,
    guard: Guard,
}

/// What the hydrations of a store share.
#[derive(Default)]
pub struct Budget {
    state: Mutex<State>,
    latencies: Latencies,
}

/// Why a request has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Look again after so long; a wake may come before.
    pub pause: Duration,
}

/// Quarters of the normal share.
fn weight(priority: HydrationPriority) -> u64 {
    match priority {
        HydrationPriority::Low => 1,
        HydrationPriority::Normal => 4,
        HydrationPriority::High => 16,
    }
}

impl Budget {
    /// Latencies of the foreground.
    pub fn latencies(&self) -> &Latencies {
        &self.latencies
    }

    /// Hydrations that take part.
    pub fn hydrations(&self) -> usize {
        self.state.lock().shares.len()
    }

    /// A hydration begins, or begins anew beside the others; `wake` tells it that it may go on.
    pub fn join(&self, layer: LayerId, priority: HydrationPriority, wake: Option<Wake>) {
        let mut state = self.state.lock();
        let others = state.shares.iter().filter(|(other, _)| **other != layer);
        let used = others.map(|(_, share)| share.used).min().unwrap_or(0);
        state.shares.insert(layer, Share { used, weight: weight(priority), wake, ..Share::default() });
        self.latencies.watch(true);
    }

    /// A hydration ends.
    pub fn leave(&self, layer: LayerId) {
        let mut state = self.state.lock();
        state.shares.remove(&layer);
        self.latencies.watch(!state.shares.is_empty());
        state.shares.values().filter(|share| share.waits.is_some()).for_each(Share::wake);
    }

    /// A hydration gets another share.
    pub fn set_priority(&self, layer: LayerId, priority: HydrationPriority) {
        if let Some(share) = self.state.lock().shares.get_mut(&layer) {
            share.weight = weight(priority);
        }
    }

    /// Bytes of a request that fits the way to a host.
    pub fn request_bytes(&self, host: &str) -> u64 {
        let state = self.state.lock();
        let hosts = state.hosts_with(host);
        state.windows.get(host).map_or_else(|| Window::default().request_bytes(hosts), |window| window.request_bytes(hosts))
    }

    /// Bytes a second that the way to a host was seen to carry lately; 0 is not known.
    pub fn rate(&self, host: &str) -> f64 {
        self.state.lock().windows.get(host).map_or(0.0, Window::rate)
    }

    /// A request that somebody may soon wait for: only counted.
    pub fn begin_now(&self, now: Duration, host: &str, bytes: u64) -> Sent {
        self.state.lock().begin(now, host, bytes)
    }

    /// Asks to begin a request that nobody waits for. `is_due`: its hydration has a deadline to keep, so that it goes before others
    /// and the foreground's patience does not count.
    pub fn begin(&self, now: Duration, layer: LayerId, host: &str, bytes: u64, is_due: bool) -> Result<Sent, Wait> {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.set_due(layer, is_due);
        let own = state.shares.get(&layer).map_or(0, |share| share.used);
        let goes_before = |share: &Share| match (share.is_due, is_due) {
            (true, false) => true,
            (false, true) => false,
            _ => share.used + LEAD_BYTES < own,
        };
        let unfair = state.shares.iter().any(|(id, share)| *id != layer && share.waits_for(host, now) && goes_before(share));
        let hosts = state.hosts_with(host);
        if unfair || !state.window(host).has_room(bytes, hosts) {
            if let Some(share) = state.shares.get_mut(&layer) {
                share.waits = Some((host.to_owned(), now));
            }
            if unfair {
                state.wake_next(host, now);
            }
            return Err(Wait { pause: PATIENCE });
        }
        state.guard.advance(now, &self.latencies);
        let allowed = state.guard.take(now, bytes);
        if let (Err(pause), false) = (allowed, is_due) {
            return Err(Wait { pause });
        }
        if let Some(share) = state.shares.get_mut(&layer) {
            share.used += bytes * 4 / share.weight.max(1);
            share.waits = None;
        }
        Ok(state.begin(now, host, bytes))
    }

    /// A request has ended.
    pub fn end(&self, now: Duration, host: &str, sent: Sent, succeeded: bool) {
        let mut state = self.state.lock();
        let window = state.window(host);
        let was_empty = window.is_empty();
        window.end(now, sent, succeeded);
        if !was_empty && window.is_empty() {
            state.busy -= 1;
        }
        if succeeded {
            state.lost.remove(host);
        }
        state.wake_next(host, now);
    }

    /// A host did not answer, or hung up.
    pub fn note_lost(&self, now: Duration, host: &str) {
        self.state.lock().lost.entry(host.to_owned()).or_insert(now);
    }

    /// A host has answered, though perhaps not as it should: it is not lost.
    pub fn note_answered(&self, host: &str) {
        self.state.lock().lost.remove(host);
    }

    /// Whether an address of a host that failed may be tried again now. A host that was lost is tried by one hydration for all.
    pub fn may_retry(&self, now: Duration, host: &str) -> bool {
        match self.state.lock().lost.get_mut(host) {
            Some(due) if *due > now => false,
            Some(due) => {
                *due = now + RETRY_EVERY;
                true
            }
            None => true,
        }
    }
}

/// Bytes under way to a host. They count until they have come, or the guard is dropped: then the request has failed.
pub struct Sending {
    budget: Arc<Budget>,
    clock: Arc<dyn Clock>,
    host: Arc<str>,
    sent: Option<Sent>,
}

impl Sending {
    pub fn new(budget: &Arc<Budget>, clock: &Arc<dyn Clock>, host: &Arc<str>, sent: Sent) -> Self {
        Self { budget: Arc::clone(budget), clock: Arc::clone(clock), host: Arc::clone(host), sent: Some(sent) }
    }

    /// The bytes have come.
    pub fn succeed(mut self) {
        self.end(true);
    }

    fn end(&mut self, succeeded: bool) {
        if let Some(sent) = self.sent.take() {
            self.budget.end(self.clock.monotonic(), &self.host, sent, succeeded);
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.end(false);
    }
}

impl State {
    fn window(&mut self, host: &str) -> &mut Window {
        self.windows.entry(host.to_owned()).or_default()
    }

    /// Hosts with bytes under way, this one included.
    fn hosts_with(&self, host: &str) -> usize {
        self.busy + usize::from(self.windows.get(host).is_none_or(Window::is_empty))
    }

    fn begin(&mut self, now: Duration, host: &str, bytes: u64) -> Sent {
        let window = self.window(host);
        let was_empty = window.is_empty();
        let sent = window.begin(now, bytes);
        self.busy += usize::from(was_empty && bytes > 0);
        sent
    }

    /// Wakes the hydration that goes first of those that wait for a host. One that was paused meanwhile makes no use of it.
    fn wake_next(&self, host: &str, now: Duration) {
        let waiting = self.shares.values().filter(|share| share.waits_for(host, now));
        waiting.min_by_key(|share| (!share.is_due, share.used)).into_iter().for_each(Share::wake);
    }

    /// Notes whether a hydration is late. One that is not any more does not have to give back what it had before others.
    fn set_due(&mut self, layer: LayerId, is_due: bool) {
        let most = self.shares.iter().filter(|(other, _)| **other != layer).map(|(_, share)| share.used).max();
        if let Some(share) = self.shares.get_mut(&layer) {
            if share.is_due && !is_due {
                share.used = share.used.min(most.unwrap_or(share.used));
            }
            share.is_due = is_due;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::real;

    #[test]
    fn hydrations_share_one_way_by_their_weights() {
        let budget = Budget::default();
        let ids = [(LayerId(1), HydrationPriority::Low), (LayerId(2), HydrationPriority::Normal), (LayerId(3), HydrationPriority::High)];
        for (id, priority) in ids {
            budget.join(id, priority, None);
        }
        let mut had = [0u64; 3];
        let mut under_way = std::collections::VecDeque::new();
        for round in 0..6000u64 {
            let now = Duration::from_millis(round);
            // Everybody asks all the time, the greedy one first.
            for (number, (id, _)) in ids.iter().enumerate().rev() {
                while let Ok(sent) = budget.begin(now, *id, "host", 256 << 10, false) {
                    had[number] += 256 << 10;
                    under_way.push_back(sent);
                }
            }
            for _ in 0..4 {
                under_way.pop_front().into_iter().for_each(|sent| budget.end(now, "host", sent, true));
            }
        }
        let normal = real(had[1]);
        assert!((real(had[0]) / normal - 0.25).abs() < 0.1 && (real(had[2]) / normal - 4.0).abs() < 0.8, "{had:?}");
    }

    /// Who makes the requests of a way that carries one each 100 ms, when everybody asks each 200 ms or when something ended, the
    /// greedy one first.
    fn turns(budget: &Budget, rounds: std::ops::Range<u64>, ids: &[(LayerId, bool)]) -> Vec<LayerId> {
        let mut turns = Vec::new();
        let mut under_way = std::collections::VecDeque::new();
        for round in rounds.clone() {
            let now = Duration::from_millis(100 * round);
            under_way.pop_front().into_iter().for_each(|sent| budget.end(now, "host", sent, true));
            for (id, is_due) in ids {
                while let Ok(sent) = budget.begin(now, *id, "host", 1 << 20, *is_due) {
                    under_way.push_back(sent);
                    turns.push(*id);
                }
            }
        }
        under_way.drain(..).for_each(|sent| budget.end(Duration::from_millis(100 * rounds.end), "host", sent, true));
        turns
    }

    #[test]
    fn a_small_share_of_a_slow_way_is_not_forgotten() {
        let budget = Budget::default();
        let (greedy, small) = (LayerId(1), LayerId(2));
        budget.join(greedy, HydrationPriority::Normal, None);
        budget.join(small, HydrationPriority::Low, None);
        let turns = turns(&budget, 0..200, &[(greedy, false), (small, false)]);
        // Each of the small one counts four times; nobody is more than the lead ahead.
        let longest = turns.split(|id| *id == small).map(<[LayerId]>::len).max().unwrap();
        assert!(longest <= 12, "{longest} in a row of {turns:?}");
        let small = turns.iter().filter(|id| **id == small).count();
        assert!((turns.len() / 6..turns.len() / 4).contains(&small), "{small} of {}", turns.len());
    }

    #[test]
    fn one_that_is_late_goes_before_others() {
        let budget = Budget::default();
        let (greedy, late) = (LayerId(1), LayerId(2));
        budget.join(greedy, HydrationPriority::High, None);
        budget.join(late, HydrationPriority::Low, None);
        let before = turns(&budget, 0..200, &[(greedy, false), (late, true)]);
        let others = before.iter().skip(4).filter(|id| **id == greedy).count();
        assert!(others <= 4, "{before:?}");
        // In time again, it does not wait until the others have as much.
        let after = turns(&budget, 200..400, &[(greedy, false), (late, false)]);
        assert!(after.iter().take(60).any(|id| *id == late), "{after:?}");
    }

    #[test]
    fn one_that_waits_for_a_slow_host_holds_up_nobody_at_another() {
        let budget = Budget::default();
        for layer in [LayerId(1), LayerId(2)] {
            budget.join(layer, HydrationPriority::Normal, None);
        }
        let ahead = budget.begin(Duration::ZERO, LayerId(1), "fast", 64 << 20, false).unwrap();
        budget.end(Duration::from_millis(1), "fast", ahead, true);
        budget.begin(Duration::from_millis(1), LayerId(2), "slow", 64 << 10, false).unwrap();
        assert!(budget.begin(Duration::from_millis(1), LayerId(2), "slow", 64 << 20, false).is_err());
        assert!(budget.begin(Duration::from_millis(2), LayerId(1), "fast", 1 << 20, false).is_ok());
        assert!(budget.begin(Duration::from_millis(2), LayerId(1), "slow", 1 << 10, false).is_err());
    }

    #[test]
    fn room_is_not_offered_to_one_that_does_not_wait_any_more() {
        let budget = Budget::default();
        let woken = Arc::new(Mutex::new(Vec::new()));
        for layer in [LayerId(1), LayerId(2), LayerId(3)] {
            let told = Arc::clone(&woken);
            budget.join(layer, HydrationPriority::Normal, Some(Arc::new(move || told.lock().push(layer))));
        }
        let full = budget.begin_now(Duration::ZERO, "host", 64 << 20);
        // The first one waits, and is paused. The third one waits as well, a while later.
        assert!(budget.begin(Duration::ZERO, LayerId(1), "host", 1 << 20, false).is_err());
        let later = Duration::from_secs(1);
        assert!(budget.begin(later, LayerId(3), "host", 1 << 20, false).is_err());
        budget.end(later, "host", full, true);
        assert_eq!(*woken.lock(), [LayerId(3)]);
    }

    #[test]
    fn one_that_waits_and_goes_away_holds_up_nobody() {
        let budget = Budget::default();
        budget.join(LayerId(1), HydrationPriority::Normal, None);
        let ahead = budget.begin(Duration::ZERO, LayerId(1), "host", 64 << 20, false).unwrap();
        budget.join(LayerId(2), HydrationPriority::Normal, None);
        let other = budget.begin(Duration::ZERO, LayerId(1), "other", 16 << 20, false).unwrap();
        assert!(budget.begin(Duration::ZERO, LayerId(2), "host", 1, false).is_err());
        budget.end(Duration::ZERO, "host", ahead, true);
        budget.end(Duration::ZERO, "other", other, true);
        // The second one waits and had less: it goes first, unless it does not come for long.
        assert!(budget.begin(Duration::from_millis(1), LayerId(1), "host", 1, false).is_err());
        assert!(budget.begin(Duration::from_secs(1), LayerId(1), "host", 1, false).is_ok());
    }
}
