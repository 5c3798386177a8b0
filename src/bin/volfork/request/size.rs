//! Sizes as they are typed.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use volfork::parse_bytes;

/// Argument of `extend --size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Growth {
    /// `20G`: the new size.
    To(u64),
    /// `+10G`: bytes to add.
    By(u64),
}

impl FromStr for Growth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('+') {
            Some(more) => size(more).map(Self::By),
            None => size(text).map(Self::To),
        }
    }
}

/// A number of bytes.
pub fn bytes(text: &str) -> Result<u64, String> {
    parse_bytes(text).map_err(|error| error.to_string())
}

/// A size below this needs a unit, because a user who writes `--size 10` means gigabytes.
const SIZE_WITHOUT_UNIT_MIN: u64 = 1 << 20;

/// The size of something that has many bytes.
pub fn size(text: &str) -> Result<u64, String> {
    let has_unit = !text.trim().bytes().all(|byte| byte.is_ascii_digit());
    match bytes(text)? {
        few @ 1..SIZE_WITHOUT_UNIT_MIN if !has_unit => Err(format!("'{text}' has no unit: write {few}G or {few}M, or {few}B for bytes")),
        size => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_absolute_or_relative() {
        assert_eq!("20G".parse(), Ok(Growth::To(20 << 30)));
        assert_eq!("+1.5M".parse(), Ok(Growth::By(3 << 19)));
        for text in ["", "+", "-1G", "++1G", "x", "20", "+10"] {
            assert!(text.parse::<Growth>().is_err(), "{text}");
        }
    }
}
