//! Memory of all connections together.
//!
//! # Invariants
//! - What connections hold beyond one small request each is never more than the budget, or one request if that is larger. A client
//!   that never reads its replies, or never ends its request, holds a part of it; others that wait for room end that (`connection`).
//! - A connection without anything under way may always take a small request: no other connection stops it.

use std::sync::Arc;
use std::time::Duration;

use crate::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that each connection may always hold: a request of 256 KiB, and the buffer that headers are received in.
pub const SMALL_BYTES: usize = 384 << 10;
/// Bytes that one connection holds before it takes no further requests.
const CONNECTION_BYTES_MAX: usize = 64 << 20;
/// How often a connection looks whether there is room, times the number of those that do.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const LOOK_EVERY_MAX: Duration = Duration::from_secs(1);

/// Memory that all connections of a server hold together.
pub struct Budget {
    most: usize,
    used: AtomicUsize,
    /// Connections that have nothing to do because there is no room for their next request.
    waiting: AtomicUsize,
}

/// The part of one connection, given back when it ends.
pub struct Held {
    budget: Arc<Budget>,
    bytes: usize,
    waits: bool,
}

/// The part of what a connection holds that the budget bounds.
fn counted(bytes: usize) -> usize {
    bytes.saturating_sub(SMALL_BYTES)
}

impl Budget {
    /// A budget of `most` bytes.
    pub fn new(most: usize) -> Self {
        Self { most, used: AtomicUsize::new(0), waiting: AtomicUsize::new(0) }
    }
}

impl Held {
    /// Nothing yet.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0, waits: false }
    }

    /// Sets the bytes that the connection holds now.
    pub fn set(&mut self, bytes: usize) {
        self.budget.used.fetch_add(counted(bytes), Ordering::Relaxed);
        self.budget.used.fetch_sub(counted(self.bytes), Ordering::Relaxed);
        self.bytes = bytes;
    }

    /// Bytes that all would hold if this one held `more` bytes more; `None`: there is no room for them.
    fn with(&self, used: usize, more: usize) -> Option<usize> {
        let own = counted(self.bytes);
        let then = used - own + counted(self.bytes + more);
        (used == own || then <= self.budget.most).then_some(then)
    }

    /// Whether the connection may hold `more` bytes; `idle`: it has nothing under way. If not, it waits until it asks again.
    pub fn has_room(&mut self, more: usize, idle: bool) -> bool {
        let waited = std::mem::take(&mut self.waits);
        self.budget.waiting.fetch_sub(usize::from(waited), Ordering::Relaxed);
        if idle && counted(self.bytes + more) == 0 {
            return true;
        }
        // The end of a request that is under way wakes the connection.
        if !idle && (self.bytes >= CONNECTION_BYTES_MAX || !waited && self.others_wait()) {
            return false;
        }
        let room = self.with(self.budget.used.load(Ordering::Relaxed), more).is_some();
        if !room && more > 0 {
            self.waits = true;
            self.budget.waiting.fetch_add(1, Ordering::Relaxed);
        }
        room
    }

    /// Holds `more` bytes until the next [`Held::set`], if there is room.
    pub fn take(&mut self, more: usize, idle: bool) -> bool {
        let room = self.has_room(more, idle);
        if more == 0 || !room {
            return room;
        }
        let taken = self.budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| self.with(used, more));
        self.bytes += if taken.is_ok() { more } else { 0 };
        taken.is_ok()
    }

    /// How long to wait before it is asked again, if there was no room.
    pub fn patience(&self) -> Option<Duration> {
        let waiting = u32::try_from(self.budget.waiting.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        self.waits.then(|| LOOK_EVERY.saturating_mul(waiting).clamp(LOOK_EVERY, LOOK_EVERY_MAX))
    }

    /// Whether other connections have no room for their next request.
    pub fn others_wait(&self) -> bool {
        self.budget.waiting.load(Ordering::Relaxed) > usize::from(self.waits)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
        self.budget.waiting.fetch_sub(usize::from(self.waits), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn a_small_request_always_has_room_and_a_large_one_waits_for_it() {
        let budget = Arc::new(Budget::new(64 * MIB));
        let held = || Held::new(Arc::clone(&budget));
        let (mut greedy, mut large, mut small) = (held(), held(), held());
        assert!(greedy.take(40 * MIB, true) && !large.take(32 * MIB, true));
        assert!(large.patience().is_some() && greedy.others_wait() && !large.others_wait());
        assert!(small.take(SMALL_BYTES, true) && !small.has_room(0, false), "those that wait come first");
        assert!(!greedy.has_room(0, false));
        greedy.set(30 * MIB);
        assert!(large.take(32 * MIB, true) && large.patience().is_none());
        assert!(small.has_room(0, false) && greedy.has_room(0, false));
        assert!(!greedy.has_room(5 * MIB, false));
        drop((greedy, large, small));
        assert_eq!((budget.used.load(Ordering::Relaxed), budget.waiting.load(Ordering::Relaxed)), (0, 0));
        // A request that is larger than all is done when it is alone.
        let mut waiting = held();
        waiting.set(16 << 10);
        assert!(held().take(100 * MIB, true), "the others have begun nothing");
    }

    #[test]
    fn one_connection_does_not_take_all() {
        let mut held = Held::new(Arc::new(Budget::new(1024 * MIB)));
        held.set(CONNECTION_BYTES_MAX);
        assert!(!held.has_room(0, false) && held.patience().is_none());
        held.set(CONNECTION_BYTES_MAX - 1);
        assert!(held.has_room(32 * MIB, false));
    }
}
