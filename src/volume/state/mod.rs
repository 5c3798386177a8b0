//! What is in memory of a store's shape: the catalogue, and what stands beside it. Each part owns its lock.
//!
//! The cast: [`Shape`] owns the catalogue and changes it; [`Hydrations`] knows the hydrators; [`Leases`] are those that other hosts have
//! here, and [`Lessees`] those that this store has at other hosts.

mod arrivals;
mod births;
mod checkpoint;
mod freed;
mod hydrations;
mod leases;
mod lessees;
mod pins;
mod shape;

pub use births::{Announced, Coming};
pub use hydrations::Hydrations;
pub use leases::{Condemned, Leases, lapses_at, too_many};
pub use lessees::{Lessees, forks_by_root};
pub use pins::Pin;
pub use shape::{Shape, destroyed};
