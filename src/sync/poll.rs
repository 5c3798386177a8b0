//! Waits for descriptors, and transfers over sockets.
//!
//! In a simulated run none of these blocks the machine's thread: the scheduler looks at the descriptors whenever something may have
//! made them ready, and time-outs are those of virtual time. A transfer over a blocking socket honours the socket's own time-outs.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

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

/// The wait itself.
pub(super) fn poll_now(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<usize> {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs().min(1 << 32) as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `fds` and `timeout` live past the call, the length is that of `fds`, and no signal mask is passed.
    let ready = unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout, std::ptr::null()) };
    match usize::try_from(ready) {
        Ok(ready) => Ok(ready),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            error => Err(error),
        },
    }
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
