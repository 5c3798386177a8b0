//! Which listeners have TLS, and which addresses are not served without.

use volfork::ErrorKind;
use volfork::serve::{Listener, ListenerTls};
use volfork::tls::ServerTls;

use crate::cli::tls::{TlsArguments, TlsWord};
use crate::failure::{Failure, Result};

/// The security of the listeners of a process.
#[derive(Debug)]
pub struct Guard {
    tcp: ListenerTls,
    unix: ListenerTls,
    /// Listeners that other machines reach are served.
    exposes: bool,
}

impl Guard {
    /// Reads the certificates that the arguments name.
    pub fn of(arguments: &TlsArguments) -> Result<Self> {
        let TlsArguments { tls, tls_unix, tls_certificates, tls_verify_peer, insecure } = arguments;
        let words = [*tls, *tls_unix];
        let tls = match tls_certificates {
            Some(directory) if *tls_verify_peer => Some(ServerTls::open_verifying_peers(directory)?),
            Some(directory) => Some(ServerTls::open(directory)?),
            None => None,
        };
        let of_word = |word| match (word, &tls) {
            (TlsWord::Off, _) => Ok(ListenerTls::Off),
            (TlsWord::On, Some(tls)) => Ok(ListenerTls::On(tls.clone())),
            (TlsWord::Required, Some(tls)) => Ok(ListenerTls::Required(tls.clone())),
            (TlsWord::On | TlsWord::Required, None) => {
                Err(Failure::new(ErrorKind::InvalidInput, "TLS needs a certificate: name its directory by --tls-certificates"))
            }
        };
        let [tcp, unix] = words.map(of_word);
        let (tcp, unix) = (tcp?, unix?);
        if tls.is_some() && words == [TlsWord::Off; 2] {
            let text = "certificates without TLS are of no use: add --tls required, or --tls-unix required for unix sockets";
            return Err(Failure::new(ErrorKind::InvalidInput, text));
        }
        let is_guarded = matches!(&tcp, ListenerTls::Required(tls) if tls.verifies_peers());
        Ok(Self { tcp, unix, exposes: *insecure || is_guarded })
    }

    /// Whether listeners that other machines reach are served.
    pub fn exposes(&self) -> bool {
        self.exposes
    }

    /// A listener with the TLS of its kind. Refuses one that other machines reach, if everybody there could use it.
    pub fn over(&self, listener: Listener) -> Result<Listener> {
        if listener.is_exposed() && !self.exposes {
            return Err(exposed(&listener.uri()));
        }
        let tls = if listener.is_unix() { &self.unix } else { &self.tcp };
        Ok(listener.with_tls(tls.clone()))
    }
}

/// The refusal of a listener that other machines reach.
pub fn exposed(uri: &str) -> Failure {
    let text = format!(
        "other machines reach {uri}: it needs --tls required, --tls-certificates DIR and --tls-verify-peer, or --insecure, with which \
         everybody there reads and writes all volumes"
    );
    Failure::new(ErrorKind::InvalidInput, text)
}
