//! Addresses: `nbd://host[:port]/export`, `nbd+unix:///export?socket=path`, and the same with TLS: `nbds`, `nbds+unix`.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::query::{path_of, value_of};
use crate::io::{Refusal, Socket, connect_unix};
use crate::source::threads;
use crate::source::uri::{Uri, with_export};
use crate::source::{SourceError, SourceErrorKind};
use crate::sync::mpsc::channel;
#[cfg(feature = "tls")]
use crate::tls::ClientTerms;
use crate::wire::constants::DEFAULT_PORT;
use crate::wire::{deadline_after, time_left};

/// How the parameters of TLS begin.
const TLS_PARAMETERS: &str = "tls-";
/// The forms of an address.
const FORMS: &str = "nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH";
/// The same with TLS.
const SECURE_FORMS: &str =
    "nbds://HOST[:PORT]/EXPORT?tls-certificates=DIR or nbds+unix:///EXPORT?socket=PATH&tls-certificates=DIR, where DIR has ca-cert.pem";

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Tcp(String, u16),
    Unix(PathBuf),
}

/// A server and one of its exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub place: Place,
    pub export: String,
    /// What is wanted of TLS, if it is wanted.
    #[cfg(feature = "tls")]
    pub tls: Option<ClientTerms>,
}

/// The path of a socket in the query of a URI.
fn socket_path(query: &str) -> Option<PathBuf> {
    value_of(query, "socket").filter(|path| !path.is_empty()).map(path_of)
}

impl Address {
    /// # Errors
    /// The address is wrong; the message says how, and gives the valid forms.
    pub fn parse(uri: &str) -> Result<Self, SourceError> {
        // An address that wants TLS is not told to do without.
        let wants_tls = uri.starts_with("nbds") || uri.contains(TLS_PARAMETERS);
        let forms = if wants_tls { SECURE_FORMS } else { FORMS };
        let wrong = |what: &str| SourceError { kind: SourceErrorKind::Invalid, message: format!("'{uri}' {what}: use {forms}") };
        let parts = Uri::parse(uri).ok_or_else(|| wrong("is no address"))?;
        let export = percent_decode_str(parts.path.strip_prefix('/').unwrap_or_default());
        let export = export.decode_utf8().map_err(|_| wrong("has an export whose name is no UTF-8"))?.into_owned();
        let (scheme, is_secure) = match parts.scheme {
            "nbds" => ("nbd", true),
            "nbds+unix" => ("nbd+unix", true),
            other => (other, false),
        };
        if is_secure && cfg!(not(feature = "tls")) {
            let message = format!("'{uri}' wants TLS, which this program was built without (feature `tls`)");
            return Err(SourceError { kind: SourceErrorKind::Invalid, message });
        }
        // A user who names certificates does not want clear text.
        if !is_secure && parts.query.is_some_and(|query| query.split('&').any(|pair| pair.starts_with(TLS_PARAMETERS))) {
            return Err(wrong("has parameters of TLS and a scheme without it"));
        }
        let place = match scheme {
            "nbd" => {
                let (host, port) = parts.host().map_err(wrong)?;
                if host.is_empty() {
                    return Err(wrong("names no host"));
                }
                Place::Tcp(host.to_owned(), port.unwrap_or(DEFAULT_PORT))
            }
            "nbd+unix" => Place::Unix(parts.query.and_then(socket_path).ok_or_else(|| wrong("names no socket"))?),
            _ => return Err(wrong("is no NBD address")),
        };
        #[cfg(feature = "tls")]
        let tls = {
            let host = if let Place::Tcp(host, _) = &place { Some(host.as_str()) } else { None };
            is_secure.then(|| super::query::terms(parts.query, host)).transpose().map_err(wrong)?
        };
        Ok(Self {
            place,
            export,
            #[cfg(feature = "tls")]
            tls,
        })
    }

    /// The address of another export of the same server.
    ///
    /// # Errors
    /// As [`Address::parse`].
    pub fn with_export(uri: &str, export: &str) -> Result<String, SourceError> {
        let wrong = || SourceError { kind: SourceErrorKind::Invalid, message: format!("'{uri}' is no address") };
        with_export(uri, export).ok_or_else(wrong)
    }

