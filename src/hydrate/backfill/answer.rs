//! What a source has answered to a question of backfill.

use std::ops::Range;
use std::sync::Arc;

use super::scan::Found;
use crate::source::Source;

/// What a source has answered.
pub enum Answer {
    /// Ranges of bytes in the order in which an earlier fork touched them.
    Trace(Vec<Range<u64>>),
    /// Some of its zeros.
    Zeros(Found),
    /// It never will.
    None,
}

/// The answer of an address.
pub struct Answered {
    pub uri: String,
    pub source: Arc<dyn Source>,
    pub answer: Answer,
}
