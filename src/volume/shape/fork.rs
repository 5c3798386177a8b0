//! Forking and snapshotting volumes of this store.

use std::sync::Arc;

use super::create::{Birth, Volumes};
use super::options::{Difference, LocalSource};
use crate::catalog::Catalog;
use crate::content::{Digest, HeldLayer};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{HeldRecord, Labels, LayerRecord, ShapeRecord, SnapshotRecord, changed_labels, valid_name};
use crate::ids::LayerId;
use crate::layer::{Layers, Ticket};
use crate::volume::head::Head;
use crate::volume::state::destroyed;

/// Whether no damage was met in a layer and those below it that was not repaired.
fn is_whole(layers: &Layers, catalog: &Catalog, layer: LayerId) -> bool {
    catalog.chain(layer).all(|(id, _)| layers.get(id).is_none_or(|layer| !layer.has_damage()))
}

impl Volumes {
    /// Forks a volume as it is now. The fork has the labels of its source, but for a difference, from the first moment.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Exists`], [`ErrorKind::InvalidInput`], [`ErrorKind::NoSpace`].
    pub fn fork_volume(&self, source: &str, name: &str, difference: Difference<'_>) -> Result<Arc<Head>> {
        valid_name(name)?;
        let head = self.open(source)?;
        self.fork_head(&head, name, difference)
    }

    /// As [`Volumes::fork_volume`], of a volume that is open, whatever it is called by now.
    ///
    /// # Errors
    /// As there.
    pub fn fork_head(&self, head: &Head, name: &str, difference: Difference<'_>) -> Result<Arc<Head>> {
        valid_name(name)?;
        self.begin_limits(difference.limits)?;
        let (created_at, _room) = (self.clock.unix().as_secs(), self.layers.barriers.reserve_shape()?);
        let (fork, ticket) = {
            let _closed = head.close();
            let mut catalog = self.shape.catalog();
            self.shape.name_is_free(&catalog, name)?;
            // Before the seal, because labels that are refused must leave the source as it is.
            let source = catalog.volume(head.id).ok_or_else(|| destroyed(head.id))?;
            let labels = changed_labels(source.labels.clone(), difference.labels)?;
            let source = source.name.clone();
            let _beginning = self.layers.hold_for_seal();
            let mut base = self.seal(&catalog, head, false)?;
            let size_bytes = base.view.size_bytes;
            let mut records = std::mem::take(&mut base.records);
            let layer = LayerId(catalog.next_layer()?.0 + u32::from(!records.is_empty()));
            records.push(ShapeRecord::Layer(LayerRecord::over(base.layer, layer)));
            let parent = base.layer;
            let birth = Birth { name, size_bytes, parent: &source, labels, limits: difference.limits, created_at };
            self.add(&mut catalog, records, parent, birth, Some(base))?
        };
        self.layers.barriers.wait_shape(ticket)?;
        Ok(fork)
    }

    /// Forks a snapshot.
    ///
    /// # Errors
    /// As [`Volumes::fork_volume`].
    pub fn fork_snapshot(&self, volume: &str, snapshot: &str, name: &str, difference: Difference<'_>) -> Result<Arc<Head>> {
        valid_name(name)?;
        self.begin_limits(difference.limits)?;
        let (created_at, _room) = (self.clock.unix().as_secs(), self.layers.barriers.reserve_shape()?);
        let base;
        let (fork, ticket) = {
            let mut catalog = self.shape.catalog();
            self.shape.name_is_free(&catalog, name)?;
            let (id, entry) = catalog.snapshot(volume, snapshot)?;
            base = entry.layer;
            let source = catalog.volume(id).ok_or_else(|| destroyed(id))?;
            let labels = changed_labels(source.labels.clone(), difference.labels)?;
            let parent = format!("{}@{snapshot}", source.name);
            let birth = Birth { name, size_bytes: entry.size_bytes, parent: &parent, labels, limits: difference.limits, created_at };
            let layer = catalog.next_layer()?;
            let records = vec![ShapeRecord::Layer(LayerRecord::over(Some(base), layer))];
            self.add(&mut catalog, records, Some(base), birth, None)?
        };
        self.layers.barriers.wait_shape(ticket)?;
        fork.record(self.recordings.begin(base, fork.id));
        self.recordings.follow(base);
        Ok(fork)
    }

    /// The layers of images in this store, in no order. Those that are known to be damaged are left out.
    pub fn held_layers(&self) -> Vec<HeldLayer> {
        let catalog = self.shape.catalog();
        let holding = catalog.layers().filter(|(id, entry)| !entry.held.is_empty() && is_whole(&self.layers, &catalog, *id));
        holding.flat_map(|(_, entry)| entry.held.iter().map(|(held, _)| *held)).collect()
    }

