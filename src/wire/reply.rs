//! Replies.
//!
//! ```text
//! simple      16 bytes  magic u32, error u32, cookie u64; the bytes of a read follow
//! structured  20 bytes  magic u32, flags u16, type u16, cookie u64, length u32; the payload follows
//! extended    32 bytes  magic u32, flags u16, type u16, cookie u64, offset u64, length u64; the payload follows
//!
//! OFFSET_DATA       offset u64, bytes        OFFSET_HOLE       offset u64, length u32
//! BLOCK_STATUS      context u32, n x (length u32, flags u32)
//! BLOCK_STATUS_EXT  context u32, n u32, n x (length u64, flags u64)
//! ERROR             error u32, length u16, text               ERROR_OFFSET      the same, offset u64
//! ```

use bytes::BufMut;

use super::bytes::{WireError, WireReader, WireWriter, foreign_text};
use super::constants::{
    MAGIC_REPLY_EXTENDED, MAGIC_REPLY_SIMPLE, MAGIC_REPLY_STRUCTURED, PAYLOAD_BYTES_MAX, REPLY_BLOCK_STATUS, REPLY_BLOCK_STATUS_EXT,
    REPLY_ERROR, REPLY_ERROR_OFFSET, REPLY_EXTENDED_BYTES, REPLY_FLAG_DONE, REPLY_NONE, REPLY_OFFSET_DATA, REPLY_OFFSET_HOLE,
    REPLY_SIMPLE_BYTES, REPLY_STRUCTURED_BYTES, STRING_BYTES_MAX,
};

/// Most bytes of a chunk beyond the data themselves: 2^20 extents of 16 bytes.
const CHUNK_OTHER_BYTES_MAX: u64 = (16 << 20) + 64;

/// Which headers the two sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderMode {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended requests and replies.
    Extended,
}

/// The header of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// The last one of its reply.
    pub done: bool,
    /// Kind of the payload (`REPLY_*`).
    pub kind: u16,
    /// Cookie of the request.
    pub cookie: u64,
    /// Bytes of payload.
    pub length: u64,
}

/// The header of any reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHeader {
    /// A simple reply; 0 is success.
    Simple {
        /// Error number of the protocol; 0 is success.
        error: u32,
        /// Cookie of the request.
        cookie: u64,
    },
    /// A chunk.
    Chunk(ChunkHeader),
}

impl ReplyHeader {
    /// Bytes needed to tell how long the header is.
    pub const MAGIC_BYTES: usize = 4;

    /// Bytes of the header that begins with these four.
    ///
    /// # Errors
    /// They are no magic number that was agreed on.
    pub fn header_bytes(magic: [u8; 4], mode: HeaderMode) -> Result<usize, WireError> {
        match (u32::from_be_bytes(magic), mode) {
            (MAGIC_REPLY_SIMPLE, HeaderMode::Simple | HeaderMode::Structured) => Ok(REPLY_SIMPLE_BYTES),
            (MAGIC_REPLY_STRUCTURED, HeaderMode::Structured) => Ok(REPLY_STRUCTURED_BYTES),
            (MAGIC_REPLY_EXTENDED, HeaderMode::Extended) => Ok(REPLY_EXTENDED_BYTES),
            (magic, _) => Err(WireError(format!("a reply begins with {magic:#x}"))),
        }
    }

    /// # Errors
    /// As [`ReplyHeader::header_bytes`]; the payload is longer than the limit.
    pub fn decode(bytes: &[u8], mode: HeaderMode) -> Result<Self, WireError> {
        let mut reader = WireReader::new(bytes);
        let magic = reader.u32()?;
        Self::header_bytes(magic.to_be_bytes(), mode)?;
        if magic == MAGIC_REPLY_SIMPLE {
            return Ok(Self::Simple { error: reader.u32()?, cookie: reader.u64()? });
        }
        let (flags, kind, cookie) = (reader.u16()?, reader.u16()?, reader.u64()?);
        let length = match mode {
            HeaderMode::Extended => {
                reader.u64()?;
                reader.u64()?
            }
            _ => u64::from(reader.u32()?),
        };
        let most = if kind == REPLY_OFFSET_DATA { u64::from(PAYLOAD_BYTES_MAX) + 8 } else { CHUNK_OTHER_BYTES_MAX };
        if length > most {
            return Err(WireError(format!("a chunk of kind {kind} has {length} bytes")));
        }
        Ok(Self::Chunk(ChunkHeader { done: flags & REPLY_FLAG_DONE != 0, kind, cookie, length }))
    }
}

