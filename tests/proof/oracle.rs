//! What a store may hold: every volume, snapshot and change of shape, with the time at which each was asked for and acknowledged.
//!
//! The threads of a history tell it before and after each call. A clone is what was known at that moment, to be compared with a
//! store that is opened after a loss of power.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use crate::sector::{Sector, Tag, Time};

pub type VolumeKey = u64;
pub type SnapshotKey = u64;

/// Lines of the log that are kept, in a search and of one history.
const LOG_LINES: (usize, usize) = (80, 2000);

/// The sectors of the window, and the size in sectors of the window.
#[derive(Clone, Debug)]
pub struct Content {
    pub sectors: Vec<Sector>,
    pub size: Sector,
}

#[derive(Clone, Debug)]
pub struct VolumeModel {
    pub name: String,
    /// Its next name, while that is not acknowledged.
    pub renaming: Option<String>,
    /// The size that a resize asked for, while that is not acknowledged.
    pub resizing: Option<u64>,
    /// Its destruction was asked for.
    pub dying: bool,
    /// Changes of shape under way that need it to stay.
    pub claims: u32,
    pub content: Content,
}

#[derive(Clone, Debug)]
pub struct SnapshotModel {
    pub volume: VolumeKey,
    pub name: String,
    pub dying: bool,
    /// Its destruction was acknowledged.
    pub gone: bool,
    pub content: Content,
}

/// What something new has in the beginning.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Zeros; the size in sectors of the window.
    Blank(u64),
    Volume(VolumeKey),
    Snapshot(SnapshotKey),
    /// A server elsewhere, by its number.
    Server(Tag),
}

/// A volume or snapshot that was asked for.
#[derive(Clone, Debug)]
pub struct Birth {
    pub name: String,
    /// The volume whose snapshot it is.
    pub snapshot_of: Option<VolumeKey>,
    pub origin: Origin,
    pub asked: Time,
}

#[derive(Clone)]
pub struct Oracle {
    pub time: Time,
    next_tag: Tag,
    next_name: u64,
    /// Servers elsewhere that forks were made of.
    pub servers: Vec<Tag>,
    pub volumes: BTreeMap<VolumeKey, Arc<VolumeModel>>,
    pub snapshots: BTreeMap<SnapshotKey, Arc<SnapshotModel>>,
    pub births: BTreeMap<Time, Birth>,
    /// When calls that are under way began.
    active: BTreeSet<Time>,
    log: VecDeque<String>,
    log_lines: usize,
    /// Sectors of the window.
    pub window: usize,
}

impl VolumeModel {
    /// No change of shape that excludes others is under way.
    pub fn is_free(&self) -> bool {
        self.claims == 0 && !self.dying && self.renaming.is_none() && self.resizing.is_none()
    }
}

impl Content {
    fn fixed(tags: impl IntoIterator<Item = BTreeSet<Tag>>, size: BTreeSet<Tag>) -> Self {
        Self { sectors: tags.into_iter().map(Sector::of).collect(), size: Sector::of(size) }
    }

    /// As somebody sees it who asked at this time.
    pub fn visible(&self, asked: Time) -> Self {
        Self::fixed(self.sectors.iter().map(|sector| sector.visible(asked)), self.size.visible(asked))
    }

    /// What a loss of power leaves of it.
    pub fn survivors(&self) -> Self {
        Self::fixed(self.sectors.iter().map(Sector::survivors), self.size.survivors())
    }

    /// Its size is known to be this: behind it there are zeros.
    pub fn settle_size(&mut self, sectors: u64) {
        self.size = Sector::of([sectors]);
        for sector in self.sectors.iter_mut().skip(sectors as usize) {
            *sector = Sector::of([0]);
        }
    }

    /// These tags were seen from `first` on, by somebody who asked at this time.
    pub fn see(&mut self, first: usize, tags: &[Tag], asked: Time) -> Result<(), String> {
        for (number, tag) in (first..).zip(tags) {
            let sector = &mut self.sectors[number];
            if !sector.see(*tag, asked) {
                return Err(format!("sector {number} holds {tag}, asked at {asked}; its writes: {}", sector.describe()));
            }
        }
        Ok(())
    }
}

