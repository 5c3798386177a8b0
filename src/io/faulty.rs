//! The machine's files behind faults that a test switches on.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Disk, DiskFile, DiskFileExt, IoMode, OpenMode, SystemDisk};
use crate::place::{length, wide};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes of a file before they were overwritten.
struct Before {
    offset: u64,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Switches {
    /// Nothing that has no space gets any. A file of the journal has space up to its length, others where they were written.
    full: AtomicBool,
    /// Syncs of data files fail; what they could not write stays in the page cache, and counts as clean.
    syncs_fail: AtomicBool,
    /// No data file can be opened: the process has no descriptor left.
    opens_fail: AtomicBool,
    /// This many directories and files cannot be opened, for lack of descriptors.
    descriptors_lack: AtomicU64,
    /// Reads of data files below this offset fail.
    unreadable_below: AtomicU64,
    /// Reads of checksum files below this offset fail.
    unreadable_pages_below: AtomicU64,
    /// Reads of journals fail.
    journals_unreadable: AtomicBool,
    /// Writes of data files panic.
    writes_panic: AtomicBool,
    /// No space can be given back.
    punches_fail: AtomicBool,
    /// Files tell their descriptors; what is transferred through these meets no fault.
    descriptors_told: AtomicBool,
    /// Its page cache outlives a process, also in a copy of the files.
    keeps_page_cache: AtomicBool,
    /// How often write-back was begun before a sync.
    write_backs: AtomicU64,
    /// Bytes that are not on the disk: in a page cache that will write them, or that calls them clean.
    dirty: Mutex<HashMap<PathBuf, Vec<Before>>>,
    clean: Mutex<HashMap<PathBuf, Vec<Before>>>,
    synced_directories: Mutex<Vec<PathBuf>>,
    /// Directories whose next sync fails, with this number. The one after that succeeds, as that of Linux does.
    syncs_of_names_fail: Mutex<HashMap<PathBuf, i32>>,
    /// Runs when a page of checksums has been read, before the reader goes on.
    after_page: Mutex<Option<Hook>>,
    /// Runs before each sync of a file or directory, on the thread that syncs.
    before_sync: Mutex<Option<SyncHook>>,
}

/// Something that happens in the middle of something else.
type Hook = Box<dyn FnOnce() + Send>;
type SyncHook = Arc<dyn Fn(&Path) + Send + Sync>;

impl Switches {
    fn meet_sync(&self, path: &Path) {
        let hook = self.before_sync.lock().clone();
        hook.into_iter().for_each(|hook| hook(path));
    }
}

fn is_data(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind == "data")
}

/// Such a disk. Clones are the same one.
#[derive(Clone, Default)]
pub struct FaultyDisk {
    disk: Arc<SystemDisk>,
    switches: Arc<Switches>,
}

struct FaultyFile {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    switches: Arc<Switches>,
}

impl FaultyDisk {
    /// What was written and not synced is there for the next process, in a copy of the files, too.
    pub fn keep_page_cache(&self) {
        self.switches.keeps_page_cache.store(true, Ordering::SeqCst);
    }

    /// How often write-back was begun before a sync.
    pub fn write_backs(&self) -> u64 {
        self.switches.write_backs.load(Ordering::SeqCst)
    }

    pub fn set_full(&self, full: bool) {
        self.switches.full.store(full, Ordering::SeqCst);
    }

    /// The next `count` times that a directory or a file is opened there is no descriptor.
    pub fn lack_descriptors(&self, count: u64) {
        self.switches.descriptors_lack.store(count, Ordering::SeqCst);
    }

    fn take_descriptor(&self) -> io::Result<()> {
        let left = self.switches.descriptors_lack.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if left.is_ok() { Err(io::Error::from_raw_os_error(libc::EMFILE)) } else { Ok(()) }
    }

    pub fn fail_syncs(&self, fail: bool) {
        self.switches.syncs_fail.store(fail, Ordering::SeqCst);
    }

