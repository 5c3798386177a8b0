//! One store that many threads use, and the state that they share.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use volfork::{Error, ErrorKind, Snapshot, Store, Volume};

use crate::disk::{Medium, SimDisk, Watch};
use crate::image::SECTOR;
use crate::oracle::{Content, Oracle, Origin, SnapshotKey, SnapshotModel, VolumeKey};
use crate::plan::Plan;
use crate::random::Random;
use crate::shaper::perhaps;
use crate::survey::read_tags;
use crate::verify::{Case, ROOT};

/// States of the disk that are set aside in one life of a store.
const CASES_MAX: usize = 48;

/// Looks at a store that nobody uses until it must be at rest.
const RESTS_MAX: usize = 200;

pub struct World {
    pub plan: Plan,
    pub store: Store,
    pub disk: SimDisk,
    oracle: Arc<Mutex<Oracle>>,
    cases: Arc<Mutex<Cases>>,
    /// Handles that stay open.
    pub volumes: Mutex<BTreeMap<VolumeKey, Volume>>,
    pub snapshots: Mutex<BTreeMap<SnapshotKey, Snapshot>>,
    /// Number of writes to the contended blocks.
    hot_writes: AtomicU64,
}

struct Cases {
    random: Random,
    left: u64,
    kept: Vec<Case>,
}

/// Sets the disk and the oracle aside at some operations. The oracle is locked first: nothing begins or ends meanwhile.
fn watch(oracle: Arc<Mutex<Oracle>>, cases: Arc<Mutex<Cases>>, apart: u64) -> Watch {
    Arc::new(move |disk| {
        let mut cases = cases.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        cases.left = cases.left.saturating_sub(1);
        if cases.left > 0 || cases.kept.len() == CASES_MAX {
            return;
        }
        cases.left = 1 + cases.random.below(2 * apart);
        let oracle = oracle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let medium = disk.medium().clone();
        cases.kept.push(Case { medium, oracle: oracle.clone() });
    })
}

