//! Carries out the commands about images.

use volfork::image::{ImageName, ImportOptions, Platform, RegistryOptions, ResolvedImage, import_image, open_source, resolve};
use volfork::{ErrorKind, Store};

use super::args::Choice;
use super::{HeldImage, HeldImages, ImageRequest, ImageResponse};
use crate::failure::{Failure, Result};
use crate::request::{Progress, Watcher};

/// User and password of registries, from the environment of the process that fetches.
fn registry_options(plain_http: bool) -> RegistryOptions {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let login = variable("VOLFORK_REGISTRY_USER").zip(variable("VOLFORK_REGISTRY_PASSWORD"));
    RegistryOptions { plain_http, login }
}

fn platform(text: Option<&str>) -> Result<Platform> {
    Ok(text.map_or_else(|| Ok(Platform::here()), str::parse)?)
}

/// Carries out a request about images.
pub fn carry_out(store: &Store, request: ImageRequest, watcher: &mut dyn Watcher) -> Result<ImageResponse> {
    let ImageRequest::Import { reference, name, size_bytes, platform: wanted, plain_http } = request else {
        return list(store).map(ImageResponse::Held);
    };
    let image: ImageName = reference.parse()?;
    let mut options = ImportOptions { size_bytes, platform: platform(wanted.as_deref())?, ..ImportOptions::default() };
    options.unpacked_bytes_max = options.unpacked_bytes_max.max(size_bytes.unwrap_or(0));
    let source = open_source(&image, &registry_options(plain_http))?;
    // The failure of the watcher is the one to be told.
    let mut told = Ok(());
    let imported = import_image(store, &*source, &image, &name, &options, &mut |progress| {
        told = watcher.tell(Progress::bytes(progress.bytes_done, Some(progress.bytes_total)));
        told.as_ref().map_err(|failure| volfork::Error::new(ErrorKind::Busy, failure.message.clone())).copied()
    });
    told?;
    Ok(ImageResponse::Imported(Box::new(imported?)))
}

fn list(store: &Store) -> Result<HeldImages> {
    let mut images = Vec::new();
    for info in store.list()? {
        if let (Some(reference), Some(digest)) = (info.labels.get("image"), info.labels.get("image-digest")) {
            images.push(HeldImage { volume: info.name.clone(), reference: reference.clone(), digest: digest.clone() });
        }
    }
    Ok(HeldImages { images, layers: store.held_layers(), starts: None })
}

/// The image that a reference stands for now.
pub fn show(reference: &str, choice: &Choice) -> Result<ResolvedImage> {
    let image: ImageName = reference.parse()?;
    let source = open_source(&image, &registry_options(choice.plain_http)).map_err(Failure::from)?;
    Ok(resolve(&*source, &image, &platform(choice.platform.as_deref())?)?)
}
