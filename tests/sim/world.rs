//! One store on a simulated disk, driven by random operations and compared with the model.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use volfork::content::Digest;
use volfork::volume::VolumeLimits;
use volfork::{ErrorKind, Store, StoreOptions};

use crate::clock::SimClock;
use crate::disk::{Fault, SimDisk};
use crate::model::{Model, SECTOR, SnapshotModel, VOLUME_BYTES, VolumeModel, WINDOW_SECTORS, WINDOW_START, sector_bytes};
use crate::random::Random;
use crate::source::{MOODY, STEADY, SimSources, source_tags};

/// Name, size, snapshots, labels and limits of a volume.
type Shape = (String, u64, Vec<String>, BTreeMap<String, String>, VolumeLimits);

/// A change of shape that was asked for and may have happened: the model if it did.
type Alternative = Option<(String, Model)>;

pub struct World {
    pub disk: SimDisk,
    pub random: Random,
    pub sources: SimSources,
    /// Forks have an address that fails and lies, besides one that does not.
    pub moody: bool,
    pub model: Model,
    /// Journal bytes after which the state is written anew.
    checkpoint_bytes: u64,
    store: Option<Store>,
    pub clock: Arc<SimClock>,
    next_tag: u64,
    next_name: u64,
    alternative: Alternative,
    /// What was sealed as a layer of an image, by its chain.
    pub images: BTreeMap<Digest, SnapshotModel>,
    pub log: Vec<String>,
}

/// How an operation ended for the driver.
pub type Outcome = Result<(), volfork::Error>;

