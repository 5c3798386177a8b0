//! Byte counts as people write and read them, and numbers as real ones.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]
#![deny(clippy::cast_precision_loss)]

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::place::index;

const SUFFIXES: [&str; 6] = ["K", "M", "G", "T", "P", "E"];

/// A number as a real one; rounded from 2^53 on.
#[inline]
#[expect(clippy::cast_precision_loss, reason = "what is measured or shown needs no more digits")]
pub const fn real(number: u64) -> f64 {
    number as f64
}

/// The whole part of a real number; 0 for one below zero and for what is no number, the largest for a larger one.
#[inline]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it ends at the bounds")]
pub const fn whole(real: f64) -> u64 {
    real as u64
}

/// Whole microseconds of a time; the largest number for one that is too long.
pub fn whole_micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Whole nanoseconds of a time; the largest number for one of more than 584 years.
pub fn whole_nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Parses `4096`, `10G`, `10GiB`, `1.5T` (suffixes are powers of 1024; case does not matter).
///
/// # Errors
/// [`ErrorKind::InvalidInput`] when the text is not a number of bytes, or too large for 64 bits.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let wrong = || Error::new(ErrorKind::InvalidInput, format!("'{text}' is not a size: write a number and K, M, G or T, as in 10G"));
    let trimmed = text.trim();
    let digits_end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, suffix) = trimmed.split_at(digits_end);
    let suffix = suffix.trim().to_ascii_uppercase();
    let suffix = suffix.strip_suffix("IB").or_else(|| suffix.strip_suffix('B')).unwrap_or(&suffix);
    let shift = match suffix {
        "" => 0,
        letter => 10 * (1 + SUFFIXES.iter().position(|s| *s == letter).ok_or_else(wrong)?),
    };
    if shift == 0 && number.contains('.') {
        return Err(wrong());
    }
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(wrong);
    }
    let value = number.parse::<f64>().map_err(|_| wrong())? * real(1 << shift);
    if value.is_finite() && value < real(u64::MAX) { Ok(whole(value)) } else { Err(wrong()) }
}

/// Writes a byte count with one decimal and an IEC suffix: `10.0 GiB`, `512 B`.
pub fn format_bytes(bytes: u64) -> String {
    let exponent = index(bytes.max(1).ilog2() / 10);
    if exponent == 0 {
        return format!("{bytes} B");
    }
    format!("{:.1} {}iB", real(bytes) / real(1 << (10 * exponent)), SUFFIXES[exponent - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        for (text, bytes) in [("4096", 4096), ("10G", 10 << 30), ("1.5t", 3 << 39), ("2 MiB", 2 << 20), ("7kb", 7 << 10)] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "G", "-1", "1X", "20E", "1.2.3", "nan", "1.5"] {
            assert_eq!(parse_bytes(text).unwrap_err().kind(), ErrorKind::InvalidInput, "{text}");
        }
        assert_eq!(format_bytes(10 << 30), "10.0 GiB");
        assert_eq!(format_bytes(512), "512 B");
    }
}
