//! Named, sized heads and what can be done with them.
//!
//! The cast: [`Volume`] and [`Snapshot`] are the handles that users hold; a `Head` is one open volume, with its view of the chain and its
//! gate; a [`Queue`] takes many requests at once. `Core` assembles what the volumes of a store share, from the bottom up:
//!
//! - `state`: the catalogue, and what is in memory beside it;
//! - `blocks`: which layer answers for a block, and its bytes;
//! - `hydration` and `lease`: what comes from other hosts, and what keeps it there;
//! - `report`: what can be told of volumes;
//! - `shape`: create, fork, snapshot, alter, destroy.
#![deny(clippy::wildcard_enum_match_arm)]
#![cfg_attr(not(test), deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless))]
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]

mod blocks;
mod core;
mod event;
mod fence;
mod foreground;
#[cfg(feature = "futures")]
mod futures;
mod gate;
mod handle;
mod head;
mod hydration;
mod identity;
mod lease;
mod life;
#[cfg(feature = "serve")]
mod limiter;
mod partial;
mod pool;
#[cfg(all(test, feature = "sim"))]
mod proof;
mod queue;
mod report;
mod request;
mod shape;
mod snapshot;
mod state;
mod walk;

pub(crate) use self::core::{Core, CoreConfig};
pub use event::{EVENTS_MAX, Event, EventKind, OnEvent};
#[cfg(feature = "futures")]
pub use futures::{AsyncQueue, RequestFuture};
pub use handle::{Snapshot, Volume};
pub(crate) use head::Head;
pub use hydration::TraceInfo;
#[cfg(feature = "serve")]
pub(crate) use limiter::{Limiter, Turn};
pub use queue::Queue;
pub(crate) use report::Viewers;
pub use report::{
    BlockCounts, FetchedBytes, Holding, HydrationInfo, HydrationPriority, HydrationState, IMAGE_LABEL, LAYERS_OF_LABEL, LeaseInfo,
    RoomInfo, SnapshotInfo, SourceInfo, VolumeInfo, VolumeLimits, VolumeState,
};
pub use request::{Completion, Request, Run, RunKind};
pub use shape::{Admit, ForkOptions, ForkSource, VolumeOptions};
pub(crate) use shape::{Difference, LocalSource};
pub(crate) use state::Announced;
pub use walk::{ChangeIter, RunIter};
