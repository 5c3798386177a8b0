//! Memory of all connections together.

use std::sync::Arc;

use crate::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that the connections of a server hold together before each gets only one request at a time.
const TOTAL_BYTES_MAX: usize = 1 << 30;

/// What all connections of a server hold.
#[derive(Default)]
pub struct Budget(AtomicUsize);

/// The part of one connection, given back when it ends.
///
/// # Invariants
/// - Who holds nothing may always take one request, so that those who never read their replies stop nobody else.
pub struct Held {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Held {
    /// Nothing yet.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0 }
    }

    /// What is held now.
    pub fn set(&mut self, bytes: usize) {
        self.budget.0.fetch_add(bytes, Ordering::Relaxed);
        self.budget.0.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }

    /// Whether another request may be taken by a connection that may hold `most` bytes.
    pub fn has_room(&self, most: usize) -> bool {
        self.bytes == 0 || (self.bytes < most && self.budget.0.load(Ordering::Relaxed) < TOTAL_BYTES_MAX)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_nothing_has_room_and_what_ends_is_given_back() {
        let budget = Arc::<Budget>::default();
        let (mut greedy, mut other) = (Held::new(Arc::clone(&budget)), Held::new(Arc::clone(&budget)));
        greedy.set(100);
        assert!(greedy.has_room(101) && !greedy.has_room(100));
        greedy.set(TOTAL_BYTES_MAX);
        assert!(!greedy.has_room(usize::MAX) && other.has_room(100));
        other.set(1);
        assert!(!other.has_room(100), "one at a time");
        drop(greedy);
        assert!(other.has_room(100));
        drop(other);
        assert_eq!(budget.0.load(Ordering::Relaxed), 0);
    }
}
