//! Inventories: the resources and contents that a host reports.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use crate::content::Digest;

/// A host is dead when this many of its reports are missing.
const REPORTS_MISSED_MAX: u64 = 3;
/// Longest time between two reports that is believed, in seconds.
const REPORT_SECONDS_MAX: u64 = 86_400;

/// Whether machines may be placed on a host.
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
/// use volfork::placement::{Constraint, Fleet, HostInventory, HostStatus, Policy};
///
/// let mut fleet = Fleet::new();
/// fleet.report(HostInventory { status: HostStatus::Draining, ..host("a", 8) });
/// let ranking = fleet.rank(&machine("m", 4), &Policy::default(), 1_000);
/// assert_eq!(ranking.excluded[0].constraint, Constraint::Status);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HostStatus {
    /// Yes.
    #[default]
    Ok,
    /// No new machines: the operator empties it.
    Draining,
    /// It does not answer.
    Unreachable,
}

/// Processors or accelerators of one kind.
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
/// use volfork::placement::{Fleet, Policy, Processors};
///
/// let mut fleet = Fleet::new();
/// fleet.report(host("a", 8)); // Of kind `shared`.
/// let fits = |cpus: Processors| {
///     let mut request = machine("m", 0);
///     request.compute.cpus = cpus;
///     fleet.rank(&request, &Policy::default(), 1_000).fitting == 1
/// };
/// assert!(fits(Processors { kind: "shared".into(), count: 8 }));
/// assert!(fits(Processors { kind: String::new(), count: 8 }), "any kind");
/// assert!(!fits(Processors { kind: "performance".into(), count: 1 }));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Processors {
    /// Kind, such as `shared`, `performance`, `a100`.
    pub kind: String,
    /// Number of processors, or of accelerators.
    pub count: u32,
}

/// Amounts that machines and volumes use up.
///
/// ```
/// use volfork::placement::Resources;
///
/// let capacity = Resources { memory_bytes: 64 << 30, volume_bytes: 1 << 40, ..Resources::default() };
/// let used = Resources { memory_bytes: 60 << 30, ..Resources::default() };
/// let left = capacity.without(&used);
/// assert_eq!((left.memory_bytes, left.volume_bytes), (4 << 30, 1 << 40));
/// let wanted = Resources { memory_bytes: 8 << 30, ..Resources::default() };
/// assert_eq!(left.lacking(&wanted).as_deref(), Some("4.0 GiB of memory are free, 8.0 GiB are needed"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Number of processors of each kind.
    pub cpus: BTreeMap<String, u32>,
    /// Number of accelerators of each kind.
    pub gpus: BTreeMap<String, u32>,
    /// Bytes of main memory.
    pub memory_bytes: u64,
    /// Bytes of storage for volumes.
    pub volume_bytes: u64,
}

/// Bytes a second.
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
/// use volfork::content::{Digest, Image, ImageLayer};
/// use volfork::placement::{Bandwidth, Fleet, HostInventory, Policy};
///
/// let mut fleet = Fleet::new();
/// // 10 Gbit/s, but not from the registry.
/// let bandwidth = Bandwidth { download: 1_250_000_000, registry: 250_000_000, upload: 1_250_000_000 };
/// fleet.report(HostInventory { bandwidth, ..host("a", 8) });
/// let mut request = machine("m", 4);
/// let layer = ImageLayer { digest: Digest::of(b"layer"), bytes: 500_000_000 };
/// request.image = Some(Image::new("app:v1", Digest::of(b"app"), [layer]));
/// // Bytes over the slower of both.
/// assert_eq!(fleet.rank(&request, &Policy::default(), 1_000).hosts[0].terms.fetch_seconds, 2.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Most bytes a second that the host can fetch in all.
    pub download: u64,
    /// Most bytes a second that it gets from the registry of images.
    pub registry: u64,
    /// Most bytes a second that it can give to other hosts in all.
    pub upload: u64,
}

impl Default for Bandwidth {
    /// 1 Gbit/s each way.
    fn default() -> Self {
        Self { download: 125_000_000, registry: 125_000_000, upload: 125_000_000 }
    }
}

/// A layer that is being fetched.
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
/// use volfork::content::{Digest, Image, ImageLayer};
/// use volfork::placement::{Fleet, HostInventory, InFlight, Policy};
///
/// let layer = ImageLayer { digest: Digest::of(b"layer"), bytes: 500_000_000 };
/// let in_flight = [(layer.digest, InFlight { bytes: layer.bytes, remaining: 125_000_000 })].into();
/// let mut fleet = Fleet::new();
/// fleet.report(HostInventory { in_flight, ..host("a", 8) });
/// let mut request = machine("m", 4);
/// request.image = Some(Image::new("app:v1", Digest::of(b"app"), [layer]));
/// // Only what is still to come counts.
/// let terms = fleet.rank(&request, &Policy::default(), 1_000).hosts[0].terms;
/// assert_eq!((terms.image_bytes_missing, terms.image_bytes_in_flight), (0, 125_000_000));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    /// Bytes of the whole layer.
    pub bytes: u64,
    /// Bytes of it that had not arrived when the host reported.
    pub remaining: u64,
}

