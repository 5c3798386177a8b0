//! Addresses that a server listens on.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

#[cfg(feature = "tls")]
use super::policy::ListenerTls;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Access, Socket, connect_unix, listen_unix};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::wire::constants::DEFAULT_PORT;

/// First descriptor of socket activation (`sd_listen_fds(3)`).
const LISTEN_FDS_START: RawFd = 3;
/// Most descriptors that are taken over.
const LISTEN_FDS_MAX: i32 = 64;

/// How long it takes a server that has the path to say so.
const STALE_PATIENCE: Duration = Duration::from_secs(2);
/// Characters of the path of a socket that a URI has percent-encoded: all but slashes and those that RFC 3986 leaves as they are.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The descriptors that were passed have their owner: a second one would close files of others.
static TAKEN: AtomicBool = AtomicBool::new(false);

enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A socket that clients connect to: one of an address ([`Listener::parse`]), or one of the caller.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// use volfork::serve::Listener;
///
/// let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
/// let port = socket.local_addr().expect("a bound socket").port();
/// assert_eq!(Listener::try_from(socket)?.uri(), format!("nbd://127.0.0.1:{port}"));
/// # Ok(())
/// # }
/// ```
pub struct Listener {
    kind: Kind,
    /// Removed when the listener goes, unless it was passed on.
    path: Option<PathBuf>,
    passed_on: AtomicBool,
    #[cfg(feature = "tls")]
    tls: ListenerTls,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("uri", &self.uri()).finish_non_exhaustive()
    }
}

/// A listening socket on its way to another process, which is to serve in the place of this one ([`NbdServer::pass_on`]). Clients that
/// connect meanwhile wait in it.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::serve::{Listener, NbdServer, NbdServerOptions};
///
/// let path = directory.path().join("nbd.sock");
/// let listener = Listener::parse(&format!("unix:{}", path.display()))?;
/// let server = NbdServer::start(std::sync::Arc::new(store.clone()), vec![listener], NbdServerOptions::default())?;
/// // Descriptors travel through a unix socket (`SCM_RIGHTS`); here they stay in the process.
/// let passed = server.pass_on()?;
/// server.shutdown();
/// let listeners = passed.into_iter().map(Listener::try_from).collect::<volfork::Result<Vec<_>>>()?;
/// let server = NbdServer::start(std::sync::Arc::new(store), listeners, NbdServerOptions::default())?;
/// assert!(path.exists());
/// server.shutdown();
/// assert!(!path.exists());
/// # Ok(())
/// # }
/// ```
///
/// [`NbdServer::pass_on`]: super::NbdServer::pass_on
#[derive(Debug)]
pub struct PassedSocket {
    /// The socket.
    pub socket: OwnedFd,
    /// Its path, which is removed when the listener that takes it goes. `None`: it has none, or its path stays.
    pub path: Option<PathBuf>,
}

impl Listener {
    /// Listens on `unix:PATH` or `HOST:PORT` (port 0: any free one; without a port: 10809). Only the user of this process connects to
    /// the socket at a path, which may have any length.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for another form, [`ErrorKind::Busy`] if another process listens there, an I/O error.
    pub fn parse(address: &str) -> Result<Self> {
        Self::parse_for(address, Access::Owner)
    }

