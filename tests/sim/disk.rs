//! A disk that loses power: live and durable images, unsynced writes that are lost, reordered or torn, and faults on demand.
//!
//! Deterministic from its seed. Files are sparse pages of 4 KiB, so that volumes of many TiB fit.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use volfork::io::{Disk, DiskFile, IoMode, OpenMode};

use crate::hold::{Holds, Kind};
use crate::random::Random;

const PAGE: u64 = 4096;
const SECTOR: usize = 512;

/// What happens at one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails, and so does every one after it until `crash`.
    Crash,
    /// This operation fails with EIO.
    Eio,
    /// This operation, if it may need space (a sync may: file systems allocate late), fails with ENOSPC; otherwise as usual.
    Enospc,
}

#[derive(Clone, Default)]
struct Image {
    pages: BTreeMap<u64, Box<[u8]>>,
    bytes: u64,
}

/// A change that was not synced yet.
#[derive(Clone)]
enum Change {
    Write { offset: u64, data: Vec<u8> },
    Resize(u64),
    Allocate(Range<u64>),
    Punch(Range<u64>),
}

#[derive(Clone, Default)]
struct Inode {
    live: Image,
    durable: Image,
    unsynced: Vec<Change>,
}

#[derive(Default)]
struct State {
    inodes: Vec<Inode>,
    live_names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// Names that were changed since their directory was synced: old, new, file.
    renames: Vec<(PathBuf, PathBuf, usize)>,
    operations: u64,
    faults: BTreeMap<u64, Fault>,
    crashed: bool,
    locked: bool,
    short_transfers: Option<Random>,
    capacity_pages: Option<u64>,
    /// Grows with each crash, so that files of an earlier life fail.
    life: u64,
}

/// The disk. Cheap to clone; all clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    pub holds: Arc<Holds>,
}

struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    inode: usize,
    life: u64,
}

struct SimLock(SimDisk);

impl Drop for SimLock {
    fn drop(&mut self) {
        self.0.state().locked = false;
    }
}

impl Image {
    fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let count = (self.bytes.saturating_sub(offset)).min(buffer.len() as u64) as usize;
        for (number, byte) in buffer[..count].chunks_mut(SECTOR).enumerate() {
            self.read_sectors(byte, offset + (number * SECTOR) as u64);
        }
        count
    }

    fn read_sectors(&self, buffer: &mut [u8], offset: u64) {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let count = (PAGE as usize - within).min(buffer.len() - done);
            match self.pages.get(&(at / PAGE)) {
                Some(page) => buffer[done..done + count].copy_from_slice(&page[within..within + count]),
                None => buffer[done..done + count].fill(0),
            }
            done += count;
        }
    }

    fn write(&mut self, data: &[u8], offset: u64) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let count = (PAGE as usize - within).min(data.len() - done);
            let page = self.pages.entry(at / PAGE).or_insert_with(|| vec![0; PAGE as usize].into());
            page[within..within + count].copy_from_slice(&data[done..done + count]);
            done += count;
        }
        self.bytes = self.bytes.max(offset + data.len() as u64);
    }

    fn punch(&mut self, range: &Range<u64>) {
        let inside: Vec<u64> = self.pages.range(range.start / PAGE..range.end.div_ceil(PAGE)).map(|(page, _)| *page).collect();
        for page in inside {
            let (start, end) = (page * PAGE, (page + 1) * PAGE);
            if range.start <= start && end <= range.end {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                bytes[(range.start.max(start) - start) as usize..(range.end.min(end) - start) as usize].fill(0);
            }
        }
    }

    fn resize(&mut self, bytes: u64) {
        if bytes < self.bytes {
            self.punch(&(bytes..self.bytes.next_multiple_of(PAGE)));
        }
        self.bytes = bytes;
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, data } => self.write(data, *offset),
            Change::Resize(bytes) => self.resize(*bytes),
            Change::Allocate(range) => {
                self.bytes = self.bytes.max(range.end);
                for page in range.start / PAGE..range.end.div_ceil(PAGE) {
                    self.pages.entry(page).or_insert_with(|| vec![0; PAGE as usize].into());
                }
            }
            Change::Punch(range) => self.punch(range),
        }
    }
}

