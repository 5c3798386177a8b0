//! Descriptors of a simulated run.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use super::state::On;
use super::world::Task;
use crate::sync::ppoll::poll_now;

impl Task {
    #[track_caller]
    pub(in crate::sync) fn poll(&self, fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<usize> {
        let until = timeout.and_then(|timeout| self.after(timeout));
        self.point("poll");
        let mut timed_out = timeout.is_some_and(|timeout| timeout.is_zero());
        loop {
            let ready = poll_now(fds, Some(Duration::ZERO))?;
            if ready > 0 || timed_out {
                return Ok(ready);
            }
            timed_out = self.wait("poll", On::Descriptors(fds.to_vec()), until);
        }
    }

    /// Transfers over a socket when it is ready, within its own timeout.
    #[track_caller]
    pub(in crate::sync) fn transfer(&self, fd: RawFd, event: i16, mut now: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        let option = if event == libc::POLLIN { libc::SO_RCVTIMEO } else { libc::SO_SNDTIMEO };
        if is_nonblocking(fd) {
            self.point("transfer");
            return now();
        }
        let timeout = timeout_of(fd, option);
        loop {
            let mut fds = [libc::pollfd { fd, events: event, revents: 0 }];
            if self.poll(&mut fds, timeout)? == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            match now() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }
}

fn is_nonblocking(fd: RawFd) -> bool {
    // SAFETY: no memory is passed.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    flags >= 0 && flags & libc::O_NONBLOCK != 0
}

/// The timeout that is set for a socket.
fn timeout_of(fd: RawFd, option: libc::c_int) -> Option<Duration> {
    let mut time = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut length = libc::socklen_t::try_from(size_of::<libc::timeval>()).unwrap_or(0);
    // SAFETY: `time` and `length` live past the call, and `length` is the size of `time`.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, option, (&raw mut time).cast(), &raw mut length) };
    let timeout = Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs());
    (result == 0 && !timeout.is_zero()).then_some(timeout)
}

/// Writes as much as fits, without waiting for room.
pub(in crate::sync) fn send_now(socket: &impl AsRawFd, buffers: &[io::IoSlice<'_>]) -> io::Result<usize> {
    let mut message: libc::msghdr = {
        // SAFETY: zeros are a valid message without address, buffers and control data.
        unsafe { std::mem::zeroed() }
    };
    message.msg_iov = buffers.as_ptr().cast_mut().cast();
    message.msg_iovlen = buffers.len() as _;
    // SAFETY: `IoSlice` has the layout of `iovec`; the buffers live past the call, which only reads them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
