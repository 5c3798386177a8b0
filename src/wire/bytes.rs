//! Cursors over bytes on the wire, why bytes are refused, and texts of other machines.

use std::fmt;

use super::constants::STRING_BYTES_MAX;
use crate::cursor::{self, CursorError, Dialect};

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError(pub String);

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WireError {}

impl From<CursorError> for WireError {
    fn from(error: CursorError) -> Self {
        Self(format!("a message {error}"))
    }
}

/// Bytes on the wire are big-endian.
#[derive(Clone, Copy, Debug)]
pub struct OnWire;

impl Dialect for OnWire {
    const BIG: bool = true;
    type Error = WireError;
}

/// Takes values off the front of untrusted bytes of another machine.
pub type WireReader<'a> = cursor::Reader<'a, OnWire>;
/// Appends values to bytes for another machine.
pub type WireWriter = cursor::Writer<OnWire>;

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
