//! Manifests, indexes and configurations, parsed from bytes that are not trusted.
//!
//! The formats are those of the OCI image specification (<https://github.com/opencontainers/image-spec>), and of Docker's
//! "schema 2", which differ in media types only.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::content::{Digest, ImageLayer};
use crate::error::{Error, ErrorKind, Result};
use crate::place::wide;

/// Bytes of a manifest, index or configuration, at most.
pub(super) const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// Layers of an image, at most: file systems that stack them take 500 at most.
const LAYERS_MAX: usize = 500;
/// Entries of an index, at most.
const ENTRIES_MAX: usize = 4096;

/// Media types of manifests and indexes, as a registry is asked for them.
#[cfg(feature = "images")]
pub(super) const DOCUMENT_TYPES: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX];
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const CONFIGS: [&str; 2] = ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// An operating system on a kind of processor: `linux/amd64`, or `linux/arm/v7`.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// use volfork::image::Platform;
///
/// let wanted: Platform = "linux/arm64".parse()?;
/// // A variant counts only where one is asked for.
/// assert!(wanted.takes(&"linux/arm64/v8".parse()?));
/// assert!(!wanted.takes(&"linux/amd64".parse()?));
/// assert_eq!(Platform::here().os, "linux");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// As Go names it.
    pub os: String,
    /// As Go names it.
    pub architecture: String,
    /// Of the architecture, where that matters.
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on the processor of this machine.
    pub fn here() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// Whether an image for `other` is one for this. A variant counts if one is asked for; `v8` is all that `arm64` has.
    pub fn takes(&self, other: &Self) -> bool {
        let variant = |platform: &Self| match (&platform.architecture[..], platform.variant.as_deref()) {
            ("arm64", Some("v8") | Some("")) | (_, Some("")) => None,
            (_, variant) => variant.map(str::to_owned),
        };
        self.os == other.os && self.architecture == other.architecture && (variant(self).is_none() || variant(self) == variant(other))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let variant = match parts[..] {
            [os, architecture] if !os.is_empty() && !architecture.is_empty() => None,
            [os, architecture, variant] if !os.is_empty() && !architecture.is_empty() && !variant.is_empty() => Some(variant.to_owned()),
            _ => return Err(invalid(format!("'{text}' is not a platform: write linux/amd64, or linux/arm/v7"))),
        };
        Ok(Self { os: parts[0].into(), architecture: parts[1].into(), variant })
    }
}

/// How a layer's archive is packed.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// use volfork::content::Digest;
/// use volfork::image::{Compression, Document, parse_document};
///
/// let digest = Digest::of(b"blob");
/// let descriptor = |kind| format!(r#"{{"mediaType": "application/vnd.oci.image.{kind}", "digest": "{digest}", "size": 4}}"#);
/// let (config, layer) = (descriptor("config.v1+json"), descriptor("layer.v1.tar+zstd"));
/// let manifest = format!(r#"{{"schemaVersion": 2, "config": {config}, "layers": [{layer}]}}"#);
/// let Document::Manifest { layers, .. } = parse_document(manifest.as_bytes(), None)? else { panic!("an index") };
/// assert_eq!(layers[0].1, Compression::Zstd);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// By gzip.
    Gzip,
    /// By zstd.
    Zstd,
}

impl Compression {
    fn of_layer(media_type: &str) -> Result<Self> {
        Ok(match media_type {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => Self::None,
            "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Self::Gzip,
            "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Self::Zstd,
            other => return Err(unknown("a layer", other)),
        })
    }
}

/// A document that an index names: the manifest of one platform, or another index.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// use volfork::content::Digest;
/// use volfork::image::{Document, IndexEntry, parse_document};
///
/// let digest = Digest::of(b"manifest");
/// let platform = r#"{"os": "linux", "architecture": "arm64"}"#;
/// let manifest = format!(r#"{{"digest": "{digest}", "size": 8, "platform": {platform}}}"#);
/// let index = format!(r#"{{"schemaVersion": 2, "manifests": [{manifest}]}}"#);
/// let Document::Index(entries) = parse_document(index.as_bytes(), None)? else { panic!("a manifest") };
/// let is_arm = |entry: &&IndexEntry| entry.platform.as_ref().is_some_and(|platform| platform.architecture == "arm64");
/// assert_eq!(entries.iter().find(is_arm).map(|entry| entry.content.digest), Some(digest));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Digest and bytes of the document.
    pub content: ImageLayer,
    /// Its media type.
    pub media_type: String,
    /// The platform that it is for, if it is given.
    pub platform: Option<Platform>,
    /// The tag, in the index of a layout.
    pub tag: Option<String>,
}

