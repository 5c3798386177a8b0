//! temp
use super::{Disk, DiskFile, IoMode, OpenMode};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// temp
#[derive(Default)]
pub struct SystemDisk;
impl SystemDisk {
    /// temp
    pub fn new() -> Self {
        Self
    }
}
struct SystemFile(File);
impl Disk for SystemDisk {
    fn create_dir(&self, p: &Path) -> io::Result<()> {
        std::fs::create_dir_all(p)
    }
    fn list(&self, p: &Path) -> io::Result<Vec<String>> {
        std::fs::read_dir(p)?.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect()
    }
    fn open(&self, p: &Path, m: OpenMode, io: IoMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut o = OpenOptions::new();
        o.read(true);
        match m {
            OpenMode::Read => {}
            OpenMode::Write => {
                o.write(true);
            }
            OpenMode::Create => {
                o.write(true).create(true);
            }
            OpenMode::CreateNew => {
                o.write(true).create_new(true);
            }
        }
        if io == IoMode::Direct {
            o.custom_flags(libc::O_DIRECT);
        }
        Ok(Arc::new(SystemFile(o.open(p)?)))
    }
    fn remove(&self, p: &Path) -> io::Result<()> {
        std::fs::remove_file(p)
    }
    fn sync_dir(&self, p: &Path) -> io::Result<()> {
        File::open(p)?.sync_all()
    }
    fn sync_all(&self, f: &[Arc<dyn DiskFile>]) -> io::Result<()> {
        for f in f {
            f.sync_data()?;
        }
        Ok(())
    }
    fn lock(&self, p: &Path, owner: &str) -> io::Result<Box<dyn Send + Sync>> {
        use std::io::{Read, Write};
        let mut f = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(p)?;
        // SAFETY: temp
        if unsafe { libc::flock(f.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let mut s = String::new();
            f.read_to_string(&mut s)?;
            return Err(io::Error::new(io::ErrorKind::WouldBlock, s));
        }
        f.set_len(0)?;
        f.write_all(owner.as_bytes())?;
        Ok(Box::new(f))
    }
}
impl DiskFile for SystemFile {
    fn read_at(&self, b: &mut [u8], o: u64) -> io::Result<usize> {
        self.0.read_at(b, o)
    }
    fn write_at(&self, b: &[u8], o: u64) -> io::Result<usize> {
        self.0.write_at(b, o)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
    fn set_size(&self, n: u64) -> io::Result<()> {
        self.0.set_len(n)
    }
    fn allocate(&self, r: Range<u64>) -> io::Result<()> {
        // SAFETY: temp
        if unsafe { libc::fallocate(self.0.as_raw_fd(), 0, r.start as i64, (r.end - r.start) as i64) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
    fn punch(&self, r: Range<u64>) -> io::Result<()> {
        // SAFETY: temp
        if unsafe {
            libc::fallocate(
                self.0.as_raw_fd(),
                libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE,
                r.start as i64,
                (r.end - r.start) as i64,
            )
        } != 0
        {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
    fn next_allocated(&self, o: u64) -> io::Result<Option<Range<u64>>> {
        // SAFETY: temp
        let a = unsafe { libc::lseek(self.0.as_raw_fd(), o as i64, libc::SEEK_DATA) };
        if a < 0 {
            let e = io::Error::last_os_error();
            return if e.raw_os_error() == Some(libc::ENXIO) { Ok(None) } else { Err(e) };
        }
        // SAFETY: temp
        let b = unsafe { libc::lseek(self.0.as_raw_fd(), a, libc::SEEK_HOLE) };
        if b < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Some(a as u64..b as u64))
    }
    fn raw_fd(&self) -> Option<RawFd> {
        Some(self.0.as_raw_fd())
    }
}
