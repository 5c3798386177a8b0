//! A bounded number of threads for calls that may take long, or never return.
//!
//! Each call has a key: the host that it waits for. Keys take turns, and a key has few calls under way, so that a host that does not
//! answer leaves threads to others. A call that takes longer than a second counts as slow when others need its thread: another
//! thread takes its place, up to a bound. Beyond that bound calls wait until one ends.
//!
//! One thread, the lead, starts the others, sees which calls are slow, and runs what is due at a moment: steps that do not block. It is
//! there while anything waits, runs or is due.
//!
//! # Invariants
//! - A job that was taken runs once, or is dropped: when no thread can be had for it, and when the pool is closed. What waits for it
//!   is told by what the job drops.
//! - A wake is not lost: a thread that takes a job tells the next one, or the lead, when more can run.
//! - A job that panics costs itself. It was printed.
//! - Jobs and steps run without locks.

mod pool;
mod state;
mod task;

pub use pool::{Refusal, Workers};
pub use state::{Bounds, Job};
pub use task::{Next, Task};

#[cfg(test)]
mod tests;
