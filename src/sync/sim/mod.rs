//! The seeded scheduler of the project's own proof: one run, one seed, one order of events.
//!
//! [`run`] starts a task, which starts others. Each task is a thread of the machine, but one of them runs at a time: the holder of
//! the baton. Before every lock, wait, notification, atomic operation, message, start, join and sleep the holder passes a *point*,
//! where the scheduler may hand the baton to another task. All choices come from the seed, so a run can be repeated.
//!
//! Time is virtual. It advances a little with every step, and jumps to the next timer when no task can run; some runs fire timers
//! early now and then, as if every other thread were slow. (`shuttle` 0.9 has no time: its `Condvar::wait_timeout` never times out.)
//!
//! # Invariants
//! - A task that does not hold the baton is inside a call of this module. A task never blocks for the other tasks except here.
//! - Threads outside a run, and threads that the standard library starts for itself, see real primitives.
//! - Nothing of a choice depends on addresses, hashes or real time.
//!
//! # How a run ends
//! - When all tasks have ended. The value of the first one is the result.
//! - As a failure: no task can run and no timer is set (deadlock, or a task that outlives the run); locks were taken in a circle, which
//!   is a deadlock under another seed; the budget of steps is spent (livelock); a panic leaves a task; or a task blocks outside this
//!   module for a minute. The tasks of a failed run stay where they are for ever, with their memory: a failure ends the test, and
//!   unwinding them would run code of the engine in states that the engine never has. To end tasks early in a run that goes on, let
//!   the disk or the source fail, as after a loss of power.
//!
//! # Seeds
//! `VOLFORK_SEEDS=1000..2000 cargo test --features sim --lib proof` runs other seeds than the usual ones; `VOLFORK_SEEDS=7` repeats
//! one. A switch costs about 3 µs, a step without one 0.3 µs or less.
//!
//! # Limits
//! - Memory is sequentially consistent: a wrong `Ordering` is not found. Counts of `Arc` are no points, nor is a look at a `OnceLock`.
//! - Statics live on from one run to the next.

pub mod atomic;
mod channel;
mod condvar;
mod entropy;
mod lock;
mod once;
mod order;
mod outcome;
mod report;
mod rwlock;
mod state;
mod strategy;
pub mod thread;
pub mod time;
mod wait;
mod world;

#[cfg(test)]
mod tests;

pub use condvar::{Condvar, WaitTimeoutResult};
pub use lock::{Mutex, MutexGuard};
pub use once::OnceLock;
pub use outcome::{Failure, FailureKind, Outcome};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use strategy::{Config, Early, SlowPlaces, Strategy};
pub(super) use wait::send_now;
pub(super) use world::current;
pub use world::run;

/// Channels.
pub mod mpsc {
    pub use super::channel::{Receiver, Sender, channel};
    pub use std::sync::mpsc::{RecvError, RecvTimeoutError, SendError, TryRecvError};
}

use std::ops::Range;
use std::time::Duration;

/// Whether the present thread belongs to a simulated run.
pub fn is_running() -> bool {
    current().is_some()
}

/// A place where another task may go on. Nothing outside a run.
#[track_caller]
pub fn point() {
    if let Some(task) = current() {
        task.point("point");
    }
}

/// A number from the seed of the run.
///
/// # Panics
/// Outside a run.
pub fn random() -> u64 {
    current().expect("a simulated run").random()
}

/// A number from the seed of the run, less than `end`.
///
/// # Panics
/// Outside a run, or if `end` is zero.
pub fn below(end: u64) -> u64 {
    assert!(end > 0, "there is no number below zero");
    random() % end
}

/// Virtual time since the run began.
///
/// # Panics
/// Outside a run.
pub fn now() -> Duration {
    current().expect("a simulated run").now()
}

/// Adds a line to the events that the report of a failure shows. Nothing outside a run.
pub fn note(text: impl FnOnce() -> String) {
    if let Some(task) = current() {
        task.note(text());
    }
}

/// From now on, one start of a thread in this many fails; 0 is none. No effect outside a run.
pub fn fail_starts_of_threads(one_in: u32) {
    if let Some(task) = current() {
        task.world.state.lock().config.spawn_failure_one_in = one_in;
    }
}

/// The seeds of a test: the first `count`, or those that `VOLFORK_SEEDS` names (`7`, or `1000..2000`).
///
/// # Panics
/// The variable names no seeds.
pub fn seeds(count: u64) -> Range<u64> {
    let Ok(text) = std::env::var("VOLFORK_SEEDS") else { return 0..count };
    let number = |text: &str| text.parse::<u64>().expect("VOLFORK_SEEDS is a number, or two with '..' between");
    match text.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => number(&text)..number(&text) + 1,
    }
}
