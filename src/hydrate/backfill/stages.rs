//! The life of a hydration on the threads of its store.
//!
//! | stage | what the step does | goes on |
//! |---|---|---|
//! | new | takes its place among the hydrations of the store | begins |
//! | begins | waits for a random moment soon, or for the first reader that has what it waited for | fetches |
//! | fetches | takes what came, asks for more | when nothing is missing: finishes |
//! | finishes | waits for the end that another thread makes | over; if something is missing after all: new |
//!
//! # Cancellation
//! When the hydrator is stopped, what is under way at the source is forgotten. The last step comes when no write and no errand of it is
//! under way any more: those are waited for, a source never is.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::run::{Backfill, Round};
use crate::hydrate::crew::Crew;
use crate::hydrate::pace::{Wake, start_pause};
use crate::hydrate::parts::Parts;
use crate::ids::random_bytes;
use crate::io::{Next, Task};
use crate::sync::Mutex;
use crate::sync::time::Instant;

/// How long a hydration waits after a panic before it goes on.
const PANIC_PAUSE: Duration = Duration::from_secs(5);

/// For a step that nothing but a wake makes useful.
const UNTIL_WOKEN: Next = Next::After(Duration::from_secs(60));

/// Ends a hydration. Answers `false` if something is missing after all.
pub type Finish = Arc<dyn Fn() -> bool + Send + Sync>;

enum Stage {
    New,
    Begins(Instant),
    Fetches,
    Finishes,
}

/// Backfill runs until this is dropped.
struct Running(Arc<Parts>);

impl Drop for Running {
    fn drop(&mut self) {
        let parts = &self.0;
        // One that has finished has left, and another one may stand there by now.
        if !parts.life.is_complete() {
            parts.budget.leave(parts.root.layer.id);
        }
        let wake = parts.wake.lock().take();
        drop(wake);
        parts.life.end();
        parts.news.tell();
    }
}

/// One hydration.
struct Stages {
    parts: Arc<Parts>,
    backfill: Backfill,
    stage: Stage,
    finish: Finish,
    /// It has panicked, and does nothing before.
    rests_until: Option<Instant>,
    wake: Wake,
    _running: Running,
}

/// Lets a hydration run on the threads of its store until nothing is missing, or it is stopped. `finish` is called when nothing is
/// missing.
///
/// # Errors
/// No thread can be had.
pub fn begin(parts: &Arc<Parts>, crew: &Arc<Crew>, finish: Finish) -> std::io::Result<()> {
    if !parts.life.begin() {
        return Ok(());
    }
    let running = Running(Arc::clone(parts));
    let task = Arc::<Mutex<Option<Task>>>::default();
    let waking = Arc::clone(&task);
    let wake: Wake = Arc::new(move || waking.lock().iter().for_each(Task::wake));
    *parts.wake.lock() = Some(Arc::clone(&wake));
    let mut stages = Stages {
        parts: Arc::clone(parts),
        backfill: Backfill::new(parts, Some(Arc::clone(crew))),
        stage: Stage::New,
        finish,
        rests_until: None,
        wake: Arc::clone(&wake),
        _running: running,
    };
    let begun = crew.begin(parts.root.layer.id, move || stages.step());
    *task.lock() = Some(begun.map_err(|why| std::io::Error::other(format!("{why:?}")))?);
    // What came before the task was known.
    wake();
    Ok(())
}

impl Stages {
    fn step(&mut self) -> Next {
        let is_stopped = self.parts.life.is_stopped();
        if let Some(left) = self.rests_until.map(|until| until.saturating_duration_since(Instant::now()))
            && !is_stopped
            && !left.is_zero()
        {
            return Next::After(left);
        }
        self.rests_until = None;
        catch_unwind(AssertUnwindSafe(|| if is_stopped { self.end() } else { self.go_on() })).unwrap_or_else(|_| {
            // It was printed. What is held is given back, so the next try may do better.
            self.parts.health.note_error("fetching in the background panicked".into());
            self.backfill.give_up();
            self.rests_until = Some(Instant::now() + PANIC_PAUSE);
            Next::After(PANIC_PAUSE)
        })
    }

    fn go_on(&mut self) -> Next {
        match self.stage {
            Stage::New => {
                self.stage = Stage::Begins(Instant::now() + self.join());
                self.again()
            }
            Stage::Begins(until) => {
                let left = until.saturating_duration_since(Instant::now());
                // A reader that waits is not in the way of the first request; bulk would be in its way.
                if !left.is_zero() && !self.parts.waiters.any() {
                    return Next::After(left);
                }
                let priority = self.parts.throttle.settings().priority;
                self.parts.budget.join(self.parts.root.layer.id, priority, Some(Arc::clone(&self.wake)));
                self.backfill.follow_first();
                self.stage = Stage::Fetches;
                self.again()
            }
            Stage::Fetches => match self.backfill.round() {
                Round::Again => self.again(),
                Round::After(pause) => Next::After(pause),
                Round::Complete => {
                    if self.backfill.finish(Arc::clone(&self.finish)) {
                        self.stage = Stage::Finishes;
                    }
                    UNTIL_WOKEN
                }
            },
            Stage::Finishes => match self.backfill.finished() {
                None => UNTIL_WOKEN,
                Some(true) => Next::Over,
                Some(false) => {
                    self.stage = Stage::New;
                    self.again()
                }
            },
        }
    }

    /// Behind the hydrations that wait for their turn.
    fn again(&self) -> Next {
        (self.wake)();
        UNTIL_WOKEN
    }

    /// Takes its place among the hydrations of the store. Answers how long to wait until it begins.
    fn join(&self) -> Duration {
        let (layer, budget) = (self.parts.root.layer.id, &self.parts.budget);
        // Counted from now on, so that of many that begin at once each sees the others.
        budget.join(layer, self.parts.throttle.settings().priority, None);
        // Without randomness those of one store still begin apart.
        let random = random_bytes().map(u64::from_le_bytes);
        let random = random.unwrap_or_else(|_| u64::from(layer.0).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        start_pause(budget.hydrations(), random)
    }

    /// It was stopped.
    fn end(&mut self) -> Next {
        self.backfill.give_up();
        if self.backfill.is_quiet() { Next::Over } else { UNTIL_WOKEN }
    }
}
