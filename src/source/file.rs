//! A local file as a source.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::{OnArrival, Part, ReadClass, Source, SourceError, SourceErrorKind, SourceExtent, SourceStats};
use crate::io::{Disk, DiskFile, DiskFileExt, IoMode, OpenMode, SystemDisk};
use crate::place::{length, wide};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A local file, read on the caller's thread.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("image");
/// # std::fs::write(&path, vec![7; 1 << 20]).unwrap();
/// use volfork::source::{FileSource, Source, SourceExt};
///
/// let source = FileSource::open(&path).unwrap();
/// assert_eq!(source.size_bytes(), 1 << 20);
/// assert_eq!(source.read_blocking(5..8).unwrap(), [7, 7, 7][..]);
/// // The address by which a store forks it: `UriSources` opens it.
/// assert_eq!(source.describe(), format!("file://{}", path.display()));
/// # Ok(())
/// # }
/// ```
pub struct FileSource {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    size_bytes: u64,
    closed: AtomicBool,
    bytes_read: AtomicU64,
    requests: AtomicU64,
    errors: AtomicU64,
}

impl std::fmt::Debug for FileSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileSource").field("path", &self.path).field("size_bytes", &self.size_bytes).finish_non_exhaustive()
    }
}

impl FileSource {
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SourceError> {
        let path = path.as_ref();
        let wrap = |error| SourceError { kind: SourceErrorKind::Invalid, message: format!("cannot open {}: {error}", path.display()) };
        let file = SystemDisk::new().open(path, OpenMode::Read, IoMode::Buffered).map_err(wrap)?;
        let size_bytes = file.size_bytes().map_err(wrap)?;
        Ok(Self {
            file,
            path: path.to_path_buf(),
            size_bytes,
            closed: AtomicBool::new(false),
            bytes_read: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        })
    }

    fn error(&self, kind: SourceErrorKind, text: impl std::fmt::Display) -> SourceError {
        SourceError { kind, message: format!("{}: {text}", self.path.display()) }
    }

    fn check_open(&self) -> Result<(), SourceError> {
        if self.closed.load(Ordering::Acquire) { Err(self.error(SourceErrorKind::Closed, "it was closed")) } else { Ok(()) }
    }

    fn read_now(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
        self.check_open()?;
        let mut buffer = vec![0; length(range.end - range.start)];
        let read = self.file.read_exact_at(&mut buffer, range.start);
        read.map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => self.error(SourceErrorKind::Changed, "it is shorter than it was"),
            _ => self.error(SourceErrorKind::Failed, error),
        })?;
        Ok(buffer.into())
    }
}

impl Source for FileSource {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_bytes_max(&self) -> u32 {
        32 << 20
    }

    fn read(&self, range: Range<u64>, _class: ReadClass, mut arrival: OnArrival) {
        let offset = range.start;
        let result = self.read_now(range);
        self.requests.fetch_add(1, Ordering::Relaxed);
        match &result {
            Ok(bytes) => self.bytes_read.fetch_add(wide(bytes.len()), Ordering::Relaxed),
            Err(_) => self.errors.fetch_add(1, Ordering::Relaxed),
        };
        let result = result.map(|bytes| arrival.part(Part::new(offset, bytes)));
        arrival.end(result);
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>, SourceError> {
        self.check_open()?;
        let (mut extents, mut offset) = (Vec::new(), range.start);
        while offset < range.end {
            let next = self.file.next_allocated(offset).map_err(|error| self.error(SourceErrorKind::Failed, error))?;
            let data = next.map_or(range.end..range.end, |data| data.start.min(range.end)..data.end.min(range.end));
            for (end, zero) in [(data.start, true), (data.end, false)] {
                if end > offset {
                    extents.push(SourceExtent { bytes: end - offset, zero });
                    offset = end;
                }
            }
        }
        Ok(extents)
    }

    fn describe(&self) -> String {
        format!("file://{}", self.path.display())
    }

    fn stats(&self) -> SourceStats {
        SourceStats {
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            ..SourceStats::default()
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }
}
