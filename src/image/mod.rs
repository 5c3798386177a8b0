//! Container images: where they come from, what is in them, and how they become volumes.
//!
//! - `name`: `oci:DIR:TAG` for a directory, `host/name:tag` for a registry.
//! - `source`: the [`ManifestSource`] trait, with `layout` (a directory) and `registry` (over HTTP; `login`: who may know a password).
//! - `manifest`: the documents, as they are; `resolve`: from a name to the layers of one platform.
//! - `import`, with `unpack`, `archive`, `stream` and `ext4`: turns the image into a chain of layers of the store, which images with the
//!   same base share.
//!
//! What a source answers is not trusted: documents and layers are bounded in size and number, and each byte is checked against
//! the digest that named it. A registry is found and read only with the cargo feature `images`, as is the import; the rest
//! comes with `manifests`.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]
#![deny(clippy::cast_precision_loss)]
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]
#[cfg(feature = "images")]
mod archive;
#[cfg(feature = "images")]
mod ext4;
#[cfg(feature = "images")]
mod import;
mod layout;
#[cfg(feature = "images")]
mod login;
mod manifest;
mod name;
#[cfg(feature = "images")]
mod registry;
mod resolve;
mod source;
mod stream;
#[cfg(feature = "images")]
mod unpack;

#[cfg(feature = "images")]
pub use import::{ImportOptions, ImportProgress, ImportedImage, Start, import_image};
pub use layout::LayoutSource;
#[cfg(feature = "images")]
pub use login::RegistryLogin;
pub use manifest::{Compression, Document, IndexEntry, Platform, parse_document};
pub use name::{ImageName, Place, Version};
#[cfg(feature = "images")]
pub use registry::{RegistryOptions, RegistrySource};
pub use resolve::{ResolvedImage, ResolvedLayer, resolve};
pub use source::{Blob, ManifestSource, RawManifest};

/// Opens the directory or registry repository that an image name refers to.
///
/// # Errors
/// [`crate::ErrorKind::NotFound`] if there is no such directory, [`crate::ErrorKind::InvalidInput`] if it is not an image layout, or
/// the name is not valid for a registry.
#[cfg(feature = "images")]
pub fn open_source(name: &ImageName, options: &RegistryOptions) -> crate::Result<Box<dyn ManifestSource>> {
    Ok(match &name.place {
        Place::Layout(directory) => Box::new(LayoutSource::open(directory)?),
        Place::Registry(repository) => Box::new(RegistrySource::open(repository, options)?),
    })
}
