//! Capacity that an assignment holds until its host has reported it.

use serde::{Deserialize, Serialize};

use super::inventory::Resources;
use crate::content::ImageLayer;

/// Blocks of a snapshot that a host will fetch because of an assignment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFetch {
    /// Identity of the snapshot.
    pub identity: String,
    /// Bytes to fetch before the machine is ready.
    pub bytes: u64,
}

/// An assignment that its host has not reported yet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reservation {
    /// Unique among all assignments.
    pub id: String,
    /// The host.
    pub host: String,
    /// Zone of the host, as it was when the decision was made; for the reader, since the fleet knows the zones of its hosts.
    pub zone: String,
    /// The application, or empty.
    pub app: String,
    /// Name of the volume.
    pub volume: String,
    /// Resources that it uses up.
    pub resources: Resources,
    /// Image layers that will be fetched because of it, with their bytes.
    pub layers: Vec<ImageLayer>,
    /// Blocks of a snapshot that will be fetched because of it.
    pub snapshot: Option<SnapshotFetch>,
    /// When it lapses, unless the host has reported it, in seconds since the Unix epoch.
    pub expires_at: u64,
}