    /// The next sync of a directory fails.
    pub fn fail_sync_of_names(&self, path: &Path, number: i32) {
        self.switches.syncs_of_names_fail.lock().insert(path.to_owned(), number);
    }

    pub fn fail_opens(&self, fail: bool) {
        self.switches.opens_fail.store(fail, Ordering::SeqCst);
    }

    pub fn fail_reads_below(&self, offset: u64) {
        self.switches.unreadable_below.store(offset, Ordering::SeqCst);
    }

    pub fn fail_pages_below(&self, offset: u64) {
        self.switches.unreadable_pages_below.store(offset, Ordering::SeqCst);
    }

    pub fn fail_reads_of_journals(&self, fail: bool) {
        self.switches.journals_unreadable.store(fail, Ordering::SeqCst);
    }

    pub fn panic_writes(&self, panic: bool) {
        self.switches.writes_panic.store(panic, Ordering::SeqCst);
    }

    pub fn fail_punches(&self, fail: bool) {
        self.switches.punches_fail.store(fail, Ordering::SeqCst);
    }

    /// Files tell their descriptors from now on, so that a ring is used; what it transfers meets no fault.
    pub fn tell_descriptors(&self) {
        self.switches.descriptors_told.store(true, Ordering::SeqCst);
    }

    /// Does something when the next page of checksums has been read, before its reader goes on.
    pub fn after_next_page(&self, hook: impl FnOnce() + Send + 'static) {
        *self.switches.after_page.lock() = Some(Box::new(hook));
    }

    /// Does something before each sync, on the thread that syncs. A file has the path that it was opened with.
    pub fn before_each_sync(&self, hook: Option<SyncHook>) {
        *self.switches.before_sync.lock() = hook;
    }

    /// Directories that were synced, in order.
    pub fn synced_directories(&self) -> Vec<PathBuf> {
        self.switches.synced_directories.lock().clone()
    }

    /// The page cache drops what it calls clean.
    pub fn drop_caches(&self) {
        for (path, before) in self.switches.clean.lock().drain() {
            let file = self.disk.open(&path, OpenMode::Write, IoMode::Buffered).unwrap();
            undo(&*file, before).unwrap();
        }
    }
}

