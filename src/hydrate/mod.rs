//! Hydration: making a root layer independent of its source. The one place where near meets far.
//!
//! The cast: a [`Hydrator`] stands for one root layer and its source. *Demand* is a reader that waits; *backfill* is a thread
//! that fetches what nobody waits for; both go through the same list of ranges under way, so a block is fetched once.
//!
//! # Invariants
//! - A fill changes no meaning: it only makes present (or zero) what was missing.
//! - A range is under way at most once; whoever wants a part of it waits for it.
//! - Losing the source fails the readers of missing blocks, and nothing else; backfill tries again with growing pauses.
mod backfill;
mod demand;
mod fill;
mod hydrator;
mod pace;
mod writes;

pub use hydrator::{Hydrator, HydratorConfig, HydratorStatus};
