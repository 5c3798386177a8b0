//! The seam between the engine and the machine's files. The simulator and tests implement it from outside.
//!
//! # What the engine assumes of a disk
//! - A write is durable once a later [`DiskFile::sync_data`] of that file, or [`Disk::sync_all`] with it, returned success.
//! - Before that, each 512-byte sector of it is, after power loss, old or new, in any order and mixture.
//! - A created, changed or removed name is durable once [`Disk::sync_dir`] of its directory returned success.
//! - After a failed sync nothing is known about the writes it covered.

use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Access;
use crate::place::{length, wide};

/// How a file is opened.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// use volfork::io::{Disk, IoMode, OpenMode, SystemDisk};
///
/// let (disk, path) = (SystemDisk::new(), directory.path().join("file"));
/// disk.open(&path, OpenMode::CreateNew, IoMode::Buffered)?;
/// let again = disk.open(&path, OpenMode::CreateNew, IoMode::Buffered).err().unwrap();
/// assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists);
/// // `Create` takes what is there; `Write` and `Read` want that there is something.
/// assert!(disk.open(&path, OpenMode::Create, IoMode::Buffered).is_ok());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenMode {
    /// Reads only; the file must exist.
    Read,
    /// Reads and writes; the file must exist.
    Write,
    /// Reads and writes; the file is created if it does not exist.
    Create,
    /// Reads and writes; the file must not exist.
    CreateNew,
}

/// Whether data goes through the page cache.
///
/// Buffered is the default: cached blocks are read in about a microsecond instead of a disk's time, small writes cost a copy, and a
/// flush makes them durable in both modes (measured by `cargo bench --bench engine`). Direct keeps the memory for others, and
/// makes the latency of writes that of the disk; it suits hosts whose guests cache for themselves.
///
/// ```
/// use volfork::StoreOptions;
/// use volfork::io::IoMode;
///
/// // Guests that cache for themselves do not need the page cache of the host, too.
/// let options = StoreOptions::default().with_io_mode(IoMode::Direct);
/// assert_eq!(options.io_mode, IoMode::Direct);
/// assert_eq!(StoreOptions::default().io_mode, IoMode::Buffered);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum IoMode {
    /// Through the page cache.
    #[default]
    Buffered,
    /// Around the page cache (`O_DIRECT`): buffers, offsets and lengths are multiples of 4,096 bytes.
    Direct,
}

/// Space of a file system, in bytes.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// use volfork::io::{Disk, SystemDisk};
///
/// let space = SystemDisk::new().space(directory.path())?;
/// assert!(space.free_bytes <= space.total_bytes);
/// println!("{} % are free", space.free_bytes * 100 / space.total_bytes);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskSpace {
    /// All of it.
    pub total_bytes: u64,
    /// Free for this process.
    pub free_bytes: u64,
}

/// A directory tree of files.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// use volfork::io::{Disk, DiskFileExt, IoMode, OpenMode, SystemDisk};
///
/// // What the engine asks of a disk, here the machine's. `cargo run --example disk` puts one of one's own below a store.
/// let disk = SystemDisk::new();
/// disk.create_dir(&directory.path().join("layers"))?;
/// let path = directory.path().join("layers/1.data");
/// let file = disk.open(&path, OpenMode::CreateNew, IoMode::Buffered)?;
/// file.write_all_at(b"block", 4096)?;
/// // The bytes are durable after the first call, the name after the second.
/// disk.sync_all(&[file])?;
/// disk.sync_dir(&directory.path().join("layers"))?;
/// assert_eq!(disk.list(&directory.path().join("layers"))?, ["1.data"]);
/// # Ok(())
/// # }
/// ```
pub trait Disk: Send + Sync + 'static {
    /// The path that names a directory from now on, wherever the process goes. A disk without a present directory keeps it.
    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(path.to_owned())
    }
    /// Creates a directory and its missing parents. A new one is for those who may use the one above it.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// The users of what is made in a directory from now on. A disk without users has owners only.
    fn access(&self, _directory: &Path) -> io::Result<Access> {
        Ok(Access::Owner)
    }
    /// Restricts a directory or a file to the users that the access names. Returns whether others could use it before.
    fn restrict(&self, _path: &Path, _access: Access) -> io::Result<bool> {
        Ok(false)
    }
    /// Names of the entries of a directory, in no order.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode, io: IoMode) -> io::Result<Arc<dyn DiskFile>>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Gives a file another name in the same directory; a file that had that name is removed. After power loss the file has the old
    /// name or the new one.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable. EMFILE, ENFILE and ENOMEM mean that the directory could not be opened and no sync was
    /// tried. Any other error is that of a failed sync.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// One barrier round: makes all completed writes of all `files` durable, in parallel where the machine can.
    fn sync_all(&self, files: &[Arc<dyn DiskFile>]) -> io::Result<()>;
    /// Names what keeps writes to a file that were not synced, after the death of this process and until the machine ends. As long as it is
    /// the same text, what was written is there. `None`: there is no such thing.
    fn page_cache(&self, _file: &Path) -> Option<String> {
        None
    }
    /// Begins to write completed writes of a file back to the device and does not wait for it, so that a later sync has less to do. A
    /// hint: nothing is durable before the sync, which finds what went wrong.
    fn begin_write_back(&self, _file: &Arc<dyn DiskFile>) {}
    /// Takes the lock `path` together with others that only read; released when the returned guard is dropped. Nothing is written.
    /// The error of kind [`io::ErrorKind::WouldBlock`] carries the text of the owner.
    fn lock_shared(&self, _path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Space of the file system that a directory is on.
    fn space(&self, _directory: &Path) -> io::Result<DiskSpace> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Takes the exclusive lock `path` and writes `owner` into it; released when the returned guard is dropped.
    /// The error of kind [`io::ErrorKind::WouldBlock`] carries the text of the present owner.
    fn lock(&self, path: &Path, owner: &str) -> io::Result<Box<dyn Send + Sync>>;
}

