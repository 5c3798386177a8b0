//! The configuration of a client.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};

use super::files::{CA, Directory, provider};
use super::handshake::{Failure, complete};
use super::tunnel;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Socket;
use crate::sync::time::Instant;

/// What a client wants of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientTerms {
    /// Directory of certificates.
    pub certificates: Option<PathBuf>,
    /// Name that the server's certificate must have: of a host, or an address.
    pub name: String,
    /// Whether the server's certificate is looked at.
    pub verifies_peer: bool,
}

/// What a client trusts, and its own certificate.
pub(crate) struct ClientTls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// Takes every certificate, of which the server must have the key.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientTls {
    /// Reads the directory of certificates, if there is one.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`]: a file is missing or wrong, the name is none, or no authority is named.
    pub fn open(terms: &ClientTerms) -> Result<Self> {
        let invalid = |text: String| Error::new(ErrorKind::InvalidInput, text);
        let name = ServerName::try_from(terms.name.clone());
        let name = name.map_err(|_| invalid(format!("a certificate cannot be for '{}': name another by tls-hostname=NAME", terms.name)))?;
        let directory = terms.certificates.as_deref().map(Directory::of_client);
        let verifier: Arc<dyn ServerCertVerifier> = match (terms.verifies_peer, directory) {
            (false, _) => Arc::new(Anyone(provider())),
            (true, Some(directory)) => {
                let verifier = WebPkiServerVerifier::builder_with_provider(directory.authorities()?, provider()).build();
                verifier.map_err(|error| directory.wrong(CA, error))?
            }
            (true, None) => return Err(invalid("the certificate of the CA is not named: add tls-certificates=DIR".into())),
        };
        let unusable = |error: rustls::Error| Error::new(ErrorKind::Unsupported, format!("TLS cannot be used: {error}"));
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(unusable)?;
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let identity = directory.map(|directory| Ok((directory, directory.identity("client")?))).transpose()?;
        let mut config = match identity {
            Some((directory, Some((chain, key)))) => {
                builder.with_client_auth_cert(chain, key).map_err(|error| directory.unfit("client", &error))?
            }
            _ => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config), name })
    }

    /// Begins TLS on `socket`.
    ///
    /// # Errors
    /// The server breaks the protocol, has another certificate, or does not answer by the deadline.
    pub fn connect(&self, socket: OwnedFd, deadline: Instant) -> std::result::Result<Socket, Failure> {
        let mut tls = rustls::Connection::from(ClientConnection::new(Arc::clone(&self.config), self.name.clone())?);
        complete(&socket, &mut tls, deadline)?;
        Ok(tunnel::begin(socket, tls, Arc::default())?)
    }
}
