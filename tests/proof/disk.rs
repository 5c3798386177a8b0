//! A disk that loses power and fails as disks and kernels do. Its whole state can be saved at any operation.
//!
//! - Changes are in the page cache until a sync; a loss of power keeps, loses, tears (at 512 bytes) or reorders them.
//! - A failed sync leaves its pages clean: the cache shows bytes that the medium will never have.
//! - At every operation another thread may be scheduled, and the state may be saved.
//!
//! Its own lock is never held at such a place.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use volfork::io::{Disk, DiskFile, IoMode, OpenMode};

use crate::image::{Change, SECTOR, pages_of};
use crate::inode::{Inode, Loss, own};
use crate::random::Random;
use crate::weather::{Act, Space, Weather};

/// Everything a disk has and will do.
#[derive(Clone)]
pub struct Medium {
    inodes: Vec<Arc<Inode>>,
    live_names: Arc<BTreeMap<PathBuf, usize>>,
    durable_names: Arc<BTreeMap<PathBuf, usize>>,
    /// Names that were changed since their directory was synced: old, new, file.
    renames: Vec<(PathBuf, PathBuf, usize)>,
    random: Random,
    pub weather: Weather,
    pub space: Space,
    pub operations: u64,
    /// The operation at which the power goes off.
    pub off_at: Option<u64>,
    off: bool,
    locked: bool,
    /// Files of an earlier life fail.
    life: u64,
    /// How often the machine was started.
    boots: u64,
    /// The log of changes that no frame has never fails: it has to keep all that was acknowledged when the process is killed.
    pub spares_the_log: bool,
    /// Pages of files that cannot be read.
    unreadable: BTreeSet<(usize, u64)>,
    /// Something that had perhaps reached the disk was reported as failed: the store may refuse writes.
    pub harmed: bool,
}

/// Called before each operation.
pub type Watch = Arc<dyn Fn(&SimDisk) + Send + Sync>;

/// The disk. All clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    medium: Arc<Mutex<Medium>>,
    watch: Option<Watch>,
}

struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    inode: usize,
    life: u64,
}

struct SimLock(SimDisk, u64);

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut medium = self.0.medium();
        if medium.life == self.1 {
            medium.locked = false;
        }
    }
}

fn error(text: &str) -> io::Error {
    io::Error::other(text)
}

impl Medium {
    pub fn new(seed: u64) -> Self {
        Self {
            inodes: Vec::new(),
            live_names: Arc::default(),
            durable_names: Arc::default(),
            renames: Vec::new(),
            random: Random::new(seed),
            weather: Weather::default(),
            space: Space::default(),
            operations: 0,
            off_at: None,
            off: false,
            locked: false,
            life: 0,
            boots: 0,
            spares_the_log: false,
            unreadable: BTreeSet::new(),
            harmed: false,
        }
    }

    /// Counts an operation and lets it fail.
    fn begin(&mut self, act: Act, path: &Path) -> io::Result<()> {
        if self.off {
            return Err(error("the power is off"));
        }
        self.operations += 1;
        if self.off_at == Some(self.operations) {
            self.off = true;
            return Err(error("the power goes off"));
        }
        if self.spares(path) {
            return Ok(());
        }
        self.weather.strike(act, &mut self.random).map_or(Ok(()), |number| Err(io::Error::from_raw_os_error(number)))
    }

