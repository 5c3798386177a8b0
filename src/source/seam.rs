//! What a source has to do.

use std::ops::Range;
use std::time::Duration;

use super::about::About;
use super::arrival::OnArrival;
use super::error::SourceError;

/// Whether somebody waits for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadClass {
    /// A reader waits: goes before everything of the other class that was not sent yet.
    Waited,
    /// Nobody waits yet.
    Ahead,
}

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
    /// Gives up the connection; reads under way and later ones end with [`super::SourceErrorKind::Closed`].
    fn close(&self);
}