    /// As [`Listener::parse`]; `access` says who connects to the socket at a path.
    ///
    /// # Errors
    /// As there.
    pub fn parse_for(address: &str, access: Access) -> Result<Self> {
        match address.strip_prefix("unix:") {
            Some(path) if path.is_empty() || path.ends_with('/') => {
                return Err(Error::new(ErrorKind::InvalidInput, format!("'{address}' names no socket: use unix:PATH")));
            }
            Some(path) => return Self::unix(Path::new(path), access),
            None => {}
        }
        let with_port = if address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
            address.to_owned()
        } else if address.is_empty() || address.contains('/') {
            return Err(Error::new(ErrorKind::InvalidInput, format!("'{address}' is no address: use unix:PATH or HOST:PORT")));
        } else {
            format!("{address}:{DEFAULT_PORT}")
        };
        let listener = TcpListener::bind(&with_port).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                Error::new(ErrorKind::Busy, format!("somebody listens on {with_port} already: choose another port"))
            }
            _ => Error::io(format!("cannot listen on {with_port}"), error),
        })?;
        Self::of(Kind::Tcp(listener), None)
    }

    fn unix(path: &Path, access: Access) -> Result<Self> {
        let context = |error| Error::io(format!("cannot listen on {}", path.display()), error);
        if let Ok(found) = path.symlink_metadata() {
            if !found.file_type().is_socket() {
                // A file that is not a socket does not answer either, but this server must not remove it.
                let text = format!("{} is there already and no socket: choose another path", path.display());
                return Err(Error::new(ErrorKind::Exists, text));
            }
            match connect_unix(path, STALE_PATIENCE) {
                // No process listens: the socket was left behind.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(context)?,
                Err(error) if error.kind() != io::ErrorKind::TimedOut => return Err(context(error)),
                // It is there; or it was stopped, and its queue of clients is full.
                _ => {
                    let text = format!("somebody listens on {} already: stop it, or choose another path", path.display());
                    return Err(Error::new(ErrorKind::Busy, text));
                }
            }
        }
        let listener = listen_unix(path, access).map_err(context)?;
        Self::of(Kind::Unix(listener), Some(std::path::absolute(path).map_err(context)?))
    }

    fn of(kind: Kind, path: Option<PathBuf>) -> Result<Self> {
        let result = match &kind {
            Kind::Tcp(listener) => listener.set_nonblocking(true),
            Kind::Unix(listener) => listener.set_nonblocking(true),
        };
        result.map_err(|error| Error::io("cannot prepare a socket", error))?;
        Ok(Self {
            kind,
            path,
            passed_on: AtomicBool::new(false),
            #[cfg(feature = "tls")]
            tls: ListenerTls::Off,
        })
    }

    /// Whether its clients use TLS; without this, none does.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn with_tls(mut self, tls: ListenerTls) -> Self {
        self.tls = tls;
        self
    }

    #[cfg(feature = "tls")]
    pub(super) fn tls(&self) -> &ListenerTls {
        &self.tls
    }

    /// Whether it is a socket at a path, which only processes of this machine reach.
    pub fn is_unix(&self) -> bool {
        matches!(self.kind, Kind::Unix(_))
    }

    /// Whether other machines may reach it: all that is neither at a path nor at a loopback address.
    pub fn is_exposed(&self) -> bool {
        match &self.kind {
            Kind::Tcp(listener) => !listener.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback()),
            Kind::Unix(_) => false,
        }
    }

    /// The sockets that systemd (or another program that speaks its protocol) passed to this process: `LISTEN_PID`, `LISTEN_FDS`.
    /// They are given once in the life of a process: later calls answer none.
    ///
    /// # Errors
    /// A descriptor is not a listening socket.
    pub fn from_environment() -> Result<Vec<Self>> {
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Ok(Vec::new());
        }
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
        if number("LISTEN_PID") != i32::try_from(std::process::id()).ok() {
            return Ok(Vec::new());
        }
        let count = number("LISTEN_FDS").unwrap_or(0).clamp(0, LISTEN_FDS_MAX);
        (LISTEN_FDS_START..LISTEN_FDS_START + count).map(Self::inherited).collect()
    }

    fn inherited(fd: RawFd) -> Result<Self> {
        let context = |error: rustix::io::Errno| Error::io(format!("descriptor {fd} was passed, but is no socket"), error.into());
        // SAFETY: the environment says that this descriptor was passed to this process for this use; it is only looked at.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        let address = rustix::net::getsockname(borrowed).map_err(context)?;
        rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC).map_err(context)?;
        // SAFETY: as above; nobody else in this process owns it, and `TAKEN` lets it be taken once.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        Self::of_family(owned, address.address_family())
    }

    fn of_family(socket: OwnedFd, family: rustix::net::AddressFamily) -> Result<Self> {
        match family {
            rustix::net::AddressFamily::UNIX => Self::of(Kind::Unix(socket.into()), None),
            _ => Self::of(Kind::Tcp(socket.into()), None),
        }
    }

    /// The address as an NBD URI without an export name, with the port that was really taken; `nbds` where TLS is required.
    pub fn uri(&self) -> String {
        #[cfg(feature = "tls")]
        let scheme = if matches!(self.tls, ListenerTls::Required(_)) { "nbds" } else { "nbd" };
        #[cfg(not(feature = "tls"))]
        let scheme = "nbd";
        match &self.kind {
            Kind::Tcp(listener) => listener.local_addr().map(|address| format!("{scheme}://{address}")).unwrap_or_default(),
            Kind::Unix(listener) => {
                let address = listener.local_addr().ok();
                let path = self.path.clone().or_else(|| address.and_then(|address| Some(address.as_pathname()?.to_path_buf())));
                let path = path.unwrap_or_default();
                format!("{scheme}+unix:///?socket={}", percent_encode(path.as_os_str().as_bytes(), ENCODED))
            }
        }
    }

    /// The same socket for another process. Its path stays from now on when this listener goes.
    ///
    /// # Errors
    /// There is no descriptor for it.
    pub(super) fn pass_on(&self) -> Result<PassedSocket> {
        let socket = self.as_fd().try_clone_to_owned().map_err(|error| Error::io("cannot pass a socket on", error))?;
        self.passed_on.store(true, Ordering::SeqCst);
        Ok(PassedSocket { socket, path: self.path.clone() })
    }

    /// Whether another process goes on with the socket.
    pub(super) fn is_passed_on(&self) -> bool {
        self.passed_on.load(Ordering::SeqCst)
    }

    /// Takes a client, if one waits.
    pub(super) fn accept(&self) -> io::Result<Socket> {
        match &self.kind {
            // A client whose machine has gone does not keep its place, nor what it has open.
            Kind::Tcp(listener) => Socket::tcp(listener.accept()?.0),
            Kind::Unix(listener) => Ok(Socket::Unix(listener.accept()?.0)),
        }
    }
}

