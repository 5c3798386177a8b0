//! The engine's error: a kind that says what the caller can do, and a message that says what failed, where, and what to do next.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Result of every call of the engine.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// use std::path::Path;
/// use volfork::{Store, StoreOptions};
///
/// fn bytes_of_volumes(path: &Path) -> volfork::Result<u64> {
///     let store = Store::open_read_only(path, StoreOptions::default())?;
///     Ok(store.list()?.iter().map(|volume| volume.size_bytes).sum())
/// }
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = Store::create(directory.path(), StoreOptions::default())?;
/// # store.create_volume("v", 1 << 20)?;
/// # store.close()?;
/// assert_eq!(bytes_of_volumes(directory.path())?, 1 << 20);
/// # Ok(())
/// # }
/// ```
pub type Result<T> = std::result::Result<T, Error>;

/// What the caller can do about an [`Error`].
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::{ErrorKind, Volume};
///
/// let volume: Volume = match store.volume("web") {
///     Err(error) if error.kind() == ErrorKind::NotFound => store.create_volume("web", 1 << 30)?,
///     found => found?,
/// };
/// assert_eq!(volume.write_at(&[1], 1 << 30).unwrap_err().kind(), ErrorKind::OutOfRange);
/// // What a block device answers, and what the standard library calls it.
/// assert_eq!(ErrorKind::NoSpace.errno(), libc::ENOSPC);
/// assert_eq!(std::io::ErrorKind::from(ErrorKind::NoSpace), std::io::ErrorKind::StorageFull);
/// # Ok(())
/// # }
/// ```
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

impl ErrorKind {
    /// The `errno` that a block device returns for an error of this kind. Every front end maps errors by this table, and then to what
    /// its protocol can express.
    pub fn errno(self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::Exists => libc::EEXIST,
            Self::InvalidInput | Self::OutOfRange => libc::EINVAL,
            Self::ReadOnly => libc::EPERM,
            Self::Busy | Self::Locked => libc::EBUSY,
            Self::NoSpace => libc::ENOSPC,
            Self::Unsupported => libc::ENOTSUP,
            Self::Closed => libc::ESHUTDOWN,
            Self::NotDurable | Self::Corrupt | Self::Io | Self::SourceLost | Self::Poisoned => libc::EIO,
        }
    }
}

impl From<ErrorKind> for io::ErrorKind {
    /// The kind that the standard library gives to [`ErrorKind::errno`]; [`io::ErrorKind::Other`] where it has none.
    fn from(kind: ErrorKind) -> Self {
        match kind.errno() {
            libc::EIO | libc::ESHUTDOWN => Self::Other,
            number => io::Error::from_raw_os_error(number).kind(),
        }
    }
}

/// What ends the trouble that an [`Error`] tells of, for front ends that can say how: the command line names its command.
///
/// ```
/// # let directory = tempfile::tempdir().unwrap();
/// use volfork::{Remedy, Store, StoreOptions};
///
/// let error = Store::open(directory.path(), StoreOptions::default()).unwrap_err();
/// let advice = match error.remedy() {
///     Some(Remedy::CreateStore(path)) => format!("{error}; run: mkstore {}", path.display()),
///     // The message alone says what to do.
///     _ => error.to_string(),
/// };
/// assert!(advice.contains("run: mkstore /"), "{advice}");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remedy {
    /// Make a store in this directory.
    CreateStore(PathBuf),
    /// Verify the structure of the closed store.
    CheckStore,
    /// Verify the blocks, and fetch damaged ones again.
    Scrub,
    /// Look up the names of the volumes.
    ListVolumes,
    /// Look up the names of the snapshots of this volume.
    ListSnapshots(String),
    /// Look at this volume until it is made.
    AwaitVolume(String),
    /// Destroy the snapshots of this volume first, or together with it.
    DestroySnapshots(String),
    /// Disconnect the clients of this volume or snapshot.
    Disconnect(String),
    /// Destroy it although forks of other hosts need it.
    DestroyByForce,
    /// Accept that a fork has blocks of different instants.
    ForkLive,
    /// Look which forks have leases.
    ShowLeases,
    /// Correct this label, or give what it tells with the request.
    CorrectLabel(String),
}

