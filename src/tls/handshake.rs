//! The handshake, on the thread of the connection.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::{Shutdown, shutdown};
use rustls::{AlertDescription, CertificateError, Connection};

use super::socket::{Wire, unless_it_waits};
use crate::sync::poll;
use crate::sync::time::Instant;

/// Why there is no TLS with a peer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The socket has ended, or the time is over.
    Io(io::Error),
    /// TLS refuses the peer, or the peer refuses.
    Refused(Refused),
}

/// Why TLS with a peer has ended, or never began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The end of a sentence about the peer.
    pub text: String,
    /// TLS or the peer refuses, and would again. Otherwise the connection was lost.
    pub is_final: bool,
}

impl Refused {
    /// The connection was lost, as one without TLS may be.
    pub fn lost(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_final: false }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refused {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustls::Error> for Failure {
    fn from(error: rustls::Error) -> Self {
        Self::Refused(Refused::from(&error))
    }
}

impl From<&rustls::Error> for Refused {
    fn from(error: &rustls::Error) -> Self {
        let text = match error {
            rustls::Error::InvalidCertificate(why) => of_certificate(why),
            rustls::Error::NoCertificatesPresented => "the peer shows no certificate".into(),
            rustls::Error::AlertReceived(alert) => of_alert(*alert),
            rustls::Error::InvalidMessage(_) | rustls::Error::DecryptError | rustls::Error::InappropriateMessage { .. } => {
                format!("what comes from the peer is no TLS ({error})")
            }
            other => format!("TLS fails: {other}"),
        };
        Self { text, is_final: true }
    }
}

fn of_certificate(error: &CertificateError) -> String {
    let what = match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => "comes from no authority in ca-cert.pem",
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "is not valid yet: look at the clocks",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            return format!("the peer's certificate is for another name ({error}): name it by tls-hostname=NAME");
        }
        other => return format!("the peer's certificate is refused ({other})"),
    };
    format!("the peer's certificate {what}")
}

fn of_alert(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            "the peer asks for a certificate of this client: its directory needs client-cert.pem and client-key.pem".into()
        }
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied
        | AlertDescription::DecryptError => format!("the peer refuses our certificate ({alert:?})"),
        other => format!("the peer ends TLS ({other:?})"),
    }
}

/// Waits until the socket has one of `events`.
fn wait(socket: &OwnedFd, events: i16, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left == Duration::ZERO {
        return Err(io::ErrorKind::TimedOut.into());
    }
    poll(&mut [libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 }], Some(left)).map(drop)
}

/// Completes the handshake by a deadline, however slowly the peer sends.
///
/// # Errors
/// The socket ends, the time is over, or one of both refuses.
pub(super) fn complete(socket: &OwnedFd, tls: &mut Connection, deadline: Instant) -> Result<(), Failure> {
    let mut wire = Wire(socket.as_fd());
    while tls.is_handshaking() || tls.wants_write() {
        if tls.wants_write() {
            if unless_it_waits(tls.write_tls(&mut wire))?.is_none() {
                wait(socket, libc::POLLOUT, deadline)?;
            }
            continue;
        }
        match unless_it_waits(tls.read_tls(&mut wire))? {
            None => wait(socket, libc::POLLIN, deadline)?,
            Some(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Some(_) => {
                if let Err(error) = tls.process_new_packets() {
                    // The peer is told why, if it listens.
                    let _ = tls.write_tls(&mut wire);
                    let _ = shutdown(socket, Shutdown::Write);
                    return Err(error.into());
                }
            }
        }
        if deadline <= Instant::now() {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
    }
    Ok(())
}
