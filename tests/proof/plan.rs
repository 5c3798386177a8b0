//! The parameters of a history, drawn from its seed.

use std::sync::Arc;
use std::time::Duration;

use volfork::io::RingKind;
use volfork::{BlockSize, Clock, Limits, StoreOptions};

use crate::disk::SimDisk;
use crate::image::SECTOR;
use crate::random::Random;
use crate::weather::Weather;

/// Time that passes when it is looked at.
#[derive(Default)]
pub struct SimClock(std::sync::atomic::AtomicU64);

impl Clock for SimClock {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.fetch_add(50, std::sync::atomic::Ordering::SeqCst))
    }

    fn unix(&self) -> Duration {
        Duration::from_secs(1_000_000)
    }
}

/// How often a writer does what, in a hundred calls; the rest are flushes.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    pub writes: u64,
    pub durable_writes: u64,
    pub zeros: u64,
    pub reads: u64,
}

impl Mix {
    /// Discards make blocks new again, and only new ones are named by frames.
    const DISCARDS: Self = Self { writes: 50, durable_writes: 5, zeros: 22, reads: 8 };
    /// Blocks are written again before they are flushed.
    const REWRITES: Self = Self { writes: 80, durable_writes: 2, zeros: 5, reads: 5 };
    /// Long times in which blocks are overwritten in place and no frame is written.
    const IN_PLACE: Self = Self { writes: 60, durable_writes: 2, zeros: 3, reads: 5 };
    const EVERY: [Self; 2] = [Self::DISCARDS, Self::REWRITES];
}

/// Small limits, or those of every store.
fn some_limits(dust: u64, mut below: impl FnMut(u64) -> u64) -> Limits {
    let (frame_payload_bytes_max, reserved_bytes_max, set_record_bytes_max) = match dust {
        0 => (Limits::DEFAULT.frame_payload_bytes_max, Limits::DEFAULT.reserved_bytes_max, Limits::DEFAULT.set_record_bytes_max),
        _ => (8 << 10, 5 << 10, 1300),
    };
    Limits {
        frame_payload_bytes_max,
        reserved_bytes_max,
        set_record_bytes_max,
        fresh_blocks_max: [8, 24, 64 << 10][below(if dust > 0 { 2 } else { 3 }) as usize],
        expect_blocks_max: [2, 16 << 10][below(2) as usize],
        reserve_step_bytes: [64, 4 << 10, 256 << 10][below(3) as usize],
        journal_grow_bytes: [4 << 10, 64 << 10][below(2) as usize],
        journal_reserve_bytes: [32 << 10, 128 << 10][below(2) as usize],
        state_frame_bytes: [256, 4 << 20][below(if dust > 0 { 1 } else { 2 }) as usize],
        opening_reserve_bytes: 64 << 10,
        punch_extents: [1, 256][below(2) as usize],
        inline_bytes_max: [0, 4 << 10, 256 << 10][below(3) as usize],
        ..Limits::DEFAULT
    }
}

