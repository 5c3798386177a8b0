//! Requests of a volume or snapshot as futures, for any runtime.
//!
//! An [`AsyncQueue`] is a [`Queue`] whose completions wake tasks. The task that submits hands its request to the kernel itself; one thread
//! of the process (`volfork-futures`) waits for the descriptors of all such queues, takes completions and wakes.
//!
//! # Invariants
//! - A completion is given to the future of its request, or dropped with it; wakers are called without a lock.
//! - A future that waits for room in the queue has a number in `waiting`. Each completion wakes the lowest number, and a future that was
//!   woken and is dropped before it has submitted wakes the next one: room is never left while a request waits for it.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};

use super::queue::Queue;
use super::request::{Completion, Request};
use crate::error::{Error, Result};
use crate::place::index;
use crate::sync::thread::Builder;
use crate::sync::{Mutex, Rank};

/// Number of the descriptor that wakes the thread itself.
const OWN: u64 = 0;
/// Descriptors that the thread takes at a time.
const EVENTS: usize = 64;

/// A submitted request.
#[derive(Default)]
struct Slot {
    waker: Option<Waker>,
    completion: Option<Completion>,
}

struct State {
    queue: Queue,
    slots: HashMap<u64, Slot>,
    /// Those that wait for room, by their order.
    waiting: BTreeMap<u64, Waker>,
    /// Number of the next request.
    next: u64,
    completions: Vec<Completion>,
    /// Why no completion comes any more.
    failure: Option<Error>,
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Hands requests to the kernel and takes completions; answers what is to be woken when the lock is released.
    fn turn(&mut self) -> Vec<Waker> {
        let mut completions = std::mem::take(&mut self.completions);
        self.failure = self.queue.reap(&mut completions).err().or(self.failure.take());
        let mut woken = Vec::new();
        for completion in completions.drain(..) {
            if let Some(slot) = self.slots.get_mut(&completion.token) {
                woken.extend(slot.waker.take());
                slot.completion = Some(completion);
            }
            woken.extend(self.waiting.pop_first().map(|(_, waker)| waker));
        }
        self.completions = completions;
        if let Some(failure) = &self.failure {
            for (token, slot) in self.slots.iter_mut().filter(|(_, slot)| slot.completion.is_none()) {
                slot.completion = Some(Completion { token: *token, result: Err(failure.clone()), buffers: Vec::new() });
                woken.extend(slot.waker.take());
            }
            woken.extend(std::mem::take(&mut self.waiting).into_values());
        }
        woken
    }
}

struct Requests {
    /// Number at the reactor.
    id: u64,
    fd: RawFd,
    depth: usize,
    reactor: &'static Reactor,
    state: Mutex<State>,
}

impl Requests {
    fn turn(&self) {
        let woken = self.state.lock().turn();
        woken.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        // Before the queue closes its descriptor.
        self.reactor.remove(self.id, self.fd);
    }
}

/// A queue ([`crate::Volume::async_queue`]) whose requests are futures, for any runtime. Clones share it.
///
/// A request begins when its future is polled first. One more than the depth of the queue waits for room, in order. Dropping a future
/// does not undo its request: a change that was submitted happens, or does not. Dropping the last clone and the last future waits for what
/// the kernel has.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// # let volume = store.create_volume("v", 1 << 20)?;
/// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// let queue = volume.async_queue(32)?;
/// runtime.block_on(async {
///     queue.write(0, "before".into()).await?;
///     queue.flush().await?;
///     assert_eq!(queue.read(0, 6).await?, "before");
///     Ok(())
/// })
/// # }
/// ```
#[derive(Clone)]
pub struct AsyncQueue(Arc<Requests>);

impl std::fmt::Debug for AsyncQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AsyncQueue").field("depth", &self.0.depth).finish_non_exhaustive()
    }
}

impl AsyncQueue {
    pub(super) fn new(queue: Queue, depth: u32) -> Result<Self> {
        let reactor = Reactor::get()?;
        let fd = queue.as_raw_fd();
        let state = State { queue, slots: HashMap::new(), waiting: BTreeMap::new(), next: 0, completions: Vec::new(), failure: None };
        let requests =
            reactor.add(fd, |id| Requests { id, fd, depth: index(depth), reactor, state: Mutex::ranked(Rank::AsyncQueue, state) })?;
        Ok(Self(requests))
    }

