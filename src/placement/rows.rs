//! Rows: the numbers of a host that every request compares.

use super::inventory::{HostInventory, HostStatus, Resources, max_age_seconds};
use crate::place::index;
use crate::units::real;

/// An amount that a host has, and what is left of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub capacity: u64,
    pub free: u64,
}

impl Share {
    pub fn new(capacity: u64, used: u64, reserved: u64) -> Self {
        Self { capacity, free: capacity.saturating_sub(used).saturating_sub(reserved) }
    }

    /// How full it is, from 0 to 1, with `more` in use.
    pub fn fullness(self, more: u64) -> f64 {
        match self.capacity {
            0 => 0.0,
            capacity => 1.0 - real(self.free.saturating_sub(more)) / real(capacity),
        }
    }
}

/// Fetches of a host together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub bytes: u64,
    pub fetches: u32,
}

impl Traffic {
    pub fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.fetches += 1;
    }

    pub fn without(self, part: Self) -> Self {
        Self { bytes: self.bytes.saturating_sub(part.bytes), fetches: self.fetches.saturating_sub(part.fetches) }
    }
}

/// A host in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Row {
    /// Whether the number stands for a host at all.
    pub known: bool,
    /// Whether it takes machines.
    pub open: bool,
    pub reported_at: u64,
    pub report_every_seconds: u64,
    pub region: u32,
    pub zone: u32,
    pub memory: Share,
    pub volumes: Share,
    /// Seconds a byte takes over the host's link, and from the registry.
    pub download_seconds: f64,
    pub image_seconds: f64,
    pub download: u64,
    /// Hash of the name, for the tie-break.
    pub name_hash: u64,
    /// Fetches that the host has reported.
    pub reported: Traffic,
    /// Fetches of assignments it has not reported.
    pub pending: Traffic,
    /// Assignments it has not reported.
    pub assignments: u32,
}

impl Row {
    /// A row with everything that follows from the inventory and the sum of what is reserved.
    pub fn of(inventory: &HostInventory, region: u32, zone: u32, reserved: &Resources) -> Self {
        let HostInventory { capacity, used, bandwidth, .. } = inventory;
        let seconds = |rate: u64| 1.0 / real(rate.max(1));
        Self {
            known: true,
            open: inventory.status == HostStatus::Ok,
            reported_at: inventory.reported_at,
            report_every_seconds: inventory.report_every_seconds,
            region,
            zone,
            memory: Share::new(capacity.memory_bytes, used.memory_bytes, reserved.memory_bytes),
            volumes: Share::new(capacity.volume_bytes, used.volume_bytes, reserved.volume_bytes),
            download_seconds: seconds(bandwidth.download),
            image_seconds: seconds(bandwidth.download.min(bandwidth.registry)),
            download: bandwidth.download,
            name_hash: fnv(inventory.host.as_bytes()),
            ..Self::default()
        }
    }
}

impl Row {
    /// Seconds between its latest report and `now`, and the most of them that a live host has.
    pub fn age(&self, now: u64, otherwise: u64) -> (u64, u64) {
        (now.abs_diff(self.reported_at), max_age_seconds(self.report_every_seconds, otherwise))
    }
}

/// Processors of all hosts by kind.
#[derive(Debug, Default)]
pub(super) struct Kinds {
    kinds: Vec<(String, Vec<Share>)>,
    /// For each host, the share of the kind with the most free units.
    any: Vec<Share>,
}

impl Kinds {
    /// Sets the shares of a host. A kind that no host has any more keeps its empty column: kinds are few.
    pub fn set(&mut self, host: u32, capacity: &std::collections::BTreeMap<String, u32>, free: impl Fn(&str) -> Share) {
        let at = index(host);
        for (_, column) in &mut self.kinds {
            if let Some(share) = column.get_mut(at) {
                *share = Share::default();
            }
        }
        let mut best = Share::default();
        for kind in capacity.keys() {
            let share = free(kind);
            let column = match self.kinds.iter_mut().position(|(known, _)| known == kind) {
                Some(position) => &mut self.kinds[position].1,
                None => {
                    self.kinds.push((kind.clone(), Vec::new()));
                    &mut self.kinds.last_mut().expect("it was just put there").1
                }
            };
            put(column, at, share);
            // The first kind by name among equals: what is reserved for "any kind" says the same.
            if share.free > best.free || best.capacity == 0 {
                best = share;
            }
        }
        put(&mut self.any, at, best);
    }

    /// Shares of a kind by host number, hosts behind the end having none; an empty kind is the best one of each host.
    pub fn column(&self, kind: &str) -> &[Share] {
        if kind.is_empty() {
            return &self.any;
        }
        self.kinds.iter().find(|(known, _)| known == kind).map_or(&[], |(_, column)| column)
    }

    /// Bytes on the heap.
    pub fn memory_bytes(&self) -> usize {
        let columns = self.kinds.iter().map(|(_, column)| column.capacity()).sum::<usize>() + self.any.capacity();
        columns * size_of::<Share>()
    }
}

fn put(column: &mut Vec<Share>, at: usize, share: Share) {
    if column.len() <= at {
        column.resize(at + 1, Share::default());
    }
    column[at] = share;
}

/// FNV-1a, 64 bits (<https://datatracker.ietf.org/doc/html/draft-eastlake-fnv>): the same on every machine and in every version.
pub(super) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Mixes two hashes into one whose upper half is as good as random: the finalizer of SplitMix64.
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let mut hash = a ^ b.rotate_left(32);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_the_published_ones() {
        // Examples of the FNV draft's appendix.
        assert_eq!(fnv(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_share_is_never_less_than_empty_or_more_than_full() {
        assert_eq!(Share::new(10, 4, 3), Share { capacity: 10, free: 3 });
        assert_eq!(Share::new(10, 14, 3).free, 0);
        assert_eq!(Share::new(10, 5, 0).fullness(5), 1.0);
        assert_eq!(Share::new(10, 5, 0).fullness(50), 1.0);
        assert_eq!(Share::default().fullness(50), 0.0);
    }
}
