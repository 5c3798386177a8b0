//! One request against all hosts: which may take it, and what each would cost.

use roaring::RoaringBitmap;
use rustc_hash::FxHashMap;

use super::fleet::Fleet;
use super::inventory::HeldSnapshot;
use super::need::Need;
use super::policy::{Policy, Weights};
use super::ranking::{Constraint, Terms};
use super::request::{Request, SnapshotNeed};
use super::rows::{Traffic, fnv, mix};
use super::scores::{POINTS_MAX, balanced_allocation, image_locality, layer_score, least_allocated};
use crate::place::{index, wide};
use crate::units::real;

/// The part of a request's bytes that a host fetches already.
#[derive(Clone, Copy, Debug, Default)]
struct Underway {
    /// Bytes of the layers that it fetches, and how many of them are still to come.
    layer_bytes: u64,
    layer_bytes_left: u64,
    snapshot_bytes: u64,
    reported: Traffic,
    pending: Traffic,
}

/// One request against all hosts.
pub(super) struct Survey<'a> {
    pub fleet: &'a Fleet,
    pub need: Need<'a>,
    pub policy: Policy,
    pub now: u64,
    /// For each host number, the constraint that excludes it.
    pub verdicts: Vec<Option<Constraint>>,
    weights: Weights,
    request_hash: u64,
    /// For each host number, the bytes of the image's layers that are there.
    there: Vec<u64>,
    underway: FxHashMap<u32, Underway>,
    /// Snapshot bytes missing, for hosts that have some of it.
    snapshot: FxHashMap<u32, u64>,
    /// Hosts that have the image by name.
    named: Option<&'a RoaringBitmap>,
}

impl<'a> Survey<'a> {
    pub fn of(fleet: &'a Fleet, request: &'a Request, policy: &Policy, now: u64) -> Self {
        let index = &fleet.index;
        let need = Need::of(request, index);
        let max_age = fleet.options().max_age_seconds;
        let verdict = |(number, row)| need.verdict(number, row, now, max_age);
        let verdicts: Vec<_> = index.rows.iter().enumerate().map(verdict).collect();
        let mut survey = Self {
            fleet,
            verdicts,
            policy: *policy,
            now,
            weights: policy.weights().clamped(),
            request_hash: fnv(request.id.as_bytes()),
            there: vec![0; index.rows.len()],
            underway: FxHashMap::default(),
            snapshot: FxHashMap::default(),
            named: need.image_name.as_ref().and_then(|name| index.images.get(name)).map(|holders| &holders.hosts),
            need,
        };
        survey.find_layers();
        if let Some(need) = &request.snapshot {
            survey.find_snapshot(need);
        }
        survey
    }

    fn find_layers(&mut self) {
        let mut numbers = [0; 256];
        for layer in &self.need.layers {
            let Some(holders) = self.fleet.index.layers.get(&layer.digest) else { continue };
            let mut hosts = holders.hosts.iter();
            loop {
                let some = hosts.next_many(&mut numbers);
                if some.is_empty() {
                    break;
                }
                for number in some {
                    let there = &mut self.there[index(*number)];
                    *there = there.saturating_add(layer.bytes);
                }
            }
            for moving in &holders.moving {
                let underway = self.underway.entry(moving.host).or_default();
                underway.layer_bytes = underway.layer_bytes.saturating_add(layer.bytes);
                underway.layer_bytes_left = underway.layer_bytes_left.saturating_add(moving.bytes.min(layer.bytes));
                if moving.pending { &mut underway.pending } else { &mut underway.reported }.add(moving.bytes);
            }
        }
    }

    fn find_snapshot(&mut self, need: &SnapshotNeed) {
        if let Some(holders) = self.fleet.index.snapshots.get(&need.identity) {
            for number in holders.hosts.iter().filter(|number| self.verdicts[index(*number)].is_none()) {
                if let Some(held) = self.fleet.inventory(number).snapshots.get(&need.identity) {
                    self.snapshot.insert(number, missing_bytes(need, held, self.need.snapshot_bytes));
                }
            }
            for moving in &holders.moving {
                let underway = self.underway.entry(moving.host).or_default();
                underway.snapshot_bytes = underway.snapshot_bytes.saturating_add(moving.bytes);
                underway.pending.add(moving.bytes);
            }
        }
        if let Some(origin) = &need.origin {
            for number in self.fleet.numbers_of(&origin.store) {
                self.snapshot.insert(number, missing_bytes(need, &origin.held, self.need.snapshot_bytes));
            }
        }
    }

