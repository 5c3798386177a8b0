//! Requests for a place.

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use super::inventory::{HeldSnapshot, Processors};
use crate::content::Image;

/// The machine that will use a volume.
///
/// ```
/// # use volfork::placement;
/// # fn host(name: &str, cpus: u32) -> placement::HostInventory {
/// #     let cpus = [("shared".to_owned(), cpus)].into();
/// #     let capacity = placement::Resources { cpus, memory_bytes: 64 << 30, volume_bytes: 1 << 40, ..Default::default() };
/// #     let (host, region, zone) = (name.to_owned(), "ams".to_owned(), name.to_owned());
/// #     placement::HostInventory { host, region, zone, capacity, reported_at: 1_000, ..Default::default() }
/// # }
/// # fn machine(id: &str, cpus: u32) -> placement::Request {
/// #     let compute = placement::Compute { cpus: placement::Processors { kind: String::new(), count: cpus }, ..Default::default() };
/// #     placement::Request { id: id.into(), volume: id.into(), volume_bytes: 1 << 30, compute, ..Default::default() }
/// # }
/// use volfork::placement::{Compute, Constraint, Fleet, Policy, Processors, Request};
///
/// let compute = Compute {
///     // Two processors of any one kind.
///     cpus: Processors { kind: String::new(), count: 2 },
///     gpus: Some(Processors { kind: "a100".into(), count: 1 }),
///     memory_bytes: 32 << 30,
/// };
/// let mut fleet = Fleet::new();
/// fleet.report(host("a", 8)); // Without accelerators.
/// let ranking = fleet.rank(&Request { compute, ..machine("m", 2) }, &Policy::default(), 1_000);
/// assert_eq!(ranking.excluded[0].constraint, Constraint::Gpus);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Compute {
    /// Processors it needs, all of one kind; an empty kind means any one.
    pub cpus: Processors,
    /// Accelerators it needs; `None`: none.
    pub gpus: Option<Processors>,
    /// Bytes of main memory.
    pub memory_bytes: u64,
}

/// A snapshot that the new volume is forked from.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = volfork::Store::create(directory.path(), volfork::StoreOptions::default())?;
/// # let volume = store.create_volume("base", 1 << 20)?;
/// # volume.create_snapshot("v1")?;
/// use volfork::placement::SnapshotNeed;
///
/// let snapshot = store.snapshot("base", "v1")?;
/// let need = SnapshotNeed {
///     identity: snapshot.identity(),
///     block_bytes: snapshot.block_bytes(),
///     size_bytes: snapshot.size_bytes(),
///     // What forks touched first, if that was recorded; otherwise the whole size counts.
///     first: store.holdings()[&snapshot.identity()].first.clone(),
///     source_bandwidth: 125_000_000,
///     origin: None,
/// };
/// assert_eq!((need.first, need.size_bytes), (None, 1 << 20));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotNeed {
    /// Identity of its bytes ([`crate::source::Source::identity`]): equal ones have equal bytes.
    pub identity: String,
    /// Bytes of a block, which `first` counts in.
    pub block_bytes: u32,
    /// Bytes of the whole snapshot.
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
///
/// ```
/// # use volfork::placement;
/// # fn host(name: &str, cpus: u32) -> placement::HostInventory {
/// #     let cpus = [("shared".to_owned(), cpus)].into();
/// #     let capacity = placement::Resources { cpus, memory_bytes: 64 << 30, volume_bytes: 1 << 40, ..Default::default() };
/// #     let (host, region, zone) = (name.to_owned(), "ams".to_owned(), name.to_owned());
/// #     placement::HostInventory { host, region, zone, capacity, reported_at: 1_000, ..Default::default() }
/// # }
/// # fn machine(id: &str, cpus: u32) -> placement::Request {
/// #     let compute = placement::Compute { cpus: placement::Processors { kind: String::new(), count: cpus }, ..Default::default() };
/// #     placement::Request { id: id.into(), volume: id.into(), volume_bytes: 1 << 30, compute, ..Default::default() }
/// # }
/// use volfork::placement::{Fleet, HeldSnapshot, HostInventory, Policy, SnapshotNeed, SnapshotOrigin};
///
/// let mut fleet = Fleet::new();
/// fleet.report(HostInventory { store: "5f".into(), ..host("near", 8) });
/// fleet.report(host("far", 8));
/// // A snapshot that was taken just now: its host has not reported it yet.
/// let held = HeldSnapshot { block_bytes: 4096, size_bytes: 1 << 30, present: None };
/// let origin = Some(SnapshotOrigin { store: "5f".into(), held });
/// let (identity, block_bytes, size_bytes) = ("5f/12".to_owned(), 4096, 1 << 30);
/// let need = SnapshotNeed { identity, block_bytes, size_bytes, first: None, source_bandwidth: 125_000_000, origin };
/// let request = volfork::placement::Request { snapshot: Some(need), ..machine("m", 4) };
/// let ranking = fleet.rank(&request, &Policy::default(), 1_000);
/// assert_eq!((ranking.hosts[0].host.as_str(), ranking.hosts[0].terms.fetch_seconds), ("near", 0.0));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotOrigin {
    /// Id of the store that has the snapshot.
    pub store: String,
    /// Blocks of the snapshot that this store has fetched or made itself.
    pub held: HeldSnapshot,
}

