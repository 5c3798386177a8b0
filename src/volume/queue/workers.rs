//! Threads for requests that have to wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Threads at most; further jobs wait for one.
const THREADS_MAX: usize = 64;
/// A thread without a job ends after so long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

/// A pool that grows while jobs wait, and shrinks when there are none.
#[derive(Default)]
pub struct Workers {
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Workers {
    /// Runs a job on some thread.
    pub fn run(&self, job: Job) {
        let (state, woken) = &*self.shared;
        let mut state = state.lock();
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() || state.threads >= THREADS_MAX {
            woken.notify_one();
            return;
        }
        state.threads += 1;
        let shared = Arc::clone(&self.shared);
        let started = std::thread::Builder::new().name("volfork-worker".into()).spawn(move || work(&shared));
        if started.is_err() {
            state.threads -= 1;
            // Without another thread the job waits for those there are; without any it is done here, late but done.
            if state.threads == 0
                && let Some(job) = state.jobs.pop_back()
            {
                drop(state);
                job();
            }
        }
    }
}

fn work((state, woken): &(Mutex<State>, Condvar)) {
    let mut state = state.lock();
    loop {
        if let Some(job) = state.jobs.pop_front() {
            parking_lot::MutexGuard::unlocked(&mut state, job);
            continue;
        }
        state.idle += 1;
        let timed_out = woken.wait_for(&mut state, IDLE_TIMEOUT).timed_out();
        state.idle -= 1;
        if timed_out && state.jobs.is_empty() {
            state.threads -= 1;
            return;
        }
    }
}