    /// The layer that holds a chain of layers of an image and is not known to be damaged, and its size.
    fn held(&self, catalog: &Catalog, chain: &Digest) -> Result<(LayerId, u64)> {
        let found = catalog.held(chain, |layer| is_whole(&self.layers, catalog, layer));
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("this store does not hold the layers {chain}")))
    }

    fn fork_held(&self, chain: &Digest, name: &str, difference: Difference<'_>) -> Result<Arc<Head>> {
        valid_name(name)?;
        let labels = changed_labels(Labels::new(), difference.labels)?;
        self.begin_limits(difference.limits)?;
        let (created_at, _room) = (self.clock.unix().as_secs(), self.layers.barriers.reserve_shape()?);
        let (fork, ticket) = {
            let mut catalog = self.shape.catalog();
            self.shape.name_is_free(&catalog, name)?;
            let (base, size_bytes) = self.held(&catalog, chain)?;
            let layer = catalog.next_layer()?;
            let records = vec![ShapeRecord::Layer(LayerRecord::over(Some(base), layer))];
            let birth = Birth { name, size_bytes, parent: &chain.to_string(), labels, limits: difference.limits, created_at };
            self.add(&mut catalog, records, Some(base), birth, None)?
        };
        self.layers.barriers.wait_shape(ticket)?;
        Ok(fork)
    }

    /// What a fork inherits: size and labels.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn heritage(&self, source: LocalSource<'_>) -> Result<(u64, Labels)> {
        let catalog = self.shape.catalog();
        let (volume, snapshot) = match source {
            LocalSource::Volume(volume) => (volume, None),
            LocalSource::Snapshot(volume, snapshot) => (volume, Some(snapshot)),
            LocalSource::Chain(chain) => return Ok((self.held(&catalog, chain)?.1, Labels::new())),
        };
        let id = self.shape.volume_id(&catalog, volume)?;
        let entry = catalog.volume(id).ok_or_else(|| destroyed(id))?;
        let found = snapshot.map(|snapshot| catalog.snapshot(volume, snapshot)).transpose()?;
        Ok((found.map_or(entry.size_bytes, |(_, snapshot)| snapshot.size_bytes), entry.labels.clone()))
    }

    /// Forks what this store has. The fork has the labels of its source, but for a difference, from the first moment.
    ///
    /// # Errors
    /// As [`Volumes::fork_volume`].
    pub fn fork_local(&self, source: LocalSource<'_>, name: &str, difference: Difference<'_>) -> Result<Arc<Head>> {
        match source {
            LocalSource::Volume(volume) => self.fork_volume(volume, name, difference),
            LocalSource::Snapshot(volume, snapshot) => self.fork_snapshot(volume, snapshot, name, difference),
            LocalSource::Chain(chain) => self.fork_held(chain, name, difference),
        }
    }

    /// Takes a snapshot of a volume as it is now; notes in the same round which layer of an image its last layer holds.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Exists`], [`ErrorKind::InvalidInput`], [`ErrorKind::NoSpace`].
    pub fn create_snapshot(&self, volume: &str, name: &str, held: Option<HeldLayer>) -> Result<()> {
        valid_name(name)?;
        let head = self.open(volume)?;
        self.snapshot_head(&head, name, held)
    }

    /// As [`Volumes::create_snapshot`], of a volume that is open, whatever it is called by now.
    ///
    /// # Errors
    /// As there.
    pub fn snapshot_head(&self, head: &Head, name: &str, held: Option<HeldLayer>) -> Result<()> {
        valid_name(name)?;
        let (created_at, _room) = (self.clock.unix().as_secs(), self.layers.barriers.reserve_shape()?);
        let ticket = {
            let _closed = head.close();
            let mut catalog = self.shape.catalog();
            let volume = catalog.volume(head.id).ok_or_else(|| destroyed(head.id))?;
            if volume.snapshots.get(name).is_some() {
                let message = format!("volume '{}' has a snapshot '{name}' already: choose another name", volume.name);
                return Err(Error::new(ErrorKind::Exists, message));
            }
            let held = |SnapshotRecord { layer, size_bytes, .. }: &SnapshotRecord| {
                held.map(|held| ShapeRecord::Held(HeldRecord { layer: *layer, size_bytes: *size_bytes, held }))
            };
            self.add_snapshot(&mut catalog, head, (false, created_at), |_| name.to_owned(), held)?.1
        };
        self.shape.await_snapshot(ticket)
    }

    /// Takes a snapshot of a volume; `always`: on a layer of its own, even if nothing was written since the last one. `name` makes its
    /// name from its layer, and `more` a record that comes in the same frame. The caller has closed the gate.
    ///
    /// # Errors
    /// As [`Volumes::seal`].
    pub fn add_snapshot(
        &self,
        catalog: &mut Catalog,
        head: &Head,
        (always, created_at): (bool, u64),
        name: impl FnOnce(LayerId) -> String,
        more: impl FnOnce(&SnapshotRecord) -> Option<ShapeRecord>,
    ) -> Result<(String, Ticket)> {
        let has_parent = head.view.read().layer.parent.is_some();
        let _beginning = self.layers.hold_for_seal();
        let mut base = self.seal(catalog, head, always || !has_parent)?;
        let layer = base.layer.ok_or_else(|| destroyed(head.id))?;
        let mut records = std::mem::take(&mut base.records);
        let name = name(layer);
        let snapshot = SnapshotRecord { volume: head.id, layer, size_bytes: base.view.size_bytes, created_at, name: name.clone() };
        let more = more(&snapshot);
        records.extend([ShapeRecord::Snapshot(snapshot)].into_iter().chain(more));
        let ticket = self.shape.change(catalog, None, records)?;
        self.shape.arrivals.add(head.id, &name, ticket);
        Ok((name, ticket))
    }
}
