//! Chooses what backfill fetches next.

use std::ops::Range;

use super::queue::Queue;
use crate::hydrate::claims::Claim;
use crate::hydrate::progress::FetchClass;

/// The blocks of a root layer that may be fetched from one address.
pub trait Field {
    /// The first block from `from` on that is missing and needed.
    fn next_needed(&self, from: u64) -> Option<u64>;

    /// Called with the next block before it is claimed, so that zeros around it are asked for first. False while the reply is awaited.
    fn is_mapped(&mut self, block: u64) -> bool;

    /// The first part of a range that may be requested from the address now.
    fn allowed(&self, range: &Range<u64>) -> Option<Range<u64>>;

    /// Claims the first part of a range that is missing, needed and not under way.
    fn claim(&self, range: &Range<u64>) -> Option<Claim>;
}

/// Position of sequential backfill.
#[derive(Default)]
pub struct Plan {
    /// All missing blocks before this one are claimed or were passed over.
    cursor: u64,
}

/// Result of a look at the first part of a range.
struct Looked {
    claim: Option<Claim>,
    /// First block of the rest.
    next: u64,
    /// Blocks before the rest were left out, because the address could not give them a moment ago.
    is_left: bool,
}

impl Plan {
    /// Starts a new pass from the first block, to find blocks whose fetch failed or was given up.
    pub fn start_again(&mut self) {
        self.cursor = 0;
    }

    /// Whether the next claim looks at all blocks.
    pub fn is_at_start(&self) -> bool {
        self.cursor == 0
    }

    /// Claims the next missing blocks that are needed and not under way, at most `step` blocks.
    ///
    /// 1. Queued ranges go first: read-ahead, then the trace of an earlier fork. The blocks of a range that are present or hidden by now
    ///    are skipped.
    /// 2. Before a block is claimed, its address is asked for zeros around it. While that reply is awaited nothing is claimed, and a queued
    ///    range goes back to the front: zeros never travel.
    /// 3. A claim is taken under the lock of the claims, which also rules out a race: blocks that a reader has claimed or stored since the
    ///    look are not claimed again (single flight).
    /// 4. What is left of a queued range goes back to the front.
    /// 5. Without queued ranges, sequential backfill claims from the cursor on, in requests that end at multiples of `step`. Blocks that
    ///    this address could not give a moment ago hold the cursor back, so that another address begins with them.
    pub fn next(&mut self, queue: &Queue, field: &mut impl Field, step: u64) -> Option<(Claim, FetchClass)> {
        for class in [FetchClass::Ahead, FetchClass::Trace] {
            while let Some(range) = queue.pop(class) {
                let Some(start) = field.next_needed(range.start).filter(|start| *start < range.end) else { continue };
                if !field.is_mapped(start) {
                    queue.put_back(class, start..range.end);
                    return None;
                }
                let looked = look(field, &(start..(start + step).min(range.end)));
                if looked.next < range.end {
                    queue.put_back(class, looked.next..range.end);
                }
                if let Some(claim) = looked.claim {
                    return Some((claim, class));
                }
            }
        }
        self.next_in_order(field, step).map(|claim| (claim, FetchClass::Backfill))
    }

    fn next_in_order(&mut self, field: &mut impl Field, step: u64) -> Option<Claim> {
        // The cursor stays before blocks that this address could not give a moment ago: another address begins there.
        let (mut at, mut is_left) = (self.cursor, false);
        // Goes from one missing block to the next. A run of present blocks or zeros of any length costs one step.
        while let Some(start) = field.next_needed(at) {
            if !field.is_mapped(start) {
                return None;
            }
            // Requests begin and end at multiples of their size, so that few are split.
            let looked = look(field, &(start..(start / step + 1) * step));
            is_left |= looked.is_left;
            at = looked.next;
            if !is_left {
                self.cursor = at;
            }
            if looked.claim.is_some() {
                return looked.claim;
            }
        }
        None
    }

    /// Gives a claim back whose request could not be made. Its blocks are chosen again.
    pub fn put_back(&mut self, queue: &Queue, claim: Claim, class: FetchClass) {
        let run = claim.run.clone();
        drop(claim);
        match class {
            FetchClass::Ahead | FetchClass::Trace => queue.put_back(class, run),
            FetchClass::Demand | FetchClass::Backfill => self.cursor = self.cursor.min(run.start),
        }
    }
}

