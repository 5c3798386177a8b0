//! Cache of fetched image layers on a host: evicts the least recently used layer that no machine uses.

use std::collections::{BTreeMap, HashMap};

use crate::network::Item;

#[derive(Debug)]
struct Held {
    bytes: u64,
    /// Machines that use it or wait for it.
    pins: u32,
    stamp: u64,
}

/// A cache. While machines pin more than fits, it is larger than it should be.
#[derive(Debug)]
pub struct Cache {
    capacity: u64,
    bytes: u64,
    stamp: u64,
    items: HashMap<Item, Held>,
    /// What may go, the least recently used first.
    unpinned: BTreeMap<u64, Item>,
}

impl Cache {
    pub fn new(capacity: u64) -> Self {
        Self { capacity, bytes: 0, stamp: 0, items: HashMap::new(), unpinned: BTreeMap::new() }
    }

    pub fn holds(&self, item: Item) -> bool {
        self.items.contains_key(&item)
    }

    pub fn items(&self) -> impl Iterator<Item = (Item, u64)> {
        self.items.iter().map(|(item, held)| (*item, held.bytes))
    }

    /// Adds bytes to an item, new or known, which becomes the most recently used; what had to go for it.
    pub fn add(&mut self, item: Item, bytes: u64) -> Vec<Item> {
        self.pin(item);
        if let Some(held) = self.items.get_mut(&item) {
            held.bytes += bytes;
            self.bytes += bytes;
        }
        let gone = self.evict();
        self.unpin(item);
        gone
    }

    /// Keeps an item, which has no bytes if it is new, until it is unpinned as often.
    pub fn pin(&mut self, item: Item) {
        let held = self.items.entry(item).or_insert(Held { bytes: 0, pins: 0, stamp: 0 });
        if held.pins == 0 {
            self.unpinned.remove(&held.stamp);
        }
        held.pins += 1;
    }

    pub fn unpin(&mut self, item: Item) {
        let Some(held) = self.items.get_mut(&item) else { return };
        held.pins -= 1;
        if held.pins == 0 {
            self.stamp += 1;
            held.stamp = self.stamp;
            self.unpinned.insert(self.stamp, item);
        }
    }

    fn evict(&mut self) -> Vec<Item> {
        let mut gone = Vec::new();
        while self.bytes > self.capacity {
            let Some((_, item)) = self.unpinned.pop_first() else { break };
            if let Some(held) = self.items.remove(&item) {
                self.bytes -= held.bytes;
                gone.push(item);
            }
        }
        gone
    }
}
