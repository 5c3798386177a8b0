//! Leases: a lease keeps a snapshot of another host while a fork fetches from it.
//!
//! A fork asks its source for a lease if the source supports leases. For a live volume the source takes a snapshot, so that the fork
//! shows one instant. The fork then fetches from the address of that snapshot.

use std::sync::Arc;
use std::time::Duration;

use super::Source;
pub use crate::wire::{LeaseAction, LeaseGrant, LeaseRequest};

/// A lease that a source has given.
///
/// ```
/// # #[cfg(feature = "serve")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// # let volume = store.create_volume("base", 1 << 20)?;
/// # volume.write_at(b"base", 0)?;
/// # volume.create_snapshot("v1")?;
/// # let listener = volfork::serve::Listener::parse(&format!("unix:{}", directory.path().join("nbd.sock").display()))?;
/// # let server = volfork::serve::NbdServer::start(std::sync::Arc::new(store.clone()), vec![listener], Default::default())?;
/// # let uri = |export: &str| server.uris(export).remove(0);
/// use volfork::LeaseId;
/// use volfork::source::{LeaseAction, LeaseRequest, SourceOpener, UriSources};
///
/// let (fork, host) = ("machine".to_owned(), "b".to_owned());
/// let mut request = LeaseRequest { action: LeaseAction::Take, id: LeaseId::random()?, fork, host, identity: String::new() };
/// let lease = UriSources::default().open_leased(&uri("base@v1"), &request)?.lease.expect("a volfork gives leases");
/// assert_eq!((lease.uri, lease.lapse.as_secs()), (uri("base@v1"), 7 * 86_400));
/// // While it is there, the snapshot cannot be destroyed.
/// assert!(store.destroy_snapshot("base", "v1").is_err());
/// request.action = LeaseAction::Release;
/// assert_eq!(UriSources::default().lease(&uri("base@v1"), &request)?, None);
/// # drop(server);
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "serve"))]
/// # fn main() {}
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// URI of the snapshot that the lease holds.
    pub uri: String,
    /// The lease lapses if it is not renewed within this time.
    pub lapse: Duration,
}

/// An opened source, with a lease of its bytes if the source supports leases.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("image");
/// # std::fs::write(&path, vec![7; 8192])?;
/// use volfork::LeaseId;
/// use volfork::source::{LeaseAction, LeaseRequest, SourceOpener, UriSources};
///
/// let (fork, host) = ("machine".to_owned(), "b".to_owned());
/// let request = LeaseRequest { action: LeaseAction::Take, id: LeaseId::random()?, fork, host, identity: String::new() };
/// // A file knows no leases: it is opened without.
/// let leased = UriSources::default().open_leased(&format!("file://{}", path.display()), &request)?;
/// assert_eq!((leased.source.size_bytes(), leased.lease), (8192, None));
/// # Ok(())
/// # }
/// ```
pub struct LeasedSource {
    /// The source, opened at the lease's address if there is a lease.
    pub source: Arc<dyn Source>,
    /// `None` if the source does not support leases.
    pub lease: Option<Lease>,
}

impl std::fmt::Debug for LeasedSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeasedSource").finish_non_exhaustive()
    }
}
