//! TLS for connections whose code knows nothing of it.
//!
//! The cast: [`ServerTls`] and `ClientTls` are configurations, read from a directory of certificates (`files`). `handshake` agrees with
//! the peer on the thread of the connection, by a deadline. A `tunnel` is what comes of it: one end of a socket pair, over which the
//! connection goes on in clear text as over any other socket. The threads of the `relay` copy between the other end and the peer, each
//! for many connections (a `flow` each). A `fate` tells how a connection has ended. `name` reads the name in a client's certificate.
//!
//! # Invariants
//! - Bytes of a peer are bytes of the connection only after TLS has authenticated them. A stream that is cut off without `close_notify`
//!   is an error of the connection and never its end.
//! - A connection holds a bounded number of bytes, and none while nothing moves: the relay takes no more from one side than the other
//!   side takes.
//! - The number of threads does not grow with connections, and a peer that breaks the protocol costs its own connection.
//! - Nothing shows a key: not `Debug`, and no error.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]
#![deny(clippy::cast_precision_loss)]
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]

mod client;
mod fate;
mod files;
mod flow;
mod handshake;
#[cfg(feature = "serve")]
mod name;
mod relay;
mod server;
mod socket;
mod tunnel;

pub(crate) use client::{ClientTerms, ClientTls};
#[cfg(feature = "serve")]
pub(crate) use fate::Fate;
pub(crate) use handshake::{Failure, Refused};
pub use server::ServerTls;