/// A volume and its machine, to be placed `count` times.
///
/// ```
/// # use volfork::placement;
/// # fn host(name: &str, cpus: u32) -> placement::HostInventory {
/// #     let cpus = [("shared".to_owned(), cpus)].into();
/// #     let capacity = placement::Resources { cpus, memory_bytes: 64 << 30, volume_bytes: 1 << 40, ..Default::default() };
/// #     let (host, region, zone) = (name.to_owned(), "ams".to_owned(), name.to_owned());
/// #     placement::HostInventory { host, region, zone, capacity, reported_at: 1_000, ..Default::default() }
/// # }
/// # fn machine(id: &str, cpus: u32) -> placement::Request {
/// #     let compute = placement::Compute { cpus: placement::Processors { kind: String::new(), count: cpus }, ..Default::default() };
/// #     placement::Request { id: id.into(), volume: id.into(), volume_bytes: 1 << 30, compute, ..Default::default() }
/// # }
/// use volfork::placement::{Compute, Fleet, HostInventory, Policy, Processors, Request};
///
/// let cpus = Processors { kind: "shared".into(), count: 2 };
/// let request = Request {
///     id: "deploy-42".into(),
///     app: "shop".into(),
///     volume: "db".into(),
///     // The first region with room is taken.
///     regions: vec!["fra".into(), "ams".into()],
///     volume_bytes: 10 << 30,
///     compute: Compute { cpus, memory_bytes: 4 << 30, ..Compute::default() },
///     count: 2,
///     ..Request::default()
/// };
/// let mut fleet = Fleet::new();
/// fleet.report(host("a", 64)); // In `ams`.
/// fleet.report(HostInventory { region: "fra".into(), ..host("f", 2) });
/// let placement = fleet.place(&request, &Policy::default(), 1_000);
/// let hosts: Vec<_> = placement.placed.iter().map(|placed| placed.reservation.host.as_str()).collect();
/// assert_eq!(hosts, ["f", "a"]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Names the request; part of the tie-break, so that equal requests spread and repeated ones agree.
    pub id: String,
    /// The application it belongs to, or empty.
    pub app: String,
    /// Name of the new volume.
    pub volume: String,
    /// Regions it may go to, the preferred one first; empty: any.
    pub regions: Vec<String>,
    /// Bytes of storage that the volume uses up.
    pub volume_bytes: u64,
    /// What the machine needs; the default for a volume without a machine.
    pub compute: Compute,
    /// Image that the machine starts from, if any.
    pub image: Option<Image>,
    /// Snapshot that the volume is forked from; `None`: it begins empty, or from the image.
    pub snapshot: Option<SnapshotNeed>,
    /// No other volume of the same app and name may be in the zone.
    pub require_unique_zone: bool,
    /// No other volume of the same app may be in the zone.
    pub unique_zone_app_wide: bool,
    /// Number of instances to place.
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
