//! The operating system's files.
//!
//! # Invariants
//! - A sync that the kernel cancelled before it began (it cannot make the thread for it while signals come) has not failed: it is done
//!   again by this thread. A sync that ran and failed is never done again.
//! - What is made is for those who may use the directory it is in ([`Access`]), whatever the umask says; at no moment for others.
//! - The lock ends with its guard, also if a child of this process (fork(2) without exec) still has the descriptor.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::fiemap::has_space_on_xfs;
use super::write_back::WriteBack;
use super::{Access, Disk, DiskFile, DiskSpace, IoMode, OpenMode};
use crate::error::is_untried;
use crate::place::{index, length, wide};
use crate::sync::{Mutex, Rank};

/// Syncs handed to the ring at once.
const SYNCS_MAX: u32 = 64;
/// Directories that are kept open.
const DIRECTORIES_MAX: usize = 16;
/// Bytes that are written into the page cache at once, and so the largest folio that a write makes there. In a folio of 2 MiB ext4 looks
/// at the state of all its blocks to overwrite one: 12,000 writes of 4 KiB a second instead of 200,000 in folios of this size
/// (Linux 6.18).
const FOLIO_BYTES_MAX: u64 = 64 << 10;
/// `STATX_MNT_ID_UNIQUE` of statx(2), since Linux 6.8: a number that no other mount gets before the next boot. Where it is missing, nothing
/// tells that a page cache is still the same.
const MOUNT_ID_UNIQUE: u32 = 0x4000;
/// Most bytes of the text that names a lock's owner.
const OWNER_BYTES_MAX: u64 = 4096;

/// Files of the operating system.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// use std::sync::Arc;
/// use volfork::io::{Disk, SystemDisk};
/// use volfork::{Store, StoreOptions};
///
/// let disk = Arc::new(SystemDisk::new());
/// let options = StoreOptions::default().with_disk(Arc::clone(&disk) as Arc<dyn Disk>);
/// let store = Store::create(directory.path(), options)?;
/// // The store has the lock of its directory.
/// let locked = disk.lock(&directory.path().join("lock"), "another one").err().unwrap();
/// assert_eq!(locked.kind(), std::io::ErrorKind::WouldBlock);
/// store.close()?;
/// # Ok(())
/// # }
/// ```
pub struct SystemDisk {
    /// For syncing many files at once; made when first needed, `None` inside if the machine has no io_uring.
    syncs: Mutex<Option<Option<IoUring>>>,
    write_back: WriteBack,
    /// Directories that were synced: they are synced again when there may be no descriptor left.
    directories: Mutex<HashMap<PathBuf, Arc<File>>>,
}

impl Default for SystemDisk {
    fn default() -> Self {
        let directories = Mutex::ranked(Rank::Directories, HashMap::new());
        Self { syncs: Mutex::ranked(Rank::SyncRing, None), write_back: WriteBack::default(), directories }
    }
}

impl std::fmt::Debug for SystemDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SystemDisk").finish_non_exhaustive()
    }
}

struct SystemFile {
    file: File,
    mode: IoMode,
}

/// The lock of a file, until this is dropped.
struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing the descriptor would leave the lock to a child that was forked meanwhile.
        // SAFETY: the descriptor belongs to `self`.
        unsafe { libc::flock(self.0.as_raw_fd(), libc::LOCK_UN) };
    }
}

/// Bytes from an offset of a file to the end of its folio.
pub fn folio_rest(offset: u64) -> usize {
    length(FOLIO_BYTES_MAX - offset % FOLIO_BYTES_MAX)
}

/// The result of a system call that answers a negative number for an error.
fn checked(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opening a pipe waits for its other end, and opening a device may do anything.
fn refuse_other_than_files(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
        _ => Ok(()),
    }
}