impl Inode {
    fn change(&mut self, change: Change) {
        self.live.apply(&change);
        self.unsynced.push(change);
    }

    fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            self.durable.apply(&change);
        }
    }

    /// What is left after power loss: of each unsynced change all, nothing, or (of writes) any sectors, in any order.
    fn lose_power(&mut self, random: &mut Random, mode: u64) {
        let mut changes = std::mem::take(&mut self.unsynced);
        if mode == 3 && !changes.iter().any(|change| matches!(change, Change::Resize(_))) {
            // The cache writes back in any order; changes that touch the same bytes may land in the wrong one.
            let count = changes.len();
            for at in 1..count {
                changes.swap(at, random.below(at as u64 + 1) as usize);
            }
        }
        for change in changes {
            match (mode, &change) {
                (0, _) => {}
                (1, _) => self.durable.apply(&change),
                (_, Change::Write { offset, data }) => {
                    let whole = random.below(3);
                    // Sectors of the disk, not of the write, are kept or lost.
                    let mut at = 0;
                    while at < data.len() {
                        let end = (SECTOR - ((*offset as usize + at) % SECTOR) + at).min(data.len());
                        if whole == 0 || (whole == 1 && random.below(2) == 0) {
                            self.durable.write(&data[at..end], offset + at as u64);
                        }
                        at = end;
                    }
                }
                _ if random.below(2) == 0 => self.durable.apply(&change),
                _ => {}
            }
        }
        self.live = self.durable.clone();
    }
}

fn error(text: &str) -> io::Error {
    io::Error::other(text)
}

impl State {
    /// Counts an operation; fails if a fault is due.
    fn step(&mut self, needs_space: bool) -> io::Result<()> {
        if self.crashed {
            return Err(error("the power is off"));
        }
        self.operations += 1;
        match self.faults.get(&self.operations) {
            None => Ok(()),
            Some(Fault::Crash) => {
                self.crashed = true;
                Err(error("the power went off"))
            }
            Some(Fault::Eio) => Err(io::Error::from_raw_os_error(5)),
            Some(Fault::Enospc) if needs_space => Err(io::Error::from_raw_os_error(28)),
            Some(Fault::Enospc) => Ok(()),
        }
    }

    /// Bytes that one call transfers, which may be fewer than asked for.
    fn transfer_bytes(&mut self, asked: usize) -> usize {
        match &mut self.short_transfers {
            Some(random) if asked > 1 => match random.below(4) {
                0 => 1 + random.below(asked as u64 - 1) as usize,
                _ => asked,
            },
            _ => asked,
        }
    }

    fn used_pages(&self) -> u64 {
        self.live_names.values().map(|inode| self.inodes[*inode].live.pages.len() as u64).sum()
    }

