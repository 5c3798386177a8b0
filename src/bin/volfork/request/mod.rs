//! Requests to an open store, and their answers. The same values serve a store that this process has open, and cross the control
//! socket to the process that owns the store.
#[cfg(feature = "images")]
pub mod image;
pub mod limits;
pub mod origin;
pub mod progress;
pub mod response;
pub mod size;
pub mod target;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use volfork::store::HydrationControl;
use volfork::volume::VolumeLimits;

#[cfg(feature = "images")]
use image::ImageRequest;
use limits::{LimitsChange, is_none};
use size::Growth;
use target::Target;

/// One command. `Import`, `Export` and `Replace` come with a descriptor to read from or write to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// An empty volume; `force` makes it and a fork also where the host has no room for it.
    Create {
        name: String,
        size_bytes: u64,
        #[serde(default)]
        labels: BTreeMap<String, String>,
        #[serde(default, skip_serializing_if = "is_none")]
        limits: VolumeLimits,
        #[serde(default)]
        force: bool,
    },
    /// A volume with the bytes of the descriptor; `raw` skips the test for image formats.
    Import {
        name: String,
        raw: bool,
        #[serde(default)]
        force: bool,
    },
    /// The bytes of a volume or snapshot into the descriptor.
    Export { target: Target },
    /// All volumes.
    List,
    /// One volume.
    Show { name: String },
    /// A new snapshot.
    Snapshot { volume: String, snapshot: String },
    /// The snapshots of a volume.
    Snapshots { volume: String },
    /// A new volume with the bytes of another one, of a snapshot, or of an export elsewhere; `labels` that differ from its source's.
    Fork {
        source: String,
        also: Vec<String>,
        name: String,
        #[serde(default)]
        labels: BTreeMap<String, Option<String>>,
        #[serde(default)]
        live: bool,
        #[serde(default)]
        size_bytes: Option<u64>,
        #[serde(default, skip_serializing_if = "is_none")]
        limits: VolumeLimits,
        #[serde(default)]
        force: bool,
    },
    /// The source that a fork of the target would have.
    Origin { target: Target },
    /// A larger size, of a volume that has so many bytes or was extended already.
    Extend {
        name: String,
        growth: Growth,
        #[serde(default)]
        from: Option<u64>,
        #[serde(default)]
        force: bool,
    },
    /// Other limits of its clients.
    Limit { name: String, change: LimitsChange },
    /// Another name.
    Rename { name: String, new: String },
    /// The end of a volume or snapshot; `recursive` includes a volume's snapshots, `force` what forks of other hosts need.
    Destroy {
        target: Target,
        recursive: bool,
        #[serde(default)]
        force: bool,
    },
    /// Look at, steer or await background replication.
    Hydrate {
        name: String,
        control: HydrationControl,
        wait: bool,
        #[serde(default)]
        timeout_seconds: Option<u64>,
    },
    /// Look at, forget or record what forks touch first.
    Trace { action: TraceAction, target: Target },
    /// The end of the connections to a volume or snapshot.
    Disconnect { target: Target },
    /// The end of the process that serves the store, for another one that is to go on with its sockets: it sends them through the
    /// descriptor first. `exposes`: the other one serves also those that other machines reach.
    Replace { exposes: bool },
    /// Verify every stored block.
    Scrub { name: Option<String> },
    /// About container images.
    #[cfg(feature = "images")]
    Image(ImageRequest),
}

impl Request {
    /// Whether the request may change the inventory of the host.
    pub fn changes(&self) -> bool {
        !matches!(
            self,
            Self::Export { .. }
                | Self::List
                | Self::Show { .. }
                | Self::Snapshots { .. }
                | Self::Origin { .. }
                | Self::Limit { .. }
                | Self::Trace { .. }
                | Self::Disconnect { .. }
                | Self::Replace { .. }
                | Self::Scrub { .. }
        )
    }

    /// Whether a descriptor comes with it.
    pub fn needs_file(&self) -> bool {
        matches!(self, Self::Import { .. } | Self::Export { .. } | Self::Replace { .. })
    }
}

/// An action on a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceAction {
    /// Show it.
    Show,
    /// Forget it.
    Drop,
    /// Record a fork.
    Record,
}
