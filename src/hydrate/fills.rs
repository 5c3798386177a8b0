//! Storing what backfill fetched: one ring and one thread for all hydrations of a store.
//!
//! A fetched range stays claimed until its last write has ended, so readers that wait for it are woken when it can be read.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::claims::Claim;
use super::pace::Wake;
use super::parts::Parts;
use super::root::Part;
use crate::error::Result;
use crate::io::{Done, Reservation, Ring, RingWaker, give_way};
use crate::layer::RingWrite;
use crate::place::{ExtentSpan, index, wide};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::thread::{Builder, JoinHandle};
use crate::sync::{Condvar, Mutex};

/// Writes under way at once.
const DEPTH: u32 = 64;
/// Descriptors of a ring.
const RING_DESCRIPTORS: usize = 2;
/// Bytes that came and are not stored, beyond which nothing more is asked for.
const BYTES_MAX: u64 = 16 << 20;
/// The thread ends when it has had nothing to do for so long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// A range that is being fetched. Dropped when its request has ended and everything of it is stored: then its claim ends, and
/// backfill looks again.
pub struct Fetched {
    parts: Arc<Parts>,
    claim: Option<Claim>,
    pending: Arc<AtomicUsize>,
}

impl Fetched {
    /// Counted in `pending` until it is dropped.
    pub fn new(parts: &Arc<Parts>, claim: Claim, pending: &Arc<AtomicUsize>) -> Arc<Self> {
        pending.fetch_add(1, Ordering::AcqRel);
        Arc::new(Self { parts: Arc::clone(parts), claim: Some(claim), pending: Arc::clone(pending) })
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        self.claim = None;
        self.pending.fetch_sub(1, Ordering::AcqRel);
        self.parts.wake_backfill();
    }
}

/// Bytes that came and are not stored yet.
struct Held {
    shared: Arc<Shared>,
    of: Arc<Fetched>,
    bytes: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.shared.state.lock();
            state.bytes -= self.bytes;
            if state.bytes > BYTES_MAX / 2 { Vec::new() } else { std::mem::take(&mut state.waiting) }
        };
        waiting.iter().for_each(|wake| wake());
    }
}

/// Blocks to store.
struct Fill {
    held: Arc<Held>,
    blocks: Range<u64>,
    bytes: Bytes,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Fill>,
    /// Of what was not stored yet.
    bytes: u64,
    /// Hydrations that wait for room.
    waiting: Vec<Wake>,
    thread: Option<JoinHandle<()>>,
    /// Ends a wait of the thread for its ring.
    waker: Option<RingWaker>,
    closed: bool,
}

struct Shared {
    name: String,
    state: Mutex<State>,
    /// The thread waits here if it has no ring.
    came: Condvar,
}

/// What is to be stored, for all hydrations of a store.
pub struct Fills(Arc<Shared>);

impl Fills {
    /// Nothing to store. `name` is that of the thread, which is started when something is.
    pub fn new(name: &str) -> Self {
        Self(Arc::new(Shared { name: name.to_owned(), state: Mutex::default(), came: Condvar::new() }))
    }

    /// Whether so much is to be stored that nothing more should be asked for; then `wake` is called when there is room.
    pub fn is_full(&self, wake: impl FnOnce() -> Option<Wake>) -> bool {
        let mut state = self.0.state.lock();
        let is_full = state.bytes >= BYTES_MAX;
        if is_full {
            state.waiting.extend(wake());
        }
        is_full
    }

    /// Stores blocks of a fetched range, some time soon.
    pub fn store(&self, of: &Arc<Fetched>, blocks: Range<u64>, bytes: Bytes) {
        let (size, shared) = (wide(bytes.len()), &self.0);
        let mut state = shared.state.lock();
        state.bytes += size;
        let held = Arc::new(Held { shared: Arc::clone(shared), of: Arc::clone(of), bytes: size });
        state.queue.push_back(Fill { held, blocks, bytes });
        if state.thread.is_none() {
            let body = Arc::clone(shared);
            state.thread = Builder::new().name(shared.name.clone()).spawn(move || body.run()).ok();
        }
        if state.thread.is_none() {
            // Without a thread, on this one.
            let fill = state.queue.pop_back();
            drop(state);
            fill.into_iter().for_each(|fill| Writes::new(None).store(&fill));
            return;
        }
        if let Some(waker) = &state.waker {
            waker.wake();
        }
        shared.came.notify_one();
    }

    /// Waits until everything is stored, and ends the thread.
    pub fn close(&self) {
        let thread = {
            let mut state = self.0.state.lock();
            state.closed = true;
            if let Some(waker) = &state.waker {
                waker.wake();
            }
            self.0.came.notify_one();
            state.thread.take()
        };
        // A panic in the thread was printed there.
        let _ = thread.map(JoinHandle::join);
    }
}

