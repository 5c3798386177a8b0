//! Faults of a disk, and its free space.

use std::io;

use crate::random::Random;

/// Kinds of disk operations that fail in different ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Open,
    Create,
    Read,
    Write,
    Sync,
    SyncNames,
    Allocate,
    Other,
}

/// How often something fails: once in so many operations that can fail so; 0: never.
#[derive(Clone, Default, Debug)]
pub struct Weather {
    /// Transfers that do less than was asked.
    pub short: u64,
    /// EINTR of transfers.
    pub interrupted: u64,
    /// EMFILE, ENFILE or ENOMEM where a descriptor is made.
    pub descriptors: u64,
    /// Starts of threads that fail.
    pub threads: u32,
    /// ENOSPC although there may be room a moment later.
    pub space: u64,
    /// EIO, ENOSPC or EDQUOT of a sync.
    pub syncs: u64,
    /// Reads that find pages that cannot be read from then on, until they are written.
    pub unreadable: u64,
    /// Requests to servers elsewhere that go wrong.
    pub servers: u64,
    /// Writes and syncs that take a while.
    pub slow: (u64, u64),
}

impl Weather {
    /// The number of the error with which an operation fails.
    pub fn strike(&self, act: Act, random: &mut Random) -> Option<i32> {
        let mut one_in = |many: u64| many > 0 && random.below(many) == 0;
        match act {
            Act::Read | Act::Write if one_in(self.interrupted) => Some(libc::EINTR),
            Act::Open | Act::Create | Act::SyncNames if one_in(self.descriptors) => {
                Some([libc::EMFILE, libc::ENFILE, libc::ENOMEM][random.below(3) as usize])
            }
            Act::Sync | Act::SyncNames if one_in(self.syncs) => Some([libc::EIO, libc::ENOSPC, libc::EDQUOT][random.below(3) as usize]),
            _ => None,
        }
    }

    pub fn is_short(&self, random: &mut Random) -> bool {
        self.short > 0 && random.below(self.short) == 0
    }

    /// Whether what is read goes bad just now.
    pub fn spoils(&self, random: &mut Random) -> bool {
        self.unreadable > 0 && random.below(self.unreadable) == 0
    }

    /// Whether there is no room for a new page just now.
    pub fn is_full(&self, random: &mut Random) -> bool {
        self.space > 0 && random.below(self.space) == 0
    }
}

/// Room, as a file system has it: metadata costs some, and what is freed comes back late.
#[derive(Clone, Default, Debug)]
pub struct Space {
    pub capacity_pages: Option<u64>,
    metadata_pages: u64,
    /// Freed pages, and the operation after which they can be taken again.
    late: Vec<(u64, u64)>,
}

impl Space {
    /// Takes room for new pages.
    pub fn take(&mut self, new: u64, used: u64, operations: u64, random: &mut Random) -> io::Result<()> {
        let Some(capacity) = self.capacity_pages else { return Ok(()) };
        self.late.retain(|(_, at)| *at > operations);
        let late: u64 = self.late.iter().map(|(pages, _)| pages).sum();
        let metadata = u64::from(new > 0 && random.below(32) == 0);
        if new > 0 && used + late + self.metadata_pages + new + metadata > capacity {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.metadata_pages += metadata;
        Ok(())
    }

    pub fn give_back(&mut self, pages: u64, operations: u64, random: &mut Random) {
        if self.capacity_pages.is_some() && pages > 0 {
            self.late.push((pages, operations + random.below(50)));
        }
    }
}
