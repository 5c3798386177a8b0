//! Threads that write, flush, discard and read.

use std::ops::Range;
use std::os::fd::AsRawFd;

use bytes::Bytes;
use volfork::volume::Request;
use volfork::{Error, ErrorKind, Volume};

use crate::bytes::{run_bytes, tags_of};
use crate::image::SECTOR;
use crate::oracle::VolumeKey;
use crate::random::Random;
use crate::world::World;

/// Errors of a volume that others destroy or shrink meanwhile.
pub const MEANWHILE: &[ErrorKind] = &[ErrorKind::NotFound, ErrorKind::OutOfRange];

pub struct Writer<'a> {
    pub world: &'a World,
    pub random: Random,
    /// Mostly whole blocks, and the same ones.
    pub hot: bool,
}

impl Writer<'_> {
    /// One call.
    pub fn act(&mut self) {
        let Some((key, volume)) = self.world.some_volume(&mut self.random) else { return };
        let mix = self.world.plan.mix;
        let mut left = self.random.below(100);
        let mut falls = |share: u64| {
            let hit = left < share;
            left = left.wrapping_sub(share);
            hit
        };
        if falls(mix.writes) {
            self.write(key, &volume, false);
        } else if falls(mix.durable_writes) {
            self.write(key, &volume, true);
        } else if falls(mix.zeros) {
            self.zero(key, &volume);
        } else if falls(mix.reads) {
            self.read(key, &volume);
        } else {
            self.flush(key, &volume);
        }
    }

    /// Sectors of the window within the volume, or none.
    pub fn some_sectors(&mut self, volume: &Volume) -> Range<usize> {
        let size = self.world.plan.sectors(volume.size_bytes()) as usize;
        let block = (self.world.plan.block_bytes as usize / SECTOR).min(size.max(1));
        let (start, count) = if self.random.below(12) == 0 {
            // What is at the end, also if the size changes meanwhile.
            (size.saturating_sub(1 + self.random.below(block as u64) as usize), block)
        } else if self.world.plan.narrow || self.hot && self.random.below(8) > 0 {
            (self.world.hot_sector() / block * block + block * self.random.below(3) as usize, block * (1 + self.random.below(2) as usize))
        } else {
            let start = self.random.below(size.max(1) as u64) as usize;
            match self.random.below(2) {
                0 => (start / block * block, block * (1 + self.random.below(4) as usize)),
                _ => (start, 1 + self.random.below(self.world.plan.sectors_max) as usize),
            }
        };
        start.min(size)..(start + count).min(size)
    }

    fn write(&mut self, key: VolumeKey, volume: &Volume, fua: bool) {
        let sectors = self.some_sectors(volume);
        if sectors.is_empty() {
            return;
        }
        let (tag, asked) = {
            let mut oracle = self.world.oracle();
            let tag = oracle.new_tag();
            let asked = oracle.begin_write(key, sectors.clone(), tag);
            let fua = if fua { " fua" } else { "" };
            oracle.note(format!("write {key} {sectors:?} = {tag}{fua}"));
            (tag, asked)
        };
        let data = run_bytes(tag, sectors.start, sectors.len());
        let offset = self.world.plan.offset(sectors.start);
        let polls = fua && self.random.below(2) == 0;
        let outcome = if fua { write_durably(volume, data, offset, polls) } else { volume.write_at(&data, offset) };
        self.end(key, sectors, asked, &format!("write {tag}"), outcome, fua);
    }

    pub fn end(&self, key: VolumeKey, sectors: Range<usize>, asked: u64, what: &str, outcome: Result<(), Error>, durable: bool) {
        let mut oracle = self.world.oracle();
        oracle.end_write(key, sectors, asked, outcome.is_ok(), durable);
        oracle.note(format!("{what} (of {asked}) ends: {outcome:?}"));
        drop(oracle);
        if let Err(error) = outcome {
            self.world.excuse(what, &error, MEANWHILE);
        }
    }

    fn zero(&mut self, key: VolumeKey, volume: &Volume) {
        let size_bytes = volume.size_bytes();
        let (sectors, range) = match if self.world.plan.narrow { 2 } else { self.random.below(if self.world.plan.grows { 3 } else { 7 }) } {
            // The whole volume, or all from somewhere to its end.
            0 => (0..self.world.plan.sectors(size_bytes) as usize, 0..size_bytes),
            1 => {
                let first = self.some_sectors(volume).start;
                (first..self.world.plan.sectors(size_bytes) as usize, self.world.plan.offset(first)..size_bytes)
            }
            _ => {
                let sectors = self.some_sectors(volume);
                (sectors.clone(), self.world.plan.offset(sectors.start)..self.world.plan.offset(sectors.end))
            }
        };
        if sectors.is_empty() || range.is_empty() {
            return;
        }
        let asked = {
            let mut oracle = self.world.oracle();
            let asked = oracle.begin_write(key, sectors.clone(), 0);
            oracle.note(format!("zero {key} {sectors:?}"));
            asked
        };
        let bytes = range.end - range.start;
        let outcome = match self.random.below(3) {
            0 => volume.write_zeroes(range.start, bytes),
            _ => volume.discard(range.start, bytes),
        };
        self.end(key, sectors, asked, "zero", outcome, false);
    }

    pub fn flush(&mut self, key: VolumeKey, volume: &Volume) {
        let asked = {
            let mut oracle = self.world.oracle();
            let asked = oracle.begin();
            oracle.note(format!("flush {key}"));
            asked
        };
        self.end_flush(key, asked, volume.flush());
    }

    pub fn end_flush(&self, key: VolumeKey, asked: u64, outcome: Result<(), Error>) {
        let mut oracle = self.world.oracle();
        oracle.end(asked);
        oracle.note(format!("flush {key} of {asked} ends: {outcome:?}"));
        match outcome {
            Ok(()) => {
                oracle.flushed(key, asked);
                drop(oracle);
                self.world.look_soon();
            }
            Err(error) => {
                drop(oracle);
                self.world.excuse("flush", &error, MEANWHILE);
            }
        }
    }

    fn read(&mut self, key: VolumeKey, volume: &Volume) {
        let sectors = self.some_sectors(volume);
        let asked = self.world.oracle().begin();
        let mut bytes = vec![0xee; sectors.len() * SECTOR];
        let outcome = volume.read_at(&mut bytes, self.world.plan.offset(sectors.start));
        self.end_read(key, &sectors, asked, outcome.as_ref().map(|()| bytes.as_slice()));
    }

    pub fn end_read(&self, key: VolumeKey, sectors: &Range<usize>, asked: u64, outcome: Result<&[u8], &Error>) {
        let mut oracle = self.world.oracle();
        oracle.end(asked);
        let bytes = match outcome {
            Ok(bytes) => bytes,
            Err(error) => {
                drop(oracle);
                return self.world.excuse("read", error, MEANWHILE);
            }
        };
        let seen = tags_of(bytes, sectors.start)
            .and_then(|tags| oracle.volume(key).map_or(Ok(()), |model| model.content.see(sectors.start, &tags, asked)));
        drop(oracle);
        if let Err(error) = seen {
            self.world.fail(&format!("reading volume {key}: {error}"));
        }
    }
}

/// A write that is durable when it ends, through a queue.
fn write_durably(volume: &Volume, data: Vec<u8>, offset: u64, polls: bool) -> Result<(), Error> {
    let mut queue = volume.queue(4)?;
    queue.submit(0, Request::Write { offset, data: Bytes::from(data), fua: true })?;
    let mut ended = Vec::new();
    while ended.is_empty() {
        if polls {
            let mut readable = [libc::pollfd { fd: queue.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
            volfork::sync::poll(&mut readable, None).expect("a descriptor can be polled");
            queue.reap(&mut ended)?;
        } else {
            queue.wait(&mut ended, None)?;
        }
    }
    ended.remove(0).result.map(drop)
}
