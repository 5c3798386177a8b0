//! Sources by the scheme of their address.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{FileSource, Lease, LeaseRequest, LeasedSource, NbdOptions, NbdSource, Source, SourceError, SourceErrorKind, SourceOpener};

/// Opens `nbd://`, `nbd+unix://` and `file://` addresses, and with the feature `tls` also `nbds://` and `nbds+unix://` with the parameters
/// `tls-certificates=DIR` (a directory with `ca-cert.pem`), `tls-hostname=NAME` and `tls-verify-peer=false`.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("image");
/// # std::fs::write(&path, vec![7; 8192]).unwrap();
/// use std::sync::Arc;
/// use std::time::Duration;
/// use volfork::source::{NbdOptions, UriSources};
/// use volfork::{Store, StoreOptions};
///
/// // Readers of a fork are told after about ten seconds that its source is lost.
/// let sources = UriSources { nbd: NbdOptions::patient_for(Duration::from_secs(10)) };
/// let store = Store::create(directory.path().join("store"), StoreOptions::default().with_sources(Arc::new(sources)))?;
/// let fork = store.fork(&format!("file://{}", path.display()), "machine")?;
/// assert_eq!(fork.size_bytes(), 8192);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct UriSources {
    /// Options of the NBD sources that it opens.
    pub nbd: NbdOptions,
}

/// Whether the scheme of an address is one of NBD, with TLS or without.
fn is_nbd(uri: &str) -> bool {
    matches!(uri.split_once("://"), Some(("nbd" | "nbd+unix" | "nbds" | "nbds+unix", _)))
}

impl SourceOpener for UriSources {
    fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        match uri.split_once("://") {
            _ if is_nbd(uri) => Ok(NbdSource::open(uri, self.nbd.clone())?),
            Some(("file", path)) => Ok(Arc::new(FileSource::open(Path::new(path))?)),
            _ => Err(SourceError {
                kind: SourceErrorKind::Invalid,
                message: format!(
                    "'{uri}' is no address of a source: use nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH (with TLS nbds \
                     and nbds+unix) or file:///PATH"
                ),
            }),
        }
    }

    fn lends(&self, uri: &str) -> bool {
        is_nbd(uri)
    }

    fn open_leased(&self, uri: &str, request: &LeaseRequest) -> Result<LeasedSource, SourceError> {
        match is_nbd(uri) {
            true => NbdSource::open_leased(uri, self.nbd.clone(), request),
            false => self.open(uri).map(|source| LeasedSource { source, lease: None }),
        }
    }

    fn lease(&self, uri: &str, request: &LeaseRequest) -> Result<Option<Lease>, SourceError> {
        if is_nbd(uri) { NbdSource::lease(uri, &self.nbd, request) } else { Ok(None) }
    }

    fn patience(&self) -> Duration {
        self.nbd.patience()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_not_opened_says_why() {
        for (uri, why) in [
            ("nbds://h/v", if cfg!(feature = "tls") { "tls-certificates=DIR" } else { "built without" }),
            ("nbd://h/v?tls-certificates=/p", "use nbds://"),
            ("nbds://", if cfg!(feature = "tls") { "names no host: use nbds://" } else { "built without" }),
            ("http://h/v", "is no address of a source"),
        ] {
            let error = UriSources::default().open(uri).err().unwrap();
            assert!(error.kind == SourceErrorKind::Invalid && error.message.contains(why), "{uri}: {}", error.message);
        }
    }
}
