//! Many requests at once from one thread.
//!
//! What needs no waiting is done at once or goes straight to the ring: reads of blocks that are here, writes of whole blocks that
//! are admitted at once. Everything else (a fetch, a mark, a partial block, a flush, a second look at a block) is done by a
//! worker with the blocking calls, and completes through the same queue.
//!
//! # Invariants
//! - The owner's descriptor is readable while [`Queue::reap`] has something to give or to hand over. So whoever makes the first such
//!   thing tells the owner: a worker wakes it after it put its completion into `finished`; `submit` nudges the ring (once until the next
//!   `reap`, and only if the descriptor was ever asked for: a caller of [`Queue::wait`] needs no telling).
//! - A thread that waits for a latch or the gate reaps foreign queues, because their owner may be waiting elsewhere. It takes the
//!   owner's completions and wakes with them. Therefore it wakes the owner again if it took anything and left anything behind.
//! - The owner takes wakes before it takes `finished`, and a worker pushes before it wakes: no order of the two loses a completion.
//! - No request is done by the calling thread while `inner` is locked: it might wait for writes that only a `reap` can end. `later` has
//!   them until the lock is released, and a thread that reaps for another one leaves them to the owner.
//! - Every request holds a pass of the store's fence until it has ended: closing the store waits for it, and reaps the queue of an owner
//!   that is elsewhere. Then `submit` answers [`ErrorKind::Closed`]; completions can still be taken.
//! - A request that panics, in the code of a disk or a source, ends with an error and gives back its blocks and the gate.
//!
//! # Cancellation
//! A request ends only with its completion. Dropping the queue waits for what the kernel has and for every change that a worker is
//! making; those that have not begun, or wait for a source, do not happen any more ([`Changes`]). So nothing that was asked for through
//! it happens later, over what others wrote meanwhile. Reads that workers have end unseen.
mod changes;
mod outcome;
mod read;
mod scatter;
mod shared;
mod target;
mod workers;
mod write;

#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

pub use changes::Changes;
pub use workers::Workers;

use super::head::{Head, OpenQueue};
use super::pool::Keeper;
use super::request::{Completion, Request};
use super::snapshot::OpenSnapshot;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Ring, RingKind};
use crate::limits::QUEUE_DEPTH_MAX;
use crate::place::index;
use crate::sync::atomic::Ordering;
use crate::sync::time::Instant;
use shared::Shared;
use target::Target;

