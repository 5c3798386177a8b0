//! Carries out the commands about images.

use volfork::image::{
    ImageName, ImportOptions, Place, Platform, RegistryLogin, RegistryOptions, ResolvedImage, import_image, open_source, resolve,
};
use volfork::{ErrorKind, Store};

use crate::cli::image::ImageChoice;
use crate::failure::{Failure, Result};
use crate::request::image::{HeldImage, HeldImages, ImageRequest, ImageResponse};
use crate::request::progress::{Progress, Watcher};

/// How the place of an image is reached: the login is in the environment of the process that fetches.
fn registry_options(image: &ImageName, plain_http: bool) -> Result<RegistryOptions> {
    if matches!(image.place, Place::Layout(_)) {
        return Ok(RegistryOptions::default());
    }
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let [host, user, password] = ["HOST", "USER", "PASSWORD"].map(|name| variable(format!("VOLFORK_REGISTRY_{name}")));
    let login = match (host, user, password) {
        (None, None, None) => None,
        (Some(host), Some(user), Some(password)) => Some(RegistryLogin { host, user, password }),
        _ => {
            let message = "a login is for one registry: set VOLFORK_REGISTRY_HOST (as in registry.example:5000), VOLFORK_REGISTRY_USER \
                           and VOLFORK_REGISTRY_PASSWORD, or none of them";
            return Err(Failure::new(ErrorKind::InvalidInput, message));
        }
    };
    let mut options = RegistryOptions::default().with_plain_http(plain_http);
    options.login = login;
    Ok(options)
}

fn platform(text: Option<&str>) -> Result<Platform> {
    Ok(text.map_or_else(|| Ok(Platform::here()), str::parse)?)
}

/// Carries out a request about images.
pub fn carry_out(store: &Store, request: ImageRequest, watcher: &mut dyn Watcher) -> Result<ImageResponse> {
    let ImageRequest::Import { reference, name, size_bytes, platform: wanted, plain_http, verify } = request else {
        return list(store).map(ImageResponse::Held);
    };
    let image: ImageName = reference.parse()?;
    let mut options = ImportOptions::default().with_platform(platform(wanted.as_deref())?).with_verify(verify);
    options.size_bytes = size_bytes;
    options.unpacked_bytes_max = options.unpacked_bytes_max.max(size_bytes.unwrap_or(0));
    let source = open_source(&image, &registry_options(&image, plain_http)?)?;
    // A failure of the watcher takes precedence over the error that it causes.
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
pub fn show(reference: &str, choice: &ImageChoice) -> Result<ResolvedImage> {
    let image: ImageName = reference.parse()?;
    let source = open_source(&image, &registry_options(&image, choice.plain_http)?)?;
    Ok(resolve(&*source, &image, &platform(choice.platform.as_deref())?)?)
}
