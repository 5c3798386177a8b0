//! The log of changes that no frame has yet: `unrecorded.0` and `unrecorded.1`.
//!
//! ```text
//! file   := piece*                 the first one has the header
//! piece  := u32 payload bytes, u32 CRC-32, payload
//! header := "vf-unrec", session (16 bytes), u64 sequence of the file, u64 number of a frame, text that names the page cache
//! ```
//! The CRC-32 covers the sequence of the file and the offset of the piece before its payload, but for the header: pieces of an earlier
//! use of the file do not count. A payload behind the header is notes ([`Note`]).

use super::blocks::BlocksRecord;
use super::bytes::{FormatError, Reader, Writer};
use super::record::Record;
use crate::place::wide;

const MAGIC: &[u8; 8] = b"vf-unrec";
/// Length and checksum.
const PIECE_HEADER_BYTES: usize = 8;
/// Bytes of the text that names a page cache.
const CACHE_BYTES_MAX: usize = 256;

/// One note of the log.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    /// It has happened.
    Change(BlocksRecord),
    /// It has happened if a frame has the records of the round with this number: it is part of a change of shape, or needs one.
    WithFrame(u64, BlocksRecord),
    /// The frame with this number has the records of the rounds up to this one, if it is in the journal.
    Frame(u64, u64),
}

impl Note {
    /// Appends the note.
    pub fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Change(record) => record.encode(writer.u8(0)),
            Self::WithFrame(round, record) => record.encode(writer.u8(1).u64(*round)),
            Self::Frame(frame, round) => {
                writer.u8(2).u64(*frame).u64(*round);
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let blocks = |reader: &mut Reader<'_>| match Record::decode(reader)? {
            Record::Blocks(record) => Ok(record),
            Record::Shape(_) | Record::Closed => Err(FormatError::damaged("a note is no record of blocks")),
        };
        Ok(match reader.u8()? {
            0 => Self::Change(blocks(reader)?),
            1 => Self::WithFrame(reader.u64()?, blocks(reader)?),
            2 => Self::Frame(reader.u64()?, reader.u64()?),
            other => return Err(FormatError::unsupported(format!("note type {other} is unknown: use a newer program"))),
        })
    }
}

/// What the first piece of a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnrecordedHeader {
    /// Of the processes that own the store one after the other.
    pub session: [u8; 16],
    /// Grows by one from file to file.
    pub sequence: u64,
    /// The journal has a frame with this number, or a later one.
    pub frame: u64,
    /// The page cache that has what was not synced ([`crate::io::Disk::page_cache`]).
    pub cache: String,
}

fn checksum(sequence: u64, offset: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sequence.to_le_bytes());
    hasher.update(&offset.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

fn encode_piece(sequence: u64, offset: u64, payload: &[u8]) -> Vec<u8> {
    let mut writer = Writer::with_capacity(PIECE_HEADER_BYTES + payload.len());
    writer.count(payload.len());
    writer.u32(checksum(sequence, offset, payload));
    writer.raw(payload);
    writer.bytes
}

/// The payload of the piece at `offset`. `None`: no whole one is there.
fn decode_piece(sequence: u64, offset: usize, file: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader::new(file.get(offset..)?);
    let (bytes, crc) = (reader.count().ok()?, reader.u32().ok()?);
    let payload = reader.take(bytes).ok()?;
    (checksum(sequence, wide(offset), payload) == crc).then_some(payload)
}

impl UnrecordedHeader {
    /// The first piece of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.raw(MAGIC).raw(&self.session).u64(self.sequence).u64(self.frame).text(&self.cache);
        encode_piece(0, 0, &writer.bytes)
    }

    /// A further piece: `payload` at `offset`.
    pub fn encode_notes(&self, offset: u64, payload: &[u8]) -> Vec<u8> {
        encode_piece(self.sequence, offset, payload)
    }

    /// Takes a file. Answers the notes of all whole pieces, up to the first one that is none: what a process that was killed had not
    /// written. `None`: it is no such file.
    ///
    /// # Errors
    /// Notes that were written whole cannot be decoded.
    pub fn decode(file: &[u8]) -> Result<Option<(Self, Vec<Note>)>, FormatError> {
        let Some(payload) = decode_piece(0, 0, file) else { return Ok(None) };
        let mut reader = Reader::new(payload);
        if reader.array::<8>()? != *MAGIC {
            return Ok(None);
        }
        let (session, sequence, frame) = (reader.array()?, reader.u64()?, reader.u64()?);
        let header = Self { session, sequence, frame, cache: reader.text_within(CACHE_BYTES_MAX)? };
        let mut offset = PIECE_HEADER_BYTES + payload.len();
        let mut notes = Vec::new();
        while let Some(payload) = decode_piece(sequence, offset, file).filter(|payload| !payload.is_empty()) {
            let mut reader = Reader::new(payload);
            while !reader.is_empty() {
                notes.push(Note::decode(&mut reader)?);
            }
            offset += PIECE_HEADER_BYTES + payload.len();
        }
        Ok(Some((header, notes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::LayerId;
    use crate::place::Block;

    #[test]
    fn pieces_count_up_to_the_first_that_is_torn_or_old() {
        let header = UnrecordedHeader { session: [7; 16], sequence: 5, frame: 9, cache: "boot 1".into() };
        let record = BlocksRecord::Mark(LayerId(7), Block::new(3).extent());
        let notes = [Note::Change(record.clone()), Note::WithFrame(8, record), Note::Frame(4, 8)];
        let mut file = header.encode();
        let mut ends = vec![file.len()];
        for note in &notes {
            let mut writer = Writer::default();
            note.encode(&mut writer);
            file.extend(header.encode_notes(file.len() as u64, &writer.bytes));
            ends.push(file.len());
        }
        for cut in 0..=file.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count();
            let found = UnrecordedHeader::decode(&file[..cut]).unwrap();
            let expected = (whole > 0).then(|| (header.clone(), notes[..whole - 1].to_vec()));
            assert_eq!(found, expected, "{cut} bytes");
        }
        // The file is used again: what is behind the new pieces does not count.
        let next = UnrecordedHeader { sequence: 7, ..header };
        let again = next.encode();
        file[..again.len()].copy_from_slice(&again);
        assert_eq!(UnrecordedHeader::decode(&file).unwrap(), Some((next, Vec::new())));
    }
}
