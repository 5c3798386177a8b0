//! The threads of all sources of the process, however many sources there are.
//!
//! | pool | runs | threads |
//! |---|---|---|
//! | `source` | calls that may never return: opening, leases, closing, attempts to connect again | 6, and one for each of at most 18 slow calls |
//! | `source-name` | the name service of the system | 2, and one for each of at most 4 slow look-ups |
//!
//! Each has one thread more while it has something to do ([`crate::io::Workers`]). That of `source` runs the tasks that keep the
//! connections of NBD sources as well. What servers send is taken by two further threads (`nbd::reactor`).
//!
//! A host has at most 3 calls under way, and one while it is slow or, when threads are scarce, until it has answered: so 18 hosts that
//! do not answer leave threads to others.

use std::sync::Arc;

use crate::io::{Bounds, Workers};
use crate::sync::PerProcess;

/// Calls of one host under way; others wait.
const OF_HOST_MAX: usize = 3;
/// Calls of one host that wait.
const WAITING_MAX: usize = 4096;

static CALLS: PerProcess<Workers> = PerProcess::new(|| {
    let bounds = Bounds { threads_max: 6, slow_max: 18, of_key_max: OF_HOST_MAX, waiting_max: WAITING_MAX, in_background: false };
    Workers::new("source", bounds)
});

/// A name is looked up while a call of the other pool waits for it.
static NAMES: PerProcess<Workers> = PerProcess::new(|| {
    let bounds = Bounds { threads_max: 2, slow_max: 4, of_key_max: 1, waiting_max: WAITING_MAX, in_background: false };
    Workers::new("source-name", bounds)
});

/// For code of sources, by host.
pub(super) fn calls() -> Arc<Workers> {
    CALLS.get()
}

/// For look-ups of names, by name.
pub(super) fn names() -> Arc<Workers> {
    NAMES.get()
}
