//! The seam by which the engine opens sources.

use std::sync::Arc;
use std::time::Duration;

use super::error::SourceError;
use super::lease::{Lease, LeaseRequest, LeasedSource};
use super::seam::Source;

/// How sources are opened from the address that is kept with a layer.
///
/// ```
/// use std::collections::BTreeMap;
/// use std::sync::Arc;
/// use volfork::source::{FileSource, Source, SourceError, SourceErrorKind, SourceOpener};
///
/// /// Images by name, `image://NAME`, wherever they are at the moment.
/// struct Images(BTreeMap<String, std::path::PathBuf>);
///
/// impl SourceOpener for Images {
///     fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
///         let unknown = || SourceError { kind: SourceErrorKind::Invalid, message: format!("'{uri}' is no known image") };
///         let path = uri.strip_prefix("image://").and_then(|name| self.0.get(name)).ok_or_else(unknown)?;
///         Ok(Arc::new(FileSource::open(path)?))
///     }
/// }
///
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("image");
/// # std::fs::write(&path, vec![7; 8192]).unwrap();
/// let images = Images([("base".to_owned(), path)].into());
/// let options = volfork::StoreOptions::default().with_sources(Arc::new(images));
/// let store = volfork::Store::create(directory.path().join("store"), options)?;
/// assert_eq!(store.fork("image://base", "machine")?.size_bytes(), 8192);
/// # Ok(())
/// # }
/// ```
pub trait SourceOpener: Send + Sync + 'static {
    /// Connects to `uri` and learns its size.
    fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError>;

    /// Whether a source at this address may support leases. If so, a fork records in the journal that it is about to ask for a lease, so
    /// that a lease granted just before a crash is given back later. Must not block.
    fn lends(&self, _uri: &str) -> bool {
        true
    }

    /// As [`SourceOpener::open`], with a lease of the bytes if the source supports leases. If the source refuses the lease,
    /// [`super::LeaseAction::Take`] fails, and [`super::LeaseAction::Hold`] opens the source without a lease.
    fn open_leased(&self, uri: &str, _request: &LeaseRequest) -> Result<LeasedSource, SourceError> {
        self.open(uri).map(|source| LeasedSource { source, lease: None })
    }

    /// Renews a lease or gives it back without opening the source. `None` if it was given back, or the source does not support leases.
    ///
    /// # Errors
    /// [`super::SourceErrorKind::Lost`]: nobody answers. Any other: the lease is refused.
    fn lease(&self, _uri: &str, _request: &LeaseRequest) -> Result<Option<Lease>, SourceError> {
        Ok(None)
    }

    /// How long a reader waits while no address can be reached; until then they are tried again.
    fn patience(&self) -> Duration {
        Duration::ZERO
    }
}