    /// Any request; its token is not used. See [`Request`] for the order of requests.
    pub fn request(&self, request: Request) -> RequestFuture {
        RequestFuture { requests: Arc::clone(&self.0), stage: Stage::New(Some(request)) }
    }

    /// Reads `bytes` bytes at `offset`.
    ///
    /// # Errors
    /// As [`crate::Volume::read_at`].
    pub async fn read(&self, offset: u64, bytes: u32) -> Result<Bytes> {
        self.request(Request::Read { offset, bytes }).await.result
    }

    /// Reads at `offset` as many bytes as the buffers have, and gives them back filled ([`Request::ReadInto`]).
    ///
    /// # Errors
    /// As [`crate::Volume::read_at`].
    pub async fn read_into(&self, offset: u64, buffers: Vec<BytesMut>) -> Result<Vec<BytesMut>> {
        let Completion { result, buffers, .. } = self.request(Request::ReadInto { offset, buffers }).await;
        result.map(|_| buffers)
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// As [`crate::Volume::write_at`].
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        self.request(Request::Write { offset, data, fua: false }).await.result.map(drop)
    }

    /// Makes durable what had been written when this is polled first.
    ///
    /// # Errors
    /// As [`crate::Volume::flush`].
    pub async fn flush(&self) -> Result<()> {
        self.request(Request::Flush).await.result.map(drop)
    }

    /// Gives back the space of a range, which then reads as zero.
    ///
    /// # Errors
    /// As [`crate::Volume::discard`].
    pub async fn discard(&self, offset: u64, bytes: u64) -> Result<()> {
        self.request(Request::Discard { offset, bytes, fua: false }).await.result.map(drop)
    }
}

enum Stage {
    /// `None`: it has ended.
    New(Option<Request>),
    /// Has a number in the order of those that wait for room.
    Waiting(u64, Option<Request>),
    Submitted(u64),
}

/// A request of an [`AsyncQueue`]. It answers its completion, errors included.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # #[cfg(feature = "futures")]
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::volume::Request;
///
/// let queue = store.create_volume("v", 1 << 20)?.async_queue(32)?;
/// let write = queue.request(Request::Write { offset: 0, data: "data".into(), fua: true });
/// assert!(write.await.result.is_ok());
/// let read = queue.request(Request::Read { offset: 0, bytes: 4 }).await;
/// assert_eq!(read.result?, "data");
/// # volfork::Result::Ok(())
/// # })?;
/// # Ok(())
/// # }
/// ```
pub struct RequestFuture {
    requests: Arc<Requests>,
    stage: Stage,
}

impl std::fmt::Debug for RequestFuture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestFuture").finish_non_exhaustive()
    }
}

impl RequestFuture {
    /// Submits the request if there is room.
    fn begin(&mut self, state: &mut State, context: &Context<'_>) -> Poll<Completion> {
        let (number, request) = match &mut self.stage {
            Stage::New(request) => (None, request),
            Stage::Waiting(number, request) => (Some(*number), request),
            Stage::Submitted(_) => return Poll::Pending,
        };
        if state.queue.in_flight() >= self.requests.depth && state.failure.is_none() {
            let number = number.unwrap_or_else(|| state.number());
            state.waiting.insert(number, context.waker().clone());
            let request = request.take();
            self.stage = Stage::Waiting(number, request);
            return Poll::Pending;
        }
        let request = request.take().expect("a future is not polled after its end");
        if let Some(number) = number {
            state.waiting.remove(&number);
        }
        let token = state.number();
        let submitted = match &state.failure {
            Some(failure) => Err(failure.clone()),
            None => state.queue.submit(token, request),
        };
        if let Err(error) = submitted {
            self.stage = Stage::New(None);
            return Poll::Ready(Completion { token, result: Err(error), buffers: Vec::new() });
        }
        state.slots.insert(token, Slot::default());
        self.stage = Stage::Submitted(token);
        Poll::Pending
    }
}

