//! Requests.
//!
//! ```text
//! compact   28 bytes  magic u32, flags u16, type u16, cookie u64, offset u64, length u32
//! extended  32 bytes  magic u32, flags u16, type u16, cookie u64, offset u64, length u64
//! ```

use super::bytes::{WireError, WireReader, WireWriter};
use super::constants::{MAGIC_REQUEST, MAGIC_REQUEST_EXTENDED, REQUEST_BYTES, REQUEST_EXTENDED_BYTES};

/// The header of a request; the payload of a write follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Flags (`CMD_FLAG_*`).
    pub flags: u16,
    /// Command (`CMD_*`).
    pub command: u16,
    /// Chosen by the client, given back in the reply.
    pub cookie: u64,
    /// Byte offset in the export.
    pub offset: u64,
    /// Length in bytes: of the payload, or of the range that is asked about.
    pub length: u64,
}

impl Request {
    /// Bytes of the header.
    pub fn header_bytes(extended: bool) -> usize {
        if extended { REQUEST_EXTENDED_BYTES } else { REQUEST_BYTES }
    }

    /// # Errors
    /// The magic number is wrong, or the bytes are too few.
    pub fn decode(bytes: &[u8], extended: bool) -> Result<Self, WireError> {
        let mut reader = WireReader::new(bytes);
        let magic = reader.u32()?;
        if magic != if extended { MAGIC_REQUEST_EXTENDED } else { MAGIC_REQUEST } {
            return Err(WireError(format!("a request begins with {magic:#x}")));
        }
        let (flags, command, cookie, offset) = (reader.u16()?, reader.u16()?, reader.u64()?, reader.u64()?);
        let length = if extended { reader.u64()? } else { u64::from(reader.u32()?) };
        Ok(Self { flags, command, cookie, offset, length })
    }

    /// The bytes of the header. In the compact form the length must fit 32 bits.
    pub fn encode(&self, extended: bool) -> Vec<u8> {
        let mut writer = WireWriter::with_capacity(REQUEST_EXTENDED_BYTES);
        writer.u32(if extended { MAGIC_REQUEST_EXTENDED } else { MAGIC_REQUEST });
        writer.u16(self.flags).u16(self.command).u64(self.cookie).u64(self.offset);
        match extended {
            true => writer.u64(self.length),
            false => writer.narrow(self.length),
        };
        writer.bytes
    }
}

/// The payload of a block status with `PAYLOAD_LEN`: which contexts are asked for.
///
/// ```text
/// length u64, n x context u32
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusQuery {
    /// Bytes asked about.
    pub length: u64,
    /// Numbers of contexts.
    pub contexts: Vec<u32>,
}

impl StatusQuery {
    /// # Errors
    /// The bytes are no whole number of contexts, or there are more than any server has.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        const CONTEXTS_MAX: usize = 64;
        let mut reader = WireReader::new(bytes);
        let length = reader.u64()?;
        let count = reader.remaining() / 4;
        if count == 0 || count > CONTEXTS_MAX {
            return Err(WireError(format!("a block status asks for {count} contexts")));
        }
        let contexts = (0..count).map(|_| reader.u32()).collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(Self { length, contexts })
    }

    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = WireWriter::default();
        writer.u64(self.length);
        for context in &self.contexts {
            writer.u32(*context);
        }
        writer.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_query_goes_both_ways_and_every_cut_is_refused() {
        let query = StatusQuery { length: 1 << 40, contexts: vec![1, 0x0102_0304] };
        let bytes = query.encode();
        assert_eq!(bytes, b"\0\0\x01\0\0\0\0\0\0\0\0\x01\x01\x02\x03\x04");
        assert_eq!(StatusQuery::decode(&bytes), Ok(query));
        for cut in (0..bytes.len()).filter(|cut| *cut != 12) {
            assert!(StatusQuery::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert!(StatusQuery::decode(&[0; 8 + 4 * 65]).is_err());
    }

    #[test]
    fn golden_bytes() {
        let request = Request { flags: 1, command: 2, cookie: 3, offset: 4, length: 5 };
        let compact = b"\x25\x60\x95\x13\0\x01\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\x05";
        let extended = b"\x21\xe4\x1c\x71\0\x01\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x05";
        assert_eq!(request.encode(false), compact);
        assert_eq!(request.encode(true), extended);
        assert_eq!(Request::decode(compact, false), Ok(request));
        assert_eq!(Request::decode(extended, true), Ok(request));
        assert!(Request::decode(extended, false).is_err());
        assert!(Request::decode(&compact[..27], false).is_err());
    }
}