    pub fn terms(&self, number: u32) -> Terms {
        let at = index(number);
        let row = &self.fleet.index.rows[at];
        let weights = &self.weights;
        let underway = if self.underway.is_empty() { Underway::default() } else { self.underway.get(&number).copied().unwrap_or_default() };
        let image_bytes_missing = self.need.image_bytes.saturating_sub(self.there[at]).saturating_sub(underway.layer_bytes);
        let image_bytes_in_flight = underway.layer_bytes_left;
        let snapshot =
            if self.snapshot.is_empty() { None } else { self.snapshot.get(&number).copied() }.unwrap_or(self.need.snapshot_bytes);
        let snapshot_bytes_in_flight = underway.snapshot_bytes.min(snapshot);

        let image = real(image_bytes_missing.saturating_add(image_bytes_in_flight));
        let bytes = image + real(snapshot);
        let mut fetch_seconds = (image * row.image_seconds).max(bytes * row.download_seconds);
        if let Some(need) = self.need.request.snapshot.as_ref().filter(|_| snapshot > 0) {
            fetch_seconds = fetch_seconds.max(real(snapshot) / real(need.source_bandwidth.min(row.download).max(1)));
        }
        // Links are shared evenly among fetches: while these bytes come, each other fetch moves as many, unless it ends before.
        let shared = |other: Traffic| real(other.bytes).min(f64::from(other.fetches) * bytes) * row.image_seconds;
        let volumes = if self.need.request.app.is_empty() { 0 } else { self.need.in_zone(row.zone).0 };
        Terms {
            image_bytes_missing,
            image_bytes_in_flight,
            snapshot_bytes_missing: snapshot - snapshot_bytes_in_flight,
            snapshot_bytes_in_flight,
            fetch_seconds,
            load_seconds: weights.load_factor * shared(row.reported.without(underway.reported)),
            herd_seconds: weights.herd_factor * shared(row.pending.without(underway.pending))
                + weights.herd_start_seconds * f64::from(row.assignments),
            headroom_seconds: weights.headroom_seconds * self.need.fullness(at, row),
            spread_seconds: weights.spread_seconds * f64::from(volumes),
        }
    }

    /// The number by which the policy ranks a host; less is better, and it is never negative.
    pub fn cost(&self, number: u32) -> f64 {
        let at = index(number);
        let row = &self.fleet.index.rows[at];
        let fullness = || self.need.fullness(at, row);
        let compute = &self.need.request.compute;
        let shares = || [(self.need.cpus(at), u64::from(compute.cpus.count)), (row.memory, compute.memory_bytes)];
        let named = || self.named.is_some_and(|hosts| hosts.contains(number));
        let resources = |shares| least_allocated(shares) + balanced_allocation(shares);
        match self.policy {
            Policy::StartTime(_) => self.terms(number).seconds(),
            Policy::CapacityOnly => fullness(),
            Policy::ImageBit if self.need.image_name.is_none() || named() => fullness(),
            // Fullness is at most 1, so no emptiness outweighs the image.
            Policy::ImageBit => 2.0 + fullness(),
            Policy::ImageLocality => {
                let image = if named() { image_locality(&[self.named_image(number)], 1, wide(self.fleet.len())) } else { 0 };
                real((3 * POINTS_MAX).saturating_sub(image + resources(shares())))
            }
            Policy::LrScheduler => {
                let shares = shares();
                let [cpus, memory] = shares.map(|(share, more)| share.fullness(more));
                let layers = layer_score(self.there[at], self.need.image_bytes, cpus, memory);
                real((3 * POINTS_MAX).saturating_sub(layers + resources(shares)))
            }
        }
    }

    /// Bytes of the image as the host tells them, and how many hosts have it.
    fn named_image(&self, number: u32) -> (u64, u64) {
        let (Some(hosts), Some(name)) = (self.named, &self.need.image_name) else { return (0, 0) };
        (self.fleet.image_bytes(number, name), hosts.len())
    }

