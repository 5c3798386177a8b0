//! The missing blocks that backfill may fetch from one address.

use std::ops::Range;
use std::sync::Arc;

use super::plan::Field;
use super::questions::{Asked, Questions};
use crate::hydrate::claims::Claim;
use crate::hydrate::parts::Parts;

/// The missing blocks of a root layer, and an address to fetch them from.
pub struct FarBlocks<'a> {
    pub parts: &'a Arc<Parts>,
    pub questions: &'a mut Questions,
    pub asked: Asked<'a>,
    /// Bytes of the longest request.
    pub bytes_max: u64,
}

impl Field for FarBlocks<'_> {
    fn next_needed(&self, from: u64) -> Option<u64> {
        self.parts.next_needed(from)
    }

    fn is_mapped(&mut self, block: u64) -> bool {
        self.questions.map_zeros(self.parts, self.asked, block)
    }

    fn allowed(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let now = self.parts.now();
        self.parts.addresses.look(|peers| {
            let known = peers.list.iter().find(|known| known.uri == self.asked.uri);
            known.map_or_else(|| Some(range.clone()), |known| known.allowed(range, now))
        })
    }

    fn claim(&self, range: &Range<u64>) -> Option<Claim> {
        let claim_of = |run: &Range<u64>| {
            let needed = self.parts.cover.first_needed(run)?;
            self.parts.claim(&needed, self.bytes_max, 1).pop()
        };
        self.parts.root.missing_runs(range).iter().find_map(claim_of)
    }
}
