//! The gate between writes and changes of a volume's head.
//!
//! Writes pass it together; a fork, a discard or a resize closes it, waits for the writes that are inside, makes its change in
//! memory, and opens it again. It is never closed across a fetch, and across a barrier only where a discard finds so many records
//! queued, or so little room in the journal, that a round has to take them first.
//!
//! Both are guards: a write that panics leaves the gate, and a change that panics opens it again.

use std::ops::Deref;
use std::time::Duration;

use crate::sync::{Condvar, Mutex, Rank};

#[derive(Default)]
struct State {
    inside: usize,
    closed: bool,
}

/// Lets writes in, or one change.
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Default for Gate {
    fn default() -> Self {
        Self { state: Mutex::ranked(Rank::Gate, State::default()), changed: Condvar::new() }
    }
}

/// Held by one change: nothing is inside.
pub struct Closed<'a>(&'a Gate);

/// Held by one write that is inside.
pub struct Inside<G: Deref<Target = Gate>>(G);

impl Gate {
    /// Goes in, unless the gate is closed.
    pub fn try_enter<G: Deref<Target = Self>>(gate: G) -> Option<Inside<G>> {
        let mut state = gate.state.lock();
        if state.closed {
            return None;
        }
        state.inside += 1;
        drop(state);
        Some(Inside(gate))
    }

    /// Goes in; waits while the gate is closed.
    pub fn enter(&self) -> Inside<&Self> {
        let mut state = self.state.lock();
        while state.closed {
            self.changed.wait(&mut state);
        }
        state.inside += 1;
        Inside(self)
    }

    fn leave(&self) {
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
        drop(state);
        // Before the lock is taken again, so that a panic of `help` gives the lock back first.
        let closed = Closed(self);
        let mut state = self.state.lock();
        while state.inside > 0 {
            crate::sync::MutexGuard::unlocked(&mut state, &help);
            if state.inside > 0 {
                self.changed.wait_for(&mut state, Duration::from_millis(1));
            }
        }
        drop(state);
        closed
    }
}

impl<G: Deref<Target = Gate>> Inside<G> {
    /// The same write, with the gate in other hands.
    pub fn keep<H: Deref<Target = Gate>>(self, gate: H) -> Inside<H> {
        debug_assert!(std::ptr::eq(&raw const *self.0, &raw const *gate), "it is inside this gate");
        gate.state.lock().inside += 1;
        Inside(gate)
    }
}

impl<G: Deref<Target = Gate>> Drop for Inside<G> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.state.lock().closed = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_write_that_panics_leaves_and_a_change_that_panics_opens() {
        let gate = Gate::default();
        let panics = |inside: &dyn Fn()| catch_unwind(AssertUnwindSafe(inside)).unwrap_err();
        panics(&|| {
            let _inside = gate.enter();
            panic!("a write panics, as it was told");
        });
        let closed = gate.close(|| panic!("nothing is inside"));
        assert!(Gate::try_enter(&gate).is_none());
        drop(closed);
        let inside = Gate::try_enter(&gate).unwrap();
        panics(&|| drop(gate.close(|| panic!("the help panics, as it was told"))));
        drop((inside, Gate::try_enter(&gate).unwrap()));
    }
}