    /// Sorts as the ranking does: region preference, then cost, then a hash of the names of request and host. Costs that differ by
    /// less than a hundred thousand millionth are equal. The number of the host stands in the last 32 bits.
    pub fn key(&self, number: u32) -> u128 {
        let row = &self.fleet.index.rows[index(number)];
        let cost = self.cost(number).max(0.0).to_bits() >> 16;
        let tie = mix(self.request_hash, row.name_hash) >> 32;
        u128::from(self.need.preference(row.region)) << 112 | u128::from(cost) << 64 | u128::from(tie) << 32 | u128::from(number)
    }

    /// Numbers of the hosts that no constraint excludes.
    pub fn fitting(&self) -> impl Iterator<Item = u32> {
        self.verdicts.iter().zip(0..).filter(|(verdict, _)| verdict.is_none()).map(|(_, number)| number)
    }
}

/// Bytes of the blocks needed first that are not among those held.
fn missing_bytes(need: &SnapshotNeed, held: &HeldSnapshot, all: u64) -> u64 {
    let Some(present) = &held.present else { return 0 };
    let block_bytes = u64::from(need.block_bytes.max(1));
    let held_bytes = u64::from(held.block_bytes.max(1));
    let missing = match &need.first {
        // The whole of the snapshot, in blocks of the host's size.
        None => {
            let blocks = need.size_bytes.div_ceil(held_bytes);
            let within = u32::try_from(blocks).map_or(present.len(), |end| present.range_cardinality(..end));
            blocks.saturating_sub(within).saturating_mul(held_bytes)
        }
        Some(first) if block_bytes == held_bytes => first.difference_len(present).saturating_mul(block_bytes),
        Some(first) => {
            // Blocks of another size: one is there if all of the host's blocks that it touches are.
            let there = |block: &u32| {
                let start = u64::from(*block) * block_bytes;
                let touched = (start / held_bytes, (start + block_bytes - 1) / held_bytes);
                let (Ok(from), Ok(to)) = (u32::try_from(touched.0), u32::try_from(touched.1)) else { return false };
                present.contains_range(from..=to)
            };
            let missing = wide(first.iter().filter(|block| !there(block)).count());
            missing.saturating_mul(block_bytes)
        }
    };
    missing.min(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(first: Option<&[u32]>) -> SnapshotNeed {
        let first = first.map(|blocks| blocks.iter().copied().collect());
        SnapshotNeed { identity: "s".into(), block_bytes: 4096, size_bytes: 10 * 4096 - 1, first, source_bandwidth: 1, origin: None }
    }

    fn held(block_bytes: u32, present: &[u32]) -> HeldSnapshot {
        HeldSnapshot { block_bytes, size_bytes: 0, present: Some(present.iter().copied().collect()) }
    }

    #[test]
    fn only_blocks_that_are_needed_first_and_not_there_count() {
        let all = u64::MAX;
        assert_eq!(missing_bytes(&need(Some(&[1, 2, 9])), &held(4096, &[2, 3]), all), 2 * 4096);
        assert_eq!(missing_bytes(&need(None), &held(4096, &[2, 3, 100]), all), 8 * 4096, "blocks behind the end do not help");
        assert_eq!(missing_bytes(&need(None), &held(4096, &[]), 10 * 4096 - 1), 10 * 4096 - 1, "no more than there is");
        assert_eq!(missing_bytes(&need(None), &HeldSnapshot { present: None, ..held(1, &[]) }, all), 0);
    }

    #[test]
    fn blocks_of_another_size_are_compared_by_bytes() {
        let all = u64::MAX;
        // 4 KiB blocks 4 to 7 are the 16 KiB block 1.
        assert_eq!(missing_bytes(&need(Some(&[3, 4, 7, 8])), &held(16384, &[1]), all), 2 * 4096);
        // Block 2 is the 1 KiB blocks 8 to 11.
        assert_eq!(missing_bytes(&need(Some(&[2])), &held(1024, &[8, 9, 10]), all), 4096);
        assert_eq!(missing_bytes(&need(Some(&[2])), &held(1024, &[8, 9, 10, 11]), all), 0);
        assert_eq!(missing_bytes(&need(Some(&[u32::MAX])), &held(1, &[1]), all), 4096, "numbers past 32 bits are not there");
    }
}