/// The blocks of a snapshot that a host holds.
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
/// use volfork::placement::{Fleet, HeldSnapshot, HostInventory, Policy, SnapshotNeed};
/// use volfork::roaring::RoaringBitmap;
///
/// // Of 1,024 blocks of 4 KiB it holds the first 1,000.
/// let held = HeldSnapshot { block_bytes: 4096, size_bytes: 4 << 20, present: Some(RoaringBitmap::from_iter(0..1_000)) };
/// let mut fleet = Fleet::new();
/// fleet.report(HostInventory { snapshots: [("s/1".to_owned(), held)].into(), ..host("a", 8) });
/// let mut request = machine("m", 4);
/// let (identity, first) = ("s/1".to_owned(), Some(RoaringBitmap::from_iter(0..1_024)));
/// let (block_bytes, size_bytes, source_bandwidth) = (4096, 4 << 20, 125_000_000);
/// request.snapshot = Some(SnapshotNeed { identity, block_bytes, size_bytes, first, source_bandwidth, origin: None });
/// let terms = fleet.rank(&request, &Policy::default(), 1_000).hosts[0].terms;
/// assert_eq!(terms.snapshot_bytes_missing, 24 * 4096);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldSnapshot {
    /// Bytes of a block, which `present` counts in.
    pub block_bytes: u32,
    /// Bytes of the whole snapshot, held or not.
    pub size_bytes: u64,
    /// The blocks that need not be fetched, zeros included; `None`: all of them.
    #[serde(with = "bitmap")]
    pub present: Option<RoaringBitmap>,
}

/// A volume on a host, and the machine it belongs to.
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
/// use volfork::placement::{Constraint, Fleet, HostInventory, PlacedVolume, Policy, Request};
///
/// let replica = PlacedVolume { app: "shop".into(), name: "db-1".into(), size_bytes: 1 << 30 };
/// let mut fleet = Fleet::new();
/// fleet.report(HostInventory { volumes: [(replica.name.clone(), replica)].into(), ..host("a", 8) });
/// // Another replica of the app does not go to the same zone.
/// let request = Request { app: "shop".into(), unique_zone_app_wide: true, ..machine("db-2", 4) };
/// let ranking = fleet.rank(&request, &Policy::default(), 1_000);
/// assert_eq!(ranking.excluded[0].constraint, Constraint::UniqueZoneApp);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlacedVolume {
    /// The application it belongs to, or empty.
    pub app: String,
    /// Name, unique on the host.
    pub name: String,
    /// Size of the volume in bytes, whether its blocks are stored or not.
    pub size_bytes: u64,
}

/// Everything that is known of a host.
///
/// ```
/// use volfork::placement::{HostInventory, Resources};
///
/// let cpus = [("shared".to_owned(), 16)].into();
/// let capacity = Resources { cpus, memory_bytes: 64 << 30, volume_bytes: 1 << 40, ..Resources::default() };
/// let (host, region, zone) = ("host-1".to_owned(), "ams".to_owned(), "rack-7".to_owned());
/// let (reported_at, report_every_seconds) = (1_000, 10);
/// let inventory = HostInventory { host, region, zone, capacity, reported_at, report_every_seconds, ..HostInventory::default() };
/// // It is dead when three reports are missing.
/// assert!(!inventory.is_stale(1_030, 300) && inventory.is_stale(1_031, 300));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostInventory {
    /// Name, unique in the fleet.
    pub host: String,
    /// Id of its store, with which the identities of the store's own snapshots begin; empty if it does not say.
    pub store: String,
    /// Region, such as `ams`.
    pub region: String,
    /// Zone within the region: what fails together, usually one server.
    pub zone: String,
    /// Whether it takes machines.
    pub status: HostStatus,
    /// All its resources.
    pub capacity: Resources,
    /// The part of them that is in use.
    pub used: Resources,
    /// Bytes a second of its links.
    pub bandwidth: Bandwidth,
    /// Image layers it holds: bytes by digest.
    pub layers: BTreeMap<Digest, u64>,
    /// Image layers it fetches just now.
    pub in_flight: BTreeMap<Digest, InFlight>,
    /// Names of whole images it holds, and their bytes; only the policies that know nothing of layers look at them.
    pub images: BTreeMap<String, u64>,
    /// Snapshots it holds, whole or in part, by identity.
    pub snapshots: BTreeMap<String, HeldSnapshot>,
    /// Volumes on it, by name.
    pub volumes: BTreeMap<String, PlacedVolume>,
    /// Assignments it knows of: those that a scheduler made and that its `used` already contains.
    pub assignments: Vec<String>,
    /// Grows with every report, so that an older one is told from a newer one.
    pub generation: u64,
    /// When the host reported, in seconds since the Unix epoch.
    pub reported_at: u64,
    /// Seconds between two reports, at most; 0 if it does not say.
    pub report_every_seconds: u64,
}

