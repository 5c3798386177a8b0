//! Which hosts hold what, looked up by the thing and not by the host.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

use roaring::RoaringBitmap;

use crate::place::{index, length};

/// A fetch on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moving {
    pub host: u32,
    /// Bytes that have not arrived.
    pub bytes: u64,
    /// Whether it is only known from an assignment that the host has not reported.
    pub pending: bool,
}

/// The hosts that hold a thing or fetch it, by number.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// Those that hold it.
    pub hosts: RoaringBitmap,
    /// Those that fetch it, each once.
    pub moving: Vec<Moving>,
}

/// Holders of things; a thing that no host holds or fetches is forgotten.
#[derive(Debug)]
pub(super) struct Presence<K> {
    by_key: HashMap<K, Holders>,
}

impl<K> Default for Presence<K> {
    fn default() -> Self {
        Self { by_key: HashMap::new() }
    }
}

impl<K: Eq + Hash + Clone> Presence<K> {
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&Holders>
    where
        K: Borrow<Q>,
    {
        self.by_key.get(key)
    }

    pub fn hold(&mut self, key: &K, host: u32) {
        self.entry(key).hosts.insert(host);
    }

    pub fn lose(&mut self, key: &K, host: u32) {
        self.change(key, |holders| _ = holders.hosts.remove(host));
    }

    /// Notes a fetch; a host fetches a thing at most once, so a second fetch is not noted.
    pub fn begin(&mut self, key: &K, moving: Moving) -> bool {
        let holders = self.entry(key);
        let new = holders.moving.iter().all(|other| other.host != moving.host);
        if new {
            holders.moving.push(moving);
        }
        new
    }

    pub fn end(&mut self, key: &K, host: u32) {
        self.change(key, |holders| holders.moving.retain(|moving| moving.host != host));
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Bytes on the heap, those of the keys themselves left out.
    pub fn memory_bytes(&self) -> usize {
        // A table is at most seven eighths full and has one control byte for each place.
        let places = (self.by_key.capacity() * 8).div_ceil(7).next_power_of_two();
        let table = places * (size_of::<(K, Holders)>() + 1);
        let sets = self.by_key.values().map(|holders| {
            let statistics = holders.hosts.statistics();
            // A container has a header of 32 bytes, and the two allocations cost about 16 bytes each.
            let bitmap = statistics.n_bytes_array_containers + statistics.n_bytes_bitset_containers + statistics.n_bytes_run_containers;
            length(bitmap) + index(statistics.n_containers) * 64 + holders.moving.capacity() * size_of::<Moving>()
        });
        table + sets.sum::<usize>()
    }

    fn entry(&mut self, key: &K) -> &mut Holders {
        if !self.by_key.contains_key(key) {
            self.by_key.insert(key.clone(), Holders::default());
        }
        self.by_key.get_mut(key).expect("it was just put there")
    }

    fn change(&mut self, key: &K, change: impl FnOnce(&mut Holders)) {
        if let Some(holders) = self.by_key.get_mut(key) {
            change(holders);
            if holders.hosts.is_empty() && holders.moving.is_empty() {
                self.by_key.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_holds_or_fetches_is_forgotten() {
        let mut presence = Presence::<String>::default();
        let key = "layer".to_owned();
        presence.hold(&key, 7);
        assert!(presence.begin(&key, Moving { host: 9, bytes: 5, pending: false }));
        assert!(!presence.begin(&key, Moving { host: 9, bytes: 8, pending: true }), "a host fetches a thing once");
        presence.lose(&key, 7);
        assert_eq!(presence.get("layer").unwrap().moving, [Moving { host: 9, bytes: 5, pending: false }]);
        presence.end(&key, 9);
        assert!(presence.get("layer").is_none());
        assert_eq!(presence.len(), 0);
    }
}
