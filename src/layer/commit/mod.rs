//! Group commit: records, journal space, barrier rounds and checkpoints.

pub(super) mod barriers;
pub(super) mod checkpoint;
pub(super) mod cost;
pub(super) mod queue;
pub(super) mod room;
pub(super) mod round;
#[cfg(test)]
mod tests;
