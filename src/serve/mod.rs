//! The doors: an NBD server for volumes (read-write) and snapshots (read-only).
//!
//! The cast: a [`Listener`] is an address; [`NbdServer`] accepts connections and gives each a thread; [`NbdClients`] tells who is
//! connected; `handshake` agrees with the client on an export, over TLS if the listener's `policy` and the connection's `security` say
//! so; `connection` is the event loop over its socket and the export's queue; `input` has bytes that are no requests yet; `waiting` has
//! those that the limits of a volume let not begin yet; `reply` turns
//! completions into bytes; `budget` bounds the memory of all.
//!
//! # Invariants
//! - A broken or slow client harms no other client: what it may have outstanding, in requests and in bytes, is bounded, and reading
//!   from it stops when the bound is reached. What all hold together is bounded too: beyond, each gets one small request at a time,
//!   and a client that holds memory and does not move is disconnected. A client whose machine has gone leaves within a minute.
//! - Every request but `DISC` gets exactly one reply; a bad one gets an error, and the connection goes on, unless its length
//!   cannot be trusted. One that has not begun when the server shuts down gets none: the client sends it again when it has connected
//!   again.
//! - Of a listener that requires TLS no client learns anything in clear text but that. What was agreed on before TLS began is forgotten,
//!   and bytes that came before its first one are an error.
//! - A panic of an export costs the connection on whose thread it comes. A shutdown ends although an export hangs: its time is
//!   bounded, and nothing is waited for beyond it.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]
#![deny(clippy::cast_precision_loss)]
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]

mod budget;
mod clients;
mod connection;
mod export;
mod handshake;
mod input;
mod listener;
mod options;
#[cfg(feature = "tls")]
mod policy;
#[cfg(all(test, feature = "sim"))]
mod proof;
mod reply;
mod security;
mod server;
mod shutdown;
mod status;
mod waiting;

pub use clients::{ClientInfo, NbdClients};
pub use export::{Export, Exports};
pub use listener::{Listener, PassedSocket};
pub use options::NbdServerOptions;
#[cfg(feature = "tls")]
pub use policy::ListenerTls;
pub use server::NbdServer;
