//! Backfill without threads of its own.

use std::sync::Arc;

use super::run::Backfill;
use crate::hydrate::parts::Parts;

/// Runs one bounded round of backfill on the caller's thread, without waiting for time to pass. Returns whether it did anything. If not,
/// the missing blocks wait for time, for a source, or for the fetches of readers.
pub fn step(parts: &Arc<Parts>) -> bool {
    if parts.life.is_stopped() {
        return false;
    }
    let missing = parts.missing().len();
    let mut backfill = Backfill::new(parts, None);
    backfill.follow_first();
    backfill.round();
    backfill.wait_for_requests();
    backfill.requests_made() > 0 || parts.missing().len() < missing
}
