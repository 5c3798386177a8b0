//! The socket `STORE/control.sock`, by which commands reach the process that owns a store.
//!
//! A client sends one line, a [`Request`](crate::request::Request) as JSON, with the descriptor that belongs to it; the server answers
//! lines, each a [`Message`](message::Message). A client that closes the connection ends its request.
mod address;
mod client;
pub mod line;
mod message;
mod server;

pub use client::{ask, connect};
pub use server::ControlServer;

/// Longest request.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Longest answer: `list` of a large store.
const MESSAGE_BYTES_MAX: u64 = 512 << 20;
