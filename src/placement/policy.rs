//! How hosts that meet every constraint are compared.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// What a second of waiting is worth against crowding; all of [`Policy::StartTime`] is measured in seconds until the machine can start.
///
/// A negative weight, or one that is not a number, counts as zero.
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
/// use volfork::placement::{Fleet, Policy, Weights};
///
/// let mut fleet = Fleet::new();
/// fleet.report(host("a", 8));
/// let seconds = |weights| fleet.rank(&machine("m", 8), &Policy::StartTime(weights), 1_000).hosts[0].seconds;
/// // The request fills the host to the brim.
/// assert_eq!(seconds(Weights::default()), 2.0);
/// assert_eq!(seconds(Weights { headroom_seconds: 0.0, ..Weights::default() }), 0.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Weights {
    /// Seconds that a host costs which the request fills to the brim; a host filled to a half costs half of it. Fullness is that of
    /// the scarcest of processors, memory and volume room. Default 2: an empty host beats a full one if it needs less than two
    /// seconds of fetching more.
    pub headroom_seconds: f64,
    /// Seconds for each volume of the same app in the zone. Default 1: replicas stay apart unless that takes a second longer (with 5,
    /// simulated starts took longer in the mean and at the 99th percentile, and more bytes moved: `cargo bench --bench fleet`).
    pub spread_seconds: f64,
    /// Factor on the seconds lost to fetches of assignments that the host has not reported yet, which will share its link. Default 1.
    pub herd_factor: f64,
    /// Seconds for each assignment that the host has not reported yet, for unpacking and starting beside it. Default 0.25.
    pub herd_start_seconds: f64,
    /// Factor on the seconds lost to fetches that the host has reported, for other machines. Default 1.
    pub load_factor: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { headroom_seconds: 2.0, spread_seconds: 1.0, herd_factor: 1.0, herd_start_seconds: 0.25, load_factor: 1.0 }
    }
}

impl Weights {
    /// The weights as they count: none is negative or not a number.
    pub(super) fn clamped(self) -> Self {
        let clamp = |weight: f64| if weight.is_nan() { 0.0 } else { weight.clamp(0.0, f64::MAX) };
        Self {
            headroom_seconds: clamp(self.headroom_seconds),
            spread_seconds: clamp(self.spread_seconds),
            herd_factor: clamp(self.herd_factor),
            herd_start_seconds: clamp(self.herd_start_seconds),
            load_factor: clamp(self.load_factor),
        }
    }
}

/// How hosts that meet every constraint are compared. Constraints, the order of preferred regions and the tie-break are the same
/// for all.
///
/// ```
/// # fn main() -> volfork::Result<()> {
/// use volfork::placement::{Policy, Weights};
///
/// let policy: Policy = "start-time".parse()?;
/// assert_eq!(policy, Policy::StartTime(Weights::default()));
/// assert_eq!(policy, Policy::default());
/// // For comparison: what other schedulers do.
/// let words = Policy::all().map(|policy| policy.word());
/// assert_eq!(words, ["capacity", "image-bit", "image-locality", "lrscheduler", "start-time"]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Policy {
    /// The emptiest host first; what it holds does not matter.
    CapacityOnly,
    /// Hosts that hold the whole image first, the emptiest of them first.
    ImageBit,
    /// Kubernetes' default scores added up: `ImageLocality`, `NodeResourcesFit` (least allocated) and
    /// `NodeResourcesBalancedAllocation`, each of weight 1.
    ImageLocality,
    /// LRScheduler (arXiv 2506.03694): the share of the image's bytes that is there, doubled on idle balanced hosts and halved on
    /// others, added to Kubernetes' scores for resources.
    LrScheduler,
    /// The fewest seconds until the machine can start.
    StartTime(Weights),
}

impl Default for Policy {
    /// Start time with the default weights.
    fn default() -> Self {
        Self::StartTime(Weights::default())
    }
}

impl Policy {
    /// Every policy, with default weights.
    pub fn all() -> [Self; 5] {
        [Self::CapacityOnly, Self::ImageBit, Self::ImageLocality, Self::LrScheduler, Self::default()]
    }

    /// The word that stands for it on a command line.
    pub fn word(&self) -> &'static str {
        match self {
            Self::CapacityOnly => "capacity",
            Self::ImageBit => "image-bit",
            Self::ImageLocality => "image-locality",
            Self::LrScheduler => "lrscheduler",
            Self::StartTime(_) => "start-time",
        }
    }

    /// The weights by which seconds are told, which other policies tell too but do not rank by.
    pub(super) fn weights(&self) -> Weights {
        match self {
            Self::StartTime(weights) => *weights,
            _ => Weights::default(),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Policy {
    type Err = Error;

    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a word that stands for no policy.
    fn from_str(text: &str) -> Result<Self> {
        Self::all().into_iter().find(|policy| policy.word() == text).ok_or_else(|| {
            let words = Self::all().map(|policy| policy.word()).join(", ");
            let shown: String = text.chars().take(40).collect();
            Error::new(ErrorKind::InvalidInput, format!("'{shown}' is not a policy of placement: choose one of {words}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_as_they_are_written() {
        for policy in Policy::all() {
            assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
        }
        let error = "best".parse::<Policy>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("start-time"), "{error}");
    }
}
