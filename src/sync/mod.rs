//! Every lock, condition variable, atomic, channel, thread and clock reading of the engine.
//!
//! The engine takes these from here and from nowhere else (a test reads the sources and keeps this rule), so that the proof
//! system can put them under a scheduler of its own.

pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

/// Atomic numbers.
pub mod atomic {
    pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
}

/// Channels.
pub mod mpsc {
    pub use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
}

/// Threads.
pub mod thread {
    #[cfg(test)]
    pub use std::thread::spawn;
    pub use std::thread::{Builder, JoinHandle, scope, sleep, yield_now};
}

/// Time that passes.
pub mod time {
    pub use std::time::Instant;
}
