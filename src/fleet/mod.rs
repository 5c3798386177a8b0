//! Many hosts: what each of them has and what is reserved on it, in a directory or a bucket that all of them reach.
//!
//! There is no server and no cluster. Hosts report what they have ([`Publisher`]); schedulers read all of it ([`SharedFleet::load`]),
//! rank by [`placement`](crate::placement), and write down what they decided ([`SharedFleet::place`]).
//!
//! # Nobody oversells
//! An assignment counts from the moment it is reserved until its host lists it under `assignments` and counts it under `used`. For
//! each zone there is one object with the reservations of its hosts. A scheduler reads that object, then the inventories of the
//! zone, decides from these alone, and writes the object back on condition that it was not changed. In this order no assignment can
//! slip between both: a scheduler that took it out of the object saw it in the inventory before, and inventories only get newer.
//!
//! A host takes what it reports out of the reservations itself, after the report; schedulers do the same with what they find there.
//!
//! A host that makes a volume takes the reservation in the same way, or makes one ([`SharedFleet::admit`]): that it is good for the
//! volume is decided there, and its end is put off until a host that has not reported the volume would count as dead. What a process
//! that died has left is given back after the first report of the next one ([`SharedFleet::give_back_own`]).
//!
//! It holds as long as clocks agree, which [`SharedFleet::check_clock`] finds out, and for volumes that are admitted at all.
//!
//! # Signs of life
//! A host says how often it reports, and does so when nothing is new. One that misses three reports is dead
//! ([`HostInventory::is_stale`](crate::placement::HostInventory::is_stale)). What was wiped is written again with the next report.
//!
//! # Untrusted bytes
//! Objects are bounded in size. One that is not what it should be takes its host, or the hosts of its zone, out of the fleet, is
//! named, and harms no other.
//!
//! # Blocking
//! Calls block, on a small runtime of their own: not to be called from tasks of an asynchronous runtime.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]
#![deny(clippy::cast_precision_loss)]
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]
mod admission;
mod book;
mod bucket;
mod facts;
mod layout;
mod publisher;
mod shared;
#[cfg(test)]
mod tests;

pub use admission::{Admitted, Birth};
pub use facts::HostFacts;
pub use publisher::{Published, Publisher};
pub use shared::{FleetView, SharedFleet, Unreadable};
