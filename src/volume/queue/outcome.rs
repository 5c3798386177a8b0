//! What becomes of a request.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::io::Op;
use crate::volume::fence::{self, Fence};
use crate::volume::request::{Completion, Request};

/// Held by a request that outlives the call that started it.
pub type Pass = fence::Pass<Arc<Fence>>;

/// A request that a worker does.
pub struct Later {
    pub token: u64,
    pub request: Request,
    pub pass: Pass,
}

/// What follows when nothing of a request is left to the ring.
pub enum Outcome {
    Ended(Completion),
    Later(Later),
}

/// Transfers of one request with their numbers, which are below 2^32.
pub type Transfers = SmallVec<[(usize, Op); 1]>;

/// How a request begins.
pub enum Begun<P> {
    /// Nothing was done: it needs a worker.
    NeedsWorker,
    /// It was done at once.
    Done(Outcome),
    /// The ring does these.
    Pending(P, Transfers),
}
