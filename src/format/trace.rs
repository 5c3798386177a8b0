//! The file `layers/<id>.trace`: in which order forks of a layer first touched its blocks.
//!
//! ```text
//! byte 0   magic "VFTRACE1"
//!      8   n u32
//!     12   crc32 (IEEE) of everything behind it, u32
//!     16   n x (first block u32, blocks u32)
//! ```
//! Advice, not data: a file that is damaged, or was torn by a crash, counts as none.

use std::ops::Range;

use roaring::RoaringBitmap;

use super::bytes::{FormatError, Reader, Writer};

const MAGIC: &[u8; 8] = b"VFTRACE1";
/// Bytes before the runs.
const HEADER_BYTES: usize = 16;
/// Most runs of a trace: bounds the file to 128 KiB.
pub const TRACE_RUNS_MAX: usize = 16 << 10;
/// Most bytes of the file.
pub const TRACE_BYTES_MAX: usize = HEADER_BYTES + TRACE_RUNS_MAX * 8;

/// Runs of blocks in the order in which they were first touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Not empty, each.
    pub runs: Vec<Range<u32>>,
}

impl Trace {
    /// The bytes of the file. Runs beyond [`TRACE_RUNS_MAX`] are left out.
    pub fn encode(&self) -> Vec<u8> {
        let runs = &self.runs[..self.runs.len().min(TRACE_RUNS_MAX)];
        let mut body = Writer::default();
        for run in runs {
            body.u32(run.start);
            body.u32(run.end - run.start);
        }
        let mut writer = Writer::default();
        writer.raw(MAGIC);
        writer.count(runs.len());
        writer.u32(crc32fast::hash(&body.bytes));
        writer.raw(&body.bytes);
        writer.bytes
    }

    /// This trace, and behind it what a later one touched beside that, in its order.
    pub fn and_then(mut self, later: &Self) -> Self {
        let mut seen = RoaringBitmap::new();
        for run in &self.runs {
            seen.insert_range(run.clone());
        }
        for run in &later.runs {
            let mut new = RoaringBitmap::new();
            new.insert_range(run.clone());
            new -= &seen;
            let mut pieces = new.iter();
            while let Some(piece) = pieces.next_range().filter(|_| self.runs.len() < TRACE_RUNS_MAX) {
                self.runs.push(*piece.start()..piece.end().saturating_add(1));
            }
            seen |= new;
        }
        self
    }

    /// Bytes behind the last run are ignored: the file may have been longer.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(FormatError::damaged("this is no trace"));
        }
        let (count, checksum) = (reader.count()?, reader.u32()?);
        if count > TRACE_RUNS_MAX {
            return Err(FormatError::damaged(format!("a trace has {count} runs, {TRACE_RUNS_MAX} are taken")));
        }
        let body = reader.take(count * 8)?;
        if crc32fast::hash(body) != checksum {
            return Err(FormatError::damaged("the trace does not match its checksum"));
        }
        let mut reader = Reader::new(body);
        let mut runs = Vec::with_capacity(count);
        while !reader.is_empty() {
            let (start, blocks) = (reader.u32()?, reader.u32()?);
            let end = start.checked_add(blocks).filter(|_| blocks > 0);
            runs.push(start..end.ok_or_else(|| FormatError::damaged(format!("{blocks} blocks from {start} are not a run")))?);
        }
        Ok(Self { runs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_trace_adds_what_is_new_behind_what_was_there() {
        let first = Trace { runs: vec![96..112, 0..16] };
        let later = Trace { runs: vec![500..510, 8..40, 100..101, 500..520] };
        let both = first.clone().and_then(&later);
        assert_eq!(both.runs, [96..112, 0..16, 500..510, 16..40, 510..520]);
        assert_eq!(both.clone().and_then(&later), both);
        let full = Trace { runs: (0..).map(|run| run * 2..run * 2 + 1).take(TRACE_RUNS_MAX).collect() };
        assert_eq!(full.clone().and_then(&later), full);
    }

    #[test]
    fn golden_bytes_and_every_cut_and_flip() {
        let trace = Trace { runs: vec![7..9, 0..1] };
        let bytes = trace.encode();
        assert_eq!(bytes[..12], *b"VFTRACE1\x02\0\0\0");
        assert_eq!(bytes[16..], *b"\x07\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0");
        assert_eq!(Trace::decode(&bytes), Ok(trace.clone()));
        for at in 0..bytes.len() {
            assert!(Trace::decode(&bytes[..at]).is_err(), "cut at {at}");
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(Trace::decode(&flipped).is_err(), "flipped at {at}");
        }
        assert_eq!(Trace::decode(&[&bytes[..], b"older"].concat()), Ok(trace));
    }
}
