//! Requests about container images, and their answers.

use serde::{Deserialize, Serialize};
use volfork::content::HeldLayer;
use volfork::image::ImportedImage;
use volfork::placement::StartsSummary;

/// A request about images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ImageRequest {
    /// A volume from an image.
    Import {
        reference: String,
        name: String,
        size_bytes: Option<u64>,
        platform: Option<String>,
        plain_http: bool,
        #[serde(default)]
        verify: bool,
    },
    /// Images and layers in the store.
    List,
}

/// The answer to an [`ImageRequest`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageResponse {
    /// Answer to `import`.
    Imported(Box<ImportedImage>),
    /// Answer to `list`.
    Held(HeldImages),
}

/// Images and layers in a store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldImages {
    /// Volumes that were made from images.
    pub images: Vec<HeldImage>,
    /// Layers, each once.
    pub layers: Vec<HeldLayer>,
    /// How long imports took since the process that serves the store began; `None` if none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts: Option<Box<StartsSummary>>,
}

/// A volume that was made from an image, or a fork of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldImage {
    pub volume: String,
    /// How the image was asked for.
    pub reference: String,
    /// Digest of its manifest.
    pub digest: String,
}
