//! The budget that the hydrations of a store share: a window of bytes for each host, and the yield to the foreground.
//!
//! # Invariants
//! - All bytes under way to a host count in one window, however many volumes are fetched from it.
//! - A lost host is tried again by one hydration at a time, not by all that fetch from it.
//! - Among the hydrations that wait for a host, those that are late for a deadline go first. Within both groups, the one that has had the
//!   fewest bytes relative to its share goes first: start-time fair queuing (Goyal, Vin and Cheng, 1996).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::foreground::{Guard, Latencies};
use super::window::{Sent, Window};
use crate::clock::Clock;
use crate::format::HydrationPriority;
use crate::ids::LayerId;
use crate::sync::{Mutex, Rank};

/// Time after which a waiting hydration asks again. One that has not asked for longer than this no longer counts as waiting.
const PATIENCE: Duration = Duration::from_millis(200);
/// Bytes, relative to its share, that a hydration may be ahead of one that waits.
const LEAD_BYTES: u64 = 4 << 20;

/// Interval between two tries of a lost host, by all hydrations together.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Wakes one hydration. Called under the lock of the budget, so it must take no lock but its own.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// One hydration.
#[derive(Default)]
struct Share {
    /// Bytes requested so far, divided by its share.
    used: u64,
    weight: u64,
    /// Late for its deadline.
    is_due: bool,
    /// The host for which it waits, and when it last asked.
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
    /// Number of windows with bytes under way.
    busy: usize,
    /// Lost hosts that have not answered since, with the time of the next try.
    lost: HashMap<String, Duration>,
    shares: BTreeMap<LayerId, Share>,
    guard: Guard,
}

/// The shared budget.
pub struct Budget {
    state: Mutex<State>,
    latencies: Latencies,
}

impl Default for Budget {
    fn default() -> Self {
        Self { state: Mutex::ranked(Rank::Budget, State::default()), latencies: Latencies::default() }
    }
}

/// Why a request has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Ask again after this time; a wake may come before.
    pub pause: Duration,
}

/// Share of a priority, in quarters of the normal one.
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

    /// Number of hydrations that have joined.
    pub fn hydrations(&self) -> usize {
        self.state.lock().shares.len()
    }

    /// Adds a hydration, or adds it anew. It counts as having had as many bytes as the one with the fewest, so that it does not starve the
    /// others. `wake` is called when it may go on.
    pub fn join(&self, layer: LayerId, priority: HydrationPriority, wake: Option<Wake>) {
        let mut state = self.state.lock();
        let others = state.shares.iter().filter(|(other, _)| **other != layer);
        let used = others.map(|(_, share)| share.used).min().unwrap_or(0);
        state.shares.insert(layer, Share { used, weight: weight(priority), wake, ..Share::default() });
        self.latencies.watch(true);
    }

    /// Removes a hydration.
    pub fn leave(&self, layer: LayerId) {
        let mut state = self.state.lock();
        state.shares.remove(&layer);
        self.latencies.watch(!state.shares.is_empty());
        state.shares.values().filter(|share| share.waits.is_some()).for_each(Share::wake);
    }

    /// Changes the share of a hydration.
    pub fn set_priority(&self, layer: LayerId, priority: HydrationPriority) {
        if let Some(share) = self.state.lock().shares.get_mut(&layer) {
            share.weight = weight(priority);
        }
    }

    /// Suitable bytes of a request to a host.
    pub fn request_bytes(&self, host: &str) -> u64 {
        let state = self.state.lock();
        let hosts = state.hosts_with(host);
        state.windows.get(host).map_or_else(|| Window::default().request_bytes(hosts), |window| window.request_bytes(hosts))
    }

    /// Recent highest delivery rate of a host, in bytes a second; 0 if it is not known.
    pub fn rate(&self, host: &str) -> f64 {
        self.state.lock().windows.get(host).map_or(0.0, Window::rate)
    }

    /// Begins a request for read-ahead without asking for room: it only counts.
    pub fn begin_now(&self, now: Duration, host: &str, bytes: u64) -> Sent {
        self.state.lock().begin(now, host, bytes)
    }

    /// Asks to begin a bulk request. `is_due`: its hydration is late for its deadline, so that it goes before others and does not yield to
    /// the foreground.
    ///
    /// 1. A hydration that waits for the same host and goes first (see the invariants) keeps this one waiting, and is woken.
    /// 2. The window of the host must have room.
    /// 3. The guard of the foreground must allow the bytes now, unless `is_due`. It counts them in any case.
    /// 4. The bytes count against the share of the hydration and in the window.
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

    /// Ends a request, and wakes the next hydration that waits for the host.
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

    /// Notes that a host did not answer, or closed the connection.
    pub fn note_lost(&self, now: Duration, host: &str) {
        self.state.lock().lost.entry(host.to_owned()).or_insert(now);
    }

    /// Notes that a host has answered, also with an error: it is not lost.
    pub fn note_answered(&self, host: &str) {
        self.state.lock().lost.remove(host);
    }

    /// Whether an address that failed may be tried again now. Of a lost host, only one hydration at a time may try it.
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

/// Guard of bytes under way to a host. Dropping it ends the request as failed.
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

    /// Ends the request as successful.
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

    /// Number of hosts with bytes under way, this one included.
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

    /// Wakes the first of the hydrations that wait for a host.
    fn wake_next(&self, host: &str, now: Duration) {
        let waiting = self.shares.values().filter(|share| share.waits_for(host, now));
        waiting.min_by_key(|share| (!share.is_due, share.used)).into_iter().for_each(Share::wake);
    }

    /// Notes whether a hydration is late. When it stops being late, its count falls to at most that of the others, so that it does not
    /// have to wait for the bytes that it was given before them.
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

    /// The order of requests to a host that serves one each 100 ms, when every hydration asks each 200 ms and when a request has ended, the
    /// greediest hydration first.
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
        // Bytes of the small share count four times; none is ahead by more than the lead.
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
