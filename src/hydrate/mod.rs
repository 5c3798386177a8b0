//! Hydration: making a root layer independent of its source. The one place where near meets far.
//!
//! The cast: a [`Hydrator`] stands for one root layer and its source. It assembles [`Parts`](parts::Parts), each of which owns its lock:
//! the [`Root`](root::Root) takes fetched bytes, [`Claims`](claims::Claims) make sure that a block is fetched once,
//! [`Addresses`](addresses::Addresses) are the sources of the bytes. [`demand`] is the loop of a waiting reader; [`backfill`] fetches the
//! other blocks on the threads of a [`Crew`], and [`fills`] stores them; [`pace`] limits the rate of backfill, by a [`Budget`] that all
//! hydrations of a store share.
//!
//! # Invariants
//! - A fill changes no meaning: it only makes present (or zero) what was missing.
//! - A range is under way at most once (single flight); others that want a part of it wait for it.
//! - Losing every address fails only the readers of missing blocks. Backfill retries with growing pauses.
//! - Bytes that do not match the checksums of their source are never stored.
//! - A share of a common resource (a claim, a place among the readers, bytes of a window, a place in the budget) is held by a guard that
//!   gives it back when dropped, so that an error or a panic costs one request.
//! - No wait depends on a source alone: [`Hydrator::stop`] and [`Hydrator::give_up_waiting`] end every wait, whatever the source does. A
//!   thread that calls into a source, which may hang, touches nothing else.
//! - A step of backfill never blocks: blocking work is an errand on another thread, and its end is a message.
#![cfg_attr(not(test), deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless))]
#![cfg_attr(not(test), deny(clippy::cast_precision_loss))]
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]

mod addresses;
mod backfill;
mod claims;
mod connect;
mod cover;
mod crew;
mod demand;
mod fills;
mod health;
mod hydrator;
mod life;
mod news;
mod pace;
mod parts;
mod peers;
mod progress;
#[cfg(all(test, feature = "sim"))]
mod proof;
mod root;
#[cfg(test)]
mod tests;

pub use crew::Crew;
pub use hydrator::{Hydrator, HydratorConfig};
pub use pace::Budget;
pub use progress::{FetchedBytes, HydratorStatus, Progress, SourceInfo};