/// A manifest or index.
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
/// use volfork::image::{Document, LayoutSource, ManifestSource, Version, parse_document};
///
/// let raw = LayoutSource::open(directory.path())?.manifest(&Version::Tag("v1".into()))?;
/// match parse_document(&raw.bytes, raw.media_type.as_deref())? {
///     Document::Manifest { layers, .. } => assert_eq!(layers.len(), 1),
///     // Of an image for several platforms.
///     Document::Index(entries) => println!("{} to choose from", entries.len()),
///     // Kinds that come later.
///     _ => {}
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Document {
    /// Others to choose from.
    Index(Vec<IndexEntry>),
    /// One image.
    Manifest {
        /// Its configuration.
        config: ImageLayer,
        /// Its layers, the base first.
        layers: Vec<(ImageLayer, Compression)>,
    },
}

/// The configuration of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config {
    pub platform: Platform,
    /// Digests of the layers' archives, unpacked.
    pub diffs: Vec<Digest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: u64,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: Option<String>,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<Annotations>,
}

#[derive(Deserialize)]
struct Annotations {
    #[serde(default, rename = "org.opencontainers.image.ref.name")]
    name: Option<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(flatten)]
    platform: Platform,
    rootfs: RawRoot,
}

#[derive(Deserialize)]
struct RawRoot {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Vec<Digest>,
}

impl RawDescriptor {
    fn content(&self) -> Result<ImageLayer> {
        Ok(ImageLayer { digest: self.digest.parse()?, bytes: self.size })
    }

