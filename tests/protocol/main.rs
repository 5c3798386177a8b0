//! What the server says to clients, in each form of the protocol, and what clients can cost it.
//!
//! - `options`: before an export is agreed on.
//! - `commands`: requests and the form of their replies.
//! - `memory`: what clients hold that do not read, or do not end what they begin.
//! - `mangled`: every message cut, changed, repeated and slow.
mod client;
mod commands;
mod mangled;
mod memory;
mod options;
