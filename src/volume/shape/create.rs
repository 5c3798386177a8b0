//! Creating volumes, and the seal of a head on which forks and snapshots stand.

use std::sync::Arc;

use super::heads::Heads;
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Features, Labels, LayerRecord, ShapeRecord, VolumeLimits, VolumeRecord, valid_labels, valid_name};
use crate::ids::LayerId;
use crate::layer::{Layers, Ticket};
use crate::limits::VOLUME_BYTES_MAX;
use crate::volume::blocks::{Blocks, View};
use crate::volume::head::Head;
use crate::volume::hydration::Recordings;
#[cfg(feature = "serve")]
use crate::volume::limiter::Limiters;
use crate::volume::pool::Pool;
use crate::volume::state::{Leases, Shape, destroyed};

/// Creates and changes the volumes of a store.
pub struct Volumes {
    pub layers: Arc<Layers>,
    pub shape: Arc<Shape>,
    pub blocks: Arc<Blocks>,
    pub pool: Arc<Pool>,
    pub leases: Arc<Leases>,
    pub recordings: Arc<Recordings>,
    pub heads: Heads,
    #[cfg(feature = "serve")]
    pub limiters: Limiters,
    pub clock: Arc<dyn Clock>,
}

/// What a new volume is called, and where it comes from.
pub struct Birth<'a> {
    pub name: &'a str,
    pub size_bytes: u64,
    /// The volume or snapshot that it was forked from, or empty.
    pub parent: &'a str,
    pub labels: Labels,
    pub limits: VolumeLimits,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
}

/// A layer that forks and snapshots of a volume can stand on.
pub struct Base {
    /// `None`: the volume is blank and stands on nothing.
    pub layer: Option<LayerId>,
    /// The view of the volume after the seal.
    pub view: View,
    /// The records of the seal; none if the head was blank.
    pub records: Vec<ShapeRecord>,
}

pub fn check_size(size_bytes: u64) -> Result<()> {
    if size_bytes == 0 || size_bytes > VOLUME_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("a volume has 1 byte to {} TiB, not {size_bytes} bytes", VOLUME_BYTES_MAX >> 40),
        ));
    }
    Ok(())
}

impl Volumes {
    /// The open head of a volume, which is opened if it is not.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn open(&self, name: &str) -> Result<Arc<Head>> {
        let now = self.recordings.now();
        let catalog = self.shape.catalog();
        let id = self.shape.volume_id(&catalog, name)?;
        let mut opening = self.heads.opening();
        if let Some(head) = opening.get(id) {
            return Ok(head);
        }
        let entry = catalog.volume(id).ok_or_else(|| destroyed(id))?;
        let view = View::new(self.layers.require(entry.head)?, entry.size_bytes);
        let head = Head::new(&self.blocks, &self.shape, &self.pool, id, view);
        // A fork is recorded however often it is opened.
        head.record(self.recordings.get(id).or_else(|| self.recordings.begin_young(&catalog, id, entry, now)));
        opening.add(&head);
        Ok(head)
    }

    /// Lets the superblock say that the store may have limits, if there are some: to be called before their record is made.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if they cannot be; those of a checkpoint.
    pub fn begin_limits(&self, limits: VolumeLimits) -> Result<()> {
        limits.check()?;
        if limits.is_some() { self.shape.begin(Features::LIMITS) } else { Ok(()) }
    }

    /// Creates an empty volume, and its labels and limits in the same frame.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`], [`ErrorKind::Exists`], [`ErrorKind::NoSpace`].
    pub fn create(&self, name: &str, size_bytes: u64, labels: Labels, limits: VolumeLimits) -> Result<Arc<Head>> {
        valid_name(name)?;
        valid_labels(&labels)?;
        check_size(size_bytes)?;
        self.begin_limits(limits)?;
        let birth = Birth { name, size_bytes, parent: "", labels, limits, created_at: self.clock.unix().as_secs() };
        let _room = self.layers.barriers.reserve_shape()?;
        let (head, ticket) = {
            let mut catalog = self.shape.catalog();
            self.shape.name_is_free(&catalog, name)?;
            let layer = catalog.next_layer()?;
            let records = vec![ShapeRecord::Layer(LayerRecord::over(None, layer))];
            self.add(&mut catalog, records, None, birth, None)?
        };
        self.layers.barriers.wait_shape(ticket)?;
        Ok(head)
    }

    /// Adds a volume over the last layer of `records`, which stands on `parent`. `base`: the view that the volume begins with.
    pub fn add(
        &self,
        catalog: &mut Catalog,
        mut records: Vec<ShapeRecord>,
        parent: Option<LayerId>,
        Birth { name, size_bytes, parent: label, labels, limits, created_at }: Birth<'_>,
        base: Option<Base>,
    ) -> Result<(Arc<Head>, Ticket)> {
        let volume = catalog.next_volume();
        let Some(ShapeRecord::Layer(LayerRecord { layer: head, .. })) = records.last() else {
            return Err(Error::new(ErrorKind::InvalidInput, "a volume needs a layer"));
        };
        let head = *head;
        records.push(ShapeRecord::Volume(VolumeRecord {
            volume,
            head,
            size_bytes,
            created_at,
            name: name.to_owned(),
            parent: label.to_owned(),
        }));
        if !labels.is_empty() {
            records.push(ShapeRecord::Labels(volume, labels));
        }
        records.extend(limits.is_some().then_some(ShapeRecord::Limits(volume, limits)));
        let layer = self.layers.add(head, parent, None);
        let ticket = self.shape.change(catalog, None, records)?;
        self.layers.found(&layer, ticket);
        let view = match base {
            None => View::new(layer, size_bytes),
            Some(base) => View { layer, size_bytes, owners: base.view.owners },
        };
        let head = Head::new(&self.blocks, &self.shape, &self.pool, volume, view);
        self.heads.add(&head);
        Ok((head, ticket))
    }

    /// Seals a volume's head, unless it is blank, so that others can stand on it; `always`: also a blank one. The caller has closed the
    /// gate, locked the catalogue, and lets no round begin until the records that follow are queued ([`Layers::hold_for_seal`]): a flush
    /// of the new head must not be in a round before the one that has its record, or that round names blocks of a layer that recovery
    /// does not know.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; the store has used up its layer numbers.
    pub fn seal(&self, catalog: &Catalog, head: &Head, always: bool) -> Result<Base> {
        head.check_alive()?;
        let mut view = head.view.write();
        let old = Arc::clone(&view.layer);
        if old.is_blank() && !always {
            return Ok(Base { layer: old.parent, view: view.clone(), records: Vec::new() });
        }
        let layer = catalog.next_layer()?;
        old.seal();
        // What was written to the old head is durable with the records that follow. It is queued before the new head is visible: a
        // flush of the new head has to find that there is something to wait for.
        let ticket = self.layers.enqueue_sync(old.id);
        view.layer = self.layers.add(layer, Some(old.id), None);
        self.layers.found(&view.layer, ticket);
        let records = vec![ShapeRecord::Layer(LayerRecord::over(Some(old.id), layer)), ShapeRecord::Seal { volume: head.id, head: layer }];
        Ok(Base { layer: Some(old.id), view: view.clone(), records })
    }
}
