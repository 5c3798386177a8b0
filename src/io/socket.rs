//! Sockets: paths of any length, modes, connections, and peers whose machine has gone.

use std::fs::Permissions;
use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
#[cfg(feature = "tls")]
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, open, renameat_with};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::sockopt::{
    Timeout, set_socket_keepalive, set_socket_timeout, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl, set_tcp_user_timeout,
};
use rustix::net::{
    AddressFamily, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, send, shutdown, socket_with,
};

use super::Access;

/// Longest path of a socket that the kernel takes.
const PATH_BYTES_MAX: usize = 107;
/// Clients that wait to be taken; the kernel has a limit of its own.
const BACKLOG: i32 = 4096;
/// The kernel does not take longer times.
const PATIENCE_MAX: Duration = Duration::from_secs(365 * 86_400);

/// A peer is asked whether it is there after this silence,
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// then as often,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// and is given up after so many questions,
const KEEPALIVE_COUNT: u32 = 6;
/// or when it has confirmed nothing of what was sent, or taken nothing, for so long.
const UNCONFIRMED_MILLIS: u32 = 45_000;

/// Lets a connection end within a minute when the machine of its peer has gone, whether or not bytes are on their way.
///
/// # Errors
/// What the kernel says.
fn keep_alive(socket: impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    set_socket_keepalive(socket, true)?;
    set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    set_tcp_keepcnt(socket, KEEPALIVE_COUNT)?;
    Ok(set_tcp_user_timeout(socket, UNCONFIRMED_MILLIS)?)
}

/// A short path to an open file (`/proc/self/fd`). The descriptor must stay open while the path is used.
fn by_descriptor(descriptor: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

fn is_short(path: &Path) -> bool {
    path.as_os_str().len() <= PATH_BYTES_MAX
}

/// Listens at `path`, of whatever length, for those whom `access` names.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] if something has the path; what the kernel says.
pub fn listen_unix(path: &Path, access: Access) -> io::Result<UnixListener> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let mode = Permissions::from_mode(access.socket_mode());
    // Nobody can connect before it listens, and so none before it has its mode.
    let ready = |at: &Path| {
        std::fs::set_permissions(at, mode.clone())?;
        io::Result::Ok(listen(&socket, BACKLOG)?)
    };
    if is_short(path) {
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        ready(path)?;
        return Ok(socket.into());
    }
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // The name alone may be too long, so it comes afterwards.
    let begun = by_descriptor(&directory).join(format!(".{}-{}.sock", std::process::id(), socket.as_raw_fd()));
    bind(&socket, &SocketAddrUnix::new(&begun)?)?;
    let named = ready(&begun).and_then(|()| {
        match renameat_with(CWD, &begun, &directory, name, RenameFlags::NOREPLACE) {
            // A file system that cannot tell.
            Err(Errno::INVAL | Errno::NOSYS) if path.symlink_metadata().is_err() => std::fs::rename(&begun, path),
            Err(Errno::EXIST) => Err(io::ErrorKind::AddrInUse.into()),
            renamed => Ok(renamed?),
        }
    });
    if let Err(error) = named {
        // The first error says more than one of this.
        let _ = std::fs::remove_file(&begun);
        return Err(error);
    }
    Ok(socket.into())
}

/// Connects to the listener at `path`, of whatever length. A listener that takes no clients is waited for until the queue of those that
/// wait for it has room, at most so long.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`], and what the kernel says.
pub fn connect_unix(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(timeout.min(PATIENCE_MAX)))?;
    let connected = if is_short(path) {
        connect(&socket, &SocketAddrUnix::new(path)?)
    } else {
        let found = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        connect(&socket, &SocketAddrUnix::new(by_descriptor(&found))?)
    };
    match connected {
        Err(Errno::AGAIN) => Err(io::ErrorKind::TimedOut.into()),
        connected => Ok(connected.map(|()| UnixStream::from(socket))?),
    }
}

/// A connected socket. Bytes for a peer that has left are an error and never SIGPIPE, which would end a process that does not expect it.
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Its other end is in this process, which knows why it was closed.
    #[cfg(feature = "tls")]
    Pair(UnixStream, Arc<dyn Outcome>),
}

/// Why the other end of a socket was closed.
#[cfg(feature = "tls")]
pub trait Outcome: Send + Sync {
    /// Whether it is the end of the bytes.
    ///
    /// # Errors
    /// It is none, but this.
    fn look(&self) -> io::Result<()>;
}

/// The reason why a transfer fails: the socket only knows that the other end is gone.
#[cfg(feature = "tls")]
fn reason(outcome: &dyn Outcome, error: io::Error) -> io::Error {
    match outcome.look() {
        Err(reason) if error.kind() != io::ErrorKind::WouldBlock => reason,
        _ => error,
    }
}

