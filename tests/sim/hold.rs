//! Operations of the simulated disk that wait until a test lets them go on, so that others can be tried meanwhile.

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// Something that should wait does not end within this time; something that does not wait may take longer, and is missed then.
const SOON: Duration = Duration::from_millis(100);
/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What can be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Write,
    Sync,
    SyncNames,
}

#[derive(Default)]
struct State {
    /// The next operation of this kind on a file with this in its path is held.
    wanted: Option<(Kind, &'static str)>,
    held: bool,
}

/// At most one operation is held at a time.
#[derive(Default)]
pub struct Holds {
    state: Mutex<State>,
    changed: Condvar,
}

impl Holds {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("holds do not panic")
    }

    /// Holds the next operation of a kind on a file with `part` in its path, before it has any effect.
    pub fn hold(&self, kind: Kind, part: &'static str) {
        self.state().wanted = Some((kind, part));
    }

    /// An operation is about to begin.
    pub fn pass(&self, kind: Kind, path: &Path) {
        let mut state = self.state();
        if state.wanted.is_some_and(|(wanted, part)| wanted == kind && path.to_string_lossy().contains(part)) {
            state.wanted = None;
            state.held = true;
            self.changed.notify_all();
            drop(self.changed.wait_while(state, |state| state.held));
        }
    }

    /// Waits until the operation is held.
    pub fn await_held(&self) {
        let (state, waited) = self.changed.wait_timeout_while(self.state(), PATIENCE, |state| !state.held).expect("holds do not panic");
        assert!(!waited.timed_out(), "no {:?} came", state.wanted);
    }

    /// Lets it go on.
    pub fn release(&self) {
        self.state().held = false;
        self.changed.notify_all();
    }
}

/// Something in a thread of its own.
pub struct Beside<T> {
    thread: JoinHandle<T>,
    ended: Receiver<()>,
}

pub fn beside<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Beside<T> {
    let (sender, ended) = channel();
    let run = move || {
        let result = run();
        // Nobody may listen.
        let _ = sender.send(());
        result
    };
    Beside { thread: std::thread::spawn(run), ended }
}

impl<T> Beside<T> {
    /// Whether it ends although something is held.
    pub fn ends_soon(&self) -> bool {
        self.ended.recv_timeout(SOON).is_ok()
    }

    pub fn join(self) -> T {
        self.thread.join().expect("it does not panic")
    }
}
