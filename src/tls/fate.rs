//! How a connection has ended.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::handshake::Refused;
use crate::io::Outcome;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::time::Instant;
use crate::sync::{Condvar, Mutex, Rank};

/// State of a connection.
#[derive(Debug)]
enum State {
    Open,
    /// Both sides have said so.
    Closed,
    /// TLS was broken, or cut off.
    Broken(Refused),
}

/// Tells how a connection has ended.
pub(crate) struct Fate {
    state: Mutex<State>,
    ended: Condvar,
    /// The connection is to end at once, whoever says so. Set before the connection's own end is closed, if TLS was broken or cut off.
    cut: Arc<AtomicBool>,
}

impl Default for Fate {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Fate {
    /// That of a connection that is to end at once when `cut` is set.
    pub fn new(cut: Arc<AtomicBool>) -> Self {
        Self { state: Mutex::ranked(Rank::TlsFate, State::Open), ended: Condvar::new(), cut }
    }

    /// Notes the end; an error if TLS was broken.
    pub(super) fn end(&self, outcome: Result<(), Refused>) {
        let mut state = self.state.lock();
        if matches!(*state, State::Open) {
            *state = match outcome {
                Ok(()) => State::Closed,
                Err(why) => {
                    self.cut.store(true, Ordering::SeqCst);
                    State::Broken(why)
                }
            };
        }
        drop(state);
        self.ended.notify_all();
    }

    /// Whether the connection is to end at once.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    /// Waits until the last bytes have gone, or cannot go.
    pub fn wait(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut state = self.state.lock();
        while matches!(*state, State::Open) && !self.ended.wait_until(&mut state, until).timed_out() {}
    }
}

impl Outcome for Fate {
    fn look(&self) -> io::Result<()> {
        match &*self.state.lock() {
            State::Broken(why) => Err(io::Error::other(why.clone())),
            State::Open | State::Closed => Ok(()),
        }
    }
}
