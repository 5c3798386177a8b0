//! A command that is carried out by the process that owns the store.

use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use volfork::ErrorKind;

use super::message::Message;
use super::{MESSAGE_BYTES_MAX, address, line};
use crate::failure::{Failure, Result};
use crate::request::Request;
use crate::request::progress::Watcher;
use crate::request::response::Response;

/// A server that is silent for this long has been stopped or hangs: a live one sends a line every second.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Connects to the owner of `store`; `None` if none listens.
pub fn connect(store: &Path) -> Result<Option<UnixStream>> {
    address::connect(store, SILENCE_MAX).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => silent("", SILENCE_MAX),
        _ => Failure::io(format!("connect to {}/control.sock", store.display()), error),
    })
}

/// Sends `request`, reports progress to `watcher`, and waits for the answer while the server lives.
pub fn ask(stream: &UnixStream, request: &Request, file: Option<&File>, watcher: &mut dyn Watcher) -> Result<Response> {
    ask_patiently(stream, request, file, watcher, SILENCE_MAX)
}

fn ask_patiently(
    stream: &UnixStream,
    request: &Request,
    file: Option<&File>,
    watcher: &mut dyn Watcher,
    silence_max: Duration,
) -> Result<Response> {
    let lost = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            Failure::new(ErrorKind::Io, "the process that serves the store ended before it answered: look at 'volfork list' and try again")
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            let number = socket_peercred(stream).map_or(String::new(), |peer| peer.pid.as_raw_nonzero().to_string());
            silent(&number, silence_max)
        }
        _ => Failure::io("talk to the process that serves the store", error),
    };
    let text = serde_json::to_vec(request).map_err(|error| Failure::io("write the request", error))?;
    let limited = stream.set_write_timeout(Some(silence_max)).and_then(|()| stream.set_read_timeout(Some(silence_max)));
    limited.map_err(|error| Failure::io("talk to the process that serves the store", error))?;
    match line::send(stream, &text, file) {
        // A server that takes no more commands says why, and hangs up.
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {}
        sent => sent.map_err(lost)?,
    }
    let mut reader = BufReader::new(stream);
    loop {
        let text = line::next(&mut reader, MESSAGE_BYTES_MAX).map_err(lost)?;
        let message = serde_json::from_slice(&text).map_err(|error| {
            Failure::new(ErrorKind::Unsupported, format!("the process that serves the store is another version of volfork: {error}"))
        })?;
        match message {
            Message::Alive => {}
            Message::Progress(progress) => watcher.tell(progress)?,
            Message::Done(response) => return Ok(response),
            Message::Failed(failure) => return Err(failure),
        }
    }
}

/// The failure for the process `number` that says nothing.
fn silent(number: &str, silence: Duration) -> Failure {
    let (process, next) = match number {
        "" => (String::new(), "continue or end it".to_owned()),
        _ => (format!(" (process {number})"), format!("'kill -CONT {number}' continues one that was stopped, 'kill {number}' ends it")),
    };
    let silence = humantime::format_duration(silence);
    let message = format!(
        "the process that serves the store{process} has given no sign of life for {silence}, it was stopped or hangs: {next}; \
         what it had not begun it will not do, so look before you try again"
    );
    Failure::new(ErrorKind::Busy, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::progress::Progress;

    struct Deaf;

    impl Watcher for Deaf {
        fn tell(&mut self, _: Progress) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_server_that_gives_no_sign_of_life_is_not_waited_for() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let asked = ask_patiently(&ours, &Request::List, None, &mut Deaf, Duration::from_millis(50));
        let failure = asked.unwrap_err();
        assert!(failure.is(ErrorKind::Busy), "{failure:?}");
        let own = std::process::id();
        assert!(failure.message.contains(&format!("(process {own})")) && failure.message.contains("kill -CONT"), "{failure:?}");
        drop(theirs);
    }

    #[test]
    fn a_server_that_hangs_up_before_it_was_asked_may_have_said_why() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let refusal = Message::Failed(Failure::new(ErrorKind::Busy, "come again"));
        line::send(&theirs, &serde_json::to_vec(&refusal).unwrap(), None).unwrap();
        drop(theirs);
        let failure = ask(&ours, &Request::List, None, &mut Deaf).unwrap_err();
        assert_eq!(failure.message, "come again");
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let failure = ask(&ours, &Request::List, None, &mut Deaf).unwrap_err();
        assert!(failure.message.contains("ended before it answered"), "{failure:?}");
    }
}
