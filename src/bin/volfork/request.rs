//! What a command asks of an open store, and the answers. The same values work on a store of this process and cross the
//! control socket to the process that owns it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use volfork::serve::ClientInfo;
use volfork::store::{HydrationControl, ScrubReport};
use volfork::volume::{HydrationState, SnapshotInfo, TraceInfo, VolumeInfo};

use crate::failure::{Failure, Result};
use crate::origin::Origin;
use crate::target::{Growth, Target};
use crate::trace::Action;

/// One command. `Import` and `Export` come with a descriptor to read from or write to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// An empty volume; `force` makes it and a fork also where the host has no room for it.
    Create {
        name: String,
        size_bytes: u64,
        #[serde(default)]
        labels: BTreeMap<String, String>,
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
        #[serde(default)]
        force: bool,
    },
    /// What a fork of it would be made from.
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
    Trace { action: Action, target: Target },
    /// The end of the connections to a volume or snapshot.
    Disconnect { target: Target },
    /// Verify every stored block.
    Scrub { name: Option<String> },
    /// About container images.
    #[cfg(feature = "images")]
    Image(crate::image::ImageRequest),
}

impl Request {
    /// Whether the store may have something else afterwards.
    pub fn changes(&self) -> bool {
        !matches!(
            self,
            Self::Export { .. }
                | Self::List
                | Self::Show { .. }
                | Self::Snapshots { .. }
                | Self::Origin { .. }
                | Self::Trace { .. }
                | Self::Disconnect { .. }
                | Self::Scrub { .. }
        )
    }

    /// Whether a descriptor belongs to it.
    pub fn needs_file(&self) -> bool {
        matches!(self, Self::Import { .. } | Self::Export { .. })
    }
}

/// The answer to a [`Request`].
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
    /// What placement asks about a source.
    Origin(Origin),
    /// Bytes moved by `import` or `export`.
    Moved(Moved),
    /// Answer to `destroy`: what is gone.
    Destroyed(Target),
    /// Answer to `trace`, and of what.
    Trace(Target, TraceInfo),
    /// Answer to `disconnect`.
    Disconnected(Disconnected),
    /// Answer to `scrub`.
    Scrubbed(ScrubReport),
    /// About container images.
    #[cfg(feature = "images")]
    Image(crate::image::ImageResponse),
}

impl Response {
    /// The store was open for this answer only: what the answer says is running has stopped.
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
    /// How many.
    pub connections: usize,
}

/// What was done to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    /// It is new.
    Created,
    /// It is a new fork.
    Forked,
    /// It grew.
    Extended,
    /// It has another name.
    Renamed,
    /// Its replication was changed or awaited.
    Hydrated,
}

/// What an import or export moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// The volume or snapshot.
    pub name: String,
    /// Size of the image.
    pub size_bytes: u64,
    /// Bytes in blocks that are not all zero.
    pub data_bytes: u64,
    /// Time it took.
    pub seconds: f64,
}

/// What a [`Progress`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Blocks.
    Blocks,
}

/// How far long work has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What `done` and `total` count.
    pub unit: Unit,
    /// Done so far.
    pub done: u64,
    /// All there is, if that is known.
    pub total: Option<u64>,
    /// A sentence for the user, such as why nothing moves.
    pub note: Option<String>,
}

impl Progress {
    /// Progress in bytes.
    pub fn bytes(done: u64, total: Option<u64>) -> Self {
        Self { unit: Unit::Bytes, done, total, note: None }
    }
}

/// Hears of progress, and may end the work.
pub trait Watcher {
    /// Called several times a second during long work; an error ends the work, which is then undone.
    fn tell(&mut self, progress: Progress) -> Result<()>;
}

/// One line from the server to a client: any number of `Alive` and `Progress`, then one of the others.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The server lives; said when there is nothing else to say, so that nobody waits for one that was stopped.
    Alive,
    /// Work goes on.
    Progress(Progress),
    /// It is done.
    Done(Response),
    /// It failed.
    Failed(Failure),
}
