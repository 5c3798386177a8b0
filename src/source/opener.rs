//! Sources by the scheme of their address.

use std::path::Path;
use std::sync::Arc;

use super::{FileSource, NbdOptions, NbdSource, Source, SourceError, SourceErrorKind, SourceOpener};

/// The part of an address that names the host: addresses that share it share a way.
pub(crate) fn host_of(uri: &str) -> String {
    match url::Url::parse(uri) {
        Ok(url) => format!("{}://{}?{}", url.scheme(), url.authority(), url.query().unwrap_or_default()),
        Err(_) => uri.to_owned(),
    }
}

/// Opens `nbd://`, `nbd+unix://` and `file://` addresses.
#[derive(Clone, Debug, Default)]
pub struct UriSources {
    /// For NBD sources.
    pub nbd: NbdOptions,
}

impl SourceOpener for UriSources {
    fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        match uri.split_once("://") {
            Some(("nbd" | "nbd+unix", _)) => Ok(NbdSource::open(uri, self.nbd.clone())?),
            Some(("file", path)) => Ok(Arc::new(FileSource::open(Path::new(path))?)),
            _ => Err(SourceError {
                kind: SourceErrorKind::Invalid,
                message: format!(
                    "'{uri}' is no address of a source: use nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH or file:///PATH"
                ),
            }),
        }
    }
}