impl Future for RequestFuture {
    type Output = Completion;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Completion> {
        let requests = Arc::clone(&self.requests);
        let mut state = requests.state.lock();
        let mut woken = Vec::new();
        if !matches!(self.stage, Stage::Submitted(_)) {
            if let Poll::Ready(completion) = self.begin(&mut state, context) {
                // The room that it does not use.
                let next = state.waiting.pop_first();
                drop(state);
                next.into_iter().for_each(|(_, waker)| waker.wake());
                return Poll::Ready(completion);
            }
            woken = state.turn();
        }
        let mut poll = Poll::Pending;
        if let Stage::Submitted(token) = self.stage {
            let slot = state.slots.entry(token).or_default();
            match slot.completion.take() {
                Some(completion) => {
                    state.slots.remove(&token);
                    self.stage = Stage::New(None);
                    poll = Poll::Ready(completion);
                }
                None => slot.waker = Some(context.waker().clone()),
            }
        }
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        poll
    }
}

impl Drop for RequestFuture {
    fn drop(&mut self) {
        let mut state = self.requests.state.lock();
        let next = match self.stage {
            Stage::New(_) => None,
            Stage::Submitted(token) => {
                state.slots.remove(&token);
                None
            }
            // It was woken, and leaves its room to the next one.
            Stage::Waiting(number, _) if state.waiting.remove(&number).is_none() => state.waiting.pop_first(),
            Stage::Waiting(..) => None,
        };
        drop(state);
        next.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

#[derive(Default)]
struct Registry {
    queues: HashMap<u64, Weak<Requests>>,
    last: u64,
    /// The thread runs. It ends when there are no queues.
    is_running: bool,
}

/// What waits for the descriptors of all queues of the process.
struct Reactor {
    epoll: OwnedFd,
    /// Wakes the thread, which ends if no queue is left.
    wake: OwnedFd,
    registry: Mutex<Registry>,
}

fn failed(error: impl Into<std::io::Error>) -> Error {
    Error::io("cannot wait for queues", error.into())
}

impl Reactor {
    fn new() -> rustix::io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, EventData::new_u64(OWN), EventFlags::IN)?;
        Ok(Self { epoll, wake, registry: Mutex::ranked(Rank::AsyncQueues, Registry::default()) })
    }

    fn get() -> Result<&'static Self> {
        static REACTOR: OnceLock<Reactor> = OnceLock::new();
        if let Some(reactor) = REACTOR.get() {
            return Ok(reactor);
        }
        let made = Self::new().map_err(failed)?;
        Ok(REACTOR.get_or_init(|| made))
    }

    fn add(&'static self, fd: RawFd, make: impl FnOnce(u64) -> Requests) -> Result<Arc<Requests>> {
        let mut registry = self.registry.lock();
        registry.last += 1;
        let id = registry.last;
        // SAFETY: the queue in `Requests`, which owns the descriptor, is alive until `remove`.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        epoll::add(&self.epoll, borrowed, EventData::new_u64(id), EventFlags::IN).map_err(failed)?;
        if !registry.is_running {
            let started = Builder::new().name("volfork-futures".into()).spawn(|| self.run());
            if let Err(error) = started {
                // The queue is dropped by the caller, and its descriptor with it.
                let _ = epoll::delete(&self.epoll, borrowed);
                return Err(failed(error));
            }
            registry.is_running = true;
        }
        let requests = Arc::new(make(id));
        registry.queues.insert(id, Arc::downgrade(&requests));
        Ok(requests)
    }

    fn remove(&self, id: u64, fd: RawFd) {
        let mut registry = self.registry.lock();
        // SAFETY: as in `add`.
        let _ = epoll::delete(&self.epoll, unsafe { BorrowedFd::borrow_raw(fd) });
        registry.queues.remove(&id);
        if registry.queues.is_empty() {
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    fn run(&self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            // An interrupted wait is no event.
            let _ = epoll::wait(&self.epoll, spare_capacity(&mut events), None);
            for event in &events {
                let id = event.data.u64();
                if id != OWN {
                    let requests = self.registry.lock().queues.get(&id).and_then(Weak::upgrade);
                    // A waker that panics costs its own task.
                    let _ = catch_unwind(AssertUnwindSafe(|| requests.iter().for_each(|requests| requests.turn())));
                    continue;
                }
                let _ = rustix::io::read(&self.wake, &mut [0; 8]);
                let mut registry = self.registry.lock();
                if registry.queues.is_empty() {
                    registry.is_running = false;
                    return;
                }
            }
        }
    }
}
