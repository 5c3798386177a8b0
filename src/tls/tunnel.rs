//! The clear side of a connection.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustls::Connection;

use super::fate::Fate;
use super::flow::Flow;
use super::relay;
use crate::io::Socket;

/// Gives a connection whose handshake is complete to the relay. Answers the socket that its code goes on with.
///
/// # Errors
/// There is no descriptor or no thread for it.
pub(super) fn begin(socket: OwnedFd, tls: Connection, fate: Arc<Fate>) -> io::Result<Socket> {
    let (clear, inner) = UnixStream::pair()?;
    relay::add(Flow::new(socket, inner, tls, Arc::clone(&fate)))?;
    Ok(Socket::Pair(clear, fate))
}
