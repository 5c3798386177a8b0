//! Pause and rate cap of one hydration, set by an operator, and its yield to waiting readers.

use std::time::Duration;

use super::budget::Budget;
use super::rates::{Pace, Share, Waits};
use super::window::Sent;
use crate::format::HydrationSettings;
use crate::ids::LayerId;
use crate::sync::{Mutex, Rank};
use crate::units::real;

#[derive(Default)]
struct State {
    settings: HydrationSettings,
    cap: Pace,
    share: Share,
}

/// A bulk request.
pub struct Asks<'a> {
    pub layer: LayerId,
    pub host: &'a str,
    pub bytes: u64,
    /// The hydration is late for its deadline.
    pub is_due: bool,
    /// Time since the latest request, if readers wait for other blocks, or will soon.
    pub beside_readers: Option<Duration>,
}

/// The limits of one hydration.
pub struct Throttle(Mutex<State>);

impl Throttle {
    /// A throttle with the settings of an operator.
    pub fn new(settings: HydrationSettings) -> Self {
        Self(Mutex::ranked(Rank::Throttle, State { settings, ..State::default() }))
    }

    /// Pause and pace.
    pub fn settings(&self) -> HydrationSettings {
        self.0.lock().settings
    }

    /// Changes pause and pace.
    pub fn set_settings(&self, settings: HydrationSettings) {
        self.0.lock().settings = settings;
    }

    /// Adjusts the share beside readers after a wait; `shortest` is the shortest recent wait.
    pub fn note_wait(&self, waited: Duration, shortest: Duration) {
        self.0.lock().share.note(waited, shortest);
    }

    /// Asks to begin a request now. An error is the time to wait.
    ///
    /// 1. While readers wait, requests are spaced so that they use only the share that does not prolong the waits.
    /// 2. The rate cap of the operator must allow the bytes.
    /// 3. The shared budget must allow them; otherwise the tokens of the cap are returned.
    pub fn begin(&self, now: Duration, budget: &Budget, asks: &Asks<'_>) -> Result<Sent, Duration> {
        let mut state = self.0.lock();
        if let Some(since) = asks.beside_readers {
            let pace = budget.rate(asks.host) * state.share.of_way();
            let interval = Duration::from_secs_f64(real(asks.bytes) / pace.max(1.0)).min(Waits::MEMORY);
            if since < interval {
                return Err(interval - since);
            }
        }
        let cap = state.settings.rate_bytes_per_second;
        state.cap.take(now, cap, asks.bytes)?;
        budget.begin(now, asks.layer, asks.host, asks.bytes, asks.is_due).map_err(|wait| {
            state.cap.give_back(asks.bytes);
            wait.pause
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::HydrationPriority;

    const LAYER: LayerId = LayerId(1);

    fn asks(bytes: u64, beside_readers: Option<Duration>) -> Asks<'static> {
        Asks { layer: LAYER, host: "host", bytes, is_due: false, beside_readers }
    }

    #[test]
    fn a_request_beside_readers_comes_after_a_pause() {
        let (throttle, budget) = (Throttle::new(HydrationSettings::default()), Budget::default());
        budget.join(LAYER, HydrationPriority::Normal, None);
        let begin = |asks: &Asks<'_>| throttle.begin(Duration::from_secs(1), &budget, asks).map(drop);
        assert!(begin(&asks(4096, None)).is_ok());
        // Nothing is known of the way, so it takes as long as readers are remembered.
        assert_eq!(begin(&asks(4096, Some(Duration::ZERO))), Err(Waits::MEMORY));
        assert!(begin(&asks(4096, Some(Waits::MEMORY))).is_ok());
    }

    #[test]
    fn a_request_that_has_to_wait_does_not_count_for_the_cap() {
        let (throttle, budget) = (Throttle::new(HydrationSettings::default()), Budget::default());
        throttle.set_settings(HydrationSettings { rate_bytes_per_second: 5 << 20, ..HydrationSettings::default() });
        budget.join(LAYER, HydrationPriority::Normal, None);
        let full = budget.begin_now(Duration::ZERO, "host", 1 << 40);
        let now = Duration::from_secs(10);
        for _ in 0..100 {
            assert!(throttle.begin(now, &budget, &asks(1 << 20, None)).is_err(), "the way is full");
        }
        budget.end(now, "host", full, false);
        assert!(throttle.begin(now, &budget, &asks(1 << 20, None)).is_ok());
        assert!(throttle.begin(now, &budget, &asks(1 << 20, None)).is_err(), "the cap holds");
    }
}
