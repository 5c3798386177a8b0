//! What can be known about volumes and snapshots, in the words of the command line's JSON.

use std::collections::BTreeMap;

pub use crate::format::{HydrationPriority, VolumeLimits};
pub use crate::hydrate::{FetchedBytes, SourceInfo};

/// State of a volume in its life cycle.
///
/// ```
/// use volfork::volume::VolumeState;
///
/// /// Whether every byte of a volume can be read, whatever becomes of its source.
/// fn is_independent(state: VolumeState) -> bool {
///     match state {
///         VolumeState::Created => true,
///         // Missing blocks come from the source, or cannot be read until it is back. Writes work.
///         VolumeState::Hydrating | VolumeState::Degraded => false,
///         // It is not there yet.
///         VolumeState::Creating | VolumeState::EnablingRemoteExport => false,
///         _ => false,
///     }
/// }
/// assert!(is_independent(VolumeState::Created) && !is_independent(VolumeState::Degraded));
/// ```
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
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// let volume = store.create_volume("v", 1 << 20)?;
/// volume.write_at(&[1; 3 * 4096], 0)?;
/// let fork = volume.fork("w")?;
/// fork.write_at(&[2; 4096], 0)?;
/// // Of 256 blocks of 4 KiB: its own first block, and two that it shares with its parent.
/// let blocks = store.show("w")?.blocks;
/// assert_eq!((blocks.present, blocks.zero, blocks.missing), (3, 253, 0));
/// assert_eq!((blocks.unique, blocks.shared), (1, 2));
/// # Ok(())
/// # }
/// ```
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
///
/// ```
/// use volfork::volume::HydrationState;
///
/// /// What an operator can do about a hydration.
/// fn advice(state: HydrationState) -> Option<&'static str> {
///     match state {
///         HydrationState::None | HydrationState::Running => None,
///         HydrationState::Paused => Some("resume it"),
///         HydrationState::Degraded => Some("bring the source back, or add another address of the same bytes"),
///         HydrationState::NoSpace => Some("free space on the file system of the store"),
///         HydrationState::Stopped => Some("open the store"),
///         _ => Some("look at the last error"),
///     }
/// }
/// assert_eq!(advice(HydrationState::default()), None);
/// ```
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
    /// Stopped by [`crate::store::HydrationControl::paused`]; reads of missing blocks still fetch.
    Paused,
    /// The source does not answer, or has not got what is missing; tried again with growing pauses.
    Degraded,
    /// There is no space for what is missing: nothing is fetched before there is.
    NoSpace,
    /// The store is not open in any process, so nothing is fetched. A store never says that of itself; the command line does.
    Stopped,
}

/// Progress of hydration.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let image = directory.path().join("image");
/// # std::fs::write(&image, vec![7; 1 << 20]).unwrap();
/// # let options = volfork::StoreOptions::default().with_sources(std::sync::Arc::new(volfork::source::UriSources::default()));
/// # let store = volfork::Store::create(directory.path().join("store"), options)?;
/// # let address = format!("file://{}", image.display());
/// use std::time::Duration;
/// use volfork::volume::HydrationState;
///
/// let fork = store.fork(&address, "machine")?;
/// assert!(fork.wait_hydrated(Duration::from_secs(60))?);
///
/// let hydration = fork.info()?.hydration;
/// assert_eq!((hydration.state, hydration.bytes_missing), (HydrationState::None, 0));
/// // 1 MiB came, or more if some of it was asked for twice; its address is known as long as the store is open.
/// assert!(hydration.bytes_fetched >= 1 << 20);
/// assert_eq!(hydration.sources[0].uri, address);
/// # Ok(())
/// # }
/// ```
#[derive(Default, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HydrationInfo {
    /// What background replication does now.
    pub state: HydrationState,
    /// Bytes received from the source since the volume was opened here.
    pub bytes_fetched: u64,
    /// Bytes still only at the source.
    pub bytes_missing: u64,
    /// Rate of the last seconds in bytes a second; 0 unless hydration runs.
    pub rate_bytes_per_second: u64,
    /// Cap that was set by [`crate::store::HydrationControl::rate_bytes_per_second`].
    pub rate_limit_bytes_per_second: Option<u64>,
    /// When it is to be complete ([`crate::store::HydrationControl::deadline_seconds`]), in seconds since the Unix epoch.
    pub deadline: Option<u64>,
    /// Share of what the hydrations of the store have together.
    pub priority: HydrationPriority,
    /// Bytes received, by the reason for which they were asked for.
    pub fetched: FetchedBytes,
    /// Where missing blocks can be had. Of a hydration that is over, where they were had, until the store is closed.
    pub sources: Vec<SourceInfo>,
    /// Reads that wait for the source now.
    #[cfg_attr(feature = "serde", serde(default))]
    pub readers_waiting: u64,
    /// Estimated seconds to the end, while it runs and there is a rate.
    pub eta_seconds: Option<u64>,
    /// The latest error of a source; `None` if there was none.
    pub last_error: Option<String>,
}

