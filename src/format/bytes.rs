//! Cursors over bytes on disk, and the error for bytes that cannot be decoded.

use std::fmt;

use crate::cursor::{self, CursorError, Dialect};

/// Why bytes could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatError {
    kind: FormatErrorKind,
    message: String,
}

/// Why an input cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatErrorKind {
    /// The bytes are not what was written.
    Damaged,
    /// The bytes are whole, and were written by a program that knows more than this one.
    Unsupported,
}

impl FormatError {
    /// The bytes are not what was written.
    pub fn damaged(message: impl Into<String>) -> Self {
        Self { kind: FormatErrorKind::Damaged, message: message.into() }
    }

    /// A program that knows more than this one has written the bytes.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self { kind: FormatErrorKind::Unsupported, message: message.into() }
    }

    /// Damaged or unsupported.
    pub fn kind(&self) -> FormatErrorKind {
        self.kind
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for FormatError {}

impl From<CursorError> for FormatError {
    fn from(error: CursorError) -> Self {
        Self::damaged(error.to_string())
    }
}

/// Bytes on disk are little-endian.
#[derive(Clone, Copy, Debug)]
pub struct OnDisk;

impl Dialect for OnDisk {
    const BIG: bool = false;
    type Error = FormatError;
}

/// Takes values off the front of untrusted bytes of a disk.
pub type Reader<'a> = cursor::Reader<'a, OnDisk>;
/// Appends values to bytes for a disk.
pub type Writer = cursor::Writer<OnDisk>;
