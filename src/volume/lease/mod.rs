//! Leases that this store has at other hosts: asking for them, renewing them, giving them back.

mod borrowing;
mod errands;

pub use borrowing::{Asked, Borrowing};
