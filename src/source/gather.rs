//! Blocking reads and reads of any length and alignment, composed of the aligned and bounded reads that a source allows.
//!
//! # Invariants
//! - A source is not trusted to keep its contract: a part that is not aligned is joined with its neighbours, a part that cannot be in
//!   the range fails the read, and a read that ends before all bytes have come fails.
//! - Memory is bounded by the range: pieces that are not aligned are kept in windows of [`PART_ALIGN_BYTES`].

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::{Arrival, OnArrival, PART_ALIGN_BYTES, Part, ReadClass, Source, SourceError, SourceErrorKind, damaged_error};
use crate::place::{length, wide};
use crate::sync::{Mutex, MutexGuard, Rank};

/// Blocking calls over any [`Source`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("image");
/// # std::fs::write(&path, b"header and body")?;
/// use volfork::source::{FileSource, SourceErrorKind, SourceExt};
///
/// let source = FileSource::open(&path)?;
/// // Any length and alignment, whatever the source itself allows.
/// assert_eq!(source.read_blocking(0..6)?, "header");
/// assert_eq!(source.read_blocking(10..1000).unwrap_err().kind, SourceErrorKind::Invalid);
/// # Ok(())
/// # }
/// ```
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
        let mut all = bytes::BytesMut::zeroed(length(range.end - range.start));
        let (sender, receiver) = crate::sync::mpsc::channel();
        self.read_any(range.clone(), ReadClass::Waited, OnArrival::new(move |arrival| drop(sender.send(arrival))));
        loop {
            match receiver.recv() {
                Ok(Arrival::Part(part)) => {
                    if let Some(damaged) = part.damage() {
                        return Err(damaged_error(&self.describe(), damaged));
                    }
                    let Some(part) = part.within(&range) else { continue };
                    let at = length(part.offset - range.start);
                    all[at..at + part.bytes.len()].copy_from_slice(&part.bytes);
                }
                Ok(Arrival::End(result)) => return result.map(|()| all.freeze()),
                Err(_) => return Err(SourceError { kind: SourceErrorKind::Closed, message: "the source dropped a read".into() }),
            }
        }
    }

    fn read_any(&self, range: Range<u64>, class: ReadClass, arrival: OnArrival) {
        read(self, &range, class, arrival);
    }
}

/// Byte ranges that have arrived, from start to end; ranges that touch are joined.
#[derive(Default)]
struct Cover(BTreeMap<u64, u64>);

impl Cover {
    fn insert(&mut self, range: &Range<u64>) {
        let (mut start, mut end) = (range.start, range.end);
        while let Some((other, other_end)) = self.0.range(..=end).next_back().map(|(start, end)| (*start, *end)) {
            if other_end < start {
                break;
            }
            (start, end) = (start.min(other), end.max(other_end));
            self.0.remove(&other);
        }
        self.0.insert(start, end);
    }

    fn has(&self, range: &Range<u64>) -> bool {
        self.0.range(..=range.start).next_back().is_some_and(|(_, end)| *end >= range.end)
    }
}

/// A window of which not all bytes have come.
struct Window {
    bytes: BytesMut,
    covered: Cover,
}

/// A read of any length that is under way.
struct Gather {
    source: String,
    range: Range<u64>,
    /// `None` while a thread calls it, and once the read has ended.
    arrival: Option<OnArrival>,
    /// What the callback has not got yet, in order.
    ready: VecDeque<Arrival>,
    covered: Cover,
    windows: BTreeMap<u64, Window>,
    /// Reads of the source that have not ended.
    left: usize,
    result: Result<(), SourceError>,
}

/// Reads `range`; parts reach beyond it as far as the source's alignment does.
fn read<S: Source + ?Sized>(source: &S, range: &Range<u64>, class: ReadClass, arrival: OnArrival) {
    // A source that `Guarded` has not checked may answer 0.
    let (align, step) = (u64::from(source.align_bytes()).max(1), u64::from(source.read_bytes_max()).max(1));
    let start = range.start / align * align;
    let end = range.end.checked_next_multiple_of(align).unwrap_or(u64::MAX).min(source.size_bytes());
    if start >= end {
        return arrival.end(Ok(()));
    }
    // Reads are cut at multiples of `step`, which parts do not cross either.
    let cuts = (start / step + 1..end.div_ceil(step)).map(|number| number * step);
    let bounds: Vec<u64> = std::iter::once(start).chain(cuts).chain([end]).collect();
    let gather = Arc::new(Mutex::ranked(
        Rank::SourceGather,
        Gather {
            source: source.describe(),
            range: start..end,
            arrival: Some(arrival),
            ready: VecDeque::new(),
            covered: Cover::default(),
            windows: BTreeMap::new(),
            left: bounds.len() - 1,
            result: Ok(()),
        },
    ));
    for piece in bounds.windows(2) {
        let gather = Arc::clone(&gather);
        source.read(piece[0]..piece[1], class, OnArrival::new(move |arrival| take(&gather, arrival)));
    }
}

