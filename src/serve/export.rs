//! Exports: the volumes and snapshots that clients connect to.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::source::About;
use crate::store::Store;
use crate::volume::{Limiter, Queue, Run, Snapshot, Volume};
use crate::wire::constants::DESCRIPTION_OF_SNAPSHOT;
use crate::wire::{LeaseAction, LeaseGrant, LeaseRequest};

/// A volume or a snapshot.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::serve::{Export, Exports};
///
/// store.create_volume("web", 1 << 20)?.create_snapshot("v1")?;
/// // As a client names it. A store is what a server offers, unless told otherwise.
/// let export: Export = store.open("web@v1")?;
/// assert_eq!((export.name().as_str(), export.size_bytes()), ("web@v1", 1 << 20));
/// assert!(export.is_read_only() && !store.open("web")?.is_read_only());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Export {
    /// Read-write.
    Volume(Volume),
    /// Read-only.
    Snapshot(Snapshot),
}

/// The same call of a volume or a snapshot.
macro_rules! each {
    ($export:expr, $it:ident => $call:expr) => {
        match $export {
            Export::Volume($it) => $call,
            Export::Snapshot($it) => $call,
        }
    };
}

impl Export {
    /// Canonical name.
    pub fn name(&self) -> String {
        each!(self, it => it.name())
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        each!(self, it => it.size_bytes())
    }

    /// Block size of the store, in bytes.
    pub fn block_bytes(&self) -> u32 {
        each!(self, it => it.block_bytes())
    }

    /// Whether it refuses writes.
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::Snapshot(_))
    }

    /// A sentence for people; that of a snapshot ends with the identity of its bytes, by which other hosts know it.
    pub fn description(&self) -> String {
        match self {
            Self::Volume(_) => "volfork volume".into(),
            Self::Snapshot(snapshot) => format!("{DESCRIPTION_OF_SNAPSHOT}{}", snapshot.identity()),
        }
    }

    /// Facts about it that another volfork is told beside its bytes.
    pub(super) fn about(&self) -> About {
        each!(self, it => it.about())
    }

    /// A queue on it.
    ///
    /// # Errors
    /// It was destroyed, or the machine has no room for another ring.
    pub fn queue(&self, depth: u32) -> Result<Queue> {
        each!(self, it => it.queue(depth))
    }

    /// What keeps the limits of its clients. A snapshot has none.
    pub(super) fn limiter(&self) -> Option<Arc<Limiter>> {
        match self {
            Self::Volume(volume) => Some(volume.limiter()),
            Self::Snapshot(_) => None,
        }
    }

    /// Which bytes from the start of a range are zero.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`].
    pub fn allocation(&self, range: Range<u64>, runs_max: usize) -> Result<Vec<Run>> {
        each!(self, it => it.allocation(range, runs_max))
    }

    /// Names of the snapshots since which changes can be told.
    pub fn snapshots_below(&self) -> Vec<String> {
        each!(self, it => it.snapshots_below())
    }

    /// Bytes that were changed since a snapshot.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it was destroyed; [`ErrorKind::OutOfRange`].
    pub fn changed_since(&self, snapshot: &str, range: &Range<u64>, runs_max: usize) -> Result<Vec<Range<u64>>> {
        each!(self, it => it.changed_since(snapshot, range, runs_max))
    }

    /// The snapshot, if it is one: only what never changes has checksums and a trace.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        match self {
            Self::Volume(_) => None,
            Self::Snapshot(snapshot) => Some(snapshot),
        }
    }

    /// The layers that answer for the bytes from the start of a range.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`].
    pub fn runs(&self, range: Range<u64>, runs_max: usize) -> Result<Vec<Run>> {
        each!(self, it => it.runs(range, runs_max))
    }
}

/// The exports of an NBD server.
///
/// ```
/// use volfork::serve::{Export, Exports};
/// use volfork::{Error, ErrorKind, Result, Store};
///
/// /// The snapshots of one volume, by their own names, and nothing else.
/// struct Releases(Store, &'static str);
///
/// impl Exports for Releases {
///     fn open(&self, name: &str) -> Result<Export> {
///         self.0.snapshot(self.1, name).map(Export::Snapshot)
///     }
///     fn names(&self) -> Vec<String> {
///         self.0.snapshot_names(self.1).unwrap_or_default()
///     }
/// }
///
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// store.create_volume("app", 1 << 20)?.create_snapshot("v1")?;
/// let releases = Releases(store, "app");
/// assert_eq!(releases.names(), ["v1"]);
/// assert_eq!(releases.open("app").unwrap_err().kind(), ErrorKind::NotFound);
/// # Ok(())
/// # }
/// ```
pub trait Exports: Send + Sync + 'static {
    /// Opens an export by name; the empty name is the only volume, if there is just one.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    fn open(&self, name: &str) -> Result<Export>;
    /// Names of all exports.
    fn names(&self) -> Vec<String>;
    /// Gives a fork of another host, at this address, a lease of an export, or ends it ([`Store::lease`]).
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`]: these exports know no leases; the client is told so. As there.
    fn lease(&self, _name: &str, _request: &LeaseRequest, _address: &str) -> Result<Option<LeaseGrant>> {
        Err(Error::new(ErrorKind::Unsupported, "there are no leases here"))
    }
    /// Requests that wait for something outside the store are to fail soon: their answers are not needed any more.
    fn give_up_waiting(&self) {}
}

/// The volume of a name; of the empty one, the only volume.
fn named(store: &Store, name: &str) -> Result<String> {
    match &store.volume_names()[..] {
        _ if !name.is_empty() => Ok(name.to_owned()),
        [only] => Ok(only.clone()),
        names => Err(Error::new(ErrorKind::NotFound, format!("there is no default export among {} volumes: name one", names.len()))),
    }
}

impl Exports for Store {
    fn open(&self, name: &str) -> Result<Export> {
        match name.split_once('@') {
            Some((volume, snapshot)) => self.snapshot(volume, snapshot).map(Export::Snapshot),
            None => self.volume(&named(self, name)?).map(Export::Volume),
        }
    }

    fn lease(&self, name: &str, request: &LeaseRequest, address: &str) -> Result<Option<LeaseGrant>> {
        match name.split_once('@') {
            Some((volume, snapshot)) => Self::lease(self, (volume, Some(snapshot)), request, address),
            None if request.action == LeaseAction::Release => Self::lease(self, (name, None), request, address),
            None => Self::lease(self, (&named(self, name)?, None), request, address),
        }
    }

    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for volume in self.volume_names() {
            let snapshots = self.snapshot_names(&volume).unwrap_or_default();
            names.push(volume.clone());
            names.extend(snapshots.into_iter().map(|snapshot| format!("{volume}@{snapshot}")));
        }
        names
    }

    fn give_up_waiting(&self) {
        Store::give_up_waiting(self);
    }
}
