//! Stores the blocks that backfill has fetched: one ring and one thread for all hydrations of a store.
//!
//! A fetched range stays claimed until its last write has ended, so that a reader that waits for the claim can read the blocks.

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
use crate::sync::{Condvar, Mutex, Rank};

/// Most writes under way at once.
const DEPTH: u32 = 64;
/// Number of descriptors of a ring.
const RING_DESCRIPTORS: usize = 2;
/// High watermark of fetched bytes that are not stored: at or above it backfill makes no requests.
const BYTES_MAX: u64 = 16 << 20;
/// Idle time after which the thread ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// A fetched range with its claim. It is dropped when its request has ended and all of its blocks are stored; then the claim ends, and
/// backfill is woken.
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

/// Guard of fetched bytes that are not stored yet; they count against the watermark until it is dropped.
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

/// Fetched blocks to store.
struct Fill {
    held: Arc<Held>,
    blocks: Range<u64>,
    bytes: Bytes,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Fill>,
    /// Fetched bytes that are not stored yet.
    bytes: u64,
    /// Wakes of the hydrations that wait until the bytes fall below the watermark.
    waiting: Vec<Wake>,
    thread: Option<JoinHandle<()>>,
    /// Wakes the thread from a wait for its ring.
    waker: Option<RingWaker>,
    closed: bool,
}

struct Shared {
    name: String,
    state: Mutex<State>,
    /// Notified of new fills; the thread waits here if it has no ring.
    came: Condvar,
}

/// The queue of blocks to store, for all hydrations of a store.
pub struct Fills(Arc<Shared>);

impl Fills {
    /// An empty queue. The thread, called `name`, starts with the first fill.
    pub fn new(name: &str) -> Self {
        Self(Arc::new(Shared { name: name.to_owned(), state: Mutex::ranked(Rank::Fills, State::default()), came: Condvar::new() }))
    }

    /// Whether the watermark is reached. If so, the result of `wake` is called once the bytes fall below it.
    pub fn is_full(&self, wake: impl FnOnce() -> Option<Wake>) -> bool {
        let mut state = self.0.state.lock();
        let is_full = state.bytes >= BYTES_MAX;
        if is_full {
            state.waiting.extend(wake());
        }
        is_full
    }

    /// Queues blocks of a fetched range to be stored.
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
            // If no thread can be started, the blocks are stored on this one.
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

    /// Waits until all queued blocks are stored, and ends the thread.
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
        // Without a ring, blocks are written one after another.
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
                    // The panic was printed. Its guards have given back the claim and the bytes.
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

/// Makes the ring for the writes.
fn ring() -> std::io::Result<Ring> {
    let Some(_reserved) = Reservation::take(RING_DESCRIPTORS, 2) else {
        return Err(std::io::Error::from_raw_os_error(libc::EMFILE));
    };
    Ring::new(DEPTH, None)
}

/// A write under way in the ring.
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

    /// Stores blocks of a fill. With a ring it only begins the writes.
    fn store(&mut self, fill: &Fill) {
        let parts = &fill.held.of.parts;
        if self.ring.is_none() {
            return parts.root.fill(&fill.blocks, &fill.bytes).unwrap_or_else(|error| parts.note_unstored(&error));
        }
        let mut left = parts.root.parts_to_fill(&fill.blocks, &fill.bytes);
        left.reverse();
        while let Some(part) = left.pop() {
            self.wait_while(|writes| writes.writes.len() >= index(DEPTH));
            // A retried read may deliver the same blocks again. Their writes are ended here, because only this thread can end them.
            self.wait_while(|writes| writes.is_writing(parts, part.span));
            // Ends all writes first: the round that makes room may wait for their latches.
            self.wait_while(|writes| parts.root.layers.is_full() && !writes.writes.is_empty());
            match self.begin(&part, &fill.held) {
                Ok(true) => {}
                Ok(false) => left.extend(parts.root.parts_left(&part)),
                Err(error) => parts.note_unstored(&error),
            }
        }
    }

    /// Ends writes while `holds` is true of the remaining ones.
    fn wait_while(&mut self, holds: impl Fn(&Self) -> bool) {
        while holds(self) {
            self.wait(Duration::from_millis(100));
        }
    }

    fn is_writing(&self, parts: &Arc<Parts>, span: ExtentSpan) -> bool {
        let overlaps = |other: ExtentSpan| other.extent == span.extent && !other.indices.and(span.indices).is_empty();
        self.writes.values().any(|write| Arc::ptr_eq(&write.of.of.parts, parts) && overlaps(write.span))
    }

    /// Begins the write of a part. False if some of its blocks were stored by another thread meanwhile.
    fn begin(&mut self, part: &Part, of: &Arc<Held>) -> Result<bool> {
        let root = &of.of.parts.root;
        let Some(admitted) = root.admit_part(part)? else { return Ok(false) };
        let (write, op) = RingWrite::begin(&root.layers.admission, &root.layer, part.span.first(), vec![admitted], &part.bytes)?;
        self.writes.insert(self.next, Write { span: part.span, write, of: Arc::clone(of) });
        self.ring.as_mut().into_iter().zip(Some(op)).for_each(|(ring, op)| ring.push(self.next, op));
        self.next += 1;
        Ok(true)
    }

    /// Submits writes to the kernel and takes the completed ones. Waits for a completion or a wake, for at most `timeout`. Returns whether
    /// neither has come.
    fn wait(&mut self, timeout: Duration) -> bool {
        let Some(ring) = &mut self.ring else { return false };
        let mut done = std::mem::take(&mut self.done);
        let started = crate::sync::time::Instant::now();
        let waited = if timeout.is_zero() { ring.reap(&mut done) } else { ring.wait(&mut done, Some(timeout)) };
        let is_idle = done.is_empty() && started.elapsed() >= timeout && !timeout.is_zero();
        done.drain(..).for_each(|done| self.end(done));
        self.done = done;
        if waited.is_err() {
            // The error is of the wait, not of a transfer; the next wait may succeed.
            crate::sync::thread::yield_now();
        }
        is_idle
    }

    fn end(&mut self, done: Done) {
        let Some(Write { write, of, .. }) = self.writes.remove(&done.token) else { return };
        let parts = &of.of.parts;
        match write.end(done) {
            // Wakes readers of these blocks before the rest of the range is stored.
            Ok(()) => parts.news.tell(),
            Err(error) => parts.note_unstored(&error),
        }
    }
}

impl Drop for Writes {
    fn drop(&mut self) {
        // Latches and claims end only with their writes.
        self.wait_while(|writes| !writes.writes.is_empty());
    }
}