/// The outcome of a sync in the ring. One that did not run is done here.
fn synced(fd: RawFd, mut result: i32) -> io::Result<()> {
    while matches!(-result, libc::ECANCELED | libc::EINTR | libc::EAGAIN) {
        // SAFETY: the caller keeps the file of the descriptor open; no memory is passed.
        result = match checked(i64::from(unsafe { libc::fdatasync(fd) })) {
            Ok(_) => 0,
            Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
        };
    }
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

/// Prepares a file that may be new: its mode, which the umask may have reduced, and that it is overwritten in place where the file
/// system would take new space for that (btrfs): on a full disk what is there is still overwritten. Checksums are the engine's own.
/// Others do not know the flag, and need none.
fn prepare(file: &File, mode: u32) {
    let Ok(metadata) = file.metadata() else { return };
    if metadata.len() > 0 {
        return;
    }
    if metadata.mode() & 0o7777 != mode {
        // A file that was there already may be another user's. One that was made now has no bit too many.
        let _ = file.set_permissions(Permissions::from_mode(mode));
    }
    if let Ok(flags) = rustix::fs::ioctl_getflags(file) {
        let _ = rustix::fs::ioctl_setflags(file, flags | rustix::fs::IFlags::NOCOW);
    }
}

/// Says what to do about a file system that cannot take space in advance.
fn no_fallocate(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => {
            io::Error::new(io::ErrorKind::Unsupported, "its file system cannot reserve space: use ext4, XFS, btrfs or tmpfs")
        }
        _ => error,
    }
}

/// The directory that something is in.
fn above(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl SystemDisk {
    /// Opens nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The directory that has this name now.
    fn directory(&self, path: &Path) -> io::Result<Arc<File>> {
        let named = std::fs::metadata(path)?;
        let mut directories = self.directories.lock();
        if let Some(open) = directories.get(path) {
            let meta = open.metadata()?;
            if (meta.dev(), meta.ino()) == (named.dev(), named.ino()) {
                return Ok(Arc::clone(open));
            }
        }
        let open = Arc::new(File::open(path)?);
        if directories.len() >= DIRECTORIES_MAX {
            directories.clear();
        }
        directories.insert(path.to_owned(), Arc::clone(&open));
        Ok(open)
    }

    /// Syncs a few files through the ring. `None`: there is no ring, or another caller's syncs are in it, which are not waited for.
    fn sync_ring(&self, fds: &[RawFd]) -> Option<io::Result<()>> {
        let mut guard = self.syncs.try_lock()?;
        let ring = guard.get_or_insert_with(|| IoUring::new(SYNCS_MAX).ok()).as_mut()?;
        for (number, fd) in fds.iter().enumerate() {
            let entry = opcode::Fsync::new(types::Fd(*fd)).flags(types::FsyncFlags::DATASYNC).build().user_data(wide(number));
            // SAFETY: the entry refers to no memory; the caller keeps the file open until every completion was taken below.
            if unsafe { ring.submission().push(&entry) }.is_err() {
                *guard = None;
                return None;
            }
        }
        let mut ended = Vec::new();
        while ended.len() < fds.len() {
            match ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR)) => {}
                // The kernel lacks something for a moment.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => crate::sync::thread::yield_now(),
                Err(error) => {
                    // Completions of these syncs must not be taken for those of later ones.
                    *guard = None;
                    return Some(Err(error));
                }
            }
            ended.extend(ring.completion().map(|completion| (length(completion.user_data()), completion.result())));
        }
        Some(ended.into_iter().map(|(number, result)| synced(fds[number], result)).fold(Ok(()), Result::and))
    }
}