/// Many requests at once from one thread. `as_raw_fd` is readable (for `poll`) while [`Queue::reap`] has something to give, or
/// requests to hand to the kernel.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::volume::Request;
///
/// let volume = store.create_volume("v", 1 << 20)?;
/// let mut queue = volume.queue(32)?;
/// for number in 0..4 {
///     let data = vec![1; 4096].into();
///     queue.submit(number, Request::Write { offset: number * 4096, data, fua: false })?;
/// }
/// let mut completions = Vec::new();
/// while queue.in_flight() > 0 {
///     queue.wait(&mut completions, None)?;
/// }
/// // They complete in any order; the token tells which is which.
/// let mut tokens: Vec<_> = completions.iter().map(|completion| completion.token).collect();
/// tokens.sort_unstable();
/// assert_eq!(tokens, [0, 1, 2, 3]);
/// assert!(completions.iter().all(|completion| completion.result.is_ok()));
/// # Ok(())
/// # }
/// ```
pub struct Queue {
    shared: Arc<Shared>,
    depth: usize,
    in_flight: usize,
    fd: RawFd,
    kind: RingKind,
    /// Its volume is not destroyed before the queue is gone.
    counted: Option<OpenQueue>,
    /// The store stays open. Dropped last.
    keeper: Option<Keeper>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("kind", &self.kind)
            .field("depth", &self.depth)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl Queue {
    pub(super) fn for_volume(head: &Arc<Head>, depth: u32) -> Result<Self> {
        let counted = head.open_queue()?;
        let mut queue = Self::open(Target::Volume(Arc::clone(head)), depth)?;
        queue.counted = Some(counted);
        Ok(queue)
    }

    pub(super) fn for_snapshot(snapshot: &Arc<OpenSnapshot>, depth: u32) -> Result<Self> {
        Self::open(Target::Snapshot(Arc::clone(snapshot)), depth)
    }

    /// Keeps the store open.
    pub(super) fn keeping(mut self, keeper: &Keeper) -> Self {
        self.keeper = Some(Arc::clone(keeper));
        self
    }

    fn open(target: Target, depth: u32) -> Result<Self> {
        if depth == 0 || depth > QUEUE_DEPTH_MAX {
            return Err(Error::new(ErrorKind::InvalidInput, format!("a queue takes 1 to {QUEUE_DEPTH_MAX} requests, not {depth}")));
        }
        let ring = Ring::new(depth, target.pool().ring).map_err(|error| Error::io("cannot make a ring", error))?;
        let (fd, kind) = (ring.as_raw_fd(), ring.kind());
        let shared = Shared::new(target, ring);
        let reaper: Arc<dyn crate::layer::Reap> = Arc::clone(&shared) as _;
        shared.target.blocks().layers.reapers.register(Arc::downgrade(&reaper));
        Ok(Self { shared, depth: index(depth), in_flight: 0, fd, kind, counted: None, keeper: None })
    }

    /// Starts a request. The kernel sees it at the next [`Queue::reap`] or [`Queue::wait`], together with others.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when `depth` requests are under way, [`ErrorKind::Closed`] when the store is closed,
    /// [`ErrorKind::InvalidInput`] for buffers of 4 GiB or more together. The request is dropped with its buffers. All other errors come
    /// with the completion.
    pub fn submit(&mut self, token: u64, request: Request) -> Result<()> {
        if self.in_flight >= self.depth {
            return Err(Error::new(ErrorKind::Busy, format!("{} requests are under way already: reap some first", self.depth)));
        }
        self.shared.start(token, request.gathered()?)?;
        self.in_flight += 1;
        Ok(())
    }

    /// Hands submitted requests to the kernel and takes the completions that are ready, without waiting. Answers how many.
    ///
    /// # Errors
    /// The ring failed, and no completion is left to be taken.
    pub fn reap(&mut self, completions: &mut Vec<Completion>) -> Result<usize> {
        let mut inner = self.shared.inner.lock();
        let reaped = self.shared.take_ring(&mut inner, |ring, done| ring.reap(done));
        inner.nudged = false;
        // What it announces is taken below.
        inner.ring.take_woken();
        let count = self.shared.take_ready(&mut inner, completions);
        self.shared.send_later(inner);
        if count > 0 {
            self.shared.target.blocks().layers.carry();
        }
        self.in_flight = self.in_flight.saturating_sub(count);
        reaped.map_or_else(|error| if count > 0 { Ok(count) } else { Err(error) }, |()| Ok(count))
    }

    /// Like [`Queue::reap`], but waits for at least one completion (if any request is under way), at most `timeout`.
    ///
    /// # Errors
    /// The ring failed.
    pub fn wait(&mut self, completions: &mut Vec<Completion>, timeout: Option<Duration>) -> Result<usize> {
        // A time that no clock reaches is no limit.
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let count = self.reap(completions)?;
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if count > 0 || self.in_flight == 0 || left == Some(Duration::ZERO) {
                return Ok(count);
            }
            // Without the lock: others may reap for this thread meanwhile.
            let mut readable = [libc::pollfd { fd: self.fd, events: libc::POLLIN, revents: 0 }];
            crate::sync::poll(&mut readable, left).map_err(|error| Error::io("cannot wait for the queue", error))?;
        }
    }

    /// Requests under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How it talks to the kernel.
    pub fn kind(&self) -> RingKind {
        self.kind
    }
}

impl Queue {
    /// The descriptor, for a caller that reaps after it has submitted and before it polls: nothing is left then that the descriptor
    /// would not tell of.
    #[cfg(feature = "serve")]
    pub(crate) fn descriptor(&self) -> RawFd {
        self.fd
    }
}

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        if !self.shared.polled.swap(true, Ordering::Relaxed) {
            // What was submitted before.
            self.shared.nudge(&mut self.shared.inner.lock());
        }
        self.fd
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to the ring, which lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let mut inner = self.shared.inner.lock();
        self.shared.drain(&mut inner);
        inner.later.clear();
        drop(inner);
        self.shared.changes.end();
    }
}
