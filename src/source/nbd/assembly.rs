//! The bytes of one read, assembled into parts.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use bytes::BytesMut;

use crate::place::{length, wide};
use crate::source::{Checksums, PART_ALIGN_BYTES, Part};
use crate::wire::WireError;

/// Bytes of a part. A part goes to the reader when it is whole, while the rest of the read is still under way.
const PART_BYTES: u64 = 256 << 10;
const _: () = assert!(PART_BYTES.is_multiple_of(PART_ALIGN_BYTES));

/// Most pieces of a read that do not touch: bounds the memory that a server can use up by single bytes out of order.
const FRAGMENTS_MAX: usize = 16 << 10;

/// A part that is not whole yet.
struct Piece {
    bytes: BytesMut,
    covered: u64,
}

/// The bytes of a read that have arrived.
///
/// # Invariants
/// - Each byte comes once; a server that sends one twice breaks the protocol.
pub struct Assembly {
    range: Range<u64>,
    /// Ranges that have arrived, from start to end; ranges that touch are joined.
    covered: BTreeMap<u64, u64>,
    pieces: BTreeMap<u64, Piece>,
    whole: Vec<(u64, BytesMut)>,
    /// Checksums that the server gives for the bytes.
    pub checksums: Checksums,
}

impl Assembly {
    pub fn new(range: Range<u64>) -> Self {
        Self { range, covered: BTreeMap::new(), pieces: BTreeMap::new(), whole: Vec::new(), checksums: Checksums::default() }
    }

    /// Marks a range as arriving. Refuses one that was not requested, or has arrived before.
    pub fn check(&mut self, range: &Range<u64>) -> Result<(), WireError> {
        if range.start < self.range.start || range.end > self.range.end || range.is_empty() {
            return Err(WireError(format!("{} bytes at {} were not requested", range.end - range.start, range.start)));
        }
        let before = self.covered.range(..range.end).next_back().map(|(start, end)| (*start, *end));
        if before.is_some_and(|(_, end)| end > range.start) {
            return Err(WireError(format!("bytes at {} were sent twice", range.start)));
        }
        let end = self.covered.remove(&range.end).unwrap_or(range.end);
        let start = before.filter(|(_, end)| *end == range.start).map_or(range.start, |(start, _)| start);
        self.covered.insert(start, end);
        if self.covered.len() > FRAGMENTS_MAX {
            return Err(WireError(format!("a read comes in more than {FRAGMENTS_MAX} pieces")));
        }
        Ok(())
    }

    /// Fills bytes from the start of `range`, which [`Assembly::check`] has accepted, up to the end of one part. Returns how many.
    pub fn fill(&mut self, range: Range<u64>, fill: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        let start = (range.start / PART_BYTES * PART_BYTES).max(self.range.start);
        let end = ((range.start / PART_BYTES + 1) * PART_BYTES).min(self.range.end);
        let piece = self.pieces.entry(start).or_insert_with(|| Piece { bytes: BytesMut::zeroed(length(end - start)), covered: 0 });
        let stop = range.end.min(end);
        let count = fill(&mut piece.bytes[length(range.start - start)..length(stop - start)])?;
        piece.covered += wide(count);
        if piece.covered == end - start
            && let Some(piece) = self.pieces.remove(&start)
        {
            self.whole.push((start, piece.bytes));
        }
        Ok(count)
    }

    /// Fills a range with zeros.
    pub fn fill_zeros(&mut self, range: Range<u64>) -> Result<(), WireError> {
        self.check(&range)?;
        let mut at = range.start;
        while at < range.end {
            // Pieces begin as zeros.
            let filled = self.fill(at..range.end, |place| Ok(place.len())).map_err(|error| WireError(error.to_string()))?;
            at += wide(filled);
        }
        Ok(())
    }

    /// Takes the parts that have become whole.
    pub fn take_whole(&mut self) -> impl Iterator<Item = Part> + '_ {
        let checksums = &self.checksums;
        self.whole.drain(..).map(move |(offset, bytes)| Part { offset, bytes: bytes.freeze(), checksums: checksums.clone() })
    }

    /// Bytes of the read that have not arrived.
    pub fn missing_bytes(&self) -> u64 {
        let covered: u64 = self.covered.iter().map(|(start, end)| end - start).sum();
        self.range.end - self.range.start - covered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_once_in_any_order_and_in_bounded_pieces() {
        let mut assembly = Assembly::new(100..200);
        for range in [150..160, 100..110, 110..120, 140..150, 120..140] {
            assembly.check(&range).unwrap();
            assert!(assembly.check(&range).is_err(), "{range:?} comes twice");
        }
        assert!(assembly.check(&(159..161)).is_err() && assembly.check(&(160..201)).is_err() && assembly.check(&(99..100)).is_err());
        assert_eq!((assembly.missing_bytes(), assembly.covered.len()), (40, 1));
        assembly.check(&(160..200)).unwrap();
        assert_eq!(assembly.missing_bytes(), 0);
        let mut scattered = Assembly::new(0..1 << 20);
        let outcome = (0..1 << 19).try_for_each(|number| scattered.check(&(2 * number..2 * number + 1)));
        assert!(outcome.is_err() && scattered.covered.len() <= FRAGMENTS_MAX + 1);
    }
}
