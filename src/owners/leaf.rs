//! Owners of the blocks of one extent, as runs.

use std::ops::Range;

use smallvec::SmallVec;

use crate::ids::LayerId;
use crate::limits::EXTENT_BLOCKS;

/// Who answers for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody: it reads as zero.
    Zero,
    /// This layer.
    Layer(LayerId),
}

/// Runs of blocks within an extent and their owners. Most requests lie in one or two.
pub type OwnerRuns = SmallVec<[(Range<u32>, Owner); 2]>;

/// Runs of one extent: each begins where the one before it ends, the first at block 0, neighbours differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaf {
    first: Owner,
    /// Where further runs begin, apart from their owners so that a search touches few cache lines; empty for most extents.
    starts: Vec<u16>,
    /// Whose those runs are.
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

    /// Appends the runs of `range`.
    pub fn runs(&self, range: Range<u32>, runs: &mut OwnerRuns) {
        let mut next = self.starts.partition_point(|start| u32::from(*start) <= range.start);
        let mut start = range.start;
        while start < range.end {
            let end = self.starts.get(next).map_or(EXTENT_BLOCKS, |start| u32::from(*start)).min(range.end);
            runs.push((start..end, self.before(next)));
            start = end;
            next += 1;
        }
    }

    /// Gives `range` to `owner`.
    pub fn set(&mut self, range: Range<u32>, owner: Owner) {
        if range.is_empty() {
            return;
        }
        let from = self.starts.partition_point(|start| u32::from(*start) < range.start);
        let to = self.starts.partition_point(|start| u32::from(*start) <= range.end);
        let (before, after) = (self.before(from), self.before(to));
        let mut middle: SmallVec<[(u16, Owner); 2]> = SmallVec::new();
        if range.start == 0 {
            self.first = owner;
        } else if before != owner {
            middle.push((range.start as u16, owner));
        }
        if range.end < EXTENT_BLOCKS && after != owner {
            middle.push((range.end as u16, after));
        }
        self.starts.splice(from..to, middle.iter().map(|(start, _)| *start));
        self.owners.splice(from..to, middle.iter().map(|(_, owner)| *owner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_an_array_of_owners() {
        let mut seed = 42u64;
        println!("seed {seed}");
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((seed >> 33) % below) as u32
        };
        let mut leaf = Leaf::default();
        let mut model = [Owner::Zero; EXTENT_BLOCKS as usize];
        for step in 0..5000 {
            let start = random(1024);
            let end = (start + 1 + random(if step % 2 == 0 { 8 } else { 1024 })).min(1024);
            let owner = if random(4) == 0 { Owner::Zero } else { Owner::Layer(LayerId(random(5))) };
            leaf.set(start..end, owner);
            model[start as usize..end as usize].fill(owner);
            let mut runs = OwnerRuns::new();
            leaf.runs(0..1024, &mut runs);
            assert!(runs.windows(2).all(|pair| pair[0].1 != pair[1].1 && pair[0].0.end == pair[1].0.start), "{runs:?}");
            for (range, owner) in runs {
                assert!(model[range.start as usize..range.end as usize].iter().all(|other| *other == owner));
            }
        }
    }
}
