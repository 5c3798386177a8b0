//! How a run ended.

use std::fmt;
use std::time::Duration;

use super::strategy::Strategy;

/// Why a run failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// No task can run, and no timer is set.
    Deadlock,
    /// Locks were taken in a circle, which is a deadlock if the tasks meet.
    LockOrder,
    /// The budget of steps is spent.
    Livelock,
    /// A panic left a task.
    Panic,
    /// A task blocks outside the scheduler.
    Stall,
}

/// A run that failed.
#[derive(Clone)]
pub struct Failure {
    /// The kind.
    pub kind: FailureKind,
    /// The seed that repeats it.
    pub seed: u64,
    /// Every task with what it waits for and where, and the last events.
    pub report: String,
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.report)
    }
}

/// The end of a run.
#[derive(Clone, Debug)]
pub struct Outcome<T> {
    /// What the first task gave.
    pub result: Result<T, Failure>,
    /// Its seed.
    pub seed: u64,
    /// Its strategy.
    pub strategy: Strategy,
    /// Points passed.
    pub steps: u64,
    /// How often the baton was passed.
    pub switches: u64,
    /// A hash of all steps: equal for equal runs.
    pub trace: u64,
    /// Virtual time.
    pub elapsed: Duration,
}

impl<T> Outcome<T> {
    /// The value of the first task.
    ///
    /// # Panics
    /// With the report, if the run failed.
    #[track_caller]
    pub fn unwrap(self) -> T {
        match self.result {
            Ok(value) => value,
            Err(failure) => panic!("{}", failure.report),
        }
    }
}
