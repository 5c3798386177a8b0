//! Stores that cannot store fetched blocks: full or poisoned.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use volfork::io::{Disk, DiskFile, IoMode, OpenMode, SystemDisk};
use volfork::volume::{EventKind, HydrationState, OnEvent};
use volfork::{ErrorKind, Store};

use crate::stage::{Actor, PATIENCE, Play, Stage};
use crate::{options, pattern, read};

/// Whether there is space for blocks, and how often somebody found that there is none without having fetched any.
#[derive(Default)]
struct Space {
    full: AtomicBool,
    refused: Mutex<u64>,
    changed: Condvar,
}

impl Space {
    fn take(&self) -> io::Result<()> {
        if !self.full.load(Ordering::SeqCst) {
            return Ok(());
        }
        *self.refused.lock() += 1;
        self.changed.notify_all();
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    }
}

/// The machine's files. Those of blocks can be full, and none can be synced any more once the disk is `broken`.
#[derive(Default)]
struct FailingDisk {
    disk: SystemDisk,
    broken: AtomicBool,
    space: Arc<Space>,
}

struct DataFile(Arc<dyn DiskFile>, Arc<Space>);

impl Disk for FailingDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.disk.list(path)
    }

    fn open(&self, path: &Path, mode: OpenMode, io: IoMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(path, mode, io)?;
        let is_data = path.extension().is_some_and(|kind| kind == "data");
        Ok(if is_data { Arc::new(DataFile(file, Arc::clone(&self.space))) } else { file })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.sync_all(&[]).and_then(|()| self.disk.sync_dir(path))
    }

    fn sync_all(&self, files: &[Arc<dyn DiskFile>]) -> io::Result<()> {
        match self.broken.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::Other.into()),
            false => files.iter().try_for_each(|file| file.sync_data()),
        }
    }

    fn lock(&self, path: &Path, owner: &str) -> io::Result<Box<dyn Send + Sync>> {
        self.disk.lock(path, owner)
    }
}

impl DiskFile for DataFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        self.1.take()?;
        self.0.write_at(buffer, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn size_bytes(&self) -> io::Result<u64> {
        self.0.size_bytes()
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.0.set_size(bytes)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.1.take()?;
        self.0.allocate(range)
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.0.punch(range)
    }

    fn next_allocated(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.0.next_allocated(offset)
    }
}

#[test]
fn a_store_that_refuses_writes_is_not_refilled_in_a_loop() {
    let dir = tempfile::tempdir().unwrap();
    let (stage, disk) = (Stage::default(), Arc::new(FailingDisk::default()));
    let store = Store::create(dir.path(), options(&stage).with_disk(Arc::clone(&disk) as _)).unwrap();
    let actor = stage.add(Actor::new("a://", &pattern(71, 8 << 20)));
    actor.play(|_, _| Play::Hang);
    store.fork("a://", "v").unwrap();
    let local = store.create_volume("local", 1 << 20).unwrap();
    local.write_at(&[1; 4096], 0).unwrap();
    actor.await_read(|_, _| true);
    disk.broken.store(true, Ordering::SeqCst);
    local.flush().unwrap_err();
    assert_eq!(local.write_at(&[1; 4096], 0).unwrap_err().kind(), ErrorKind::Poisoned);
    actor.play(|_, _| Play::Answer);
    actor.release();
    let error = loop {
        match store.show("v").unwrap().hydration.last_error {
            Some(error) => break error,
            None => std::thread::yield_now(),
        }
    };
    assert!(error.contains("cannot be stored"), "{error}");
    let bytes = actor.bytes_read();
    // A second was the pause after which all of it was fetched again.
    std::thread::sleep(Duration::from_millis(2500));
    let again = actor.bytes_read() - bytes;
    assert!(again <= 8 << 20, "{again} bytes came again");
    assert!(actor.bytes_read() <= 2 * (8 << 20), "{} bytes", actor.bytes_read());
}

/// Waits until space was refused so many times more.
fn await_refusals(space: &Space, more: u64) {
    let mut refused = space.refused.lock();
    let enough = *refused + more;
    while *refused < enough {
        assert!(!space.changed.wait_for(&mut refused, PATIENCE).timed_out(), "it is not tried again");
    }
}

#[test]
fn a_full_disk_pauses_fetching_until_there_is_space() {
    let dir = tempfile::tempdir().unwrap();
    let (stage, disk) = (Stage::default(), FailingDisk::default());
    let (space, told) = (Arc::clone(&disk.space), Arc::<Mutex<Vec<_>>>::default());
    let heard = Arc::clone(&told);
    let on_event: OnEvent = Arc::new(move |event| heard.lock().push((event.kind, event.error.clone())));
    let store = Store::create(dir.path(), options(&stage).with_disk(Arc::new(disk)).with_on_event(on_event)).unwrap();
    let data = pattern(72, 32 << 20);
    let actor = stage.add(Actor::new("a://", &data));
    space.full.store(true, Ordering::SeqCst);
    let volume = store.fork("a://", "v").unwrap();
    await_refusals(&space, 1);
    while store.show("v").unwrap().hydration.state != HydrationState::NoSpace {
        std::thread::yield_now();
    }
    // What was under way has come; from then on nothing is fetched to find out that there is no space.
    await_refusals(&space, 1);
    let bytes = actor.bytes_read();
    await_refusals(&space, 2);
    assert_eq!(actor.bytes_read(), bytes, "it is fetched in vain");
    let hydration = store.show("v").unwrap().hydration;
    assert!(hydration.last_error.as_ref().is_some_and(|error| error.contains("cannot be stored")), "{hydration:?}");
    assert_eq!(hydration.state, HydrationState::NoSpace);
    // A reader has its bytes, though they cannot be kept.
    assert!(read(&volume, 16 << 20, 4096).unwrap() == data[16 << 20..(16 << 20) + 4096]);
    space.full.store(false, Ordering::SeqCst);
    assert!(store.wait_hydrated("v", PATIENCE).unwrap(), "{:?}", store.show("v").unwrap());
    assert!(read(&volume, 0, data.len()).unwrap() == data);
    store.close().unwrap();
    let told = told.lock();
    let kinds: Vec<_> = told.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [EventKind::NoSpace, EventKind::Recovered, EventKind::Hydrated]);
    assert!(told[0].1.as_ref().is_some_and(|error| error.starts_with("no space")), "{told:?}");
}
