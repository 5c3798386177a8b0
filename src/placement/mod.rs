//! Where a machine would start soonest: hosts with their inventories, requests, and a ranking that explains itself.
//!
//! Pure: no I/O, no clock, no randomness. The caller brings inventories (from a directory, a bucket, a cluster of its own) and the
//! time; equal input gives equal output, whatever the order in which hosts were added.
//!
//! A decision has two steps. First the hard constraints: host status, fresh inventory, region, processors, memory, volume room,
//! unique zones. Nothing overrides them. Then one cost for each host that is left: *seconds until the machine can start*.
//!
//! # The cost
//!
//! The terms of the default policy, [`Policy::StartTime`], all in seconds; the weights are in [`Weights`]:
//!
//! | term | is |
//! |---|---|
//! | fetch | image layers that are not there, each once, over the slower of download and registry; blocks needed first of a snapshot over the slower of download and source; both together over download; the longest of the three. Of a layer that is on its way, only what is still to come counts |
//! | load | what other fetches that the host has reported take away meanwhile: links are shared evenly |
//! | herd | the same for assignments that the host has not reported, and a constant for each of them |
//! | headroom | fullness of the scarcest resource with the request on the host |
//! | spread | volumes of the same app in the zone |
//!
//! Preferred regions come before all that: a host in an earlier region is always before one in a later region, so a request goes to
//! the first region with room. Hosts of equal cost are ordered by a hash of the names of request and host (FNV-1a of each, mixed by
//! the finalizer of SplitMix64), so that equal requests spread and repeated ones agree.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]
#![deny(clippy::cast_precision_loss)]
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]

mod amounts;
mod apps;
mod decision;
mod delta;
mod fleet;
mod hints;
mod index;
mod inventory;
mod need;
mod order;
mod policy;
mod presence;
mod ranking;
mod request;
mod reservation;
mod rows;
mod scores;
mod starts;
mod summary;
mod survey;

pub use fleet::{Fleet, FleetOptions};
pub use hints::{MachineHints, RESERVATION_LABEL};
pub use inventory::{Bandwidth, HeldSnapshot, HostInventory, HostStatus, InFlight, InventoryDelta, PlacedVolume, Processors, Resources};
pub use order::Order;
pub use policy::{Policy, Weights};
pub use ranking::{Constraint, Excluded, Nothing, PLACEMENTS_MAX, Placed, Placement, Ranked, Ranking, Terms};
pub use request::{Compute, Request, SnapshotNeed, SnapshotOrigin};
pub use reservation::{Reservation, SnapshotFetch};
pub use scores::{image_locality, layer_score};
pub use starts::{StartSummary, StartTimes, StartsSummary, TimeSummary};
pub use summary::{HostSummary, shortlist};
