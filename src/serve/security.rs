//! TLS of one connection: whether its client needs it, and how it is begun.

#[cfg(feature = "tls")]
use std::io;
#[cfg(feature = "tls")]
use std::os::fd::AsFd;
use std::sync::Arc;
#[cfg(feature = "tls")]
use std::time::Duration;

use super::listener::Listener;
#[cfg(feature = "tls")]
use super::policy::ListenerTls;
#[cfg(feature = "tls")]
use crate::io::Socket;
use crate::sync::atomic::AtomicBool;
#[cfg(feature = "tls")]
use crate::sync::time::Instant;
#[cfg(feature = "tls")]
use crate::tls::{Failure, Fate};

/// How long the end of a connection waits until its client has the last bytes.
#[cfg(feature = "tls")]
const LAST_BYTES_PATIENCE: Duration = Duration::from_secs(10);

/// The security of one connection.
pub struct Security {
    #[cfg(feature = "tls")]
    tls: ListenerTls,
    /// Set when the connection is to end at once.
    #[cfg(feature = "tls")]
    cut: Arc<AtomicBool>,
    #[cfg(feature = "tls")]
    begun: Option<Arc<Fate>>,
    /// The name in the client's certificate.
    pub certificate: Option<String>,
}

/// What is answered to a client that asks for TLS.
pub enum Answer {
    /// It may begin.
    #[cfg(feature = "tls")]
    Begin,
    /// It has begun already.
    #[cfg(feature = "tls")]
    Twice,
    /// The listener has none.
    #[cfg(feature = "tls")]
    NotHere,
    /// This program has none.
    #[cfg(not(feature = "tls"))]
    Unknown,
}

#[cfg(feature = "tls")]
impl Security {
    /// That of a client of a listener. `cut` is set when its stream is cut off.
    pub fn of(listener: &Listener, cut: &Arc<AtomicBool>) -> Self {
        Self { tls: listener.tls().clone(), cut: Arc::clone(cut), begun: None, certificate: None }
    }

    /// Whether TLS has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.is_some()
    }

    /// Whether the client may see exports.
    pub fn is_enough(&self) -> bool {
        self.has_begun() || !matches!(self.tls, ListenerTls::Required(_))
    }

    /// The answer to a client that asks for TLS.
    pub fn asked(&self) -> Answer {
        match &self.tls {
            _ if self.has_begun() => Answer::Twice,
            ListenerTls::Off => Answer::NotHere,
            ListenerTls::On(_) | ListenerTls::Required(_) => Answer::Begin,
        }
    }

    /// Begins TLS with a client that was told that it may. Answers the socket that the connection goes on with.
    ///
    /// # Errors
    /// The client breaks the protocol, is not taken, or does not answer by the deadline.
    pub fn begin(&mut self, socket: &Socket, deadline: Instant) -> io::Result<Socket> {
        let (ListenerTls::On(tls) | ListenerTls::Required(tls)) = &self.tls else { return Err(io::ErrorKind::Unsupported.into()) };
        let fate = Arc::new(Fate::new(Arc::clone(&self.cut)));
        let accepted = tls.accept(socket.as_fd().try_clone_to_owned()?, deadline, Arc::clone(&fate));
        let (socket, certificate) = accepted.map_err(|failure| match failure {
            Failure::Io(error) => error,
            Failure::Refused(why) => io::Error::other(why),
        })?;
        (self.begun, self.certificate) = (Some(fate), certificate);
        Ok(socket)
    }

    /// Waits until the client has the last bytes, not without end. Before, the connection's own end of the socket is closed or shut.
    pub fn end(&self) {
        if let Some(fate) = &self.begun {
            fate.wait(LAST_BYTES_PATIENCE);
        }
    }
}

#[cfg(not(feature = "tls"))]
impl Security {
    pub fn of(_: &Listener, _: &Arc<AtomicBool>) -> Self {
        Self { certificate: None }
    }

    pub fn has_begun(&self) -> bool {
        false
    }

    pub fn is_enough(&self) -> bool {
        true
    }

    pub fn asked(&self) -> Answer {
        Answer::Unknown
    }

    pub fn end(&self) {}
}
