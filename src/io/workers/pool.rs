//! The threads of a pool.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::state::{Bounds, Job, State};
use crate::io::give_way;
use crate::sync::thread::Builder;
use crate::sync::time::Instant;
use crate::sync::{Condvar, Mutex, MutexGuard, Rank};

/// A call that takes longer is slow.
const SLOW: Duration = Duration::from_secs(1);
/// Idle time after which a thread ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a thread could not be started.
const START_PAUSE: Duration = Duration::from_millis(20);
/// Jobs for which no thread could be started in this time are dropped, if there is none.
const START_PATIENCE: Duration = Duration::from_secs(1);

/// A job that was not taken.
pub struct Refused {
    /// The job.
    pub job: Job,
    /// Why.
    pub why: Refusal,
}

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The pool is closed.
    Closed,
    /// Too many calls of its key wait.
    Crowded,
    /// No thread can be had.
    NoThread,
}

/// Threads for calls that may never return. Dropping it closes it.
pub struct Workers(pub(super) Arc<Shared>);

pub(super) struct Shared {
    /// Begins the names of its threads.
    name: String,
    pub bounds: Bounds,
    pub state: Mutex<State>,
    /// A thread without a job waits here.
    job_waits: Condvar,
    /// The lead waits here.
    pub lead_woken: Condvar,
}

impl Workers {
    /// A pool without threads; they are started when they are needed, and are named `NAME-lead` and `NAME-call`.
    pub fn new(name: &str, bounds: Bounds) -> Self {
        let (job_waits, lead_woken) = (Condvar::new(), Condvar::new());
        Self(Arc::new(Shared {
            name: name.to_owned(),
            bounds,
            state: Mutex::ranked(Rank::WorkerPool, State::default()),
            job_waits,
            lead_woken,
        }))
    }

    /// Runs a job on some thread, in its turn. Threads inherit the priority of the one that starts the lead: a thread that has given way
    /// should not be the first one that uses a pool of the foreground.
    ///
    /// # Errors
    /// Gives the job back.
    pub fn run(&self, key: &str, job: Job) -> Result<(), Refused> {
        let mut state = self.0.state.lock();
        if state.waiting_of(key) >= self.0.bounds.waiting_max {
            return Err(Refused { job, why: Refusal::Crowded });
        }
        match self.0.begin_lead(&mut state) {
            Ok(()) => {
                state.enqueue(&self.0.bounds, key, job);
                self.0.pass_on(&state);
                Ok(())
            }
            Err(why) => Err(Refused { job, why }),
        }
    }

    /// Ends the threads that have no job, and drops what waits. Does not wait for calls that are under way.
    pub fn close(&self) {
        let dropped = {
            let mut state = self.0.state.lock();
            state.closed = true;
            state.take_all()
        };
        discard(dropped);
        self.0.job_waits.notify_all();
        self.0.lead_woken.notify_all();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers").field("name", &self.0.name).field("bounds", &self.0.bounds).finish_non_exhaustive()
    }
}

/// Drops jobs that are not run. What one of them owns may panic, which ends neither the thread nor the drop of the others.
fn discard(jobs: Vec<Job>) {
    for job in jobs {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(job)));
    }
}

impl Shared {
    fn start(self: &Arc<Self>, what: &str, run: impl FnOnce(&Arc<Self>) + Send + 'static) -> io::Result<()> {
        let shared = Arc::clone(self);
        let body = move || {
            if shared.bounds.in_background {
                give_way();
            }
            run(&shared);
        };
        Builder::new().name(format!("{}-{what}", self.name)).spawn(body).map(drop)
    }

    /// Sees that there is a lead.
    pub fn begin_lead(self: &Arc<Self>, state: &mut State) -> Result<(), Refusal> {
        if state.closed {
            return Err(Refusal::Closed);
        }
        if !state.has_lead {
            self.start("lead", |shared| shared.lead()).map_err(|_| Refusal::NoThread)?;
            state.has_lead = true;
        }
        Ok(())
    }

    /// Wakes a thread for the next job, if one can run.
    pub fn pass_on(&self, state: &State) {
        match (state.turns.is_empty(), state.idle) {
            (true, _) => {}
            (false, 0) => drop(self.lead_woken.notify_one()),
            (false, _) => drop(self.job_waits.notify_one()),
        }
    }

    /// What the lead does until nothing is left.
    fn lead(self: &Arc<Self>) {
        let mut state = self.state.lock();
        while !state.closed {
            let now = Instant::now();
            if let Some(step) = state.take_due(now) {
                // A step that panics has told so.
                let _ = MutexGuard::unlocked(&mut state, || catch_unwind(AssertUnwindSafe(step)));
                continue;
            }
            let look = self.find_threads(&mut state, now);
            if state.is_over() {
                break;
            }
            match look.into_iter().chain(state.next_timer()).min() {
                Some(until) if until <= now => {}
                Some(until) => drop(self.lead_woken.wait_until(&mut state, until)),
                None => self.lead_woken.wait(&mut state),
            }
        }
        state.has_lead = false;
    }

    /// Starts a thread for the next job, if there is none. Answers when to look again.
    fn find_threads(self: &Arc<Self>, state: &mut MutexGuard<'_, State>, now: Instant) -> Option<Instant> {
        if state.turns.len() <= state.idle + state.starting {
            return None;
        }
        if state.threads >= self.bounds.threads_max + state.slow {
            return if state.slow < self.bounds.slow_max { state.find_slow(now, SLOW) } else { None };
        }
        if state.start_after.is_some_and(|after| now < after) {
            return state.start_after;
        }
        (state.threads, state.starting) = (state.threads + 1, state.starting + 1);
        if self.start("call", |shared| shared.work()).is_ok() {
            (state.start_after, state.failing_since) = (None, None);
            return Some(now);
        }
        (state.threads, state.starting) = (state.threads - 1, state.starting - 1);
        state.start_after = Some(now + START_PAUSE);
        if now.saturating_duration_since(*state.failing_since.get_or_insert(now)) > START_PATIENCE && state.threads == 0 {
            state.failing_since = None;
            let jobs = state.take_jobs();
            MutexGuard::unlocked(state, || discard(jobs));
        }
        state.start_after
    }

    /// What a thread does for calls.
    fn work(&self) {
        let mut state = self.state.lock();
        state.starting -= 1;
        while !state.closed && state.threads <= self.bounds.threads_max + state.slow {
            if let Some((call, job)) = state.take(&self.bounds) {
                self.pass_on(&state);
                // A job that panics has told so.
                let _ = MutexGuard::unlocked(&mut state, || catch_unwind(AssertUnwindSafe(job)));
                state.end(&self.bounds, call, SLOW);
                continue;
            }
            state.idle += 1;
            let timed_out = self.job_waits.wait_for(&mut state, IDLE_TIMEOUT).timed_out();
            state.idle -= 1;
            if timed_out && state.turns.is_empty() {
                break;
            }
        }
        state.threads -= 1;
        self.lead_woken.notify_one();
    }
}
