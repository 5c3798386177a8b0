//! Where the socket is.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

const NAME: &str = "control.sock";
const NAME_NEW: &str = "control.sock.new";
/// Longest path that is used as it is; the kernel takes 107 bytes.
const PATH_BYTES_MAX: usize = 100;

/// The directory of the socket by a path that is short enough; the file keeps it valid.
fn short(store: &Path) -> io::Result<(PathBuf, Option<File>)> {
    if store.as_os_str().len() + 1 + NAME_NEW.len() <= PATH_BYTES_MAX {
        return Ok((store.to_path_buf(), None));
    }
    let directory = File::open(store)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())), Some(directory)))
}

/// Listens in `store`, for this user only. The caller owns the store, so an older socket has no listener and is replaced.
pub fn bind(store: &Path) -> io::Result<UnixListener> {
    let (directory, _keeps) = short(store)?;
    let new = directory.join(NAME_NEW);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    // It gets its name after its mode, so nobody else can connect in between.
    fs::set_permissions(&new, Permissions::from_mode(0o600))?;
    fs::rename(&new, directory.join(NAME))?;
    Ok(listener)
}

/// Takes the name away.
pub fn unbind(store: &Path) {
    // A name that is left is replaced by the next server, and refuses clients until then.
    let _ = fs::remove_file(store.join(NAME));
}

/// Connects to the owner of `store`; `None` if nobody listens. A server that does not come to take its clients is waited for no longer
/// than `patience`.
pub fn connect(store: &Path, patience: Duration) -> io::Result<Option<UnixStream>> {
    let connected = short(store).and_then(|(directory, _keeps)| connect_within(&directory.join(NAME), patience));
    match connected {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
        Err(error) => Err(error),
    }
}

fn connect_within(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        // The queue of clients is full.
        Err(Errno::AGAIN) => Err(io::ErrorKind::TimedOut.into()),
        connected => Ok(connected.map(|()| UnixStream::from(socket))?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(store: &Path) -> io::Result<Option<UnixStream>> {
        super::connect(store, Duration::from_millis(100))
    }

    #[test]
    fn a_server_that_takes_no_clients_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let _listener = bind(directory.path()).unwrap();
        let mut queued = Vec::new();
        let refusal = loop {
            match connect(directory.path()) {
                Ok(stream) => queued.push(stream.unwrap()),
                Err(error) => break error,
            }
            assert!(queued.len() < 10_000);
        };
        assert_eq!(refusal.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_socket_is_private_replaced_and_found_by_a_long_path() {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("x".repeat(120));
        fs::create_dir(&store).unwrap();
        assert!(connect(&store).unwrap().is_none());
        let first = bind(&store).unwrap();
        assert_eq!(fs::metadata(store.join(NAME)).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(connect(&store).unwrap().is_some());
        drop(first);
        assert!(connect(&store).unwrap().is_none());
        let _second = bind(&store).unwrap();
        assert!(connect(&store).unwrap().is_some());
        unbind(&store);
        assert!(connect(&store).unwrap().is_none());
    }
}
