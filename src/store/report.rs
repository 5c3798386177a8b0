//! What scrub, check and hydration control say and take.

use std::collections::BTreeMap;

use crate::options::with_methods;
use crate::volume::HydrationPriority;

/// How far a scrub has come, for progress bars.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ScrubProgress {
    /// Blocks verified so far.
    pub blocks_verified: u64,
    /// Blocks to verify in all.
    pub blocks_total: u64,
    /// The volumes and snapshots in which damage was found that could not be repaired.
    pub damage: Option<String>,
}

/// Damaged blocks that a volume or snapshot shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AffectedBlocks {
    /// They could not be repaired.
    pub blocks_damaged: u64,
    /// They were fetched again from a source.
    pub blocks_repaired: u64,
}

/// What a scrub found.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ScrubReport {
    /// Blocks read and verified.
    pub blocks_verified: u64,
    /// Damaged blocks that were fetched again from a source.
    pub blocks_repaired: u64,
    /// Damaged blocks that could not be repaired.
    #[cfg_attr(feature = "serde", serde(default))]
    pub blocks_damaged: u64,
    /// One sentence for each damaged block that could not be repaired, up to 1000 of them.
    pub errors: Vec<String>,
    /// What shows damaged blocks: `volume 'NAME'` or `snapshot 'NAME@SNAP'`. A block that several of them share counts for each.
    #[cfg_attr(feature = "serde", serde(default))]
    pub affected: BTreeMap<String, AffectedBlocks>,
}

/// What `check` found in a closed store.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CheckReport {
    /// Volumes in the store.
    pub volumes: u64,
    /// Snapshots in the store.
    pub snapshots: u64,
    /// Layers in the store.
    pub layers: u64,
    /// One sentence for each violation.
    pub violations: Vec<String>,
}

/// What `hydrate` changes.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct HydrationControl {
    /// Pause (`true`) or resume (`false`) background replication.
    pub paused: Option<bool>,
    /// Cap in bytes a second; `Some(0)` removes it.
    pub rate_bytes_per_second: Option<u64>,
    /// Be complete in so many seconds from now; `Some(0)` removes the deadline.
    pub deadline_seconds: Option<u64>,
    /// Share of what the hydrations of the store have together.
    pub priority: Option<HydrationPriority>,
    /// Further addresses that have the same bytes.
    pub add_sources: Vec<String>,
    /// Addresses that are not to be used any more.
    pub remove_sources: Vec<String>,
}

with_methods! { HydrationControl:
    with_paused(paused: Some<bool>);
    with_rate_bytes_per_second(rate_bytes_per_second: Some<u64>);
    with_deadline_seconds(deadline_seconds: Some<u64>);
    with_priority(priority: Some<HydrationPriority>);
    with_add_sources(add_sources: Vec<String>);
    with_remove_sources(remove_sources: Vec<String>);
}