    fn spares(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str());
        self.spares_the_log && name.is_some_and(|name| name.starts_with("unrecorded"))
    }

    fn used_pages(&self) -> u64 {
        self.live_names.values().map(|inode| self.inodes[*inode].live.allocated_pages()).sum::<u64>() + self.live_names.len() as u64
    }

    fn make_room(&mut self, inode: usize, range: &Range<u64>) -> io::Result<()> {
        let new = self.inodes[inode].live.missing_pages(range);
        self.take_pages(new)
    }

    fn take_pages(&mut self, new: u64) -> io::Result<()> {
        if new > 0 && self.weather.is_full(&mut self.random) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        if self.space.capacity_pages.is_none() {
            return Ok(());
        }
        let used = self.used_pages();
        self.space.take(new, used, self.operations, &mut self.random)
    }

    fn note_freed(&mut self, pages: u64) {
        let (operations, random) = (self.operations, &mut self.random);
        self.space.give_back(pages, operations, random);
    }

    fn change(&mut self, inode: usize, change: Change) {
        let before = self.inodes[inode].live.allocated_pages();
        own(&mut self.inodes[inode]).change(change);
        let after = self.inodes[inode].live.allocated_pages();
        self.note_freed(before.saturating_sub(after));
    }

    /// How much of a transfer is made at once.
    fn transfer_bytes(&mut self, asked: usize) -> usize {
        let short = asked > 1 && self.weather.is_short(&mut self.random);
        if short { 1 + self.random.below(asked as u64 - 1) as usize } else { asked }
    }

    /// Fails if one of these pages cannot be read, or goes bad.
    fn read_pages(&mut self, inode: usize, pages: Range<u64>) -> io::Result<()> {
        if self.weather.spoils(&mut self.random) {
            self.unreadable.insert((inode, pages.start));
        }
        match self.unreadable.range((inode, pages.start)..(inode, pages.end)).next() {
            Some(_) => Err(io::Error::from_raw_os_error(libc::EIO)),
            None => Ok(()),
        }
    }

    /// The process ends; the power stays on.
    pub fn kill(&mut self) {
        self.off = false;
        self.off_at = None;
        self.locked = false;
        self.harmed = false;
        self.life += 1;
    }

    /// The power goes off, and comes back.
    pub fn lose_power(&mut self, random: &mut Random, loss: Loss) {
        self.kill();
        self.boots += 1;
        for inode in &mut self.inodes {
            own(inode).lose_power(random, loss);
        }
        let mut names = (*self.durable_names).clone();
        let mut keeps = || match loss {
            Loss::All => false,
            Loss::Nothing => true,
            _ => random.below(2) == 0,
        };
        let renames = std::mem::take(&mut self.renames);
        let renamed = |path: &PathBuf| renames.iter().any(|(from, to, _)| path == from || path == to);
        // A file has its old name or its new one, and changes of names reach the disk in order.
        for (from, to, inode) in &renames {
            if !keeps() {
                break;
            }
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
        for (path, inode) in &*self.live_names {
            if names.get(path) != Some(inode) && !renamed(path) && keeps() {
                names.insert(path.clone(), *inode);
            }
        }
        let removed: Vec<PathBuf> = names.keys().filter(|path| !self.live_names.contains_key(*path) && !renamed(path)).cloned().collect();
        for path in removed {
            if keeps() {
                names.remove(&path);
            }
        }
        self.live_names = Arc::new(names);
        self.durable_names = Arc::clone(&self.live_names);
    }

    /// Clean pages leave the page cache.
    pub fn drop_caches(&mut self) {
        self.inodes.iter_mut().for_each(|inode| own(inode).drop_cache());
    }

    /// No operation fails from now on, and there is room.
    pub fn calm(&mut self) {
        self.weather = Weather::default();
        self.space = Space::default();
        self.unreadable.clear();
        self.off_at = None;
    }
}

impl SimDisk {
    pub fn new(medium: Medium) -> Self {
        Self { medium: Arc::new(Mutex::new(medium)), watch: None }
    }

    /// The same disk, with somebody who watches each operation.
    pub fn watched(&self, watch: Watch) -> Self {
        Self { medium: Arc::clone(&self.medium), watch: Some(watch) }
    }

    pub fn medium(&self) -> MutexGuard<'_, Medium> {
        self.medium.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn is_off(&self) -> bool {
        self.medium().off
    }

    pub fn power_off(&self) {
        self.medium().off = true;
    }

