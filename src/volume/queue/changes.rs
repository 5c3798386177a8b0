//! Changes that workers make for a queue, which may be dropped meanwhile.

use crate::error::{Error, ErrorKind, Result};
use crate::sync::{Condvar, Mutex, Rank};

#[derive(Default)]
struct State {
    /// Changes that are being made.
    inside: usize,
    /// The queue is gone.
    ended: bool,
}

/// Lets changes of a queue happen until it is dropped. A worker that waits for a source is not inside: it changes nothing then, and
/// finds out afterwards.
pub struct Changes {
    state: Mutex<State>,
    left: Condvar,
}

impl Default for Changes {
    fn default() -> Self {
        Self { state: Mutex::ranked(Rank::QueueChanges, State::default()), left: Condvar::new() }
    }
}

/// One change, or a piece of it, that is being made.
pub struct Change<'a>(&'a Changes);

impl Changes {
    /// Begins one.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`]: the queue is gone, and nobody waits for the change.
    pub fn enter(&self) -> Result<Change<'_>> {
        let mut state = self.state.lock();
        if state.ended {
            return Err(Error::new(ErrorKind::Closed, "the queue of this request was dropped before its end"));
        }
        state.inside += 1;
        Ok(Change(self))
    }

    /// From now on none begins; waits for those that have.
    pub fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        while state.inside > 0 {
            self.left.wait(&mut state);
        }
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.0.state.lock().inside -= 1;
        self.0.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_waits_for_a_running_change_and_admits_no_other() {
        let changes = Changes::default();
        let change = changes.enter().unwrap();
        crate::sync::thread::scope(|scope| {
            let ended = scope.spawn(|| changes.end());
            while changes.enter().is_ok() {
                crate::sync::thread::yield_now();
            }
            assert!(!ended.is_finished(), "a change is being made");
            drop(change);
            ended.join().unwrap();
        });
        assert_eq!(changes.enter().err().unwrap().kind(), ErrorKind::Closed);
    }
}
