//! A server that takes the place of another one, and goes on with its sockets.
//!
//! 1. The new process sends [`Request::Replace`] with one end of a socket pair. The old one refuses, and goes on, if other machines reach
//!    it and the new one is not to serve them as it was started. TLS is that of the new one's arguments.
//! 2. The old one sends each of its listening sockets through it, in a line of its own, answers, and ends as at SIGTERM: it ends what is
//!    under way, closes its connections and the store.
//! 3. The new one waits for the lock of the store, opens it, and serves on the sockets. Clients that connected meanwhile wait in their
//!    queues.
//!
//! A process that is still opening the store is asked as soon as it has; if it does not listen yet, it sends no sockets, and the new one
//! listens by itself.
//!
//! If the new process ends before it serves, nobody does: as when any server ends.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use signal_hook::consts::SIGTERM;
use volfork::ErrorKind;
use volfork::serve::{Listener, PassedSocket};

use crate::control::{self, line};
use crate::failure::{Failure, Result};
use crate::request::Request;
use crate::request::progress::{Progress, Watcher};
use crate::request::response::Response;
use crate::settings::Settings;

/// Longest line beside a socket.
const LINE_BYTES_MAX: usize = 32 << 10;
/// Time for the next line, which was sent before the answer.
const LINE_PATIENCE: Duration = Duration::from_secs(10);

/// The line that a socket comes with.
#[derive(Serialize, Deserialize)]
struct Line {
    /// Bytes of the path that goes with the socket.
    path: Option<Vec<u8>>,
}

/// Nobody looks.
struct Unwatched;

impl Watcher for Unwatched {
    fn tell(&mut self, _: Progress) -> Result<()> {
        Ok(())
    }
}

/// The old process: sends sockets through `to`, and asks itself to end.
pub fn pass_on(sockets: Vec<PassedSocket>, to: &File) -> Result<Response> {
    let failed = |error| Failure::io("pass the sockets on", error);
    let stream = UnixStream::from(to.as_fd().try_clone_to_owned().map_err(failed)?);
    for passed in sockets {
        let path = passed.path.map(|path| path.into_os_string().into_vec());
        let text = serde_json::to_vec(&Line { path }).map_err(|error| failed(error.into()))?;
        line::send(&stream, &text, Some(&File::from(passed.socket))).map_err(failed)?;
    }
    signal_hook::low_level::raise(SIGTERM).map_err(failed)?;
    Ok(Response::Replaced)
}

/// The new process: the sockets of the process that serves the store, which is about to end; `exposes` says whether those that other
/// machines reach are served. `None`: none serves it.
pub fn take_over(settings: &Settings, exposes: bool) -> Result<Option<Vec<Listener>>> {
    let Some(stream) = control::connect(&settings.store)? else { return Ok(None) };
    let failed = |error| Failure::io("take over the sockets of the process that serves the store", error);
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let theirs = File::from(OwnedFd::from(theirs));
    let answer = control::ask(&stream, &Request::Replace { exposes }, Some(&theirs), &mut Unwatched)?;
    if !matches!(answer, Response::Replaced) {
        return Err(Failure::new(ErrorKind::Unsupported, "the process that serves the store is another version of volfork: stop it first"));
    }
    drop(theirs);
    let mut listeners = Vec::new();
    loop {
        match line::receive(&ours, LINE_BYTES_MAX, LINE_PATIENCE) {
            Ok((text, Some(socket))) => {
                let Line { path } = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
                let path = path.map(|bytes| PathBuf::from(OsString::from_vec(bytes)));
                listeners.push(Listener::try_from(PassedSocket { socket: socket.into(), path })?);
            }
            Ok((_, None)) => return Err(failed(std::io::ErrorKind::InvalidData.into())),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(Some(listeners)),
            Err(error) => return Err(failed(error)),
        }
    }
}
