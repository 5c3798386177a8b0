//! Presence and differences of large ranges as iterators, which ask for one page at a time.

use std::ops::Range;

use super::handle::{Snapshot, Volume};
use super::request::{Run, RunKind};
use crate::error::Result;

/// Runs of a page.
const PAGE_RUNS: usize = 1024;

/// Gives what answers for the bytes from the start of a range.
type RunPage<'a> = Box<dyn FnMut(Range<u64>) -> Result<Vec<Run>> + 'a>;
/// Gives the changed bytes of a range, at most [`PAGE_RUNS`] runs.
type ChangePage<'a> = Box<dyn FnMut(Range<u64>) -> Result<Vec<Range<u64>>> + 'a>;

/// What answers for each run of bytes of a range, in order ([`Volume::run_iter`]). Each page is of one moment; writes between two pages
/// are seen by the later one. It ends after an error.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::volume::RunKind;
///
/// let volume = store.create_volume("v", 1 << 40)?;
/// volume.write_at(&[1; 4096], 1 << 39)?;
/// let mut data_bytes = 0;
/// for run in volume.run_iter(0..volume.size_bytes()) {
///     let (range, kind) = run?;
///     if kind != RunKind::Zero {
///         data_bytes += range.end - range.start;
///     }
/// }
/// assert_eq!(data_bytes, 4096);
/// # Ok(())
/// # }
/// ```
pub struct RunIter<'a> {
    page: RunPage<'a>,
    left: Range<u64>,
    runs: std::vec::IntoIter<Run>,
}

/// The bytes of a range that were changed since a snapshot, in order ([`Volume::change_iter`]). Runs that touch may come apart. It ends
/// after an error.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// let volume = store.create_volume("v", 1 << 30)?;
/// volume.create_snapshot("monday")?;
/// volume.write_at(&[1; 8192], 1 << 20)?;
/// // An incremental backup: only what was changed since the last one is read and kept.
/// let mut backup = Vec::new();
/// for range in volume.change_iter("monday", 0..volume.size_bytes()) {
///     let range = range?;
///     let mut bytes = vec![0; (range.end - range.start) as usize];
///     volume.read_at(&mut bytes, range.start)?;
///     backup.push((range.start, bytes));
/// }
/// let bytes: usize = backup.iter().map(|(_, bytes)| bytes.len()).sum();
/// assert_eq!(bytes, 8192);
/// # Ok(())
/// # }
/// ```
pub struct ChangeIter<'a> {
    page: ChangePage<'a>,
    left: Range<u64>,
    changes: std::vec::IntoIter<Range<u64>>,
}

impl std::fmt::Debug for RunIter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunIter").field("left", &self.left).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ChangeIter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChangeIter").field("left", &self.left).finish_non_exhaustive()
    }
}

impl<'a> RunIter<'a> {
    fn new(range: Range<u64>, page: impl FnMut(Range<u64>) -> Result<Vec<Run>> + 'a) -> Self {
        Self { page: Box::new(page), left: range, runs: Vec::new().into_iter() }
    }
}

impl<'a> ChangeIter<'a> {
    fn new(range: Range<u64>, page: impl FnMut(Range<u64>) -> Result<Vec<Range<u64>>> + 'a) -> Self {
        Self { page: Box::new(page), left: range, changes: Vec::new().into_iter() }
    }
}

impl Iterator for RunIter<'_> {
    type Item = Result<(Range<u64>, RunKind)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.runs.len() == 0 && !self.left.is_empty() {
            match (self.page)(self.left.clone()) {
                Ok(runs) => self.runs = runs.into_iter(),
                Err(error) => {
                    self.left.start = self.left.end;
                    return Some(Err(error));
                }
            }
        }
        let run = self.runs.next()?;
        let start = self.left.start;
        self.left.start += run.bytes;
        Some(Ok((start..self.left.start, run.kind)))
    }
}

impl Iterator for ChangeIter<'_> {
    type Item = Result<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.changes.len() == 0 && !self.left.is_empty() {
            match (self.page)(self.left.clone()) {
                Ok(changes) => {
                    // Only a full page has more behind it.
                    let more = changes.last().filter(|_| changes.len() >= PAGE_RUNS);
                    self.left.start = more.map_or(self.left.end, |last| last.end);
                    self.changes = changes.into_iter();
                }
                Err(error) => {
                    self.left.start = self.left.end;
                    return Some(Err(error));
                }
            }
        }
        self.changes.next().map(Ok)
    }
}

impl Volume {
    /// As [`Volume::runs`] for a range of any size, in pages.
    ///
    /// ```
    /// # fn main() -> volfork::Result<()> {
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
    /// use volfork::volume::RunKind;
    ///
    /// let volume = store.create_volume("v", 1 << 20)?;
    /// volume.write_at(&[1; 4096], 8192)?;
    /// let runs: Vec<_> = volume.run_iter(0..1 << 20).collect::<Result<_, _>>()?;
    /// assert_eq!(runs[1], (8192..12288, RunKind::Data { depth: 1 }));
    /// # Ok(())
    /// # }
    /// ```
    pub fn run_iter(&self, range: Range<u64>) -> RunIter<'_> {
        RunIter::new(range, |range| self.runs(range, PAGE_RUNS))
    }

    /// As [`Volume::changed_since`] for a range of any size, in pages.
    pub fn change_iter<'a>(&'a self, snapshot: &'a str, range: Range<u64>) -> ChangeIter<'a> {
        ChangeIter::new(range, move |range| self.changed_since(snapshot, &range, PAGE_RUNS))
    }
}

impl Snapshot {
    /// As [`Volume::run_iter`].
    pub fn run_iter(&self, range: Range<u64>) -> RunIter<'_> {
        RunIter::new(range, |range| self.runs(range, PAGE_RUNS))
    }

    /// As [`Volume::change_iter`].
    pub fn change_iter<'a>(&'a self, snapshot: &'a str, range: Range<u64>) -> ChangeIter<'a> {
        ChangeIter::new(range, move |range| self.changed_since(snapshot, &range, PAGE_RUNS))
    }
}
