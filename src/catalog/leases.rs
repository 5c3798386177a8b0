//! Leases that forks of other hosts have, found by number and by what they hold.

use std::collections::{BTreeMap, BTreeSet};

use crate::format::LeaseRecord;
use crate::ids::{LeaseId, VolumeId};

/// The leases of a store.
///
/// # Invariants
/// - Each lease in `by_id` has one key in `held`, and there are no others.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Leases {
    by_id: BTreeMap<LeaseId, LeaseRecord>,
    held: BTreeSet<Key>,
}

/// The volume, the name of its snapshot, and the lease of that.
type Key = (VolumeId, String, LeaseId);

fn key(lease: &LeaseRecord) -> Key {
    (lease.volume, lease.snapshot.clone(), lease.id)
}

impl Leases {
    pub fn get(&self, id: LeaseId) -> Option<&LeaseRecord> {
        self.by_id.get(&id)
    }

    /// All of them, by number.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &LeaseRecord> {
        self.by_id.values()
    }

    /// Those of a volume's snapshots, or of one of them. Costs nothing for those of others.
    pub fn of(&self, volume: VolumeId, snapshot: Option<&str>) -> impl Iterator<Item = &LeaseRecord> {
        let first = (volume, snapshot.unwrap_or_default().to_owned(), LeaseId([0; 16]));
        let held = self.held.range(first..).take_while(move |(of, name, _)| *of == volume && snapshot.is_none_or(|wanted| wanted == name));
        held.filter_map(|(_, _, id)| self.by_id.get(id))
    }

    /// Adds one, or replaces that of the same number.
    pub fn insert(&mut self, lease: &LeaseRecord) {
        self.remove(lease.id);
        self.held.insert(key(lease));
        self.by_id.insert(lease.id, lease.clone());
    }

    pub fn remove(&mut self, id: LeaseId) {
        if let Some(lease) = self.by_id.remove(&id) {
            self.held.remove(&key(&lease));
        }
    }

    /// Removes those of a volume's snapshots, or of one of them.
    pub fn remove_of(&mut self, volume: VolumeId, snapshot: Option<&str>) {
        let over: Vec<LeaseId> = self.of(volume, snapshot).map(|lease| lease.id).collect();
        over.into_iter().for_each(|id| self.remove(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: u8, volume: u64, snapshot: &str) -> LeaseRecord {
        let (snapshot, text) = (snapshot.to_owned(), String::new);
        LeaseRecord {
            id: LeaseId([id; 16]),
            volume: VolumeId(volume),
            renewed_at: 0,
            lapse_seconds: 1,
            snapshot,
            fork: text(),
            host: text(),
            address: text(),
        }
    }

    #[test]
    fn leases_are_found_by_what_they_hold() {
        let mut leases = Leases::default();
        // The last number and the last name are found as well; the second of number 4 replaces the first.
        let all = [(255, 1, "s"), (4, 1, "s"), (4, 2, "s"), (5, 1, "t"), (6, 1, "s"), (7, u64::MAX, "s"), (8, 0, "z")];
        all.iter().for_each(|(id, volume, snapshot)| leases.insert(&lease(*id, *volume, snapshot)));
        let of = |leases: &Leases, volume, snapshot| leases.of(VolumeId(volume), snapshot).map(|lease| lease.id.0[0]).collect::<Vec<_>>();
        assert_eq!(of(&leases, 1, Some("s")), [6, 255]);
        assert_eq!(of(&leases, 1, None), [6, 255, 5]);
        assert_eq!((of(&leases, 2, None), of(&leases, u64::MAX, None), of(&leases, 3, None)), (vec![4], vec![7], vec![]));
        leases.remove_of(VolumeId(1), Some("s"));
        assert_eq!((of(&leases, 1, None), of(&leases, 1, Some("s"))), (vec![5], vec![]));
        leases.remove_of(VolumeId(1), None);
        [4, 7, 8].iter().for_each(|id| leases.remove(LeaseId([*id; 16])));
        assert_eq!(leases, Leases::default());
    }
}