impl HostInventory {
    /// How old the latest report of a live host is at most, in seconds: three times as long as it takes between two, or
    /// `otherwise` if the host does not say.
    pub fn max_age_seconds(&self, otherwise: u64) -> u64 {
        max_age_seconds(self.report_every_seconds, otherwise)
    }

    /// Whether it is dead at `now`: its reports are missing. One from the future is no sign of life either.
    pub fn is_stale(&self, now: u64, otherwise: u64) -> bool {
        now.abs_diff(self.reported_at) > self.max_age_seconds(otherwise)
    }
}

/// As [`HostInventory::max_age_seconds`], of a host that reports so often.
pub(super) fn max_age_seconds(report_every_seconds: u64, otherwise: u64) -> u64 {
    match report_every_seconds {
        0 => otherwise,
        every => every.min(REPORT_SECONDS_MAX) * REPORTS_MISSED_MAX,
    }
}

/// A change of an inventory since a generation; fields that are not named stay as they are.
///
/// ```
/// # fn main() -> volfork::Result<()> {
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
/// use volfork::placement::Fleet;
///
/// let mut fleet = Fleet::new();
/// let known = host("a", 8);
/// fleet.report(known.clone());
/// let mut newer = known.clone();
/// newer.used.memory_bytes = 4 << 30;
/// newer.generation += 1;
/// // What changed, and nothing else, travels.
/// let delta = known.delta_to(&newer);
/// assert!(delta.used.is_some() && delta.capacity.is_none());
/// fleet.apply(&delta)?;
/// assert_eq!(fleet.host("a"), Some(&newer));
/// // It applies to the generation that it was made of, and to no other.
/// assert!(fleet.apply(&delta).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InventoryDelta {
    /// Name of the host that reports.
    pub host: String,
    /// The generation this change applies to.
    pub base: u64,
    /// The generation it leads to.
    pub generation: u64,
    /// When the host reported, in seconds since the Unix epoch.
    pub reported_at: u64,
    /// Id of its store, if that is another one; `None`, here and below: as it was.
    pub store: Option<String>,
    /// Region, after a move.
    pub region: Option<String>,
    /// Zone, after a move.
    pub zone: Option<String>,
    /// Whether it takes machines now.
    pub status: Option<HostStatus>,
    /// All its resources, if they changed.
    pub capacity: Option<Resources>,
    /// The part of them that is in use now.
    pub used: Option<Resources>,
    /// Bytes a second of its links, if they changed.
    pub bandwidth: Option<Bandwidth>,
    /// Layers: bytes of new ones, `None` for those that are gone.
    pub layers: BTreeMap<Digest, Option<u64>>,
    /// Fetches: new or changed ones, `None` for those that ended.
    pub in_flight: BTreeMap<Digest, Option<InFlight>>,
    /// Whole images: bytes of new ones, `None` for those that are gone.
    pub images: BTreeMap<String, Option<u64>>,
    /// Snapshots: those whose blocks changed, `None` for those that are gone.
    pub snapshots: BTreeMap<String, Option<HeldSnapshot>>,
    /// Volumes: new or changed ones, `None` for those that are gone.
    pub volumes: BTreeMap<String, Option<PlacedVolume>>,
    /// All assignments that the host knows of, if they changed.
    pub assignments: Option<Vec<String>>,
    /// Seconds between two reports, if that changed.
    pub report_every_seconds: Option<u64>,
}

/// Bitmaps in text: base64 of the portable roaring format.
mod bitmap {
    use roaring::RoaringBitmap;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(bitmap: &Option<RoaringBitmap>, serializer: S) -> Result<S::Ok, S::Error> {
        match bitmap {
            None => serializer.serialize_none(),
            Some(bitmap) => {
                let mut bytes = Vec::with_capacity(bitmap.serialized_size());
                bitmap.serialize_into(&mut bytes).map_err(serde::ser::Error::custom)?;
                serializer.serialize_some(&data_encoding::BASE64.encode(&bytes))
            }
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RoaringBitmap>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        let bytes = data_encoding::BASE64.decode(text.as_bytes()).map_err(D::Error::custom)?;
        RoaringBitmap::deserialize_from(&bytes[..]).map(Some).map_err(D::Error::custom)
    }
}
