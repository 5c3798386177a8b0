//! Demand: readers that wait for missing blocks.
//!
//! A read goes to the address with the shortest waits. A read that takes far longer than usual is also sent to a second address (hedging),
//! and the first answer counts. An address that fails, or sends damaged bytes twice, is passed over for the next one. A reader that waits
//! for a stalled backfill request asks another address. When no address can be reached, a reader retries until its patience is over;
//! readers that come soon after that fail at once.
//!
//! The cast: a [`Waiter`](waiters::Waiter) is one of the [`Waiters`]; `reader` is its loop, which runs a `fetch` for the ranges that it
//! claims.

mod fetch;
mod reader;
mod waiters;

pub use reader::{demand, read_through};
pub use waiters::Waiters;