/// What a lock protects, although a thread has failed with it: the first failure is the one to report.
fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl World {
    /// Opens the store of a disk, or makes it.
    pub fn open(plan: &Plan, medium: Medium, oracle: Oracle, random: &mut Random) -> Arc<Self> {
        let disk = SimDisk::new(medium);
        disk.medium().spares_the_log = plan.carries;
        let is_new = disk.files().is_empty();
        let oracle = Arc::new(Mutex::new(oracle));
        let kept = Cases { random: Random::new(random.below(u64::MAX)), left: u64::MAX, kept: Vec::new() };
        let cases = Arc::new(Mutex::new(kept));
        let disk = disk.watched(watch(Arc::clone(&oracle), Arc::clone(&cases), plan.apart));
        let options = plan.options(&disk, plan.threads);
        let opened = if is_new { Store::create(Path::new(ROOT), options) } else { Store::open(Path::new(ROOT), options) };
        let store = opened.unwrap_or_else(|error| panic!("opening: {error}\n{}", held(&oracle).story()));
        let (volumes, snapshots, hot_writes) = (Mutex::default(), Mutex::default(), AtomicU64::new(0));
        let world = Self { plan: plan.clone(), store, disk, oracle, cases, volumes, snapshots, hot_writes };
        world.open_handles();
        {
            let mut medium = world.disk.medium();
            medium.weather = plan.weather.clone();
            medium.space.capacity_pages = plan.capacity_pages;
        }
        held(&world.cases).left = 1 + random.below(2 * plan.apart);
        Arc::new(world)
    }

    fn open_handles(&self) {
        let oracle = self.oracle();
        let names: Vec<_> = oracle.volumes.iter().map(|(key, model)| (*key, model.name.clone())).collect();
        let snapshots: Vec<_> = oracle.snapshots.iter().map(|(key, model)| (*key, model.volume, model.name.clone())).collect();
        drop(oracle);
        let by_key: BTreeMap<_, _> = names.iter().cloned().collect();
        for (key, name) in names {
            let open = self.store.volume(&name).unwrap_or_else(|error| self.fail(&format!("volume {name}: {error}")));
            held(&self.volumes).insert(key, open);
        }
        for (key, volume, name) in snapshots {
            let open = self.store.snapshot(&by_key[&volume], &name).unwrap_or_else(|error| self.fail(&format!("snapshot {name}: {error}")));
            held(&self.snapshots).insert(key, open);
        }
    }

    pub fn oracle(&self) -> MutexGuard<'_, Oracle> {
        held(&self.oracle)
    }

    /// Something was promised: perhaps the next operation of the disk comes too late for it.
    pub fn look_soon(&self) {
        let mut cases = held(&self.cases);
        if cases.random.below(6) == 0 {
            cases.left = cases.left.min(1);
        }
    }

    /// Ends the run.
    pub fn fail(&self, what: &str) -> ! {
        let story = self.oracle().story();
        panic!("{what}\n{story}")
    }

    /// A call has failed: with an error that may come, in this weather and with what others do meanwhile?
    pub fn excuse(&self, what: &str, error: &Error, excused: &[ErrorKind]) {
        let (harmed, weather, full) = {
            let medium = self.disk.medium();
            (medium.harmed, medium.weather.clone(), medium.space.capacity_pages.is_some())
        };
        let known = match error.kind() {
            kind if excused.contains(&kind) => true,
            ErrorKind::NoSpace => full || weather.space > 0 || harmed,
            ErrorKind::NotDurable => full || weather.space > 0 || weather.descriptors > 0,
            ErrorKind::Poisoned => harmed,
            ErrorKind::SourceLost => self.plan.weather.servers > 0 || self.plan.weather.threads > 0,
            ErrorKind::Io => {
                harmed
                    || (weather.descriptors > 0 || weather.threads > 0) && says(error, &SHORTAGES)
                    || weather.unreadable > 0 && says(error, &[libc::EIO])
            }
            _ => false,
        };
        if !known {
            self.fail(&format!("{what}: {error} ({:?})", error.kind()));
        }
    }

    /// Where the few blocks begin that all writers want at this time: at first around the border of the extents.
    pub fn hot_sector(&self) -> usize {
        let moves = self.hot_writes.fetch_add(1, Ordering::Relaxed) / self.plan.moves_after;
        let step = 2 * self.plan.block_bytes as usize / SECTOR;
        (self.plan.window / 2 - step / 2 + moves as usize * step) % self.plan.window
    }

    pub fn some_volume(&self, random: &mut Random) -> Option<(VolumeKey, Volume)> {
        let volumes = held(&self.volumes);
        let at = random.below(volumes.len().max(1) as u64) as usize;
        volumes.iter().nth(at).map(|(key, volume)| (*key, volume.clone()))
    }

    pub fn some_snapshot(&self, random: &mut Random) -> Option<(SnapshotKey, Snapshot)> {
        let snapshots = held(&self.snapshots);
        let at = random.below(snapshots.len().max(1) as u64) as usize;
        snapshots.iter().nth(at).map(|(key, snapshot)| (*key, snapshot.clone()))
    }

    /// Closes a handle. That passes points, so no lock of the world may be held then.
    pub fn close_volume(&self, key: VolumeKey) {
        let closed = held(&self.volumes).remove(&key);
        drop(closed);
    }

    /// As [`World::close_volume`].
    pub fn close_snapshot(&self, key: SnapshotKey) {
        let closed = held(&self.snapshots).remove(&key);
        drop(closed);
    }

    pub fn close_snapshots(&self, which: impl Fn(&SnapshotModel) -> bool) {
        let keys: Vec<SnapshotKey> = {
            let oracle = self.oracle();
            held(&self.snapshots).keys().copied().filter(|key| which(&oracle.snapshots[key])).collect()
        };
        keys.into_iter().for_each(|key| self.close_snapshot(key));
    }

    /// Makes a volume, and opens it.
    pub fn create(&self, size: u64) {
        let (name, asked) = {
            let mut oracle = self.oracle();
            let name = oracle.new_name('v');
            let asked = oracle.begin_birth(name.clone(), None, Origin::Blank(size));
            oracle.note(format!("create {name} of {size}"));
            (name, asked)
        };
        let made = self.store.create_volume(&name, self.plan.size_bytes(size));
        self.born(&format!("create {name}"), asked, made, |volume, key| {
            held(&self.volumes).insert(key, volume);
        });
    }

    /// A birth has ended.
    pub fn born<T: Sized>(&self, what: &str, asked: u64, made: Result<T, Error>, keep: impl FnOnce(T, u64)) {
        match made {
            Ok(open) => {
                let key = self.oracle().end_birth(asked, None);
                self.oracle().note(format!("{what} ends: {key}"));
                keep(open, key);
            }
            Err(error) => {
                if error.kind() == ErrorKind::NotDurable {
                    self.assert_shown(what, asked);
                }
                // A volume that could not be made durable may exist all the same.
                self.oracle().refuse_birth(asked, perhaps(&error) || error.kind() == ErrorKind::Io);
                self.oracle().note(format!("{what} fails: {error}"));
                self.excuse(what, &error, &[]);
            }
        }
    }

    /// What was made is shown, whether it is durable or not.
    fn assert_shown(&self, what: &str, asked: u64) {
        let (name, snapshot_of) = {
            let oracle = self.oracle();
            let birth = &oracle.births[&asked];
            let volume = birth.snapshot_of.and_then(|key| oracle.volumes.get(&key)).map(|model| model.name.clone());
            (birth.name.clone(), volume)
        };
        let names = match &snapshot_of {
            None => Ok(self.store.volume_names()),
            Some(volume) => self.store.snapshot_names(volume),
        };
        if !names.as_ref().is_ok_and(|names| names.contains(&name)) {
            self.fail(&format!("{what} was made, but is not shown: {names:?}"));
        }
    }

    /// Reads all of a snapshot and compares it.
    pub fn look_at_snapshot(&self, key: SnapshotKey, open: &Snapshot) {
        let sectors = self.plan.sectors(open.size_bytes());
        let asked = self.oracle().begin();
        let mut bytes = vec![0xee; sectors as usize * crate::image::SECTOR];
        let outcome = open.read_at(&mut bytes, self.plan.start());
        self.oracle().end(asked);
        if let Err(error) = outcome {
            let going = self.oracle().snapshots.get(&key).is_none_or(|model| model.dying || model.gone);
            let excused: &[ErrorKind] = if going { &[ErrorKind::NotFound, ErrorKind::Busy] } else { &[] };
            return self.excuse(&format!("reading snapshot {}", open.name()), &error, excused);
        }
        let seen = crate::bytes::tags_of(&bytes, 0).and_then(|tags| {
            let mut oracle = self.oracle();
            let model = oracle.snapshots.get_mut(&key).map(Arc::make_mut);
            model.map_or(Ok(()), |model| see_fixed(&mut model.content, sectors, &tags, asked))
        });
        if let Err(error) = seen {
            self.fail(&format!("snapshot {}: {error}", open.name()));
        }
    }

    /// Nothing is damaged, whatever happens meanwhile.
    pub fn scrub(&self) {
        match self.store.scrub(None) {
            Ok(report) if report.errors.is_empty() && report.blocks_repaired == 0 => {}
            Ok(_) if self.plan.weather.unreadable > 0 => {}
            Ok(report) => self.fail(&format!("scrub beside writers: {:?}, {} repaired", report.errors, report.blocks_repaired)),
            Err(error) => self.excuse("scrub", &error, &[]),
        }
    }

    /// Everything that is open is compared, while nobody else does anything.
    pub fn compare(&self) {
        let volumes: Vec<_> = held(&self.volumes).iter().map(|(key, volume)| (*key, volume.clone())).collect();
        for (key, volume) in volumes {
            // Its destruction failed, and may have happened all the same.
            if self.oracle().volumes.get(&key).is_none_or(|model| model.dying) {
                continue;
            }
            let asked = self.oracle().begin();
            let size = self.plan.sectors(volume.size_bytes());
            let tags = read_tags(&self.plan, size, |buffer, offset| volume.read_at(buffer, offset));
            self.oracle().end(asked);
            let seen = tags.and_then(|tags| {
                let mut oracle = self.oracle();
                oracle.volume(key).map_or(Ok(()), |model| model.content.see(0, &tags, asked))
            });
            if let Err(error) = seen {
                self.fail(&format!("at the end, volume {}: {error}", volume.name()));
            }
        }
        let snapshots: Vec<_> = held(&self.snapshots).iter().map(|(key, snapshot)| (*key, snapshot.clone())).collect();
        for (key, snapshot) in snapshots {
            self.look_at_snapshot(key, &snapshot);
        }
    }

    /// Nobody does anything any more: once all is flushed nothing is held back for it.
    pub fn rest(&self) {
        if self.disk.medium().harmed {
            return;
        }
        let mut left = [0; 3];
        for _ in 0..RESTS_MAX {
            left = self.store.outstanding().unwrap_or_else(|error| self.fail(&format!("flush at the end: {error}")));
            if left == [0; 3] {
                return;
            }
            crate::threads::sleep(std::time::Duration::from_millis(10));
        }
        self.fail(&format!("journal bytes, blocks and patches held back for nobody: {left:?}"));
    }

    /// Closes the store, in order or by a loss of power. Answers what was set aside; the last one is the end.
    pub fn end(self: Arc<Self>, in_order: bool) -> Vec<Case> {
        let world = Arc::into_inner(self).expect("all threads have ended");
        held(&world.volumes).clear();
        held(&world.snapshots).clear();
        let harmed = world.disk.medium().harmed;
        if harmed {
            // What it could not make durable it says when it is closed.
            let _ = world.store.close();
        } else if in_order {
            world.store.close().unwrap_or_else(|error| world.fail(&format!("close: {error}")));
            world.oracle().everything_is_durable();
        }
        let last = Case { medium: world.disk.medium().clone(), oracle: world.oracle().clone() };
        world.disk.power_off();
        let mut kept = std::mem::take(&mut held(&world.cases).kept);
        kept.push(last);
        kept
    }
}

/// Of descriptors, memory and threads.
pub const SHORTAGES: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN];

/// The disk failed with one of these numbers.
pub fn says(error: &Error, numbers: &[i32]) -> bool {
    numbers.iter().any(|number| error.to_string().contains(&std::io::Error::from_raw_os_error(*number).to_string()))
}

fn see_fixed(content: &mut Content, sectors: u64, tags: &[u64], asked: u64) -> Result<(), String> {
    if !content.size.survivors().contains(&sectors) {
        return Err(format!("has {sectors} sectors; sizes: {}", content.size.describe()));
    }
    content.settle_size(sectors);
    content.see(0, tags, asked)
}
