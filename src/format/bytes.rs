//! Cursors over little-endian bytes.

use std::fmt;

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

/// Takes values off the front of untrusted bytes.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether everything was taken.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Takes `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or_else(|| FormatError::damaged(format!("ends {} bytes too early", count - self.rest.len())))?;
        self.rest = rest;
        Ok(taken)
    }

    /// Takes a byte array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// Takes a byte.
    pub fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    /// Takes 32 bits.
    pub fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Takes a 32-bit number of things that are in memory.
    pub fn count(&mut self) -> Result<usize, FormatError> {
        usize::try_from(self.u32()?).map_err(|_| FormatError::damaged("a length is larger than this machine's memory"))
    }

    /// Takes 64 bits.
    pub fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Takes a byte that is 0 or 1.
    pub fn flag(&mut self) -> Result<bool, FormatError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(FormatError::damaged(format!("flag is {other}, not 0 or 1"))),
        }
    }

    /// Takes a 32-bit length and that many bytes.
    pub fn blob(&mut self) -> Result<&'a [u8], FormatError> {
        let count = self.count()?;
        self.take(count)
    }

    /// Takes a 32-bit length and that many bytes of UTF-8.
    pub fn text(&mut self) -> Result<String, FormatError> {
        let bytes = self.blob()?;
        String::from_utf8(bytes.to_vec()).map_err(|_| FormatError::damaged("text is not UTF-8"))
    }
}

/// Appends values to bytes.
#[derive(Debug, Default)]
pub struct Writer {
    /// The bytes written so far.
    pub bytes: Vec<u8>,
}

impl Writer {
    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends a byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Appends 32 bits.
    pub fn u32(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    /// Appends 64 bits.
    pub fn u64(&mut self, value: u64) {
        self.raw(&value.to_le_bytes());
    }

    /// Appends a number of things in 32 bits. Everything that is written has a bound far below that; a larger number becomes the largest
    /// one, which no reader accepts.
    pub fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).unwrap_or(u32::MAX));
    }

    /// Appends a 32-bit length and the bytes.
    pub fn blob(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.raw(bytes);
    }
}
