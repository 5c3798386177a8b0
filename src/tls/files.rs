//! Certificates and keys in a directory, under the names that libnbd, nbdkit and qemu look for.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{Error, ErrorKind, Result};

/// Longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The certificates of the authorities that a peer's certificate is to come from.
pub(super) const CA: &str = "ca-cert.pem";
/// What every message about a file of a server ends with.
const OF_SERVER: &str = "the directory of a server has ca-cert.pem, server-cert.pem and server-key.pem";
/// The same of a client.
const OF_CLIENT: &str = "the directory of a client has ca-cert.pem, and for servers that ask for it client-cert.pem and client-key.pem";

/// A certificate with those that it stands on, and its key.
pub(super) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The cryptography behind TLS. It is named each time: the default of the process belongs to its embedder.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A directory of certificates.
#[derive(Clone, Copy)]
pub(super) struct Directory<'a> {
    path: &'a Path,
    convention: &'static str,
}

impl<'a> Directory<'a> {
    pub fn of_server(path: &'a Path) -> Self {
        Self { path, convention: OF_SERVER }
    }

    pub fn of_client(path: &'a Path) -> Self {
        Self { path, convention: OF_CLIENT }
    }

    /// An error about a file.
    pub fn wrong(&self, name: &str, what: impl std::fmt::Display) -> Error {
        let text = format!("{} {what}: {}", self.path.join(name).display(), self.convention);
        Error::new(ErrorKind::InvalidInput, text)
    }

    /// The bytes of a file; `None` if there is none of this name.
    #[cfg_attr(feature = "sim", allow(clippy::disallowed_methods, reason = "certificates are no files of a store"))]
    fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let read = std::fs::File::open(self.path.join(name)).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
        match read {
            Ok(count) if count > crate::place::length(FILE_BYTES_MAX) => Err(self.wrong(name, "is too long for certificates")),
            Ok(_) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.wrong(name, format_args!("cannot be read ({error})"))),
        }
    }

    /// The certificates of a file; `None` if there is no such file.
    fn certificates(&self, name: &str) -> Result<Option<Vec<CertificateDer<'static>>>> {
        let Some(bytes) = self.bytes(name)? else { return Ok(None) };
        let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        match found {
            Ok(found) if found.is_empty() => Err(self.wrong(name, "has no certificate in PEM form")),
            Ok(found) => Ok(Some(found)),
            Err(error) => Err(self.wrong(name, format_args!("is no PEM file ({error})"))),
        }
    }

    fn key(&self, name: &str) -> Result<Option<PrivateKeyDer<'static>>> {
        let Some(bytes) = self.bytes(name)? else { return Ok(None) };
        match PrivateKeyDer::from_pem_slice(&bytes) {
            Ok(key) => Ok(Some(key)),
            Err(pem::Error::NoItemsFound) => Err(self.wrong(name, "has no private key in PEM form that is not encrypted")),
            // What is wrong with a key is not shown: it could show the key.
            Err(_) => Err(self.wrong(name, "is no PEM file")),
        }
    }

    /// `WHO-cert.pem` and `WHO-key.pem`; `None` if there is neither.
    pub fn identity(&self, who: &str) -> Result<Option<Identity>> {
        let (certificate, key) = (format!("{who}-cert.pem"), format!("{who}-key.pem"));
        match (self.certificates(&certificate)?, self.key(&key)?) {
            (Some(certificates), Some(key)) => Ok(Some((certificates, key))),
            (None, None) => Ok(None),
            (None, Some(_)) => Err(self.wrong(&certificate, "is missing")),
            (Some(_), None) => Err(self.wrong(&key, "is missing")),
        }
    }

    /// The authorities.
    ///
    /// # Errors
    /// There are none.
    pub fn authorities(&self) -> Result<Arc<RootCertStore>> {
        let certificates = self.certificates(CA)?.ok_or_else(|| self.wrong(CA, "is missing"))?;
        let mut store = RootCertStore::empty();
        for certificate in certificates {
            store.add(certificate).map_err(|error| self.wrong(CA, format_args!("has a certificate that is none ({error})")))?;
        }
        Ok(Arc::new(store))
    }

    /// What a configuration says of an identity that it does not take.
    pub fn unfit(&self, who: &str, error: &rustls::Error) -> Error {
        match error {
            rustls::Error::InconsistentKeys(_) => self.wrong(&format!("{who}-key.pem"), format_args!("is not the key of {who}-cert.pem")),
            _ => self.wrong(&format!("{who}-cert.pem"), format_args!("or its key cannot be used ({error})")),
        }
    }
}
