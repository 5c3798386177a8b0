//! The system call behind [`super::poll()`].

use std::io;
use std::time::Duration;

use crate::place::wide;

/// Waits until one of `fds` is ready or the timeout passes; an interrupted wait counts none.
///
/// # Errors
/// What `ppoll` says.
pub(super) fn poll_now(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<usize> {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: i64::from(u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX)),
        tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `fds` and `timeout` live past the call, the length is that of `fds`, and no signal mask is passed.
    let ready = unsafe { libc::ppoll(fds.as_mut_ptr(), wide(fds.len()), timeout, std::ptr::null()) };
    match usize::try_from(ready) {
        Ok(ready) => Ok(ready),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            error => Err(error),
        },
    }
}
