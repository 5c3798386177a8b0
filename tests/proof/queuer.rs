//! Threads that keep many requests of a queue under way.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::time::Duration;

use bytes::Bytes;
use volfork::volume::{Completion, Queue, Request};
use volfork::{Result as Outcome, Volume};

use crate::bytes::run_bytes;
use crate::image::SECTOR;
use crate::oracle::VolumeKey;
use crate::writer::{MEANWHILE, Writer};

/// Most requests under way at once.
const DEPTH_MAX: u64 = 8;
/// Longer than any request may take.
const PATIENCE: Duration = Duration::from_secs(600);

enum Pending {
    Write { what: String, sectors: Range<usize>, durable: bool },
    Read { sectors: Range<usize> },
    Flush,
}

pub struct Queuer<'a> {
    writer: Writer<'a>,
    key: VolumeKey,
    /// Requests under way, by token, with the time at which each was asked for.
    pending: BTreeMap<u64, (u64, Pending)>,
    tokens: u64,
}

impl<'a> Queuer<'a> {
    pub fn new(writer: Writer<'a>) -> Self {
        Self { writer, key: 0, pending: BTreeMap::new(), tokens: 0 }
    }

    /// Opens a queue, and has so many requests made through it.
    pub fn act(&mut self, calls: u64) {
        let world = self.writer.world;
        let Some((key, volume)) = world.some_volume(&mut self.writer.random) else { return };
        let depth = 1 + self.writer.random.below(DEPTH_MAX);
        let mut queue = match volume.queue(depth as u32) {
            Ok(queue) => queue,
            Err(error) => return world.excuse("queue", &error, MEANWHILE),
        };
        self.key = key;
        for _ in 0..calls {
            if (self.pending.len() as u64) < depth && self.writer.random.below(3) > 0 {
                self.submit(&mut queue, &volume);
            } else if !self.pending.is_empty() {
                self.take(&mut queue);
            }
        }
        if self.writer.random.below(4) > 0 {
            while !self.pending.is_empty() {
                self.take(&mut queue);
            }
        }
        drop(queue);
        // A request without a completion has either happened or never will.
        for (asked, pending) in std::mem::take(&mut self.pending).into_values() {
            let mut oracle = world.oracle();
            match pending {
                Pending::Write { sectors, .. } => oracle.end_write(key, sectors, asked, false, false),
                _ => drop(oracle.end(asked)),
            }
        }
    }

    fn submit(&mut self, queue: &mut Queue, volume: &Volume) {
        let world = self.writer.world;
        let sectors = self.writer.some_sectors(volume);
        if sectors.is_empty() {
            return;
        }
        let (offset, bytes) = (world.plan.offset(sectors.start), (sectors.len() * SECTOR) as u64);
        let durable = self.writer.random.below(6) == 0;
        let fua = if durable { " fua" } else { "" };
        let mut oracle = world.oracle();
        let (asked, request, pending) = match self.writer.random.below(10) {
            0..=4 => {
                let tag = oracle.new_tag();
                let asked = oracle.begin_write(self.key, sectors.clone(), tag);
                oracle.note(format!("queue write {} {sectors:?} = {tag}{fua}", self.key));
                let data = Bytes::from(run_bytes(tag, sectors.start, sectors.len()));
                let pending = Pending::Write { what: format!("queued write {tag}"), sectors, durable };
                (asked, Request::Write { offset, data, fua: durable }, pending)
            }
            5..=6 => {
                let asked = oracle.begin_write(self.key, sectors.clone(), 0);
                oracle.note(format!("queue zero {} {sectors:?}{fua}", self.key));
                let pending = Pending::Write { what: "queued zero".into(), sectors, durable };
                let request = match self.writer.random.below(2) {
                    0 => Request::Discard { offset, bytes, fua: durable },
                    _ => Request::WriteZeroes { offset, bytes, fua: durable },
                };
                (asked, request, pending)
            }
            7 => (oracle.begin(), Request::Read { offset, bytes: bytes as u32 }, Pending::Read { sectors }),
            _ => {
                oracle.note(format!("queue flush {}", self.key));
                (oracle.begin(), Request::Flush, Pending::Flush)
            }
        };
        drop(oracle);
        self.tokens += 1;
        self.pending.insert(self.tokens, (asked, pending));
        if let Err(error) = queue.submit(self.tokens, request) {
            let (asked, pending) = self.pending.remove(&self.tokens).expect("it was put there");
            self.end(asked, pending, Err(error));
        }
    }

    /// Takes what has ended; waits for something if nothing has.
    fn take(&mut self, queue: &mut Queue) {
        let mut ended = Vec::new();
        let taken = if self.writer.random.below(2) == 0 { queue.wait(&mut ended, Some(PATIENCE)) } else { poll(queue, &mut ended) };
        if let Err(error) = taken {
            self.writer.world.fail(&format!("the queue fails: {error}"));
        }
        if ended.is_empty() {
            self.writer.world.fail(&format!("none of {} requests is answered", self.pending.len()));
        }
        for Completion { token, result, .. } in ended {
            match self.pending.remove(&token) {
                Some((asked, pending)) => self.end(asked, pending, result),
                None => self.writer.world.fail(&format!("request {token} is answered twice")),
            }
        }
    }

    fn end(&mut self, asked: u64, pending: Pending, result: Outcome<Bytes>) {
        match pending {
            Pending::Write { what, sectors, durable } => self.writer.end(self.key, sectors, asked, &what, result.map(drop), durable),
            Pending::Flush => self.writer.end_flush(self.key, asked, result.map(drop)),
            Pending::Read { sectors } => self.writer.end_read(self.key, &sectors, asked, result.as_deref()),
        }
    }
}

/// Waits by the queue's descriptor.
fn poll(queue: &mut Queue, ended: &mut Vec<Completion>) -> Outcome<usize> {
    loop {
        if queue.reap(ended)? > 0 {
            return Ok(ended.len());
        }
        let mut readable = [libc::pollfd { fd: queue.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        if volfork::sync::poll(&mut readable, Some(PATIENCE)).expect("a descriptor can be polled") == 0 {
            return Ok(0);
        }
    }
}
