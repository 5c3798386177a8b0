//! One simulated file: what the page cache shows, what the medium has, and the changes between the two.

use std::sync::Arc;

use crate::image::{Change, Image, SECTOR};
use crate::random::Random;

/// What becomes of changes that were not synced when the power goes off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// None is kept.
    All,
    /// All are kept.
    Nothing,
    /// Each is kept, lost, or torn at its sectors.
    Torn,
    /// As `Torn`, and written in any order.
    Reordered,
    /// Each file has one of the above.
    Mixed,
}

impl Loss {
    pub const EVERY: [Self; 5] = [Self::All, Self::Nothing, Self::Torn, Self::Reordered, Self::Mixed];

    pub fn draw(random: &mut Random) -> Self {
        Self::EVERY[random.below(5) as usize]
    }
}

#[derive(Clone, Default)]
pub struct Inode {
    pub live: Image,
    durable: Image,
    unsynced: Vec<Change>,
    /// A sync failed: the page cache shows bytes that will never reach the medium.
    stale: bool,
}

impl Inode {
    pub fn change(&mut self, change: Change) {
        self.live.apply(&change);
        self.unsynced.push(change);
    }

    pub fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            self.durable.apply(&change);
        }
    }

    /// A sync fails as on Linux: what it could not write is clean from now on, and some of it has reached the medium.
    pub fn fail_sync(&mut self, random: &mut Random) {
        let (writes, rest) = std::mem::take(&mut self.unsynced).into_iter().partition(|change| matches!(change, Change::Write { .. }));
        self.unsynced = rest;
        let writes: Vec<Change> = writes;
        for write in &writes {
            self.tear(write, random);
        }
        self.stale |= !writes.is_empty();
    }

    /// Clean pages leave the page cache.
    pub fn drop_cache(&mut self) {
        if std::mem::take(&mut self.stale) {
            let mut live = self.durable.clone();
            self.unsynced.iter().for_each(|change| live.apply(change));
            self.live = live;
        }
    }

    /// Keeps all, nothing or some sectors of a write.
    fn tear(&mut self, change: &Change, random: &mut Random) {
        let Change::Write { offset, data } = change else { return };
        let whole = random.below(3);
        // Sectors of the medium, not of the write, are kept or lost.
        let mut at = 0;
        while at < data.len() {
            let end = (SECTOR - ((*offset as usize + at) % SECTOR) + at).min(data.len());
            if whole == 0 || (whole == 1 && random.below(2) == 0) {
                self.durable.write(&data[at..end], offset + at as u64);
            }
            at = end;
        }
    }

    /// The power goes off, and comes back.
    pub fn lose_power(&mut self, random: &mut Random, loss: Loss) {
        let loss = match loss {
            Loss::Mixed => Loss::EVERY[random.below(4) as usize],
            other => other,
        };
        let mut changes = std::mem::take(&mut self.unsynced);
        if loss == Loss::Reordered && !changes.iter().any(|change| matches!(change, Change::Resize(_))) {
            // The cache writes back in any order; of changes to the same bytes any may be the last one that was written.
            for at in 1..changes.len() {
                changes.swap(at, random.below(at as u64 + 1) as usize);
            }
        }
        for change in changes {
            match (loss, &change) {
                (Loss::All, _) => {}
                (Loss::Nothing, _) => self.durable.apply(&change),
                (_, Change::Write { .. }) => self.tear(&change, random),
                _ if random.below(2) == 0 => self.durable.apply(&change),
                _ => {}
            }
        }
        self.live = self.durable.clone();
        self.stale = false;
    }
}

/// For a file that many states share.
pub fn own(inode: &mut Arc<Inode>) -> &mut Inode {
    Arc::make_mut(inode)
}
