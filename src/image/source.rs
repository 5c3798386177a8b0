//! Where manifests and layers are read from.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use super::manifest::DOCUMENT_BYTES_MAX;
use super::name::Version;
use crate::content::{Digest, ImageLayer};
use crate::error::{Error, ErrorKind, Result};
use crate::place::{length, wide};

/// A manifest or index, not parsed yet.
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
