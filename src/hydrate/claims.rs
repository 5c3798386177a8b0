//! Single flight: claims of the block ranges that are being fetched, so that each block is fetched once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::news::News;
use crate::sync::{Mutex, Rank};

/// Claimed ranges, from the first block to the block after the last. They never overlap.
#[derive(Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// The end of the claimed range that contains the block.
    fn end_of(&self, block: u64) -> Option<u64> {
        self.0.range(..=block).next_back().map(|(_, end)| *end).filter(|end| *end > block)
    }

    /// The first claimed block after `block`.
    fn next(&self, block: u64) -> u64 {
        self.0.range(block + 1..).next().map_or(u64::MAX, |(start, _)| *start)
    }

    fn meets(&self, run: &Range<u64>) -> bool {
        self.end_of(run.start).is_some() || self.next(run.start) < run.end
    }

    /// Claims the first part of a range that is not claimed yet, at most `blocks_max` blocks.
    fn take(&mut self, run: &Range<u64>, blocks_max: u64) -> Option<Range<u64>> {
        let mut start = run.start;
        while let Some(end) = self.end_of(start) {
            start = end;
        }
        if start >= run.end {
            return None;
        }
        let end = self.next(start).min(run.end).min(start.saturating_add(blocks_max.max(1)));
        self.0.insert(start, end);
        Some(start..end)
    }
}

/// The claims of one root layer.
pub struct Claims {
    ranges: Mutex<Ranges>,
    news: Arc<News>,
}

/// A claimed range, which only the holder fetches. Dropping it, also by a panic, ends the claim and wakes the readers that wait for the
/// range.
#[must_use]
pub struct Claim {
    claims: Arc<Claims>,
    pub run: Range<u64>,
}

impl Claims {
    /// An empty set. `news` is told of each claim that ends.
    pub fn new(news: Arc<News>) -> Arc<Self> {
        Arc::new(Self { ranges: Mutex::ranked(Rank::Claims, Ranges::default()), news })
    }

    /// Claims at most `count_max` parts of the missing runs that are not claimed yet, each of at most `blocks_max` blocks.
    ///
    /// 1. The lock of the claims is taken before anything is looked at. Of two readers that miss the same block, the second one finds the
    ///    claim of the first, and waits for it.
    /// 2. `missing` is called under the lock. A fetch stores its blocks before its claim ends, so a block that `missing` returns and that
    ///    is not claimed has not been stored. A caller that looked before the lock could claim and fetch a block that was stored in
    ///    between.
    /// 3. Each missing run is cut into parts. A part begins behind the claims that hold its first block, ends before the next claim, and
    ///    has at most `blocks_max` blocks. Claims therefore never overlap, and the first block of a claim names it when it ends.
    /// 4. Each part becomes a guard as soon as it is taken. Its drop ends the claim and tells the news, also when the fetch fails or its
    ///    thread panics: no range stays claimed without a fetch. A reader notes the news before it claims, so it does not miss the end of
    ///    a claim that kept it from claiming.
    ///
    /// If nothing is returned, the missing blocks are claimed by others or none is missing: the caller looks at both again. A crash leaves
    /// no claim behind, because claims are only in memory.
    pub fn claim(self: &Arc<Self>, blocks_max: u64, count_max: usize, missing: impl FnOnce() -> Vec<Range<u64>>) -> Vec<Claim> {
        let mut claimed = Vec::new();
        let mut ranges = self.ranges.lock();
        for mut run in missing() {
            while claimed.len() < count_max
                && let Some(taken) = ranges.take(&run, blocks_max)
            {
                run.start = taken.end;
                claimed.push(Claim { claims: Arc::clone(self), run: taken });
            }
        }
        claimed
    }

    /// Whether a part of one of the runs is claimed.
    pub fn meet(&self, runs: &[Range<u64>]) -> bool {
        let ranges = self.ranges.lock();
        runs.iter().any(|run| ranges.meets(run))
    }

    /// Whether nothing is claimed.
    pub fn is_empty(&self) -> bool {
        self.ranges.lock().0.is_empty()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.ranges.lock().0.remove(&self.run.start);
        self.claims.news.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(claims: &[Claim]) -> Vec<Range<u64>> {
        claims.iter().map(|claim| claim.run.clone()).collect()
    }

    #[test]
    fn each_block_is_claimed_once() {
        let claims = Claims::new(Arc::default());
        let first = claims.claim(4, 8, || vec![0..10, 20..21]);
        assert_eq!(runs(&first), [0..4, 4..8, 8..10, 20..21]);
        assert!(claims.claim(4, 8, || vec![0..10, 20..21]).is_empty());
        let around = claims.claim(100, 8, || std::iter::once(2..30).collect());
        assert_eq!(runs(&around), [10..20, 21..30]);
        drop(first);
        let next = claims.claim(100, 1, || std::iter::once(0..30).collect());
        assert_eq!(next.first().map(|claim| claim.run.clone()), Some(0..10));
        assert_eq!(next.len(), 1, "the others are left");
        drop(next);
        drop(around);
        assert!(claims.is_empty());
    }

    #[test]
    fn a_range_is_seen_as_under_way_wherever_it_is_met() {
        let claims = Claims::new(Arc::default());
        let held = claims.claim(100, 1, || std::iter::once(10..20).collect());
        for (run, meets) in [(0..10, false), (0..11, true), (12..13, true), (19..30, true), (20..30, false)] {
            assert_eq!(claims.meet(std::slice::from_ref(&run)), meets, "{run:?}");
        }
        drop(held);
        assert!(!claims.meet(&[0..10, 10..20]));
    }

    #[test]
    fn the_end_of_a_claim_is_news() {
        let news = Arc::<News>::default();
        let claims = Claims::new(Arc::clone(&news));
        let held = claims.claim(1, 1, || std::iter::once(5..6).collect());
        let seen = news.seen();
        drop(held);
        // Returns at once: a reader that looked before the end of the claim misses nothing.
        news.wait(seen, None);
        assert_ne!(news.seen(), seen);
    }
}
