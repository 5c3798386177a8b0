//! What a front end asks of a volume through a queue.

use bytes::Bytes;

use crate::error::Result;

/// One request. Offsets and lengths are bytes and need no alignment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Request {
    /// Reads `bytes` at `offset`.
    Read {
        /// First byte.
        offset: u64,
        /// Length.
        bytes: u32,
    },
    /// Writes `data` at `offset`.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes; owned by the queue until completion.
        data: Bytes,
        /// Durable before it completes.
        fua: bool,
    },
    /// Makes every write completed before it was submitted durable.
    Flush,
    /// Gives back the space of a range, which then reads as zero.
    Discard {
        /// First byte.
        offset: u64,
        /// Length.
        bytes: u64,
        /// Durable before it completes.
        fua: bool,
    },
    /// Makes a range read as zero.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Length.
        bytes: u64,
        /// Durable before it completes.
        fua: bool,
    },
    /// Writes zeros to a range, which has all its space afterwards.
    Provision {
        /// First byte.
        offset: u64,
        /// Length.
        bytes: u64,
        /// Durable before it completes.
        fua: bool,
    },
    /// Brings missing blocks of a range from the source, as a hint.
    Prefetch {
        /// First byte.
        offset: u64,
        /// Length.
        bytes: u64,
    },
}

/// The end of one request.
#[derive(Debug)]
#[non_exhaustive]
pub struct Completion {
    /// The number given when the request was submitted.
    pub token: u64,
    /// The bytes of a read (empty for every other request), or the error.
    pub result: Result<Bytes>,
}

/// What answers for a run of bytes of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunKind {
    /// Stored in a layer; the number counts layers from the head (1 is the head itself).
    Data {
        /// 1 for the volume's own open layer, 2 for its parent, and so on.
        depth: u32,
    },
    /// Reads as zero because it was discarded or zeroed, or never written.
    Zero,
    /// Still only at the source.
    Missing,
}

/// A run of bytes with one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Length in bytes, never 0.
    pub bytes: u64,
    /// What answers.
    pub kind: RunKind,
}
