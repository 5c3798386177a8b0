//! The answer: every host with its reasons.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::policy::Policy;
use super::request::Request;
use super::reservation::Reservation;
use crate::units::format_bytes;

/// Largest count of one request.
pub const PLACEMENTS_MAX: u32 = 100_000;

/// The hard constraints on a host, in the order in which they are applied.
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
/// use volfork::placement::{Constraint, Fleet, Policy};
///
/// let mut fleet = Fleet::new();
/// fleet.report(host("a", 2));
/// let ranking = fleet.rank(&machine("m", 4), &Policy::default(), 1_000);
/// match ranking.excluded[0].constraint {
///     Constraint::Cpus | Constraint::Memory | Constraint::VolumeRoom => println!("add hosts, or ask for less"),
///     Constraint::Stale | Constraint::Clock => println!("look at the host"),
///     other => panic!("'{other}' was not expected"),
/// }
/// // They are applied in this order: a host is told to fail the first one that it does not meet.
/// assert!(Constraint::Status < Constraint::Cpus);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Constraint {
    /// There is a host at all.
    Known,
    /// It takes machines.
    Status,
    /// It has reported lately enough: seconds of age against the most allowed.
    Stale,
    /// Its report is not from the future: seconds ahead against the most allowed.
    Clock,
    /// It is in a region that the request names.
    Region,
    /// It has processors of the kind.
    CpuKind,
    /// Enough of them are free.
    Cpus,
    /// Enough accelerators of the kind are free.
    Gpus,
    /// Enough bytes of memory are free.
    Memory,
    /// Enough bytes for volumes are free.
    VolumeRoom,
    /// No volume of the same app and name is in its zone: how many are, against none.
    UniqueZone,
    /// No volume of the same app is in its zone: how many are, against none.
    UniqueZoneApp,
}

impl Constraint {
    /// All, in the order in which they are applied.
    pub const ALL: [Self; 12] = [
        Self::Known,
        Self::Status,
        Self::Stale,
        Self::Clock,
        Self::Region,
        Self::CpuKind,
        Self::Cpus,
        Self::Gpus,
        Self::Memory,
        Self::VolumeRoom,
        Self::UniqueZone,
        Self::UniqueZoneApp,
    ];

    /// The word for it, as in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Status => "status",
            Self::Stale => "stale",
            Self::Clock => "clock",
            Self::Region => "region",
            Self::CpuKind => "cpu_kind",
            Self::Cpus => "cpus",
            Self::Gpus => "gpus",
            Self::Memory => "memory",
            Self::VolumeRoom => "volume_room",
            Self::UniqueZone => "unique_zone",
            Self::UniqueZoneApp => "unique_zone_app",
        }
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Bytes that a host still has to fetch for a machine, and the terms of the time until the machine can start.
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
/// use volfork::placement::{Fleet, Policy};
///
/// let mut fleet = Fleet::new();
/// fleet.report(host("a", 8));
/// let terms = fleet.rank(&machine("m", 4), &Policy::default(), 1_000).hosts[0].terms;
/// // Nothing has to be fetched; half of the processors are in use then, which counts a second.
/// assert_eq!((terms.fetch_seconds, terms.headroom_seconds), (0.0, 1.0));
/// assert_eq!(terms.seconds(), 1.0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Terms {
    /// Bytes of image layers that are neither there nor on their way.
    pub image_bytes_missing: u64,
    /// Bytes of image layers that are still to come from fetches which others have begun.
    pub image_bytes_in_flight: u64,
    /// Bytes of the first-needed blocks that the host neither has nor is fetching.
    pub snapshot_bytes_missing: u64,
    /// Bytes of such blocks that an assignment not yet reported will fetch.
    pub snapshot_bytes_in_flight: u64,
    /// Time in which all these bytes come over the host's links if no other fetch uses them.
    pub fetch_seconds: f64,
    /// Time lost because reported fetches for other machines share the link.
    pub load_seconds: f64,
    /// Time lost because assignments not yet reported will fetch, unpack and start beside it.
    pub herd_seconds: f64,
    /// Cost of using up room, as seconds.
    pub headroom_seconds: f64,
    /// Cost of volumes of the same app in the zone, as seconds.
    pub spread_seconds: f64,
}

impl Terms {
    /// The sum of all terms that are times.
    pub fn seconds(&self) -> f64 {
        self.fetch_seconds + self.load_seconds + self.herd_seconds + self.headroom_seconds + self.spread_seconds
    }
}

