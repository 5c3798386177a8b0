//! Names, layers and parents: the shape of a store. Pure: no I/O, no locks.
//!
//! # Invariants
//! - A layer is kept while a volume's head, a snapshot or a child layer refers to it, and freed with the last of them; freeing
//!   is a rule applied at replay as at run time, so it needs no records of its own.
//! - A head is the parent of no layer and the layer of no snapshot: it is open. Every other layer is sealed.
//! - A layer that holds a layer of an image keeps its whole view while it lives, as one with a name does: others may stand on it.
//! - A lease ends with its snapshot; a lessee stays after its layer was freed, until the lease was given back.
//! - Numbers of layers and volumes are never used twice.
#![deny(clippy::wildcard_enum_match_arm)]
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]
#![cfg_attr(all(feature = "sim", not(test)), deny(clippy::disallowed_methods))]

mod apply;
mod frozen;
mod leases;
mod query;
mod validate;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

pub use self::frozen::Frozen;
use self::leases::Leases;
use crate::content::HeldLayer;
use crate::format::{Labels, LesseeRecord, SourceRecord, VolumeLimits, is_instant};
use crate::ids::{LayerId, LeaseId, VolumeId, VolumeKey};

/// A layer's place in the shape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerEntry {
    /// `None` for the root of a chain.
    pub parent: Option<LayerId>,
    /// Layers directly above.
    pub children: BTreeSet<LayerId>,
    /// Volumes whose head it is, and snapshots whose layer it is.
    pub names: u32,
    /// Identity of its bytes at the store they came from, or empty.
    pub origin: String,
    /// The source it stands for, while that is needed.
    pub source: Option<SourceRecord>,
    /// The source it stood for, when that is not needed any more.
    pub detached: Option<SourceRecord>,
    /// Every address from which its bytes may have come: those that its first fork named, and those that an operator added since.
    pub named: BTreeSet<String>,
    /// The layers above with smaller numbers do not need it: their chains were complete before it was attached again.
    pub needed_from: LayerId,
    /// Layers of images that its view is, each with the size of the volume it was sealed in.
    pub held: Vec<(HeldLayer, u64)>,
    /// Its source was written while it was forked: its blocks are of different instants.
    pub live: bool,
}

impl LayerEntry {
    /// Whether it stands for a source that the chain of a layer directly above needs.
    pub fn is_needed_by(&self, above: LayerId) -> bool {
        self.source.is_some() && above >= self.needed_from
    }
}

/// A snapshot of a volume.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotEntry {
    /// Name within the volume.
    pub name: String,
    /// Its sealed layer.
    pub layer: LayerId,
    pub size_bytes: u64,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
}

/// A volume.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeEntry {
    /// Unique in the store.
    pub name: String,
    /// Its open layer, which writes go to.
    pub head: LayerId,
    pub size_bytes: u64,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
    /// Name of the volume or snapshot that it was forked from, or empty.
    pub parent: String,
    /// In the order in which they were taken.
    pub snapshots: Snapshots,
    pub labels: Labels,
    pub limits: VolumeLimits,
}

/// Snapshots of a volume, found by name and listed in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshots {
    entries: BTreeMap<u64, SnapshotEntry>,
    names: HashMap<String, u64>,
    next: u64,
    instants: usize,
}

impl Snapshots {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many of them were taken for leases.
    pub fn instants(&self) -> usize {
        self.instants
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &SnapshotEntry> {
        self.entries.values()
    }

    /// One by name.
    pub fn get(&self, name: &str) -> Option<&SnapshotEntry> {
        self.names.get(name).and_then(|number| self.entries.get(number))
    }

    /// Adds the youngest one; `false` if the name is taken.
    fn push(&mut self, entry: SnapshotEntry) -> bool {
        if self.names.contains_key(&entry.name) {
            return false;
        }
        self.instants += usize::from(is_instant(&entry.name));
        self.names.insert(entry.name.clone(), self.next);
        self.entries.insert(self.next, entry);
        self.next += 1;
        true
    }

    fn remove(&mut self, name: &str) -> Option<SnapshotEntry> {
        let number = self.names.remove(name)?;
        self.instants -= usize::from(is_instant(name));
        self.entries.remove(&number)
    }
}

/// The shape of a store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalog {
    /// Random, of the store.
    store_id: [u8; 16],
    names: BTreeMap<String, VolumeId>,
    keys: HashMap<VolumeKey, VolumeId>,
    /// Entries are shared with each [`Frozen`].
    volumes: BTreeMap<VolumeId, Arc<VolumeEntry>>,
    layers: HashMap<LayerId, Arc<LayerEntry>>,
    /// Of forks of other hosts.
    leases: Leases,
    /// Of layers of this store, at other hosts.
    lessees: BTreeMap<LeaseId, LesseeRecord>,
    next_volume: u64,
    next_layer: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{HydrationSettings, LayerRecord, ShapeRecord, VolumeRecord};

