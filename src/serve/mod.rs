//! The doors: an NBD server for volumes (read-write) and snapshots (read-only).
//!
//! The cast: a [`Listener`] is an address; [`NbdServer`] accepts connections and gives each a thread; [`NbdClients`] tells who is
//! connected; `handshake` agrees with the client on an export; `connection` is the event loop over its socket and the export's queue;
//! `input` has bytes that are no requests yet; `reply` turns completions into bytes; `budget` bounds the memory of all.
//!
//! # Invariants
//! - A broken or slow client harms nobody else: what it may have outstanding, in requests and in bytes, is bounded, and reading
//!   from it stops when the bound is reached. What all hold together is bounded too: beyond, each gets one small request at a time,
//!   and a client that holds memory and does not move is disconnected. A client whose machine has gone leaves within a minute.
//! - Every request but `DISC` gets exactly one reply; a bad one gets an error, and the connection goes on, unless its length
//!   cannot be trusted. One that has not begun when the server shuts down gets none: the client sends it again when it has connected
//!   again.
//! - A panic of an export costs the connection on whose thread it comes. A shutdown ends although an export hangs: its time is
//!   bounded, and nothing is waited for beyond it.
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]

mod budget;
mod clients;
mod connection;
mod export;
mod handshake;
mod input;
mod listener;
#[cfg(all(test, feature = "sim"))]
mod proof;
mod reply;
mod server;
mod status;

use std::time::Duration;

pub use clients::{ClientInfo, NbdClients};
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
    /// Time for a client to agree on an export; it begins anew with each answer about one.
    pub handshake_timeout: Duration,
    /// Time for requests under way when the server shuts down.
    pub shutdown_timeout: Duration,
    /// A client that has begun to send a request has this time, and a second for each 64 KiB, to send all of it; one that takes none of
    /// its replies has it while others wait for memory. Then it is disconnected.
    pub stall_timeout: Duration,
    /// Memory for requests and replies of all connections together, in bytes, beyond 256 KiB for each. Larger requests wait until there
    /// is room.
    pub memory_bytes_max: usize,
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            depth: 128,
            handshake_timeout: Duration::from_secs(10),
            shutdown_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(30),
            memory_bytes_max: 1 << 30,
        }
    }
}
