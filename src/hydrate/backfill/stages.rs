//! The life of a hydration on the threads of its store.
//!
//! | stage | what the step does | goes on |
//! |---|---|---|
//! | new | joins the hydrations of the store | begins |
//! | begins | waits for a random time (jitter), or until the first reader has its blocks | fetches |
//! | fetches | takes messages, makes requests | finishes, when nothing is missing |
//! | finishes | waits for the errand that makes everything durable and ends the hydration | over; new, if blocks are missing after all |
//!
//! # Cancellation
//! When the hydrator is stopped, requests at the source are dropped without waiting for them. Writes and errands are waited for: the last
//! step runs when none of them is under way.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::run::{Backfill, Round};
use crate::hydrate::crew::Crew;
use crate::hydrate::pace::{Wake, start_pause};
use crate::hydrate::parts::Parts;
use crate::ids::random_bytes;
use crate::io::{Next, Task};
use crate::sync::time::Instant;
use crate::sync::{Mutex, Rank};

/// Pause of a hydration after a panic.
const PANIC_PAUSE: Duration = Duration::from_secs(5);

/// Result of a step that has nothing to do before a wake.
const UNTIL_WOKEN: Next = Next::After(Duration::from_secs(60));

/// Ends a hydration. Returns false if blocks are missing after all.
pub type Finish = Arc<dyn Fn() -> bool + Send + Sync>;

enum Stage {
    New,
    Begins(Instant),
    Fetches,
    Finishes,
}

/// Guard of a running backfill.
struct Running(Arc<Parts>);

impl Drop for Running {
    fn drop(&mut self) {
        let parts = &self.0;
        // A complete hydration has left the budget already, and another one may use its id by now.
        if !parts.life.is_complete() {
            parts.budget.leave(parts.root.layer.id);
        }
        let wake = parts.wake.lock().take();
        drop(wake);
        parts.life.end();
        parts.news.tell();
    }
}

/// The state machine of one hydration.
struct Stages {
    parts: Arc<Parts>,
    backfill: Backfill,
    stage: Stage,
    finish: Finish,
    /// End of the pause after a panic.
    rests_until: Option<Instant>,
    wake: Wake,
    _running: Running,
}

/// Runs a hydration on the threads of its store until it is stopped, or nothing is missing and `finish` returns true.
///
/// # Errors
/// No thread can be had.
pub fn begin(parts: &Arc<Parts>, crew: &Arc<Crew>, finish: Finish) -> std::io::Result<()> {
    if !parts.life.begin() {
        return Ok(());
    }
    let running = Running(Arc::clone(parts));
    let task = Arc::new(Mutex::ranked(Rank::HydrationTask, None::<Task>));
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
    // A wake may have come before the task was known.
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
            // The panic was printed. Its guards have given back what was held, so the hydration goes on after a pause.
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
                // The first pause also ends when a reader has its blocks: until then bulk would delay that reader.
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

    /// Runs again, behind the hydrations that wait for their turn.
    fn again(&self) -> Next {
        (self.wake)();
        UNTIL_WOKEN
    }

    /// Joins the hydrations of the store. Returns the random time to wait before the first request.
    fn join(&self) -> Duration {
        let (layer, budget) = (self.parts.root.layer.id, &self.parts.budget);
        // Joined before the pause is drawn, so that hydrations that begin at once count one another.
        budget.join(layer, self.parts.throttle.settings().priority, None);
        // If randomness fails, the layer's number spreads the hydrations of one store.
        let random = random_bytes().map(u64::from_le_bytes);
        let random = random.unwrap_or_else(|_| u64::from(layer.0).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        start_pause(budget.hydrations(), random)
    }

    /// Steps of a stopped hydration: waits until no write and no errand is under way.
    fn end(&mut self) -> Next {
        self.backfill.give_up();
        if self.backfill.is_quiet() { Next::Over } else { UNTIL_WOKEN }
    }
}
