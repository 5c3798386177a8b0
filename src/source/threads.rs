//! The threads of all sources of the process. Their number does not grow with the sources.
//!
//! | pool | runs | threads |
//! |---|---|---|
//! | `source` | calls that may never return: opening, leases, closing, attempts to connect again | 6, and one for each of at most 18 slow
//! calls |
//! | `source-name` | the name service of the system | 2, and one for each of at most 4 slow look-ups |
//!
//! While a pool has work, it has one more thread, its lead ([`crate::io::Workers`]). The lead of `source` also runs while a source is open,
//! and runs the tasks that maintain the connections of NBD sources. Two further threads receive what servers send (`nbd::reactor`).
//!
//! A host has at most 3 calls under way. A slow host has one, and so has a host that has not answered yet while threads are scarce: 18
//! hosts that do not answer leave threads to others.

use std::sync::Arc;

use crate::io::{Bounds, Workers};
use crate::sync::PerProcess;

/// Most calls of one host under way; further ones wait.
const OF_HOST_MAX: usize = 3;
/// Most calls of one host that wait; further ones are refused.
const WAITING_MAX: usize = 4096;

static CALLS: PerProcess<Workers> = PerProcess::new(|| {
    let bounds = Bounds { threads_max: 6, slow_max: 18, of_key_max: OF_HOST_MAX, waiting_max: WAITING_MAX, in_background: false };
    Workers::new("source", bounds)
});

/// A pool of its own: a call of the other pool waits for a look-up, so that sharing threads could deadlock.
static NAMES: PerProcess<Workers> = PerProcess::new(|| {
    let bounds = Bounds { threads_max: 2, slow_max: 4, of_key_max: 1, waiting_max: WAITING_MAX, in_background: false };
    Workers::new("source-name", bounds)
});

/// The pool for calls of sources and openers, keyed by host.
pub(super) fn calls() -> Arc<Workers> {
    CALLS.get()
}

/// The pool for look-ups of host names, keyed by name.
pub(super) fn names() -> Arc<Workers> {
    NAMES.get()
}
