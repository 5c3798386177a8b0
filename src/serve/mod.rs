//! The doors: an NBD server for volumes (read-write) and snapshots (read-only).
//!
//! The cast: a [`Listener`] is an address; [`NbdServer`] accepts connections and gives each a thread; `handshake` agrees with the
//! client on an export; `connection` is the event loop over its socket and the export's queue; `reply` turns completions into
//! bytes.
//!
//! # Invariants
//! - A broken or slow client harms nobody else: what it may have outstanding, in requests and in bytes, is bounded, and reading
//!   from it stops when the bound is reached. What all hold together is bounded too: beyond, each gets one request at a time.
//! - Every request but `DISC` gets exactly one reply; a bad one gets an error, and the connection goes on, unless its length
//!   cannot be trusted.
//! - A panic of an export costs the connection on whose thread it comes. A shutdown ends although an export hangs: its time is
//!   bounded, and nothing is waited for beyond it.
mod budget;
mod connection;
mod export;
mod handshake;
mod listener;
#[cfg(all(test, feature = "sim"))]
mod proof;
mod reply;
mod server;
mod status;

use std::time::Duration;

pub use export::{Export, Exports};
pub use listener::Listener;
pub use server::NbdServer;

/// Settings of an NBD server.
#[derive(Clone, Debug)]
pub struct NbdOptions {
    /// Connections at most (fewer if the process may not have so many descriptors); further clients are turned away.
    pub connections_max: usize,
    /// Requests under way on one connection; further ones wait in its socket.
    pub depth: u32,
    /// Time for a client to agree on an export.
    pub handshake_timeout: Duration,
    /// Time for requests under way when the server shuts down.
    pub shutdown_timeout: Duration,
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self { connections_max: 1024, depth: 128, handshake_timeout: Duration::from_secs(10), shutdown_timeout: Duration::from_secs(5) }
    }
}