/// Takes what a read of the source has answered, and hands on what is ready, in order. The callback is called without the lock: it takes
/// those of another read, if a source reads from another source.
fn take(gather: &Mutex<Gather>, arrival: Arrival) {
    let mut gather = gather.lock();
    gather.take(arrival);
    // Otherwise a thread that calls it hands this on as well.
    let Some(mut callback) = gather.arrival.take() else { return };
    while let Some(ready) = gather.ready.pop_front() {
        match ready {
            Arrival::Part(part) => MutexGuard::unlocked(&mut gather, || callback.part(part)),
            Arrival::End(result) => {
                drop(gather);
                return callback.end(result);
            }
        }
    }
    gather.arrival = Some(callback);
}

impl Gather {
    fn take(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Part(part) => {
                if !part.bytes.is_empty()
                    && let Err(error) = self.take_part(&part)
                {
                    // Reported at the end, when no read of the source is under way any more.
                    self.fail(error);
                }
            }
            Arrival::End(result) => {
                if let Err(error) = result {
                    self.fail(error);
                }
                self.left = self.left.saturating_sub(1);
                if self.left == 0 {
                    self.end();
                }
            }
        }
    }

    fn fail(&mut self, error: SourceError) {
        if self.result.is_ok() {
            self.result = Err(error);
        }
    }

    fn end(&mut self) {
        let result = match std::mem::replace(&mut self.result, Ok(())) {
            Ok(()) if !self.covered.has(&self.range) => Err(self.broken("says that a read has ended, but not all of its bytes have come")),
            result => result,
        };
        self.ready.push_back(Arrival::End(result));
    }

    fn broken(&self, what: &str) -> SourceError {
        SourceError { kind: SourceErrorKind::Changed, message: format!("{} {what}", self.source) }
    }

    fn take_part(&mut self, part: &Part) -> Result<(), SourceError> {
        let Some(end) = part.offset.checked_add(wide(part.bytes.len())) else {
            return Err(self.broken("sent bytes behind the end of everything"));
        };
        let is_cut = |at: u64| at.is_multiple_of(PART_ALIGN_BYTES) || at == self.range.start || at == self.range.end;
        if self.range.start <= part.offset && end <= self.range.end && is_cut(part.offset) && is_cut(end) {
            self.hand_on(part.clone());
            return Ok(());
        }
        // Verified here: the cut pieces have no checksums, because blocks may be cut in two.
        if let Some(offset) = part.damage() {
            return Err(damaged_error(&self.source, offset));
        }
        let Some(part) = part.within(&self.range) else { return Ok(()) };
        let end = part.offset + wide(part.bytes.len());
        let mut at = part.offset;
        while at < end {
            let first = at / PART_ALIGN_BYTES * PART_ALIGN_BYTES;
            let window = first.max(self.range.start)..(first + PART_ALIGN_BYTES).min(self.range.end);
            let piece = at..end.min(window.end);
            at = piece.end;
            if let Some(bytes) = part.within(&piece).map(|piece| piece.bytes) {
                self.take_piece(&window, piece.start, bytes);
            }
        }
        Ok(())
    }

    /// Adds bytes to the window `bounds`, and hands the window on when all of its bytes have arrived.
    fn take_piece(&mut self, bounds: &Range<u64>, offset: u64, bytes: Bytes) {
        if wide(bytes.len()) == bounds.end - bounds.start {
            return self.hand_on(Part::new(offset, bytes));
        }
        let make = || Window { bytes: BytesMut::zeroed(length(bounds.end - bounds.start)), covered: Cover::default() };
        let window = self.windows.entry(bounds.start).or_insert_with(make);
        let at = length(offset - bounds.start);
        window.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
        window.covered.insert(&(offset..offset + wide(bytes.len())));
        if window.covered.has(bounds)
            && let Some(window) = self.windows.remove(&bounds.start)
        {
            self.hand_on(Part::new(bounds.start, window.bytes.freeze()));
        }
    }

    fn hand_on(&mut self, part: Part) {
        self.covered.insert(&(part.offset..part.offset + wide(part.bytes.len())));
        self.ready.push_back(Arrival::Part(part));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::FileSource;
    use crate::source::guarded::Guarded;

    /// A source of an embedder that reads from another one.
    struct Forward(FileSource);

    impl Source for Forward {
        fn size_bytes(&self) -> u64 {
            self.0.size_bytes()
        }

        fn read(&self, range: Range<u64>, class: ReadClass, arrival: OnArrival) {
            self.0.read_any(range, class, arrival);
        }

        fn describe(&self) -> String {
            self.0.describe()
        }
    }

    #[test]
    fn a_source_may_read_any_range_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![7; 300_000]).unwrap();
        let source = Guarded::new("far://x", Arc::new(Forward(FileSource::open(&path).unwrap()))).unwrap();
        assert_eq!(source.read_blocking(1..300_000).unwrap(), vec![7; 299_999]);
    }
}
