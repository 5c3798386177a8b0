//! Where manifests and layers are read from.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use super::manifest::DOCUMENT_BYTES_MAX;
use super::name::Version;
use crate::content::{Digest, ImageLayer};
use crate::error::{Error, ErrorKind, Result};
use crate::place::{length, wide};

/// A manifest or index, not parsed yet.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let put = |bytes: &[u8]| {
/// #     let digest = volfork::content::Digest::of(bytes);
/// #     std::fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
/// #     std::fs::write(directory.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
/// #     format!("\"digest\": \"{digest}\", \"size\": {}", bytes.len())
/// # };
/// # let archive = [0; 1024];
/// # let diff = volfork::content::Digest::of(&archive);
/// # let config = format!(r#"{{"os": "linux", "architecture": "amd64", "rootfs": {{"type": "layers", "diff_ids": ["{diff}"]}}}}"#);
/// # let config = format!(r#"{{"mediaType": "application/vnd.oci.image.config.v1+json", {}}}"#, put(config.as_bytes()));
/// # let layer = format!(r#"{{"mediaType": "application/vnd.oci.image.layer.v1.tar", {}}}"#, put(&archive));
/// # let manifest = put(format!(r#"{{"schemaVersion": 2, "config": {config}, "layers": [{layer}]}}"#).as_bytes());
/// # let tag = r#""annotations": {"org.opencontainers.image.ref.name": "v1"}"#;
/// # let manifest = format!(r#"{{"mediaType": "application/vnd.oci.image.manifest.v1+json", {tag}, {manifest}}}"#);
/// # std::fs::write(directory.path().join("index.json"), format!(r#"{{"schemaVersion": 2, "manifests": [{manifest}]}}"#)).unwrap();
/// # std::fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
/// use volfork::content::Digest;
/// use volfork::image::{LayoutSource, ManifestSource, RawManifest, Version, parse_document};
///
/// let raw: RawManifest = LayoutSource::open(directory.path())?.manifest(&Version::Tag("v1".into()))?;
/// assert_eq!(raw.digest, Digest::of(&raw.bytes));
/// // Bytes that nobody vouches for, until they are parsed.
/// assert!(parse_document(&raw.bytes, raw.media_type.as_deref()).is_ok());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RawManifest {
    /// The digest of `bytes`.
    pub digest: Digest,
    /// Media type that the source names.
    pub media_type: Option<String>,
    /// The document.
    pub bytes: Vec<u8>,
}

/// The images of one place: a directory, or a repository of a registry. Calls block; none may be made from within a runtime of
/// asynchronous tasks.
///
/// ```
/// use std::collections::BTreeMap;
/// use std::io::{Cursor, Read};
/// use volfork::content::Digest;
/// use volfork::image::{ManifestSource, RawManifest, Version};
/// use volfork::{Error, ErrorKind, Result};
///
/// /// Blobs in memory, and the digests of manifests by tag.
/// struct Memory(BTreeMap<Digest, Vec<u8>>, BTreeMap<String, Digest>);
///
/// impl ManifestSource for Memory {
///     fn manifest(&self, version: &Version) -> Result<RawManifest> {
///         let digest = match version {
///             Version::Digest(digest) => Some(*digest),
///             Version::Tag(tag) => self.1.get(tag).copied(),
///             Version::Default => self.1.get("latest").copied(),
///         };
///         let digest = digest.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such tag"))?;
///         Ok(RawManifest { digest, media_type: None, bytes: self.blob(&digest)? })
///     }
///     fn open_blob(&self, digest: &Digest) -> Result<Box<dyn Read + Send>> {
///         Ok(Box::new(Cursor::new(self.blob(digest)?)))
///     }
/// }
///
/// impl Memory {
///     fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
///         self.0.get(digest).cloned().ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no blob {digest}")))
///     }
/// }
///
/// let digest = Digest::of(b"{}");
/// let source = Memory([(digest, b"{}".to_vec())].into(), [("latest".to_owned(), digest)].into());
/// assert_eq!(source.manifest(&Version::Default).unwrap().bytes, b"{}");
/// ```
pub trait ManifestSource: Send + Sync {
    /// The manifest or index that a version stands for now.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Corrupt`] if its bytes are not those that its digest names, an error of the source.
    fn manifest(&self, version: &Version) -> Result<RawManifest>;

    /// The bytes of a blob, not checked yet: [`Blob`] does that.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], an error of the source.
    fn open_blob(&self, digest: &Digest) -> Result<Box<dyn Read + Send>>;
}

