//! The engine's error: a kind that says what the caller can do, and a sentence that says what, where and what to do next.

use std::fmt;
use std::sync::Arc;

/// Result of every call of the engine.
pub type Result<T> = std::result::Result<T, Error>;

/// What the caller can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The named volume, snapshot, store or file does not exist: check the name.
    NotFound,
    /// The name is taken: choose another one.
    Exists,
    /// An argument is wrong (name, size, range, option): correct it.
    InvalidInput,
    /// The range ends past the end of the volume: shorten it, or extend the volume.
    OutOfRange,
    /// The volume or export is read-only.
    ReadOnly,
    /// The object is in use, or still has dependants: release them first.
    Busy,
    /// No space is left; nothing was changed: free space and repeat.
    NoSpace,
    /// A change of shape (create, fork, snapshot, resize, rename, destroy) was made, and every call sees it, but a lack of space,
    /// descriptors or memory has kept it from being durable so far. The next flush of any volume that succeeds makes it so; until then
    /// a crash may undo it. It must not be repeated.
    NotDurable,
    /// Stored bytes are not the bytes that were written: restore from a source, a parent host or a backup.
    Corrupt,
    /// The machine failed to read or write.
    Io,
    /// The source that still holds these blocks does not answer: bring it back; the rest of the volume works.
    SourceLost,
    /// An earlier write-back failed, so writes are refused until the store is reopened.
    Poisoned,
    /// The store was closed: open it again.
    Closed,
    /// Another process owns the store.
    Locked,
    /// The bytes were made by a newer or different program: use that one.
    Unsupported,
}

/// Where damaged bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corruption {
    /// Name of the volume that was read, where one was.
    pub volume: Option<String>,
    /// Block number within the volume and the layer (they are the same).
    pub block: u64,
    /// Layer that holds the block.
    pub layer: u32,
    /// File that holds the block.
    pub file: String,
    /// Byte offset of the block in that file.
    pub offset_bytes: u64,
    /// What was found.
    pub reason: String,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(volume) = &self.volume {
            write!(f, "volume '{volume}': ")?;
        }
        write!(
            f,
            "block {} is damaged: {} (layer {}, file {}, offset {}); restore it from a source or a backup \
             (of an image: import it again), and run 'volfork scrub'",
            self.block, self.reason, self.layer, self.file, self.offset_bytes
        )
    }
}

/// An error of the engine. Cheap to clone, because one failed fetch or barrier may fail many waiters.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    corruption: Option<Corruption>,
    cause: Option<std::io::Error>,
}

/// Whether the system had no descriptor or no memory for a call, so that nothing was tried.
pub(crate) fn is_untried(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

impl Error {
    /// An error of `kind` with a sentence for a person.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner { kind, message: message.into(), corruption: None, cause: None }))
    }

    /// Wraps an I/O error with what was being done; "no space left" keeps its own kind.
    pub fn io(context: impl fmt::Display, cause: std::io::Error) -> Self {
        let kind = match cause.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::NoSpace,
            // Of the kernel it may mean anything.
            None if cause.kind() == std::io::ErrorKind::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        Self(Arc::new(Inner { kind, message: format!("{context}: {cause}"), corruption: None, cause: Some(cause) }))
    }

    /// Wraps the error of a sync that was tried. The system tells it once, and would call the next sync of the same bytes or names a
    /// success: whatever the number says, it is never a mere shortage.
    pub(crate) fn sync(context: impl fmt::Display, cause: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, format!("{context}: {cause}"))
    }

    /// As [`Error::sync`], of a directory, which may have to be opened for it: without a descriptor or memory for that nothing was tried
    /// (see [`crate::io::Disk::sync_dir`]), and another time there may be enough.
    pub(crate) fn sync_dir(context: impl fmt::Display, cause: std::io::Error) -> Self {
        if is_untried(&cause) { Self::io(context, cause) } else { Self::sync(context, cause) }
    }

    /// Damaged bytes at a known place.
    pub fn corrupt_block(corruption: Corruption) -> Self {
        let message = corruption.to_string();
        Self(Arc::new(Inner { kind: ErrorKind::Corrupt, message, corruption: Some(corruption), cause: None }))
    }

    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Where the damaged bytes are, for [`ErrorKind::Corrupt`] of a data block.
    pub fn corruption(&self) -> Option<&Corruption> {
        self.0.corruption.as_ref()
    }

    /// Whether it is only a lack of space, descriptors or memory: nothing is broken, and another time there may be enough.
    pub(crate) fn is_shortage(&self) -> bool {
        self.kind() == ErrorKind::NoSpace || self.0.cause.as_ref().is_some_and(is_untried)
    }

    /// The same error with `context` before its sentence.
    pub fn context(&self, context: impl fmt::Display) -> Self {
        Self(Arc::new(Inner {
            kind: self.0.kind,
            message: format!("{context}: {}", self.0.message),
            corruption: self.0.corruption.clone(),
            cause: None,
        }))
    }

    /// The `errno` a block device would return for this error.
    pub fn errno(&self) -> i32 {
        match self.0.kind {
            ErrorKind::NotFound => libc::ENOENT,
            ErrorKind::Exists => libc::EEXIST,
            ErrorKind::InvalidInput | ErrorKind::OutOfRange => libc::EINVAL,
            ErrorKind::ReadOnly => libc::EPERM,
            ErrorKind::Busy | ErrorKind::Locked => libc::EBUSY,
            ErrorKind::NoSpace => libc::ENOSPC,
            ErrorKind::Unsupported => libc::ENOTSUP,
            ErrorKind::Closed => libc::ESHUTDOWN,
            ErrorKind::NotDurable | ErrorKind::Corrupt | ErrorKind::Io | ErrorKind::SourceLost | ErrorKind::Poisoned => libc::EIO,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.0.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.cause.as_ref().map(|cause| cause as _)
    }
}