/// A run of bytes with the same flags in a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Bytes, never 0.
    pub length: u64,
    /// Flags of the context.
    pub flags: u64,
}

/// The payload of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// No payload: the end of a reply without data.
    None,
    /// Bytes at an offset.
    Data(u64, &'a [u8]),
    /// Zeros at an offset.
    Hole(u64, u64),
    /// Extents in a context.
    Status(u32, Vec<StatusExtent>),
    /// The request failed.
    Error(u32, String),
}

impl<'a> Chunk<'a> {
    /// # Errors
    /// The payload is not of its kind's form; an unknown kind that is no error.
    pub fn decode(kind: u16, payload: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = WireReader::new(payload);
        let chunk = match kind {
            REPLY_NONE => Self::None,
            REPLY_OFFSET_DATA => {
                let offset = reader.u64()?;
                return Ok(Self::Data(offset, reader.take(reader.remaining())?));
            }
            REPLY_OFFSET_HOLE => match (reader.u64()?, reader.u32()?) {
                (_, 0) => return Err(WireError("a hole has no length".into())),
                (offset, length) => Self::Hole(offset, u64::from(length)),
            },
            REPLY_BLOCK_STATUS => {
                let context = reader.u32()?;
                let count = reader.remaining() / 8;
                Self::Status(context, Self::extents(&mut reader, count, false)?)
            }
            REPLY_BLOCK_STATUS_EXT => {
                let (context, count) = (reader.u32()?, reader.count()?);
                if count != reader.remaining() / 16 {
                    return Err(WireError("a block status counts its extents wrong".into()));
                }
                Self::Status(context, Self::extents(&mut reader, count, true)?)
            }
            _ if kind & 0x8000 != 0 => {
                let (error, length) = (reader.u32()?, usize::from(reader.u16()?));
                let text = foreign_text(reader.take(length)?);
                // Further fields of an unknown kind of error are skipped.
                if error == 0 {
                    return Err(WireError("an error chunk says that there is no error".into()));
                }
                return Ok(Self::Error(error, text));
            }
            _ => return Err(WireError(format!("chunk kind {kind} is unknown"))),
        };
        reader.end()?;
        Ok(chunk)
    }

    fn extents(reader: &mut WireReader<'_>, count: usize, extended: bool) -> Result<Vec<StatusExtent>, WireError> {
        // `count` is bounded by what the payload holds.
        let mut extents = Vec::with_capacity(count);
        for _ in 0..count {
            let (length, flags) =
                if extended { (reader.u64()?, reader.u64()?) } else { (u64::from(reader.u32()?), u64::from(reader.u32()?)) };
            if length == 0 {
                return Err(WireError("an extent has no length".into()));
            }
            extents.push(StatusExtent { length, flags });
        }
        if extents.is_empty() {
            return Err(WireError("a block status has no extents".into()));
        }
        Ok(extents)
    }

    /// Kind and payload. Extents are written in 64 bits if `extended`; otherwise each must fit 32 bits.
    pub fn encode(&self, extended: bool) -> (u16, Vec<u8>) {
        let mut writer = WireWriter::default();
        let kind = match self {
            Self::None => REPLY_NONE,
            Self::Data(offset, data) => {
                writer.u64(*offset).raw(data);
                REPLY_OFFSET_DATA
            }
            Self::Hole(offset, length) => {
                writer.u64(*offset).narrow(*length);
                REPLY_OFFSET_HOLE
            }
            Self::Status(context, extents) if extended => {
                writer.u32(*context).count(extents.len());
                for extent in extents {
                    writer.u64(extent.length).u64(extent.flags);
                }
                REPLY_BLOCK_STATUS_EXT
            }
            Self::Status(context, extents) => {
                writer.u32(*context);
                for extent in extents {
                    writer.narrow(extent.length).narrow(extent.flags);
                }
                REPLY_BLOCK_STATUS
            }
            Self::Error(error, text) => {
                let text = &text.as_bytes()[..text.floor_char_boundary(STRING_BYTES_MAX)];
                writer.u32(*error).short_count(text.len()).raw(text);
                REPLY_ERROR
            }
        };
        (kind, writer.bytes)
    }
}

