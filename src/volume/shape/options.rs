//! How volumes are made.

use crate::content::Digest;
use crate::error::Result;
use crate::format::{LabelChange, Labels, VolumeLimits};
use crate::options::with_methods;

/// Options of creating a volume.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::volume::VolumeOptions;
///
/// let labels = [("owner".to_owned(), "team-a".to_owned())].into();
/// store.create_volume_with("web", 1 << 30, &VolumeOptions::default().with_labels(labels))?;
/// assert_eq!(store.show("web")?.labels["owner"], "team-a");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VolumeOptions {
    /// Labels ([`crate::Store::set_labels`]) from the first moment: volume and labels are there, or neither.
    pub labels: Labels,
    /// Limits of its clients ([`crate::Volume::set_limits`]) from the first moment.
    pub limits: VolumeLimits,
}

with_methods! { VolumeOptions:
    with_labels(labels: Labels);
    with_limits(limits: VolumeLimits);
}

/// How a volume is forked.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::volume::{ForkOptions, VolumeOptions};
///
/// let labels = [("tier".to_owned(), "gold".to_owned()), ("owner".to_owned(), "a".to_owned())].into();
/// store.create_volume_with("base", 1 << 20, &VolumeOptions::default().with_labels(labels))?;
///
/// // Twice as large; one label is changed, and one is not inherited.
/// let labels = [("tier".to_owned(), Some("silver".to_owned())), ("owner".to_owned(), None)].into();
/// let options = ForkOptions::default().with_size_bytes(2 << 20).with_labels(labels);
/// let fork = store.fork_with("base", "machine", &options)?;
/// assert_eq!(fork.size_bytes(), 2 << 20);
/// assert_eq!(fork.info()?.labels, [("tier".to_owned(), "silver".to_owned())].into());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForkOptions {
    /// Labels that the fork has other than it would inherit: new values by key, `None` for those that it does not get.
    pub labels: LabelChange,
    /// Allows to fork a source that may be written meanwhile and cannot give a snapshot of itself. Blocks of the fork may then be of
    /// different instants.
    pub live: bool,
    /// Size of the fork in bytes, if it is to be larger than its source: what is behind the source's end reads as zero.
    pub size_bytes: Option<u64>,
    /// Limits of the clients of the fork ([`crate::Volume::set_limits`]) from the first moment. Those of its source are not inherited.
    pub limits: VolumeLimits,
}

with_methods! { ForkOptions:
    with_labels(labels: LabelChange);
    with_live(live: bool);
    with_size_bytes(size_bytes: Some<u64>);
    with_limits(limits: VolumeLimits);
}

/// What a volume is forked from.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let image = directory.path().join("image");
/// # std::fs::write(&image, vec![7; 1 << 20]).unwrap();
/// # let options = volfork::StoreOptions::default().with_sources(std::sync::Arc::new(volfork::source::UriSources::default()));
/// # let store = volfork::Store::create(directory.path().join("store"), options)?;
/// # let address = format!("file://{}", image.display());
/// use volfork::volume::ForkSource;
///
/// store.create_volume("base", 1 << 20)?.create_snapshot("v1")?;
/// store.fork("base@v1", "a")?; // As does `ForkSource::Name("base@v1")`.
/// store.fork(&address, "b")?; // An address has `://` in it.
///
/// // The same bytes in two places: if one is lost, the other is asked.
/// let copy = directory.path().join("copy");
/// std::fs::copy(&image, &copy).unwrap();
/// let addresses = [address, format!("file://{}", copy.display())];
/// let fork = store.fork(ForkSource::Addresses(&addresses), "c")?;
/// let mut byte = [0];
/// fork.read_at(&mut byte, 4711)?;
/// assert_eq!(byte, [7]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum ForkSource<'a> {
    /// `NAME` or `NAME@SNAP` of this store, or the address of an export elsewhere.
    Name(&'a str),
    /// Addresses at each of which a remote snapshot can be had, with the same bytes: the first that answers is the origin, and the
    /// others are asked too.
    Addresses(&'a [String]),
    /// The layer of this store whose view is this chain of layers of an image.
    Chain(&'a Digest),
}

impl<'a> From<&'a str> for ForkSource<'a> {
    fn from(name: &'a str) -> Self {
        Self::Name(name)
    }
}

impl<'a> From<&'a String> for ForkSource<'a> {
    fn from(name: &'a String) -> Self {
        Self::Name(name)
    }
}

impl<'a> From<&'a [String]> for ForkSource<'a> {
    /// A single one may be a name.
    fn from(addresses: &'a [String]) -> Self {
        match addresses {
            [name] => Self::Name(name),
            _ => Self::Addresses(addresses),
        }
    }
}

impl<'a> From<&'a Vec<String>> for ForkSource<'a> {
    fn from(addresses: &'a Vec<String>) -> Self {
        addresses.as_slice().into()
    }
}

impl<'a, const N: usize> From<&'a [String; N]> for ForkSource<'a> {
    fn from(addresses: &'a [String; N]) -> Self {
        addresses.as_slice().into()
    }
}

impl<'a> From<&'a Digest> for ForkSource<'a> {
    fn from(chain: &'a Digest) -> Self {
        Self::Chain(chain)
    }
}

/// Called before a fork is made, with its size and labels. It may change the labels, or refuse the fork.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::volume::{Admit, ForkOptions};
/// use volfork::{Error, ErrorKind};
///
/// store.create_volume("base", 1 << 30)?;
/// // A quota of 1 MiB for each fork.
/// let quota: Admit<'_> = &mut |size_bytes, labels| {
///     labels.insert("quota".into(), "1M".into());
///     if size_bytes <= 1 << 20 { Ok(()) } else { Err(Error::new(ErrorKind::NoSpace, "the quota is 1 MiB")) }
/// };
/// let refused = store.fork_admitted("base", "fork", &ForkOptions::default(), quota);
/// assert_eq!(refused.unwrap_err().kind(), ErrorKind::NoSpace);
/// assert_eq!(store.volume_names(), ["base"]);
/// # Ok(())
/// # }
/// ```
pub type Admit<'a> = &'a mut dyn FnMut(u64, &mut Labels) -> Result<()>;

/// What a fork does not have from its source.
#[derive(Clone, Copy)]
pub struct Difference<'a> {
    pub labels: &'a LabelChange,
    pub limits: VolumeLimits,
}

/// A [`ForkSource`] that this store has.
#[derive(Clone, Copy)]
pub enum LocalSource<'a> {
    Volume(&'a str),
    /// Names of the volume and of its snapshot.
    Snapshot(&'a str, &'a str),
    Chain(&'a Digest),
}

impl<'a> LocalSource<'a> {
    /// `NAME` or `NAME@SNAP`.
    pub fn named(name: &'a str) -> Self {
        name.split_once('@').map_or(Self::Volume(name), |(volume, snapshot)| Self::Snapshot(volume, snapshot))
    }
}