    fn written_anew(catalog: &Catalog) -> Catalog {
        let mut again = Catalog::default();
        for record in Frozen::of(catalog).records() {
            again.apply(&record).unwrap();
        }
        again
    }

    /// Blocks and frames of a number that was used before may still be on disk, and would verify.
    #[test]
    fn a_shape_that_was_written_anew_uses_no_number_again() {
        let mut catalog = Catalog::default();
        for number in 0..2u32 {
            let (volume, head) = (VolumeId(number.into()), LayerId(number));
            let name = format!("v{number}");
            catalog.apply(&ShapeRecord::Layer(LayerRecord::over(None, head))).unwrap();
            let volume = VolumeRecord { volume, head, size_bytes: 1 << 20, created_at: 0, name, parent: String::new() };
            catalog.apply(&ShapeRecord::Volume(volume)).unwrap();
        }
        assert_eq!(catalog.apply(&ShapeRecord::DestroyVolume(VolumeId(1))).unwrap(), [LayerId(1)]);
        let again = written_anew(&catalog);
        assert_eq!(again, catalog);
        assert_eq!((again.next_volume(), again.next_layer().unwrap()), (VolumeId(2), LayerId(2)));
    }

    #[test]
    fn numbers_of_files_without_a_record_are_not_given_again() {
        let mut catalog = Catalog::default();
        catalog.skip_layers([]);
        assert_eq!(catalog.next_layer().unwrap(), LayerId(0));
        catalog.skip_layers([LayerId(4), LayerId(7), LayerId(u32::MAX)]);
        assert_eq!(catalog.next_layer().unwrap(), LayerId(8));
        catalog.skip_layers([LayerId(3)]);
        assert_eq!(written_anew(&catalog).next_layer().unwrap(), LayerId(8));
    }

    /// Bytes of an address that is not used any more are there still.
    #[test]
    fn every_address_that_was_ever_used_is_kept_in_mind() {
        let root = LayerId(3);
        let uris = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let source = SourceRecord { uris: uris(&["a", "b"]), size_bytes: 1 << 20, settings: HydrationSettings::default() };
        let mut catalog = Catalog::default();
        catalog.apply(&ShapeRecord::Layer(LayerRecord { layer: root, parent: None, origin: "h/1".into(), source: Some(source) })).unwrap();
        for (record, used) in [
            (ShapeRecord::Sources(root, uris(&["c", "a"])), Some(&["c", "a"][..])),
            (ShapeRecord::Sources(root, uris(&["c"])), Some(&["c"])),
            (ShapeRecord::Detach(root), None),
        ] {
            catalog.apply(&record).unwrap();
            let again = written_anew(&catalog);
            assert_eq!(again, catalog, "{record:?}");
            let entry = again.layer(root).unwrap();
            assert!(entry.named.iter().eq(&["a", "b", "c"]));
            assert_eq!(entry.source.as_ref().map(|source| source.uris.clone()), used.map(uris));
        }
    }

    #[test]
    fn a_source_that_was_attached_again_is_needed_by_later_layers() {
        let root = LayerId(3);
        let source = SourceRecord { uris: vec!["nbd://h/v@s".into()], size_bytes: 1 << 20, settings: HydrationSettings::default() };
        let mut catalog = Catalog::default();
        let layer = LayerRecord { layer: root, parent: None, origin: "h/1".into(), source: Some(source.clone()) };
        catalog.apply(&ShapeRecord::Layer(layer)).unwrap();
        let add = |catalog: &mut Catalog, parent: LayerId, layer| {
            catalog.apply(&ShapeRecord::Layer(LayerRecord::over(Some(parent), LayerId(layer)))).unwrap();
        };
        add(&mut catalog, root, 4);
        let needs = |catalog: &Catalog, layers: &[u32]| {
            let again = written_anew(catalog);
            assert_eq!(again, *catalog);
            layers.iter().map(|layer| again.needed_root(LayerId(*layer)) == Some(root)).collect::<Vec<bool>>()
        };
        assert_eq!(needs(&catalog, &[3, 4]), [true, true]);
        catalog.apply(&ShapeRecord::Detach(root)).unwrap();
        add(&mut catalog, LayerId(4), 5);
        assert_eq!(needs(&catalog, &[3, 4, 5]), [false; 3]);
        catalog.apply(&ShapeRecord::Attach(root, LayerId(6), source)).unwrap();
        for (parent, layer) in [(root, 6), (LayerId(4), 7), (LayerId(6), 8)] {
            add(&mut catalog, parent, layer);
        }
        assert_eq!(needs(&catalog, &[3, 4, 5, 6, 7, 8]), [true, false, false, true, false, true]);
        assert_eq!(catalog.roots_of("h/1").map(|(id, _)| id).collect::<Vec<_>>(), [root]);
        assert_eq!(catalog.roots_of("").count(), 0);
        catalog.apply(&ShapeRecord::Detach(root)).unwrap();
        assert_eq!(needs(&catalog, &[3, 6, 8]), [false; 3]);
    }
}
