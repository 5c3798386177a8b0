//! Questions about the shape.

use super::{Catalog, LayerEntry, SnapshotEntry, VolumeEntry};
use crate::content::{Digest, HeldLayer};
use crate::error::{Error, ErrorKind, Remedy, Result};
use crate::format::{Features, LeaseRecord, LesseeRecord};
use crate::ids::{LayerId, LeaseId, VolumeId, VolumeKey};

impl Catalog {
    /// All volumes, by name.
    pub fn volumes(&self) -> impl Iterator<Item = (VolumeId, &VolumeEntry)> {
        self.names.values().filter_map(|id| Some((*id, &**self.volumes.get(id)?)))
    }

    /// Identity of a volume among those of all stores.
    pub fn key(&self, volume: VolumeId) -> VolumeKey {
        VolumeKey::new(&self.store_id, volume)
    }

    /// Number of the volume with this name or [`VolumeKey`].
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn volume_id(&self, name: &str) -> Result<VolumeId> {
        let by_key = || self.keys.get(&VolumeKey::parse(name)?);
        self.names.get(name).or_else(by_key).copied().ok_or_else(|| {
            let message = match name.split_once('@') {
                Some((volume, _)) => format!("there is no volume '{name}', and no snapshot is meant here: name '{volume}'"),
                None => format!("there is no volume '{name}'"),
            };
            Error::remediable(ErrorKind::NotFound, message, Remedy::ListVolumes)
        })
    }

    /// A volume by number, if it still exists.
    pub fn volume(&self, id: VolumeId) -> Option<&VolumeEntry> {
        self.volumes.get(&id).map(|entry| &**entry)
    }

    /// A snapshot by names.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for either name.
    pub fn snapshot(&self, volume: &str, snapshot: &str) -> Result<(VolumeId, &SnapshotEntry)> {
        let id = self.volume_id(volume)?;
        let found = self.volumes.get(&id).and_then(|volume| volume.snapshots.get(snapshot));
        found.map(|entry| (id, entry)).ok_or_else(|| {
            let message = format!("volume '{volume}' has no snapshot '{snapshot}'");
            Error::remediable(ErrorKind::NotFound, message, Remedy::ListSnapshots(volume.to_owned()))
        })
    }

    /// Refuses a name of a new volume that is taken, or might be meant for another volume.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`], [`ErrorKind::InvalidInput`].
    pub fn name_is_free(&self, name: &str) -> Result<()> {
        if VolumeKey::parse(name).is_some() {
            let message = format!("'{name}' has the form of an id, which the store gives to volumes: choose another name");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        match self.names.contains_key(name) {
            true => Err(Error::new(ErrorKind::Exists, format!("there is a volume '{name}' already: choose another name"))),
            false => Ok(()),
        }
    }

    /// A layer by number.
    pub fn layer(&self, layer: LayerId) -> Option<&LayerEntry> {
        self.layers.get(&layer).map(|entry| &**entry)
    }

    /// All layers, in no particular order.
    pub fn layers(&self) -> impl Iterator<Item = (LayerId, &LayerEntry)> {
        self.layers.iter().map(|(id, entry)| (*id, &**entry))
    }

    /// The layer whose view is this chain of layers of an image, of those that are `whole`, and the size of the volume it was sealed in.
    pub fn held(&self, chain: &Digest, whole: impl Fn(LayerId) -> bool) -> Option<(LayerId, u64)> {
        let found = |(id, entry): (LayerId, &LayerEntry)| {
            let (_, size_bytes) = entry.held.iter().find(|(held, _)| held.chain == *chain)?;
            Some((id, *size_bytes))
        };
        // The newest of several: it was fetched again because an older one was damaged.
        self.layers().filter_map(found).filter(|(id, _)| whole(*id)).max()
    }

    /// Other layers that hold a chain of layers of an image which this one holds, in no order.
    pub fn twins(&self, layer: LayerId) -> Vec<LayerId> {
        let Some(LayerEntry { held, .. }) = self.layer(layer).filter(|entry| !entry.held.is_empty()) else { return Vec::new() };
        let is_twin = |(other, _): &(HeldLayer, u64)| held.iter().any(|(own, _)| own.chain == other.chain);
        self.layers().filter(|(id, entry)| *id != layer && entry.held.iter().any(is_twin)).map(|(id, _)| id).collect()
    }

    /// Layers that stand for the bytes of this identity, in no order.
    pub fn roots_of<'a>(&'a self, identity: &'a str) -> impl Iterator<Item = (LayerId, &'a LayerEntry)> {
        self.layers().filter(move |(_, entry)| !identity.is_empty() && entry.origin == identity)
    }

