//! TLS of the NBD server and of NBD sources: with real clients and servers, and with hostile ones.
//!
//! Needs the programs that `.ci/run` installs; a missing one fails the test that needs it.

mod clients;
mod hostile;
mod pki;
mod sources;
mod stage;
mod streams;
