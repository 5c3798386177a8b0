//! The gate between writes and changes of a volume's head.
//!
//! Writes pass it together; a fork, a discard or a resize closes it, waits for the writes that are inside, makes its change in
//! memory, and opens it again. It is never closed across a barrier or a fetch.

use std::time::Duration;

use crate::sync::{Condvar, Mutex};

#[derive(Default)]
struct State {
    inside: usize,
    closed: bool,
}

/// Lets writes in, or one change.
#[derive(Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

/// Held by one change: nothing is inside.
pub struct Closed<'a>(&'a Gate);

impl Gate {
    /// Goes in, unless the gate is closed.
    pub fn try_enter(&self) -> bool {
        let mut state = self.state.lock();
        let open = !state.closed;
        state.inside += usize::from(open);
        open
    }

    /// Goes in; waits while the gate is closed.
    pub fn enter(&self) {
        let mut state = self.state.lock();
        while state.closed {
            self.changed.wait(&mut state);
        }
        state.inside += 1;
    }

    /// Goes out.
    pub fn leave(&self) {
        let mut state = self.state.lock();
        state.inside -= 1;
        if state.inside == 0 && state.closed {
            self.changed.notify_all();
        }
    }

    /// Closes the gate and waits until nothing is inside; `help` lets writes finish whose owner waits elsewhere.
    pub fn close(&self, help: impl Fn()) -> Closed<'_> {
        let mut state = self.state.lock();
        while state.closed {
            self.changed.wait(&mut state);
        }
        state.closed = true;
        while state.inside > 0 {
            crate::sync::MutexGuard::unlocked(&mut state, &help);
            if state.inside > 0 {
                self.changed.wait_for(&mut state, Duration::from_millis(1));
            }
        }
        Closed(self)
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.state.lock().closed = false;
        self.0.changed.notify_all();
    }
}
