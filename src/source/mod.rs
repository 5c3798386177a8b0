//! Read-only bytes below the root of a chain, elsewhere.
//!
//! The cast: a [`Source`] is a seam that embedders implement, and [`OnArrival`] the callback of one read; `guarded` is how the
//! engine holds a source of which it believes nothing, and `connect` how it comes to one; `gather` makes reads of any length and
//! alignment of those that a source allows.
//!
//! # Invariants
//! - A source that panics, drops a callback, answers without bytes or never answers costs its own requests and nothing else.
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]

mod about;
mod arrival;
mod connect;
mod file;
mod gather;
mod guarded;
mod lease;
mod nbd;
mod opener;
mod uri;

pub use about::About;
pub use arrival::{Arrival, OnArrival};
pub(crate) use connect::{Connector, Since};
pub use file::FileSource;
pub use lease::{Lease, LeaseAction, LeaseGrant, LeaseRequest, LeasedSource};
pub use nbd::{NbdOptions, NbdSource};
pub use opener::UriSources;
pub(crate) use opener::host_of;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::limits::BLOCK_BYTES_MAX;

/// Parts of a read begin and end at multiples of this: no block of any store lies in two of them.
pub const PART_ALIGN_BYTES: u64 = BLOCK_BYTES_MAX as u64;

/// Bytes of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where they are in the source.
    pub offset: u64,
    /// The bytes.
    pub bytes: Bytes,
    /// What the source says of them.
    pub checksums: Checksums,
}

impl Part {
    /// Bytes of which the source says nothing.
    pub fn new(offset: u64, bytes: Bytes) -> Self {
        Self { offset, bytes, checksums: Checksums::default() }
    }

    /// The bytes that lie in a range.
    pub fn within(&self, range: &Range<u64>) -> Option<Self> {
        let end = self.offset + self.bytes.len() as u64;
        let (start, end) = (self.offset.max(range.start), end.min(range.end));
        let bytes = (start < end).then(|| self.bytes.slice((start - self.offset) as usize..(end - self.offset) as usize))?;
        Some(Self { offset: start, bytes, checksums: self.checksums.clone() })
    }

    /// The first block (as the source divides its bytes) that is not what the source says it is: its offset. The bytes were
    /// damaged on their way, or at the source.
    pub fn damage(&self) -> Option<u64> {
        let Checksums { block_bytes, first, ref values } = self.checksums;
        if block_bytes == 0 || block_bytes > BLOCK_BYTES_MAX {
            // Nobody divides bytes like that: it says nothing.
            return None;
        }
        let block_bytes = u64::from(block_bytes);
        let end = self.offset + self.bytes.len() as u64;
        let at = |number: u64| first.checked_add(number.checked_mul(block_bytes)?);
        let blocks = values.iter().zip(0u64..).filter_map(|(value, number)| Some(((*value)?, at(number)?)));
        let mut inside = blocks.filter(|(_, offset)| *offset >= self.offset && *offset < end);
        inside
            .find(|(checksum, offset)| {
                let start = (offset - self.offset) as usize;
                let bytes = &self.bytes[start..self.bytes.len().min(start + block_bytes as usize)];
                content_checksum(bytes, block_bytes as usize) != *checksum
            })
            .map(|(_, offset)| offset)
    }
}

/// The crc32 (IEEE) of a block that may be cut short by the end of its volume: the rest is zero.
pub fn content_checksum(bytes: &[u8], block_bytes: usize) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(bytes);
    let mut zeros = block_bytes.saturating_sub(bytes.len());
    while zeros > 0 {
        let some = zeros.min(BLOCK_BYTES_MAX as usize);
        hasher.update(&[0; BLOCK_BYTES_MAX as usize][..some]);
        zeros -= some;
    }
    hasher.finalize()
}

/// Checksums of consecutive blocks of a source. Blocks of [`Part::bytes`] that are not whole have none, except the last one of
/// the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checksums {
    /// How the source divides its bytes.
    pub block_bytes: u32,
    /// Offset of the first block.
    pub first: u64,
    /// crc32 (IEEE) of each block; `None` where it is not known.
    pub values: Vec<Option<u32>>,
}

/// Whether somebody waits for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadClass {
    /// A reader waits: goes before everything of the other class that was not sent yet.
    Waited,
    /// Nobody waits yet.
    Ahead,
}

/// What a read of a [`Source`] ends with when it has no bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceError {
    /// Whether another try may succeed.
    pub kind: SourceErrorKind,
    /// A sentence that names the source and what failed.
    pub message: String,
}

/// Whether another try may succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceErrorKind {
    /// The source does not answer, after the bounded retries of the source itself. It may come back.
    Lost,
    /// The source answered that it cannot give this range (EIO at its side). It may be able to later.
    Failed,
    /// The source is not what it was (another size), or breaks the protocol. Retrying is useless.
    Changed,
    /// The bytes are not what their checksums say.
    Damaged,
    /// This handle was closed.
    Closed,
    /// The address or an option is wrong.
    Invalid,
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for SourceError {}

/// A run of bytes of a source that are all data (or unknown), or all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceExtent {
    /// Length in bytes, never 0.
    pub bytes: u64,
    /// Whether all of them read as zero.
    pub zero: bool,
}

/// What a source has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceStats {
    /// Bytes received as data.
    pub bytes_read: u64,
    /// Requests answered.
    pub requests: u64,
    /// Requests that ended in an error.
    pub errors: u64,
    /// Connections made again after a loss.
    pub reconnects: u64,
    /// Shortest time of a small request, if one was measured.
    pub round_trip: Option<Duration>,
}

