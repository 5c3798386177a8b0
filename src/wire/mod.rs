//! NBD messages, stated once for client and server.
pub mod constants;
