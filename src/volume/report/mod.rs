//! What can be told of volumes and snapshots.
//!
//! The cast: [`Report`] describes volumes and snapshots (`describe`), and what a store holds (`holdings`, `room`); the other files tell
//! of the bytes of one view.

mod changes;
mod checksums;
mod describe;
mod holdings;
mod info;
mod room;
mod runs;
mod tally;
mod viewers;

pub use changes::{changed_since, snapshots_below};
pub use checksums::content_checksums;
pub use describe::Report;
pub use holdings::Holding;
pub use info::{
    BlockCounts, FetchedBytes, HydrationInfo, HydrationPriority, HydrationState, LeaseInfo, SnapshotInfo, SourceInfo, VolumeInfo,
    VolumeLimits, VolumeState,
};
pub use room::{IMAGE_LABEL, LAYERS_OF_LABEL, RoomInfo};
pub use runs::{allocation, runs};
pub(crate) use viewers::Viewers;
