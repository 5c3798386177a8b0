//! Whether a hydration gets on, and what keeps it from that.

use std::ops::Range;
use std::time::Duration;

use super::progress::HydratorStatus;
use crate::error::{Error, ErrorKind};
use crate::sync::Mutex;

/// First and longest pause after fetched blocks could not be stored.
const STALLS: Range<Duration> = Duration::from_secs(1)..Duration::from_secs(8);
/// Longer than anybody waits.
const FOR_EVER: Duration = Duration::from_secs(365 * 86_400);

/// Called when hydration fails at every address, and when it goes on again.
pub type OnChange = Box<dyn Fn(HydratorStatus, Option<String>) + Send + Sync>;

#[derive(Default)]
struct State {
    /// Running, degraded, or without space.
    status: HydratorStatus,
    last_error: Option<String>,
    /// What is left could not be had from any address.
    stuck: bool,
    /// Fetched blocks could not be stored for lack of space: what was said then.
    no_space: Option<String>,
    /// Fetched blocks could not be stored: not tried again before.
    stalled_until: Duration,
    /// The latest pause for that.
    stall: Duration,
}

/// Errors of one hydration, and what follows from them.
pub struct Health {
    state: Mutex<State>,
    on_change: OnChange,
}

impl Health {
    /// Everything is well. `on_change` is told of changes, without any lock.
    pub fn new(on_change: OnChange) -> Self {
        Self { state: Mutex::default(), on_change }
    }

    /// Notes an error, which is shown as the latest one.
    pub fn note_error(&self, message: String) {
        self.state.lock().last_error = Some(message);
    }

    /// Something came: what is left may be had.
    pub fn note_read(&self) {
        self.state.lock().stuck = false;
    }

    /// Nothing is under way, and each address fails or could not give what is left.
    pub fn note_stuck(&self) {
        self.state.lock().stuck = true;
    }

    /// Fetched blocks could not be stored: backfill pauses for a while, there may be space again later. What it fetches until that is
    /// seen is lost, so it pauses longer each time. A store that refuses writes does so until it is opened again.
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

    /// There is space again.
    pub fn note_space(&self) {
        self.state.lock().no_space = None;
    }

    /// Tries again at once.
    pub fn retry_now(&self) {
        self.state.lock().stalled_until = Duration::ZERO;
    }

    /// When fetched blocks may be stored again, and whether space is to be looked for first.
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

    /// Tells of degradation and recovery, and of a lack of space. `is_failing` says whether no address answers; it is called under the
    /// lock, so that the latest look counts.
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
