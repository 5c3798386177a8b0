//! Many requests at once from one thread.
//!
//! What needs no waiting is done at once or goes straight to the ring: reads of blocks that are here, writes of whole blocks that
//! are admitted at once. Everything else (a fetch, a mark, a partial block, a flush, a second look at a block) is done by a
//! worker with the blocking calls, and completes through the same queue.
//!
//! # Cancellation
//! A request ends only with its completion. Dropping the queue waits for what the kernel has; what workers have ends unseen.
mod read;
mod workers;
mod write;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use workers::Workers;

use super::core::Core;
use super::handle::OpenSnapshot;
use super::head::Head;
use super::request::{Completion, Request};
use super::view::View;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Done, Ring, RingKind, RingWaker};
use crate::limits::QUEUE_DEPTH_MAX;
use crate::sync::atomic::Ordering;
use crate::sync::{Mutex, RwLock};
use read::{CacheGuess, PendingRead};
use write::PendingWrite;

/// What a queue is open on.
#[derive(Clone)]
enum Target {
    Volume(Arc<Head>),
    Snapshot(Arc<OpenSnapshot>),
}

impl Target {
    fn core(&self) -> &Arc<Core> {
        match self {
            Self::Volume(head) => &head.core,
            Self::Snapshot(snapshot) => &snapshot.core,
        }
    }

    /// The threads for a request that has to wait.
    fn workers(&self, request: &Request) -> &Workers {
        match (self, request) {
            (Self::Volume(head), Request::Read { .. } | Request::Prefetch { .. }) => &head.readers,
            (Self::Snapshot(snapshot), _) => &snapshot.readers,
            (Self::Volume(head), Request::Flush) => &head.core.workers,
            (Self::Volume(head), _) => &head.writers,
        }
    }

    fn view(&self) -> &RwLock<View> {
        match self {
            Self::Volume(head) => &head.view,
            Self::Snapshot(snapshot) => &snapshot.view,
        }
    }

    /// The blocking way to do a request.
    fn perform(&self, request: Request) -> Result<Bytes> {
        let head = match (self, &request) {
            (_, Request::Read { offset, bytes }) => return self.read(*offset, *bytes),
            (Self::Snapshot(_), Request::Flush) => return Ok(Bytes::new()),
            (_, Request::Prefetch { offset, bytes }) => {
                return self.core().prefetch(self.view(), *offset, *bytes).map(|()| Bytes::new());
            }
            (Self::Snapshot(snapshot), _) => {
                return Err(Error::new(
                    ErrorKind::ReadOnly,
                    format!("{} is a snapshot, which never changes: fork it to write", snapshot.name),
                ));
            }
            (Self::Volume(head), _) => head,
        };
        let durable = match request {
            Request::Write { offset, data, fua } => head.write(&data, offset).map(|()| fua)?,
            Request::Discard { offset, bytes, fua } | Request::WriteZeroes { offset, bytes, fua } => {
                head.zero(offset, bytes).map(|()| fua)?
            }
            _ => true,
        };
        if durable {
            head.flush()?;
        }
        Ok(Bytes::new())
    }

    fn read(&self, offset: u64, bytes: u32) -> Result<Bytes> {
        let mut buffer = vec![0; bytes as usize];
        match self {
            Self::Volume(head) => head.read(&mut buffer, offset)?,
            Self::Snapshot(snapshot) => {
                snapshot.core.read(&snapshot.view, offset, &mut buffer).map_err(|error| snapshot.name_damage(error))?;
            }
        }
        Ok(buffer.into())
    }
}

/// A request that the ring has.
enum Pending {
    Read(PendingRead),
    Write(PendingWrite),
}

struct Inner {
    ring: Ring,
    pending: Vec<Option<Pending>>,
    free: Vec<u32>,
    ready: Vec<Completion>,
    done: Vec<Done>,
    cached: CacheGuess,
}

struct Shared {
    target: Target,
    inner: Mutex<Inner>,
    /// Ended by workers.
    finished: Mutex<Vec<Completion>>,
    waker: RingWaker,
    this: std::sync::Weak<Self>,
}

/// Many requests at once from one thread. `as_raw_fd` is readable (for `poll`) when [`Queue::reap`] has something to give.
pub struct Queue {
    shared: Arc<Shared>,
    depth: usize,
    in_flight: usize,
    fd: RawFd,
    kind: RingKind,
}

impl Queue {
    pub(super) fn for_volume(head: &Arc<Head>, depth: u32) -> Result<Self> {
        head.check_alive()?;
        Self::open(Target::Volume(Arc::clone(head)), depth)
    }

    pub(super) fn for_snapshot(snapshot: &Arc<OpenSnapshot>, depth: u32) -> Result<Self> {
        Self::open(Target::Snapshot(Arc::clone(snapshot)), depth)
    }

    fn open(target: Target, depth: u32) -> Result<Self> {
        if depth == 0 || depth > QUEUE_DEPTH_MAX {
            return Err(Error::new(ErrorKind::InvalidInput, format!("a queue takes 1 to {QUEUE_DEPTH_MAX} requests, not {depth}")));
        }
        let ring = Ring::new(depth, target.core().ring).map_err(|error| Error::io("cannot make a ring", error))?;
        let (fd, kind, waker) = (ring.as_raw_fd(), ring.kind(), ring.waker());
        let inner =
            Inner { ring, pending: Vec::new(), free: Vec::new(), ready: Vec::new(), done: Vec::new(), cached: CacheGuess::default() };
        let make = |this: &std::sync::Weak<Shared>| Shared {
            target,
            inner: Mutex::new(inner),
            finished: Mutex::default(),
            waker,
            this: this.clone(),
        };
        let shared = Arc::new_cyclic(make);
        if let Target::Volume(head) = &shared.target {
            head.queues.fetch_add(1, Ordering::AcqRel);
            let reaper: Arc<dyn crate::layer::Reap> = Arc::clone(&shared) as _;
            head.core.layers.register(Arc::downgrade(&reaper));
        }
        Ok(Self { shared, depth: depth as usize, in_flight: 0, fd, kind })
    }

