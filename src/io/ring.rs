//! Reads and writes of files, many at once.
//!
//! # Invariants
//! - A buffer and its file belong to the ring from [`Ring::push`] until their own completion was taken; nothing else frees them.
//! - A transfer is whole: short ones are continued inside; a read that ends the file is `UnexpectedEof`, a write of nothing
//!   `WriteZero`.
//! - The descriptor ([`AsRawFd`]) is readable while [`Ring::reap`] would give something that the kernel or a thread has ended, and
//!   after a wake or a nudge. `reap` takes wakes and nudges as well: a thread that reaps for another one has to wake it again
//!   ([`Ring::take_woken`]).
//! - Every transfer ends. If the ring itself fails, `reap` ends the transfers first, and then answers with the error.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use super::op::{Done, Op};
#[cfg(feature = "sim")]
use super::simulated::SimulatedRing;
use super::threads::ThreadRing;
use super::uring::UringRing;
use super::waker::RingWaker;

/// How a queue talks to the kernel.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// use volfork::io::RingKind;
/// use volfork::{Store, StoreOptions};
///
/// // Where io_uring is not wanted. Without a choice the machine decides.
/// let store = Store::create(directory.path(), StoreOptions::default().with_ring(RingKind::Threads))?;
/// let queue = store.create_volume("v", 1 << 20)?.queue(32)?;
/// assert_eq!(queue.kind(), RingKind::Threads);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RingKind {
    /// io_uring.
    Uring,
    /// A pool of threads that call `pread` and `pwrite`.
    Threads,
}

enum Backend {
    Uring(Box<UringRing>),
    Threads(ThreadRing),
    #[cfg(feature = "sim")]
    Simulated(SimulatedRing),
}

/// The same call of whatever backend a ring has.
macro_rules! each {
    ($backend:expr, $ring:ident => $call:expr) => {
        match $backend {
            Backend::Uring($ring) => $call,
            Backend::Threads($ring) => $call,
            #[cfg(feature = "sim")]
            Backend::Simulated($ring) => $call,
        }
    };
}