/// A host that no constraint excludes, and everything its place in the ranking comes from.
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
/// use volfork::placement::{Fleet, Policy};
///
/// let mut fleet = Fleet::new();
/// fleet.report(host("a", 8));
/// let ranked = &fleet.rank(&machine("m", 4), &Policy::default(), 1_030).hosts[0];
/// // Why it is where it is, for a person.
/// assert_eq!(ranked.to_string(), "a (ams, zone a): 1.00 s = fetch 0.00 + headroom 1.00");
/// assert_eq!((ranked.seconds, ranked.staleness_seconds), (1.0, 30));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ranked {
    /// Name of the host.
    pub host: String,
    /// Its region.
    pub region: String,
    /// Its zone within the region.
    pub zone: String,
    /// The number by which the policy ranks within a region; less is better. For the start-time policy it is `seconds`; for a policy that
    /// gives points it is how many are missing to the most that can be had.
    pub cost: f64,
    /// Seconds until the machine can start, the sum of the terms.
    pub seconds: f64,
    /// The terms that add up to the seconds.
    #[serde(flatten)]
    pub terms: Terms,
    /// Place of the host's region among the preferred ones, 0 being the first. A host of an earlier region always comes first.
    pub region_preference: u32,
    /// Seconds since the host's last report.
    pub staleness_seconds: u64,
}

impl fmt::Display for Ranked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |f: &mut fmt::Formatter<'_>, count: u64, what: &str| match count {
            0 => Ok(()),
            _ => write!(f, ", {} of {what}", format_bytes(count)),
        };
        let terms = &self.terms;
        write!(f, "{} ({}, zone {}): {:.2} s = fetch {:.2}", self.host, self.region, self.zone, self.seconds, terms.fetch_seconds)?;
        for (seconds, what) in [
            (terms.load_seconds, "load"),
            (terms.herd_seconds, "herd"),
            (terms.headroom_seconds, "headroom"),
            (terms.spread_seconds, "spread"),
        ] {
            if seconds > 0.0 {
                write!(f, " + {what} {seconds:.2}")?;
            }
        }
        bytes(f, terms.image_bytes_missing, "the image missing")?;
        bytes(f, terms.image_bytes_in_flight, "the image on their way")?;
        bytes(f, terms.snapshot_bytes_missing, "the snapshot missing")?;
        bytes(f, terms.snapshot_bytes_in_flight, "the snapshot on their way")
    }
}

/// A host that a constraint excludes: the first one, in their order, that it does not meet.
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
/// use volfork::placement::{Fleet, Policy};
///
/// let mut fleet = Fleet::new();
/// fleet.report(host("a", 2));
/// let excluded = &fleet.rank(&machine("m", 4), &Policy::default(), 1_000).excluded[0];
/// assert_eq!((excluded.have, excluded.need), (2, 4));
/// assert_eq!(excluded.to_string(), "a: 2 processors are free, 4 are needed");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Excluded {
    /// Name of the host.
    pub host: String,
    /// Its region.
    pub region: String,
    /// The constraint that it does not meet.
    pub constraint: Constraint,
    /// Amount that it has left, in the unit of the constraint.
    pub have: u64,
    /// Amount that it would need, in the same unit.
    pub need: u64,
}

impl fmt::Display for Excluded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, region, have, need, .. } = self;
        match self.constraint {
            Constraint::Known => write!(f, "{host}: no such host"),
            Constraint::Status => write!(f, "{host}: takes no machines, because it is drained or does not answer"),
            Constraint::Stale => write!(f, "{host}: last reported {have} s ago, the most allowed is {need} s"),
            Constraint::Clock => {
                write!(f, "{host}: reported from {have} s in the future, the most allowed is {need} s: set its clock")
            }
            Constraint::Region => write!(f, "{host}: is in region {region}, which is not asked for"),
            Constraint::CpuKind => write!(f, "{host}: has no processors of the kind"),
            Constraint::Cpus => write!(f, "{host}: {have} processors are free, {need} are needed"),
            Constraint::Gpus => write!(f, "{host}: {have} accelerators of the kind are free, {need} are needed"),
            Constraint::Memory => write!(f, "{host}: {} of memory are free, {} are needed", format_bytes(*have), format_bytes(*need)),
            Constraint::VolumeRoom => {
                write!(f, "{host}: {} for volumes are free, {} are needed", format_bytes(*have), format_bytes(*need))
            }
            Constraint::UniqueZone => write!(f, "{host}: {have} volumes of the same app and name are in its zone"),
            Constraint::UniqueZoneApp => write!(f, "{host}: {have} volumes of the same app are in its zone"),
        }
    }
}