impl Disk for FaultyDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.disk.list(path)
    }

    fn page_cache(&self, _file: &Path) -> Option<String> {
        self.switches.keeps_page_cache.load(Ordering::SeqCst).then(|| "this machine".to_owned())
    }

    fn begin_write_back(&self, _file: &Arc<dyn DiskFile>) {
        self.switches.write_backs.fetch_add(1, Ordering::SeqCst);
    }

    fn open(&self, path: &Path, mode: OpenMode, io: IoMode) -> io::Result<Arc<dyn DiskFile>> {
        if self.switches.opens_fail.load(Ordering::SeqCst) && is_data(path) {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        self.take_descriptor()?;
        let file = self.disk.open(path, mode, io)?;
        Ok(Arc::new(FaultyFile { file, path: path.to_owned(), switches: Arc::clone(&self.switches) }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.switches.meet_sync(path);
        self.take_descriptor()?;
        if let Some(number) = self.switches.syncs_of_names_fail.lock().remove(path) {
            return Err(io::Error::from_raw_os_error(number));
        }
        self.switches.synced_directories.lock().push(path.to_owned());
        self.disk.sync_dir(path)
    }

    fn sync_all(&self, files: &[Arc<dyn DiskFile>]) -> io::Result<()> {
        files.iter().map(|file| file.sync_data()).fold(Ok(()), Result::and)
    }

    fn lock(&self, path: &Path, owner: &str) -> io::Result<Box<dyn Send + Sync>> {
        self.disk.lock(path, owner)
    }
}

/// The device has what was there before writes that never reached it.
fn undo(file: &dyn DiskFile, writes: Vec<Before>) -> io::Result<()> {
    writes.into_iter().rev().try_for_each(|Before { offset, bytes }| file.write_all_at(&bytes, offset))
}

impl FaultyFile {
    fn is_data(&self) -> bool {
        is_data(&self.path)
    }

    /// The beginning of a range that has space.
    fn with_space(&self, range: Range<u64>) -> io::Result<Range<u64>> {
        if !self.switches.full.load(Ordering::SeqCst) || range.is_empty() {
            return Ok(range);
        }
        let of_layer = self.path.parent().is_some_and(|parent| parent.ends_with("layers"));
        let end = match of_layer {
            true => self.file.next_allocated(range.start)?.filter(|data| data.start <= range.start).map_or(0, |data| data.end),
            false => self.file.size_bytes()?,
        };
        if end > range.start { Ok(range.start..end.min(range.end)) } else { Err(io::Error::from_raw_os_error(libc::ENOSPC)) }
    }
}

impl DiskFile for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.is_data() && offset < self.switches.unreadable_below.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        // One that was the spare when it was opened has that name here.
        let is_journal = self.path.file_name().is_some_and(|name| name == "reserve" || name.to_string_lossy().starts_with("journal."));
        if is_journal && self.switches.journals_unreadable.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let is_page = self.path.extension().is_some_and(|kind| kind == "crc");
        if is_page && offset < self.switches.unreadable_pages_below.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let read = self.file.read_at(buffer, offset);
        if is_page {
            let hook = self.switches.after_page.lock().take();
            hook.into_iter().for_each(|hook| hook());
        }
        read
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        // A file system takes space block by block.
        let range = self.with_space(offset..offset + wide(buffer.len()))?;
        let buffer = &buffer[..length(range.end - range.start)];
        assert!(!self.is_data() || !self.switches.writes_panic.load(Ordering::SeqCst), "the disk panics, as it was told");
        if self.is_data() {
            let mut bytes = vec![0; buffer.len()];
            self.file.read_at(&mut bytes, offset)?;
            let meets = |before: &Before| before.offset < range.end && range.start < before.offset + wide(before.bytes.len());
            if let Some(clean) = self.switches.clean.lock().get_mut(&self.path) {
                // Blocks are written whole: the page is dirty again, and what the disk has is older than the cache.
                for before in clean.extract_if(.., |before| meets(before)) {
                    let start = before.offset.max(offset);
                    let end = (before.offset + wide(before.bytes.len())).min(range.end);
                    let within = |from: u64| length(start - from)..length(end - from);
                    bytes[within(offset)].copy_from_slice(&before.bytes[within(before.offset)]);
                }
            }
            self.switches.dirty.lock().entry(self.path.clone()).or_default().push(Before { offset, bytes });
        }
        self.file.write_at(buffer, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.switches.meet_sync(&self.path);
        let dirty = self.switches.dirty.lock().remove(&self.path);
        if self.is_data() && self.switches.syncs_fail.load(Ordering::SeqCst) {
            self.switches.clean.lock().entry(self.path.clone()).or_default().extend(dirty.into_iter().flatten());
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.file.sync_data()
    }

    fn drop_clean(&self) -> io::Result<()> {
        let clean = self.switches.clean.lock().remove(&self.path);
        clean.map_or(Ok(()), |writes| undo(&*self.file, writes))
    }

    fn size_bytes(&self) -> io::Result<u64> {
        self.file.size_bytes()
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.file.set_size(bytes)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        match self.with_space(range.clone())? == range {
            true => self.file.allocate(range),
            false => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        }
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        match self.switches.punches_fail.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => self.file.punch(range),
        }
    }

    fn next_allocated(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.file.next_allocated(offset)
    }

    fn raw_fd(&self) -> Option<RawFd> {
        self.file.raw_fd().filter(|_| self.switches.descriptors_told.load(Ordering::SeqCst))
    }
}
