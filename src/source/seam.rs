//! The seam that sources implement.

use std::ops::Range;
use std::time::Duration;

use super::about::About;
use super::arrival::OnArrival;
use super::error::SourceError;

/// Priority of a read: whether a reader waits for it.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("image");
/// # std::fs::write(&path, vec![7; 8192])?;
/// use std::sync::mpsc;
/// use volfork::source::{Arrival, FileSource, OnArrival, ReadClass, Source};
///
/// let source = FileSource::open(&path)?;
/// let (sender, arrivals) = mpsc::channel();
/// // A reader waits: this read overtakes those of `ReadClass::Ahead` that were not sent yet.
/// source.read(0..4096, ReadClass::Waited, OnArrival::new(move |arrival| drop(sender.send(arrival))));
/// assert!(matches!(arrivals.iter().last(), Some(Arrival::End(Ok(())))));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadClass {
    /// A reader waits. The read is sent before all unsent reads of the other class.
    Waited,
    /// Backfill or read-ahead: no reader waits.
    Ahead,
}

/// A run of bytes of a source that are all data (or unknown), or all zero.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("image");
/// # std::fs::File::create(&path)?.set_len(1 << 20)?;
/// use volfork::source::{FileSource, Source};
///
/// let source = FileSource::open(&path)?;
/// // Zero extents need not be read. The answer may end before the range does, so that a caller asks again from there.
/// let (mut offset, mut zero_bytes) = (0, 0);
/// while offset < source.size_bytes() {
///     for extent in source.extents(offset..source.size_bytes())? {
///         zero_bytes += if extent.zero { extent.bytes } else { 0 };
///         offset += extent.bytes;
///     }
/// }
/// assert_eq!(offset, 1 << 20);
/// assert!(zero_bytes <= offset);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceExtent {
    /// Length in bytes, never 0.
    pub bytes: u64,
    /// Whether all of them read as zero.
    pub zero: bool,
}

/// Counters of one source since it was opened.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("image");
/// # std::fs::write(&path, vec![7; 8192])?;
/// use volfork::source::{FileSource, Source, SourceExt};
///
/// let source = FileSource::open(&path)?;
/// source.read_blocking(0..4096)?;
/// let stats = source.stats();
/// assert_eq!((stats.bytes_read, stats.requests, stats.errors), (4096, 1, 0));
/// // Only a source over a network measures it.
/// assert_eq!(stats.round_trip, None);
/// # Ok(())
/// # }
/// ```
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
    /// Shortest measured time of a small request.
    pub round_trip: Option<Duration>,
}

/// Read-only bytes elsewhere: an NBD export, objects in a bucket, a file.
///
/// Thread-safe; many reads may be under way at once and may finish in any order. Reads have no side effects, so an
/// implementation replays them after a reconnect.
///
/// The methods with a default are for sources that know more, have limits, or hold a connection. A source around another one passes all
/// of them on.
///
/// ```
/// use std::ops::Range;
/// use volfork::bytes::Bytes;
/// use volfork::source::{OnArrival, Part, ReadClass, Source, SourceExt};
///
/// /// Bytes in memory.
/// struct Memory(Bytes);
///
/// impl Source for Memory {
///     fn size_bytes(&self) -> u64 {
///         self.0.len() as u64
///     }
///     fn read(&self, range: Range<u64>, _class: ReadClass, mut arrival: OnArrival) {
///         // A source that has to wait returns here, and answers from another thread.
///         arrival.part(Part::new(range.start, self.0.slice(range.start as usize..range.end as usize)));
///         arrival.end(Ok(()));
///     }
///     fn describe(&self) -> String {
///         "memory://".into()
///     }
/// }
///
/// assert_eq!(Memory("abcdef".into()).read_blocking(2..4).unwrap(), "cd");
/// ```
pub trait Source: Send + Sync + 'static {
    /// Size in bytes; never changes for one handle.
    fn size_bytes(&self) -> u64;
    /// Most bytes of one [`Source::read`]; a power of two, at least 64 KiB. 1 MiB by default.
    fn read_bytes_max(&self) -> u32 {
        1 << 20
    }
    /// Offsets and lengths of reads must be multiples of this (a power of two; 1 for most), but a read may end at the size.
    fn align_bytes(&self) -> u32 {
        1
    }
    /// Starts a read of `range` (not empty, at most [`Source::read_bytes_max`], within the size, aligned). It must return within a bounded
    /// time, because a reader on this thread may be told to stop waiting: bytes that may take longer are delivered by another thread.
    fn read(&self, range: Range<u64>, class: ReadClass, arrival: OnArrival);
    /// Which bytes of `range` are zero. The extents cover a non-empty prefix of `range` in order and never reach past its end.
    /// The default, for a source that does not know, returns one data extent: all of `range` is read.
    ///
    /// # Errors
    /// The source failed.
    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>, SourceError> {
        Ok(vec![SourceExtent { bytes: range.end - range.start, zero: false }])
    }
    /// Identity of the bytes, if the source knows one: two sources that say the same have the same bytes, for ever.
    fn identity(&self) -> Option<String> {
        None
    }
    /// Whether the bytes may change while they are read. Then blocks fetched at different times may be of different instants.
    fn is_writable(&self) -> bool {
        false
    }
    /// Byte ranges in the order in which an earlier fork first touched them; empty if the source has no recording.
    ///
    /// # Errors
    /// The source failed.
    fn trace(&self) -> Result<Vec<Range<u64>>, SourceError> {
        Ok(Vec::new())
    }
    /// Store id, live identity and labels of the bytes; a fork inherits the labels. The engine validates it.
    fn about(&self) -> About {
        About::default()
    }
    /// The address, without secrets.
    fn describe(&self) -> String;
    /// Counters since the source was opened. Must not block. By default nothing is counted. The engine itself shows only the round-trip
    /// time.
    fn stats(&self) -> SourceStats {
        SourceStats::default()
    }
    /// Gives up the connection; reads under way and later ones end with [`super::SourceErrorKind::Closed`]. The default does nothing, for
    /// a source that answers its reads at once and holds no connection. The engine ends the reads of a source that it closes in any case.
    fn close(&self) {}
}
