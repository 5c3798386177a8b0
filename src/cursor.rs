//! Cursors over bytes: little-endian as on disk, big-endian as on the wire.
//!
//! # Invariants
//! - A reader takes untrusted bytes: it never panics, never reads past its input, and never reserves memory for more than its input
//!   holds.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]

use std::fmt;
use std::marker::PhantomData;

use crate::place::index;

/// Why a value could not be taken from bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CursorError {
    /// This many bytes are missing.
    Short(usize),
    /// This many bytes are left at the end.
    Left(usize),
    /// A text has more bytes than any that is taken.
    Long {
        /// Its length.
        bytes: usize,
        /// The largest that is taken.
        bytes_max: usize,
    },
    /// A text is not UTF-8.
    Text,
    /// A byte that is 0 or 1 everywhere is this one.
    Flag(u8),
}

impl fmt::Display for CursorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short(missing) => write!(f, "ends {missing} bytes too early"),
            Self::Left(left) => write!(f, "has {left} bytes too many"),
            Self::Long { bytes, bytes_max } => write!(f, "has a text of {bytes} bytes, {bytes_max} at most are taken"),
            Self::Text => f.write_str("has a text that is not UTF-8"),
            Self::Flag(other) => write!(f, "has a flag of {other}, not 0 or 1"),
        }
    }
}

/// The order of bytes in numbers and the error of a format of bytes.
pub trait Dialect {
    /// Numbers are big-endian, else little-endian.
    const BIG: bool;
    /// What a reader answers for bytes that hold no value.
    type Error: From<CursorError>;
}

/// Takes values off the front of untrusted bytes.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a, D> {
    rest: &'a [u8],
    dialect: PhantomData<D>,
}

