//! Stores at real limits: millions of runs, a hundred thousand volumes.
//!
//! Opt-in, because it takes minutes and gigabytes of memory: `VOLFORK_LARGE=1 cargo test --release --test large -- --nocapture`.
//! All blocks are zero and take no space: data files have a size and no content. All other files are real.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use volfork::io::{Disk, DiskFile, IoMode, OpenMode, RingKind, SystemDisk};
use volfork::{Store, StoreOptions};

const BLOCK: u64 = 4096;
/// Pieces of background work after which a store has to be idle.
const STEPS_MAX: u64 = 1_000_000;

/// A disk whose data files have a size and read zero.
struct ZeroDisk(SystemDisk);

/// Such a file; the real one keeps its name and its size.
struct ZeroFile {
    file: Arc<dyn DiskFile>,
    bytes: AtomicU64,
}

impl Disk for ZeroDisk {
    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        self.0.absolute(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.0.list(path)
    }

    fn open(&self, path: &Path, mode: OpenMode, io: IoMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.0.open(path, mode, io)?;
        if path.extension().is_none_or(|name| name != "data") {
            return Ok(file);
        }
        let bytes = AtomicU64::new(file.size_bytes()?);
        Ok(Arc::new(ZeroFile { file, bytes }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.sync_dir(path)
    }

    fn sync_all(&self, files: &[Arc<dyn DiskFile>]) -> io::Result<()> {
        files.iter().try_for_each(|file| file.sync_data())
    }

    fn lock(&self, path: &Path, owner: &str) -> io::Result<Box<dyn Send + Sync>> {
        self.0.lock(path, owner)
    }
}

impl DiskFile for ZeroFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let count = self.bytes.load(Ordering::Acquire).saturating_sub(offset).min(buffer.len() as u64) as usize;
        buffer[..count].fill(0);
        Ok(count)
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        assert!(buffer.iter().all(|byte| *byte == 0), "only zeros are kept");
        self.bytes.fetch_max(offset + buffer.len() as u64, Ordering::AcqRel);
        Ok(buffer.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.set_size(self.bytes.load(Ordering::Acquire))
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.bytes.load(Ordering::Acquire))
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.bytes.store(bytes, Ordering::Release);
        Ok(())
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.bytes.fetch_max(range.end, Ordering::AcqRel);
        Ok(())
    }

    fn punch(&self, _: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn next_allocated(&self, _: u64) -> io::Result<Option<Range<u64>>> {
        Ok(None)
    }
}

fn options() -> StoreOptions {
    let disk = Arc::new(ZeroDisk(SystemDisk::new()));
    StoreOptions::default().with_threads(false).with_disk(disk).with_ring(RingKind::Threads)
}

fn is_wanted() -> bool {
    let wanted = std::env::var_os("VOLFORK_LARGE").is_some();
    if !wanted {
        println!("skipped: VOLFORK_LARGE=1 runs it");
    }
    wanted
}

/// Does all background work.
fn settle(store: &Store) {
    let busy = (0..STEPS_MAX).take_while(|_| store.step().unwrap()).count() as u64;
    assert!(busy < STEPS_MAX, "background work never ends");
}

/// Closes the store and opens it again, and looks whether all is well.
fn reopen(store: Store, dir: &Path) -> Store {
    let began = Instant::now();
    store.close().unwrap();
    drop(store);
    let closed = began.elapsed();
    let checked = Store::check(dir, options()).unwrap();
    assert!(checked.violations.is_empty(), "{:?}", checked.violations.first());
    let began = Instant::now();
    let store = Store::open(dir, options()).unwrap();
    println!("closed in {closed:?}, opened in {:?}", began.elapsed());
    store
}

/// A guest that trims two blocks of each 32 all over a fork of 4 TiB: 17 million runs.
#[test]
fn a_fork_of_4_tib_with_17_million_runs_opens_again() {
    if !is_wanted() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), options()).unwrap();
    store.create_volume("base", 4 << 40).unwrap();
    store.create_snapshot("base", "s").unwrap();
    let guest = store.fork("base@s", "guest").unwrap();
    let began = Instant::now();
    const RUNS: u64 = 17_000_000;
    for run in 0..RUNS {
        guest.discard(run * 32 * BLOCK, 2 * BLOCK).unwrap();
        if run % (1 << 17) == 0 {
            guest.flush().unwrap();
            store.step().unwrap();
        }
    }
    println!("{RUNS} discards in {:?}", began.elapsed());
    drop(guest);
    let store = reopen(store, dir.path());
    let guest = store.volume("guest").unwrap();
    guest.write_at(&[0; BLOCK as usize], 5 * BLOCK).unwrap();
    guest.flush().unwrap();
    drop(guest);
    store.fork("guest", "again").unwrap();
    settle(&store);
    reopen(store, dir.path()).close().unwrap();
}

