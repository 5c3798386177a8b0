//! Storing what backfill fetched, many writes at once through a ring.
//!
//! A fetched range stays claimed until its last write has ended, so readers who wait for it are woken when it can be read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::hydrate::claims::Claim;
use crate::hydrate::pace::Wake;
use crate::hydrate::parts::Parts;
use crate::hydrate::root::Part;
use crate::io::{Done, Reservation, Ring};
use crate::layer::RingWrite;
use crate::place::ExtentSpan;

/// Writes under way at once.
const DEPTH: u32 = 64;
/// Descriptors of a ring.
const RING_DESCRIPTORS: usize = 2;

/// A write that the ring has.
struct Write {
    span: ExtentSpan,
    write: RingWrite,
    /// First block of the fetched range it belongs to.
    run: u64,
}

/// A fetched range, and how many of its writes are still under way.
struct Run {
    /// Given back with the last write.
    _claim: Claim,
    left: usize,
}

/// The writes of one backfill.
pub struct Writes {
    parts: Arc<Parts>,
    ring: Ring,
    writes: BTreeMap<u64, Write>,
    next: u64,
    runs: BTreeMap<u64, Run>,
    done: Vec<Done>,
}

impl Writes {
    pub fn new(parts: &Arc<Parts>, ring: Ring) -> Self {
        Self { parts: Arc::clone(parts), ring, writes: BTreeMap::new(), next: 0, runs: BTreeMap::new(), done: Vec::new() }
    }

    /// A ring for the writes.
    ///
    /// # Errors
    /// The machine has no room for another one, or the process is short of descriptors.
    pub fn ring() -> std::io::Result<Ring> {
        let Some(_reserved) = Reservation::take(RING_DESCRIPTORS, 2) else {
            return Err(std::io::Error::from_raw_os_error(libc::EMFILE));
        };
        Ring::new(DEPTH, None)
    }

    /// Ends a wait of [`Writes::wait`].
    pub fn wake(&self) -> Wake {
        let waker = self.ring.waker();
        Arc::new(move || waker.wake())
    }

    /// Whether so many writes are under way that nothing more should be fetched.
    pub fn is_full(&self) -> bool {
        self.writes.len() >= DEPTH as usize
    }

    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// A claimed range is being fetched. Its claim ends when [`Writes::finish`] was called and everything of it is stored.
    pub fn expect(&mut self, claim: Claim) {
        // One more than there are writes, so that the claim does not end before all of them were begun.
        self.runs.insert(claim.run.start, Run { _claim: claim, left: 1 });
    }

    /// Stores blocks of the range that begins with `run`.
    pub fn store(&mut self, run: u64, blocks: &Range<u64>, bytes: &Bytes) {
        let mut parts = self.parts.root.parts_to_fill(blocks, bytes);
        parts.reverse();
        while let Some(part) = parts.pop() {
            // A read that was tried again brings the same blocks again: nobody but this thread ends their writes.
            self.wait_while(|writes| writes.is_writing(part.span));
            // Nothing is held while a round makes room for more, for others may hold the rest.
            self.wait_while(|writes| writes.parts.root.layers.is_full() && !writes.is_empty());
            match self.begin(&part, run) {
                Ok(true) => {}
                Ok(false) => parts.extend(self.parts.root.parts_left(&part)),
                Err(error) => self.parts.note_unstored(&error),
            }
        }
    }

    /// Ends writes as long as this holds of those that are left.
    fn wait_while(&mut self, holds: impl Fn(&Self) -> bool) {
        while holds(self) {
            if self.wait(Duration::from_millis(100)).is_err() {
                crate::sync::thread::yield_now();
            }
        }
    }

    fn is_writing(&self, span: ExtentSpan) -> bool {
        let overlaps = |other: ExtentSpan| other.extent == span.extent && !other.indices.and(span.indices).is_empty();
        self.writes.values().any(|write| overlaps(write.span))
    }

    /// Nothing more comes for the range that begins with `run`.
    pub fn finish(&mut self, run: u64) {
        self.end_one(run);
    }

    /// Begins to write a part. `false`: some of its blocks have come from elsewhere.
    fn begin(&mut self, part: &Part, run: u64) -> Result<bool> {
        let root = &self.parts.root;
        let Some(admitted) = root.admit_part(part)? else { return Ok(false) };
        let (write, op) = RingWrite::begin(&root.layers.admission, &root.layer, part.span.first(), vec![admitted], &part.bytes)?;
        if let Some(state) = self.runs.get_mut(&run) {
            state.left += 1;
        }
        self.writes.insert(self.next, Write { span: part.span, write, run });
        self.ring.push(self.next, op);
        self.next += 1;
        Ok(true)
    }

    /// Hands writes to the kernel and takes those that ended; waits for something to happen, at most so long.
    ///
    /// # Errors
    /// The ring failed.
    pub fn wait(&mut self, timeout: Duration) -> Result<()> {
        let mut done = std::mem::take(&mut self.done);
        let waited = if timeout.is_zero() { self.ring.reap(&mut done) } else { self.ring.wait(&mut done, Some(timeout)) };
        for done in done.drain(..) {
            self.end(done);
        }
        self.done = done;
        waited.map(drop).map_err(|error| Error::io("the ring failed", error))
    }

    fn end(&mut self, done: Done) {
        let Some(write) = self.writes.remove(&done.token) else { return };
        match write.write.end(done) {
            // A reader that waits for these blocks does not wait for the rest of their range.
            Ok(()) => self.parts.news.tell(),
            Err(error) => self.parts.note_unstored(&error),
        }
        self.end_one(write.run);
    }

    fn end_one(&mut self, run: u64) {
        if let Some(state) = self.runs.get_mut(&run) {
            state.left -= 1;
            if state.left == 0 {
                self.runs.remove(&run);
            }
        }
    }
}

impl Drop for Writes {
    fn drop(&mut self) {
        // Latches and claims end only with the writes.
        while !self.writes.is_empty() {
            if self.wait(Duration::from_millis(100)).is_err() {
                crate::sync::thread::yield_now();
            }
        }
    }
}
