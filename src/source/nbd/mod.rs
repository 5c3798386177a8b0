//! An NBD export as a source.
//!
//! The cast: an address is parsed in `address`, a connection made and agreed on in `handshake`; a `Link` is one connection with
//! its reader thread; [`NbdSource`] spreads reads over its links, and its keeper thread makes lost ones anew and replays what
//! they had under way.
//!
//! # Invariants
//! - A read ends exactly once: it is in the list of one link, or waits, or was completed.
//! - Callbacks are called without locks.
mod address;
mod assembly;
mod handshake;
mod link;
mod pool;

use std::time::Duration;

pub use pool::NbdSource;

/// How an NBD source behaves. The defaults suit a network of hosts.
#[derive(Clone, Debug)]
pub struct NbdOptions {
    /// Connections for bulk, if the server allows several; a far server gets twice as many. One more is kept for reads that
    /// somebody waits for.
    pub connections: usize,
    /// Time for connecting and agreeing.
    pub connect_timeout: Duration,
    /// A connection whose oldest request waits longer is given up.
    pub request_timeout: Duration,
    /// After a loss, requests wait so long for a connection before they fail.
    pub give_up_after: Duration,
    /// How often a request is tried that the server answers with an error, or at which the connection is lost. A connection
    /// that was given up since the request waited too long counts as two.
    pub tries: u32,
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self {
            connections: 4,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(15),
            give_up_after: Duration::from_secs(10),
            tries: 4,
        }
    }
}