impl<'a, D: Dialect> Reader<'a, D> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, dialect: PhantomData }
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Whether everything was taken.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Takes `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], D::Error> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(CursorError::Short(count.saturating_sub(self.rest.len())))?;
        self.rest = rest;
        Ok(taken)
    }

    /// Takes a byte array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], D::Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// Takes a byte.
    pub fn u8(&mut self) -> Result<u8, D::Error> {
        Ok(self.array::<1>()?[0])
    }

    /// Takes 16 bits.
    pub fn u16(&mut self) -> Result<u16, D::Error> {
        self.array().map(if D::BIG { u16::from_be_bytes } else { u16::from_le_bytes })
    }

    /// Takes 32 bits.
    pub fn u32(&mut self) -> Result<u32, D::Error> {
        self.array().map(if D::BIG { u32::from_be_bytes } else { u32::from_le_bytes })
    }

    /// Takes 64 bits.
    pub fn u64(&mut self) -> Result<u64, D::Error> {
        self.array().map(if D::BIG { u64::from_be_bytes } else { u64::from_le_bytes })
    }

    /// Takes a 32-bit number of things that are in memory.
    pub fn count(&mut self) -> Result<usize, D::Error> {
        self.u32().map(index)
    }

    /// Takes a byte that is 0 or 1.
    pub fn flag(&mut self) -> Result<bool, D::Error> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(CursorError::Flag(other).into()),
        }
    }

    /// Takes a 32-bit length and that many bytes.
    pub fn blob(&mut self) -> Result<&'a [u8], D::Error> {
        let count = self.count()?;
        self.take(count)
    }

    /// Takes a 32-bit length and that many bytes of UTF-8.
    pub fn text(&mut self) -> Result<String, D::Error> {
        self.text_within(usize::MAX)
    }

    /// As [`Reader::text`], of at most `bytes_max` bytes.
    pub fn text_within(&mut self, bytes_max: usize) -> Result<String, D::Error> {
        let bytes = self.count()?;
        if bytes > bytes_max {
            return Err(CursorError::Long { bytes, bytes_max }.into());
        }
        String::from_utf8(self.take(bytes)?.to_vec()).map_err(|_| CursorError::Text.into())
    }

    /// Refuses bytes that are left.
    pub fn end(&self) -> Result<(), D::Error> {
        if self.rest.is_empty() { Ok(()) } else { Err(CursorError::Left(self.rest.len()).into()) }
    }
}

/// Appends values to bytes.
#[derive(Debug)]
pub struct Writer<D> {
    /// The bytes written so far.
    pub bytes: Vec<u8>,
    dialect: PhantomData<D>,
}

impl<D: Dialect> Default for Writer<D> {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl<D: Dialect> Writer<D> {
    /// With room for this many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), dialect: PhantomData }
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends one byte. The methods below append numbers in the byte order of the dialect.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    /// Appends 16 bits.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&if D::BIG { value.to_be_bytes() } else { value.to_le_bytes() })
    }

    /// Appends 32 bits.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&if D::BIG { value.to_be_bytes() } else { value.to_le_bytes() })
    }

    /// Appends 64 bits.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&if D::BIG { value.to_be_bytes() } else { value.to_le_bytes() })
    }

    /// Appends a number of things in 32 bits. Everything that is written has a bound far below that; a larger number becomes the largest
    /// one, which no reader accepts.
    pub fn count(&mut self, count: usize) -> &mut Self {
        self.u32(u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// As [`Writer::count`], in 16 bits.
    pub fn short_count(&mut self, count: usize) -> &mut Self {
        self.u16(u16::try_from(count).unwrap_or(u16::MAX))
    }

    /// Appends a number in 32 bits that fits them by what was agreed on; a larger one becomes the largest.
    pub fn narrow(&mut self, value: u64) -> &mut Self {
        self.u32(u32::try_from(value).unwrap_or(u32::MAX))
    }

    /// Appends a 32-bit length and the bytes.
    pub fn blob(&mut self, bytes: &[u8]) -> &mut Self {
        self.count(bytes.len()).raw(bytes)
    }

    /// Appends a 32-bit length and the text.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.blob(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug)]
    struct Little;

    impl Dialect for Little {
        const BIG: bool = false;
        type Error = CursorError;
    }

    #[derive(Clone, Copy, Debug)]
    struct Big;

    impl Dialect for Big {
        const BIG: bool = true;
        type Error = CursorError;
    }

    #[test]
    fn values_go_both_ways_in_either_order() {
        let mut little = Writer::<Little>::default();
        little.u8(1).u16(2).u32(3).u64(4).text("ab");
        assert_eq!(little.bytes, b"\x01\x02\0\x03\0\0\0\x04\0\0\0\0\0\0\0\x02\0\0\0ab");
        let mut reader = Reader::<Little>::new(&little.bytes);
        assert_eq!((reader.flag(), reader.u16(), reader.u32(), reader.u64()), (Ok(true), Ok(2), Ok(3), Ok(4)));
        assert_eq!((reader.text().as_deref(), reader.end()), (Ok("ab"), Ok(())));
        let mut big = Writer::<Big>::default();
        big.u16(2).u32(3).u64(4).blob(b"ab");
        assert_eq!(big.bytes, b"\0\x02\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\x02ab");
        let mut reader = Reader::<Big>::new(&big.bytes);
        assert_eq!((reader.u16(), reader.u32(), reader.u64(), reader.blob()), (Ok(2), Ok(3), Ok(4), Ok(&b"ab"[..])));
    }

    #[test]
    fn bytes_that_hold_no_value_are_refused() {
        let mut reader = Reader::<Big>::new(b"\0\0\0\x03ab");
        assert_eq!(reader.clone().u64(), Err(CursorError::Short(2)));
        assert_eq!(reader.clone().text_within(2), Err(CursorError::Long { bytes: 3, bytes_max: 2 }));
        assert_eq!(reader.clone().text(), Err(CursorError::Short(1)));
        assert_eq!(reader.take(usize::MAX), Err(CursorError::Short(usize::MAX - 6)));
        assert_eq!((reader.end(), reader.remaining()), (Err(CursorError::Left(6)), 6), "what fails takes nothing");
        assert_eq!(Reader::<Little>::new(b"\x01\0\0\0\xff").text(), Err(CursorError::Text));
        assert_eq!(Reader::<Little>::new(b"\x02").flag(), Err(CursorError::Flag(2)));
    }
}