    /// # Errors
    /// Nobody answers within the time.
    pub fn connect(&self, timeout: Duration) -> io::Result<Socket> {
        match &self.place {
            Place::Unix(path) => connect_unix(path, timeout).map(Socket::Unix),
            Place::Tcp(host, port) => {
                let deadline = deadline_after(timeout);
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
                for address in resolve(host, *port, timeout)? {
                    match TcpStream::connect_timeout(&address, time_left(deadline)?) {
                        Ok(stream) => return Socket::tcp(stream),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }
}

/// Resolves a host name, within `timeout`.
fn resolve(host: &str, port: u16, timeout: Duration) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let name = host.to_owned();
    look_up(host, timeout, move || Ok((name.as_str(), port).to_socket_addrs()?.collect()))
}

/// Calls the system's resolver on another thread, because the resolver has no timeout: a call that hangs costs one thread.
fn look_up<T: Send + 'static>(host: &str, timeout: Duration, ask: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (sender, receiver) = channel();
    // The receiver is gone if the look-up took longer than the timeout.
    let job = Box::new(move || drop(sender.send(ask())));
    if let Err(refused) = threads::names().run(host, job) {
        return Err(match refused.why {
            Refusal::NoThread => io::Error::other("no thread can be had that resolves the host's name"),
            Refusal::Crowded | Refusal::Closed => {
                io::Error::other("earlier look-ups of this host's name have not ended: check the name server")
            }
        });
    }
    receiver.recv_timeout(timeout).unwrap_or_else(|_| Err(io::Error::other("the host's name is not resolved in time")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_a_silent_resolver_is_bounded() {
        let (release, wait) = channel::<()>();
        let unanswered = look_up("silent", Duration::from_millis(20), move || {
            // Until the test is over.
            let _ = wait.recv();
            Ok(1)
        });
        let error = unanswered.unwrap_err();
        assert!(error.to_string().contains("not resolved in time"), "{error}");
        assert_eq!(look_up("other", Duration::from_secs(30), || Ok(2)).unwrap(), 2);
        drop(release);
        // A number is no name.
        assert_eq!(resolve("127.0.0.1", 7, Duration::ZERO).unwrap(), ["127.0.0.1:7".parse().unwrap()]);
        assert_eq!(resolve("::1", 7, Duration::ZERO).unwrap(), ["[::1]:7".parse().unwrap()]);
    }

    #[test]
    fn addresses_are_read_as_other_clients_read_them() {
        let at = |place: Place, export: &str| Address {
            place,
            export: export.into(),
            #[cfg(feature = "tls")]
            tls: None,
        };
        let tcp = |host: &str, port, export: &str| at(Place::Tcp(host.into(), port), export);
        assert_eq!(Address::parse("nbd://host/a"), Ok(tcp("host", 10809, "a")));
        assert_eq!(Address::parse("nbd://127.0.0.1:7/v%40s"), Ok(tcp("127.0.0.1", 7, "v@s")));
        assert_eq!(Address::parse("nbd://127.0.0.1:7/v@s"), Ok(tcp("127.0.0.1", 7, "v@s")));
        assert_eq!(Address::parse("nbd://[::1]:7"), Ok(tcp("::1", 7, "")));
        let unix = at(Place::Unix("/run/x.sock".into()), "v");
        assert_eq!(Address::parse("nbd+unix:///v?socket=/run/x.sock"), Ok(unix));
        for (uri, expected) in [
            ("nbd://127.0.0.1:7/v", "nbd://127.0.0.1:7/v@.lease-3"),
            ("nbd://h", "nbd://h/v@.lease-3"),
            ("nbd+unix:///v?socket=/run/x.sock", "nbd+unix:///v@.lease-3?socket=/run/x.sock"),
        ] {
            let other = Address::with_export(uri, "v@.lease-3").unwrap();
            assert_eq!(other, expected);
            let (before, after) = (Address::parse(uri).unwrap(), Address::parse(&other).unwrap());
            assert_eq!((after.place, after.export.as_str()), (before.place, "v@.lease-3"));
        }
        for export in ["größe", "a/b?c#d%20e", ".."] {
            let other = Address::with_export("nbd://h/v", export).unwrap();
            assert_eq!(Address::parse(&other).unwrap().export, export);
        }
        let odd = at(Place::Unix("/a b/+&%41#ä".into()), "v");
        assert_eq!(Address::parse("nbd+unix:///v?tls=no&socket=/a%20b/+%26%2541%23%C3%A4"), Ok(odd));
        for wrong in [
            "",
            "host",
            "nbd://",
            "nbd+unix:///x",
            "nbd+unix:///x?socket=",
            "nbd+unix:///x?sockets=/y",
            "nbd://h/%ff",
            "nbd://h:x/v",
            "nbds://h/x",
            "nbds+unix:///x?tls-certificates=/pki",
            "nbds://h/x?tls-certificates=/pki&tls-verify-peer=maybe",
            "nbds://h/x?tls-certificates=/pki&tls-psk-file=/keys",
            "nbds://h/x?tls-certificates=",
            "nbd://h/x?tls-certificates=/pki",
            "nbd+unix:///x?socket=/s&tls-verify-peer=false",
            "http://h/x",
        ] {
            assert_eq!(Address::parse(wrong).unwrap_err().kind, SourceErrorKind::Invalid, "{wrong}");
        }
    }
}
