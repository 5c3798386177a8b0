//! Blocks of the root that the layers above hide: they are not fetched.

use std::ops::Range;
use std::time::Duration;

use roaring::RoaringBitmap;

use crate::place::end_of_run;
use crate::sync::{Mutex, Rank};

/// How often the layers above are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Default)]
struct State {
    /// Blocks that the layers above hide durably.
    hidden: RoaringBitmap,
    /// Hidden blocks, and those that will be hidden once the writes above are durable. Neither are requested.
    covered: RoaringBitmap,
    looked_at: Option<Duration>,
}

/// Which blocks the layers above hide, as of the last look.
pub struct Cover(Mutex<State>);

impl Default for Cover {
    fn default() -> Self {
        Self(Mutex::ranked(Rank::Cover, State::default()))
    }
}

impl Cover {
    /// Sets the durably hidden blocks.
    pub fn set_hidden(&self, hidden: RoaringBitmap) {
        let mut state = self.0.lock();
        state.covered |= &hidden;
        state.hidden = hidden;
    }

    /// Sets the blocks that are hidden once all writes above are durable.
    pub fn set_covered(&self, covered: RoaringBitmap) {
        self.0.lock().covered = covered;
    }

    /// Forgets hidden and covered blocks: a new fork needs all of them.
    pub fn clear(&self) {
        *self.0.lock() = State::default();
    }

    /// Makes the next look due at once.
    pub fn look_soon(&self) {
        self.0.lock().looked_at = None;
    }

    /// Whether a look above is due. If true, the caller must look, and the next one is due after [`LOOK_INTERVAL`].
    pub fn begins_look(&self, now: Duration) -> bool {
        let mut state = self.0.lock();
        let is_due = state.looked_at.is_none_or(|at| now.saturating_sub(at) >= LOOK_INTERVAL);
        if is_due {
            state.looked_at = Some(now);
        }
        is_due
    }

    /// If the block is hidden, the first later block that is not.
    pub fn end_of_hidden(&self, block: u64) -> Option<u64> {
        end_of_run(&self.0.lock().hidden, block)
    }

    /// If the block is covered, the first later block that is not.
    pub fn end_of_covered(&self, block: u64) -> Option<u64> {
        end_of_run(&self.0.lock().covered, block)
    }

    /// The first part of a range that is not covered.
    pub fn first_needed(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let state = self.0.lock();
        let is_needed = |block: &u64| u32::try_from(*block).map_or(true, |block| !state.covered.contains(block));
        let start = range.clone().find(is_needed)?;
        Some(start..(start..range.end).find(|block| !is_needed(block)).unwrap_or(range.end))
    }

    /// Removes the hidden blocks from a set.
    pub fn remove_hidden(&self, blocks: &mut RoaringBitmap) {
        *blocks -= &self.0.lock().hidden;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covered_blocks_are_passed_over() {
        let cover = Cover::default();
        cover.set_covered((10..20).collect());
        assert_eq!((cover.end_of_covered(10), cover.end_of_hidden(10), cover.end_of_covered(20)), (Some(20), None, None));
        assert_eq!(cover.first_needed(&(5..30)), Some(5..10));
        assert_eq!(cover.first_needed(&(12..30)), Some(20..30));
        assert_eq!(cover.first_needed(&(12..20)), None);
        // What is hidden is covered as well.
        cover.set_hidden((20..25).collect());
        assert_eq!((cover.end_of_covered(20), cover.end_of_hidden(20)), (Some(25), Some(25)));
        cover.clear();
        assert_eq!(cover.first_needed(&(12..30)), Some(12..30));
    }

    #[test]
    fn looks_above_come_at_intervals_or_when_asked_for() {
        let (cover, now) = (Cover::default(), Duration::from_secs(1));
        assert!(cover.begins_look(now) && !cover.begins_look(now));
        cover.look_soon();
        assert!(cover.begins_look(now) && !cover.begins_look(now + LOOK_INTERVAL / 2));
        assert!(cover.begins_look(now + LOOK_INTERVAL));
    }
}