/// Many transfers at once, for one thread at a time.
pub struct Ring(Backend);

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("kind", &self.kind()).field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring for about `depth` transfers (more are taken, and wait). `None`: io_uring if the machine allows it, else threads.
    ///
    /// # Errors
    /// The machine refuses what was asked for.
    pub fn new(depth: u32, kind: Option<RingKind>) -> io::Result<Self> {
        let threads = || ThreadRing::new().map(|ring| Self(Backend::Threads(ring)));
        #[cfg(feature = "sim")]
        if kind != Some(RingKind::Threads) && crate::sync::sim::is_running() {
            return SimulatedRing::new().map(|ring| Self(Backend::Simulated(ring)));
        }
        match kind {
            Some(RingKind::Threads) => threads(),
            Some(RingKind::Uring) => UringRing::new(depth).map(|ring| Self(Backend::Uring(Box::new(ring)))),
            None => UringRing::new(depth).map(|ring| Self(Backend::Uring(Box::new(ring)))).or_else(|_| threads()),
        }
    }

    /// The backend that was chosen. One of a simulated run counts as io_uring.
    pub fn kind(&self) -> RingKind {
        match &self.0 {
            Backend::Uring(_) => RingKind::Uring,
            Backend::Threads(_) => RingKind::Threads,
            #[cfg(feature = "sim")]
            Backend::Simulated(_) => RingKind::Uring,
        }
    }

    /// Transfers pushed and not taken yet.
    pub fn in_flight(&self) -> usize {
        each!(&self.0, ring => ring.in_flight())
    }

    /// Whether the ring was woken since the last call.
    pub fn take_woken(&mut self) -> bool {
        std::mem::take(each!(&mut self.0, ring => &mut ring.wakes.woken))
    }

    /// Whether the next `reap` has something to do that the descriptor does not tell of: transfers to hand over, or transfers that
    /// ended in [`Ring::push`].
    pub fn has_unseen(&self) -> bool {
        each!(&self.0, ring => ring.has_unseen())
    }

    /// Makes the descriptor readable until the next `reap`. For the thread that has the ring; other threads take a waker.
    pub fn nudge(&mut self) {
        each!(&mut self.0, ring => ring.nudge())
    }

    /// Takes a transfer; the kernel may see it only at the next `reap` or `wait`.
    pub fn push(&mut self, token: u64, op: Op) {
        each!(&mut self.0, ring => ring.push(token, op))
    }

    /// Hands everything to the kernel and takes what has ended, without waiting. Answers how many.
    ///
    /// # Errors
    /// The kernel refuses the ring for good, and nothing has ended meanwhile. Transfers under way end nevertheless.
    pub fn reap(&mut self, done: &mut Vec<Done>) -> io::Result<usize> {
        each!(&mut self.0, ring => ring.reap(done))
    }

    /// As `reap`, but waits for a completion, a wake or the timeout.
    ///
    /// # Errors
    /// As `reap`.
    pub fn wait(&mut self, done: &mut Vec<Done>, timeout: Option<Duration>) -> io::Result<usize> {
        let taken = self.reap(done)?;
        // A wake that came with nothing else ends the wait as well: what it announces is not in the ring.
        if taken > 0 || self.take_woken() {
            return Ok(taken);
        }
        let mut readable = [libc::pollfd { fd: self.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        crate::sync::poll(&mut readable, timeout)?;
        self.reap(done)
    }

    /// Waits until every transfer has ended, and takes them. Blocks and files are given back only by completions, so a ring that
    /// fails is waited for as well: it ends its transfers all the same.
    pub fn drain(&mut self, done: &mut Vec<Done>) {
        const LOOK_INTERVAL: Duration = Duration::from_millis(100);
        while self.in_flight() > 0 {
            if self.wait(done, Some(LOOK_INTERVAL)).is_err() {
                crate::sync::thread::yield_now();
            }
        }
    }

    /// For other threads.
    pub fn waker(&self) -> RingWaker {
        each!(&self.0, ring => ring.wakes.waker.clone())
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        each!(&self.0, ring => ring.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::io::{AlignedBuffer, Disk, IoMode, OpenMode, SystemDisk};

    fn rings() -> [Ring; 2] {
        [RingKind::Uring, RingKind::Threads].map(|kind| Ring::new(8, Some(kind)).unwrap())
    }

    #[test]
    fn a_wake_ends_a_wait_whenever_it_comes() {
        for mut ring in rings() {
            for _ in 0..3 {
                ring.waker().wake();
                assert_eq!(ring.wait(&mut Vec::new(), None).unwrap(), 0);
            }
            let waker = ring.waker();
            let thread = crate::sync::thread::spawn(move || waker.wake());
            ring.wait(&mut Vec::new(), None).unwrap();
            thread.join().unwrap();
            assert_eq!(ring.wait(&mut Vec::new(), Some(Duration::from_millis(1))).unwrap(), 0);
        }
    }

    #[test]
    fn more_transfers_than_entries_end_and_eof_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for mut ring in rings() {
            let file = SystemDisk::new().open(&dir.path().join("f"), OpenMode::Create, IoMode::Buffered).unwrap();
            let mut done = Vec::new();
            for number in 0..100u8 {
                let data = Bytes::from(vec![number; 4096]);
                let number = u64::from(number);
                ring.push(number, Op::Write { file: Arc::clone(&file), data, offset: number * 4096 });
            }
            while ring.in_flight() > 0 {
                ring.wait(&mut done, None).unwrap();
            }
            assert!(done.len() == 100 && done.drain(..).all(|done| done.result.is_ok()));
            for number in 0..101u64 {
                ring.push(number, Op::Read { file: Arc::clone(&file), buffer: AlignedBuffer::new(4096).into(), offset: number * 4096 });
            }
            while ring.in_flight() > 0 {
                ring.wait(&mut done, None).unwrap();
            }
            for Done { token, op, result } in done {
                match (result, op) {
                    (Ok(()), Op::Read { buffer, .. }) => assert!(buffer.iter().all(|byte| u64::from(*byte) == token)),
                    (Err(error), _) => assert!(token == 100 && error.kind() == io::ErrorKind::UnexpectedEof),
                    _ => panic!("a read ends as a read"),
                }
            }
        }
    }

    #[test]
    fn a_dropped_ring_waits_for_what_the_kernel_has() {
        let dir = tempfile::tempdir().unwrap();
        for mut ring in rings() {
            let file = SystemDisk::new().open(&dir.path().join("f"), OpenMode::Create, IoMode::Buffered).unwrap();
            let data = Bytes::from(vec![5; 8 << 20]);
            ring.push(0, Op::Write { file: Arc::clone(&file), data: data.clone(), offset: 0 });
            ring.reap(&mut Vec::new()).unwrap();
            drop(ring);
            assert!(data.is_unique(), "the ring has given its buffer back");
        }
    }
}