    fn begin(&self, act: Act, path: &Path) -> io::Result<MutexGuard<'_, Medium>> {
        crate::threads::point();
        let (writes, syncs) = self.medium().weather.slow;
        match act {
            Act::Write => crate::threads::linger(writes),
            Act::Sync | Act::SyncNames => crate::threads::linger(syncs),
            _ => {}
        }
        if let Some(watch) = &self.watch {
            watch(self);
        }
        let mut medium = self.medium();
        let begun = medium.begin(act, path);
        crate::threads::note(|| format!("disk {}: {act:?} {} {begun:?}", medium.operations, path.display()));
        begun.map(|()| medium)
    }

    pub fn files(&self) -> Vec<PathBuf> {
        self.medium().live_names.keys().cloned().collect()
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.begin(Act::Create, path).map(drop)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let medium = self.begin(Act::Open, path)?;
        let inside = medium.live_names.keys().filter(|name| name.parent() == Some(path));
        Ok(inside.filter_map(|name| Some(name.file_name()?.to_str()?.to_owned())).collect())
    }

    fn open(&self, path: &Path, mode: OpenMode, _: IoMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut medium = self.begin(Act::Open, path)?;
        let inode = match (medium.live_names.get(path), mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(inode), _) => *inode,
            (None, OpenMode::Read | OpenMode::Write) => return Err(io::ErrorKind::NotFound.into()),
            (None, _) => {
                if !medium.spares(path) {
                    medium.take_pages(1)?;
                }
                medium.inodes.push(Arc::default());
                let inode = medium.inodes.len() - 1;
                Arc::make_mut(&mut medium.live_names).insert(path.to_path_buf(), inode);
                inode
            }
        };
        Ok(Arc::new(SimFile { disk: self.clone(), path: path.to_path_buf(), inode, life: medium.life }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut medium = self.begin(Act::Other, path)?;
        let removed = Arc::make_mut(&mut medium.live_names).remove(path);
        let inode = removed.ok_or(io::ErrorKind::NotFound)?;
        let pages = 1 + medium.inodes[inode].live.allocated_pages();
        medium.note_freed(pages);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut medium = self.begin(Act::Other, from)?;
        let names = Arc::make_mut(&mut medium.live_names);
        let inode = names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        names.insert(to.to_path_buf(), inode);
        medium.renames.push((from.to_path_buf(), to.to_path_buf(), inode));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let begun = self.begin(Act::SyncNames, path);
        // Without a descriptor for the directory nothing was tried.
        let tried = |number| !matches!(number, libc::EMFILE | libc::ENFILE | libc::ENOMEM);
        if begun.as_ref().is_err_and(|error| error.raw_os_error().is_some_and(tried)) {
            self.medium().harmed = true;
        }
        let mut medium = begun?;
        medium.renames.retain(|(from, _, _)| from.parent() != Some(path));
        let live = Arc::clone(&medium.live_names);
        let durable = Arc::make_mut(&mut medium.durable_names);
        durable.retain(|name, _| name.parent() != Some(path) || live.contains_key(name));
        durable.extend(live.iter().filter(|(name, _)| name.parent() == Some(path)).map(|(name, inode)| (name.clone(), *inode)));
        Ok(())
    }

    fn sync_all(&self, files: &[Arc<dyn DiskFile>]) -> io::Result<()> {
        // One after the other: a loss of power between two finds one synced and the other not. In any order.
        let mut order: Vec<&Arc<dyn DiskFile>> = files.iter().collect();
        {
            let mut medium = self.medium();
            for at in 1..order.len() {
                order.swap(at, medium.random.below(at as u64 + 1) as usize);
            }
        }
        order.into_iter().map(|file| file.sync_data()).fold(Ok(()), Result::and)
    }

    fn page_cache(&self, _: &Path) -> Option<String> {
        Some(format!("boot {}", self.medium().boots))
    }

    fn lock(&self, path: &Path, owner: &str) -> io::Result<Box<dyn Send + Sync>> {
        let mut medium = self.begin(Act::Other, path)?;
        if std::mem::replace(&mut medium.locked, true) {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "another simulated process"));
        }
        let life = medium.life;
        let inode = match medium.live_names.get(path) {
            Some(inode) => *inode,
            None => {
                medium.inodes.push(Arc::default());
                let inode = medium.inodes.len() - 1;
                Arc::make_mut(&mut medium.live_names).insert(path.to_path_buf(), inode);
                inode
            }
        };
        medium.change(inode, Change::Write { offset: 0, data: owner.as_bytes().into() });
        drop(medium);
        Ok(Box::new(SimLock(self.clone(), life)))
    }
}

impl SimFile {
    fn begin(&self, act: Act) -> io::Result<MutexGuard<'_, Medium>> {
        let medium = self.disk.begin(act, &self.path)?;
        if medium.life != self.life {
            return Err(error("the file was opened by a process that has ended"));
        }
        Ok(medium)
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut medium = self.begin(Act::Read)?;
        let count = medium.transfer_bytes(buffer.len());
        medium.read_pages(self.inode, pages_of(&(offset..offset + count as u64)))?;
        Ok(medium.inodes[self.inode].live.read(&mut buffer[..count], offset))
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        let mut medium = self.begin(Act::Write)?;
        // A short write ends between sectors.
        let short = medium.transfer_bytes(buffer.len());
        let count = if short < SECTOR { buffer.len() } else { short / SECTOR * SECTOR };
        if !medium.spares(&self.path) {
            medium.make_room(self.inode, &(offset..offset + count as u64))?;
        }
        for page in pages_of(&(offset..offset + count as u64)) {
            medium.unreadable.remove(&(self.inode, page));
        }
        medium.change(self.inode, Change::Write { offset, data: buffer[..count].into() });
        Ok(count)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut medium = match self.begin(Act::Sync) {
            Err(error) if error.raw_os_error().is_some() => {
                let mut medium = self.disk.medium();
                let Medium { inodes, random, .. } = &mut *medium;
                own(&mut inodes[self.inode]).fail_sync(random);
                medium.harmed = true;
                return Err(error);
            }
            other => other?,
        };
        own(&mut medium.inodes[self.inode]).sync();
        let syncs = medium.weather.slow.1;
        drop(medium);
        crate::threads::linger(syncs);
        Ok(())
    }

    fn drop_clean(&self) -> io::Result<()> {
        let mut medium = self.begin(Act::Other)?;
        own(&mut medium.inodes[self.inode]).drop_cache();
        Ok(())
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.begin(Act::Other)?.inodes[self.inode].live.bytes)
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.begin(Act::Other)?.change(self.inode, Change::Resize(bytes));
        Ok(())
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        let mut medium = self.begin(Act::Allocate)?;
        medium.make_room(self.inode, &range)?;
        medium.change(self.inode, Change::Allocate(range));
        Ok(())
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.begin(Act::Other)?.change(self.inode, Change::Punch(range));
        Ok(())
    }

    fn next_allocated(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok(self.begin(Act::Other)?.inodes[self.inode].live.next_allocated(offset))
    }
}
