//! The parts of a hydrator that demand and backfill share, and events that concern several parts.

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

/// Bytes received, and their rate.
#[derive(Default)]
pub struct Received {
    pub bytes: FetchedBytes,
    pub rate: Rate,
}

/// The parts that demand and backfill share. Each has its own lock. Only [`Health`] calls another part, [`Addresses`], under its lock.
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
    /// Notified when bytes arrive, requests fail, or settings change.
    pub news: Arc<News>,
    /// Wakes backfill; `None` while none runs on threads.
    pub wake: Mutex<Option<Wake>>,
    pub budget: Arc<Budget>,
    pub clock: Arc<dyn Clock>,
    /// How long readers wait while no address can be reached.
    pub patience: Duration,
    /// Looks up which blocks the layers above hide, and updates [`Cover`].
    pub look: Box<dyn Fn() + Send + Sync>,
}

impl Parts {
    pub fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Wakes readers and backfill.
    pub fn tell(&self) {
        self.wake_backfill();
        self.news.tell();
    }

    /// Wakes backfill.
    pub fn wake_backfill(&self) {
        let wake = self.wake.lock().clone();
        if let Some(wake) = wake {
            wake();
        }
    }

    /// Notes a failure of an address. If `run` is given, only these blocks could not be read, and the address may still serve others.
    pub fn note_failure(&self, uri: &str, error: &SourceError, run: Option<&Range<u64>>) {
        if error.kind == SourceErrorKind::Closed {
            return;
        }
        self.addresses.note_error(uri, error, run);
        self.health.note_error(error.message.clone());
        self.look_at_health();
    }

    /// Notes a successful read of these blocks, and how long a reader waited for it.
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

    /// Counts received bytes.
    pub fn note_bytes(&self, uri: &str, class: FetchClass, bytes: u64) {
        let now = self.now();
        self.addresses.note_bytes(uri, bytes);
        let mut received = self.received.lock();
        received.bytes.add(class, bytes);
        let total = received.bytes.total();
        received.rate.note(now, total);
    }

    /// Notes that fetched blocks could not be stored.
    pub fn note_unstored(&self, error: &Error) {
        self.health.note_unstored(error, self.now());
        self.look_at_health();
    }

    /// Notes that backfill cannot go on: nothing is under way, and each address fails or could not give the missing blocks.
    pub fn note_stuck(&self) {
        if self.addresses.look(|peers| peers.all_bad()) {
            self.health.note_stuck();
            self.look_at_health();
        }
    }

    /// Whether there is space again, after there was none. It allocates space to find that out, and fetches nothing.
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

    /// Claims missing blocks of a range that are not being fetched, in at most `count_max` pieces of at most `bytes_max` bytes.
    pub fn claim(&self, blocks: &Range<u64>, bytes_max: u64, count_max: usize) -> Vec<Claim> {
        let blocks_max = self.root.block_size.block_of(bytes_max).max(1);
        self.claims.claim(blocks_max, count_max, || self.root.missing_runs(blocks))
    }

    /// The first block from `from` on that is missing and not covered by the layers above.
    pub fn next_needed(&self, from: u64) -> Option<u64> {
        self.next_missing(from, |block| self.cover.end_of_covered(block))
    }

    /// Whether every needed block is present, and nothing is under way.
    pub fn is_complete(&self) -> bool {
        self.claims.is_empty() && self.next_missing(0, |block| self.cover.end_of_hidden(block)).is_none()
    }

    /// The first block from `from` on that is missing and not passed over.
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

    /// Whether a look at the layers above is due. If true, the caller must call [`Parts::look`].
    pub fn begins_look(&self) -> bool {
        !self.throttle.settings().paused && self.cover.begins_look(self.now())
    }

    /// Rate of the last seconds, in bytes a second.
    pub fn bytes_per_second(&self) -> u64 {
        let now = self.now();
        let received = self.received.lock();
        received.rate.bytes_per_second(now, received.bytes.total())
    }

    /// Converts an error of a source into one of the engine.
    pub fn lost(&self, error: &SourceError) -> Error {
        Error::new(
            ErrorKind::SourceLost,
            format!("a block is still only at the source, which failed: {}; the rest of the volume works", error.message),
        )
    }
}
