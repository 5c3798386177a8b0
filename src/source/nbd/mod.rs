//! An NBD export as a source.
//!
//! The cast: `address` parses an address; `handshake` connects and agrees with the server, with a `lease` if one is wanted. A `link` is
//! one connection with its requests under way; `replies` decodes what its server sends; one of the two threads of the `reactor` drives both
//! for all connections of the process. The `pool` spreads requests over the links of a source and replays those of a lost link; its
//! `keeper` reconnects. [`NbdSource`] is all of it.
//!
//! # Invariants
//! - A read ends exactly once: at any time it is in the table of one link, or waits in the pool, or has completed.
//! - Callbacks run on threads that serve all sources, and under no lock that other threads wait for. They must not block.
mod address;
mod assembly;
mod export;
mod handshake;
mod job;
mod keeper;
mod lease;
mod link;
mod pool;
mod query;
mod reactor;
mod replies;
#[cfg(feature = "tls")]
mod secure;
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
    /// Connections for bulk, if the server allows several; a server with a long round trip gets twice as many. One more is reserved for
    /// reads of class [`super::ReadClass::Waited`].
    pub connections: usize,
    /// Time for connecting and the handshake. A request for a lease may take [`Self::request_timeout`], because the server may have to take
    /// a snapshot.
    pub connect_timeout: Duration,
    /// A connection whose oldest request waits longer is given up. Readers of a fork wait twice as long for a source that does not answer
    /// or cannot be reached.
    pub request_timeout: Duration,
    /// How long requests wait for a new connection after the last one was lost, before they fail.
    pub give_up_after: Duration,
    /// Most tries of a request. A try fails if the server answers with an error or the connection is lost; one that has timed out counts
    /// as two.
    pub tries: u32,
}

/// Default of the time that readers wait for a source.
const PATIENCE: Duration = Duration::from_secs(30);
/// Shortest time for connecting and the handshake, which take several round trips.
const CONNECT_TIMEOUT_MIN: Duration = Duration::from_secs(1);

with_methods! { NbdOptions:
    with_connections(connections: usize);
    with_connect_timeout(connect_timeout: Duration);
    with_request_timeout(request_timeout: Duration);
    with_give_up_after(give_up_after: Duration);
    with_tries(tries: u32);
}

impl NbdOptions {
    /// Options with which readers of a source that does not answer or cannot be reached fail after about `patience`. Backfill gives up a
    /// lost connection after a third of it.
    pub fn patient_for(patience: Duration) -> Self {
        Self {
            connections: 4,
            connect_timeout: (patience / 6).max(CONNECT_TIMEOUT_MIN),
            // Half of it, because the request is tried once more on another connection.
            request_timeout: patience / 2,
            give_up_after: patience / 3,
            tries: 4,
        }
    }

    /// How long readers wait for a source that does not answer.
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
