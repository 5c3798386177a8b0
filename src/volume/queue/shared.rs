//! What the owner of a queue, its workers and those that help it share.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::changes::Changes;
use super::outcome::{Begun, Later, Outcome};
use super::read::PendingRead;
use super::target::Target;
use super::write::PendingWrite;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Done, Guess, Ring, RingWaker, Slots};
use crate::limits::Planted;
use crate::place::{length, wide};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard, Rank};
use crate::volume::request::{Completion, Request};

/// A request that the ring has.
pub enum Pending {
    Read(PendingRead),
    Write(PendingWrite),
}

pub struct Inner {
    pub ring: Ring,
    pending: Slots<Pending>,
    pub ready: Vec<Completion>,
    /// Go on with a worker.
    pub later: Vec<Later>,
    done: Vec<Done>,
    /// Whether the page cache is asked first: not for every read while it has nothing.
    cached: Guess,
    /// The descriptor was made readable since the last `reap`.
    pub nudged: bool,
}

pub struct Shared {
    pub target: Target,
    pub inner: Mutex<Inner>,
    /// Ended by workers.
    pub finished: Mutex<Vec<Completion>>,
    /// Those that workers make.
    pub changes: Changes,
    waker: RingWaker,
    /// The descriptor was handed out, and may be polled.
    pub polled: AtomicBool,
}

impl Inner {
    fn note(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Ended(completion) => self.ready.push(completion),
            Outcome::Later(later) => self.later.push(later),
        }
    }

    /// Goes on with a request that has begun. `false`: it needs a worker.
    fn follow<P>(&mut self, begun: Begun<P>, pending: impl FnOnce(P) -> Pending) -> bool {
        match begun {
            Begun::NeedsWorker => return false,
            Begun::Done(outcome) => self.note(outcome),
            Begun::Pending(request, transfers) => {
                let slot = self.pending.insert(pending(request));
                for (number, op) in transfers {
                    self.ring.push(wide(slot) << 32 | wide(number), op);
                }
            }
        }
        true
    }
}

impl Shared {
    /// Of a queue that has this ring.
    pub fn new(target: Target, ring: Ring) -> Arc<Self> {
        let waker = ring.waker();
        let inner = Inner {
            ring,
            pending: Slots::default(),
            ready: Vec::new(),
            later: Vec::new(),
            done: Vec::new(),
            cached: Guess::default(),
            nudged: false,
        };
        Arc::new(Self {
            target,
            inner: Mutex::ranked(Rank::QueueRing, inner),
            finished: Mutex::ranked(Rank::QueueFinished, Vec::new()),
            changes: Changes::default(),
            waker,
            polled: AtomicBool::new(false),
        })
    }

    /// Starts a request.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`]. All other errors come with the completion.
    pub fn start(self: &Arc<Self>, token: u64, mut request: Request) -> Result<()> {
        let _pass = self.target.pool().fence.enter()?;
        let mut inner = self.inner.lock();
        let begin = AssertUnwindSafe(|| self.begin(&mut inner, token, &mut request));
        match catch_unwind(begin) {
            Ok(true) => {}
            Ok(false) => match self.target.hold() {
                Ok(pass) => inner.later.push(Later { token, request, pass }),
                Err(closed) => inner.ready.push(request.complete(token, Err(closed))),
            },
            Err(_) => inner.ready.push(request.complete(token, Err(panicked()))),
        }
        self.nudge(&mut inner);
        self.send_later(inner);
        Ok(())
    }

    /// Does a request at once, or gives it to the ring. `false`: it needs a worker.
    fn begin(&self, inner: &mut Inner, token: u64, request: &mut Request) -> bool {
        let (range, given) = match request {
            Request::Read { offset, bytes } => ((*offset, *bytes), None),
            Request::ReadInto { offset, buffers } => {
                let bytes: usize = buffers.iter().map(|buffer| buffer.len()).sum();
                let Ok(bytes) = u32::try_from(bytes) else { return false };
                ((*offset, bytes), Some(buffers))
            }
            Request::Write { offset, data, fua } => {
                let Target::Volume(head) = &self.target else { return false };
                return inner.follow(PendingWrite::begin(head, token, *offset, data, *fua), Pending::Write);
            }
            Request::WriteVectored { .. }
            | Request::Flush
            | Request::Discard { .. }
            | Request::WriteZeroes { .. }
            | Request::Provision { .. }
            | Request::Prefetch { .. } => return false,
        };
        let begun = PendingRead::begin(&self.target, &mut inner.cached, token, range, given);
        inner.follow(begun, Pending::Read)
    }