/// The bytes of a blob: as many as its descriptor says, and those that its digest names. A reader that comes to the end without an
/// error has read the right bytes.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let put = |bytes: &[u8]| {
/// #     let digest = volfork::content::Digest::of(bytes);
/// #     std::fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
/// #     std::fs::write(directory.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
/// #     format!("\"digest\": \"{digest}\", \"size\": {}", bytes.len())
/// # };
/// # let archive = [0; 1024];
/// # let diff = volfork::content::Digest::of(&archive);
/// # let config = format!(r#"{{"os": "linux", "architecture": "amd64", "rootfs": {{"type": "layers", "diff_ids": ["{diff}"]}}}}"#);
/// # let config = format!(r#"{{"mediaType": "application/vnd.oci.image.config.v1+json", {}}}"#, put(config.as_bytes()));
/// # let layer = format!(r#"{{"mediaType": "application/vnd.oci.image.layer.v1.tar", {}}}"#, put(&archive));
/// # let manifest = put(format!(r#"{{"schemaVersion": 2, "config": {config}, "layers": [{layer}]}}"#).as_bytes());
/// # let tag = r#""annotations": {"org.opencontainers.image.ref.name": "v1"}"#;
/// # let manifest = format!(r#"{{"mediaType": "application/vnd.oci.image.manifest.v1+json", {tag}, {manifest}}}"#);
/// # std::fs::write(directory.path().join("index.json"), format!(r#"{{"schemaVersion": 2, "manifests": [{manifest}]}}"#)).unwrap();
/// # std::fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
/// use std::io::Read;
/// use volfork::content::ImageLayer;
/// use volfork::image::{Blob, LayoutSource, ManifestSource, Version};
///
/// let source = LayoutSource::open(directory.path())?;
/// let manifest = source.manifest(&Version::Default)?;
/// let expected = ImageLayer { digest: manifest.digest, bytes: manifest.bytes.len() as u64 };
/// let mut bytes = Vec::new();
/// Blob::open(&source, expected)?.read_to_end(&mut bytes).expect("the bytes that the digest names");
/// assert_eq!(bytes, manifest.bytes);
///
/// // More, fewer or other bytes than the descriptor says are an error of the read.
/// let shorter = ImageLayer { bytes: expected.bytes - 1, ..expected };
/// assert!(Blob::open(&source, shorter)?.read_to_end(&mut bytes).is_err());
/// # Ok(())
/// # }
/// ```
pub struct Blob<'a> {
    stream: Box<dyn Read + Send + 'a>,
    expected: ImageLayer,
    read: u64,
    hash: Sha256,
}

impl std::fmt::Debug for Blob<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blob").field("expected", &self.expected).field("read", &self.read).finish_non_exhaustive()
    }
}

impl<'a> Blob<'a> {
    /// Opens the blob that `expected` describes.
    ///
    /// # Errors
    /// As [`ManifestSource::open_blob`].
    pub fn open(source: &'a dyn ManifestSource, expected: ImageLayer) -> Result<Self> {
        Ok(Self { stream: source.open_blob(&expected.digest)?, expected, read: 0, hash: Sha256::new() })
    }

    /// Bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.read
    }

    fn wrong(&self, what: impl std::fmt::Display) -> io::Error {
        io::Error::other(Error::new(ErrorKind::Corrupt, format!("blob {} of the image {what}: push it again", self.expected.digest)))
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let expected = self.expected.bytes;
        // One byte more than there should be is asked for, to notice that there are more.
        let room = length(wide(buffer.len()).min((expected - self.read).saturating_add(1)));
        let read = self.stream.read(&mut buffer[..room])?;
        if self.read + wide(read) > expected {
            return Err(self.wrong(format_args!("has more than the {expected} bytes that its manifest says")));
        }
        if read > 0 {
            self.hash.update(&buffer[..read]);
            self.read += wide(read);
        } else if room > 0 && self.read < expected {
            return Err(self.wrong(format_args!("ends after {} of {expected} bytes", self.read)));
        } else if room > 0 && Digest(self.hash.clone().finalize().into()) != self.expected.digest {
            return Err(self.wrong("has other bytes than its digest says"));
        }
        Ok(read)
    }
}

/// A small document, whole.
pub(super) fn read_document(source: &dyn ManifestSource, expected: ImageLayer, what: &str) -> Result<Vec<u8>> {
    if expected.bytes > DOCUMENT_BYTES_MAX {
        let message = format!("the {what} of the image has {} bytes; {DOCUMENT_BYTES_MAX} are the most", expected.bytes);
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    let mut bytes = Vec::new();
    Blob::open(source, expected)?.read_to_end(&mut bytes).map_err(|error| super::stream::error_of(what, error))?;
    Ok(bytes)
}
