//! Hydration: making a root layer independent of its source. The one place where near meets far.
//!
//! The cast: a [`Hydrator`] stands for one root layer and its source. It assembles [`Parts`](parts::Parts), each of which owns its lock:
//! the [`Root`](root::Root) takes fetched bytes, [`Claims`](claims::Claims) make sure that a block is fetched once,
//! [`Addresses`](addresses::Addresses) are where the bytes can be had. [`demand`] is what a reader does that waits; [`backfill`] fetches
//! what nobody waits for, on the threads of a [`Crew`], and [`fills`] stores it; [`pace`] says how fast that may be, with a [`Budget`]
//! that all hydrations of a store share.
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
//! - A step of backfill waits for nothing: what may take long is an errand on another thread, and its end is a message.
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
