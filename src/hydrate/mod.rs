//! Hydration: making a root layer independent of its source. The one place where near meets far.
//!
//! The cast: a [`Hydrator`] stands for one root layer and its source, which may be had at several addresses (`peers`). *Demand*
//! is a reader that waits; *backfill* is a thread that fetches what nobody waits for, in the order of a `plan`: ahead of readers
//! that go on (`ahead`), then in the order in which an earlier fork touched its blocks, then the rest. Both go through the same
//! list of ranges under way, so a block is fetched once. A `Budget` is what all hydrations of a store share: the `window` of
//! bytes under way to each host, and the patience of the `foreground`.
//!
//! # Invariants
//! - A fill changes no meaning: it only makes present (or zero) what was missing.
//! - A range is under way at most once; whoever wants a part of it waits for it.
//! - Losing every address fails the readers of missing blocks, and nothing else; backfill tries again with growing pauses.
//! - Bytes that do not match what their source says of them are never stored.
//! - What is held of something shared (a claim, a count of readers, bytes of a window, a place among the hydrations of the store) is
//!   a guard that gives it back when it is dropped: an error or a panic on any way out costs one request.
//! - No wait depends on a source alone: [`Hydrator::stop`] and [`Hydrator::give_up_waiting`] end each, whether the source answers,
//!   closes, or does neither. Threads that ask what may never be answered touch nothing but the source.
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]

mod ahead;
mod backfill;
mod budget;
mod claim;
mod demand;
mod fill;
mod foreground;
mod hydrator;
mod pace;
mod peers;
mod plan;
mod progress;
mod questions;
#[cfg(test)]
mod tests;
mod wake;
mod window;
mod writes;

pub use budget::Budget;
pub use hydrator::{Hydrator, HydratorConfig};
pub use progress::{FetchedBytes, HydratorStatus, Progress, SourceInfo};