    fn room_for(&self, image: &Image, range: Range<u64>) -> io::Result<()> {
        let Some(capacity) = self.capacity_pages else { return Ok(()) };
        let new = (range.start / PAGE..range.end.div_ceil(PAGE)).filter(|page| !image.pages.contains_key(page)).count() as u64;
        if new > 0 && self.used_pages() + new > capacity { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
    }
}

impl SimDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the simulated disk does not panic")
    }

    /// Lets operation number `at` (counted from 1, over the disk's whole life) fail.
    pub fn fail_at(&self, at: u64, fault: Fault) {
        self.state().faults.insert(at, fault);
    }

    /// Forgets faults that did not happen yet.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Whether a fault is still to come.
    pub fn has_faults(&self) -> bool {
        let state = self.state();
        state.faults.range(state.operations + 1..).next().is_some()
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Makes some transfers short.
    pub fn shorten_transfers(&self, seed: u64) {
        self.state().short_transfers = Some(Random::new(seed));
    }

    /// Pages that fit on the disk.
    pub fn set_capacity(&self, pages: Option<u64>) {
        self.state().capacity_pages = pages;
    }

    /// Pages that are allocated.
    pub fn used_pages(&self) -> u64 {
        self.state().used_pages()
    }

    /// The power goes off, and nothing waits any more.
    pub fn power_off(&self) {
        self.state().crashed = true;
        self.holds.release_all();
    }

    /// Whether the power went off.
    pub fn is_off(&self) -> bool {
        self.state().crashed
    }

    /// Power loss, and power on again: what was not synced is lost, kept or torn.
    pub fn crash(&self, random: &mut Random) {
        let mut state = self.state();
        let mode = random.below(4);
        for inode in &mut state.inodes {
            inode.lose_power(random, mode);
        }
        // A name that was not synced is there or not.
        let mut names = state.durable_names.clone();
        let renames = std::mem::take(&mut state.renames);
        let renamed = |path: &PathBuf| renames.iter().any(|(from, to, _)| path == from || path == to);
        // A file has its old name or its new one, and the changes reach the disk in order.
        for (from, to, inode) in &renames {
            if mode == 0 || (mode != 1 && random.below(2) == 0) {
                break;
            }
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
        for (path, inode) in &state.live_names {
            if !names.contains_key(path) && !renamed(path) && mode != 0 && (mode == 1 || random.below(2) == 0) {
                names.insert(path.clone(), *inode);
            }
        }
        let removed: Vec<PathBuf> = names.keys().filter(|path| !state.live_names.contains_key(*path) && !renamed(path)).cloned().collect();
        for path in removed {
            if mode == 1 || (mode != 0 && random.below(2) == 0) {
                names.remove(&path);
            }
        }
        state.live_names = names.clone();
        state.durable_names = names;
        state.crashed = false;
        state.locked = false;
        state.faults.clear();
        state.life += 1;
    }

    /// The process was killed and another one begins, with the power on all the while: nothing is lost, nothing is synced.
    pub fn restart(&self) {
        let mut state = self.state();
        state.crashed = false;
        state.locked = false;
        state.faults.clear();
        state.life += 1;
    }

    /// Inverts one bit of a file, live and durable.
    pub fn flip_bit(&self, path: &Path, offset: u64) {
        let mut state = self.state();
        let inode = state.live_names[path];
        for image in [0, 1] {
            let inode = &mut state.inodes[inode];
            let image = if image == 0 { &mut inode.live } else { &mut inode.durable };
            let mut byte = [0];
            image.read_sectors(&mut byte, offset);
            image.write(&[byte[0] ^ 1], offset);
        }
    }

    /// Names of all files.
    pub fn files(&self) -> Vec<PathBuf> {
        self.state().live_names.keys().cloned().collect()
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        self.state().step(true)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut state = self.state();
        state.step(false)?;
        let inside = state.live_names.keys().filter(|name| name.parent() == Some(path));
        Ok(inside.filter_map(|name| Some(name.file_name()?.to_str()?.to_owned())).collect())
    }

    fn open(&self, path: &Path, mode: OpenMode, _: IoMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        let is_new = mode == OpenMode::Create && !state.live_names.contains_key(path);
        state.step(is_new)?;
        let inode = match (state.live_names.get(path), mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(inode), _) => *inode,
            (None, OpenMode::Read | OpenMode::Write) => return Err(io::ErrorKind::NotFound.into()),
            (None, _) => {
                state.inodes.push(Inode::default());
                let inode = state.inodes.len() - 1;
                state.live_names.insert(path.to_path_buf(), inode);
                inode
            }
        };
        Ok(Arc::new(SimFile { disk: self.clone(), path: path.to_path_buf(), inode, life: state.life }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.step(false)?;
        state.live_names.remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.step(false)?;
        let inode = state.live_names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.live_names.insert(to.to_path_buf(), inode);
        state.renames.push((from.to_path_buf(), to.to_path_buf(), inode));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.holds.pass(Kind::SyncNames, path);
        let mut state = self.state();
        state.step(true)?;
        state.renames.retain(|(from, _, _)| from.parent() != Some(path));
        let live = state.live_names.clone();
        state.durable_names.retain(|name, _| name.parent() != Some(path) || live.contains_key(name));
        state.durable_names.extend(live.into_iter().filter(|(name, _)| name.parent() == Some(path)));
        Ok(())
    }

    fn sync_all(&self, files: &[Arc<dyn DiskFile>]) -> io::Result<()> {
        // In turn: a crash between two of them leaves the one synced and the other not. The order is the caller's or its reverse.
        let reverse = self.state().operations.is_multiple_of(2);
        let order: Box<dyn Iterator<Item = _>> = if reverse { Box::new(files.iter().rev()) } else { Box::new(files.iter()) };
        order.map(|file| file.sync_data()).fold(Ok(()), Result::and)
    }

    fn lock(&self, _: &Path, _: &str) -> io::Result<Box<dyn Send + Sync>> {
        let mut state = self.state();
        state.step(false)?;
        if std::mem::replace(&mut state.locked, true) {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "another simulated process"));
        }
        drop(state);
        Ok(Box::new(SimLock(self.clone())))
    }
}

