//! Where a machine would start soonest: hosts with their inventories, requests, and a ranking that explains itself.
//!
//! Pure: no I/O, no clock, no randomness. The caller brings inventories (from a directory, a bucket, a cluster of its own) and the
//! time; equal input gives equal output, whatever the order in which hosts were added.
//!
//! A decision has two steps. First the hard constraints: host status, fresh inventory, region, processors, memory, volume room,
//! unique zones. Nothing overrides them. Then one cost for each host that is left: *seconds until the machine can start*.
mod inventory;
mod request;

pub use inventory::{Bandwidth, HeldSnapshot, HostInventory, HostStatus, InFlight, InventoryDelta, PlacedVolume, Processors, Resources};
pub use request::{Compute, Request, SnapshotNeed};