/// Read-only bytes elsewhere: an NBD export, objects in a bucket, a file.
///
/// Thread-safe; many reads may be under way at once and may finish in any order. Reads have no side effects, so an
/// implementation replays them after a reconnect.
pub trait Source: Send + Sync + 'static {
    /// Size in bytes; never changes for one handle.
    fn size_bytes(&self) -> u64;
    /// Most bytes of one [`Source::read`]; a power of two, at least 64 KiB.
    fn read_bytes_max(&self) -> u32;
    /// Offsets and lengths of reads must be multiples of this (a power of two; 1 for most), but a read may end at the size.
    fn align_bytes(&self) -> u32 {
        1
    }
    /// Starts a read of `range` (not empty, at most [`Source::read_bytes_max`], within the size, aligned). The caller's thread may be
    /// that of a reader which can be told not to wait any longer: the bytes are waited for on another one, unless they come within
    /// a bounded time.
    fn read(&self, range: Range<u64>, class: ReadClass, arrival: OnArrival);
    /// Which bytes of `range` are zero. The extents cover a non-empty prefix of `range` in order (they never reach past its end).
    /// A source that cannot tell answers one data extent.
    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>, SourceError>;
    /// Identity of the bytes, if the source knows one: two sources that say the same have the same bytes, for ever.
    fn identity(&self) -> Option<String> {
        None
    }
    /// Whether others may write the bytes while they are read: what is fetched at different times is then of different instants.
    fn is_writable(&self) -> bool {
        false
    }
    /// Ranges in the order in which an earlier fork first touched them, if the source knows; bounded.
    ///
    /// # Errors
    /// The source failed.
    fn trace(&self) -> Result<Vec<Range<u64>>, SourceError> {
        Ok(Vec::new())
    }
    /// What it tells beside its bytes: a fork inherits the labels. It is bounded, and nothing of it is believed before
    /// it is looked at.
    fn about(&self) -> About {
        About::default()
    }
    /// The address, without secrets.
    fn describe(&self) -> String;
    /// Counters.
    fn stats(&self) -> SourceStats;
    /// Gives up the connection; reads under way and later ones end with [`SourceErrorKind::Closed`].
    fn close(&self);
}

/// Blocking calls over any [`Source`].
pub trait SourceExt {
    /// Reads `range` (of any length and alignment) and waits.
    ///
    /// # Errors
    /// The read failed, or what came is damaged.
    fn read_blocking(&self, range: Range<u64>) -> Result<Bytes, SourceError>;
    /// As [`Source::read`], for a range of any length and alignment: parts may reach beyond it as far as the source's alignment.
    fn read_any(&self, range: Range<u64>, class: ReadClass, arrival: OnArrival);
}

impl<S: Source + ?Sized> SourceExt for S {
    fn read_blocking(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
        if range.start > range.end || range.end > self.size_bytes() {
            let message = format!("{} has no bytes {} to {}", self.describe(), range.start, range.end);
            return Err(SourceError { kind: SourceErrorKind::Invalid, message });
        }
        let mut all = bytes::BytesMut::zeroed((range.end - range.start) as usize);
        let (sender, receiver) = crate::sync::mpsc::channel();
        self.read_any(range.clone(), ReadClass::Waited, OnArrival::new(move |arrival| drop(sender.send(arrival))));
        loop {
            match receiver.recv() {
                Ok(Arrival::Part(part)) => {
                    if let Some(damaged) = part.damage() {
                        return Err(damaged_error(&self.describe(), damaged));
                    }
                    let Some(part) = part.within(&range) else { continue };
                    let at = (part.offset - range.start) as usize;
                    all[at..at + part.bytes.len()].copy_from_slice(&part.bytes);
                }
                Ok(Arrival::End(result)) => return result.map(|()| all.freeze()),
                Err(_) => return Err(SourceError { kind: SourceErrorKind::Closed, message: "the source dropped a read".into() }),
            }
        }
    }

    fn read_any(&self, range: Range<u64>, class: ReadClass, arrival: OnArrival) {
        gather::read(self, &range, class, arrival);
    }
}

/// The error for a block that arrived damaged.
pub(crate) fn damaged_error(source: &str, offset: u64) -> SourceError {
    let message = format!("{source} sent bytes at offset {offset} that do not match their checksum");
    SourceError { kind: SourceErrorKind::Damaged, message }
}

/// How sources are opened from the address that is kept with a layer.
pub trait SourceOpener: Send + Sync + 'static {
    /// Connects to `uri` and learns its size.
    fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError>;

    /// Whether a source at this address may know leases. Of one that may, a fork notes that it is about to ask, so that a lease which it
    /// does not live to see is given back. Answers at once.
    fn lends(&self, _uri: &str) -> bool {
        true
    }

    /// As [`SourceOpener::open`], with a lease of the bytes if the source knows leases. [`LeaseAction::Take`] fails if the source
    /// refuses the lease; [`LeaseAction::Hold`] goes on without.
    fn open_leased(&self, uri: &str, _request: &LeaseRequest) -> Result<LeasedSource, SourceError> {
        self.open(uri).map(|source| LeasedSource { source, lease: None })
    }

    /// Renews a lease, or gives it back, without opening the source; `None` if it was given back, or the source knows no leases.
    ///
    /// # Errors
    /// [`SourceErrorKind::Lost`]: nobody answers. Any other: the lease is refused.
    fn lease(&self, _uri: &str, _request: &LeaseRequest) -> Result<Option<Lease>, SourceError> {
        Ok(None)
    }

    /// How long a reader waits for addresses that cannot be reached: they are asked again until then.
    fn patience(&self) -> Duration {
        Duration::ZERO
    }
}