    /// A layer and its ancestors, from the top down.
    pub fn chain(&self, layer: LayerId) -> impl Iterator<Item = (LayerId, &LayerEntry)> {
        let first = self.layer(layer).map(|entry| (layer, entry));
        std::iter::successors(first, |(_, entry)| entry.parent.and_then(|parent| Some((parent, self.layer(parent)?))))
    }

    /// The root of the layer's chain, if it stands for a source that the chain still needs.
    pub fn needed_root(&self, layer: LayerId) -> Option<LayerId> {
        let mut above = None;
        for (id, entry) in self.chain(layer) {
            if entry.source.is_some() {
                return above.is_none_or(|above| entry.is_needed_by(above)).then_some(id);
            }
            above = Some(id);
        }
        None
    }

    /// A lease by number.
    pub fn lease(&self, id: LeaseId) -> Option<&LeaseRecord> {
        self.leases.get(id)
    }

    /// Leases of forks of other hosts.
    pub fn leases(&self) -> impl ExactSizeIterator<Item = &LeaseRecord> {
        self.leases.iter()
    }

    /// Leases of a volume's snapshots, or of one of them.
    pub fn leases_of(&self, volume: VolumeId, snapshot: Option<&str>) -> impl Iterator<Item = &LeaseRecord> {
        self.leases.of(volume, snapshot)
    }

    /// A lease at another host, by number.
    pub fn lessee(&self, id: LeaseId) -> Option<&LesseeRecord> {
        self.lessees.get(&id)
    }

    /// Leases at other hosts.
    pub fn lessees(&self) -> impl ExactSizeIterator<Item = &LesseeRecord> {
        self.lessees.values()
    }

    /// Whether the layer of a lease at another host still fetches from its address.
    pub fn needs_lease(&self, lessee: &LesseeRecord) -> bool {
        let source = self.layer(lessee.layer).and_then(|entry| entry.source.as_ref());
        source.is_some_and(|source| source.uris.contains(&lessee.uri))
    }

    /// Features that a program must know to read the records of this shape.
    pub fn features(&self) -> Features {
        Features {
            leases: self.leases.iter().len() > 0 || !self.lessees.is_empty() || self.layers.values().any(|entry| entry.live),
            limits: self.volumes.values().any(|entry| entry.limits.is_some()),
        }
    }

    /// The next unused layer number.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] after 2^32 - 1 layers.
    pub fn next_layer(&self) -> Result<LayerId> {
        match self.next_layer {
            u32::MAX => Err(Error::new(ErrorKind::Unsupported, "this store has used up its layer numbers: copy its volumes to a new one")),
            number => Ok(LayerId(number)),
        }
    }

    /// Never gives out the numbers of these layers, whose files a crash left without a record: a file that is about to be removed
    /// is never that of a new layer. Numbers that this store cannot have reached are of no concern.
    pub fn skip_layers(&mut self, files: impl IntoIterator<Item = LayerId>) {
        /// More layers than are ever made between two barrier rounds.
        const UNRECORDED_MAX: u32 = 1 << 20;
        let reached = self.next_layer.saturating_add(UNRECORDED_MAX);
        let last = files.into_iter().map(|layer| layer.0).filter(|layer| *layer < reached).max();
        self.next_layer = last.map_or(self.next_layer, |last| self.next_layer.max(last.saturating_add(1)));
    }

    /// The next unused volume number.
    pub fn next_volume(&self) -> VolumeId {
        VolumeId(self.next_volume)
    }
}
