//! Waits for descriptors, and transfers over sockets.
//!
//! In a simulated run none of these blocks the thread of the machine: the scheduler polls the descriptors when they may have become
//! ready, and timeouts are in virtual time. A transfer over a blocking socket honours the timeouts of the socket.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use super::ppoll::poll_now;

/// Waits until one of `fds` is ready or the timeout passes; answers how many are ready. An interrupted wait answers zero.
///
/// # Errors
/// What `ppoll` says.
#[track_caller]
pub fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<usize> {
    #[cfg(feature = "sim")]
    if let Some(task) = super::sim::current() {
        return task.poll(fds, timeout);
    }
    poll_now(fds, timeout)
}

/// To be called before another call waits for a descriptor to become readable, for at most `timeout`. Returns how long that call may wait.
/// In a simulated run this function does the waiting.
///
/// # Errors
/// What `ppoll` says.
#[track_caller]
#[cfg_attr(not(feature = "sim"), expect(unused_variables, reason = "the caller waits by itself"))]
#[cfg_attr(not(feature = "sim"), expect(clippy::unnecessary_wraps, reason = "a simulated wait may fail"))]
pub fn before_wait(fd: RawFd, timeout: Duration) -> io::Result<Duration> {
    #[cfg(feature = "sim")]
    if let Some(task) = super::sim::current() {
        let mut fds = [libc::pollfd { fd, events: libc::POLLIN, revents: 0 }];
        return task.poll(&mut fds, Some(timeout)).map(|_| Duration::ZERO);
    }
    Ok(timeout)
}

/// Reads from a socket.
///
/// # Errors
/// As its `read`.
#[track_caller]
pub fn recv<S: AsRawFd>(mut socket: &S, buffer: &mut [u8]) -> io::Result<usize>
where
    for<'a> &'a S: io::Read,
{
    #[cfg(feature = "sim")]
    if let Some(task) = super::sim::current() {
        return task.transfer(socket.as_raw_fd(), libc::POLLIN, || socket.read(buffer));
    }
    socket.read(buffer)
}

/// Writes to a socket. A peer that has left is an error and never SIGPIPE, which would end a host that does not expect it.
///
/// # Errors
/// What `sendmsg` says.
#[track_caller]
pub fn send<S: AsRawFd + AsFd>(socket: &S, buffers: &[io::IoSlice<'_>]) -> io::Result<usize> {
    #[cfg(feature = "sim")]
    if let Some(task) = super::sim::current() {
        return task.transfer(socket.as_raw_fd(), libc::POLLOUT, || super::sim::send_now(socket, buffers));
    }
    Ok(sendmsg(socket, buffers, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?)
}
