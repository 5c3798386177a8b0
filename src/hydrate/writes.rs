//! Storing what backfill fetched, many writes at once through a ring.
//!
//! A fetched range stays claimed until its last write has ended, so readers who wait for it are woken when it can be read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::claim::Claim;
use super::fill::Part;
use super::hydrator::Hydrator;
use super::wake::Waker;
use crate::error::{Error, Result};
use crate::io::{Done, Op, Reservation, Ring};
use crate::layer::{Admission, Admitted, Layer};
use crate::limits::EXTENT_BLOCKS;
use crate::place::Block;

/// Writes under way at once.
const DEPTH: u32 = 64;
/// Descriptors of a ring.
const RING_DESCRIPTORS: usize = 2;

/// A write that the ring has.
struct Write {
    part: Part,
    admitted: Admitted<Arc<Admission>, Arc<Layer>>,
    checksums: Vec<u32>,
    /// First block of the fetched range it belongs to.
    run: u64,
}

/// A fetched range, and how many of its writes are still under way.
struct Run<'a> {
    /// Given back with the last write.
    _claim: Claim<'a>,
    left: usize,
}

/// The writes of one backfill.
pub struct Writes<'a> {
    hydrator: &'a Hydrator,
    ring: Ring,
    writes: BTreeMap<u64, Write>,
    next: u64,
    runs: BTreeMap<u64, Run<'a>>,
    done: Vec<Done>,
}

impl<'a> Writes<'a> {
    pub fn new(hydrator: &'a Hydrator, ring: Ring) -> Self {
        Self { hydrator, ring, writes: BTreeMap::new(), next: 0, runs: BTreeMap::new(), done: Vec::new() }
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
    pub fn waker(&self) -> Waker {
        Waker::Ring(self.ring.waker())
    }

    /// Whether so many writes are under way that nothing more should be fetched.
    pub fn is_full(&self) -> bool {
        self.writes.len() >= DEPTH as usize
    }

    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// A claimed range is being fetched. Its claim ends when [`Writes::finish`] was called and everything of it is stored.
    pub fn expect(&mut self, claim: Claim<'a>) {
        // One more than there are writes, so that the claim does not end before all of them were begun.
        self.runs.insert(claim.run.start, Run { _claim: claim, left: 1 });
    }

    /// Stores blocks of the range that begins with `run`.
    pub fn store(&mut self, run: u64, blocks: Range<u64>, bytes: &Bytes) {
        let mut parts = self.hydrator.parts_to_fill(blocks, bytes);
        parts.reverse();
        while let Some(part) = parts.pop() {
            // A read that was tried again brings the same blocks again: nobody but this thread ends their writes.
            self.wait_while(|writes| writes.is_writing(&part));
            // Nothing is held while a round makes room for more, for others may hold the rest.
            self.wait_while(|writes| writes.hydrator.config.layers.is_full() && !writes.is_empty());
            let admitted = match self.hydrator.admit_part(&part) {
                Ok(Some(admitted)) => admitted,
                Ok(None) => {
                    parts.extend(self.hydrator.parts_left(&part));
                    continue;
                }
                Err(error) => {
                    self.hydrator.note_unstored(&error);
                    continue;
                }
            };
            if let Some(state) = self.runs.get_mut(&run) {
                state.left += 1;
            }
            if let Err(error) = self.begin(part, admitted, run) {
                self.hydrator.note_unstored(&error);
                self.end_one(run);
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

    fn is_writing(&self, part: &Part) -> bool {
        let overlaps =
            |other: &Part| other.extent == part.extent && other.range.start < part.range.end && part.range.start < other.range.end;
        self.writes.values().any(|write| overlaps(&write.part))
    }

    /// Nothing more comes for the range that begins with `run`.
    pub fn finish(&mut self, run: u64) {
        self.end_one(run);
    }

    /// Begins to write an admitted part.
    fn begin(&mut self, part: Part, mut admitted: Admitted<Arc<Admission>, Arc<Layer>>, run: u64) -> Result<()> {
        let config = &self.hydrator.config;
        let (layers, layer) = (&config.layers, &config.layer);
        let first = Block::new(part.extent * EXTENT_BLOCKS + part.range.start);
        let file = layers.blocks.data_file_to_write(layer, first)?;
        let checksums = layers.blocks.checksums_of(layer, first, &part.bytes);
        let (data, offset) = (layers.blocks.for_disk(&part.bytes), layers.blocks.place(first).1);
        admitted.touch();
        self.ring.push(self.next, Op::Write { file, data, offset });
        self.writes.insert(self.next, Write { part, admitted, checksums, run });
        self.next += 1;
        Ok(())
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
        let config = &self.hydrator.config;
        let first = Block::new(write.part.extent * EXTENT_BLOCKS + write.part.range.start);
        match (done.result, done.op) {
            (Ok(()), Op::Write { file, .. }) => {
                let segment = config.layers.blocks.place(first).0;
                write.admitted.finish(&write.checksums, (segment, &file));
                // Who waits for these blocks does not wait for the rest of their range.
                self.hydrator.changed.notify_all();
            }
            (result, _) => {
                let cause = result.err().unwrap_or_else(|| std::io::ErrorKind::Other.into());
                let error = Error::io(format!("cannot write layer {} at block {first}", config.layer.id), cause);
                write.admitted.fail(&error);
                self.hydrator.note_unstored(&error);
            }
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

impl Drop for Writes<'_> {
    fn drop(&mut self) {
        // Latches and claims end only with the writes.
        while !self.writes.is_empty() {
            if self.wait(Duration::from_millis(100)).is_err() {
                crate::sync::thread::yield_now();
            }
        }
    }
}
