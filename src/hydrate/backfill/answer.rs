//! Replies of a source to the questions of backfill about trace and zeros.

use std::ops::Range;
use std::sync::Arc;

use super::scan::Found;
use crate::source::Source;

/// A reply.
pub enum Answer {
    /// Ranges of bytes in the order in which an earlier fork touched them.
    Trace(Vec<Range<u64>>),
    /// Ranges of zeros, and where the search goes on.
    Zeros(Found),
    /// No reply will come: the call panicked, or no thread could be had.
    None,
}

/// A reply, with the address that gave it.
pub struct Answered {
    pub uri: String,
    pub source: Arc<dyn Source>,
    pub answer: Answer,
}