/// Claims the first part of a range that the address may be asked for.
fn look(field: &impl Field, range: &Range<u64>) -> Looked {
    let Some(allowed) = field.allowed(range) else { return Looked { claim: None, next: range.end, is_left: true } };
    let claim = field.claim(&allowed);
    let next = claim.as_ref().map_or(allowed.end, |claim| claim.run.end);
    Looked { claim, next, is_left: allowed.start > range.start }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::hydrate::claims::Claims;

    /// Blocks in memory.
    struct Blocks {
        missing: BTreeSet<u64>,
        claims: Arc<Claims>,
        /// What the address could not give.
        bad: Range<u64>,
        /// Nothing from here on is mapped.
        mapped: u64,
    }

    impl Blocks {
        fn new(missing: impl IntoIterator<Item = u64>) -> Self {
            Self { missing: missing.into_iter().collect(), claims: Claims::new(Arc::default()), bad: 0..0, mapped: u64::MAX }
        }

        fn runs(&self, range: &Range<u64>) -> Vec<Range<u64>> {
            self.missing.range(range.clone()).map(|block| *block..block + 1).collect()
        }
    }

    impl Field for Blocks {
        fn next_needed(&self, from: u64) -> Option<u64> {
            self.missing.range(from..).next().copied()
        }

        fn is_mapped(&mut self, block: u64) -> bool {
            block < self.mapped
        }

        fn allowed(&self, range: &Range<u64>) -> Option<Range<u64>> {
            let start = if self.bad.contains(&range.start) { self.bad.end } else { range.start };
            Some(start..range.end).filter(|range| !range.is_empty())
        }

        fn claim(&self, range: &Range<u64>) -> Option<Claim> {
            self.claims.claim(u64::MAX, 1, || self.runs(range)).pop()
        }
    }

    /// What is claimed one after the other, by class and first block.
    fn order(plan: &mut Plan, queue: &Queue, blocks: &mut Blocks, held: &mut Vec<Claim>) -> Vec<(FetchClass, u64)> {
        let mut order = Vec::new();
        while let Some((claim, class)) = plan.next(queue, blocks, 4) {
            order.push((class, claim.run.start));
            held.push(claim);
        }
        order
    }

    #[test]
    fn guesses_go_before_the_trace_and_that_before_the_rest() {
        let (mut plan, queue, mut blocks) = (Plan::default(), Queue::default(), Blocks::new([1, 2, 50, 90, 91]));
        queue.follow([90..91, 200..300]);
        queue.put_back(FetchClass::Ahead, 50..60);
        use FetchClass::{Ahead, Backfill, Trace};
        let mut held = Vec::new();
        let order = order(&mut plan, &queue, &mut blocks, &mut held);
        assert_eq!(order, [(Ahead, 50), (Trace, 90), (Backfill, 1), (Backfill, 2), (Backfill, 91)]);
        assert!(!plan.is_at_start());
    }

    #[test]
    fn what_was_put_back_comes_again() {
        let (mut plan, queue, mut blocks) = (Plan::default(), Queue::default(), Blocks::new([3, 8]));
        let (claim, class) = plan.next(&queue, &mut blocks, 4).unwrap();
        plan.put_back(&queue, claim, class);
        let mut held = Vec::new();
        assert_eq!(order(&mut plan, &queue, &mut blocks, &mut held), [(FetchClass::Backfill, 3), (FetchClass::Backfill, 8)]);
        held.clear();
        assert!(plan.next(&queue, &mut blocks, 4).is_none(), "a failed range is looked for in the next pass");
        plan.start_again();
        assert!(plan.is_at_start() && plan.next(&queue, &mut blocks, 4).is_some());
    }

    #[test]
    fn what_one_address_cannot_give_is_left_to_the_others() {
        let (mut plan, queue, mut blocks) = (Plan::default(), Queue::default(), Blocks::new([3, 8, 20]));
        blocks.bad = 0..10;
        let mut held = Vec::new();
        assert_eq!(order(&mut plan, &queue, &mut blocks, &mut held), [(FetchClass::Backfill, 20)]);
        blocks.bad = 0..0;
        assert_eq!(order(&mut plan, &queue, &mut blocks, &mut held), [(FetchClass::Backfill, 3), (FetchClass::Backfill, 8)]);
    }

    #[test]
    fn nothing_is_claimed_or_lost_while_zeros_are_asked_for() {
        let (mut plan, queue, mut blocks) = (Plan::default(), Queue::default(), Blocks::new([3, 50]));
        queue.follow(std::iter::once(40..60));
        blocks.mapped = 10;
        let mut held = Vec::new();
        assert!(order(&mut plan, &queue, &mut blocks, &mut held).is_empty());
        blocks.mapped = u64::MAX;
        assert_eq!(order(&mut plan, &queue, &mut blocks, &mut held), [(FetchClass::Trace, 50), (FetchClass::Backfill, 3)]);
    }
}
