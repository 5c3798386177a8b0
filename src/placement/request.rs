//! Requests for a place.

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use super::inventory::{HeldSnapshot, Processors};
use crate::content::Image;

/// The machine that will use a volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Compute {
    /// Processors it needs, all of one kind; an empty kind means any one.
    pub cpus: Processors,
    /// Accelerators it needs.
    pub gpus: Option<Processors>,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// A snapshot that the new volume is forked from.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotNeed {
    /// Identity of its bytes.
    pub identity: String,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Size of the snapshot.
    pub size_bytes: u64,
    /// The blocks a machine reads before it is ready, from a recorded trace; `None`: all blocks that are not zero are unknown, so the
    /// whole size counts.
    pub first: Option<RoaringBitmap>,
    /// Bytes a second that the hosts with the snapshot can give this fork together.
    pub source_bandwidth: u64,
    /// The store that it comes from, if that is known: no host reports a volume that has no snapshot yet.
    pub origin: Option<SnapshotOrigin>,
}

/// The blocks of a snapshot that its store has at this moment, whatever its host reported.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotOrigin {
    /// Id of the store.
    pub store: String,
    /// Its blocks there.
    pub held: HeldSnapshot,
}

/// A volume and its machine, to be placed `count` times.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Names the request; part of the tie-break, so that equal requests spread and repeated ones agree.
    pub id: String,
    /// The application, or empty.
    pub app: String,
    /// Name of the volume.
    pub volume: String,
    /// Regions it may go to, the preferred one first; empty: any.
    pub regions: Vec<String>,
    /// Bytes of the volume.
    pub volume_bytes: u64,
    /// The machine, if there will be one.
    pub compute: Compute,
    /// What the machine starts from.
    pub image: Option<Image>,
    /// What the volume is forked from.
    pub snapshot: Option<SnapshotNeed>,
    /// No other volume of the same app and name may be in the zone.
    pub require_unique_zone: bool,
    /// No other volume of the same app may be in the zone.
    pub unique_zone_app_wide: bool,
    /// How many to place.
    pub count: u32,
}

impl Default for Request {
    /// One volume of no size without a machine, anywhere.
    fn default() -> Self {
        Self {
            id: String::new(),
            app: String::new(),
            volume: String::new(),
            regions: Vec::new(),
            volume_bytes: 0,
            compute: Compute::default(),
            image: None,
            snapshot: None,
            require_unique_zone: false,
            unique_zone_app_wide: false,
            count: 1,
        }
    }
}
