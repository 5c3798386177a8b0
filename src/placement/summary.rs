//! Hosts in a few kilobytes each, for fleets whose inventories are too much to carry around.
//!
//! The layers that a host holds are summed up in a Bloom filter (B. H. Bloom, "Space/Time Trade-offs in Hash Coding with Allowable
//! Errors", 1970) of fixed size. It never denies a layer that is held, and takes an absent one for held with the probability that
//! [`HostSummary::error_rate`] tells: 1 % at 27,000 layers. So the bytes that a summary says are missing are never too many, and
//! [`shortlist`] is for choosing the hosts whose exact inventories are worth reading, not for deciding.

use serde::{Deserialize, Serialize, de::Error as _};

use super::inventory::{Bandwidth, HostInventory, HostStatus, Resources};
use crate::content::{Digest, Image};
use crate::place::{length, wide};
use crate::units::real;

/// Bytes of every filter.
const FILTER_BYTES: usize = 32 << 10;
const FILTER_BITS: u64 = 8 * wide(FILTER_BYTES);
/// Bits of each layer. A digest is uniform: its parts of 4 bytes are as good as hashes of it.
const PARTS: u8 = 7;

/// Which layers a host may hold.
#[derive(Clone, Debug, PartialEq)]
struct Filter(Box<[u8]>);

/// A host in constant size but for its names.
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
/// use volfork::placement::{HostInventory, HostSummary, shortlist};
///
/// let layer = ImageLayer { digest: Digest::of(b"layer"), bytes: 500_000_000 };
/// let image = Image::new("app:v1", Digest::of(b"app"), [layer]);
/// let holder = HostInventory { layers: [(layer.digest, layer.bytes)].into(), ..host("holder", 8) };
/// let hosts = [HostSummary::of(&host("other", 8)), HostSummary::of(&holder)];
/// // The hosts whose exact inventories are worth reading: here the first one of two.
/// assert_eq!(shortlist(&hosts, &image, 1)[0].host, "holder");
/// // 500 MB over 125 MB a second.
/// assert_eq!((hosts[0].fetch_seconds(&image), hosts[1].fetch_seconds(&image)), (4.0, 0.0));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostSummary {
    /// Name of the host, unique in the fleet.
    pub host: String,
    /// Region, such as `ams`.
    pub region: String,
    /// Zone within the region: what fails together.
    pub zone: String,
    /// Whether it takes machines.
    pub status: HostStatus,
    /// Resources that are not in use.
    pub left: Resources,
    /// Bytes a second of its links.
    pub bandwidth: Bandwidth,
    /// Generation of the last report.
    pub generation: u64,
    /// When the host reported, in seconds since the Unix epoch.
    pub reported_at: u64,
    filter: Filter,
}

fn bits(digest: &Digest) -> impl Iterator<Item = (usize, u8)> {
    digest.0.chunks_exact(4).take(usize::from(PARTS)).map(|part| {
        let number = part.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte)) % FILTER_BITS;
        (length(number / 8), 1 << (number % 8))
    })
}

impl HostSummary {
    /// The summary of a reported inventory.
    pub fn of(inventory: &HostInventory) -> Self {
        let mut filter = vec![0u8; FILTER_BYTES];
        for (byte, bit) in inventory.layers.keys().flat_map(bits) {
            filter[byte] |= bit;
        }
        Self {
            host: inventory.host.clone(),
            region: inventory.region.clone(),
            zone: inventory.zone.clone(),
            status: inventory.status,
            left: inventory.capacity.without(&inventory.used),
            bandwidth: inventory.bandwidth,
            generation: inventory.generation,
            reported_at: inventory.reported_at,
            filter: Filter(filter.into()),
        }
    }

    /// `false`: the host did not hold the layer when it reported. `true`: it did, or this is one of the errors of the filter.
    pub fn may_hold(&self, layer: &Digest) -> bool {
        bits(layer).all(|(byte, bit)| self.filter.0[byte] & bit != 0)
    }

    /// The probability with which an absent layer is taken for held, from 0 to 1: the share of set bits, once for each bit of a layer.
    pub fn error_rate(&self) -> f64 {
        let set: u32 = self.filter.0.iter().map(|byte| byte.count_ones()).sum();
        (f64::from(set) / real(FILTER_BITS)).powi(i32::from(PARTS))
    }

