//! Named, sized heads and what can be done with them.
//!
//! The cast: a `Core` is what the volumes of a store share; a `Head` is one open volume, with its view of the chain and its gate; [`Volume`] and [`Snapshot`] are the handles that users hold; a [`Queue`] takes many requests at once.
#![deny(clippy::wildcard_enum_match_arm)]
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]

mod births;
mod core;
mod count;
mod describe;
mod destroy;
mod errands;
mod event;
mod fence;
mod gate;
mod handle;
mod head;
mod holdings;
mod info;
mod leases;
mod lessees;
mod merge;
mod naming;
mod partial;
mod pins;
#[cfg(all(test, feature = "sim"))]
mod proof;
mod queue;
mod reclaim;
mod request;
mod resize;
mod room;
mod runs;
mod shape;
mod steer;
mod tally;
mod trace;
mod view;
mod viewers;

pub(crate) use self::core::{Core, CoreConfig};
pub(crate) use births::Announced;
pub use event::{EVENTS_MAX, Event, EventKind, OnEvent};
pub use handle::{Snapshot, Volume};
pub(crate) use head::Head;
pub use holdings::Holding;
pub use info::{
    BlockCounts, FetchedBytes, HydrationInfo, HydrationPriority, HydrationState, LeaseInfo, SnapshotInfo, SourceInfo, VolumeInfo,
    VolumeState,
};
pub use queue::Queue;
pub use request::{Completion, Request, Run, RunKind};
pub use room::{IMAGE_LABEL, LAYERS_OF_LABEL, RoomInfo};
pub use shape::{Admit, ForkOptions};
pub use trace::TraceInfo;
pub(crate) use viewers::Viewers;
