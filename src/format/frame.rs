//! Frames: the units in which the journal is written and believed.
//!
//! ```text
//! file `journal.N`: frames, each padded with zeros to a multiple of 8 bytes, up to the one that a crash tore
//!
//!   0  magic     4   "vfj1"
//!   4  length    4   bytes of the payload
//!   8  sequence  8   counts frames of this store up by one
//!  16  kind      4   0 state, 1 end of state, 2 round
//!  20  crc32     4   of store_id, journal number (8 bytes), bytes 0..20 and the payload
//!  24  payload   records
//! ```
//! The identity in the checksum keeps frames of an older file, whose blocks were reused, from being believed.

use super::bytes::{FormatError, Reader, Writer};
use crate::limits::{FRAME_PAYLOAD_BYTES_MAX, STATE_PAYLOAD_BYTES_MAX};

/// Bytes before the payload.
pub const FRAME_HEADER_BYTES: usize = 24;

/// First bytes of a frame.
pub const FRAME_MAGIC: &[u8; 4] = b"vfj1";
const CRC_AT: usize = 20;
const _: () = assert!(CRC_AT + 4 == FRAME_HEADER_BYTES && FRAME_HEADER_BYTES.is_multiple_of(8));

/// Meaning of a frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Part of the whole state.
    State,
    /// The last part of the whole state.
    StateEnd,
    /// The records of one barrier round.
    Round,
}

/// A verified frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Number of the frame.
    pub sequence: u64,
    /// Meaning of the payload.
    pub kind: FrameKind,
    /// Encoded records.
    pub payload: &'a [u8],
}

fn hasher(identity: &[u8; 16], journal: u64, header: &[u8]) -> crc32fast::Hasher {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(identity);
    hasher.update(&journal.to_le_bytes());
    hasher.update(header);
    hasher
}

fn checksum(identity: &[u8; 16], journal: u64, header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = hasher(identity, journal, header);
    hasher.update(payload);
    hasher.finalize()
}

/// Bytes a frame with such a payload takes in the file.
pub fn frame_bytes(payload_bytes: usize) -> u64 {
    frame_len(payload_bytes) as u64
}

/// Bytes of a frame, as the length of a buffer.
fn frame_len(payload_bytes: usize) -> usize {
    (FRAME_HEADER_BYTES + payload_bytes).next_multiple_of(8)
}

/// The bytes of a frame.
pub fn encode_frame(identity: &[u8; 16], journal: u64, frame: Frame<'_>) -> Vec<u8> {
    let mut writer = Writer::with_capacity(frame_len(frame.payload.len()));
    writer.raw(FRAME_MAGIC);
    writer.count(frame.payload.len());
    writer.u64(frame.sequence);
    writer.u32(match frame.kind {
        FrameKind::State => 0,
        FrameKind::StateEnd => 1,
        FrameKind::Round => 2,
    });
    let crc = checksum(identity, journal, &writer.bytes, frame.payload);
    writer.u32(crc);
    writer.raw(frame.payload);
    writer.bytes.resize(frame_len(frame.payload.len()), 0);
    writer.bytes
}

fn is_state(kind: u32) -> bool {
    kind < 2
}

/// Verifies a frame in pieces.
pub struct FrameCheck {
    hasher: crc32fast::Hasher,
    crc: u32,
    /// Bytes of the payload that the header claims.
    pub payload_bytes: usize,
}

impl FrameCheck {
    /// Begins with the header of a part of the state. `None`: it is another frame, or claims more than any program wrote.
    pub fn of_state(identity: &[u8; 16], journal: u64, header: &[u8; FRAME_HEADER_BYTES]) -> Option<Self> {
        let mut reader = Reader::new(header);
        let (magic, length) = (reader.array::<4>().ok()?, reader.count().ok()?);
        let (_, kind, crc) = (reader.u64().ok()?, reader.u32().ok()?, reader.u32().ok()?);
        let sensible = magic == *FRAME_MAGIC && is_state(kind) && length <= STATE_PAYLOAD_BYTES_MAX;
        sensible.then(|| Self { hasher: hasher(identity, journal, &header[..CRC_AT]), crc, payload_bytes: length })
    }

    /// The next piece of the payload.
    pub fn update(&mut self, piece: &[u8]) {
        self.hasher.update(piece);
    }

    /// Whether the pieces were the payload.
    pub fn matches(self) -> bool {
        self.hasher.finalize() == self.crc
    }
}

/// Takes the frame at the start of `bytes`.
///
/// # Errors
/// Says why there is none; at the end of a journal that is the normal case.
pub fn decode_frame<'a>(identity: &[u8; 16], journal: u64, bytes: &'a [u8]) -> Result<Frame<'a>, FormatError> {
    let mut reader = Reader::new(bytes);
    if reader.array::<4>()? != *FRAME_MAGIC {
        return Err(FormatError::damaged("frame has no magic number"));
    }
    let length = reader.count()?;
    let sequence = reader.u64()?;
    let kind = reader.u32()?;
    let length_max = if is_state(kind) { STATE_PAYLOAD_BYTES_MAX } else { FRAME_PAYLOAD_BYTES_MAX };
    if length > length_max {
        return Err(FormatError::damaged(format!("frame claims {length} bytes, at most {length_max} are allowed")));
    }
    let crc = reader.u32()?;
    let payload = reader.take(length)?;
    if checksum(identity, journal, &bytes[..CRC_AT], payload) != crc {
        return Err(FormatError::damaged("frame checksum does not match"));
    }
    let kind = match kind {
        0 => FrameKind::State,
        1 => FrameKind::StateEnd,
        2 => FrameKind::Round,
        other => return Err(FormatError::unsupported(format!("frame kind {other} is unknown: use a newer program"))),
    };
    Ok(Frame { sequence, kind, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_and_damage() {
        let id = *b"0123456789abcdef";
        let frame = Frame { sequence: 9, kind: FrameKind::Round, payload: b"abc" };
        let bytes = encode_frame(&id, 2, frame);
        assert_eq!(bytes.len(), 32);
        assert_eq!(&bytes[..20], b"vfj1\x03\0\0\0\x09\0\0\0\0\0\0\0\x02\0\0\0");
        assert_eq!(&bytes[24..], b"abc\0\0\0\0\0");
        assert_eq!(decode_frame(&id, 2, &bytes), Ok(frame));
        assert!(decode_frame(&id, 3, &bytes).is_err(), "a frame of another journal file is not believed");
        for at in 0..27 {
            let mut torn = bytes.clone();
            torn[at] ^= 1;
            assert!(decode_frame(&id, 2, &torn).is_err(), "byte {at}");
            assert!(decode_frame(&id, 2, &bytes[..at]).is_err(), "cut at {at}");
        }
    }
}
