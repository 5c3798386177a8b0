//! Readers that wait for missing blocks.
//!
//! A read goes to the quickest address; one that takes far longer than usual is sent to a second address as well, and the first
//! answer counts. An address that fails, or sends damaged bytes twice, is passed over for the next one. A reader that waits for bulk
//! that brings nothing does not wait for its end, but asks another address. When addresses cannot be reached, a reader asks again until
//! its patience is over; those that come soon after that are told of the loss at once.
//!
//! The cast: a [`Waiter`](waiters::Waiter) is one of the [`Waiters`]; `reader` is what it does, by a `fetch` for what it claims.

mod fetch;
mod reader;
mod waiters;

pub use reader::{demand, read_through};
pub use waiters::Waiters;
