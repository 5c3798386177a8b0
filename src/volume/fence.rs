//! The fence around a store: every public call passes it, and `close` shuts it.
//!
//! # Invariants
//! - A call that has a [`Pass`] runs to its end: `close` waits for it. A call that comes after the fence was shut gets
//!   [`ErrorKind::Closed`] and touches nothing.
//! - A transfer that outlives the call that started it (a request of a queue) holds a pass of its own until it has ended.
//! - No pass is held while user code runs that may call `close` (progress of a scrub, opening a source), or for a wait without end.
//! - Threads of the engine that run callbacks are known: a `close` that comes from one does not wait for that thread.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::thread::{ThreadId, current};
use crate::sync::{Condvar, Mutex, MutexGuard, Rank};

/// Counters of calls, so that processors do not share one cache line.
const SHARDS: usize = 16;
/// How long `close` sleeps before it looks again whether it can help a call to its end.
const HELP_INTERVAL: Duration = Duration::from_millis(1);

#[derive(Default)]
#[repr(align(128))]
struct Shard(AtomicUsize);

/// Lets calls in until it is shut, and knows how many are inside.
pub struct Fence {
    shut: AtomicBool,
    inside: [Shard; SHARDS],
    /// Locked to wait until all passes are given back.
    leaving: Mutex<()>,
    left: Condvar,
    /// Threads of the engine that run callbacks.
    own_threads: Mutex<Vec<ThreadId>>,
}

impl Default for Fence {
    fn default() -> Self {
        Self {
            shut: AtomicBool::new(false),
            inside: Default::default(),
            leaving: Mutex::ranked(Rank::Leaving, ()),
            left: Condvar::new(),
            own_threads: Mutex::ranked(Rank::OwnThreads, Vec::new()),
        }
    }
}

/// Held by one call, or by one transfer.
pub struct Pass<F: Deref<Target = Fence>> {
    fence: F,
    shard: usize,
}

/// Marks the present thread as one of the engine that runs callbacks.
pub struct OwnThread(Arc<Fence>);

impl Fence {
    /// Lets a call in.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub fn enter(&self) -> Result<Pass<&Self>> {
        self.count().map(|shard| Pass { fence: self, shard })
    }

    /// Lets a transfer in, which ends after the present call.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub fn hold(self: &Arc<Self>) -> Result<Pass<Arc<Self>>> {
        self.count().map(|shard| Pass { fence: Arc::clone(self), shard })
    }

    /// Refuses when the store is closed.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub fn check(&self) -> Result<()> {
        match self.shut.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(Error::new(ErrorKind::Closed, "the store is closed: open it again")),
        }
    }

    fn count(&self) -> Result<usize> {
        let shard = crate::sync::stripe(SHARDS);
        // Counted before the look: `shut_out` sets the flag before it counts, so one of the two sees the other.
        self.inside[shard].0.fetch_add(1, Ordering::SeqCst);
        match self.check() {
            Ok(()) => Ok(shard),
            Err(error) => {
                self.leave(shard);
                Err(error)
            }
        }
    }

    fn leave(&self, shard: usize) {
        self.inside[shard].0.fetch_sub(1, Ordering::SeqCst);
        if self.shut.load(Ordering::SeqCst) {
            drop(self.leaving.lock());
            self.left.notify_all();
        }
    }

    /// Refuses new passes from now on.
    pub fn shut(&self) {
        self.shut.store(true, Ordering::SeqCst);
    }

    /// Waits until all passes are given back. The fence must be shut. `help` ends transfers whose owner does not reap them.
    pub fn wait_empty(&self, help: impl Fn()) {
        let mut leaving = self.leaving.lock();
        // A call that is refused is counted for a moment; it touches nothing, so the counters need not be zero together.
        while self.inside.iter().any(|shard| shard.0.load(Ordering::SeqCst) > 0) {
            MutexGuard::unlocked(&mut leaving, &help);
            if self.inside.iter().any(|shard| shard.0.load(Ordering::SeqCst) > 0) {
                self.left.wait_for(&mut leaving, HELP_INTERVAL);
            }
        }
    }

    /// Notes that the present thread is one of the engine that runs callbacks, until the answer is dropped.
    pub fn adopt_thread(self: &Arc<Self>) -> OwnThread {
        self.own_threads.lock().push(current().id());
        OwnThread(Arc::clone(self))
    }

    /// Whether the present thread is one of the engine that runs callbacks.
    pub fn is_own_thread(&self) -> bool {
        self.own_threads.lock().contains(&current().id())
    }
}

impl<F: Deref<Target = Fence>> Drop for Pass<F> {
    fn drop(&mut self) {
        self.fence.leave(self.shard);
    }
}

impl Drop for OwnThread {
    fn drop(&mut self) {
        let own = current().id();
        let mut threads = self.0.own_threads.lock();
        if let Some(at) = threads.iter().position(|thread| *thread == own) {
            threads.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_inside_is_waited_for_and_nobody_else_gets_in() {
        let fence = Arc::new(Fence::default());
        let (call, transfer) = (fence.enter().unwrap(), fence.hold().unwrap());
        fence.shut();
        assert_eq!(fence.enter().map(drop).unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(fence.hold().map(drop).unwrap_err().kind(), ErrorKind::Closed);
        drop(call);
        // The transfer ends only by `help`, and its pass is given back then.
        let transfer = Mutex::new(Some(transfer));
        fence.wait_empty(|| drop(transfer.lock().take()));
        assert!(transfer.lock().is_none());
        fence.wait_empty(|| panic!("nobody is inside"));
    }

    #[test]
    fn a_thread_of_the_engine_knows_itself() {
        let fence = Arc::new(Fence::default());
        let adopted = fence.adopt_thread();
        assert!(fence.is_own_thread());
        let other = Arc::clone(&fence);
        assert!(!crate::sync::thread::spawn(move || other.is_own_thread()).join().unwrap());
        drop(adopted);
        assert!(!fence.is_own_thread());
    }
}