impl Socket {
    /// A connection that sends at once, and ends when the machine of its peer has gone.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        // A peer is asked for also while no request is under way.
        keep_alive(&stream)?;
        Ok(Self::Tcp(stream))
    }

    /// Receives what has come, at most a buffer full; 0 at the end.
    ///
    /// # Errors
    /// As `read` of a socket.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => crate::sync::recv(stream, buffer),
            Self::Unix(stream) => crate::sync::recv(stream, buffer),
            #[cfg(feature = "tls")]
            Self::Pair(stream, outcome) => match crate::sync::recv(stream, buffer) {
                Ok(0) => outcome.look().map(|()| 0),
                received => received.map_err(|error| reason(&**outcome, error)),
            },
        }
    }

    /// Sends what the socket has room for.
    ///
    /// # Errors
    /// As `write` of a socket.
    pub fn send(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => crate::sync::send(stream, buffers),
            Self::Unix(stream) => crate::sync::send(stream, buffers),
            #[cfg(feature = "tls")]
            Self::Pair(stream, outcome) => crate::sync::send(stream, buffers).map_err(|error| reason(&**outcome, error)),
        }
    }

    /// Sends as many bytes as there is room for without waiting, also on a blocking socket; the rest is dropped.
    pub fn send_now(&self, bytes: &[u8]) {
        let _ = send(self, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }

    /// Blocking, and each transfer (not each message) limited to `patience`, which is not zero. `None`: not blocking at all.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        let limit = patience.map(|patience| patience.min(PATIENCE_MAX));
        ioctl_fionbio(self, patience.is_none())?;
        set_socket_timeout(self, Timeout::Recv, limit)?;
        Ok(set_socket_timeout(self, Timeout::Send, limit)?)
    }

    /// Ends both directions, for every clone.
    pub fn shut(&self) {
        // An error means that the connection has ended already.
        let _ = shutdown(self, Shutdown::Both);
    }
}

#[cfg(feature = "serve")]
impl Socket {
    /// The other end, for people: an address, or the number of a process.
    pub fn peer(&self) -> String {
        let peer = match self {
            Self::Tcp(stream) => stream.peer_addr().map(|address| address.to_string()),
            Self::Unix(stream) => {
                rustix::net::sockopt::socket_peercred(stream).map(|peer| format!("process {}", peer.pid)).map_err(io::Error::from)
            }
            #[cfg(feature = "tls")]
            Self::Pair(..) => Err(io::ErrorKind::Unsupported.into()),
        };
        peer.unwrap_or_else(|_| "gone".into())
    }

    /// Another handle to the same socket.
    ///
    /// # Errors
    /// There is no descriptor for it.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
            #[cfg(feature = "tls")]
            Self::Pair(stream, outcome) => Ok(Self::Pair(stream.try_clone()?, Arc::clone(outcome))),
        }
    }

    /// Whether there is something to receive at this moment.
    ///
    /// # Errors
    /// What the kernel says.
    #[cfg(feature = "tls")]
    pub fn has_input(&self) -> io::Result<bool> {
        let mut fds = [libc::pollfd { fd: self.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        Ok(crate::sync::poll(&mut fds, Some(Duration::ZERO))? > 0)
    }
}

impl io::Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.recv(buffer)
    }
}

impl io::Write for Socket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.send(&[IoSlice::new(buffer)])
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send(buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
            #[cfg(feature = "tls")]
            Self::Pair(stream, _) => stream.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn sockets_take_long_paths_and_the_mode_of_their_access() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let names = [dir.path().join("s"), deep.join("s"), deep.join("n".repeat(255)), dir.path().join("n".repeat(120))];
        for (path, (access, mode)) in names.iter().zip([(Access::Owner, 0o600), (Access::Group, 0o660)].into_iter().cycle()) {
            let listener = listen_unix(path, access).unwrap();
            let metadata = path.symlink_metadata().unwrap();
            assert!(metadata.file_type().is_socket() && metadata.mode() & 0o777 == mode, "{}: {:o}", path.display(), metadata.mode());
            assert_eq!(listen_unix(path, access).unwrap_err().kind(), io::ErrorKind::AddrInUse);
            connect_unix(path, PATIENCE).unwrap().write_all(b"hello").unwrap();
            let mut text = String::new();
            listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello");
            drop(listener);
            assert_eq!(connect_unix(path, PATIENCE).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        }
        assert_eq!(std::fs::read_dir(&deep).unwrap().count(), 2, "nothing else is left");
        assert_eq!(connect_unix(&deep.join("m".repeat(200)), PATIENCE).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_peer_that_has_gone_is_noticed_within_a_minute() {
        use rustix::net::sockopt::{socket_keepalive, tcp_keepcnt, tcp_keepidle, tcp_keepintvl, tcp_user_timeout};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        keep_alive(&socket).unwrap();
        assert!(socket_keepalive(&socket).unwrap());
        let silence = tcp_keepidle(&socket).unwrap() + tcp_keepintvl(&socket).unwrap() * tcp_keepcnt(&socket).unwrap();
        assert!(silence < Duration::from_secs(60), "{silence:?}");
        let unconfirmed = tcp_user_timeout(&socket).unwrap();
        assert!((1..60_000).contains(&unconfirmed), "{unconfirmed}");
    }
}
