//! A directory in the OCI image layout (<https://github.com/opencontainers/image-spec/blob/main/image-layout.md>).

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::manifest::{DOCUMENT_BYTES_MAX, Document, parse_document};
use super::name::Version;
use super::source::{ManifestSource, RawManifest, read_document};
use crate::content::{Digest, ImageLayer};
use crate::error::{Error, ErrorKind, Result};
use crate::place::wide;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    image_layout_version: String,
}

/// The images of a directory.
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
/// use volfork::ErrorKind;
/// use volfork::image::{LayoutSource, ManifestSource, Version};
///
/// // As `skopeo copy docker://… oci:DIR:v1` writes it.
/// let source = LayoutSource::open(directory.path())?;
/// assert!(source.manifest(&Version::Tag("v1".into())).is_ok());
/// assert_eq!(source.manifest(&Version::Tag("v2".into())).unwrap_err().kind(), ErrorKind::NotFound);
/// assert_eq!(LayoutSource::open("/no/such/directory".as_ref()).unwrap_err().kind(), ErrorKind::NotFound);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LayoutSource {
    directory: PathBuf,
}

impl LayoutSource {
    /// Opens a directory.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without a file `oci-layout`, [`ErrorKind::InvalidInput`], [`ErrorKind::Unsupported`] for a version
    /// that is not 1.
    pub fn open(directory: &Path) -> Result<Self> {
        let layout = Self { directory: directory.to_owned() };
        let marker = layout.read_file("oci-layout")?;
        let marker: Marker = serde_json::from_slice(&marker)
            .map_err(|error| Error::new(ErrorKind::InvalidInput, format!("{}/oci-layout: {error}", directory.display())))?;
        if !marker.image_layout_version.starts_with("1.") {
            let shown: String = marker.image_layout_version.chars().take(50).collect();
            return Err(Error::new(ErrorKind::Unsupported, format!("{} has image layout version '{shown}', not 1", directory.display())));
        }
        Ok(layout)
    }

    /// Only regular files: a pipe would be waited for without end.
    #[expect(clippy::disallowed_methods, reason = "an image layout is not on the disk of a store")]
    fn open_file(&self, name: &str) -> Result<(File, u64)> {
        let path = self.directory.join(name);
        let wrong = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => {
                let message = format!("{} does not exist: the directory is not an image layout, or not a whole one", path.display());
                Error::new(ErrorKind::NotFound, message)
            }
            _ => Error::io(format!("open {}", path.display()), error),
        };
        let found = std::fs::metadata(&path).map_err(wrong)?;
        if !found.is_file() {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{} is not a file", path.display())));
        }
        Ok((File::open(&path).map_err(wrong)?, found.len()))
    }

    fn read_file(&self, name: &str) -> Result<Vec<u8>> {
        let (file, size) = self.open_file(name)?;
        let mut bytes = Vec::new();
        file.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| Error::io(format!("read {name}"), error))?;
        if wide(bytes.len()) > DOCUMENT_BYTES_MAX {
            let path = self.directory.join(name);
            let message = format!("{} has {size} bytes; {DOCUMENT_BYTES_MAX} are the most", path.display());
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        Ok(bytes)
    }

    /// The entry of the layout's index that a version means.
    fn find(&self, version: &Version) -> Result<(ImageLayer, Option<String>)> {
        if let Version::Digest(digest) = version {
            let (_, bytes) = self.open_file(&blob_path(digest))?;
            return Ok((ImageLayer { digest: *digest, bytes }, None));
        }
        let Document::Index(entries) = parse_document(&self.read_file("index.json")?, None)? else {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{}/index.json is not an index", self.directory.display())));
        };
        let wanted = |tag: &Option<String>| match version {
            Version::Tag(wanted) => tag.as_ref() == Some(wanted),
            _ => true,
        };
        let found: Vec<_> = entries.iter().filter(|entry| wanted(&entry.tag)).collect();
        let tags = || {
            let tags: Vec<_> = entries.iter().filter_map(|entry| entry.tag.as_deref()).take(20).collect();
            if tags.is_empty() { "no tags".into() } else { format!("the tags {}", tags.join(", ")) }
        };
        let place = self.directory.display();
        match (found.first(), version) {
            (Some(first), _) if found.iter().all(|entry| entry.content == first.content) => {
                Ok((first.content, Some(first.media_type.clone())))
            }
            (Some(_), Version::Tag(tag)) => {
                Err(Error::new(ErrorKind::InvalidInput, format!("{place} has several images with the tag '{tag}': name one by its digest")))
            }
            (Some(_), _) => Err(Error::new(ErrorKind::InvalidInput, format!("{place} has several images, with {}: name one", tags()))),
            (None, Version::Tag(tag)) => Err(Error::new(ErrorKind::NotFound, format!("{place} has no tag '{tag}': it has {}", tags()))),
            (None, _) => Err(Error::new(ErrorKind::NotFound, format!("{place} has no image"))),
        }
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl ManifestSource for LayoutSource {
    fn manifest(&self, version: &Version) -> Result<RawManifest> {
        let (content, media_type) = self.find(version)?;
        Ok(RawManifest { digest: content.digest, media_type, bytes: read_document(self, content, "manifest")? })
    }

    fn open_blob(&self, digest: &Digest) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(self.open_file(&blob_path(digest))?.0))
    }
}
