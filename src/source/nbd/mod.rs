//! An NBD export as a source.
//!
//! The cast: an address is parsed in `address`, a connection made and agreed on in `handshake`, with a `lease` if one is wanted; a
//! `link` is one connection with what it has under way, `replies` takes what its server sends, and one of the two threads of the
//! `reactor` calls both for all connections of the process. The `pool` spreads requests over the links of a source and replays what a
//! lost one had under way; its `keeper` makes lost ones anew. [`NbdSource`] is all of it.
//!
//! # Invariants
//! - A read ends exactly once: it is in the list of one link, or waits, or was completed.
//! - Callbacks are called without locks that anything else waits for, on threads that serve all sources: they must not block.
mod address;
mod assembly;
mod export;
mod handshake;
mod job;
mod keeper;
mod lease;
mod link;
mod pool;
mod reactor;
mod replies;
mod tail;
mod tries;
mod under_way;

use std::time::Duration;

pub use export::NbdSource;

use crate::options::with_methods;

/// How an NBD source behaves. The defaults suit a network of hosts.
///
/// ```
/// use std::time::Duration;
/// use volfork::source::NbdOptions;
///
/// let options = NbdOptions::patient_for(Duration::from_secs(60)).with_connections(8);
/// // A connection that is silent for half of that time is given up.
/// assert_eq!(options.request_timeout, Duration::from_secs(30));
/// assert_eq!((options.give_up_after, options.tries), (Duration::from_secs(20), 4));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NbdOptions {
    /// Connections for bulk, if the server allows several; a far server gets twice as many. One more is kept for reads that
    /// somebody waits for.
    pub connections: usize,
    /// Time for connecting and agreeing. A lease, for which the server may have to take a snapshot, has that of a request.
    pub connect_timeout: Duration,
    /// A connection whose oldest request waits longer is given up. Readers of a fork wait twice as long for a source, whether it
    /// answers none of their requests, or cannot be reached.
    pub request_timeout: Duration,
    /// After a loss, requests wait so long for a connection before they fail.
    pub give_up_after: Duration,
    /// How often a request is tried that the server answers with an error, or at which the connection is lost. A connection
    /// that was given up since the request waited too long counts as two.
    pub tries: u32,
}

/// How long whoever waits for a source waits at most, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connecting and agreeing take some round trips, also of a far server.
const CONNECT_TIMEOUT_MIN: Duration = Duration::from_secs(1);

with_methods! { NbdOptions:
    with_connections(connections: usize);
    with_connect_timeout(connect_timeout: Duration);
    with_request_timeout(request_timeout: Duration);
    with_give_up_after(give_up_after: Duration);
    with_tries(tries: u32);
}

impl NbdOptions {
    /// Readers of a source that answers nothing, or cannot be reached, are told of its loss after about `patience`; backfill gives up
    /// one that is gone after a third of it.
    pub fn patient_for(patience: Duration) -> Self {
        Self {
            connections: 4,
            connect_timeout: (patience / 6).max(CONNECT_TIMEOUT_MIN),
            // On another connection it is tried once more.
            request_timeout: patience / 2,
            give_up_after: patience / 3,
            tries: 4,
        }
    }

    /// How long readers wait.
    pub(crate) fn patience(&self) -> Duration {
        self.request_timeout.saturating_mul(2)
    }
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self::patient_for(PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_follow_the_patience() {
        let seconds = |patience: u64| {
            let options = NbdOptions::patient_for(Duration::from_secs(patience));
            [options.connect_timeout, options.request_timeout, options.give_up_after].map(|time| time.as_secs())
        };
        assert_eq!(seconds(30), [5, 15, 10]);
        assert_eq!(seconds(3), [1, 1, 1]);
        assert_eq!(seconds(600), [100, 300, 200]);
        assert_eq!(NbdOptions::default().patience(), PATIENCE);
    }
}
