//! Reconnects a source: opens the connections that it should have and has not.
//!
//! Each source has one task, whose steps do not block. Attempts to connect run on the process's pool ([`crate::source::threads`]), in which
//! hosts take turns.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::pool::Shared;
use super::tries::{self, PAUSES};
use crate::io::{Next, Refusal, Reservation, Task};
use crate::source::SourceErrorKind;
use crate::source::threads;
use crate::sync::time::Instant;

/// How often a source checks its share of the descriptors.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// State of the task between its steps.
struct Keeper {
    shared: Weak<Shared>,
    pause: Duration,
    /// Since when this source waits because other sources try the lost host, or for a thread.
    behind_since: Option<Instant>,
}

/// Begins the task of a source.
///
/// # Errors
/// No thread can be had.
pub fn begin(shared: &Arc<Shared>) -> Result<Task, Refusal> {
    let mut keeper = Keeper { shared: Arc::downgrade(shared), pause: PAUSES.start, behind_since: None };
    Task::begin(&threads::calls(), None, move || keeper.step())
}

impl Keeper {
    /// Keeps as many connections as are wanted, until the source is closed.
    fn step(&mut self) -> Next {
        let Some(shared) = self.shared.upgrade() else { return Next::Over };
        shared.set_share();
        let now = Instant::now();
        let (is_lost, missing) = {
            let mut state = shared.state.lock();
            if state.closed {
                return Next::Over;
            }
            match state.attempts.take_outcome() {
                Some(true) => (self.pause, state.attempts.after) = (PAUSES.start, now),
                Some(false) => {
                    state.attempts.after = now + self.pause;
                    self.pause = (self.pause * 2).min(PAUSES.end);
                }
                None => {}
            }
            let missing = shared.missing(&state);
            if missing == 0 {
                (self.pause, self.behind_since) = (PAUSES.start, None);
                drop(state);
                shared.close_surplus();
                return Next::After(LOOK_INTERVAL);
            }
            (state.links.is_empty(), missing)
        };
        if is_lost { self.reconnect(&shared, now) } else { self.connect_further(&shared, now, missing) }
    }

    /// No connection is left: tries a single one first.
    fn reconnect(&mut self, shared: &Arc<Shared>, now: Instant) -> Next {
        let (is_under_way, is_queued) = {
            let state = shared.state.lock();
            (state.attempts.under_way > 0, state.attempts.queued > 0)
        };
        if is_under_way && !is_queued {
            self.behind_since = None;
            return Next::After(PAUSES.end);
        }
        let wait = if is_queued { Err(PAUSES.end) } else { tries::begin(&shared.export.host, now) };
        if let Err(wait) = wait {
            // Other sources try the host, or have the threads. If one of them succeeds, this source connects soon. Its waiting reads fail
            // after the usual time all the same.
            if now - *self.behind_since.get_or_insert(now) > PAUSES.end * 2 {
                shared.give_up_waiting();
            }
            return Next::After(wait);
        }
        self.behind_since = None;
        // The first connection is made even when descriptors are scarce: without it nothing can be read.
        if !connect_aside(shared, Reservation::take(1, 3)) {
            shared.give_up_waiting();
        }
        Next::After(PAUSES.end)
    }

    /// Makes the further connections all at once, because each takes several round trips.
    fn connect_further(&mut self, shared: &Arc<Shared>, now: Instant, missing: usize) -> Next {
        self.behind_since = None;
        let (under_way, after) = {
            let state = shared.state.lock();
            (state.attempts.under_way, state.attempts.after)
        };
        // Waits until all attempts have ended and the pause is known: replacing a refused one at once would be a busy loop.
        if under_way > 0 {
            return Next::After(PAUSES.end);
        }
        if now < after {
            return Next::After(after - now);
        }
        for _ in 0..missing {
            // Further connections only add speed: they leave the second half of the descriptors to others.
            let Some(reserved) = Reservation::take(1, 2) else { break };
            if !connect_aside(shared, Some(reserved)) {
                break;
            }
        }
        Next::After(PAUSES.end)
    }
}

/// Guard of an attempt to connect; it is counted until dropped.
struct Attempt {
    shared: Arc<Shared>,
    is_queued: bool,
    made: bool,
    _reserved: Option<Reservation>,
}

impl Attempt {
    fn begin(shared: &Arc<Shared>, reserved: Option<Reservation>) -> Self {
        let attempts = &mut shared.state.lock().attempts;
        (attempts.under_way, attempts.queued) = (attempts.under_way + 1, attempts.queued + 1);
        Self { shared: Arc::clone(shared), is_queued: true, made: false, _reserved: reserved }
    }

    fn run(mut self) {
        {
            let mut state = self.shared.state.lock();
            state.attempts.queued -= 1;
            self.is_queued = false;
            if state.closed {
                return;
            }
        }
        match self.shared.reconnect() {
            Ok(()) => self.made = true,
            Err(error) => {
                self.shared.note_failure(&error);
                if error.kind != SourceErrorKind::Lost {
                    // The host answered, though with an error: it is not lost.
                    tries::succeed(&self.shared.export.host);
                }
            }
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state.lock();
            state.stats.reconnects += u64::from(self.made);
            state.attempts.queued -= usize::from(self.is_queued);
            state.attempts.end(self.made);
        }
        self.shared.wake_keeper();
    }
}

/// Connects on a thread of the pool. False if no thread can be had.
fn connect_aside(shared: &Arc<Shared>, reserved: Option<Reservation>) -> bool {
    let attempt = Attempt::begin(shared, reserved);
    // A refused job is dropped, which counts as a failed attempt.
    threads::calls().run(&shared.export.host, Box::new(move || attempt.run())).is_ok()
}
