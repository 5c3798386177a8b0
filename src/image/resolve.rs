//! From a name to the layers of one platform.

use std::collections::HashSet;

use super::manifest::{Compression, Document, Platform, parse_config, parse_document};
use super::name::{ImageName, Version};
use super::source::{ManifestSource, RawManifest, read_document};
use crate::content::{Digest, HeldLayer, Image, ImageLayer};
use crate::error::{Error, ErrorKind, Result};
use crate::place::wide;

/// Indexes within indexes, at most.
const DEPTH_MAX: usize = 4;
/// Documents read for one image, at most.
const DOCUMENTS_MAX: usize = 64;
/// Platforms named in an error, at most.
const NAMED_MAX: usize = 20;

/// An image of one platform, with what is needed to unpack it.
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
/// use volfork::image::{ImageName, LayoutSource, resolve};
///
/// let source = LayoutSource::open(directory.path())?;
/// let name: ImageName = format!("oci:{}:v1", directory.path().display()).parse()?;
/// let resolved = resolve(&source, &name, &"linux/amd64".parse()?)?;
/// assert_eq!(resolved.platform.to_string(), "linux/amd64");
/// // What a host needs before a machine can start from it.
/// assert_eq!((resolved.image.layers.len(), resolved.image.bytes()), (1, 1024));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// Its layers, each once.
    pub image: Image,
    /// The platform that it is for.
    pub platform: Platform,
    /// Its layers in order, the base first; one that is listed twice is here twice.
    pub layers: Vec<ResolvedLayer>,
}

/// A layer of an image, on top of those before it.
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
/// use volfork::image::{Compression, ImageName, LayoutSource, resolve};
///
/// let source = LayoutSource::open(directory.path())?;
/// let name: ImageName = format!("oci:{}:v1", directory.path().display()).parse()?;
/// let layer = resolve(&source, &name, &"linux/amd64".parse()?)?.layers[0];
/// // An archive that is not packed is its own blob; the chain of the base is its archive alone.
/// assert_eq!(layer.compression, Compression::None);
/// assert_eq!((layer.diff, layer.held.chain), (layer.held.layer.digest, layer.diff));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolvedLayer {
    /// The blob, and the chain of all layers up to this one.
    pub held: HeldLayer,
    /// Digest of the archive, unpacked.
    pub diff: Digest,
    /// How the blob is packed.
    pub compression: Compression,
}

/// Finds the image of `platform` that `name` stands for now.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is none, with the platforms there are; [`ErrorKind::Corrupt`] for bytes that are not those
/// that were named; [`ErrorKind::Unsupported`] for unknown media types; [`ErrorKind::InvalidInput`] for documents that are not
/// valid, too large, or go in circles.
pub fn resolve(source: &dyn ManifestSource, name: &ImageName, platform: &Platform) -> Result<ResolvedImage> {
    let mut search = Search { source, platform, seen: HashSet::new(), others: Vec::new() };
    let root = source.manifest(&name.version)?;
    if let Version::Digest(wanted) = &name.version
        && root.digest != *wanted
    {
        return Err(Error::new(ErrorKind::Corrupt, format!("asked for {wanted}, the source gives {}", root.digest)));
    }
    if Digest::of(&root.bytes) != root.digest {
        return Err(Error::new(ErrorKind::Corrupt, format!("the manifest has other bytes than its digest {} says", root.digest)));
    }
    let found = search.image(&root, 0)?;
    let (digest, layers, platform) = found.ok_or_else(|| {
        search.others.dedup();
        search.others.truncate(NAMED_MAX);
        let others = if search.others.is_empty() { "none".into() } else { search.others.join(", ") };
        Error::new(ErrorKind::NotFound, format!("{name} has no image for {platform}: it has {others}"))
    })?;
    let image = Image::new(name.to_string(), digest, layers.iter().map(|layer| layer.held.layer));
    Ok(ResolvedImage { image, platform, layers })
}

type Found = (Digest, Vec<ResolvedLayer>, Platform);

struct Search<'a> {
    source: &'a dyn ManifestSource,
    platform: &'a Platform,
    seen: HashSet<Digest>,
    /// Platforms that were not asked for.
    others: Vec<String>,
}

impl Search<'_> {
    fn image(&mut self, raw: &RawManifest, depth: usize) -> Result<Option<Found>> {
        if !self.seen.insert(raw.digest) || self.seen.len() > DOCUMENTS_MAX || depth > DEPTH_MAX {
            let message = format!("the indexes of the image go in circles, or too deep, at {}: push it again", raw.digest);
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        match parse_document(&raw.bytes, raw.media_type.as_deref())? {
            Document::Index(entries) => {
                for entry in entries {
                    match &entry.platform {
                        Some(other) if !self.platform.takes(other) => {
                            // Attestations are listed as images of an unknown system.
                            if other.os != "unknown" && self.others.len() < NAMED_MAX {
                                self.others.push(other.to_string());
                            }
                            continue;
                        }
                        _ => {}
                    }
                    let raw = self.read(entry.content, entry.media_type)?;
                    if let Some(found) = self.image(&raw, depth + 1)? {
                        return Ok(Some(found));
                    }
                }
                Ok(None)
            }
            Document::Manifest { config, layers } => self.layers(raw.digest, config, layers),
        }
    }

    /// A registry gives manifests by another call than blobs.
    fn read(&self, content: ImageLayer, media_type: String) -> Result<RawManifest> {
        let raw = self.source.manifest(&Version::Digest(content.digest))?;
        if wide(raw.bytes.len()) != content.bytes || Digest::of(&raw.bytes) != content.digest {
            let message = format!("manifest {} has not the {} bytes that the index says: push it again", content.digest, content.bytes);
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok(RawManifest { media_type: Some(media_type), ..raw })
    }

    fn layers(&mut self, manifest: Digest, config: ImageLayer, layers: Vec<(ImageLayer, Compression)>) -> Result<Option<Found>> {
        let config = parse_config(&read_document(self.source, config, "configuration")?)?;
        if !self.platform.takes(&config.platform) {
            self.others.push(config.platform.to_string());
            return Ok(None);
        }
        if config.diffs.len() != layers.len() {
            let message = format!("the image has {} layers, and its configuration says {}", layers.len(), config.diffs.len());
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let mut chain: Option<Digest> = None;
        let layers = layers.into_iter().zip(config.diffs).map(|((layer, compression), diff)| {
            let above = match chain {
                None => diff,
                Some(below) => Digest::of(format!("{below} {diff}").as_bytes()),
            };
            chain = Some(above);
            ResolvedLayer { held: HeldLayer { layer, chain: above }, diff, compression }
        });
        Ok(Some((manifest, layers.collect(), config.platform)))
    }
}
