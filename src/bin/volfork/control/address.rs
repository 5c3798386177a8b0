//! Where the socket is.

use std::fs;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use volfork::io::{Access, connect_unix, listen_unix};

const NAME: &str = "control.sock";
const NAME_NEW: &str = "control.sock.new";

/// Listens in `store`, for this user only. The caller owns the store, so an older socket has no listener and is replaced.
pub fn bind(store: &Path) -> io::Result<UnixListener> {
    let new = store.join(NAME_NEW);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Others may have access to the files, but only the user that serves the store may give commands.
    let listener = listen_unix(&new, Access::Owner)?;
    fs::rename(&new, store.join(NAME))?;
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
    match connect_unix(&store.join(NAME), patience) {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
