//! Life cycle of a hydration: not begun, running, ended, stopped or complete.

use crate::sync::{Mutex, Rank};

#[derive(Clone, Copy, Default)]
struct State {
    running: bool,
    stopped: bool,
    complete: bool,
}

/// The state in the life cycle.
pub struct Life(Mutex<State>);

impl Default for Life {
    fn default() -> Self {
        Self(Mutex::ranked(Rank::Life, State::default()))
    }
}

impl Life {
    /// Marks backfill as running. False if it runs already or was stopped.
    pub fn begin(&self) -> bool {
        let mut state = self.0.lock();
        !state.stopped && !std::mem::replace(&mut state.running, true)
    }

    /// Marks backfill as ended.
    pub fn end(&self) {
        self.0.lock().running = false;
    }

    /// Stops the hydration for good. `complete`: because nothing is missing.
    pub fn stop(&self, complete: bool) {
        let mut state = self.0.lock();
        (state.stopped, state.complete) = (true, state.complete || complete);
    }

    /// Whether backfill has begun and not ended.
    pub fn is_running(&self) -> bool {
        self.0.lock().running
    }

    /// Whether the hydration was stopped.
    pub fn is_stopped(&self) -> bool {
        self.0.lock().stopped
    }

    /// Whether all blocks are present durably.
    pub fn is_complete(&self) -> bool {
        self.0.lock().complete
    }

    /// Whether backfill should run but does not.
    pub fn is_asleep(&self) -> bool {
        let state = self.0.lock();
        !(state.running || state.stopped || state.complete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backfill_runs_once_at_a_time_and_never_after_the_stop() {
        let life = Life::default();
        assert!(life.is_asleep() && life.begin() && !life.begin() && !life.is_asleep());
        life.end();
        assert!(life.is_asleep() && life.begin());
        life.stop(false);
        assert!(life.is_running() && life.is_stopped() && !life.is_complete());
        life.end();
        assert!(!life.begin() && !life.is_asleep());
        life.stop(true);
        life.stop(false);
        assert!(life.is_complete());
    }
}
