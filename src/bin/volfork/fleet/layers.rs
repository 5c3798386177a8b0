//! From the name of an image to its layers.

use std::path::Path;

use volfork::ErrorKind;
use volfork::content::Image;

use crate::failure::{Failure, Result};

/// Longest file of layers that is read.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The image of a file that lists its layers.
pub fn read(path: &Path) -> Result<Image> {
    let context = || format!("read {}", path.display());
    let length = std::fs::metadata(path).map_err(|error| Failure::io(context(), error))?.len();
    if length > FILE_BYTES_MAX {
        return Err(Failure::new(ErrorKind::InvalidInput, format!("{} has {length} bytes: that is no list of layers", path.display())));
    }
    let text = std::fs::read(path).map_err(|error| Failure::io(context(), error))?;
    let image: Image = serde_json::from_slice(&text)
        .map_err(|error| Failure::new(ErrorKind::InvalidInput, format!("{} is no list of layers: {error}", path.display())))?;
    Ok(Image::new(image.reference, image.digest, image.layers))
}

/// The image that a reference names, where it comes from.
#[cfg(feature = "images")]
pub fn resolve(reference: &str) -> Result<Image> {
    let choice = crate::cli::image::ImageChoice { platform: None, plain_http: false };
    crate::act::image::show(reference, &choice).map(|found| found.image)
}

/// The image that a reference names.
#[cfg(not(feature = "images"))]
pub fn resolve(reference: &str) -> Result<Image> {
    let message = format!("this volfork knows no registry, so list the layers of image {reference} in a file: give it with --image-layers");
    Err(Failure::new(ErrorKind::Unsupported, message))
}
