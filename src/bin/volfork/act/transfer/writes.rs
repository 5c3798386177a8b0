//! The writes of an import that are under way.

use volfork::Queue;
use volfork::volume::{Completion, Request};

use crate::failure::Result;

/// Bytes of one request of an import or export.
pub(super) const PIECE_BYTES: usize = 1 << 20;
/// Requests under way at once.
pub(super) const DEPTH: u32 = 32;

/// A queue of writes that keeps [`DEPTH`] of them under way and forgets none of their errors.
pub(super) struct Writes {
    queue: Queue,
    completions: Vec<Completion>,
    token: u64,
}

impl Writes {
    pub(super) fn new(queue: Queue) -> Self {
        Self { queue, completions: Vec::new(), token: 0 }
    }

    /// Starts a write, after waiting for room.
    pub(super) fn write(&mut self, offset: u64, data: bytes::Bytes) -> Result<()> {
        while self.queue.in_flight() >= DEPTH as usize {
            self.queue.wait(&mut self.completions, None)?;
            self.settle()?;
        }
        self.token += 1;
        self.queue.submit(self.token, Request::Write { offset, data, fua: false })?;
        Ok(())
    }

    /// Hands what was submitted to the kernel.
    pub(super) fn push(&mut self) -> Result<()> {
        self.queue.reap(&mut self.completions)?;
        self.settle()
    }

    /// Waits for all of them.
    pub(super) fn finish(mut self) -> Result<()> {
        while self.queue.in_flight() > 0 {
            self.queue.wait(&mut self.completions, None)?;
            self.settle()?;
        }
        self.settle()
    }

    fn settle(&mut self) -> Result<()> {
        for completion in self.completions.drain(..) {
            completion.result?;
        }
        Ok(())
    }
}
