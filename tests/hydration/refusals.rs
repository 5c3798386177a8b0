//! A store that cannot keep what comes.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use volfork::io::{Disk, DiskFile, IoMode, OpenMode, SystemDisk};
use volfork::{ErrorKind, Store, StoreOptions};

use crate::stage::{Actor, Play, Stage};
use crate::{options, pattern};

/// The machine's files, which cannot be synced any more once it is `broken`.
#[derive(Default)]
struct Broken {
    disk: SystemDisk,
    broken: AtomicBool,
}

impl Disk for Broken {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.disk.list(path)
    }

    fn open(&self, path: &Path, mode: OpenMode, io: IoMode) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(path, mode, io)
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
        if self.broken.load(Ordering::SeqCst) { Err(io::ErrorKind::Other.into()) } else { self.disk.sync_all(files) }
    }

    fn lock(&self, path: &Path, owner: &str) -> io::Result<Box<dyn Send + Sync>> {
        self.disk.lock(path, owner)
    }
}

#[test]
fn a_store_that_refuses_writes_is_not_sent_its_blocks_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let (stage, disk) = (Stage::default(), Arc::new(Broken::default()));
    let store = Store::create(dir.path(), StoreOptions { disk: Arc::clone(&disk) as _, ..options(&stage) }).unwrap();
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