impl Disk for SystemDisk {
    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        std::path::absolute(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let above = above(path);
        std::fs::create_dir_all(above)?;
        let mode = Access::of(above)?.directory_mode();
        match DirBuilder::new().mode(mode & 0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            made => made.and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(mode))),
        }
    }

    fn access(&self, directory: &Path) -> io::Result<Access> {
        Access::of(directory)
    }

    fn restrict(&self, path: &Path, access: Access) -> io::Result<bool> {
        let metadata = std::fs::metadata(path)?;
        let wanted = match metadata.is_dir() {
            true => access.directory_mode(),
            false if metadata.is_file() => access.file_mode(),
            false => return Ok(false),
        };
        let mode = metadata.mode() & 0o7777;
        let new = mode & 0o700 | wanted & 0o7077;
        if new != mode {
            std::fs::set_permissions(path, Permissions::from_mode(new))?;
        }
        Ok(mode & !wanted & 0o077 != 0)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(path)?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn open(&self, path: &Path, mode: OpenMode, io: IoMode) -> io::Result<Arc<dyn DiskFile>> {
        refuse_other_than_files(path)?;
        let mut options = OpenOptions::new();
        options.read(true).write(mode != OpenMode::Read).create(mode == OpenMode::Create).create_new(mode == OpenMode::CreateNew);
        if io == IoMode::Direct {
            options.custom_flags(libc::O_DIRECT);
        }
        if !matches!(mode, OpenMode::Create | OpenMode::CreateNew) {
            return Ok(Arc::new(SystemFile { file: options.open(path)?, mode: io }));
        }
        let mode = Access::of(above(path))?.file_mode();
        let file = options.mode(mode).open(path)?;
        prepare(&file, mode);
        Ok(Arc::new(SystemFile { file, mode: io }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        // A sync that was tried has no number of one that was not.
        let tried = |error| if is_untried(&error) { io::Error::other(error) } else { error };
        self.directory(path)?.sync_all().map_err(tried)
    }

    fn sync_all(&self, files: &[Arc<dyn DiskFile>]) -> io::Result<()> {
        let mut outcome = Ok(());
        for part in files.chunks(index(SYNCS_MAX)) {
            let fds: Option<Vec<RawFd>> = part.iter().map(|file| file.raw_fd()).collect();
            let result = match fds.filter(|fds| fds.len() > 1).and_then(|fds| self.sync_ring(&fds)) {
                Some(result) => result,
                // One file, or no ring: every file is synced even if one fails.
                None => part.iter().map(|file| file.sync_data()).fold(Ok(()), Result::and),
            };
            outcome = outcome.and(result);
        }
        outcome
    }

    fn page_cache(&self, file: &Path) -> Option<String> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        // A copy of the file, or a snapshot of its device, is another file; a mount ends with its page cache.
        let flags = rustix::fs::StatxFlags::INO | rustix::fs::StatxFlags::BTIME | rustix::fs::StatxFlags::from_bits_retain(MOUNT_ID_UNIQUE);
        let found = rustix::fs::statx(rustix::fs::CWD, file, rustix::fs::AtFlags::empty(), flags).ok()?;
        if found.stx_mask & MOUNT_ID_UNIQUE == 0 {
            return None;
        }
        let (device, mount) = ((found.stx_dev_major, found.stx_dev_minor), found.stx_mnt_id);
        let born = (found.stx_btime.tv_sec, found.stx_btime.tv_nsec);
        Some(format!("boot {} device {}:{} mount {mount} file {} of {}.{}", boot.trim(), device.0, device.1, found.stx_ino, born.0, born.1))
    }

    fn begin_write_back(&self, file: &Arc<dyn DiskFile>) {
        if let Some(fd) = file.raw_fd().filter(|_| !file.is_direct()) {
            self.write_back.begin(fd);
        }
    }

    fn lock_shared(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        refuse_other_than_files(path)?;
        let file = match File::open(path) {
            // A copy of a store may lack the lock file. Without it no process owns the store.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Box::new(())),
            other => other?,
        };
        take_lock(&file, libc::LOCK_SH)?;
        Ok(Box::new(Locked(file)))
    }

    fn space(&self, directory: &Path) -> io::Result<DiskSpace> {
        let found = rustix::fs::statvfs(directory)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(DiskSpace { total_bytes: bytes(found.f_blocks), free_bytes: bytes(found.f_bavail) })
    }

    fn lock(&self, path: &Path, owner: &str) -> io::Result<Box<dyn Send + Sync>> {
        refuse_other_than_files(path)?;
        let mode = Access::of(above(path))?.file_mode();
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(mode).open(path)?;
        take_lock(&file, libc::LOCK_EX)?;
        let mut locked = Locked(file);
        // Only a text for people: on a full disk it is the one of the owner before. It is not truncated, for the freed block
        // may not be had again; what is longer than this text is overwritten with spaces.
        let mut text = owner.as_bytes().to_vec();
        text.resize(text.len().max(length(locked.0.metadata()?.len().min(OWNER_BYTES_MAX))), b' ');
        let _ = locked.0.write_all(&text);
        Ok(Box::new(locked))
    }
}

/// Takes the lock of an open file, exclusive or shared.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] with the text in the file, if another process has it.
fn take_lock(file: &File, kind: i32) -> io::Result<()> {
    // SAFETY: the descriptor belongs to `file`, which lives past the call.
    let locked = checked(i64::from(unsafe { libc::flock(file.as_raw_fd(), kind | libc::LOCK_NB) }));
    match locked {
        Err(error) if error.raw_os_error() == Some(libc::EWOULDBLOCK) => {
            let mut present = Vec::new();
            file.take(OWNER_BYTES_MAX).read_to_end(&mut present)?;
            Err(io::Error::new(io::ErrorKind::WouldBlock, String::from_utf8_lossy(&present).trim_end().to_owned()))
        }
        other => other.map(drop),
    }
}

impl SystemFile {
    fn fallocate(&self, mode: i32, range: Range<u64>) -> io::Result<()> {
        let whole = |number: u64| i64::try_from(number).ok();
        let numbers = range.end.checked_sub(range.start).and_then(whole).zip(whole(range.start));
        let Some((length, offset)) = numbers else { return Err(io::ErrorKind::InvalidInput.into()) };
        // SAFETY: the descriptor belongs to `self`, which lives past the call.
        checked(i64::from(unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, length) })).map(drop)
    }

    /// The place of some data or hole. Nothing uses the file's position.
    fn seek(&self, to: SeekFrom) -> io::Result<Option<u64>> {
        match rustix::fs::seek(&self.file, to) {
            Ok(offset) => Ok(Some(offset)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl DiskFile for SystemFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::preadv2(&self.file, &mut [io::IoSliceMut::new(buffer)], offset, rustix::io::ReadWriteFlags::NOWAIT)?)
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        let most = match self.mode {
            IoMode::Buffered => folio_rest(offset),
            IoMode::Direct => usize::MAX,
        };
        self.file.write_at(&buffer[..buffer.len().min(most)], offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn drop_clean(&self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed)?)
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        match self.fallocate(0, range.clone()) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull && has_space_on_xfs(&self.file, range)? => Ok(()),
            other => other.map_err(no_fallocate),
        }
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, range)
    }

    fn next_allocated(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let Some(start) = self.seek(SeekFrom::Data(offset))? else { return Ok(None) };
        Ok(self.seek(SeekFrom::Hole(start))?.map(|end| start..end))
    }

    fn raw_fd(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }

    fn is_direct(&self) -> bool {
        self.mode == IoMode::Direct
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};
    use crate::io::DiskFileExt;

    #[test]
    fn a_directory_is_synced_by_the_name_it_has_now() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, path) = (SystemDisk::new(), dir.path().join("layers"));
        let number = || disk.directory(&path).unwrap().metadata().unwrap().ino();
        for _ in 0..2 {
            disk.create_dir(&path).unwrap();
            disk.sync_dir(&path).unwrap();
            assert_eq!(number(), std::fs::metadata(&path).unwrap().ino());
            assert!(Arc::ptr_eq(&disk.directory(&path).unwrap(), &disk.directory(&path).unwrap()), "it stays open");
            // Its number is not given to the next one while it has another name.
            std::fs::rename(&path, dir.path().join("old")).unwrap();
            disk.sync_dir(&path).unwrap_err();
        }
    }

    #[test]
    fn what_is_made_is_for_those_who_may_use_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let disk = SystemDisk::new();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        let root = dir.path().join("parent/store");
        disk.create_dir(&root).unwrap();
        for (access, directory_mode, file_mode) in [(Access::Owner, 0o700, 0o600), (Access::Group, 0o2750, 0o640)] {
            disk.restrict(&root, access).unwrap();
            let (layers, file) = (root.join(format!("layers{directory_mode}")), root.join(format!("file{file_mode}")));
            disk.create_dir(&layers).unwrap();
            disk.open(&file, OpenMode::Create, IoMode::Buffered).unwrap();
            disk.open(&layers.join("file"), OpenMode::CreateNew, IoMode::Buffered).unwrap();
            drop(disk.lock(&layers.join("lock"), "me").unwrap());
            let modes = [mode(&root), mode(&layers), mode(&file), mode(&layers.join("file")), mode(&layers.join("lock"))];
            assert_eq!(modes, [directory_mode, directory_mode, file_mode, file_mode, file_mode], "{access:?}");
        }
        let file = root.join("old");
        std::fs::write(&file, "bytes").unwrap();
        for (old, new, could) in [(0o644, 0o600, true), (0o600, 0o600, false), (0o400, 0o400, false), (0o4755, 0o700, true)] {
            std::fs::set_permissions(&file, Permissions::from_mode(old)).unwrap();
            assert_eq!((disk.restrict(&file, Access::Owner).unwrap(), mode(&file)), (could, new), "{old:o}");
        }
    }

    #[test]
    fn a_write_into_the_page_cache_stays_within_a_folio() {
        let dir = tempfile::tempdir().unwrap();
        let file = SystemDisk::new().open(&dir.path().join("f"), OpenMode::Create, IoMode::Buffered).unwrap();
        let bytes: Vec<u8> = (0..200_u32 << 10).map(|number| (number / 4096 + 1).to_le_bytes()[0]).collect();
        assert_eq!(file.write_at(&bytes, 4096).unwrap(), 60 << 10);
        file.write_all_at(&bytes, 4096).unwrap();
        let mut read = vec![0; bytes.len()];
        file.read_exact_at(&mut read, 4096).unwrap();
        assert!(read == bytes);
    }

    #[test]
    fn a_file_system_that_cannot_reserve_space_is_unsupported() {
        for (number, kind) in [(libc::EOPNOTSUPP, ErrorKind::Unsupported), (libc::ENOSPC, ErrorKind::NoSpace), (libc::EIO, ErrorKind::Io)] {
            assert_eq!(Error::io("no", no_fallocate(io::Error::from_raw_os_error(number))).kind(), kind);
        }
    }

    #[test]
    fn a_ring_that_failed_is_not_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let disk = SystemDisk::new();
        let open = |name: &str| disk.open(&dir.path().join(name), OpenMode::Create, IoMode::Buffered).unwrap();
        let files = [open("a"), open("b")];
        disk.sync_all(&files).unwrap();
        let fd = match &*disk.syncs.lock() {
            Some(Some(ring)) => ring.as_raw_fd(),
            _ => return println!("this machine has no io_uring"),
        };
        let null = File::open("/dev/null").unwrap();
        // SAFETY: both descriptors are open, and nobody but this disk's ring, which is made to fail here, uses the second one.
        checked(i64::from(unsafe { libc::dup2(null.as_raw_fd(), fd) })).unwrap();
        disk.sync_all(&files).unwrap_err();
        assert!(disk.syncs.lock().is_none(), "the next syncs would take what is left in the ring for their own");
        disk.sync_all(&files).unwrap();
        assert!(matches!(&*disk.syncs.lock(), Some(Some(_))));
    }

    #[test]
    fn a_cancelled_sync_is_done_and_a_failed_one_is_not_retried() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("f")).unwrap();
        for cancelled in [libc::ECANCELED, libc::EINTR, libc::EAGAIN] {
            synced(file.as_raw_fd(), -cancelled).unwrap();
            // It is really done: this one has nothing that could be synced.
            assert_eq!(synced(-1, -cancelled).unwrap_err().raw_os_error(), Some(libc::EBADF));
        }
        assert_eq!(synced(file.as_raw_fd(), -libc::EIO).unwrap_err().raw_os_error(), Some(libc::EIO));
        synced(-1, 0).unwrap();
    }

    #[test]
    fn the_owner_of_a_lock_takes_no_new_space_and_gives_none_back() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, path) = (SystemDisk::new(), dir.path().join("lock"));
        let text = || std::fs::read_to_string(&path).unwrap();
        drop(disk.lock(&path, "an owner with a long name").unwrap());
        let before = text().len();
        // On a full disk a file that was truncated may not become as long again.
        let locked = disk.lock(&path, "me").unwrap();
        assert_eq!((text().len(), text().trim_end()), (before, "me"));
        drop(locked);
        drop(disk.lock(&path, "another").unwrap());
        assert_eq!((text().len(), text().trim_end()), (before, "another"));
    }

    #[test]
    fn a_lock_ends_with_its_guard_despite_a_copied_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, path) = (SystemDisk::new(), dir.path().join("lock"));
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).unwrap();
        // What a child of fork(2) has: another descriptor of the same open file.
        let child = file.try_clone().unwrap();
        // SAFETY: the descriptor belongs to `file`.
        checked(i64::from(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) })).unwrap();
        assert_eq!(disk.lock(&path, "me").map(drop).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(Locked(file));
        disk.lock(&path, "me").map(drop).unwrap();
        drop(child);
    }
}