    /// Bytes of layers that the host has to fetch at least.
    pub fn missing_bytes(&self, image: &Image) -> u64 {
        image.layers.iter().filter(|layer| !self.may_hold(&layer.digest)).map(|layer| layer.bytes).fold(0, u64::saturating_add)
    }

    /// Seconds that the host needs at least to fetch what it misses; more than any other if it has no link.
    pub fn fetch_seconds(&self, image: &Image) -> f64 {
        match (self.missing_bytes(image), self.bandwidth.download.min(self.bandwidth.registry)) {
            (0, _) => 0.0,
            (missing, bandwidth) => real(missing) / real(bandwidth),
        }
    }
}

/// The hosts that take machines and may have an image soonest, at most `keep` of them; equally good ones by name.
pub fn shortlist<'a>(hosts: impl IntoIterator<Item = &'a HostSummary>, image: &Image, keep: usize) -> Vec<&'a HostSummary> {
    let takes = hosts.into_iter().filter(|host| host.status == HostStatus::Ok);
    let mut hosts: Vec<_> = takes.map(|host| (host.fetch_seconds(image), host)).collect();
    hosts.sort_unstable_by(|(one, first), (other, second)| one.total_cmp(other).then_with(|| first.host.cmp(&second.host)));
    hosts.into_iter().take(keep).map(|(_, host)| host).collect()
}

impl Serialize for Filter {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&data_encoding::BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = data_encoding::BASE64.decode(text.as_bytes()).map_err(D::Error::custom)?;
        match bytes.len() {
            FILTER_BYTES => Ok(Self(bytes.into())),
            other => Err(D::Error::custom(format!("a filter of layers has {FILTER_BYTES} bytes, not {other}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::ImageLayer;

    fn digest(number: u64) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    fn holder(name: &str, layers: std::ops::Range<u64>) -> HostSummary {
        let layers = layers.map(|number| (digest(number), 1000)).collect();
        HostSummary::of(&HostInventory { host: name.into(), layers, ..HostInventory::default() })
    }

    #[test]
    fn held_layers_are_always_found_and_absent_ones_rarely() {
        let host = holder("a", 0..10_000);
        assert!((0..10_000).all(|number| host.may_hold(&digest(number))));
        let wrong = (10_000..110_000).filter(|number| host.may_hold(&digest(*number))).count();
        let wrong = real(wide(wrong)) / 100_000.0;
        // (1 - e^(-7 * 10,000 / 262,144))^7 = 4e-5 by Bloom's formula.
        assert!(host.error_rate() < 1e-4 && wrong < 3e-4, "{wrong}, {}", host.error_rate());
        let full = holder("b", 0..27_000);
        assert!((0.005..0.011).contains(&full.error_rate()), "{}", full.error_rate());
        assert_eq!(HostSummary::of(&HostInventory::default()).error_rate(), 0.0);
    }

    #[test]
    fn the_shortlist_has_the_hosts_that_may_be_soonest() {
        let layers = (0..4).map(|number| ImageLayer { digest: digest(number), bytes: 1_000_000 });
        let image = Image::new("i", digest(9), layers);
        let mut hosts = [holder("none", 50..60), holder("half", 0..2), holder("all", 0..4), holder("gone", 0..4), holder("also", 0..4)];
        hosts[3].status = HostStatus::Draining;
        let names = |keep| shortlist(&hosts, &image, keep).iter().map(|host| host.host.as_str()).collect::<Vec<_>>();
        assert_eq!(names(9), ["all", "also", "half", "none"]);
        assert_eq!(names(1), ["all"]);
        assert_eq!(hosts[1].missing_bytes(&image), 2_000_000);
        assert_eq!(hosts[1].fetch_seconds(&image), 2_000_000.0 / 125_000_000.0);
    }

    #[test]
    fn summaries_travel_in_constant_size() {
        let (small, large) = (holder("a", 0..1), holder("a", 0..5000));
        let text = |host: &HostSummary| serde_json::to_string(host).unwrap();
        assert_eq!(text(&small).len(), text(&large).len());
        assert_eq!(serde_json::from_str::<HostSummary>(&text(&large)).unwrap(), large);
        let short = text(&small).replace("AAAAAAAA", "");
        assert!(serde_json::from_str::<HostSummary>(&short).unwrap_err().to_string().contains("32768"));
    }
}