/// 5.3 million blocks, no two of them neighbours, were overwritten since a snapshot that is destroyed.
#[test]
fn five_million_dead_runs_are_forgotten() {
    if !is_wanted() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), options()).unwrap();
    let volume = store.create_volume("v", 1 << 40).unwrap();
    const RUNS: u64 = 5_300_000;
    let began = Instant::now();
    let zeros = vec![0; (1024 * BLOCK) as usize];
    for start in (0..2 * RUNS).step_by(1024) {
        volume.write_at(&zeros, start * BLOCK).unwrap();
        if start % (1 << 17) == 0 {
            store.step().unwrap();
        }
    }
    store.create_snapshot("v", "s").unwrap();
    for run in 0..RUNS {
        volume.write_at(&[0; BLOCK as usize], 2 * run * BLOCK).unwrap();
        if run % (1 << 16) == 0 {
            store.step().unwrap();
        }
    }
    volume.flush().unwrap();
    println!("{RUNS} overwrites in {:?}", began.elapsed());
    let began = Instant::now();
    store.destroy_snapshot("v", "s").unwrap();
    settle(&store);
    volume.flush().unwrap();
    println!("forgotten in {:?}", began.elapsed());
    drop(volume);
    let store = reopen(store, dir.path());
    settle(&store);
    store.volume("v").unwrap().flush().unwrap();
    store.close().unwrap();
}

/// A hundred thousand volumes, forks of each other in a tree, each with a block of its own.
#[test]
fn a_hundred_thousand_volumes() {
    if !is_wanted() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), options()).unwrap();
    const VOLUMES: usize = 100_000;
    let began = Instant::now();
    store.create_volume("v0", 1 << 30).unwrap();
    for number in 1..VOLUMES {
        let fork = store.fork(&format!("v{}", number / 2), &format!("v{number}")).unwrap();
        fork.write_at(&[0; BLOCK as usize], number as u64 * BLOCK).unwrap();
        if number % 1000 == 0 {
            store.step().unwrap();
        }
    }
    println!("{VOLUMES} volumes in {:?}", began.elapsed());
    let store = reopen(store, dir.path());
    let began = Instant::now();
    assert_eq!(store.list().unwrap().len(), VOLUMES);
    println!("listed in {:?}", began.elapsed());
    let began = Instant::now();
    for number in (1..VOLUMES).step_by(2) {
        store.destroy_volume(&format!("v{number}"), true).unwrap();
    }
    settle(&store);
    println!("every other one destroyed in {:?}", began.elapsed());
    let store = reopen(store, dir.path());
    assert_eq!(store.list().unwrap().len(), VOLUMES / 2);
    store.close().unwrap();
}

/// The longest and the mean of some times.
#[derive(Default)]
struct Times {
    longest: Duration,
    sum: Duration,
    count: u32,
}

impl Times {
    fn measure<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let answer = call();
        let took = began.elapsed();
        (self.longest, self.sum, self.count) = (self.longest.max(took), self.sum + took, self.count + 1);
        answer
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} calls, {:?} on average, {:?} at most", self.count, self.sum / self.count.max(1), self.longest)
    }
}

/// For a minute volumes are forked, opened and destroyed beside a writer whose rounds make one checkpoint due after the other.
#[test]
fn forks_beside_checkpoints() {
    if !is_wanted() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut options = options();
    (options.checkpoint_bytes, options.threads) = (64 << 10, true);
    let store = Store::create(dir.path(), options).unwrap();
    let base = store.create_volume("base", 1 << 40).unwrap();
    for number in 0..2000 {
        store.fork("base", &format!("v{number}")).unwrap();
    }
    // No two of them are neighbours, so that the state is long.
    for block in 0..1_000_000 {
        base.write_at(&[0; BLOCK as usize], 2 * block * BLOCK).unwrap();
    }
    base.flush().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    let (mut forks, mut opens) = (Times::default(), Times::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for block in (1_000_000..).take_while(|_| Instant::now() < until) {
                base.write_at(&[0; BLOCK as usize], 2 * block * BLOCK).unwrap();
                if block % 512 == 0 {
                    base.flush().unwrap();
                }
            }
        });
        for number in (0..2000).cycle().take_while(|_| Instant::now() < until) {
            forks.measure(|| store.fork("v0", "fork").unwrap());
            drop(opens.measure(|| store.volume(&format!("v{number}")).unwrap()));
            store.destroy_volume("fork", false).unwrap();
        }
    });
    let journals = std::fs::read_dir(dir.path()).unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let number = journals.filter_map(|name| name.strip_prefix("journal.")?.parse::<u64>().ok()).max();
    println!("forks: {forks}; opens: {opens}; the journal has the number {number:?}");
    drop(base);
    store.close().unwrap();
}