impl Oracle {
    pub fn new(window: usize) -> Self {
        Self {
            time: 1,
            next_tag: 1,
            next_name: 1,
            servers: Vec::new(),
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            births: BTreeMap::new(),
            active: BTreeSet::new(),
            log: VecDeque::new(),
            log_lines: if crate::variable("SEED").is_some() { LOG_LINES.1 } else { LOG_LINES.0 },
            window,
        }
    }

    pub fn note(&mut self, line: String) {
        if self.log.len() == self.log_lines {
            self.log.pop_front();
        }
        crate::threads::note(|| line.clone());
        self.log.push_back(format!("{:>5} {line}", self.time));
    }

    pub fn story(&self) -> String {
        self.log.iter().cloned().collect::<Vec<_>>().join("\n")
    }

    /// The threads that made calls are gone.
    pub fn forget_calls(&mut self) {
        self.active.clear();
    }

    fn tick(&mut self) -> Time {
        self.time += 1;
        self.time
    }

    /// Something begins.
    pub fn begin(&mut self) -> Time {
        let now = self.tick();
        self.active.insert(now);
        now
    }

    /// It has ended.
    pub fn end(&mut self, asked: Time) -> Time {
        self.active.remove(&asked);
        self.tick()
    }

    pub fn new_tag(&mut self) -> Tag {
        self.next_tag += 1;
        self.next_tag
    }

    pub fn new_server(&mut self) -> Tag {
        let server = self.new_tag();
        self.servers.push(server);
        server
    }

    pub fn new_name(&mut self, letter: char) -> String {
        self.next_name += 1;
        format!("{letter}{}", self.next_name)
    }

    pub fn volume(&mut self, key: VolumeKey) -> Option<&mut VolumeModel> {
        self.volumes.get_mut(&key).map(Arc::make_mut)
    }

    /// A write of sectors begins.
    pub fn begin_write(&mut self, key: VolumeKey, sectors: Range<usize>, tag: Tag) -> Time {
        let now = self.begin();
        if let Some(volume) = self.volume(key) {
            volume.content.sectors[sectors].iter_mut().for_each(|sector| sector.begin(tag, now));
        }
        now
    }

    pub fn end_write(&mut self, key: VolumeKey, sectors: Range<usize>, asked: Time, done: bool, durable: bool) {
        let now = self.end(asked);
        if let Some(volume) = self.volume(key) {
            volume.content.sectors[sectors].iter_mut().for_each(|sector| sector.end(asked, now, done, done && durable));
        }
        if done && durable {
            self.flushed(key, asked);
        }
    }

    /// Everything that had ended when a flush was asked for is durable.
    pub fn flushed(&mut self, key: VolumeKey, asked: Time) {
        let horizon = self.active.first().copied().unwrap_or(self.time);
        if let Some(volume) = self.volume(key) {
            for sector in &mut volume.content.sectors {
                sector.flush(asked);
                sector.prune(horizon);
            }
            volume.content.size.prune(horizon);
        }
    }

    /// The store was closed in order.
    pub fn everything_is_durable(&mut self) {
        let keys: Vec<VolumeKey> = self.volumes.keys().copied().collect();
        keys.into_iter().for_each(|key| self.flushed(key, crate::sector::NEVER));
    }

    /// What something that is made of this has, if it is asked for at this time.
    pub fn content_of(&self, origin: &Origin, asked: Time) -> Option<Content> {
        match origin {
            Origin::Blank(size) => Some(Content::fixed(vec![BTreeSet::from([0]); self.window], BTreeSet::from([*size]))),
            Origin::Volume(key) => Some(self.volumes.get(key)?.content.visible(asked)),
            Origin::Snapshot(key) => Some(self.snapshots.get(key)?.content.clone()),
            Origin::Server(number) => {
                let tags = (0..self.window).map(|sector| BTreeSet::from([crate::source::tag_of(*number, sector)]));
                Some(Content::fixed(tags, BTreeSet::from([self.window as u64])))
            }
        }
    }

    fn claim(&mut self, birth: &Birth, by: i32) {
        let source = match birth.origin {
            Origin::Volume(key) => Some(key),
            Origin::Snapshot(key) => self.snapshots.get(&key).map(|snapshot| snapshot.volume),
            _ => None,
        };
        for key in source.into_iter().chain(birth.snapshot_of) {
            if let Some(volume) = self.volume(key) {
                volume.claims = volume.claims.saturating_add_signed(by);
            }
        }
    }

