//! Threads for requests that have to wait.
//!
//! Reads may wait for a source, and with them writes for which there is no room otherwise: for as long as it hangs. So each volume
//! has threads of its own for its reads and for its writes, and those of the store are for what waits for its disk alone. Otherwise
//! one source that does not answer would stop the flushes of all volumes.
//!
//! This is not the pool that sources and hydrations have ([`crate::io::Workers`]). There a job has a key, may be refused or dropped, and a
//! thread beside the callers starts the others. A request of a queue may do none of that, and its caller starts its thread.
//!
//! # Invariants
//! - A job runs once, in the order of the queue, whatever becomes of the others: a job that panics ends neither its thread nor the count.
//! - While jobs wait, there is a thread: if none can be started and none is there, the calling thread does the job.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::io::Job;
use crate::sync::{Condvar, Mutex, Rank};

/// Threads at most; further jobs wait for one.
const THREADS_MAX: usize = 64;
/// As many for the reads of one volume: those of a source that hangs are to fail together.
const READERS_MAX: usize = 256;
/// Threads for jobs that no caller waits for.
const PREFETCHERS_MAX: usize = 4;
/// Idle time after which a thread ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

/// A pool that grows while jobs wait, and shrinks when there are none.
pub struct Workers {
    shared: Arc<(Mutex<State>, Condvar)>,
    threads_max: usize,
}

impl Default for Workers {
    fn default() -> Self {
        Self { shared: Arc::new((Mutex::ranked(Rank::Workers, State::default()), Condvar::new())), threads_max: THREADS_MAX }
    }
}

impl Workers {
    /// A pool for the reads of a volume.
    pub fn of_reads() -> Self {
        Self { threads_max: READERS_MAX, ..Self::default() }
    }

    /// A pool for blocks of a volume that are brought before they are read. Those that wait for what they read have other threads.
    pub fn of_prefetches() -> Self {
        Self { threads_max: PREFETCHERS_MAX, ..Self::default() }
    }

    /// Runs a job on some thread.
    pub fn run(&self, job: Job) {
        let (state, woken) = &*self.shared;
        let mut state = state.lock();
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() || state.threads >= self.threads_max {
            woken.notify_one();
            return;
        }
        state.threads += 1;
        let shared = Arc::clone(&self.shared);
        let started = crate::sync::thread::Builder::new().name("volfork-worker".into()).spawn(move || work(&shared));
        if started.is_err() {
            state.threads -= 1;
            // Without another thread the job waits for those there are; without any it is done here, late but done.
            if state.threads == 0
                && let Some(job) = state.jobs.pop_back()
            {
                drop(state);
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        }
    }
}

fn work((state, woken): &(Mutex<State>, Condvar)) {
    let mut state = state.lock();
    loop {
        if let Some(job) = state.jobs.pop_front() {
            // A job that panics has told so; the thread is there for the next one.
            let _ = crate::sync::MutexGuard::unlocked(&mut state, || catch_unwind(AssertUnwindSafe(job)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::mpsc::channel;

    #[test]
    fn a_panic_in_a_job_spares_its_thread_and_later_jobs() {
        let workers = Workers { threads_max: 1, ..Workers::default() };
        let (sender, receiver) = channel();
        for number in 0..3 {
            workers.run(Box::new(|| panic!("a job panics, as it was told")));
            let sender = sender.clone();
            workers.run(Box::new(move || sender.send(number).unwrap()));
            assert_eq!(receiver.recv_timeout(Duration::from_secs(60)).unwrap(), number);
            assert_eq!(workers.shared.0.lock().threads, 1);
        }
    }
}
