//! Owners of the blocks of one extent, as runs.

use smallvec::SmallVec;

use crate::ids::LayerId;
use crate::place::{BlockIndex, IndexSpan};

/// The owner of a block: its bytes are read from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nothing: it reads as zero.
    Zero,
    /// This layer.
    Layer(LayerId),
}

/// Runs of blocks within an extent and their owners. Most requests lie in one or two.
pub type OwnerRuns = SmallVec<[(IndexSpan, Owner); 2]>;

/// Runs of one extent: each begins where the one before it ends, the first at block 0, neighbours differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaf {
    first: Owner,
    /// Where further runs begin, apart from their owners so that a search touches few cache lines; empty for most extents.
    starts: Vec<BlockIndex>,
    /// The owners of those runs.
    owners: Vec<Owner>,
}

impl Default for Leaf {
    fn default() -> Self {
        Self::uniform(Owner::Zero)
    }
}

impl Leaf {
    /// One owner has every block.
    pub fn uniform(owner: Owner) -> Self {
        Self { first: owner, starts: Vec::new(), owners: Vec::new() }
    }

    /// The owner of the run before the one numbered `next` of `starts`.
    fn before(&self, next: usize) -> Owner {
        next.checked_sub(1).map_or(self.first, |at| self.owners[at])
    }

    /// Appends the runs of a span.
    pub fn runs(&self, span: IndexSpan, runs: &mut OwnerRuns) {
        let mut next = self.starts.partition_point(|start| start.number() <= span.start());
        let mut left = span;
        while !left.is_empty() {
            let end = self.starts.get(next).map_or(IndexSpan::FULL.end(), |start| start.number());
            let (run, rest) = left.split(end);
            runs.push((run, self.before(next)));
            left = rest;
            next += 1;
        }
    }

    /// Gives a span to `owner`.
    pub fn set(&mut self, span: IndexSpan, owner: Owner) {
        let Some(first) = span.first() else { return };
        let from = self.starts.partition_point(|start| *start < first);
        let to = self.starts.partition_point(|start| start.number() <= span.end());
        let (before, after) = (self.before(from), self.before(to));
        let mut middle: SmallVec<[(BlockIndex, Owner); 2]> = SmallVec::new();
        if first == BlockIndex::default() {
            self.first = owner;
        } else if before != owner {
            middle.push((first, owner));
        }
        // `None` at the end of the extent.
        if let Some(end) = BlockIndex::new(span.end())
            && after != owner
        {
            middle.push((end, after));
        }
        self.starts.splice(from..to, middle.iter().map(|(start, _)| *start));
        self.owners.splice(from..to, middle.iter().map(|(_, owner)| *owner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn agrees_with_an_array_of_owners() {
        let mut random = Random::new(42);
        let mut random = |limit: u32| u32::try_from(random.below(limit.into())).unwrap();
        let mut leaf = Leaf::default();
        let mut model = [Owner::Zero; 1024];
        for step in 0..5000 {
            let start = random(1024);
            let span = IndexSpan::new(start, start + 1 + random(if step % 2 == 0 { 8 } else { 1024 }));
            let owner = if random(4) == 0 { Owner::Zero } else { Owner::Layer(LayerId(random(5))) };
            leaf.set(span, owner);
            model[span.entries()].fill(owner);
            let mut runs = OwnerRuns::new();
            leaf.runs(IndexSpan::FULL, &mut runs);
            assert!(runs.windows(2).all(|pair| pair[0].1 != pair[1].1 && pair[0].0.end() == pair[1].0.start()), "{runs:?}");
            for (span, owner) in runs {
                assert!(model[span.entries()].iter().all(|other| *other == owner));
            }
        }
    }
}