impl Shared {
    fn run(&self) {
        give_way();
        // Without a ring it goes on, only slower.
        let mut writes = Writes::new(ring().ok());
        self.state.lock().waker = writes.ring.as_ref().map(Ring::waker);
        let mut idle = false;
        loop {
            let next = {
                let mut state = self.state.lock();
                let next = state.queue.pop_front();
                if next.is_none() && writes.writes.is_empty() && (state.closed || idle) {
                    (state.thread, state.waker) = (None, None);
                    return;
                }
                if next.is_none() && writes.ring.is_none() {
                    idle = self.came.wait_for(&mut state, IDLE_TIMEOUT).timed_out();
                    continue;
                }
                next
            };
            idle = match next {
                Some(fill) => {
                    // One that panics has told so; what it held is given back.
                    let _ = catch_unwind(AssertUnwindSafe(|| writes.store(&fill)));
                    drop(fill);
                    writes.wait(Duration::ZERO);
                    false
                }
                None => writes.wait(IDLE_TIMEOUT),
            };
        }
    }
}

/// A ring for the writes.
fn ring() -> std::io::Result<Ring> {
    let Some(_reserved) = Reservation::take(RING_DESCRIPTORS, 2) else {
        return Err(std::io::Error::from_raw_os_error(libc::EMFILE));
    };
    Ring::new(DEPTH, None)
}

/// A write that the ring has.
struct Write {
    span: ExtentSpan,
    write: RingWrite,
    of: Arc<Held>,
}

/// The writes under way.
struct Writes {
    ring: Option<Ring>,
    writes: BTreeMap<u64, Write>,
    next: u64,
    done: Vec<Done>,
}

impl Writes {
    fn new(ring: Option<Ring>) -> Self {
        Self { ring, writes: BTreeMap::new(), next: 0, done: Vec::new() }
    }

    /// Stores blocks, or begins to.
    fn store(&mut self, fill: &Fill) {
        let parts = &fill.held.of.parts;
        if self.ring.is_none() {
            return parts.root.fill(&fill.blocks, &fill.bytes).unwrap_or_else(|error| parts.note_unstored(&error));
        }
        let mut left = parts.root.parts_to_fill(&fill.blocks, &fill.bytes);
        left.reverse();
        while let Some(part) = left.pop() {
            self.wait_while(|writes| writes.writes.len() >= index(DEPTH));
            // A read that was tried again brings the same blocks again: nobody but this thread ends their writes.
            self.wait_while(|writes| writes.is_writing(parts, part.span));
            // Nothing is held while a round makes room for more, for others may hold the rest.
            self.wait_while(|writes| parts.root.layers.is_full() && !writes.writes.is_empty());
            match self.begin(&part, &fill.held) {
                Ok(true) => {}
                Ok(false) => left.extend(parts.root.parts_left(&part)),
                Err(error) => parts.note_unstored(&error),
            }
        }
    }

    /// Ends writes as long as this holds of those that are left.
    fn wait_while(&mut self, holds: impl Fn(&Self) -> bool) {
        while holds(self) {
            self.wait(Duration::from_millis(100));
        }
    }

    fn is_writing(&self, parts: &Arc<Parts>, span: ExtentSpan) -> bool {
        let overlaps = |other: ExtentSpan| other.extent == span.extent && !other.indices.and(span.indices).is_empty();
        self.writes.values().any(|write| Arc::ptr_eq(&write.of.of.parts, parts) && overlaps(write.span))
    }

    /// Begins to write a part. `false`: some of its blocks have come from elsewhere.
    fn begin(&mut self, part: &Part, of: &Arc<Held>) -> Result<bool> {
        let root = &of.of.parts.root;
        let Some(admitted) = root.admit_part(part)? else { return Ok(false) };
        let (write, op) = RingWrite::begin(&root.layers.admission, &root.layer, part.span.first(), vec![admitted], &part.bytes)?;
        self.writes.insert(self.next, Write { span: part.span, write, of: Arc::clone(of) });
        self.ring.as_mut().into_iter().zip(Some(op)).for_each(|(ring, op)| ring.push(self.next, op));
        self.next += 1;
        Ok(true)
    }

    /// Hands writes to the kernel and takes those that ended; waits for something to happen, at most so long. Answers whether nothing has
    /// happened.
    fn wait(&mut self, timeout: Duration) -> bool {
        let Some(ring) = &mut self.ring else { return false };
        let mut done = std::mem::take(&mut self.done);
        let started = crate::sync::time::Instant::now();
        let waited = if timeout.is_zero() { ring.reap(&mut done) } else { ring.wait(&mut done, Some(timeout)) };
        let is_idle = done.is_empty() && started.elapsed() >= timeout && !timeout.is_zero();
        done.drain(..).for_each(|done| self.end(done));
        self.done = done;
        if waited.is_err() {
            // The transfers have ended before the error; the next wait may do better.
            crate::sync::thread::yield_now();
        }
        is_idle
    }

    fn end(&mut self, done: Done) {
        let Some(Write { write, of, .. }) = self.writes.remove(&done.token) else { return };
        let parts = &of.of.parts;
        match write.end(done) {
            // A reader that waits for these blocks does not wait for the rest of their range.
            Ok(()) => parts.news.tell(),
            Err(error) => parts.note_unstored(&error),
        }
    }
}

impl Drop for Writes {
    fn drop(&mut self) {
        // Latches and claims end only with the writes.
        self.wait_while(|writes| !writes.writes.is_empty());
    }
}
