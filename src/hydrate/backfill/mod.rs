//! Backfill: fetches missing blocks that no reader waits for.
//!
//! The cast: a `plan` chooses the next range, first from a [`Queue`], which holds the read-ahead of `ahead` and the traces of earlier
//! forks; `field` says which blocks may be fetched from an address. `questions` asks a source for its zeros (`scan`) and its trace. `run`
//! makes the requests and receives messages by its `inbox`; an `errand` is blocking work on another thread. `stages` is the state machine
//! of a hydration on the threads of its store; `step` runs one round on the caller's thread.

mod ahead;
mod answer;
mod due;
mod errand;
mod field;
mod inbox;
mod plan;
mod questions;
mod queue;
mod run;
mod scan;
mod stages;
mod step;

pub use queue::Queue;
pub use stages::begin;
pub use step::step;
