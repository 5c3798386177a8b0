//! Names of images.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::content::Digest;
use crate::error::{Error, ErrorKind, Result};

/// Longer names are refused; they are kept as labels of volumes.
const NAME_BYTES_MAX: usize = 1024;

/// Where an image is.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// use volfork::image::{ImageName, Place};
///
/// let name: ImageName = "oci:/srv/images/app:v1".parse()?;
/// assert_eq!(name.place, Place::Layout("/srv/images/app".into()));
/// let name: ImageName = "localhost:5000/team/app:v1".parse()?;
/// assert_eq!(name.place, Place::Registry("localhost:5000/team/app".into()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// A directory in the OCI image layout.
    Layout(PathBuf),
    /// A repository of a registry, as in `host:5000/team/app`.
    Registry(String),
}

/// Which image of a place.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// use volfork::image::{ImageName, Version};
///
/// let version = |name: &str| Ok::<_, volfork::Error>(name.parse::<ImageName>()?.version);
/// assert_eq!(version("registry.example/app:v1")?, Version::Tag("v1".into()));
/// assert_eq!(version("registry.example/app")?, Version::Default);
/// // A tag may be moved to another image; a digest names the same bytes for ever.
/// let digest = volfork::content::Digest::of(b"manifest");
/// assert_eq!(version(&format!("registry.example/app@{digest}"))?, Version::Digest(digest));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// The only one of a layout, or `latest` of a registry.
    Default,
    /// That which has a tag at present.
    Tag(String),
    /// That whose manifest, or index, has a digest.
    Digest(Digest),
}

/// The name of an image: `oci:DIR[:TAG|@DIGEST]`, or `host[:port]/name[:tag|@digest]`.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// use volfork::image::ImageName;
///
/// let name: ImageName = "registry.example:5000/team/app:v1".parse()?;
/// // As it is written, it is kept in the label of an imported volume.
/// assert_eq!(name.to_string(), "registry.example:5000/team/app:v1");
/// // A directory has to be told from a registry.
/// assert!("/srv/images/app:v1".parse::<ImageName>().is_err());
/// assert!("oci:/srv/images/app:v1".parse::<ImageName>().is_ok());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    /// Where it is.
    pub place: Place,
    /// Which of those that are there.
    pub version: Version,
}

/// Whether the rest behind a colon can be a tag.
fn is_tag(text: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=128).contains(&text.len()) && text.bytes().all(valid) && !text.starts_with(['.', '-'])
}

impl FromStr for ImageName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            let shown: String = text.chars().take(100).collect();
            let message = format!("'{shown}' does not name an image: {why}; write oci:DIR:TAG for a directory, or host/name:tag");
            Error::new(ErrorKind::InvalidInput, message)
        };
        if text.len() > NAME_BYTES_MAX {
            return Err(wrong("it is too long"));
        }
        let (kind, rest) = match text.strip_prefix("oci:") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (place, version) = match rest.rsplit_once("@sha256:") {
            Some((place, hex)) => (place, Version::Digest(format!("sha256:{hex}").parse()?)),
            None => match rest.rsplit_once(':') {
                Some((place, tag)) if is_tag(tag) => (place, Version::Tag(tag.to_owned())),
                // A port, or a directory with a colon in its name.
                Some((_, tag)) if tag.contains('/') => (rest, Version::Default),
                Some(_) => return Err(wrong("what follows the last colon is not a tag")),
                None => (rest, Version::Default),
            },
        };
        // A tag beside a digest says nothing more.
        let place = match (&version, kind, place.rsplit_once(':')) {
            (Version::Digest(_), false, Some((before, tag))) if is_tag(tag) => before,
            _ => place,
        };
        if place.is_empty() {
            return Err(wrong("the place is missing"));
        }
        let place = match kind {
            true => Place::Layout(PathBuf::from(place)),
            false if place.contains("://") || place.starts_with('/') || place.starts_with('.') => {
                return Err(wrong("a directory begins with 'oci:', and a registry has no scheme"));
            }
            false => Place::Registry(place.to_owned()),
        };
        Ok(Self { place, version })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Layout(directory) => write!(f, "oci:{}", directory.display())?,
            Place::Registry(repository) => f.write_str(repository)?,
        }
        match &self.version {
            Version::Default => Ok(()),
            Version::Tag(tag) => write!(f, ":{tag}"),
            Version::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let digest = Digest::of(b"m");
        let layout = |path: &str, version| ImageName { place: Place::Layout(path.into()), version };
        let registry = |path: &str, version| ImageName { place: Place::Registry(path.into()), version };
        let tag = |tag: &str| Version::Tag(tag.into());
        for (text, expected) in [
            ("oci:dir".into(), layout("dir", Version::Default)),
            ("oci:/a/b:v1.2".into(), layout("/a/b", tag("v1.2"))),
            (format!("oci:/a/b@{digest}"), layout("/a/b", Version::Digest(digest))),
            ("oci:a:b/c".into(), layout("a:b/c", Version::Default)),
            ("localhost:5000/app".into(), registry("localhost:5000/app", Version::Default)),
            ("localhost:5000/team/app:v1".into(), registry("localhost:5000/team/app", tag("v1"))),
            (format!("host/app@{digest}"), registry("host/app", Version::Digest(digest))),
        ] {
            let name: ImageName = text.parse().unwrap();
            assert_eq!(name, expected, "{text}");
            assert_eq!(name.to_string(), text);
        }
        let both: ImageName = format!("host:1/app:v1@{digest}").parse().unwrap();
        assert_eq!(both, registry("host:1/app", Version::Digest(digest)));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "oci:", "oci::v1", "a:b c", "/dir", "./dir:v", "https://host/app", "a@sha256:12", &"a".repeat(2000)] {
            assert_eq!(text.parse::<ImageName>().unwrap_err().kind(), ErrorKind::InvalidInput, "{text}");
        }
    }
}
