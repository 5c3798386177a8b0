//! Many requests at once from one thread.
//!
//! What needs no waiting is done at once or goes straight to the ring: reads of blocks that are here, writes of whole blocks that
//! are admitted at once. Everything else (a fetch, a mark, a partial block, a flush, a second look at a block) is done by a
//! worker with the blocking calls, and completes through the same queue.
//!
//! # Invariants
//! - The owner's descriptor is readable while [`Queue::reap`] has something to give or to hand over. So whoever makes the first such
//!   thing tells the owner: a worker wakes it after it put its completion into `finished`; `submit` nudges the ring (once until the next
//!   `reap`, and only if somebody ever asked for the descriptor: a caller of [`Queue::wait`] needs no telling).
//! - A thread that waits for a latch or the gate reaps foreign queues, because their owner may be waiting elsewhere. It takes the
//!   owner's completions and wakes with them. Therefore it wakes the owner again if it took anything and left anything behind.
//! - The owner takes wakes before it takes `finished`, and a worker pushes before it wakes: no order of the two loses a completion.
//! - No request is done by the calling thread while `inner` is locked: it might wait for writes that only a `reap` can end. `later` has
//!   them until the lock is released, and a thread that reaps for somebody else leaves them to the owner.
//!
//! - Every request holds a pass of the store's fence until it has ended: closing the store waits for it, and reaps the queue of an owner
//!   that is elsewhere. Then `submit` answers [`ErrorKind::Closed`]; completions can still be taken.
//! - A request that panics, in the code of a disk or a source, ends with an error and gives back its blocks and the gate.
//!
//! # Cancellation
//! A request ends only with its completion. Dropping the queue waits for what the kernel has and for every change that a worker is
//! making; those that have not begun, or wait for a source, do not happen any more ([`Changes`]). So nothing that was asked for through
//! it happens later, over what others wrote meanwhile. Reads that workers have end unseen.
mod changes;
mod read;
mod workers;
mod write;

#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

pub use changes::Changes;
pub use workers::Workers;

use super::blocks::{Blocks, View};
use super::fence::Fence;
use super::handle::{Keeper, OpenSnapshot};
use super::head::{Head, OpenQueue};
use super::pool::Pool;
use super::request::{Completion, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Done, Ring, RingKind, RingWaker, Slots};
use crate::limits::{Planted, QUEUE_DEPTH_MAX};
use crate::place::{index, length};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::time::Instant;
use crate::sync::{Mutex, MutexGuard, Rank, RwLock};
use read::{CacheGuess, PendingRead};
use write::PendingWrite;

/// What a queue is open on.
#[derive(Clone)]
enum Target {
    Volume(Arc<Head>),
    Snapshot(Arc<OpenSnapshot>),
}

impl Target {
    fn blocks(&self) -> &Arc<Blocks> {
        match self {
            Self::Volume(head) => &head.blocks,
            Self::Snapshot(snapshot) => &snapshot.blocks,
        }
    }

    fn pool(&self) -> &Pool {
        match self {
            Self::Volume(head) => &head.pool,
            Self::Snapshot(snapshot) => &snapshot.pool,
        }
    }