/// Why no host is left.
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
/// use volfork::placement::{Constraint, Fleet, Policy};
///
/// let mut fleet = Fleet::new();
/// for (name, cpus) in [("a", 1), ("b", 2)] {
///     fleet.report(host(name, cpus));
/// }
/// let nothing = fleet.rank(&machine("m", 4), &Policy::default(), 1_000).nothing.expect("no host fits");
/// assert_eq!((nothing.constraint, &nothing.excluded[..]), (Constraint::Cpus, &[(Constraint::Cpus, 2)][..]));
/// assert_eq!(nothing.nearest.unwrap().host, "b");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nothing {
    /// The constraint that took the last ones; [`Constraint::Known`] if the fleet is empty.
    pub constraint: Constraint,
    /// How many hosts each constraint took, in the order in which they are applied; those that took none are left out.
    pub excluded: Vec<(Constraint, usize)>,
    /// The host that came nearest to meeting `constraint`.
    pub nearest: Option<Excluded>,
}

impl fmt::Display for Nothing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(nearest) = &self.nearest else {
            return f.write_str("no host is known: let hosts report to the fleet first");
        };
        write!(f, "no host meets every constraint; '{}' took the last ones (", self.constraint)?;
        for (at, (constraint, hosts)) in self.excluded.iter().enumerate() {
            write!(f, "{}{constraint}: {hosts}", if at == 0 { "" } else { ", " })?;
        }
        write!(f, "); nearest came {nearest}")
    }
}

/// Every host of the fleet: the ones that meet all constraints, best first, and the others.
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
/// use volfork::placement::{Fleet, Policy};
///
/// let mut fleet = Fleet::new();
/// for (name, cpus) in [("full", 2), ("half", 8), ("idle", 64)] {
///     fleet.report(host(name, cpus));
/// }
/// let ranking = fleet.rank(&machine("m", 4), &Policy::default(), 1_000);
/// let names: Vec<_> = ranking.hosts.iter().map(|ranked| ranked.host.as_str()).collect();
/// assert_eq!((names, ranking.excluded.len()), (vec!["idle", "half"], 1));
/// // Less is better.
/// assert!(ranking.hosts[0].seconds < ranking.hosts[1].seconds);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ranking {
    /// [`Request::id`] of the request.
    pub request: String,
    /// The policy that ranked, in its word for the command line.
    pub policy: &'static str,
    /// How many hosts meet all constraints.
    pub fitting: usize,
    /// Those hosts, or as many as were asked for, the best first.
    pub hosts: Vec<Ranked>,
    /// The others, by constraint and then by name.
    pub excluded: Vec<Excluded>,
    /// Why `hosts` is empty, if it is.
    pub nothing: Option<Nothing>,
}

/// One machine or volume that got a host.
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
/// use volfork::placement::{Fleet, Policy};
///
/// let mut fleet = Fleet::new();
/// fleet.report(host("a", 8));
/// let placed = fleet.place(&machine("m", 4), &Policy::default(), 1_000).placed.remove(0);
/// assert_eq!((placed.reservation.host.as_str(), placed.ranked.host.as_str()), ("a", "a"));
/// // "Any kind" of processors was decided.
/// assert_eq!(placed.reservation.resources.cpus["shared"], 4);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Placed {
    /// What the scheduler has to keep until the host reports it.
    pub reservation: Reservation,
    /// Why it is this host: its costs when it was chosen.
    pub ranked: Ranked,
}

/// The outcome of a request.
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
/// use volfork::placement::{Constraint, Fleet, Policy, Request};
///
/// let mut fleet = Fleet::new();
/// fleet.report(host("a", 8));
/// // Three machines, of which two fit.
/// let placement = fleet.place(&Request { count: 3, ..machine("m", 4) }, &Policy::default(), 1_000);
/// assert_eq!((placement.placed.len(), placement.left), (2, 1));
/// assert_eq!(placement.nothing.unwrap().constraint, Constraint::Cpus);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Placement {
    /// [`Request::id`] of the request.
    pub request: String,
    /// The policy that ranked, in its word for the command line.
    pub policy: &'static str,
    /// Instances that got a host, in order.
    pub placed: Vec<Placed>,
    /// How many instances got none.
    pub left: u32,
    /// Why they did not.
    pub nothing: Option<Nothing>,
    /// Why they did not, if it was not for want of a host: an assignment of that name exists already, or they are too many.
    pub refused: Option<String>,
}

impl Placement {
    /// Nothing is placed yet; a request for more than [`PLACEMENTS_MAX`] is refused, wherever its reservations are kept.
    pub(crate) fn begin(request: &Request, policy: &Policy) -> Self {
        let left = request.count;
        let refused = (left > PLACEMENTS_MAX).then(|| format!("{left} are too many for one request: ask for {PLACEMENTS_MAX} at most"));
        Self { request: request.id.clone(), policy: policy.word(), placed: Vec::new(), left, nothing: None, refused }
    }
}