impl World {
    pub fn new(seed: u64) -> Self {
        Self {
            disk: SimDisk::default(),
            random: Random::new(seed),
            sources: SimSources::default(),
            moody: false,
            model: Model::new(),
            // Small in every third history, so that states are written in the middle of everything.
            checkpoint_bytes: if seed.is_multiple_of(3) { 1 << 10 } else { 8 << 20 },
            store: None,
            clock: Arc::default(),
            next_tag: 1,
            next_name: 0,
            alternative: None,
            images: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    fn options(&self) -> StoreOptions {
        StoreOptions::default()
            .with_disk(Arc::new(self.disk.clone()))
            .with_clock(Arc::clone(&self.clock) as _)
            .with_sources(Arc::new(self.sources.clone()))
            .with_threads(false)
            .with_checksum_cache_bytes(1 << 20)
            .with_checkpoint_bytes(self.checkpoint_bytes)
    }

    pub fn root() -> PathBuf {
        PathBuf::from("store")
    }

    /// Makes or opens the store.
    pub fn open(&mut self) -> Outcome {
        let store = match Store::open(Self::root(), self.options()) {
            Err(error) if error.kind() == ErrorKind::NotFound => Store::create(Self::root(), self.options())?,
            other => other?,
        };
        self.store = Some(store);
        Ok(())
    }

    pub fn store(&self) -> &Store {
        self.store.as_ref().expect("the store is open")
    }

    /// Closes the store in order.
    pub fn close(&mut self) -> Outcome {
        let closed = self.store.take().map_or(Ok(()), |store| store.close());
        if closed.is_ok() {
            self.model.values_mut().for_each(VolumeModel::flush);
        }
        closed
    }

    /// Power loss. Then the store is checked, opened and compared.
    pub fn crash(&mut self) {
        self.log.push(format!("crash at operation {}", self.disk.operations()));
        // The process is gone: nothing it does from here on reaches the disk.
        self.disk.fail_at(self.disk.operations() + 1, Fault::Crash);
        self.store = None;
        self.disk.crash(&mut self.random);
        self.verify_reopened();
    }

    /// Power loss or a close in order, and the store is opened again, with the source as lost as it was.
    pub fn restart_without_looking(&mut self, power_loss: bool) {
        if power_loss {
            self.disk.fail_at(self.disk.operations() + 1, Fault::Crash);
            self.store = None;
            self.disk.crash(&mut self.random);
        } else {
            self.close().unwrap();
        }
        self.open().unwrap();
    }

    /// The process is killed. The power stays on, and goes off right after another process has opened the store.
    pub fn kill(&mut self) {
        self.die();
        self.verify_reopened();
        self.crash();
    }

    /// The process is killed, and the power stays on.
    pub fn die(&mut self) {
        self.log.push(format!("killed at operation {}", self.disk.operations()));
        self.disk.fail_at(self.disk.operations() + 1, Fault::Crash);
        self.store = None;
        self.disk.restart();
    }

    /// Opens the store and compares it with what the contract allows.
    pub fn verify_reopened(&mut self) {
        let checked = Store::check(Self::root(), self.options());
        let opened = if checked.is_err() && self.disk.is_off() { Ok(()) } else { self.open() };
        if self.disk.is_off() {
            // The power went off during recovery.
            self.log.push("crash in recovery".into());
            self.store = None;
            self.disk.crash(&mut self.random);
            return self.verify_reopened();
        }
        match checked {
            Ok(report) => assert!(report.violations.is_empty(), "check: {:?}\n{}", report.violations, self.story()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "check: {error}\n{}", self.story()),
        }
        opened.unwrap_or_else(|error| panic!("reopening: {error:?}\n{}", self.story()));
        self.disk.clear_faults();
        self.choose_alternative();
        if self.sources.0.lost.load(Ordering::SeqCst) {
            self.accept_what_is_here();
            self.sources.0.lost.store(false, Ordering::SeqCst);
        }
        self.accept_contents();
        self.compare();
        let report = self.store().scrub(None).unwrap();
        assert!(report.errors.is_empty(), "scrub: {:?}\n{}", report.errors, self.story());
    }

    /// Decides by the names whether the change of shape that was under way has happened.
    fn choose_alternative(&mut self) {
        let Some((what, after)) = self.alternative.take() else { return };
        let shape = |model: &Model| {
            model
                .iter()
                .map(|(name, volume)| {
                    let names = volume.snapshots.keys().cloned().collect();
                    (name.clone(), volume.size_bytes, names, volume.labels.clone(), volume.limits)
                })
                .collect()
        };
        let found: Vec<Shape> = self
            .store()
            .list()
            .unwrap()
            .into_iter()
            .map(|info| {
                (
                    info.name,
                    info.size_bytes,
                    {
                        let mut names = info.snapshots;
                        names.sort();
                        names
                    },
                    info.labels,
                    info.limits,
                )
            })
            .collect();
        let (before, then): (Vec<_>, Vec<_>) = (shape(&self.model), shape(&after));
        if found == then && then != before {
            self.log.push(format!("{what} had happened"));
            self.model = after;
        } else {
            assert_eq!(found, before, "{what}: neither before nor after\n{}", self.story());
        }
    }

    fn accept_contents(&mut self) {
        let names: Vec<String> = self.model.keys().cloned().collect();
        for name in names {
            let found = self.read(&name);
            let story = self.story();
            let volume = self.model.get_mut(&name).expect("named by the model");
            volume.accept(&found).unwrap_or_else(|error| panic!("volume {name}: {error}\n{story}"));
        }
    }

    /// Without the source: every sector that was written, and is known to be durable, can be read.
    fn accept_what_is_here(&self) {
        for (name, volume) in &self.model {
            let open = self.store().volume(name).unwrap();
            for sector in 0..volume.sectors() {
                match self.sector(&mut |buffer, offset| open.read_at(buffer, offset), sector) {
                    Some(tag) => {
                        let allowed = tag == volume.durable[sector] || volume.pending[sector].contains(&tag);
                        assert!(allowed, "volume {name}: sector {sector} holds {tag}\n{}", self.story());
                    }
                    None => {
                        let far = volume.durable[sector] == source_tags()[sector];
                        assert!(far, "volume {name}: sector {sector} was written and needs the source\n{}", self.story());
                    }
                }
            }
            for (snapshot, model) in &volume.snapshots {
                let open = self.store().snapshot(name, snapshot).unwrap();
                for sector in 0..(model.size_bytes.saturating_sub(WINDOW_START) / SECTOR) as usize {
                    let tag = self.sector(&mut |buffer, offset| open.read_at(buffer, offset), sector).unwrap_or(source_tags()[sector]);
                    assert_eq!(tag, model.sectors[sector], "snapshot {name}@{snapshot}: sector {sector}\n{}", self.story());
                }
            }
        }
    }

    /// The tag of one sector; `None`: the source is needed for it.
    fn sector(&self, read: &mut dyn FnMut(&mut [u8], u64) -> Outcome, sector: usize) -> Option<u64> {
        let mut bytes = [0xee; SECTOR as usize];
        match read(&mut bytes, WINDOW_START + sector as u64 * SECTOR) {
            Ok(()) => {
                let tag = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
                assert!(bytes == sector_bytes(tag), "a sector is mixed\n{}", self.story());
                Some(tag)
            }
            Err(error) => {
                assert!(error.kind() == ErrorKind::SourceLost || self.disk.is_off(), "{error}\n{}", self.story());
                None
            }
        }
    }

    /// Reads one sector while the source may be lost.
    pub fn peek(&mut self) {
        let Some(name) = self.some_volume() else { return };
        let volume = &self.model[&name];
        let (sectors, live) = (volume.sectors() as u64, volume.live.clone());
        if sectors > 0 {
            let sector = self.random.below(sectors) as usize;
            let open = self.store().volume(&name).unwrap();
            let found = self.sector(&mut |buffer, offset| open.read_at(buffer, offset), sector);
            let expected = if self.disk.is_off() { found } else { Some(live[sector]) };
            assert_eq!(
                found.or(Some(source_tags()[sector])),
                expected.or(Some(source_tags()[sector])),
                "volume {name}: sector {sector}\n{}",
                self.story()
            );
        }
    }

    /// The source goes, or comes back.
    pub fn toggle_source(&mut self) {
        let lost = !self.sources.0.lost.fetch_xor(true, Ordering::SeqCst);
        self.log.push(format!("the source is {}", if lost { "lost" } else { "back" }));
    }

    /// An operation failed since the source is lost: it has changed nothing.
    pub fn take_lost(&mut self, error: &volfork::Error) {
        assert_eq!(error.kind(), ErrorKind::SourceLost, "{error}\n{}", self.story());
        assert!(self.sources.0.lost.load(Ordering::SeqCst), "{error}\n{}", self.story());
        assert!(self.log.last().is_some_and(|what| what.starts_with("fork source") || what == "compare"), "{error}\n{}", self.story());
        self.alternative = None;
    }

    fn read(&self, name: &str) -> Vec<u64> {
        let volume = self.store().volume(name).unwrap_or_else(|error| panic!("volume {name}: {error}\n{}", self.story()));
        self.tags(volume.size_bytes(), &mut |buffer, offset| volume.read_at(buffer, offset), name)
    }

    fn tags(&self, size_bytes: u64, read: &mut dyn FnMut(&mut [u8], u64) -> Outcome, name: &str) -> Vec<u64> {
        let sectors = (size_bytes.saturating_sub(WINDOW_START) / SECTOR) as usize;
        let mut bytes = vec![0xee; sectors * SECTOR as usize];
        read(&mut bytes, WINDOW_START).unwrap_or_else(|error| panic!("reading {name}: {error}\n{}", self.story()));
        let tag = |sector: &[u8]| {
            let tag = u64::from_le_bytes(sector[..8].try_into().expect("eight bytes"));
            assert!(sector == sector_bytes(tag), "volume {name}: a sector is mixed\n{}", self.story());
            tag
        };
        bytes.chunks(SECTOR as usize).map(tag).collect()
    }

    /// Does all background work, until no volume needs its source.
    pub fn settle(&self) {
        let hydrates = || self.store().list().unwrap().iter().any(|info| info.source.is_some());
        let mut steps = 0..100_000;
        while self.store().step().unwrap() || hydrates() {
            assert!(steps.next().is_some(), "background work never ends\n{}", self.story());
        }
    }

    /// Compares everything with what is live.
    pub fn compare(&self) {
        let names: Vec<_> = self.store().list().unwrap().into_iter().map(|info| (info.name, info.labels, info.limits)).collect();
        let expected: Vec<_> = self.model.iter().map(|(name, volume)| (name.clone(), volume.labels.clone(), volume.limits)).collect();
        assert_eq!(names, expected, "names, labels and limits\n{}", self.story());
        self.compare_images();
        for (name, volume) in &self.model {
            let found = self.read(name);
            assert_eq!(found, volume.live[..volume.sectors()], "volume {name}\n{}", self.story());
            for (snapshot, model) in &volume.snapshots {
                let open = self.store().snapshot(name, snapshot).unwrap();
                assert_eq!(open.size_bytes(), model.size_bytes);
                let found = self.tags(open.size_bytes(), &mut |buffer, offset| open.read_at(buffer, offset), snapshot);
                assert_eq!(found, model.sectors[..found.len()], "snapshot {name}@{snapshot}\n{}", self.story());
            }
        }
    }

    pub fn story(&self) -> String {
        let from = self.log.len().saturating_sub(40);
        self.log[from..].join("\n")
    }

    pub fn some_volume(&mut self) -> Option<String> {
        let count = self.model.len() as u64;
        (count > 0).then(|| self.random.below(count)).and_then(|at| self.model.keys().nth(at as usize).cloned())
    }

    pub fn new_name(&mut self) -> String {
        self.next_name += 1;
        format!("v{}", self.next_name)
    }

    /// A change of shape: `after` says what the model is if it happened.
    pub fn change(&mut self, what: String, after: Model, run: impl FnOnce(&Store) -> Outcome) -> Outcome {
        self.log.push(what.clone());
        self.alternative = Some((what, after.clone()));
        run(self.store.as_ref().expect("the store is open"))?;
        self.alternative = None;
        self.model = after;
        Ok(())
    }

    /// One random operation.
    pub fn act(&mut self) -> Outcome {
        let Some(name) = self.some_volume() else { return self.create() };
        match self.random.below(100) {
            0..=44 => self.write(&name),
            45..=54 => self.flush(&name),
            55..=61 => self.discard(&name),
            62..=67 => self.fork(&name),
            68..=72 => self.snapshot(&name),
            73..=75 => self.fork_snapshot(&name),
            76..=79 => self.destroy(&name),
            80..=82 => self.destroy_snapshot(&name),
            83..=84 => self.resize(&name),
            85 => self.rename(&name),
            86 => self.create(),
            91..=92 => self.snapshot_image(&name),
            93 => self.fork_image(),
            94 => self.relabel(&name),
            95 => self.limit(&name),
            87..=89 => self.fork_source(),
            90 => {
                self.log.push("compare".into());
                let name = self.model.keys().next().cloned();
                name.map_or(Ok(()), |name| {
                    self.store().volume(&name)?.read_at(&mut [0; 4096], WINDOW_START.min(self.model[&name].size_bytes.saturating_sub(4096)))
                })
            }
            _ => self.step(),
        }
    }

    pub fn step(&mut self) -> Outcome {
        self.log.push("step".into());
        let steps = 1 + self.random.below(12);
        for _ in 0..steps {
            if !self.store().step()? {
                break;
            }
        }
        Ok(())
    }

    pub fn create(&mut self) -> Outcome {
        let name = self.new_name();
        let mut after = self.model.clone();
        after.insert(name.clone(), VolumeModel::new(vec![0; WINDOW_SECTORS], VOLUME_BYTES));
        self.change(format!("create {name}"), after, |store| store.create_volume(&name, VOLUME_BYTES).map(drop))
    }

    pub fn write(&mut self, name: &str) -> Outcome {
        let sectors = self.model[name].sectors();
        if sectors == 0 {
            return Ok(());
        }
        let mut start = self.random.below(sectors as u64) as usize;
        let mut count = 1 + self.random.below(40) as usize;
        if self.random.below(2) == 0 {
            (start, count) = (start / 8 * 8, 8 * (1 + self.random.below(3) as usize));
        }
        self.write_sectors(name, start..(start + count).min(sectors))
    }

    pub fn write_sectors(&mut self, name: &str, range: Range<usize>) -> Outcome {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.log.push(format!("write {name} {range:?} = {tag}"));
        let data = sector_bytes(tag).repeat(range.len());
        let volume = self.store().volume(name)?;
        let model = self.model.get_mut(name).expect("named by the model");
        model.begin_write(range.clone(), tag);
        volume.write_at(&data, WINDOW_START + range.start as u64 * SECTOR)?;
        model.end_write(range, tag);
        Ok(())
    }

    pub fn flush(&mut self, name: &str) -> Outcome {
        self.log.push(format!("flush {name}"));
        self.store().volume(name)?.flush()?;
        self.model.get_mut(name).expect("named by the model").flush();
        Ok(())
    }

    pub fn discard(&mut self, name: &str) -> Outcome {
        let sectors = self.model[name].sectors();
        let start = self.random.below(sectors as u64 + 1) as usize;
        let range = start..(start + self.random.below(64) as usize).min(sectors);
        let whole = self.random.below(8) == 0;
        let range = if whole { 0..sectors } else { range };
        if !whole {
            return self.discard_sectors(name, range);
        }
        self.log.push(format!("discard all of {name}"));
        let volume = self.store().volume(name)?;
        let model = self.model.get_mut(name).expect("named by the model");
        model.begin_write(range.clone(), 0);
        volume.discard(0, model.size_bytes)?;
        model.end_write(range, 0);
        Ok(())
    }

    pub fn discard_sectors(&mut self, name: &str, range: Range<usize>) -> Outcome {
        self.log.push(format!("discard {name} {range:?}"));
        let volume = self.store().volume(name)?;
        let model = self.model.get_mut(name).expect("named by the model");
        model.begin_write(range.clone(), 0);
        volume.discard(WINDOW_START + range.start as u64 * SECTOR, range.len() as u64 * SECTOR)?;
        model.end_write(range, 0);
        Ok(())
    }

    /// Changes of shape that leave no trace, until a checkpoint is due.
    pub fn grow_journal(&mut self) {
        for _ in 0..40 {
            self.store().rename("v2", "w").unwrap();
            self.store().rename("w", "v2").unwrap();
        }
    }

    /// The model after the head of a volume was sealed: everything in it is durable.
    pub fn sealed(&self, name: &str) -> Model {
        let mut after = self.model.clone();
        after.get_mut(name).expect("named by the model").flush();
        after
    }

    pub fn fork(&mut self, name: &str) -> Outcome {
        let fork = self.new_name();
        let mut after = self.sealed(name);
        let source = &self.model[name];
        let labels = source.labels.clone();
        after.insert(fork.clone(), VolumeModel { labels, ..VolumeModel::new(source.live.clone(), source.size_bytes) });
        self.change(format!("fork {name} {fork}"), after, |store| store.fork(name, &fork).map(drop))
    }

    pub fn snapshot(&mut self, name: &str) -> Outcome {
        let snapshot = self.new_name();
        let mut after = self.sealed(name);
        let volume = after.get_mut(name).expect("named by the model");
        let content = SnapshotModel { sectors: volume.live.clone(), size_bytes: volume.size_bytes, chain: None };
        volume.snapshots.insert(snapshot.clone(), content);
        self.change(format!("snapshot {name} {snapshot}"), after, |store| store.create_snapshot(name, &snapshot))
    }

    fn some_snapshot(&mut self, name: &str) -> Option<String> {
        let count = self.model[name].snapshots.len() as u64;
        (count > 0).then(|| self.random.below(count)).and_then(|at| self.model[name].snapshots.keys().nth(at as usize).cloned())
    }

    pub fn fork_snapshot(&mut self, name: &str) -> Outcome {
        let Some(snapshot) = self.some_snapshot(name) else { return Ok(()) };
        let fork = self.new_name();
        let mut after = self.model.clone();
        let content = self.model[name].snapshots[&snapshot].clone();
        let labels = self.model[name].labels.clone();
        after.insert(fork.clone(), VolumeModel { labels, ..VolumeModel::new(content.sectors, content.size_bytes) });
        let source = format!("{name}@{snapshot}");
        self.change(format!("fork {source} {fork}"), after, |store| store.fork(&source, &fork).map(drop))
    }

    pub fn fork_source(&mut self) -> Outcome {
        let moody = self.moody;
        let fork = self.new_name();
        let mut after = self.model.clone();
        after.insert(fork.clone(), VolumeModel::new(source_tags(), VOLUME_BYTES));
        self.change(format!("fork source {fork}"), after, |store| match moody {
            true => store.fork(&[MOODY.to_owned(), STEADY.to_owned()], &fork).map(drop),
            false => store.fork(STEADY, &fork).map(drop),
        })
    }

    pub fn destroy(&mut self, name: &str) -> Outcome {
        let mut after = self.model.clone();
        after.remove(name);
        self.change(format!("destroy {name}"), after, |store| store.destroy_volume(name, true))
    }

    pub fn destroy_snapshot(&mut self, name: &str) -> Outcome {
        let Some(snapshot) = self.some_snapshot(name) else { return Ok(()) };
        let mut after = self.model.clone();
        after.get_mut(name).expect("named by the model").snapshots.remove(&snapshot);
        self.change(format!("destroy {name}@{snapshot}"), after, |store| store.destroy_snapshot(name, &snapshot))
    }

    pub fn rename(&mut self, name: &str) -> Outcome {
        let new = self.new_name();
        let mut after = self.model.clone();
        let volume = after.remove(name).expect("named by the model");
        after.insert(new.clone(), volume);
        self.change(format!("rename {name} {new}"), after, |store| store.rename(name, &new))
    }

    pub fn resize(&mut self, name: &str) -> Outcome {
        let sectors = self.random.below(WINDOW_SECTORS as u64 + 1);
        self.resize_to(name, sectors as usize)
    }

    /// Gives a volume so many sectors of the window.
    pub fn resize_to(&mut self, name: &str, sectors: usize) -> Outcome {
        let size_bytes = (WINDOW_START + sectors as u64 * SECTOR).max(SECTOR);
        let cut = self.model[name].sectors().min(sectors)..WINDOW_SECTORS;
        let mut after = self.model.clone();
        let volume = after.get_mut(name).expect("named by the model");
        volume.cut(cut);
        volume.size_bytes = size_bytes;
        self.change(format!("resize {name} to {sectors} sectors"), after, |store| store.resize(name, size_bytes, true))
    }

    /// An operation was refused. A change of shape has not happened; a write across extents may have been done in part.
    pub fn take_refused(&mut self) {
        self.alternative = None;
        let names: Vec<String> = self.model.keys().cloned().collect();
        for name in names {
            let found = self.read(&name);
            let story = self.story();
            let volume = self.model.get_mut(&name).expect("named by the model");
            for (sector, tag) in found.into_iter().enumerate() {
                let allowed = tag == volume.live[sector] || volume.pending[sector].last() == Some(&tag);
                assert!(allowed, "volume {name}: sector {sector} holds {tag} after a refusal\n{story}");
                volume.live[sector] = tag;
            }
        }
    }

    pub fn flush_all(&mut self) {
        let names: Vec<String> = self.model.keys().cloned().collect();
        for name in names {
            self.flush(&name).unwrap();
        }
    }

    /// Files of layers.
    pub fn layer_files(&self) -> usize {
        self.disk.files().iter().filter(|path| path.parent() == Some(Path::new("store/layers"))).count()
    }
}