    /// Makes the descriptor readable if it would not tell of what the next `reap` has to do.
    pub fn nudge(&self, inner: &mut Inner) {
        if !inner.nudged && self.polled.load(Ordering::Relaxed) && (!inner.ready.is_empty() || inner.ring.has_unseen()) {
            inner.nudged = true;
            inner.ring.nudge();
        }
    }

    /// Takes everything that the ring has, however long the kernel takes.
    pub fn drain(&self, inner: &mut Inner) {
        let drain = |ring: &mut Ring, done: &mut Vec<Done>| {
            ring.drain(done);
            Ok(done.len())
        };
        // It ends all transfers, so there is no error.
        let _ = self.take_ring(inner, drain);
    }

    /// Gives requests that need a worker to one.
    pub fn send_later(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>) {
        let later = std::mem::take(&mut inner.later);
        drop(inner);
        for later in later {
            self.delegate(later);
        }
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

    pub fn take_ring(&self, inner: &mut Inner, take: impl FnOnce(&mut Ring, &mut Vec<Done>) -> std::io::Result<usize>) -> Result<()> {
        let mut done = std::mem::take(&mut inner.done);
        let taken = take(&mut inner.ring, &mut done);
        for done in done.drain(..) {
            self.end_transfer(inner, done);
        }
        inner.done = done;
        taken.map(drop).map_err(|error| Error::io("the ring failed", error))
    }

    fn end_transfer(&self, inner: &mut Inner, done: Done) {
        let slot = length(done.token >> 32);
        let blocks = self.target.blocks();
        if let Some(Pending::Read(read)) = inner.pending.get_mut(slot) {
            if read.end_transfer(&blocks.layers, done)
                && let Some(Pending::Read(read)) = inner.pending.remove(slot)
            {
                inner.note(read.end(blocks));
            }
        } else if let (Some(Pending::Write(write)), Target::Volume(head)) = (inner.pending.remove(slot), &self.target) {
            inner.note(write.end(head, done));
        }
    }

    pub fn take_ready(&self, inner: &mut Inner, completions: &mut Vec<Completion>) -> usize {
        let before = completions.len();
        completions.append(&mut inner.ready);
        completions.append(&mut self.finished.lock());
        completions.len() - before
    }
}

impl crate::layer::Reap for Shared {
    fn reap_finished(&self) {
        // If the owner is inside, it takes them itself.
        let Some(mut inner) = self.inner.try_lock() else { return };
        let before = inner.ready.len() + inner.later.len();
        // An error shows when the owner reaps.
        let failed = self.take_ring(&mut inner, |ring, done| ring.reap(done)).is_err();
        inner.nudged = false;
        if let Err(closed) = self.target.pool().fence.check() {
            // The owner may be the one that closes the store, and waits for these.
            let Inner { later, ready, .. } = &mut *inner;
            ready.extend(later.drain(..).map(|later| later.request.complete(later.token, Err(closed.clone()))));
        }
        let woken = inner.ring.take_woken() && !self.target.blocks().layers.limits().has(Planted::LostWake);
        let took = woken || inner.ready.len() + inner.later.len() > before;
        let left = || !inner.ready.is_empty() || !inner.later.is_empty() || !self.finished.lock().is_empty();
        if failed || took && left() {
            self.waker.wake();
        }
    }
}

/// The error of a request whose code, or that of its disk or source, panicked.
fn panicked() -> Error {
    Error::new(ErrorKind::Io, "the request panicked, which is a bug of the program or of its disk or source: see its standard error")
}
