//! Access to the files and sockets that this program makes.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The users of the files of a store and of the sockets of its server, whatever the umask says. The directory of the store tells them:
/// files that are made in it, and directories below it, are as it is.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// use volfork::io::Access;
/// use volfork::{Store, StoreOptions};
///
/// let path = directory.path().join("store");
/// Store::create(&path, StoreOptions::default().with_group_access(true))?.close()?;
/// // What is made in the directory later is for the group too.
/// assert_eq!(Access::of(&path)?, Access::Group);
/// assert_eq!(Access::default(), Access::Owner);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Its owner alone.
    #[default]
    Owner,
    /// Its group too, which reads files and connects to sockets. The directory has the mode 2750.
    Group,
}

impl Access {
    /// The access that the mode of a directory gives.
    ///
    /// # Errors
    /// It is not there.
    pub fn of(directory: impl AsRef<Path>) -> io::Result<Self> {
        let mode = std::fs::metadata(directory)?.mode() & 0o7777;
        Ok(if mode == Self::Group.directory_mode() { Self::Group } else { Self::Owner })
    }

    /// Mode of a directory. The group of one that is shared is that of the files in it.
    pub(super) fn directory_mode(self) -> u32 {
        match self {
            Self::Owner => 0o700,
            Self::Group => 0o2750,
        }
    }

    /// Mode of a file.
    pub(super) fn file_mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Group => 0o640,
        }
    }

    /// Mode of a socket: to connect is to write.
    pub(super) fn socket_mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Group => 0o660,
        }
    }
}
