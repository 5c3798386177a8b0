//! The parts of a hydrator that demand and backfill share, and what several of them note together.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use roaring::RoaringBitmap;

use super::addresses::Addresses;
use super::backfill::Queue;
use super::claims::{Claim, Claims};
use super::cover::Cover;
use super::demand::Waiters;
use super::health::Health;
use super::life::Life;
use super::news::News;
use super::pace::{Budget, Rate, Throttle, Wake};
use super::progress::{FetchClass, FetchedBytes};
use super::root::Root;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind};
use crate::source::{SourceError, SourceErrorKind};
use crate::sync::Mutex;

/// Bytes received, and how fast they come.
#[derive(Default)]
pub struct Received {
    pub bytes: FetchedBytes,
    pub rate: Rate,
}

/// The parts that demand and backfill share. Each has a lock of its own; only [`Health`] calls another part, [`Addresses`], under it.
pub struct Parts {
    pub root: Root,
    pub claims: Arc<Claims>,
    pub addresses: Arc<Addresses>,
    pub waiters: Waiters,
    pub queue: Queue,
    pub cover: Cover,
    pub throttle: Throttle,
    pub health: Health,
    pub life: Life,
    pub received: Mutex<Received>,
    /// Told when bytes arrive, requests fail, or settings change.
    pub news: Arc<News>,
    /// Lets backfill look again.
    pub wake: Mutex<Option<Wake>>,
    pub budget: Arc<Budget>,
    pub clock: Arc<dyn Clock>,
    /// How long readers wait for addresses that cannot be reached.
    pub patience: Duration,
    /// Looks at what stands on the layer, and tells [`Cover`].
    pub look: Box<dyn Fn() + Send + Sync>,
}

impl Parts {
    pub fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Lets readers and backfill look again.
    pub fn tell(&self) {
        self.wake_backfill();
        self.news.tell();
    }

    /// Lets backfill look again.
    pub fn wake_backfill(&self) {
        let wake = self.wake.lock().clone();
        if let Some(wake) = wake {
            wake();
        }
    }

    /// Notes how an address failed; `run`: it was asked for these blocks, and may be able to give others.
    pub fn note_failure(&self, uri: &str, error: &SourceError, run: Option<&Range<u64>>) {
        if error.kind == SourceErrorKind::Closed {
            return;
        }
        self.addresses.note_error(uri, error, run);
        self.health.note_error(error.message.clone());
        self.look_at_health();
    }

    /// Notes that a read of these blocks ended well, and how long somebody waited for it.
    pub fn note_read(&self, uri: &str, run: &Range<u64>, waited: Option<Duration>) {
        let (returned, shortest) = self.addresses.note_read(uri, run, waited);
        if returned {
            self.waiters.note_return();
        }
        if let Some(waited) = waited {
            self.throttle.note_wait(waited, shortest);
        }
        self.health.note_read();
        self.look_at_health();
    }

    /// Notes bytes that came.
    pub fn note_bytes(&self, uri: &str, class: FetchClass, bytes: u64) {
        let now = self.now();
        self.addresses.note_bytes(uri, bytes);
        let mut received = self.received.lock();
        received.bytes.add(class, bytes);
        let total = received.bytes.total();
        received.rate.note(now, total);
    }

    /// Fetched blocks could not be stored.
    pub fn note_unstored(&self, error: &Error) {
        self.health.note_unstored(error, self.now());
        self.look_at_health();
    }

    /// Nothing is under way, and of what is missing nothing may be asked for: each address fails, or could not give it.
    pub fn note_stuck(&self) {
        if self.addresses.look(|peers| peers.all_bad()) {
            self.health.note_stuck();
            self.look_at_health();
        }
    }

    /// Whether there is space again for what is missing, after there was none. Nothing is fetched to find that out.
    pub fn finds_space(&self) -> bool {
        match self.next_needed(0).map_or(Ok(()), |first| self.root.try_space(first)) {
            Ok(()) => {
                self.health.note_space();
                self.look_at_health();
                true
            }
            Err(error) => {
                self.note_unstored(&error);
                false
            }
        }
    }

    fn look_at_health(&self) {
        self.health.look(|| self.addresses.look(|peers| peers.all_failing().is_some()));
    }

    /// Claims missing blocks of a range that nobody fetches, in at most `count_max` pieces of at most `bytes_max`.
    pub fn claim(&self, blocks: &Range<u64>, bytes_max: u64, count_max: usize) -> Vec<Claim> {
        let blocks_max = self.root.block_size.block_of(bytes_max).max(1);
        self.claims.claim(blocks_max, count_max, || self.root.missing_runs(blocks))
    }

    /// The first block at or behind `from` that is missing and that somebody above needs.
    pub fn next_needed(&self, from: u64) -> Option<u64> {
        self.next_missing(from, |block| self.cover.end_of_covered(block))
    }

    /// Whether every block that anybody needs is here, and nothing is under way.
    pub fn is_complete(&self) -> bool {
        self.claims.is_empty() && self.next_missing(0, |block| self.cover.end_of_hidden(block)).is_none()
    }

    /// The first block at or behind `from` that is missing and not passed over.
    fn next_missing(&self, from: u64, end_of_passed: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let mut at = from;
        loop {
            at = self.root.layer.next_missing(at)?;
            match end_of_passed(at) {
                Some(end) => at = end,
                None => return Some(at),
            }
        }
    }

    /// Blocks that are missing and needed.
    pub fn missing(&self) -> RoaringBitmap {
        let mut missing = self.root.missing();
        self.cover.remove_hidden(&mut missing);
        missing
    }

    /// Whether it is time to look at what stands above; the caller does, by [`Parts::look`].
    pub fn begins_look(&self) -> bool {
        !self.throttle.settings().paused && self.cover.begins_look(self.now())
    }

    /// Bytes a second, over the last seconds.
    pub fn bytes_per_second(&self) -> u64 {
        let now = self.now();
        let received = self.received.lock();
        received.rate.bytes_per_second(now, received.bytes.total())
    }

    /// The engine's error for one of a source.
    pub fn lost(&self, error: &SourceError) -> Error {
        Error::new(
            ErrorKind::SourceLost,
            format!("a block is still only at the source, which failed: {}; the rest of the volume works", error.message),
        )
    }
}