/// An open file. All calls may be used from many threads at once.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// use volfork::io::{Disk, DiskFile, DiskFileExt, IoMode, OpenMode, SystemDisk};
///
/// let disk = SystemDisk::new();
/// let file = disk.open(&directory.path().join("file"), OpenMode::CreateNew, IoMode::Buffered)?;
/// file.write_all_at(&[1; 8192], 0)?;
/// file.punch(0..4096)?; // The length stays.
/// file.sync_data()?;
/// let mut bytes = [9; 8192];
/// file.read_exact_at(&mut bytes, 0)?;
/// assert_eq!((file.size_bytes()?, bytes[0], bytes[4096]), (8192, 0, 1));
/// assert_eq!(file.read_at(&mut bytes, 8192)?, 0, "the end of the file");
/// # Ok(())
/// # }
/// ```
pub trait DiskFile: Send + Sync + 'static {
    /// Reads at `offset`; may be short; 0 means end of file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Reads at `offset` as far as no device has to be waited for; may be short.
    /// [`io::ErrorKind::WouldBlock`]: a device has to be waited for. Others say that the file cannot tell.
    fn read_cached_at(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
    /// Writes at `offset`; may be short; 0 is an error of the disk.
    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize>;
    /// Makes completed writes durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Drops what the page cache has of the file and calls clean, so that the device is read again: after a failed sync that may be
    /// bytes that the device never got (Linux). Nothing for a disk without such a cache.
    fn drop_clean(&self) -> io::Result<()> {
        Ok(())
    }
    /// Length in bytes.
    fn size_bytes(&self) -> io::Result<u64>;
    /// Sets the length; new bytes read as zero.
    fn set_size(&self, bytes: u64) -> io::Result<()>;
    /// Reserves space for a range, so that later writes in it cannot fail for lack of space. Grows the file.
    fn allocate(&self, range: Range<u64>) -> io::Result<()>;
    /// Gives back the space of a range, which then reads as zero. Does not change the length.
    fn punch(&self, range: Range<u64>) -> io::Result<()>;
    /// The first allocated range that ends after `offset`, or `None` behind the last one.
    fn next_allocated(&self, offset: u64) -> io::Result<Option<Range<u64>>>;
    /// The descriptor, where this is a file of the operating system (so that io_uring can use it).
    fn raw_fd(&self) -> Option<RawFd> {
        None
    }
    /// Whether transfers go around the page cache. io_uring registers the memory of large ones, so that its pages are not pinned for
    /// each of them.
    fn is_direct(&self) -> bool {
        false
    }
}

/// Whole transfers over the short ones of [`DiskFile`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// use std::io::ErrorKind;
/// use volfork::io::{Disk, DiskFileExt, IoMode, OpenMode, SystemDisk};
///
/// let file = SystemDisk::new().open(&directory.path().join("file"), OpenMode::CreateNew, IoMode::Buffered)?;
/// file.write_all_at(b"header", 0)?;
/// let mut bytes = [0; 6];
/// file.read_exact_at(&mut bytes, 0)?;
/// assert_eq!(&bytes, b"header");
/// // Whole, or an error: it does not tell how much there was.
/// assert_eq!(file.read_exact_at(&mut bytes, 3).unwrap_err().kind(), ErrorKind::UnexpectedEof);
/// # Ok(())
/// # }
/// ```
pub trait DiskFileExt {
    /// Fills `buffer`; an end of file inside it is [`io::ErrorKind::UnexpectedEof`].
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `buffer`; a transfer of zero is [`io::ErrorKind::WriteZero`].
    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()>;
}

impl<F: DiskFile + ?Sized> DiskFileExt for F {
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(done) => {
                    buffer = &mut buffer[done..];
                    offset += wide(done);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_all_at(&self, mut buffer: &[u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.write_at(buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(done) => {
                    buffer = &buffer[done..];
                    offset += wide(done);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Whole files over [`Disk`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// use volfork::io::{DiskExt, SystemDisk};
///
/// let path = directory.path().join("config");
/// std::fs::write(&path, "key = value")?;
/// assert_eq!(SystemDisk::new().read_file(&path, 4096)?, b"key = value");
/// // A file that is larger than what is expected costs no memory.
/// assert_eq!(SystemDisk::new().read_file(&path, 4).unwrap_err().kind(), std::io::ErrorKind::InvalidData);
/// # Ok(())
/// # }
/// ```
pub trait DiskExt {
    /// The whole content of a file of at most `bytes_max` bytes.
    fn read_file(&self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>>;
}

impl<D: Disk + ?Sized> DiskExt for D {
    fn read_file(&self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        let file = self.open(path, OpenMode::Read, IoMode::Buffered)?;
        let bytes = file.size_bytes()?;
        if bytes > bytes_max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{bytes} bytes, but at most {bytes_max} are expected")));
        }
        let mut content = vec![0; length(bytes)];
        file.read_exact_at(&mut content, 0)?;
        Ok(content)
    }
}
