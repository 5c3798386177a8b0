//! Threads that change the shape of a store: create, fork, snapshot, resize, rename, destroy.

use volfork::{Error, ErrorKind};

use crate::oracle::{Origin, VolumeKey};
use crate::random::Random;
use crate::world::{SHORTAGES, World, says};

/// Volumes beyond which none is made.
const VOLUMES_MAX: usize = 6;
/// The same for snapshots.
const SNAPSHOTS_MAX: usize = 10;

pub struct Shaper<'a> {
    pub world: &'a World,
    pub random: Random,
}

/// After a failed write to the disk nobody knows what the next opening finds; nor before a change that was made is durable. Where only
/// descriptors or memory are missing, nothing has changed.
pub fn perhaps(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Poisoned | ErrorKind::NotDurable) || (error.kind() == ErrorKind::Io && !says(error, &SHORTAGES))
}

fn is_undurable(outcome: &Result<(), Error>) -> bool {
    outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotDurable)
}

impl Shaper<'_> {
    /// One call.
    pub fn act(&mut self) {
        let volumes = self.world.volumes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).len();
        let snapshots = self.world.snapshots.lock().unwrap_or_else(std::sync::PoisonError::into_inner).len();
        if self.world.plan.seals && self.random.below(4) > 0 {
            return if snapshots < SNAPSHOTS_MAX { self.snapshot() } else { self.destroy_snapshot() };
        }
        if self.world.plan.grows && self.random.below(4) > 0 {
            return self.resize();
        }
        let what = if self.world.plan.destroys && self.random.below(3) == 0 { 70 } else { 0 };
        match what + self.random.below(100 - what) {
            0..=9 if volumes < VOLUMES_MAX && self.world.plan.elsewhere => self.fork_elsewhere(),
            0..=4 if volumes < VOLUMES_MAX => {
                let size = 1 + self.random.below(self.world.plan.window as u64);
                self.world.create(size);
            }
            5..=24 if volumes < VOLUMES_MAX => self.fork(),
            25..=34 if volumes < VOLUMES_MAX => self.fork_snapshot(),
            35..=54 if snapshots < SNAPSHOTS_MAX => self.snapshot(),
            55..=66 => self.resize(),
            67..=69 => self.rename(),
            70..=77 if volumes > 1 => self.destroy(),
            78..=85 => self.destroy_snapshot(),
            _ => {
                if let Some((key, open)) = self.world.some_snapshot(&mut self.random) {
                    self.world.look_at_snapshot(key, &open);
                }
            }
        }
    }

    /// A volume that stays until `end_birth`, with its name.
    fn source(&mut self) -> Option<(VolumeKey, String)> {
        let (key, _) = self.world.some_volume(&mut self.random)?;
        let oracle = self.world.oracle();
        // One whose size changes at this moment, if there is one.
        let resizing = oracle.volumes.iter().find(|(_, model)| model.resizing.is_some()).map(|(key, _)| *key);
        let key = resizing.filter(|_| self.random.below(2) == 0).unwrap_or(key);
        let model = oracle.volumes.get(&key)?;
        (!model.dying && model.renaming.is_none()).then(|| (key, model.name.clone()))
    }

    fn fork(&mut self) {
        let Some((key, source)) = self.source() else { return };
        let (name, asked) = {
            let mut oracle = self.world.oracle();
            if oracle.volumes.get(&key).is_none_or(|model| model.dying || model.renaming.is_some()) {
                return;
            }
            let name = oracle.new_name('f');
            let asked = oracle.begin_birth(name.clone(), None, Origin::Volume(key));
            oracle.note(format!("fork {source} ({key}) {name}"));
            (name, asked)
        };
        let made = self.world.store.fork(&source, &name);
        self.forked(&format!("fork {name} of {source}"), asked, made);
    }

    fn forked(&mut self, what: &str, asked: u64, made: Result<volfork::Volume, Error>) {
        let size = made.as_ref().map_or(0, |open| self.world.plan.sectors(open.size_bytes()));
        if let (Ok(open), true) = (&made, self.world.plan.dust > 0 && self.random.below(3) == 0) {
            self.strew(open);
        }
        self.world.born(what, asked, made, |volume, key| {
            if let Some(model) = self.world.oracle().volume(key) {
                model.content.settle_size(size);
            }
            self.world.volumes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(key, volume);
        });
    }

    /// A fork of a server elsewhere: a new one, or one of which there are forks already.
    fn fork_elsewhere(&mut self) {
        let (server, name, asked) = {
            let mut oracle = self.world.oracle();
            let known = oracle.servers.get(self.random.below(4) as usize).copied();
            let server = known.unwrap_or_else(|| oracle.new_server());
            let name = oracle.new_name('e');
            let asked = oracle.begin_birth(name.clone(), None, Origin::Server(server));
            oracle.note(format!("fork server {server} {name}"));
            (server, name, asked)
        };
        let made = self.world.store.fork(&crate::source::uri(server), &name);
        self.forked(&format!("fork {name} of server {server}"), asked, made);
    }

    /// Zeroes many small runs of blocks that nobody writes.
    fn strew(&self, volume: &volfork::Volume) {
        let block = u64::from(self.world.plan.block_bytes);
        for run in 0..self.world.plan.dust {
            if let Err(error) = volume.discard(run * 5 * block, 3 * block) {
                return self.world.excuse("discard", &error, &[]);
            }
        }
    }

    fn fork_snapshot(&mut self) {
        let Some((snapshot, _)) = self.world.some_snapshot(&mut self.random) else { return };
        let (source, name, asked) = {
            let mut oracle = self.world.oracle();
            let model = &oracle.snapshots[&snapshot];
            let Some(volume) = oracle.volumes.get(&model.volume) else { return };
            if model.gone || model.dying || volume.dying || volume.renaming.is_some() {
                return;
            }
            let source = format!("{}@{}", volume.name, model.name);
            let name = oracle.new_name('g');
            let asked = oracle.begin_birth(name.clone(), None, Origin::Snapshot(snapshot));
            oracle.note(format!("fork {source} ({snapshot}) {name}"));
            (source, name, asked)
        };
        let made = self.world.store.fork(&source, &name);
        self.forked(&format!("fork {name} of {source}"), asked, made);
    }

    fn snapshot(&mut self) {
        let Some((key, volume)) = self.source() else { return };
        let (name, asked) = {
            let mut oracle = self.world.oracle();
            if oracle.volumes.get(&key).is_none_or(|model| model.dying || model.renaming.is_some()) {
                return;
            }
            let name = oracle.new_name('s');
            let asked = oracle.begin_birth(name.clone(), Some(key), Origin::Volume(key));
            oracle.note(format!("snapshot {volume}@{name} ({key})"));
            (name, asked)
        };
        let made = self.world.store.create_snapshot(&volume, &name).and_then(|()| self.world.store.snapshot(&volume, &name));
        let look = self.random.below(4) > 0;
        self.world.born(&format!("snapshot {volume}@{name}"), asked, made, |open, key| {
            self.world.snapshots.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(key, open.clone());
            if look {
                self.world.look_at_snapshot(key, &open);
            }
        });
    }

    fn resize(&mut self) {
        let Some((key, _)) = self.source() else { return };
        let mut size = 1 + self.random.below(self.world.plan.window as u64);
        if self.random.below(3) == 0 || (self.world.plan.grows && self.random.below(8) > 0) {
            // Another end within the last block, or a block behind it.
            let now = self.world.oracle().volumes.get(&key).and_then(|model| model.content.size.survivors().last().copied());
            size = (now.unwrap_or(size) + 1 + self.random.below(8)).min(self.world.plan.window as u64);
        }
        let (name, asked) = {
            let mut oracle = self.world.oracle();
            let Some(model) = oracle.volume(key).filter(|model| model.renaming.is_none() && model.resizing.is_none() && !model.dying)
            else {
                return;
            };
            model.claims += 1;
            let name = model.name.clone();
            let asked = oracle.begin_resize(key, size);
            oracle.note(format!("resize {name} ({key}) to {size}"));
            (name, asked)
        };
        let outcome = self.world.store.resize(&name, self.world.plan.size_bytes(size), true);
        let mut oracle = self.world.oracle();
        oracle.end_resize(key, asked, outcome.is_ok(), outcome.as_ref().is_err_and(perhaps));
        if let Some(model) = oracle.volume(key) {
            model.claims -= 1;
        }
        oracle.note(format!("resize {name} ends: {outcome:?}"));
        drop(oracle);
        if let Err(error) = outcome {
            self.world.excuse("resize", &error, &[]);
        }
    }

    fn rename(&mut self) {
        let Some((key, _)) = self.source() else { return };
        let (name, new) = {
            let mut oracle = self.world.oracle();
            let new = oracle.new_name('r');
            let Some(model) = oracle.volume(key).filter(|model| model.is_free()) else { return };
            model.renaming = Some(new.clone());
            let name = model.name.clone();
            oracle.note(format!("rename {name} ({key}) {new}"));
            (name, new)
        };
        let outcome = self.world.store.rename(&name, &new);
        let mut oracle = self.world.oracle();
        oracle.note(format!("rename {name} ends: {outcome:?}"));
        if is_undurable(&outcome) {
            drop(oracle);
            let shown = [&name, &new].map(|name| self.world.store.volume(name).is_ok());
            assert_eq!(shown, [false, true], "rename {name} {new} was made: {outcome:?}");
            oracle = self.world.oracle();
        }
        if let Some(model) = oracle.volume(key) {
            match &outcome {
                Ok(()) => (model.name, model.renaming) = (new, None),
                Err(error) if perhaps(error) => {}
                Err(_) => model.renaming = None,
            }
        }
        drop(oracle);
        if let Err(error) = outcome {
            self.world.excuse("rename", &error, &[]);
        }
    }

    fn destroy(&mut self) {
        let Some((key, _)) = self.source() else { return };
        let name = {
            let mut oracle = self.world.oracle();
            if !oracle.begin_destroy(key) {
                return;
            }
            let name = oracle.volumes[&key].name.clone();
            oracle.note(format!("destroy {name} ({key})"));
            name
        };
        // A snapshot that somebody reads is not destroyed.
        if self.random.below(4) > 0 {
            self.world.close_snapshots(|model| model.volume == key);
        }
        let outcome = self.world.store.destroy_volume(&name, true);
        if is_undurable(&outcome) {
            let shown = self.world.store.volume(&name).map(drop);
            assert!(shown.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound), "destroy {name} was made: {shown:?}");
        }
        let mut oracle = self.world.oracle();
        oracle.end_destroy(key, outcome.is_ok(), outcome.as_ref().is_err_and(perhaps));
        oracle.note(format!("destroy {name} ends: {outcome:?}"));
        drop(oracle);
        match outcome {
            Ok(()) => self.world.close_volume(key),
            Err(error) => self.world.excuse("destroy", &error, &[ErrorKind::Busy]),
        }
    }

    fn destroy_snapshot(&mut self) {
        let Some((key, _)) = self.world.some_snapshot(&mut self.random) else { return };
        let (volume, owner, name) = {
            let mut oracle = self.world.oracle();
            let model = &oracle.snapshots[&key];
            let (owner, name) = (model.volume, model.name.clone());
            let free = !model.dying && !model.gone && oracle.volumes.get(&owner).is_some_and(|volume| volume.is_free());
            if !free {
                return;
            }
            oracle.snapshot(key).dying = true;
            let model = oracle.volume(owner).expect("it was there a moment ago");
            model.claims += 1;
            let volume = model.name.clone();
            oracle.note(format!("destroy {volume}@{name} ({key})"));
            (volume, owner, name)
        };
        if self.random.below(4) > 0 {
            self.world.close_snapshot(key);
        }
        let outcome = self.world.store.destroy_snapshot(&volume, &name);
        let mut oracle = self.world.oracle();
        let snapshot = oracle.snapshot(key);
        snapshot.gone |= outcome.is_ok();
        snapshot.dying = outcome.as_ref().map_or_else(perhaps, |()| true);
        if let Some(model) = oracle.volume(owner) {
            model.claims -= 1;
        }
        oracle.note(format!("destroy {volume}@{name} ends: {outcome:?}"));
        drop(oracle);
        // The handle of a destroyed snapshot stays open for a while.
        let forget = self.random.below(3) == 0;
        match outcome {
            Ok(()) if forget => self.world.close_snapshot(key),
            Ok(()) => {}
            Err(error) => self.world.excuse("destroy snapshot", &error, &[ErrorKind::Busy]),
        }
    }
}
