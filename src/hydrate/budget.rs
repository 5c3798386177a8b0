//! What the hydrations of a store share: the way to each host, and the patience of the foreground.
//!
//! # Invariants
//! - Bytes under way to a host are counted in one window, however many volumes come from there.
//! - Of the hydrations that wait, the one that had the least (relative to its share) goes on first: start-time fair queuing
//!   (Goyal, Vin and Cheng, 1996).

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use parking_lot::Mutex;

use super::foreground::{Guard, Latencies};
use super::window::{Sent, Window};
use crate::format::HydrationPriority;
use crate::ids::LayerId;
use crate::io::RingWaker;

/// A hydration that wants to go on and was told to wait is waited for at most so long.
const PATIENCE: Duration = Duration::from_millis(200);
/// A hydration may be so many bytes ahead of one that waits.
const LEAD_BYTES: u64 = 4 << 20;

/// One hydration.
#[derive(Default)]
struct Share {
    /// Bytes so far, relative to its share.
    used: u64,
    weight: u64,
    waiting_since: Option<Duration>,
    waker: Option<RingWaker>,
}

#[derive(Default)]
struct State {
    windows: HashMap<String, Window>,
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

    /// A hydration begins, or begins anew beside the others; `waker` tells it that it may go on.
    pub fn join(&self, layer: LayerId, priority: HydrationPriority, waker: Option<RingWaker>) {
        let mut state = self.state.lock();
        let others = state.shares.iter().filter(|(other, _)| **other != layer);
        let used = others.map(|(_, share)| share.used).min().unwrap_or(0);
        state.shares.insert(layer, Share { used, weight: weight(priority), waiting_since: None, waker });
        self.latencies.watch(true);
    }

    /// A hydration ends.
    pub fn leave(&self, layer: LayerId) {
        let mut state = self.state.lock();
        state.shares.remove(&layer);
        self.latencies.watch(!state.shares.is_empty());
        state.wake_next();
    }

    /// A hydration gets another share.
    pub fn set_priority(&self, layer: LayerId, priority: HydrationPriority) {
        if let Some(share) = self.state.lock().shares.get_mut(&layer) {
            share.weight = weight(priority);
        }
    }

    /// Bytes of a request that fits the way to a host.
    pub fn request_bytes(&self, host: &str) -> u64 {
        self.state.lock().windows.get(host).map_or_else(|| Window::default().request_bytes(), Window::request_bytes)
    }

    /// Bytes a second that the way to a host was seen to carry lately; 0 is not known.
    pub fn rate(&self, host: &str) -> f64 {
        self.state.lock().windows.get(host).map_or(0.0, Window::rate)
    }

    /// A request that somebody may soon wait for: only counted.
    pub fn begin_now(&self, now: Duration, host: &str, bytes: u64) -> Sent {
        self.state.lock().window(host).begin(now, bytes)
    }

    /// Asks to begin a request that nobody waits for. `is_due`: its hydration has a deadline to keep, so that the foreground's
    /// patience does not count.
    pub fn begin(&self, now: Duration, layer: LayerId, host: &str, bytes: u64, is_due: bool) -> Result<Sent, Wait> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let own = state.shares.get(&layer).map_or(0, |share| share.used);
        let waits = |share: &Share| share.waiting_since.is_some_and(|since| now.saturating_sub(since) < PATIENCE);
        let behind = |(id, share): (&LayerId, &Share)| *id != layer && waits(share) && share.used + LEAD_BYTES < own;
        let unfair = state.shares.iter().any(behind);
        if unfair || !state.window(host).has_room(bytes) {
            if let Some(share) = state.shares.get_mut(&layer) {
                share.waiting_since.get_or_insert(now);
            }
            if unfair {
                state.wake_next();
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
            share.waiting_since = None;
        }
        Ok(state.window(host).begin(now, bytes))
    }

    /// A request has ended.
    pub fn end(&self, now: Duration, host: &str, sent: Sent, succeeded: bool) {
        let mut state = self.state.lock();
        state.window(host).end(now, sent, succeeded);
        state.wake_next();
    }
}

impl State {
    fn window(&mut self, host: &str) -> &mut Window {
        self.windows.entry(host.to_owned()).or_default()
    }

    /// Wakes the hydration that had the least of those that wait.
    fn wake_next(&self) {
        let waiting = self.shares.values().filter(|share| share.waiting_since.is_some());
        if let Some(waker) = waiting.min_by_key(|share| share.used).and_then(|share| share.waker.as_ref()) {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let normal = had[1] as f64;
        assert!((had[0] as f64 / normal - 0.25).abs() < 0.1 && (had[2] as f64 / normal - 4.0).abs() < 0.8, "{had:?}");
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
