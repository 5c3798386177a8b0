//! The answers to requests.

use serde::{Deserialize, Serialize};
use volfork::serve::ClientInfo;
use volfork::store::ScrubReport;
use volfork::volume::{HydrationState, SnapshotInfo, TraceInfo, VolumeInfo};

#[cfg(feature = "images")]
use super::image::ImageResponse;
use super::origin::Origin;
use super::target::Target;

/// The answer to a [`Request`](super::Request).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// Answer to `show`.
    Shown(Box<Shown>),
    /// A volume, and what was done to it.
    Volume(Done, Box<VolumeInfo>),
    /// A new snapshot.
    Snapshot(SnapshotInfo),
    /// Answer to `list`.
    Volumes(Vec<VolumeInfo>),
    /// Answer to `snapshots`.
    Snapshots(Vec<SnapshotInfo>),
    /// Answer to `origin`.
    Origin(Origin),
    /// Bytes moved by `import` or `export`.
    Moved(Moved),
    /// Answer to `destroy`: the target.
    Destroyed(Target),
    /// Answer to `trace`, and of what.
    Trace(Target, TraceInfo),
    /// Answer to `disconnect`.
    Disconnected(Disconnected),
    /// Answer to `replace`: all sockets were sent, and the process is about to end.
    Replaced,
    /// Answer to `scrub`.
    Scrubbed(ScrubReport),
    /// About container images.
    #[cfg(feature = "images")]
    Image(ImageResponse),
}

impl Response {
    /// Corrects the answer of a store that was open only for it: its hydrations have stopped.
    pub fn say_stopped(&mut self) {
        let volumes = match self {
            Self::Volume(_, info) => std::slice::from_mut(&mut **info),
            Self::Shown(shown) => std::slice::from_mut(&mut shown.info),
            Self::Volumes(list) => list,
            _ => return,
        };
        for info in volumes.iter_mut().filter(|info| info.hydration.state == HydrationState::Running) {
            info.hydration.state = HydrationState::Stopped;
            (info.hydration.rate_bytes_per_second, info.hydration.eta_seconds) = (0, None);
        }
    }
}

/// A volume and its clients.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shown {
    /// The volume.
    #[serde(flatten)]
    pub info: VolumeInfo,
    /// Connections to it and to its snapshots, if it is served.
    #[serde(default)]
    pub connections: Vec<ClientInfo>,
}

/// How many connections were ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disconnected {
    /// `NAME` or `NAME@SNAP`.
    pub name: String,
    /// Number of connections that were ended.
    pub connections: usize,
}

/// The change that a command made to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    /// The volume was created by this request.
    Created,
    /// It is a new fork.
    Forked,
    /// It grew.
    Extended,
    /// It has other limits.
    Limited,
    /// It has another name.
    Renamed,
    /// Its replication was changed or awaited.
    Hydrated,
}

/// Result of an import or export.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// `NAME` or `NAME@SNAP`.
    pub name: String,
    /// Bytes of the image, holes included.
    pub size_bytes: u64,
    /// Bytes in blocks that are not all zero.
    pub data_bytes: u64,
    /// Seconds that it took.
    pub seconds: f64,
}
