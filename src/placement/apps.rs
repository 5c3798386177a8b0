//! In which zones an app has volumes.

use std::collections::{BTreeMap, HashMap};

use crate::place::index;

/// Numbers for texts: dense, and used again when the last user of a text is gone.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    by_text: HashMap<(String, String), u32>,
    texts: Vec<((String, String), u32)>,
    free: Vec<u32>,
}

impl Numbers {
    /// The number of a pair of texts, for one more user.
    pub fn take(&mut self, first: &str, second: &str) -> u32 {
        let key = (first.to_owned(), second.to_owned());
        if let Some(&number) = self.by_text.get(&key) {
            self.texts[index(number)].1 += 1;
            return number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.texts.push(Default::default());
            u32::try_from(self.texts.len() - 1).expect("fewer than 2^32 zones")
        });
        self.texts[index(number)] = (key.clone(), 1);
        self.by_text.insert(key, number);
        number
    }

    /// One user less.
    pub fn give_back(&mut self, number: u32) {
        let (key, users) = &mut self.texts[index(number)];
        *users -= 1;
        if *users == 0 {
            self.by_text.remove(key);
            self.free.push(number);
        }
    }

    pub fn find(&self, first: &str, second: &str) -> Option<u32> {
        self.by_text.get(&(first.to_owned(), second.to_owned())).copied()
    }

    /// One more than the greatest number.
    pub fn end(&self) -> usize {
        self.texts.len()
    }
}

/// Volumes of one app in one zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct InZone {
    /// Number of volumes, whatever their names.
    pub volumes: u32,
    /// Number of volumes of each name; none is 0.
    pub by_name: BTreeMap<String, u32>,
}

/// Volumes by app and zone.
#[derive(Debug, Default)]
pub(super) struct Apps {
    by_app: HashMap<String, BTreeMap<u32, InZone>>,
}

impl Apps {
    pub fn add(&mut self, app: &str, zone: u32, volume: &str) {
        if !self.by_app.contains_key(app) {
            self.by_app.insert(app.to_owned(), BTreeMap::new());
        }
        let zones = self.by_app.get_mut(app).expect("it was just put there");
        let here = zones.entry(zone).or_default();
        here.volumes += 1;
        *here.by_name.entry(volume.to_owned()).or_insert(0) += 1;
    }

    pub fn take(&mut self, app: &str, zone: u32, volume: &str) {
        let Some(zones) = self.by_app.get_mut(app) else { return };
        let Some(here) = zones.get_mut(&zone) else { return };
        here.volumes = here.volumes.saturating_sub(1);
        if let Some(count) = here.by_name.get_mut(volume) {
            *count -= 1;
            if *count == 0 {
                here.by_name.remove(volume);
            }
        }
        if here.volumes == 0 {
            zones.remove(&zone);
        }
        if zones.is_empty() {
            self.by_app.remove(app);
        }
    }

    /// Volumes of the app by zone.
    pub fn zones(&self, app: &str) -> impl Iterator<Item = (u32, &InZone)> {
        self.by_app.get(app).into_iter().flatten().map(|(zone, here)| (*zone, here))
    }

    /// Bytes on the heap, roughly: names, and what trees need for each entry.
    pub fn memory_bytes(&self) -> usize {
        let entry = |text: &str| text.len() + 64;
        let zones = self.by_app.iter().flat_map(|(app, zones)| {
            std::iter::once(entry(app))
                .chain(zones.values().map(|here| entry("") + here.by_name.keys().map(|name| entry(name)).sum::<usize>()))
        });
        zones.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_used_again() {
        let mut numbers = Numbers::default();
        let a = numbers.take("ams", "1");
        assert_eq!((numbers.take("ams", "2"), numbers.take("ams", "1")), (1, a));
        numbers.give_back(a);
        assert_eq!(numbers.find("ams", "1"), Some(a), "one user is left");
        numbers.give_back(a);
        assert_eq!((numbers.find("ams", "1"), numbers.take("fra", "1"), numbers.end()), (None, a, 2));
    }

    #[test]
    fn volumes_are_counted_by_zone_and_name() {
        let mut apps = Apps::default();
        for (zone, volume) in [(1, "data"), (1, "data"), (1, "log"), (2, "data")] {
            apps.add("shop", zone, volume);
        }
        let counts = |apps: &Apps| apps.zones("shop").map(|(zone, here)| (zone, here.volumes, here.by_name.len())).collect::<Vec<_>>();
        assert_eq!(counts(&apps), [(1, 3, 2), (2, 1, 1)]);
        apps.take("shop", 1, "log");
        apps.take("shop", 2, "data");
        assert_eq!(counts(&apps), [(1, 2, 1)]);
        assert_eq!(apps.zones("other").count(), 0);
    }
}
