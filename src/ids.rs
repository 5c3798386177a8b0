//! Identities of layers, volumes and leases.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]

use std::fmt;

use data_encoding::BASE32_NOPAD;
use hmac_sha256::Hash;

use crate::error::{Error, ErrorKind, Result};

/// Number of a layer within a store. Never used twice.
///
/// ```
/// use volfork::LayerId;
///
/// // Files of a layer are named by its number: `layers/17.data`.
/// assert_eq!(LayerId(17).to_string(), "17");
/// // Numbers grow, so a later layer is the larger one.
/// assert!(LayerId(18) > LayerId(17));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId(pub u32);

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a volume within a store. Never used twice, and kept by a rename.
///
/// ```
/// use volfork::VolumeId;
///
/// let mut attached = std::collections::BTreeMap::from([(VolumeId(2), "vdb"), (VolumeId(1), "vda")]);
/// attached.remove(&VolumeId(1));
/// assert_eq!(attached.first_key_value(), Some((&VolumeId(2), &"vdb")));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId(pub u64);

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Bytes of a [`VolumeKey`].
const KEY_BYTES: usize = 10;

/// Identity of a volume among those of all stores: 80 bits, written `vol_` and 16 lower-case characters of base 32 (RFC 4648).
///
/// They are the beginning of the SHA-256 of the store's random number and the volume's number in it, so they are as random as the
/// store's number, and never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeKey([u8; KEY_BYTES]);

impl VolumeKey {
    /// That of a volume of a store.
    pub fn new(store_id: &[u8; 16], volume: VolumeId) -> Self {
        let mut hash = Hash::new();
        hash.update(store_id);
        hash.update(volume.0.to_le_bytes());
        let hash = hash.finalize();
        let mut key = [0; KEY_BYTES];
        key.copy_from_slice(&hash[..KEY_BYTES]);
        Self(key)
    }

    /// The key that a text is, if it has the form of one.
    pub fn parse(text: &str) -> Option<Self> {
        let letters = text.strip_prefix("vol_").filter(|letters| !letters.contains(|letter: char| letter.is_ascii_uppercase()))?;
        let bytes = BASE32_NOPAD.decode(letters.to_ascii_uppercase().as_bytes()).ok()?;
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vol_{}", BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
    }
}

/// Unpredictable bytes.
///
/// # Errors
/// [`ErrorKind::Io`]: the system has no randomness.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Error::new(ErrorKind::Io, format!("the system has no randomness: {error}")))?;
    Ok(bytes)
}

/// Identity of a lease. Random, so that no fork can name the lease of another.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// use volfork::LeaseId;
///
/// // Of 16 random bytes. It is kept, so that to ask again after a lost answer renews the lease and takes no second one.
/// let id = LeaseId::random()?;
/// assert_eq!(LeaseId(id.0), id);
/// assert_ne!(LeaseId::random()?, id);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub [u8; 16]);

impl LeaseId {
    /// A new one.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]: the system has no randomness.
    pub fn random() -> Result<Self> {
        random_bytes().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written_and_differ_between_stores() {
        let key = VolumeKey::new(&[1; 16], VolumeId(7));
        let text = key.to_string();
        assert_eq!((text.as_str(), VolumeKey::parse(&text)), ("vol_s42p2qpolmhbmal4", Some(key)));
        assert!(key != VolumeKey::new(&[2; 16], VolumeId(7)) && key != VolumeKey::new(&[1; 16], VolumeId(8)));
        for other in
            [&text[..19], &text.to_uppercase(), &text[4..], "vol_", "vol_aaaaaaaaaaaaaaa1", &format!("{text}a"), "vol_\u{e9}aaaaaaaaaaaaaa"]
        {
            assert_eq!(VolumeKey::parse(other), None, "{other}");
        }
    }
}