/// Where damaged bytes are.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # use volfork::{Store, StoreOptions};
/// # let store = Store::create(directory.path(), StoreOptions::default())?;
/// # store.create_volume("v", 1 << 20)?.write_at(&[7; 4096], 8192)?;
/// # store.close()?;
/// # for file in std::fs::read_dir(directory.path().join("layers")).unwrap() {
/// #     let path = file.unwrap().path();
/// #     if path.extension() == Some("data".as_ref()) {
/// #         let file = std::fs::File::options().write(true).open(path).unwrap();
/// #         std::os::unix::fs::FileExt::write_at(&file, b"!", 8192).unwrap();
/// #     }
/// # }
/// # let store = Store::open(directory.path(), StoreOptions::default())?;
/// // A byte of block 2 was changed behind the back of the store.
/// let error = store.volume("v")?.read_at(&mut [0; 4096], 8192).unwrap_err();
/// let corruption = error.corruption().expect("the place of the damage");
/// assert_eq!((corruption.volume.as_deref(), corruption.block), (Some("v"), 2));
/// // Where to look in the file.
/// assert_eq!(corruption.offset_bytes, 2 * 4096);
/// assert!(corruption.file.ends_with(".data"), "{}", corruption.file);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
             (of an image: import it again), and scrub the store",
            self.block, self.reason, self.layer, self.file, self.offset_bytes
        )
    }
}

/// An error of the engine. Cheap to clone, because one failed fetch or barrier may fail many waiters.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::{Error, ErrorKind};
///
/// let error = store.volume("web").unwrap_err().context("cannot export");
/// assert_eq!((error.kind(), error.errno()), (ErrorKind::NotFound, libc::ENOENT));
/// assert!(error.to_string().starts_with("cannot export: "));
///
/// // As an error of the standard library it keeps what it was.
/// let outside = std::io::Error::from(error);
/// assert_eq!(outside.kind(), std::io::ErrorKind::NotFound);
/// let inside = outside.get_ref().and_then(|error| error.downcast_ref::<Error>());
/// assert_eq!(inside.map(Error::kind), Some(ErrorKind::NotFound));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    corruption: Option<Corruption>,
    remedy: Option<Remedy>,
    /// The system had no descriptor or no memory for a call, so that nothing was tried.
    untried: bool,
    /// Shared with the errors that [`Error::context`] makes of this one.
    cause: Option<Arc<io::Error>>,
}

