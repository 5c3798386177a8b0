//! Named, sized heads and what can be done with them.
mod info;
mod request;

use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

pub use info::{BlockCounts, HydrationInfo, HydrationState, SnapshotInfo, VolumeInfo, VolumeState};
pub use request::{Completion, Request, Run, RunKind};

use crate::error::{Error, ErrorKind, Result};
use crate::io::RingKind;

fn stub<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "stub"))
}

/// A named, sized, writable head. Cheap to clone; all clones are the same volume.
#[derive(Clone)]
pub struct Volume(());

impl Volume {
    /// Name at this moment.
    pub fn name(&self) -> String {
        String::new()
    }
    /// Size in bytes at this moment.
    pub fn size_bytes(&self) -> u64 {
        0
    }
    /// Block size of the store.
    pub fn block_bytes(&self) -> u32 {
        4096
    }
    /// Fills `buffer` from `offset`.
    pub fn read_at(&self, _buffer: &mut [u8], _offset: u64) -> Result<()> {
        stub()
    }
    /// Writes `data` at `offset`.
    pub fn write_at(&self, _data: &[u8], _offset: u64) -> Result<()> {
        stub()
    }
    /// Barrier.
    pub fn flush(&self) -> Result<()> {
        stub()
    }
    /// Discards.
    pub fn discard(&self, _offset: u64, _bytes: u64) -> Result<()> {
        stub()
    }
    /// Zeroes.
    pub fn write_zeroes(&self, _offset: u64, _bytes: u64) -> Result<()> {
        stub()
    }
    /// What answers for the bytes of `range`; at most `runs_max` runs, coalesced.
    pub fn runs(&self, _range: Range<u64>, _runs_max: usize) -> Result<Vec<Run>> {
        stub()
    }
    /// A queue of its own ring.
    pub fn queue(&self, _depth: u32) -> Result<Queue> {
        stub()
    }
}

/// A named, read-only sealed layer and its chain.
#[derive(Clone)]
pub struct Snapshot(());

impl Snapshot {
    /// `volume@snapshot`.
    pub fn name(&self) -> String {
        String::new()
    }
    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        0
    }
    /// Block size of the store.
    pub fn block_bytes(&self) -> u32 {
        4096
    }
    /// Fills `buffer` from `offset`.
    pub fn read_at(&self, _buffer: &mut [u8], _offset: u64) -> Result<()> {
        stub()
    }
    /// What answers for the bytes of `range`; at most `runs_max` runs, coalesced.
    pub fn runs(&self, _range: Range<u64>, _runs_max: usize) -> Result<Vec<Run>> {
        stub()
    }
    /// A queue of its own ring (reads only).
    pub fn queue(&self, _depth: u32) -> Result<Queue> {
        stub()
    }
}

/// Many requests at once from one thread. `as_raw_fd` is readable (poll) when `reap` has something to give.
pub struct Queue(());

impl Queue {
    /// Starts a request; at most `depth` may be under way ([`ErrorKind::Busy`] otherwise).
    pub fn submit(&mut self, _token: u64, _request: Request) -> Result<()> {
        stub()
    }
    /// Hands submitted requests to the kernel and takes the completions that are ready, without waiting.
    pub fn reap(&mut self, _completions: &mut Vec<Completion>) -> Result<usize> {
        stub()
    }
    /// Like `reap`, but waits for at least one (if any is under way), at most `timeout`.
    pub fn wait(&mut self, _completions: &mut Vec<Completion>, _timeout: Option<Duration>) -> Result<usize> {
        stub()
    }
    /// Requests under way.
    pub fn in_flight(&self) -> usize {
        0
    }
    /// How it talks to the kernel.
    pub fn kind(&self) -> RingKind {
        RingKind::Threads
    }
}

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        -1
    }
}