    /// Starts a request. The kernel sees it at the next [`Queue::reap`] or [`Queue::wait`], together with others.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when `depth` requests are under way. Errors of the request itself come with its completion.
    pub fn submit(&mut self, token: u64, request: Request) -> Result<()> {
        if self.in_flight >= self.depth {
            return Err(Error::new(ErrorKind::Busy, format!("{} requests are under way already: reap some first", self.depth)));
        }
        self.in_flight += 1;
        self.shared.start(token, request);
        Ok(())
    }

    /// Hands submitted requests to the kernel and takes the completions that are ready, without waiting. Answers how many.
    ///
    /// # Errors
    /// The ring failed.
    pub fn reap(&mut self, completions: &mut Vec<Completion>) -> Result<usize> {
        let mut inner = self.shared.inner.lock();
        self.shared.take_ring(&mut inner, |ring, done| ring.reap(done))?;
        let count = self.shared.take_ready(&mut inner, completions);
        self.in_flight -= count;
        Ok(count)
    }

    /// Like [`Queue::reap`], but waits for at least one completion (if any request is under way), at most `timeout`.
    ///
    /// # Errors
    /// The ring failed.
    pub fn wait(&mut self, completions: &mut Vec<Completion>, timeout: Option<Duration>) -> Result<usize> {
        let until = timeout.map(|timeout| crate::sync::time::Instant::now() + timeout);
        loop {
            let count = self.reap(completions)?;
            let left = until.map(|until| until.saturating_duration_since(crate::sync::time::Instant::now()));
            if count > 0 || self.in_flight == 0 || left == Some(Duration::ZERO) {
                return Ok(count);
            }
            let mut inner = self.shared.inner.lock();
            self.shared.take_ring(&mut inner, |ring, done| ring.wait(done, left))?;
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

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let mut inner = self.shared.inner.lock();
        while inner.ring.in_flight() > 0 {
            // Latches are released only by completions, so they are waited for even if the ring complains.
            if self.shared.take_ring(&mut inner, |ring, done| ring.wait(done, Some(Duration::from_millis(100)))).is_err() {
                crate::sync::thread::yield_now();
            }
        }
        drop(inner);
        if let Target::Volume(head) = &self.shared.target {
            head.queues.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Inner {
    fn insert(&mut self, pending: Pending) -> u32 {
        match self.free.pop() {
            Some(slot) => {
                self.pending[slot as usize] = Some(pending);
                slot
            }
            None => {
                self.pending.push(Some(pending));
                self.pending.len() as u32 - 1
            }
        }
    }

    fn remove(&mut self, slot: u32) -> Option<Pending> {
        let pending = self.pending[slot as usize].take();
        self.free.push(slot);
        pending
    }
}

impl Shared {
    fn start(self: &Arc<Self>, token: u64, request: Request) {
        let mut inner = self.inner.lock();
        let left = match request {
            Request::Read { offset, bytes } => match self.start_read(&mut inner, token, offset, bytes) {
                true => return,
                false => Request::Read { offset, bytes },
            },
            Request::Write { offset, data, fua } => match self.start_write(&mut inner, token, offset, &data, fua) {
                true => return,
                false => Request::Write { offset, data, fua },
            },
            other => other,
        };
        drop(inner);
        self.delegate(token, left);
    }

    /// The time, if hydrations want to know how long requests take.
    fn began(&self) -> Option<Duration> {
        self.target.core().began()
    }

    /// Lets a worker do it.
    fn delegate(self: &Arc<Self>, token: u64, request: Request) {
        let shared = Arc::clone(self);
        self.target.workers(&request).run(Box::new(move || {
            let result = shared.target.perform(request);
            shared.finished.lock().push(Completion { token, result });
            shared.waker.wake();
        }));
    }

    fn take_ring(
        self: &Arc<Self>,
        inner: &mut Inner,
        take: impl FnOnce(&mut Ring, &mut Vec<Done>) -> std::io::Result<usize>,
    ) -> Result<()> {
        let mut done = std::mem::take(&mut inner.done);
        let taken = take(&mut inner.ring, &mut done);
        for done in done.drain(..) {
            let slot = (done.token >> 32) as u32;
            match &mut inner.pending[slot as usize] {
                Some(Pending::Read(_)) => self.end_read(inner, slot, done),
                Some(Pending::Write(_)) => self.end_write(inner, slot, done),
                None => {}
            }
        }
        inner.done = done;
        taken.map(drop).map_err(|error| Error::io("the ring failed", error))
    }

    fn take_ready(&self, inner: &mut Inner, completions: &mut Vec<Completion>) -> usize {
        let before = completions.len();
        completions.append(&mut inner.ready);
        completions.append(&mut self.finished.lock());
        completions.len() - before
    }
}

impl crate::layer::Reap for Shared {
    fn reap_finished(&self) {
        // If the owner is inside, it takes them itself.
        let Some(shared) = self.inner.try_lock().map(|inner| (inner, self.this.upgrade())) else { return };
        if let (mut inner, Some(this)) = shared {
            let before = inner.ready.len();
            // An error shows when the owner reaps.
            let _ = this.take_ring(&mut inner, |ring, done| ring.reap(done));
            if inner.ready.len() > before {
                self.waker.wake();
            }
        }
    }
}
