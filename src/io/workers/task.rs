//! Steps that are run again and again, one after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::pool::{Refusal, Shared, Workers};
use super::state::{Job, TimerId};
use crate::sync::time::Instant;
use crate::sync::{Mutex, Rank};

/// Pause after a step that panicked, or got no thread.
const PAUSE: Duration = Duration::from_secs(1);

/// When a task goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// After this time, or when it is woken.
    After(Duration),
    /// Never: it has ended.
    Over,
}

type Step = Box<dyn FnMut() -> Next + Send>;

enum Phase {
    Waits(TimerId),
    /// Its step runs soon.
    Due,
    Runs {
        woken: bool,
    },
    Over,
}

struct Inner {
    pool: Weak<Shared>,
    /// Its steps may block, and run as calls of this key; otherwise they run on the lead.
    key: Option<String>,
    phase: Mutex<Phase>,
    /// Taken while it runs.
    step: Mutex<Option<Step>>,
}

/// A task of a pool: its step is run, after the time that it says or when it is woken, and never twice at once. A wake is not lost,
/// also when it comes while the step runs. Dropping the task ends it; a step that runs is not waited for. A step that panics, or for
/// which no thread can be had, is run again after a pause.
pub struct Task(Arc<Inner>);

impl Task {
    /// A task whose step runs at once. Without a `key` it runs on the thread that leads the pool, and must not block; with one it may.
    ///
    /// # Errors
    /// The pool is closed, or has no thread.
    pub fn begin(workers: &Workers, key: Option<&str>, step: impl FnMut() -> Next + Send + 'static) -> Result<Self, Refusal> {
        let (pool, key) = (Arc::downgrade(&workers.0), key.map(str::to_owned));
        let inner = Arc::new(Inner {
            pool,
            key,
            phase: Mutex::ranked(Rank::TaskPhase, Phase::Due),
            step: Mutex::ranked(Rank::TaskStep, Some(Box::new(step))),
        });
        {
            let mut state = workers.0.state.lock();
            workers.0.begin_lead(&mut state)?;
            state.tasks += 1;
        }
        inner.run_soon();
        Ok(Self(inner))
    }

    /// Runs the step soon; once more, if it runs now.
    pub fn wake(&self) {
        let timer = {
            let mut phase = self.0.phase.lock();
            match &mut *phase {
                Phase::Waits(timer) => {
                    let timer = *timer;
                    *phase = Phase::Due;
                    timer
                }
                Phase::Runs { woken } => {
                    *woken = true;
                    return;
                }
                Phase::Due | Phase::Over => return,
            }
        };
        if let Some(pool) = self.0.pool.upgrade() {
            drop(pool.state.lock().take_timer(timer));
        }
        self.0.run_soon();
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let timer = match std::mem::replace(&mut *self.0.phase.lock(), Phase::Over) {
            Phase::Waits(timer) => Some(timer),
            Phase::Due => None,
            // The thread that runs the step sees it, and may be this one.
            Phase::Runs { .. } | Phase::Over => return,
        };
        if let (Some(timer), Some(pool)) = (timer, self.0.pool.upgrade()) {
            drop(pool.state.lock().take_timer(timer));
        }
        self.0.drop_step();
        self.0.leave();
    }
}

impl Inner {
    fn job(self: &Arc<Self>) -> Job {
        let mut due = Due(Some(Arc::clone(self)));
        Box::new(move || due.0.take().into_iter().for_each(|this| this.run()))
    }

    /// Goes on after a pause, or when it is woken.
    fn rest(self: &Arc<Self>, pool: &Shared, phase: &mut Phase, pause: Duration) {
        let this = Arc::clone(self);
        let mut state = pool.state.lock();
        let timer = Box::new(move || this.time_passed());
        *phase = Phase::Waits(state.add_timer(Instant::now() + pause, timer));
        pool.lead_woken.notify_one();
    }

    fn run_soon(self: &Arc<Self>) {
        let Some(pool) = self.pool.upgrade() else { return };
        let mut state = pool.state.lock();
        if state.closed {
            return;
        }
        match &self.key {
            Some(key) => {
                state.enqueue(&pool.bounds, key, self.job());
                pool.pass_on(&state);
            }
            None => {
                state.add_due(self.job());
                pool.lead_woken.notify_one();
            }
        }
    }

    fn run(self: &Arc<Self>) {
        match &mut *self.phase.lock() {
            Phase::Over => return,
            phase => *phase = Phase::Runs { woken: false },
        }
        let taken = self.step.lock().take();
        let Some(mut step) = taken else { return };
        let next = catch_unwind(AssertUnwindSafe(&mut step)).unwrap_or(Next::After(PAUSE));
        if next == Next::Over {
            *self.phase.lock() = Phase::Over;
        } else {
            *self.step.lock() = Some(step);
        }
        self.go_on(next);
    }

    /// Schedules the task as the result of its step says.
    fn go_on(self: &Arc<Self>, next: Next) {
        let Some(pool) = self.pool.upgrade() else { return };
        let mut phase = self.phase.lock();
        match (&*phase, next) {
            (Phase::Over, _) | (_, Next::Over) => {
                *phase = Phase::Over;
                drop(phase);
                self.drop_step();
                self.leave();
            }
            (Phase::Runs { woken: false }, Next::After(pause)) => {
                self.rest(&pool, &mut phase, pause);
            }
            _ => {
                *phase = Phase::Due;
                drop(phase);
                self.run_soon();
            }
        }
    }

    /// The pause is over, unless a wake has ended it.
    fn time_passed(self: &Arc<Self>) {
        match &mut *self.phase.lock() {
            phase @ Phase::Waits(_) => *phase = Phase::Due,
            Phase::Due | Phase::Runs { .. } | Phase::Over => return,
        }
        match &self.key {
            Some(_) => self.run_soon(),
            None => self.run(),
        }
    }

    /// What a step owns may take locks of any rank when it is dropped.
    fn drop_step(&self) {
        let step = self.step.lock().take();
        drop(step);
    }

    /// The task has ended, and the lead need not stay for it.
    fn leave(&self) {
        let Some(pool) = self.pool.upgrade() else { return };
        pool.state.lock().tasks -= 1;
        pool.lead_woken.notify_one();
    }
}

/// A step that is due. The pool drops it when no thread can be had for long: then it is tried again later.
struct Due(Option<Arc<Inner>>);

impl Drop for Due {
    fn drop(&mut self) {
        let Some(this) = self.0.take() else { return };
        let Some(pool) = this.pool.upgrade().filter(|pool| !pool.state.lock().closed) else { return };
        let mut phase = this.phase.lock();
        if matches!(*phase, Phase::Due) {
            this.rest(&pool, &mut phase, PAUSE);
        }
    }
}
