//! Where what is: the layout of a fleet, version 1.
//!
//! ```text
//! hosts/HOST.json                 HostInventory, whole
//! deltas/HOST.json                InventoryDelta from the generation of the whole one to the newest; older ones are ignored
//! reservations/REGION.ZONE.json   Book: the assignments that the hosts of a zone have not reported yet
//! lock                            of a directory: locked around changes, touched to ask for the time
//! clock                           of a bucket: empty; written to ask for the time
//! ```
//!
//! All are JSON. HOST, REGION and ZONE are 1 to 60 of `A-Z a-z 0-9 _ -`; HOST may have dots. A later version of any of these gets
//! another folder, so that hosts of both versions may write at the same time.

use crate::error::{Error, ErrorKind, Result};
use crate::placement::{HostInventory, InventoryDelta};

pub const HOSTS: &str = "hosts";
pub const DELTAS: &str = "deltas";
pub const RESERVATIONS: &str = "reservations";
pub const CLOCK: &str = "clock";
/// Most bytes of an inventory: 100,000 layers, or the present blocks of some hundred TiB in no order at all.
pub const INVENTORY_BYTES_MAX: u64 = 64 << 20;
/// Most bytes of a book: some ten thousand reservations.
pub const BOOK_BYTES_MAX: u64 = 8 << 20;

/// Largest valid generation. At ten reports a second a host reaches it after three billion years.
pub const GENERATION_MAX: u64 = 1 << 60;
/// Most kinds of processors, and of accelerators, of a host.
pub const KINDS_MAX: usize = 100;

/// The clocks of two hosts differ by less.
pub const CLOCKS_SECONDS: u64 = 60;

const NAME_CHARACTERS_MAX: usize = 60;

/// Refuses names that would not be the same as a part of a path.
pub fn valid_name(what: &str, name: &str, dots: bool) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-') || (dots && c == '.');
    if (1..=NAME_CHARACTERS_MAX).contains(&name.len()) && name.chars().all(fits) && !name.starts_with('.') {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_CHARACTERS_MAX).collect();
    let dot = if dots { " ." } else { "" };
    let message = format!("'{shown}' is no name of a {what}: use 1 to {NAME_CHARACTERS_MAX} of A-Z a-z 0-9 _ -{dot}");
    Err(Error::new(ErrorKind::InvalidInput, message))
}

pub fn host_path(host: &str) -> String {
    format!("{HOSTS}/{host}.json")
}

pub fn delta_path(host: &str) -> String {
    format!("{DELTAS}/{host}.json")
}

/// Names the book of a zone: a region has no dots, so this says both.
pub fn book_of(region: &str, zone: &str) -> String {
    format!("{region}.{zone}")
}

pub fn book_path(book: &str) -> String {
    format!("{RESERVATIONS}/{book}.json")
}

/// The book that a reservation is in.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for an id that was never given out.
pub fn book_in(id: &str) -> Result<&str> {
    let parts = id.split_once('@').and_then(|(_, book)| Some((book, book.split_once('.')?)));
    let (book, (region, zone)) = parts.ok_or_else(|| {
        let shown: String = id.chars().take(100).collect();
        Error::new(ErrorKind::InvalidInput, format!("'{shown}' is not a reservation: they look like 0a1b2c3d4e5f6071@REGION.ZONE"))
    })?;
    valid_name("region", region, false)?;
    valid_name("zone", zone, false)?;
    Ok(book)
}

/// What a path calls its object, if it is one of `folder`.
pub fn name_in<'a>(folder: &str, path: &'a str) -> Option<&'a str> {
    path.strip_prefix(folder)?.strip_prefix('/')?.strip_suffix(".json").filter(|name| !name.contains('/'))
}

/// Reads an object, and says which one it was if it is not what it should be.
pub fn parse<T: serde::de::DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::new(ErrorKind::Corrupt, format!("{path} is not what it should be ({error}): remove it or restore it")))
}

/// Writes an object.
pub fn write<T: serde::Serialize>(path: &str, value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::new(ErrorKind::InvalidInput, format!("cannot write {path}: {error}")))
}

/// Whether a change has generations that a host comes to.
pub(super) fn is_sane(delta: &InventoryDelta) -> bool {
    delta.base.max(delta.generation) <= GENERATION_MAX
}

/// Refuses an inventory whose names are no names, or that has more kinds of processors than can be compared quickly.
pub(super) fn check_inventory(inventory: &HostInventory) -> Result<()> {
    valid_name("host", &inventory.host, true)?;
    valid_name("region", &inventory.region, false)?;
    valid_name("zone", &inventory.zone, false)?;
    match inventory.capacity.cpus.len().max(inventory.capacity.gpus.len()) {
        0..=KINDS_MAX => Ok(()),
        count => {
            let message = format!("host '{}' has {count} kinds of processors, at most {KINDS_MAX} are told apart", inventory.host);
            Err(Error::new(ErrorKind::InvalidInput, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parts_of_paths() {
        assert_eq!(name_in(HOSTS, &host_path("a.b-c")), Some("a.b-c"));
        assert_eq!(name_in(RESERVATIONS, &book_path(&book_of("ams", "z_1"))), Some("ams.z_1"));
        for path in ["hosts/a", "hostsa.json", "hosts/a/b.json", "deltas/a.json"] {
            assert_eq!(name_in(HOSTS, path), None, "{path}");
        }
        assert!(valid_name("host", "node-1.example", true).is_ok() && valid_name("zone", "z_1", false).is_ok());
        for name in ["", ".", "..", ".a", "a/b", "a b", "é", &"x".repeat(61)] {
            assert!(valid_name("host", name, true).is_err(), "{name}");
        }
        assert!(valid_name("zone", "a.b", false).is_err());
    }
}