/// A lease that a fork of another host has of a snapshot.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::LeaseId;
/// use volfork::source::{LeaseAction, LeaseRequest};
///
/// store.create_volume("base", 1 << 20)?.create_snapshot("v1")?;
/// // What the fork of another host asks over NBD.
/// let (fork, host) = ("machine".to_owned(), "b".to_owned());
/// let request = LeaseRequest { action: LeaseAction::Take, id: LeaseId::random()?, fork, host, identity: String::new() };
/// store.lease(("base", Some("v1")), &request, "10.0.0.2:50000")?;
///
/// let lease = &store.show("base")?.leases[0];
/// assert_eq!((lease.snapshot.as_str(), lease.fork.as_str(), lease.host.as_str()), ("v1", "machine", "b"));
/// // A week in seconds, by default.
/// assert_eq!(lease.lapses_at - lease.renewed_at, 7 * 86_400);
/// # Ok(())
/// # }
/// ```
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

/// Everything that a store tells of a volume ([`crate::Store::show`], [`crate::Volume::info`]).
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// use volfork::volume::VolumeState;
///
/// store.create_volume("base", 1 << 30)?.create_snapshot("v1")?;
/// store.fork("base@v1", "machine")?;
///
/// let info = store.show("machine")?;
/// assert_eq!((info.state, info.size_bytes, info.block_size), (VolumeState::Created, 1 << 30, 4096));
/// assert_eq!(info.parent.as_deref(), Some("base@v1"));
/// // Its own open layer, and the sealed one of the snapshot.
/// assert_eq!(info.depth, 2);
/// assert_eq!(store.show(&info.id)?.name, "machine");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VolumeInfo {
    /// Identity among the volumes of all stores: `vol_` and 16 characters. It survives a rename, is never used twice, and is taken
    /// wherever a name is. Empty while the volume is on its way.
    pub id: String,
    /// Name, unique in the store.
    pub name: String,
    /// Where it is in its life.
    pub state: VolumeState,
    /// Size in bytes that readers and clients see.
    pub size_bytes: u64,
    /// Block size of the store in bytes.
    pub block_size: u32,
    /// Creation time in seconds since the Unix epoch.
    pub created_at: u64,
    /// Volume or snapshot it was forked from, as it was named then.
    pub parent: Option<String>,
    /// Address of the source; `None` once the volume is independent of it.
    pub source: Option<String>,
    /// The source was written while it was forked ([`crate::volume::ForkOptions::live`]): its blocks are of different instants.
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
    /// Limits of its clients.
    #[cfg_attr(feature = "serde", serde(default))]
    pub limits: VolumeLimits,
    /// Its blocks by where they are.
    pub blocks: BlockCounts,
    /// Progress of hydration.
    pub hydration: HydrationInfo,
}

/// Everything that a store tells of a snapshot ([`crate::Store::snapshots`]).
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// let volume = store.create_volume("web", 1 << 20)?;
/// volume.write_at(&[1; 4096], 0)?;
/// volume.create_snapshot("v1")?;
/// volume.resize(1 << 21, false)?;
///
/// let snapshots = store.snapshots("web")?;
/// assert_eq!((snapshots[0].volume.as_str(), snapshots[0].name.as_str()), ("web", "v1"));
/// // The size is that of the moment when it was taken.
/// assert_eq!((snapshots[0].size_bytes, snapshots[0].blocks.present), (1 << 20, 1));
/// assert!(snapshots[0].leases.is_empty(), "no fork of another host needs it");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SnapshotInfo {
    /// Volume it belongs to.
    pub volume: String,
    /// Name, unique within the volume.
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
    /// Its blocks by where they are.
    pub blocks: BlockCounts,
}