/// Whether the system had no descriptor or no memory for a call, so that nothing was tried.
pub(crate) fn is_untried(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

impl Error {
    /// An error of `kind`; `message` says what failed, where, and what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner { kind, message: message.into(), corruption: None, remedy: None, untried: false, cause: None }))
    }

    /// Wraps an I/O error; `context` says what was being done. A lack of space has the kind [`ErrorKind::NoSpace`].
    pub fn io(context: impl fmt::Display, cause: io::Error) -> Self {
        let kind = match cause.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::NoSpace,
            // EOPNOTSUPP of the kernel has many meanings; only a disk of this program says this kind.
            None if cause.kind() == io::ErrorKind::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        Self::wrap(kind, context, is_untried(&cause), cause)
    }

    /// Wraps the error of a sync that was tried. Linux reports it once, and would call the next sync of the same bytes or names a
    /// success, so it is never a shortage that may be retried, whatever the number says.
    pub(crate) fn sync(context: impl fmt::Display, cause: io::Error) -> Self {
        Self::wrap(ErrorKind::Io, context, false, cause)
    }

    /// Like [`Error::sync`] for a directory, which may have to be opened first: without a descriptor or memory for that, nothing was
    /// tried (see [`crate::io::Disk::sync_dir`]), and a later sync may succeed.
    pub(crate) fn sync_dir(context: impl fmt::Display, cause: io::Error) -> Self {
        if is_untried(&cause) { Self::io(context, cause) } else { Self::sync(context, cause) }
    }

    fn wrap(kind: ErrorKind, context: impl fmt::Display, untried: bool, cause: io::Error) -> Self {
        let message = format!("{context}: {cause}");
        Self(Arc::new(Inner { kind, message, corruption: None, remedy: None, untried, cause: Some(Arc::new(cause)) }))
    }

    /// Damaged bytes at a known place.
    pub fn corrupt_block(corruption: Corruption) -> Self {
        let message = corruption.to_string();
        let (corruption, remedy) = (Some(corruption), Some(Remedy::Scrub));
        Self(Arc::new(Inner { kind: ErrorKind::Corrupt, message, corruption, remedy, untried: false, cause: None }))
    }

    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Where the damaged bytes are, for [`ErrorKind::Corrupt`] of a data block.
    pub fn corruption(&self) -> Option<&Corruption> {
        self.0.corruption.as_ref()
    }

    /// Whether the call failed for a lack of space, descriptors or memory alone: nothing is broken, and a later call may succeed.
    pub(crate) fn is_shortage(&self) -> bool {
        self.kind() == ErrorKind::NoSpace || self.0.untried
    }

    /// The same error, its cause included, with `context` before its message.
    pub fn context(&self, context: impl fmt::Display) -> Self {
        Self(Arc::new(Inner {
            kind: self.0.kind,
            message: format!("{context}: {}", self.0.message),
            corruption: self.0.corruption.clone(),
            remedy: self.0.remedy.clone(),
            untried: self.0.untried,
            cause: self.0.cause.clone(),
        }))
    }

    /// An error of `kind` that `remedy` ends; `message` says what failed, where, and what to do.
    pub(crate) fn remediable(kind: ErrorKind, message: impl Into<String>, remedy: Remedy) -> Self {
        Self(Arc::new(Inner { kind, message: message.into(), corruption: None, remedy: Some(remedy), untried: false, cause: None }))
    }

    /// What ends the trouble, if a front end can say more about it than the message does.
    pub fn remedy(&self) -> Option<&Remedy> {
        self.0.remedy.as_ref()
    }

    /// [`ErrorKind::errno`] of this error.
    pub fn errno(&self) -> i32 {
        self.0.kind.errno()
    }
}

/// Keeps the error as the inner one ([`io::Error::get_ref`]), so that its kind and its cause can still be had.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind().into(), error)
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
        self.0.cause.as_deref().map(|cause| cause as _)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn an_io_error_keeps_kind_and_cause_of_the_engines_error() {
        let full = Error::io("cannot write", io::Error::from_raw_os_error(libc::ENOSPC)).context("volume 'v'");
        let outside = io::Error::from(full);
        assert_eq!(outside.kind(), io::ErrorKind::StorageFull);
        assert_eq!(outside.to_string(), format!("volume 'v': cannot write: {}", io::Error::from_raw_os_error(libc::ENOSPC)));
        let inside = outside.get_ref().and_then(|error| error.downcast_ref::<Error>()).unwrap();
        assert_eq!((inside.kind(), inside.errno()), (ErrorKind::NoSpace, libc::ENOSPC));
        let cause = inside.source().and_then(|cause| cause.downcast_ref::<io::Error>()).unwrap();
        assert_eq!(cause.raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(io::ErrorKind::from(ErrorKind::Closed), io::ErrorKind::Other);
        assert_eq!(io::ErrorKind::from(ErrorKind::OutOfRange), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn only_a_call_that_was_not_tried_is_a_shortage() {
        let none = || io::Error::from_raw_os_error(libc::EMFILE);
        assert!(Error::io("cannot open", none()).context("x").is_shortage() && Error::sync_dir("cannot sync", none()).is_shortage());
        let full = Error::sync("cannot sync", io::Error::from_raw_os_error(libc::ENOSPC));
        assert!(!full.is_shortage() && !Error::sync("cannot sync", none()).is_shortage() && full.source().is_some());
    }
}
