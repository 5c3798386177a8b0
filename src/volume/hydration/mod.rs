//! Hydration as the volumes see it: which roots need a source, what is hidden above them, and the order in which forks read.
//!
//! The cast: [`Roots`] makes and ends the hydrators; [`Reclaim`] finds blocks that nothing shows; [`Recordings`] notes in which order
//! forks touch their blocks, each by a [`Recorder`].

mod reclaim;
mod recorder;
mod recordings;
mod roots;

pub use reclaim::Reclaim;
pub use recorder::Recorder;
pub use recordings::{Recordings, TraceInfo};
pub use roots::{Roots, no_sources};
