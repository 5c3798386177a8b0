//! Cursors over big-endian bytes.

use std::fmt;

use super::constants::STRING_BYTES_MAX;

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError(pub String);

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WireError {}

/// Takes values off the front of untrusted bytes.
#[derive(Clone, Copy, Debug)]
pub struct WireReader<'a>(&'a [u8]);

impl<'a> WireReader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.0.len()
    }

    /// Takes `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| WireError("message is too short".into()))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// Takes 16 bits.
    pub fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// Takes 32 bits.
    pub fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Takes 64 bits.
    pub fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Takes a 32-bit length and that many bytes of UTF-8, at most `bytes_max`.
    pub fn text(&mut self, bytes_max: usize) -> Result<String, WireError> {
        let length = self.u32()? as usize;
        if length > bytes_max {
            return Err(WireError(format!("a string of {length} bytes is longer than {bytes_max}")));
        }
        String::from_utf8(self.take(length)?.to_vec()).map_err(|_| WireError("a string is not UTF-8".into()))
    }

    /// Refuses bytes that are left.
    pub fn end(&self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError(format!("{} bytes too many", self.0.len()))) }
    }
}

/// Appends values to bytes.
#[derive(Debug, Default)]
pub struct WireWriter {
    /// The bytes written so far.
    pub bytes: Vec<u8>,
}

impl WireWriter {
    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends 16 bits.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// Appends 32 bits.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// Appends 64 bits.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// Appends a 32-bit length and the text.
    pub fn text(&mut self, text: &str) -> &mut Self {
        // No caller has a text that long; a reader refuses the length.
        self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX)).raw(text.as_bytes())
    }
}

/// A text of another machine, for people: bounded, and without control characters.
pub fn foreign_text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(STRING_BYTES_MAX)]);
    let mut text: String = text.chars().map(|char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char }).collect();
    // Replacement characters are longer than the bytes that they stand for.
    text.truncate(text.floor_char_boundary(STRING_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_bounded_and_cannot_move_a_cursor() {
        assert_eq!(foreign_text(b"no \x1b[2J such export\n"), "no \u{fffd}[2J such export\u{fffd}");
        let long = foreign_text(&[0xff; 2 * STRING_BYTES_MAX]);
        assert!(long.len() <= STRING_BYTES_MAX && foreign_text(long.as_bytes()) == long);
    }
}