/// Listens on a socket of the caller, which becomes non-blocking.
impl TryFrom<TcpListener> for Listener {
    type Error = Error;

    fn try_from(socket: TcpListener) -> Result<Self> {
        Self::of(Kind::Tcp(socket), None)
    }
}

/// Listens on a socket of the caller, which becomes non-blocking. The path stays when the listener is dropped.
impl TryFrom<UnixListener> for Listener {
    type Error = Error;

    fn try_from(socket: UnixListener) -> Result<Self> {
        Self::of(Kind::Unix(socket), None)
    }
}

/// Listens on a listening socket of the caller, of TCP or at a path.
impl TryFrom<OwnedFd> for Listener {
    type Error = Error;

    fn try_from(socket: OwnedFd) -> Result<Self> {
        let context = |error: rustix::io::Errno| Error::io("the descriptor is no socket", error.into());
        let family = rustix::net::getsockname(&socket).map_err(context)?.address_family();
        Self::of_family(socket, family)
    }
}

/// Listens on a socket that another process passed on.
impl TryFrom<PassedSocket> for Listener {
    type Error = Error;

    fn try_from(passed: PassedSocket) -> Result<Self> {
        let mut listener = Self::try_from(passed.socket)?;
        listener.path = passed.path;
        Ok(listener)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Tcp(listener) => listener.as_fd(),
            Kind::Unix(listener) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = self.path.as_ref().filter(|_| !self.is_passed_on()) {
            let _ = std::fs::remove_file(path);
        }
    }
}
