//! Fetching what nobody waits for.
//!
//! The cast: a `plan` chooses what comes next, after the ranges of a [`Queue`], into which `ahead` puts its guesses; `field` tells it what
//! an address may be asked for. `questions` asks for zeros (`scan`) and for the order of an earlier fork; `run` makes the requests and
//! takes what comes by its `inbox`; an `errand` is what it must not wait for. `stages` are the life of a hydration on the threads of its
//! store; `step` is one round on the thread of the caller.

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
