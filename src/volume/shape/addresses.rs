//! Addresses of the sources of a fork.

use crate::error::{Error, ErrorKind, Result};
use crate::format::SOURCE_URIS_MAX;
use crate::place::wide;

/// Most bytes of all addresses of a fork. They are in one record, which takes journal space.
const SOURCE_URIS_BYTES_MAX: u64 = 128 << 10;

/// Bytes of some addresses.
pub fn bytes_of(uris: &[String]) -> u64 {
    uris.iter().map(|uri| wide(uri.len())).sum()
}

/// # Errors
/// [`ErrorKind::InvalidInput`] for no addresses, too many, or too long ones.
pub fn check_uris(uris: &[String]) -> Result<()> {
    let wrong = |text| Err(Error::new(ErrorKind::InvalidInput, text));
    match (uris.len(), bytes_of(uris)) {
        (1..=SOURCE_URIS_MAX, 0..=SOURCE_URIS_BYTES_MAX) => Ok(()),
        (1..=SOURCE_URIS_MAX, bytes) => wrong(format!(
            "the addresses of a fork's sources have {SOURCE_URIS_BYTES_MAX} bytes at most, not {bytes}: give fewer or shorter ones"
        )),
        (count, _) => wrong(format!("a fork has 1 to {SOURCE_URIS_MAX} sources, not {count}")),
    }
}