impl SimFile {
    /// The name that the file has now.
    fn name(&self) -> PathBuf {
        let state = self.disk.state();
        let named = state.live_names.iter().find(|(_, inode)| **inode == self.inode);
        named.map_or_else(|| self.path.clone(), |(name, _)| name.clone())
    }

    fn enter(&self, needs_space: bool) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.disk.state();
        if state.life != self.life {
            return Err(error("the file was opened before the power went off"));
        }
        state.step(needs_space)?;
        Ok(state)
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.enter(false)?;
        let count = state.transfer_bytes(buffer.len());
        Ok(state.inodes[self.inode].live.read(&mut buffer[..count], offset))
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        self.disk.holds.pass(Kind::Write, &self.name());
        let mut state = self.enter(true)?;
        // A short write ends between sectors: the kernel copies pages, and the disk writes sectors whole.
        let short = state.transfer_bytes(buffer.len());
        let count = if short < SECTOR { buffer.len() } else { short / SECTOR * SECTOR };
        state.room_for(&state.inodes[self.inode].live, offset..offset + count as u64)?;
        state.inodes[self.inode].change(Change::Write { offset, data: buffer[..count].to_vec() });
        Ok(count)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.holds.pass(Kind::Sync, &self.name());
        let mut state = self.enter(true)?;
        state.inodes[self.inode].sync();
        Ok(())
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.enter(false)?.inodes[self.inode].live.bytes)
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.enter(true)?.inodes[self.inode].change(Change::Resize(bytes));
        Ok(())
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        let mut state = self.enter(true)?;
        state.room_for(&state.inodes[self.inode].live, range.clone())?;
        state.inodes[self.inode].change(Change::Allocate(range));
        Ok(())
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.enter(false)?.inodes[self.inode].change(Change::Punch(range));
        Ok(())
    }

    fn next_allocated(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let state = self.enter(false)?;
        let image = &state.inodes[self.inode].live;
        let Some((first, _)) = image.pages.range(offset / PAGE..).next() else { return Ok(None) };
        let mut end = first + 1;
        while image.pages.contains_key(&end) {
            end += 1;
        }
        Ok(Some((first * PAGE).max(offset)..end * PAGE))
    }
}

#[test]
fn synced_bytes_survive_and_others_are_old_or_new_by_sector() {
    for seed in 0..200 {
        let disk = SimDisk::default();
        let path = Path::new("d/f");
        let file = disk.open(path, OpenMode::Create, IoMode::Buffered).unwrap();
        file.write_at(&[1; 8192], 0).unwrap();
        disk.sync_all(&[Arc::clone(&file)]).unwrap();
        disk.sync_dir(Path::new("d")).unwrap();
        file.write_at(&[2; 5000], 100).unwrap();
        disk.crash(&mut Random::new(seed));
        assert!(file.read_at(&mut [0], 0).is_err());
        let file = disk.open(path, OpenMode::Read, IoMode::Buffered).unwrap();
        let mut bytes = [0; 8192];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 8192);
        assert!(bytes[..100].iter().chain(&bytes[5100..]).all(|byte| *byte == 1));
        for sector in bytes[512..4608].chunks(512) {
            assert!(sector.iter().all(|byte| *byte == sector[0]) && (sector[0] == 1 || sector[0] == 2), "seed {seed}");
        }
    }
}
