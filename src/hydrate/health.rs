//! Health of a hydration: its status, its latest error, and the pauses after blocks could not be stored.

use std::ops::Range;
use std::time::Duration;

use super::progress::HydratorStatus;
use crate::error::{Error, ErrorKind};
use crate::sync::{Mutex, Rank};

/// First and longest pause after fetched blocks could not be stored; it doubles.
const STALLS: Range<Duration> = Duration::from_secs(1)..Duration::from_secs(8);
/// A pause without an end.
const FOR_EVER: Duration = Duration::from_secs(365 * 86_400);

/// Called with the new status and the latest error when hydration fails at every address, runs out of space, or recovers.
pub type OnChange = Box<dyn Fn(HydratorStatus, Option<String>) + Send + Sync>;

#[derive(Default)]
struct State {
    /// Running, degraded, or without space.
    status: HydratorStatus,
    last_error: Option<String>,
    /// No address has the blocks that are left.
    stuck: bool,
    /// The error, if fetched blocks could not be stored for lack of space.
    no_space: Option<String>,
    /// End of the pause after fetched blocks could not be stored.
    stalled_until: Duration,
    /// Length of the latest such pause.
    stall: Duration,
}

/// Health of one hydration.
pub struct Health {
    state: Mutex<State>,
    on_change: OnChange,
}

impl Health {
    /// A running hydration without errors. `on_change` is called with changes, under no lock.
    pub fn new(on_change: OnChange) -> Self {
        Self { state: Mutex::ranked(Rank::HydrationHealth, State::default()), on_change }
    }

    /// Notes an error as the latest one.
    pub fn note_error(&self, message: String) {
        self.state.lock().last_error = Some(message);
    }

    /// Notes a successful read: the blocks that are left may be available.
    pub fn note_read(&self) {
        self.state.lock().stuck = false;
    }

    /// Notes that nothing is under way, and that each address fails or could not give the blocks that are left.
    pub fn note_stuck(&self) {
        self.state.lock().stuck = true;
    }

    /// Notes that fetched blocks could not be stored. Backfill pauses, because there may be space later. Each retry may fetch blocks in
    /// vain, so the pause doubles. If the store refuses writes, the pause has no end, because it refuses them until it is opened again.
    pub fn note_unstored(&self, error: &Error, now: Duration) {
        let mut state = self.state.lock();
        state.last_error = Some(format!("fetched blocks cannot be stored: {error}"));
        if now >= state.stalled_until {
            let again = now - state.stalled_until < state.stall * 2;
            state.stall = if again { (state.stall * 2).min(STALLS.end) } else { STALLS.start };
        }
        state.stalled_until = now + if error.kind() == ErrorKind::Poisoned { FOR_EVER } else { state.stall };
        if error.kind() == ErrorKind::NoSpace {
            state.no_space = Some(format!("no space: {error}"));
        }
    }

    /// Notes that there is space again.
    pub fn note_space(&self) {
        self.state.lock().no_space = None;
    }

    /// Ends the pause, so that backfill retries at once.
    pub fn retry_now(&self) {
        self.state.lock().stalled_until = Duration::ZERO;
    }

    /// End of the pause, and whether there must be space before anything is fetched.
    pub fn stall(&self) -> (Duration, bool) {
        let state = self.state.lock();
        (state.stalled_until, state.no_space.is_some())
    }

    /// The status and the latest error.
    pub fn status(&self) -> (HydratorStatus, Option<String>) {
        let state = self.state.lock();
        (state.status, state.last_error.clone())
    }

    /// The latest error.
    pub fn last_error(&self) -> Option<String> {
        self.state.lock().last_error.clone()
    }

    /// Updates the status and calls `on_change` if it has changed. `is_failing` returns whether no address answers. It is called under the
    /// lock, so that of two concurrent calls the later look decides.
    pub fn look(&self, is_failing: impl FnOnce() -> bool) {
        let mut state = self.state.lock();
        let (status, error) = match (is_failing() || state.stuck, &state.no_space) {
            (true, _) => (HydratorStatus::Degraded, state.last_error.clone()),
            (false, Some(error)) => (HydratorStatus::NoSpace, Some(error.clone())),
            (false, None) => (HydratorStatus::Running, None),
        };
        if status != state.status {
            state.status = status;
            drop(state);
            (self.on_change)(status, error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn each_change_is_told_once() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let telling = Arc::clone(&told);
        let health = Health::new(Box::new(move |status, _| telling.lock().push(status)));
        health.look(|| false);
        health.look(|| true);
        health.look(|| true);
        health.note_unstored(&Error::new(ErrorKind::NoSpace, "full"), Duration::ZERO);
        health.look(|| true);
        health.look(|| false);
        health.note_space();
        health.look(|| false);
        health.note_stuck();
        health.look(|| false);
        health.note_read();
        health.look(|| false);
        use HydratorStatus::{Degraded, NoSpace, Running};
        assert_eq!(*told.lock(), [Degraded, NoSpace, Running, Degraded, Running]);
    }

    #[test]
    fn pauses_for_space_grow_and_begin_again() {
        let (health, full) = (Health::new(Box::new(|_, _| {})), Error::new(ErrorKind::NoSpace, "full"));
        let mut now = Duration::from_secs(100);
        let mut pauses = Vec::new();
        for _ in 0..5 {
            health.note_unstored(&full, now);
            health.note_unstored(&full, now);
            pauses.push((health.stall().0 - now).as_secs());
            now = health.stall().0;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 8]);
        now += Duration::from_secs(60);
        health.note_unstored(&full, now);
        assert_eq!(health.stall(), (now + STALLS.start, true));
        health.note_unstored(&Error::new(ErrorKind::Poisoned, "bad"), now);
        assert!(health.stall().0 > now + Duration::from_secs(86_400));
    }
}
