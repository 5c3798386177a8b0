//! Fetching what nobody waits for.
//!
//! The cast: a `plan` chooses what comes next, after the ranges of a [`Queue`], into which `ahead` puts its guesses; `questions` asks for
//! zeros and for the order of an earlier fork; `run` makes the requests, and `writes` stores what comes.

mod ahead;
mod due;
mod plan;
mod questions;
mod queue;
mod run;
mod writes;

pub use queue::Queue;
pub use run::{in_background, step};
