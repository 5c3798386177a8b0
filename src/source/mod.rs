//! Read-only bytes below the root of a chain, elsewhere.
mod file;
mod nbd;
mod opener;

pub use file::FileSource;
pub use nbd::{NbdOptions, NbdSource};
pub use opener::UriSources;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

/// Called exactly once with the bytes of the whole range asked for, or why they could not be had; on any thread,
/// perhaps before [`Source::read`] returns.
pub type ReadDone = Box<dyn FnOnce(Result<Bytes, SourceError>) + Send + 'static>;

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
pub enum SourceErrorKind {
    /// The source does not answer, after the bounded retries of the source itself. It may come back.
    Lost,
    /// The source answered that it cannot give this range (EIO at its side). It may be able to later.
    Failed,
    /// The source is not what it was (another size), or breaks the protocol. Retrying is useless.
    Changed,
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
    /// Starts a read of `range` (not empty, at most [`Source::read_bytes_max`], within the size, aligned).
    fn read(&self, range: Range<u64>, done: ReadDone);
    /// Which bytes of `range` are zero. The extents cover a non-empty prefix of `range` in order (they never reach past its end).
    /// A source that cannot tell answers one data extent.
    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>, SourceError>;
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
    fn read_blocking(&self, range: Range<u64>) -> Result<Bytes, SourceError>;
}

impl<S: Source + ?Sized> SourceExt for S {
    fn read_blocking(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
        let align = u64::from(self.align_bytes());
        let step = u64::from(self.read_bytes_max());
        let start = range.start / align * align;
        let end = range.end.next_multiple_of(align).min(self.size_bytes());
        let mut all = bytes::BytesMut::with_capacity((end - start) as usize);
        let mut offset = start;
        while offset < end {
            let next = (offset + step).min(end);
            let (sender, receiver) = std::sync::mpsc::sync_channel(1);
            self.read(offset..next, Box::new(move |result| drop(sender.send(result))));
            let bytes = receiver
                .recv()
                .unwrap_or_else(|_| Err(SourceError { kind: SourceErrorKind::Closed, message: "the source dropped a read".into() }))?;
            all.extend_from_slice(&bytes);
            offset = next;
        }
        Ok(all.freeze().slice((range.start - start) as usize..(range.end - start) as usize))
    }
}

/// How sources are opened from the address that is kept with a layer.
pub trait SourceOpener: Send + Sync + 'static {
    /// Connects to `uri` and learns its size.
    fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError>;
}
