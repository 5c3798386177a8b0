//! The configuration of a server.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ServerConfig, ServerConnection};

use super::fate::Fate;
use super::files::{CA, Directory, provider};
use super::handshake::{Failure, complete};
use super::name::name_of;
use super::tunnel;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Socket;
use crate::sync::time::Instant;

/// The certificate and key of a server, and which clients it takes.
///
/// ```no_run
/// # fn main() -> volfork::Result<()> {
/// # let store = volfork::Store::open("store", volfork::StoreOptions::default())?;
/// use volfork::serve::{Listener, ListenerTls, NbdServer, NbdServerOptions};
/// use volfork::tls::ServerTls;
///
/// // The directory has ca-cert.pem, server-cert.pem and server-key.pem. Clients need a certificate that the CA has signed.
/// let tls = ServerTls::open_verifying_peers("/etc/pki/volfork")?;
/// let listener = Listener::parse("0.0.0.0:10809")?.with_tls(ListenerTls::Required(tls));
/// assert!(listener.uri().starts_with("nbds://"));
/// let server = NbdServer::start(std::sync::Arc::new(store), vec![listener], NbdServerOptions::default())?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    verifies_peers: bool,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("verifies_peers", &self.verifies_peers).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads `server-cert.pem` and `server-key.pem` of a directory. Every client is taken, with or without a certificate of its own.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`]: a file is missing or wrong; the text says which one and how.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(directory.as_ref(), false)
    }

    /// As [`ServerTls::open`]; only clients with a certificate of an authority in `ca-cert.pem` are taken.
    ///
    /// # Errors
    /// As there.
    pub fn open_verifying_peers(directory: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(directory.as_ref(), true)
    }

    fn open_with(path: &Path, verifies_peers: bool) -> Result<Self> {
        let directory = Directory::of_server(path);
        let (chain, key) = directory.identity("server")?.ok_or_else(|| directory.wrong("server-cert.pem", "is missing"))?;
        let unusable = |error: rustls::Error| Error::new(ErrorKind::Unsupported, format!("TLS cannot be used: {error}"));
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(unusable)?;
        let builder = match verifies_peers {
            true => {
                let verifier = WebPkiClientVerifier::builder_with_provider(directory.authorities()?, provider()).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| directory.wrong(CA, error))?)
            }
            false => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| directory.unfit("server", &error))?;
        // Connections of NBD are few and long, so none is resumed: each shows its certificate.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { config: Arc::new(config), verifies_peers })
    }

    /// Whether clients need a certificate.
    pub fn verifies_peers(&self) -> bool {
        self.verifies_peers
    }

    /// Agrees with a client that begins TLS on `socket`. `fate` learns how the connection ends. Also answers the name in the client's
    /// certificate, if it was asked for one.
    ///
    /// # Errors
    /// The client breaks the protocol, has no certificate that is taken, or does not answer by the deadline.
    #[cfg(feature = "serve")]
    pub(crate) fn accept(
        &self,
        socket: OwnedFd,
        deadline: Instant,
        fate: Arc<Fate>,
    ) -> std::result::Result<(Socket, Option<String>), Failure> {
        let mut tls = rustls::Connection::from(ServerConnection::new(Arc::clone(&self.config))?);
        complete(&socket, &mut tls, deadline)?;
        let name = tls.peer_certificates().and_then(|chain| name_of(chain.first()?));
        Ok((tunnel::begin(socket, tls, fate)?, name))
    }
}
