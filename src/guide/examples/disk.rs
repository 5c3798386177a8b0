//! Puts a disk of one's own below a store: here one that counts what the engine does to the files of the machine.
//!
//! `cargo run --example disk`

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use volfork::io::{Disk, DiskFile, IoMode, OpenMode, SystemDisk};
use volfork::{Store, StoreOptions};

#[derive(Default)]
struct Counters {
    writes: AtomicU64,
    bytes_written: AtomicU64,
    syncs: AtomicU64,
}

/// A disk must keep the contract in the documentation of `volfork::io::Disk`: above all, a sync that succeeds has made every
/// completed write durable.
#[derive(Default)]
struct CountingDisk {
    machine: SystemDisk,
    counters: Arc<Counters>,
}

struct CountingFile {
    file: Arc<dyn DiskFile>,
    counters: Arc<Counters>,
}

impl Disk for CountingDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.machine.create_dir(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.machine.list(path)
    }
    fn open(&self, path: &Path, mode: OpenMode, io: IoMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.machine.open(path, mode, io)?;
        Ok(Arc::new(CountingFile { file, counters: Arc::clone(&self.counters) }))
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.machine.remove(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.machine.rename(from, to)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.machine.sync_dir(path)
    }
    /// One barrier round. Every file is synced, even if one fails. The files are those that `open` gave.
    fn sync_all(&self, files: &[Arc<dyn DiskFile>]) -> io::Result<()> {
        files.iter().map(|file| file.sync_data()).fold(Ok(()), Result::and)
    }
    fn lock(&self, path: &Path, owner: &str) -> io::Result<Box<dyn Send + Sync>> {
        self.machine.lock(path, owner)
    }
}

/// Without `raw_fd` the engine makes its transfers through these calls, not through io_uring.
impl DiskFile for CountingFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        let written = self.file.write_at(buffer, offset)?;
        self.counters.writes.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes_written.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        self.file.sync_data()
    }
    fn size_bytes(&self) -> io::Result<u64> {
        self.file.size_bytes()
    }
    fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.file.set_size(bytes)
    }
    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.file.allocate(range)
    }
    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.file.punch(range)
    }
    fn next_allocated(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.file.next_allocated(offset)
    }
}

/// Does something, and prints what it cost. Returns the bytes written.
fn measure(what: &str, counters: &Counters, act: impl FnOnce() -> volfork::Result<()>) -> volfork::Result<u64> {
    let read = || [&counters.writes, &counters.bytes_written, &counters.syncs].map(|counter| counter.load(Ordering::Relaxed));
    let before = read();
    act()?;
    let after = read();
    let [writes, bytes, syncs] = [0, 1, 2].map(|index| after[index] - before[index]);
    println!("{what:<22} {writes:>3} writes, {bytes:>7} bytes, {syncs} syncs");
    Ok(bytes)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let disk = CountingDisk::default();
    let counters = Arc::clone(&disk.counters);
    // Without threads nothing happens in the background, so that the numbers are those of the calls alone.
    let options = StoreOptions::default().with_disk(Arc::new(disk)).with_threads(false);
    let store = Store::create(directory.path().join("store"), options)?;
    let volume = store.create_volume("disk", 1 << 30)?;

    let megabyte = vec![1; 1 << 20];
    let written = measure("write of 1 MiB", &counters, || volume.write_at(&megabyte, 0))?;
    assert!(written >= 1 << 20, "every byte goes through the disk");
    measure("flush", &counters, || volume.flush())?;
    measure("flush of nothing new", &counters, || volume.flush())?;
    let forked = measure("fork", &counters, || volume.fork("fork").map(drop))?;
    assert!(forked < 64 << 10, "a fork copies no data");

    let mut bytes = vec![0; 1 << 20];
    store.volume("fork")?.read_at(&mut bytes, 0)?;
    assert_eq!(bytes, megabyte);
    store.close()?;
    Ok(())
}
