//! Transfers that end by a deadline.

use std::io::{self, Read};
use std::time::Duration;

use crate::sync::time::Instant;

/// A wait without an end.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The moment at which `timeout` from now has passed; for [`Duration::MAX`], one that does not come.
pub fn deadline_after(timeout: Duration) -> Instant {
    Instant::now() + timeout.min(FOR_EVER)
}

/// The time until a deadline.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] if it has passed.
pub fn time_left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

/// Fills a buffer by a deadline: a peer that sends a byte at a time has no more time than another one. `limit` bounds how long the
/// next read of the socket takes.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`], [`io::ErrorKind::UnexpectedEof`] if the peer leaves before, and what the socket says.
pub fn read_by<S: Read>(
    deadline: Instant,
    socket: &mut S,
    mut buffer: &mut [u8],
    limit: impl Fn(&S, Duration) -> io::Result<()>,
) -> io::Result<()> {
    while !buffer.is_empty() {
        limit(socket, time_left(deadline)?)?;
        match socket.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => buffer = &mut buffer[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