    fn media_type(&self) -> String {
        self.media_type.clone().unwrap_or_default()
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

fn unknown(what: &str, media_type: &str) -> Error {
    let shown: String = media_type.chars().take(200).collect();
    Error::new(ErrorKind::Unsupported, format!("{what} of the image has the media type '{shown}', which volfork does not read"))
}

fn check_size(what: &str, bytes: &[u8]) -> Result<()> {
    match wide(bytes.len()) {
        0..=DOCUMENT_BYTES_MAX => Ok(()),
        size => Err(invalid(format!("the {what} of the image has {size} bytes; {DOCUMENT_BYTES_MAX} are the most"))),
    }
}

/// Parses a manifest or index. `media_type` is what its descriptor or the registry calls it, which must agree with what it says
/// itself.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if it is not one, or too large; [`ErrorKind::Unsupported`] for a media type that is not known, by
/// name.
pub fn parse_document(bytes: &[u8], media_type: Option<&str>) -> Result<Document> {
    check_size("manifest", bytes)?;
    let raw: RawDocument =
        serde_json::from_slice(bytes).map_err(|error| invalid(format!("the manifest of the image is not one: {error}")))?;
    if raw.schema_version != 2 {
        let message =
            format!("the manifest has schema version {}: only 2 is read; push the image again with a newer tool", raw.schema_version);
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let outside = media_type.filter(|name| !name.is_empty());
    if let (Some(outside), Some(inside)) = (outside, raw.media_type.as_deref())
        && outside != inside
    {
        let shown: String = inside.chars().take(200).collect();
        return Err(invalid(format!("the manifest says that it is '{shown}', and what refers to it says '{outside}'")));
    }
    match raw.media_type.as_deref().or(outside) {
        Some(OCI_INDEX | DOCKER_INDEX) => index(raw),
        Some(OCI_MANIFEST | DOCKER_MANIFEST) => manifest(raw),
        Some(other) => Err(unknown("the manifest", other)),
        None if raw.manifests.is_some() && raw.layers.is_none() => index(raw),
        None => manifest(raw),
    }
}

fn index(raw: RawDocument) -> Result<Document> {
    let list = raw.manifests.ok_or_else(|| invalid("the index of the image has no list of manifests".into()))?;
    if list.len() > ENTRIES_MAX || raw.layers.is_some() {
        return Err(invalid(format!(
            "the index of the image has {} entries, or layers too: {ENTRIES_MAX} entries are the most",
            list.len()
        )));
    }
    let entry = |raw: RawDescriptor| {
        let tag = raw.annotations.as_ref().and_then(|annotations| annotations.name.clone());
        Ok(IndexEntry { content: raw.content()?, media_type: raw.media_type(), platform: raw.platform, tag })
    };
    Ok(Document::Index(list.into_iter().map(entry).collect::<Result<_>>()?))
}

fn manifest(raw: RawDocument) -> Result<Document> {
    let (Some(config), Some(layers), None) = (raw.config, raw.layers, raw.manifests) else {
        return Err(invalid("the manifest of the image has no configuration, or no layers, or is an index at the same time".into()));
    };
    if layers.len() > LAYERS_MAX {
        return Err(invalid(format!("the image has {} layers: {LAYERS_MAX} are the most", layers.len())));
    }
    if !CONFIGS.contains(&&config.media_type()[..]) {
        return Err(unknown("the configuration", &config.media_type()));
    }
    let layer = |raw: &RawDescriptor| Ok((raw.content()?, Compression::of_layer(&raw.media_type())?));
    Ok(Document::Manifest { config: config.content()?, layers: layers.iter().map(layer).collect::<Result<_>>()? })
}

/// Parses a configuration.
pub(super) fn parse_config(bytes: &[u8]) -> Result<Config> {
    check_size("configuration", bytes)?;
    let raw: RawConfig =
        serde_json::from_slice(bytes).map_err(|error| invalid(format!("the configuration of the image is not one: {error}")))?;
    if raw.rootfs.kind != "layers" {
        let shown: String = raw.rootfs.kind.chars().take(100).collect();
        return Err(invalid(format!("the file system of the image is of type '{shown}': only 'layers' is read")));
    }
    Ok(Config { platform: raw.platform, diffs: raw.rootfs.diff_ids })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn platforms_are_compared_with_their_variants() {
        let platform = |text: &str| text.parse::<Platform>().unwrap();
        assert!(platform("linux/arm").takes(&platform("linux/arm/v7")));
        assert!(!platform("linux/arm/v6").takes(&platform("linux/arm/v7")));
        assert!(platform("linux/arm64").takes(&platform("linux/arm64/v8")) && platform("linux/arm64/v8").takes(&platform("linux/arm64")));
        assert!(!platform("linux/amd64").takes(&platform("windows/amd64")));
        for wrong in ["", "linux", "linux/", "/amd64", "a/b/c/d"] {
            assert!(wrong.parse::<Platform>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn wrong_documents_are_refused() {
        let digest = Digest::of(b"x").to_string();
        let config = json!({ "mediaType": CONFIGS[0], "digest": digest, "size": 1 });
        let layer = |kind: &str| json!({ "mediaType": kind, "digest": digest, "size": 1 });
        let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
        let parse = |value: serde_json::Value, kind| parse_document(&serde_json::to_vec(&value).unwrap(), kind);
        assert!(parse(json!({ "schemaVersion": 2, "config": config, "layers": [layer(gzip)] }), None).is_ok());
        for (value, kind, wanted) in [
            (json!([]), None, ErrorKind::InvalidInput),
            (json!({ "schemaVersion": 2 }), None, ErrorKind::InvalidInput),
            (json!({ "schemaVersion": 1, "config": config, "layers": [] }), None, ErrorKind::Unsupported),
            (json!({ "schemaVersion": 2, "config": config, "layers": [layer("text/x")] }), None, ErrorKind::Unsupported),
            (json!({ "schemaVersion": 2, "config": config, "layers": vec![layer(gzip); 501] }), None, ErrorKind::InvalidInput),
            (json!({ "schemaVersion": 2, "config": layer("text/x"), "layers": [] }), None, ErrorKind::Unsupported),
            (json!({ "schemaVersion": 2, "config": config, "layers": [] }), Some("text/html"), ErrorKind::Unsupported),
            (json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] }), Some(OCI_MANIFEST), ErrorKind::InvalidInput),
            (json!({ "schemaVersion": 2, "manifests": [{ "digest": "sha256:00", "size": 1 }] }), None, ErrorKind::InvalidInput),
            (json!({ "schemaVersion": 2, "manifests": [{ "digest": digest, "size": -1 }] }), None, ErrorKind::InvalidInput),
            (json!({ "schemaVersion": 2, "manifests": [], "layers": [], "config": config }), None, ErrorKind::InvalidInput),
        ] {
            let text = value.to_string();
            assert_eq!(parse(value, kind).unwrap_err().kind(), wanted, "{}", &text[..text.len().min(200)]);
        }
        assert!(parse_document(&vec![b' '; 5 << 20], None).unwrap_err().to_string().contains("bytes"));
        assert!(parse_document("[".repeat(100_000).as_bytes(), None).is_err());
    }
}