const _: () = assert!(REPLY_ERROR_OFFSET & 0x8000 != 0 && REPLY_ERROR & 0x8000 != 0);

/// Appends the header of a chunk, of at most [`REPLY_EXTENDED_BYTES`]. `offset` is that of the request (extended headers carry it).
pub fn put_chunk_header(out: &mut impl BufMut, mode: HeaderMode, header: ChunkHeader, offset: u64) {
    let extended = mode == HeaderMode::Extended;
    out.put_u32(if extended { MAGIC_REPLY_EXTENDED } else { MAGIC_REPLY_STRUCTURED });
    out.put_u16(if header.done { REPLY_FLAG_DONE } else { 0 });
    out.put_u16(header.kind);
    out.put_u64(header.cookie);
    if extended {
        out.put_u64(offset);
        out.put_u64(header.length);
    } else {
        // Longer chunks are cut before they get here.
        out.put_u32(u32::try_from(header.length).unwrap_or(u32::MAX));
    }
}

/// Appends a simple reply, of [`REPLY_SIMPLE_BYTES`]; the bytes of a read follow.
pub fn put_simple_reply(out: &mut impl BufMut, error: u32, cookie: u64) {
    out.put_u32(MAGIC_REPLY_SIMPLE);
    out.put_u32(error);
    out.put_u64(cookie);
}

/// As [`put_chunk_header`], into memory of its own.
pub fn encode_chunk_header(mode: HeaderMode, header: ChunkHeader, offset: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(REPLY_EXTENDED_BYTES);
    put_chunk_header(&mut bytes, mode, header, offset);
    bytes
}

/// As [`put_simple_reply`], into memory of its own.
pub fn encode_simple_reply(error: u32, cookie: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(REPLY_SIMPLE_BYTES);
    put_simple_reply(&mut bytes, error, cookie);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_go_both_ways_and_every_cut_is_refused() {
        let extents = vec![StatusExtent { length: 4096, flags: 3 }, StatusExtent { length: 1, flags: 0 }];
        let chunks =
            [Chunk::Hole(7, 9), Chunk::Status(1, extents.clone()), Chunk::Error(5, "broken".into()), Chunk::Data(3, b"abc"), Chunk::None];
        for chunk in chunks {
            for extended in [false, true] {
                let (kind, payload) = chunk.encode(extended);
                assert_eq!(Chunk::decode(kind, &payload).as_ref(), Ok(&chunk));
                if !matches!(chunk, Chunk::Data(..)) {
                    for cut in 0..payload.len() {
                        // A shorter status may be a whole one with fewer extents.
                        let decoded = Chunk::decode(kind, &payload[..cut]);
                        assert!(decoded.is_err() || (kind == REPLY_BLOCK_STATUS && cut == 12), "{chunk:?} cut at {cut}");
                    }
                }
            }
        }
        assert!(Chunk::decode(77, b"").is_err());
        assert_eq!(Chunk::decode(0x9000, b"\0\0\0\x05\0\0more"), Ok(Chunk::Error(5, String::new())));
    }

    #[test]
    fn golden_headers() {
        let header = ChunkHeader { done: true, kind: 1, cookie: 2, length: 3 };
        let structured = encode_chunk_header(HeaderMode::Structured, header, 9);
        assert_eq!(structured, b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x03");
        assert_eq!(ReplyHeader::decode(&structured, HeaderMode::Structured), Ok(ReplyHeader::Chunk(header)));
        let extended = encode_chunk_header(HeaderMode::Extended, header, 9);
        assert_eq!(extended.len(), 32);
        assert_eq!(ReplyHeader::decode(&extended, HeaderMode::Extended), Ok(ReplyHeader::Chunk(header)));
        assert!(ReplyHeader::decode(&extended, HeaderMode::Structured).is_err());
        assert_eq!(encode_simple_reply(5, 6), b"\x67\x44\x66\x98\0\0\0\x05\0\0\0\0\0\0\0\x06");
    }
}
