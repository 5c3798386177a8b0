//! What can be known about volumes and snapshots, in the words of the command line's JSON.

use std::collections::BTreeMap;

pub use crate::format::HydrationPriority;
pub use crate::hydrate::{FetchedBytes, SourceInfo};

/// Where a volume is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum VolumeState {
    /// On its way: its source has answered and is being forked, or it is being filled by an import.
    Creating,
    /// The source is being asked for its export.
    EnablingRemoteExport,
    /// Usable; blocks are still being fetched from the source.
    Hydrating,
    /// Complete and independent.
    Created,
    /// The source is lost; reads of missing blocks fail until it is back.
    Degraded,
}

/// Counts of blocks of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BlockCounts {
    /// Blocks with stored data.
    pub present: u64,
    /// Blocks that read as zero.
    pub zero: u64,
    /// Blocks that are still only at the source.
    pub missing: u64,
    /// Present blocks that only this volume can reach.
    pub unique: u64,
    /// Present blocks that other volumes or snapshots reach too.
    pub shared: u64,
}

/// What background replication does.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum HydrationState {
    /// There is no source, or it is not needed any more.
    #[default]
    None,
    /// Blocks are being fetched.
    Running,
    /// Stopped by `hydrate --pause`; demand reads still fetch.
    Paused,
    /// The source does not answer, or has not got what is missing; tried again with growing pauses.
    Degraded,
    /// There is no space for what is missing: nothing is fetched before there is.
    NoSpace,
    /// The store is not open in any process, so nothing is fetched. A store never says that of itself; the command line does.
    Stopped,
}

/// Progress of hydration.
#[derive(Default, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HydrationInfo {
    /// What background replication does.
    pub state: HydrationState,
    /// Bytes received from the source since the volume was opened here.
    pub bytes_fetched: u64,
    /// Bytes still only at the source.
    pub bytes_missing: u64,
    /// Bytes a second, over the last seconds; 0 unless it runs.
    pub rate_bytes_per_second: u64,
    /// Cap set by `hydrate --rate`.
    pub rate_limit_bytes_per_second: Option<u64>,
    /// When it is to be complete (`hydrate --deadline`), in seconds since the Unix epoch.
    pub deadline: Option<u64>,
    /// Share of what the hydrations of the store have together.
    pub priority: HydrationPriority,
    /// Bytes received, by reason.
    pub fetched: FetchedBytes,
    /// Where missing blocks can be had. Of a hydration that is over, where they were had, until the store is closed.
    pub sources: Vec<SourceInfo>,
    /// Reads that wait for the source now.
    #[cfg_attr(feature = "serde", serde(default))]
    pub readers_waiting: u64,
    /// Estimated seconds to the end, while it runs and there is a rate.
    pub eta_seconds: Option<u64>,
    /// The latest error of the source.
    pub last_error: Option<String>,
}

/// A lease that a fork of another host has of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LeaseInfo {
    /// The snapshot, within its volume.
    pub snapshot: String,
    /// Name of the fork, as its host tells it.
    pub fork: String,
    /// Name of the host, as it tells it.
    pub host: String,
    /// Where the host connected from: `HOST:PORT`, or `process NUMBER` on this machine.
    pub address: String,
    /// When the fork asked for it the last time, in seconds since the Unix epoch.
    pub renewed_at: u64,
    /// When it lapses unless it is renewed, in seconds since the Unix epoch.
    pub lapses_at: u64,
}

/// Everything `show` prints of a volume.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VolumeInfo {
    /// Identity among the volumes of all stores: `vol_` and 16 characters. It survives a rename, is never used twice, and is taken
    /// wherever a name is. Empty while the volume is on its way.
    pub id: String,
    /// Name.
    pub name: String,
    /// Where it is in its life.
    pub state: VolumeState,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Block size of the store in bytes.
    pub block_size: u32,
    /// Creation time in seconds since the Unix epoch.
    pub created_at: u64,
    /// Volume or snapshot it was forked from, as it was named then.
    pub parent: Option<String>,
    /// Address of the source, while there is one.
    pub source: Option<String>,
    /// The source was written while it was forked (`fork --live`): its blocks are of different instants.
    #[cfg_attr(feature = "serde", serde(default))]
    pub live_source: bool,
    /// Leases that forks of other hosts have of its snapshots.
    #[cfg_attr(feature = "serde", serde(default))]
    pub leases: Vec<LeaseInfo>,
    /// Layers in its chain, the open one included.
    pub depth: u64,
    /// Names of its snapshots, oldest first.
    pub snapshots: Vec<String>,
    /// What users note about it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub labels: BTreeMap<String, String>,
    /// Block counts.
    pub blocks: BlockCounts,
    /// Progress of hydration.
    pub hydration: HydrationInfo,
}

/// Everything `snapshots` prints of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SnapshotInfo {
    /// Volume it belongs to.
    pub volume: String,
    /// Name.
    pub name: String,
    /// Size of the volume when it was taken, in bytes.
    pub size_bytes: u64,
    /// Creation time in seconds since the Unix epoch.
    pub created_at: u64,
    /// Layers in its chain.
    pub depth: u64,
    /// Leases that forks of other hosts have of it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub leases: Vec<LeaseInfo>,
    /// Block counts.
    pub blocks: BlockCounts,
}