    /// The threads for a request that has to wait.
    fn workers(&self, request: &Request) -> &Workers {
        match (self, request) {
            (Self::Volume(head), Request::Read { .. } | Request::ReadInto { .. }) => &head.readers,
            (Self::Volume(head), Request::Prefetch { .. }) => &head.prefetchers,
            (Self::Snapshot(snapshot), Request::Prefetch { .. }) => &snapshot.prefetchers,
            (Self::Snapshot(snapshot), _) => &snapshot.readers,
            (Self::Volume(head), Request::Flush) => &head.pool.flushers,
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
    fn perform(&self, request: &mut Request, changes: &Changes) -> Result<Bytes> {
        let head = match (self, &mut *request) {
            (_, Request::Read { offset, bytes }) => return self.read(*offset, *bytes),
            (_, Request::ReadInto { offset, buffers }) => return self.read_into(*offset, buffers).map(|()| Bytes::new()),
            (Self::Snapshot(_), Request::Flush) => return Ok(Bytes::new()),
            (_, Request::Prefetch { offset, bytes }) => {
                // For nobody, once the queue is gone.
                let wanted = || changes.enter().map(drop);
                return self.blocks().prefetch(self.view(), *offset, *bytes, &wanted).map(|()| Bytes::new());
            }
            (Self::Snapshot(snapshot), _) => {
                return Err(Error::new(
                    ErrorKind::ReadOnly,
                    format!("{} is a snapshot, which never changes: fork it to write", snapshot.name),
                ));
            }
            (Self::Volume(head), _) => head,
        };
        let durable = match *request {
            Request::Write { offset, ref data, fua } => head.write(data, offset, Some(changes)).map(|()| fua)?,
            Request::Discard { offset, bytes, fua } | Request::WriteZeroes { offset, bytes, fua } => {
                head.zero(offset, bytes, Some(changes)).map(|()| fua)?
            }
            Request::Provision { offset, bytes, fua } => provision(head, offset, bytes, changes).map(|()| fua)?,
            // `submit` has made one write of it.
            Request::WriteVectored { fua, .. } => fua,
            Request::Read { .. } | Request::ReadInto { .. } | Request::Flush | Request::Prefetch { .. } => true,
        };
        if durable {
            head.flush()?;
        }
        Ok(Bytes::new())
    }

    fn read(&self, offset: u64, bytes: u32) -> Result<Bytes> {
        // Before memory is taken for it.
        self.view().read().check_range(offset, u64::from(bytes))?;
        let mut buffer = vec![0; index(bytes)];
        self.fill(offset, &mut buffer)?;
        Ok(buffer.into())
    }

    fn read_into(&self, offset: u64, buffers: &mut [BytesMut]) -> Result<()> {
        if let [buffer] = buffers {
            return self.fill(offset, buffer);
        }
        // One read, so that no block is split between two.
        let bytes: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let whole = self.read(offset, u32::try_from(bytes).unwrap_or(u32::MAX))?;
        read::scatter([(Some(&whole[..]), bytes)], 0, buffers);
        Ok(())
    }

    fn fill(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match self {
            Self::Volume(head) => head.read(buffer, offset),
            Self::Snapshot(snapshot) => snapshot.blocks.read(&snapshot.view, offset, buffer).map_err(|error| snapshot.name_damage(error)),
        }
    }
}

/// Writes zeros in pieces: a queue that is dropped waits for one of them.
fn provision(head: &Head, mut offset: u64, mut bytes: u64, changes: &Changes) -> Result<()> {
    const PIECE_BYTES: u64 = 1 << 20;
    head.view.read().check_range(offset, bytes)?;
    let zeros = vec![0; length(PIECE_BYTES.min(bytes))];
    while bytes > 0 {
        // Whole blocks, from the second piece on.
        let piece = bytes.min(PIECE_BYTES - offset % PIECE_BYTES);
        head.write(&zeros[..length(piece)], offset, Some(changes))?;
        offset += piece;
        bytes -= piece;
    }
    Ok(())
}

/// Held by a request that outlives the call that started it.
type Pass = super::fence::Pass<Arc<Fence>>;

/// A request that a worker does.
struct Later {
    token: u64,
    request: Request,
    pass: Pass,
}

/// A request that the ring has.
enum Pending {
    Read(PendingRead),
    Write(PendingWrite),
}

struct Inner {
    ring: Ring,
    pending: Slots<Pending>,
    ready: Vec<Completion>,
    /// Go on with a worker.
    later: Vec<Later>,
    done: Vec<Done>,
    cached: CacheGuess,
    /// The descriptor was made readable since the last `reap`.
    nudged: bool,
}

struct Shared {
    target: Target,
    inner: Mutex<Inner>,
    /// Ended by workers.
    finished: Mutex<Vec<Completion>>,
    /// Those that workers make.
    changes: Changes,
    waker: RingWaker,
    /// Somebody has the descriptor, and may poll it.
    polled: AtomicBool,
    this: std::sync::Weak<Self>,
}

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
        let (fd, kind, waker) = (ring.as_raw_fd(), ring.kind(), ring.waker());
        let inner = Inner {
            ring,
            pending: Slots::default(),
            ready: Vec::new(),
            later: Vec::new(),
            done: Vec::new(),
            cached: CacheGuess::default(),
            nudged: false,
        };
        let make = |this: &std::sync::Weak<Shared>| Shared {
            target,
            inner: Mutex::ranked(Rank::QueueRing, inner),
            finished: Mutex::ranked(Rank::QueueFinished, Vec::new()),
            changes: Changes::default(),
            waker,
            polled: AtomicBool::new(false),
            this: this.clone(),
        };
        let shared = Arc::new_cyclic(make);
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

impl Shared {
    fn start(self: &Arc<Self>, token: u64, mut request: Request) -> Result<()> {
        let _pass = self.target.pool().fence.enter()?;
        let mut inner = self.inner.lock();
        let begin = AssertUnwindSafe(|| match &mut request {
            Request::Read { offset, bytes } => self.start_read(&mut inner, token, (*offset, *bytes), None),
            Request::ReadInto { offset, buffers } => {
                let bytes: usize = buffers.iter().map(|buffer| buffer.len()).sum();
                u32::try_from(bytes).is_ok_and(|bytes| self.start_read(&mut inner, token, (*offset, bytes), Some(buffers)))
            }
            Request::Write { offset, data, fua } => self.start_write(&mut inner, token, *offset, data, *fua),
            Request::WriteVectored { .. }
            | Request::Flush
            | Request::Discard { .. }
            | Request::WriteZeroes { .. }
            | Request::Provision { .. }
            | Request::Prefetch { .. } => false,
        });
        match catch_unwind(begin) {
            Ok(true) => {}
            Ok(false) => match self.hold() {
                Ok(pass) => inner.later.push(Later { token, request, pass }),
                Err(closed) => inner.ready.push(request.complete(token, Err(closed))),
            },
            Err(_) => inner.ready.push(request.complete(token, Err(panicked()))),
        }
        self.nudge(&mut inner);
        self.send_later(inner);
        Ok(())
    }

    /// A pass for a request that does not end in the present call.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    fn hold(&self) -> Result<Pass> {
        self.target.pool().fence.hold()
    }

    /// Makes the descriptor readable if it would not tell of what the next `reap` has to do.
    fn nudge(&self, inner: &mut Inner) {
        if !inner.nudged && self.polled.load(Ordering::Relaxed) && (!inner.ready.is_empty() || inner.ring.has_unseen()) {
            inner.nudged = true;
            inner.ring.nudge();
        }
    }

    /// Takes everything that the ring has, however long the kernel takes.
    fn drain(self: &Arc<Self>, inner: &mut Inner) {
        let drain = |ring: &mut Ring, done: &mut Vec<Done>| {
            ring.drain(done);
            Ok(done.len())
        };
        // It ends all transfers, so there is no error.
        let _ = self.take_ring(inner, drain);
    }

    /// Gives requests that need a worker to one.
    fn send_later(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>) {
        let later = std::mem::take(&mut inner.later);
        drop(inner);
        for later in later {
            self.delegate(later);
        }
    }

    /// The time, if hydrations want to know how long requests take.
    fn began(&self) -> Option<Duration> {
        self.target.blocks().foreground.began()
    }

    /// Lets a worker do it. May do it on this thread if no other one can be started.
    fn delegate(self: &Arc<Self>, Later { token, mut request, pass }: Later) {
        let shared = Arc::clone(self);
        self.target.workers(&request).run(Box::new(move || {
            let performed = catch_unwind(AssertUnwindSafe(|| shared.target.perform(&mut request, &shared.changes)));
            let result = performed.unwrap_or_else(|_| Err(panicked()));
            let completion = request.complete(token, result);
            shared.finished.lock().push(completion);
            drop(pass);
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
            let slot = length(done.token >> 32);
            match inner.pending.get_mut(slot) {
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
            let before = inner.ready.len() + inner.later.len();
            // An error shows when the owner reaps.
            let failed = this.take_ring(&mut inner, |ring, done| ring.reap(done)).is_err();
            inner.nudged = false;
            if let Err(closed) = this.target.pool().fence.check() {
                // The owner may be the one that closes the store, and waits for these.
                let Inner { later, ready, .. } = &mut *inner;
                ready.extend(later.drain(..).map(|later| later.request.complete(later.token, Err(closed.clone()))));
            }
            let woken = inner.ring.take_woken() && !this.target.blocks().layers.limits().has(Planted::LostWake);
            let took = woken || inner.ready.len() + inner.later.len() > before;
            let left = || !inner.ready.is_empty() || !inner.later.is_empty() || !self.finished.lock().is_empty();
            if failed || took && left() {
                self.waker.wake();
            }
        }
    }
}

/// The error of a request whose code, or that of its disk or source, panicked.
fn panicked() -> Error {
    Error::new(ErrorKind::Io, "the request panicked, which is a bug of the program or of its disk or source: see its standard error")
}
