//! Capacity that an assignment holds until its host has reported it.

use serde::{Deserialize, Serialize};

use super::inventory::Resources;
use crate::content::ImageLayer;

/// Blocks of a snapshot that a host will fetch because of an assignment.
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
/// use volfork::placement::{Fleet, Policy, Request, SnapshotNeed};
///
/// let (identity, block_bytes, size_bytes) = ("5f/12".to_owned(), 4096, 1 << 30);
/// let need = SnapshotNeed { identity, block_bytes, size_bytes, first: None, source_bandwidth: 125_000_000, origin: None };
/// let mut fleet = Fleet::new();
/// fleet.report(host("a", 8));
/// let placement = fleet.place(&Request { snapshot: Some(need), ..machine("m", 4) }, &Policy::default(), 1_000);
/// // The next request sees what this one will bring over the host's link.
/// let fetch = placement.placed[0].reservation.snapshot.as_ref().unwrap();
/// assert_eq!((fetch.identity.as_str(), fetch.bytes), ("5f/12", 1 << 30));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFetch {
    /// Identity of the snapshot's bytes.
    pub identity: String,
    /// Bytes to fetch before the machine is ready.
    pub bytes: u64,
}

/// An assignment that its host has not reported yet.
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
/// use volfork::ErrorKind;
/// use volfork::placement::{Fleet, Reservation, Resources};
///
/// let mut fleet = Fleet::new();
/// fleet.report(host("a", 8));
/// let resources = Resources { memory_bytes: 40 << 30, ..Resources::default() };
/// let reservation = Reservation { id: "r1".into(), host: "a".into(), resources, expires_at: 1_120, ..Reservation::default() };
/// fleet.reserve(reservation.clone())?;
/// // 64 GiB are there: another one does not fit before the first one lapses.
/// let another = Reservation { id: "r2".into(), ..reservation };
/// assert_eq!(fleet.reserve(another.clone()).unwrap_err().kind(), ErrorKind::NoSpace);
/// fleet.expire(1_120);
/// fleet.reserve(another)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reservation {
    /// Unique among all assignments.
    pub id: String,
    /// Name of the host that was chosen.
    pub host: String,
    /// Zone of the host, as it was when the decision was made; for the reader, since the fleet knows the zones of its hosts.
    pub zone: String,
    /// The application it belongs to, or empty.
    pub app: String,
    /// Name of the new volume.
    pub volume: String,
    /// Resources that it takes from the host.
    pub resources: Resources,
    /// Image layers that will be fetched because of it, with their bytes.
    pub layers: Vec<ImageLayer>,
    /// Blocks of a snapshot that will be fetched because of it.
    pub snapshot: Option<SnapshotFetch>,
    /// When it lapses, unless the host has reported it, in seconds since the Unix epoch.
    pub expires_at: u64,
}