    /// A volume or snapshot is asked for.
    pub fn begin_birth(&mut self, name: String, snapshot_of: Option<VolumeKey>, origin: Origin) -> Time {
        let asked = self.begin();
        let birth = Birth { name, snapshot_of, origin, asked };
        self.claim(&birth, 1);
        self.births.insert(asked, birth);
        asked
    }

    /// It is there, with a size. Answers its key.
    pub fn end_birth(&mut self, asked: Time, size: Option<u64>) -> u64 {
        let birth = self.births.remove(&asked).expect("it was asked for");
        self.end(asked);
        self.claim(&birth, -1);
        let mut content = self.content_of(&birth.origin, asked).expect("its origin is claimed");
        if let Some(size) = size {
            content.settle_size(size);
        }
        if let Origin::Volume(key) = birth.origin {
            self.flushed(key, asked);
        }
        self.add(birth, content)
    }

    /// Adds what a birth made, with the present time as its key.
    pub fn add(&mut self, birth: Birth, content: Content) -> u64 {
        let key = self.tick();
        match birth.snapshot_of {
            None => {
                let volume = VolumeModel { name: birth.name, renaming: None, resizing: None, dying: false, claims: 0, content };
                self.volumes.insert(key, Arc::new(volume));
            }
            Some(volume) => {
                let snapshot = SnapshotModel { volume, name: birth.name, dying: false, gone: false, content };
                self.snapshots.insert(key, Arc::new(snapshot));
            }
        }
        key
    }

    /// A new size is asked for. Nobody else resizes the volume meanwhile.
    pub fn begin_resize(&mut self, key: VolumeKey, size: u64) -> Time {
        let asked = self.begin();
        if let Some(volume) = self.volume(key) {
            volume.resizing = Some(size);
            volume.content.size.begin(size, asked);
            volume.content.sectors.iter_mut().skip(size as usize).for_each(|sector| sector.begin(0, asked));
        }
        asked
    }

    /// `perhaps`: it was refused, and may have happened after a loss of power.
    pub fn end_resize(&mut self, key: VolumeKey, asked: Time, done: bool, perhaps: bool) {
        let now = self.end(asked);
        let Some(volume) = self.volume(key) else { return };
        let size = volume.resizing.unwrap_or(0);
        volume.resizing = volume.resizing.filter(|_| perhaps);
        volume.content.size.end(asked, now, done, done);
        for sector in volume.content.sectors.iter_mut().skip(size as usize) {
            sector.end(asked, now, done, done);
            if done {
                sector.cut(asked);
            }
        }
    }

    /// A volume's destruction, with all of its snapshots, is asked for. Answers false if something still needs the volume.
    pub fn begin_destroy(&mut self, key: VolumeKey) -> bool {
        let snapshots: Vec<SnapshotKey> =
            self.snapshots.iter().filter(|(_, snapshot)| snapshot.volume == key).map(|(key, _)| *key).collect();
        let Some(volume) = self.volume(key).filter(|volume| volume.is_free()) else { return false };
        volume.dying = true;
        volume.claims += 1;
        for snapshot in snapshots {
            self.snapshot(snapshot).dying = true;
        }
        true
    }

    pub fn end_destroy(&mut self, key: VolumeKey, done: bool, perhaps: bool) {
        self.tick();
        let snapshots: Vec<SnapshotKey> =
            self.snapshots.iter().filter(|(_, snapshot)| snapshot.volume == key).map(|(key, _)| *key).collect();
        for snapshot in snapshots {
            let snapshot = self.snapshot(snapshot);
            snapshot.gone |= done;
            snapshot.dying &= done || perhaps;
        }
        if done {
            self.volumes.remove(&key);
        } else if let Some(volume) = self.volume(key) {
            volume.claims -= 1;
            volume.dying = perhaps;
        }
    }

    pub fn snapshot(&mut self, key: SnapshotKey) -> &mut SnapshotModel {
        Arc::make_mut(self.snapshots.get_mut(&key).expect("snapshots are never forgotten"))
    }

    /// It was refused; `perhaps`: it may be there after a loss of power.
    pub fn refuse_birth(&mut self, asked: Time, perhaps: bool) {
        self.end(asked);
        if let Some(birth) = self.births.get(&asked).cloned() {
            self.claim(&birth, -1);
            if !perhaps {
                self.births.remove(&asked);
            }
        }
    }
}