#[derive(Clone, Debug)]
pub struct Plan {
    /// Sectors that are written and compared; an extent ends in the middle of them.
    pub window: usize,
    /// Extents before the middle of the window.
    pub border: u64,
    /// Discards of a few blocks each, before the window, that a fork may get: its sets of blocks have many runs then.
    pub dust: u64,
    pub block_bytes: u32,
    pub volumes: u64,
    pub writers: u64,
    pub flushers: u64,
    /// Threads with many requests under way.
    pub queuers: u64,
    /// Threads that scrub.
    pub scrubbers: u64,
    pub shapers: u64,
    /// Most of what they do is to destroy.
    pub destroys: bool,
    /// Most of it is to seal heads, beside flushes: to take snapshots, and to destroy them again.
    pub seals: bool,
    /// Most of it is to move the end of a volume a little, beside discards up to that end.
    pub grows: bool,
    /// Calls that each thread makes.
    pub calls: u64,
    /// Most sectors of a write.
    pub sectors_max: u64,
    /// What writers do.
    pub mix: Mix,
    /// One volume, and everybody is at the same few blocks.
    pub narrow: bool,
    /// Writes after which the blocks that all writers want are others.
    pub moves_after: u64,
    pub limits: Limits,
    /// Forks are made of servers elsewhere, too.
    pub elsewhere: bool,
    pub checkpoint_bytes: u64,
    pub checksum_cache_bytes: u64,
    /// Background work has a thread of its own in the store; otherwise a thread of the history steps it.
    pub threads: bool,
    /// Disk operations between two states that are set aside, on average.
    pub apart: u64,
    /// The log of changes that no frame has never fails: what was acknowledged is there when the process is killed.
    pub carries: bool,
    pub weather: Weather,
    pub capacity_pages: Option<u64>,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x706c_616e);
        let mut below = |end: u64| random.below(end);
        let small = below(3) > 0;
        let is_rough = below(3) == 0;
        let rough = |odds: u64| if is_rough { odds } else { 0 };
        // The discards of one fork make more of a record than a frame holds.
        let dust = if below(8) == 0 { 2200 } else { 0 };
        let limits = some_limits(dust, &mut below);
        let narrow = below(6) == 0;
        let mut plan = Self {
            border: if dust > 0 { 12 } else { 1 },
            dust,
            window: if small { 64 + 64 * below(3) as usize } else { 512 },
            block_bytes: if below(8) == 0 { 16 << 10 } else { 4 << 10 },
            volumes: 1 + below(3),
            writers: 2 + below(4),
            flushers: 1 + below(2),
            queuers: below(3).saturating_sub(1) * (1 + below(2)),
            scrubbers: below(4) / 3,
            shapers: below(4),
            destroys: below(5) == 0,
            seals: false,
            grows: false,
            calls: 12 + below(40),
            sectors_max: if small { 40 } else { 2048 },
            mix: if narrow { Mix::IN_PLACE } else { Mix::EVERY[below(2) as usize] },
            narrow,
            moves_after: [6, 20, u64::MAX][below(3) as usize],
            limits,
            elsewhere: below(3) == 0,
            checkpoint_bytes: [1 << 10, 4 << 10, 8 << 20][below(3) as usize],
            checksum_cache_bytes: [1, 1 << 20][below(2) as usize],
            threads: below(2) == 0,
            apart: 3 + below(20),
            weather: Weather {
                servers: [0, 0, 30][below(3) as usize],
                slow: ([0, 2, 4, 10][below(4) as usize], [1, 1, 2, 5][below(4) as usize]),
                short: [0, 0, 10][below(3) as usize],
                interrupted: [0, 0, 10][below(3) as usize],
                descriptors: rough([0, 0, 50][below(3) as usize]),
                space: rough([0, 0, 50][below(3) as usize]),
                threads: rough([0, 0, 4][below(3) as usize]) as u32,
                unreadable: rough([0, 0, 60][below(3) as usize]),
                syncs: rough([0, 0, 0, 200][below(4) as usize]),
            },
            carries: below(4) > 0,
            capacity_pages: Some(rough([0, 300 + below(1500)][below(2) as usize])).filter(|pages| *pages > 0),
        };
        plan.seals = below(6) == 0;
        if plan.seals {
            (plan.volumes, plan.shapers, plan.flushers, plan.destroys) = (1, plan.shapers.max(1), plan.flushers + 1, false);
            plan.calls = plan.calls.max(30);
        }
        plan.grows = below(8) == 0 && !plan.seals;
        if plan.grows {
            (plan.volumes, plan.shapers, plan.destroys, plan.mix) = (1, plan.shapers.max(1), false, Mix::DISCARDS);
            plan.calls = plan.calls.max(30);
        }
        if plan.destroys {
            (plan.shapers, plan.writers) = (plan.shapers.max(3), plan.writers.min(3));
        }
        if narrow {
            let shapers = if plan.seals || plan.grows { plan.shapers } else { plan.shapers / 3 };
            (plan.volumes, plan.shapers, plan.moves_after, plan.apart) = (1, shapers, u64::MAX, 2 + plan.apart / 4);
        }
        plan
    }

    /// First byte of the window.
    pub fn start(&self) -> u64 {
        u64::from(self.block_bytes) * 1024 * self.border - (self.window / 2 * SECTOR) as u64
    }

    pub fn offset(&self, sector: usize) -> u64 {
        self.start() + (sector * SECTOR) as u64
    }

    pub fn size_bytes(&self, sectors: u64) -> u64 {
        self.start() + sectors * SECTOR as u64
    }

    /// Sectors of the window within a size.
    pub fn sectors(&self, size_bytes: u64) -> u64 {
        size_bytes.saturating_sub(self.start()) / SECTOR as u64
    }

    pub fn options(&self, disk: &SimDisk, threads: bool) -> StoreOptions {
        StoreOptions::default()
            .with_block_size(BlockSize::new(self.block_bytes).expect("a power of two"))
            .with_ring(RingKind::Threads)
            .with_sources(Arc::new(crate::source::Servers::new(self, disk)))
            .with_disk(Arc::new(disk.clone()))
            .with_clock(Arc::new(SimClock::default()))
            .with_checksum_cache_bytes(self.checksum_cache_bytes)
            .with_checkpoint_bytes(self.checkpoint_bytes)
            .with_limits(self.limits)
            .with_threads(threads)
    }
}
