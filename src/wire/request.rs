//! Requests.
//!
//! ```text
//! compact   28 bytes  magic u32, flags u16, type u16, cookie u64, offset u64, length u32
//! extended  32 bytes  magic u32, flags u16, type u16, cookie u64, offset u64, length u64
//! ```

use super::constants::{MAGIC_REQUEST, MAGIC_REQUEST_EXTENDED, REQUEST_BYTES, REQUEST_EXTENDED_BYTES};
use super::cursor::{WireError, WireReader, WireWriter};

/// The header of a request; the payload of a write follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Command flags.
    pub flags: u16,
    /// Command.
    pub command: u16,
    /// Chosen by the client, given back in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
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
        let mut writer = WireWriter { bytes: Vec::with_capacity(REQUEST_EXTENDED_BYTES) };
        writer.u32(if extended { MAGIC_REQUEST_EXTENDED } else { MAGIC_REQUEST });
        writer.u16(self.flags).u16(self.command).u64(self.cookie).u64(self.offset);
        match extended {
            true => writer.u64(self.length),
            false => writer.u32(self.length as u32),
        };
        writer.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
