//! Wakes: what ends a wait of another thread.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// Ends a wait of the ring from another thread.
#[derive(Clone, Debug)]
pub struct RingWaker(Arc<OwnedFd>);

impl RingWaker {
    /// # Errors
    /// The machine has no more descriptors.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed; the new descriptor is owned by nobody else.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and is owned by nobody else.
        Ok(Self(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Makes the ring's descriptor readable and its `wait` return.
    pub fn wake(&self) {
        crate::sync::point("wake");
        let one = 1u64.to_ne_bytes();
        // SAFETY: `one` is 8 bytes and lives past the call. The counter cannot overflow before it is read.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Takes all wakes so far; answers whether there were any.
    fn clear(&self) -> bool {
        crate::sync::point("clear");
        let mut count = [0u8; 8];
        // SAFETY: `count` is 8 bytes and lives past the call; without a wake the call fails and changes nothing.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) > 0 }
    }
}

/// The wakes of a ring, at its owner.
pub(super) struct Wakes {
    pub waker: RingWaker,
    /// One was taken since the last look.
    pub woken: bool,
}

impl Wakes {
    /// # Errors
    /// The machine has no more descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { waker: RingWaker::new()?, woken: false })
    }

    /// Takes those that came.
    pub fn clear(&mut self) {
        self.woken |= self.waker.clear();
    }
}

impl AsFd for RingWaker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for RingWaker {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
