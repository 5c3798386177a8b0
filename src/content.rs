//! What machines start from: container images and their layers, by digest.
//!
//! Digests are those of the OCI image specification (<https://github.com/opencontainers/image-spec/blob/main/descriptor.md>); of
//! its algorithms only `sha256` is accepted.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

/// SHA-256 of some content, written `sha256:` and 64 lower-case hexadecimal digits.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// use volfork::content::Digest;
///
/// let digest = Digest::of(b"layer");
/// let text = digest.to_string();
/// assert_eq!(text, format!("sha256:{}", digest.hex()));
/// assert_eq!(text.parse::<Digest>()?, digest);
/// assert!("md5:d41d8cd98f00b204e9800998ecf8427e".parse::<Digest>().is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "String", into = "String"))]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(hmac_sha256::Hash::hash(content))
    }

    /// The 64 digits without the name of the algorithm, as in a file name.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    /// # Errors
    /// [`ErrorKind::InvalidInput`] for another algorithm, another length, or digits that are not lower-case hexadecimal.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let shown: String = text.chars().take(100).collect();
            Error::new(ErrorKind::InvalidInput, format!("'{shown}' is not a digest: it must be 'sha256:' and 64 digits of 0-9 and a-f"))
        };
        let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64).ok_or_else(wrong)?;
        if !hex.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&hex[at..at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// A layer of an image, as it travels: digest and bytes of the compressed blob.
///
/// ```
/// use volfork::content::{Digest, ImageLayer};
///
/// /// Whether what came from a registry is the blob that the manifest describes.
/// fn is_whole(layer: ImageLayer, blob: &[u8]) -> bool {
///     layer.bytes == blob.len() as u64 && layer.digest == Digest::of(blob)
/// }
///
/// // Digest and bytes are those of what travels, not of the unpacked archive.
/// let layer = ImageLayer { digest: Digest::of(b"packed"), bytes: 6 };
/// assert!(is_whole(layer, b"packed") && !is_whole(layer, b"torn"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ImageLayer {
    /// Digest of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub bytes: u64,
}

/// An image of one platform: what a host needs before a machine can start from it.
///
/// ```
/// use volfork::content::{Digest, Image, ImageLayer};
///
/// let base = ImageLayer { digest: Digest::of(b"base"), bytes: 30 << 20 };
/// let app = ImageLayer { digest: Digest::of(b"app"), bytes: 2 << 20 };
/// // A manifest may list a layer twice; it is fetched once.
/// let image = Image::new("registry.example/app:v1", Digest::of(b"manifest"), [base, app, app]);
/// assert_eq!((image.layers.len(), image.bytes()), (2, 32 << 20));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Image {
    /// How it was asked for, as in `registry.example/app:v1`.
    pub reference: String,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Its layers, the base first, each once.
    pub layers: Vec<ImageLayer>,
}

impl Image {
    /// An image whose layers are counted once each, however often the manifest lists them.
    pub fn new(reference: impl Into<String>, digest: Digest, layers: impl IntoIterator<Item = ImageLayer>) -> Self {
        let mut seen = std::collections::HashSet::new();
        let layers = layers.into_iter().filter(|layer| seen.insert(layer.digest)).collect();
        Self { reference: reference.into(), digest, layers }
    }

    /// Bytes of all layers.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes).fold(0, u64::saturating_add)
    }
}

/// A layer of an image that a store holds as a layer of a chain.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::content::{Digest, HeldLayer, ImageLayer};
///
/// let volume = store.create_volume("base", 1 << 20)?;
/// volume.write_at(b"unpacked", 0)?;
/// volume.flush()?;
/// // The snapshot shows the layer of an image on top of those below it, of which there are none.
/// let layer = ImageLayer { digest: Digest::of(b"packed"), bytes: 6 };
/// let held = HeldLayer { layer, chain: Digest::of(b"unpacked") };
/// store.snapshot_image("base", "layer", held)?;
/// assert_eq!(store.held_layers(), [held]);
/// // Images with the same base share it: a fork is found by the chain.
/// store.fork(&held.chain, "next")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HeldLayer {
    /// The blob it was made from.
    pub layer: ImageLayer,
    /// Names the content of this layer on top of all those below it
    /// (<https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid>).
    pub chain: Digest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_as_they_are_written() {
        // The digest of no bytes, from FIPS 180-4's examples.
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(empty.parse::<Digest>().unwrap(), Digest::of(b""));
        for wrong in ["", "sha256:", "sha512:00", &empty[..70], &empty.to_uppercase(), &empty.replace("e3", "é")] {
            assert_eq!(wrong.parse::<Digest>().unwrap_err().kind(), ErrorKind::InvalidInput, "{wrong}");
        }
    }

    #[test]
    fn a_layer_listed_twice_counts_once() {
        let layer = |content: &[u8], bytes| ImageLayer { digest: Digest::of(content), bytes };
        let image = Image::new("a", Digest::of(b"m"), [layer(b"1", 5), layer(b"2", 7), layer(b"1", 5)]);
        assert_eq!((image.layers.len(), image.bytes()), (2, 12));
    }
}
