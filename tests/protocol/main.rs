//! The replies of the server in each form of the protocol, and the bounds on what clients cost it.
//!
//! - `options`: the negotiation of an export.
//! - `commands`: requests and the layout of their replies.
//! - `limits`: limits of a volume's clients.
//! - `memory`: memory of clients that do not read, or do not finish a request.
//! - `mangled`: every message cut, changed, repeated and slow.
mod client;
mod commands;
mod limits;
mod mangled;
mod memory;
mod options;
