//! Every lock, condition variable, atomic, channel, thread and clock reading of the engine.
//!
//! The engine takes these from here and from nowhere else; `tests/tidy` keeps this rule. Without the feature `sim` they are those
//! of `parking_lot` and the standard library. With it they are those of `sim`, which puts the threads of a simulated run under a
//! seeded scheduler and leaves all other threads alone.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]
#![deny(clippy::cast_precision_loss)]

mod lock;
mod poll;
mod ppoll;
mod process;
mod rank;

pub use lock::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};
pub use poll::{before_wait, poll, recv, send};
pub use process::PerProcess;
pub use rank::Rank;

/// A mutex for statics, which belong to no simulated run. It guards short sections that use nothing else of this module.
pub use parking_lot::Mutex as StaticMutex;

/// A number below `count` that differs between many threads: for counters that should not share a cache line.
pub fn stripe(count: usize) -> usize {
    #[cfg(feature = "sim")]
    if let Some(task) = sim::current() {
        return task.number() % count;
    }
    // The stacks of threads lie far apart.
    let here = 0u8;
    (&raw const here).addr() / (64 << 10) % count
}

/// A scheduling point of a simulated run. Call it before an effect that other threads can see and that no primitive of this module makes.
#[track_caller]
#[inline]
#[cfg_attr(not(feature = "sim"), expect(unused_variables, reason = "nothing to say without a scheduler"))]
pub fn point(what: &'static str) {
    #[cfg(feature = "sim")]
    if let Some(task) = sim::current() {
        task.point(what);
    }
}

#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "sim")]
pub use sim::{OnceLock, atomic, mpsc, thread, time};

#[cfg(not(feature = "sim"))]
pub use std::sync::OnceLock;

/// Atomic numbers.
#[cfg(not(feature = "sim"))]
pub mod atomic {
    pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
}

/// Channels.
#[cfg(not(feature = "sim"))]
pub mod mpsc {
    pub use std::sync::mpsc::{Receiver, Sender, channel};
}

/// Threads.
#[cfg(not(feature = "sim"))]
pub mod thread {
    #[cfg(test)]
    pub use std::thread::spawn;
    pub use std::thread::{Builder, JoinHandle, ThreadId, current, scope, sleep, yield_now};
}

/// Time that passes.
#[cfg(not(feature = "sim"))]
pub mod time {
    pub use std::time::Instant;
}
