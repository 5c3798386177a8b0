//! A command that is carried out by the process that owns the store.

use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;

use volfork::ErrorKind;

use super::{MESSAGE_BYTES_MAX, address, line};
use crate::failure::{Failure, Result};
use crate::request::{Message, Request, Response, Watcher};

/// Connects to the owner of `store`; `None` if none listens.
pub fn connect(store: &Path) -> Result<Option<UnixStream>> {
    address::connect(store).map_err(|error| Failure::io(format!("connect to {}/control.sock", store.display()), error))
}

/// Sends `request`, tells `watcher` of its progress and waits for the answer.
pub fn ask(stream: &UnixStream, request: &Request, file: Option<&File>, watcher: &mut dyn Watcher) -> Result<Response> {
    let lost = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            Failure::new(ErrorKind::Io, "the process that serves the store ended before it answered: look at 'volfork list' and try again")
        }
        _ => Failure::io("talk to the process that serves the store", error),
    };
    let text = serde_json::to_vec(request).map_err(|error| Failure::io("write the request", error))?;
    line::send(stream, &text, file).map_err(lost)?;
    let mut reader = BufReader::new(stream);
    loop {
        let text = line::next(&mut reader, MESSAGE_BYTES_MAX).map_err(lost)?;
        let message = serde_json::from_slice(&text).map_err(|error| {
            Failure::new(ErrorKind::Unsupported, format!("the process that serves the store is another version of volfork: {error}"))
        })?;
        match message {
            Message::Progress(progress) => watcher.tell(progress)?,
            Message::Done(response) => return Ok(response),
            Message::Failed(failure) => return Err(failure),
        }
    }
}
