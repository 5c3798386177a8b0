//! Changes of shape: create, fork, snapshot. (Names and labels, to resize, to destroy and to steer: `naming`, `resize`, `destroy`,
//! `steer`.)
//!
//! # Visible and durable
//! A change of shape is visible in its store from the moment it is made, before it is durable. That harms nobody here: the journal
//! has changes in the order in which they were made, so when a fork of an unacknowledged fork (or a flush of one) is acknowledged,
//! what it stands on is durable too; and what nobody was told of may vanish in a crash as if it had never been. It would harm other
//! hosts, which know a snapshot by its layer's number, for that number may be given again after the crash. So a snapshot is opened,
//! and with that exported, only when its record is durable ([`Core::await_arrival`]).
//!
//! A round may be undone, for lack of space, descriptors or memory. The change stands then and is in the next round; its caller waits for
//! a few of them, and is told [`ErrorKind::NotDurable`] if the shortage lasts. Until these changes are durable further ones are refused
//! before anything has changed ([`crate::layer::Layers::barriers`]). So what a call answers agrees with what the store shows, and
//! what waits for a round is bounded.
//!
//! Each is one journal record group and one barrier round: it is applied in memory under the catalogue's lock, put into the
//! next round there (so the journal has changes in the order in which they were made), and waited for outside all locks.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::core::{Core, gone, no_sources};
use super::head::Head;
use super::lessees::Asked;
use super::view::View;
use crate::catalog::{Catalog, LayerEntry};
use crate::content::{Digest, HeldLayer};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    HeldRecord, HydrationSettings, LabelChange, Labels, LayerRecord, SOURCE_URIS_MAX, ShapeRecord, SnapshotRecord, SourceRecord,
    VolumeRecord, changed_labels, valid_labels, valid_name,
};
use crate::hydrate::Hydrator;
use crate::ids::LayerId;
use crate::layer::Ticket;
use crate::limits::VOLUME_BYTES_MAX;
use crate::source::{Lease, LeasedSource, Source, SourceError, SourceErrorKind};

/// How a volume is forked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForkOptions {
    /// Labels that the fork has other than it would inherit: new values by key, `None` for those that it does not get.
    pub labels: LabelChange,
    /// A source elsewhere that is written while it is forked, and cannot give a snapshot of itself, is forked all the same: the
    /// blocks of the fork are then of different instants.
    pub live: bool,
    /// Size of the fork in bytes, if it is to be larger than its source: what is behind the source's end reads as zero.
    pub size_bytes: Option<u64>,
}

/// A source that has answered, and the addresses of the bytes.
struct Opened<'a> {
    uris: Vec<String>,
    source: Arc<dyn Source>,
    lease: Option<Lease>,
    asked: Asked<'a>,
    /// It is written, and the user accepts that.
    live: bool,
}

/// What a new volume is called, and where it comes from.
struct Birth<'a> {
    name: &'a str,
    size_bytes: u64,
    /// What it was forked from, or empty.
    parent: &'a str,
    labels: Labels,
    /// When, if that was asked before.
    created_at: Option<u64>,
}

/// Asked before a fork is made: told its size and labels, which it may change, and may refuse it.
pub type Admit<'a> = &'a mut dyn FnMut(u64, &mut Labels) -> Result<()>;

/// A layer that forks and snapshots of a volume can stand on.
struct Base {
    layer: Option<LayerId>,
    view: View,
    records: Vec<ShapeRecord>,
}

/// The layer that stands for a source, below a new fork.
struct Root {
    layer: LayerId,
    /// What there is to note of it.
    records: Vec<ShapeRecord>,
    /// What is to fetch its blocks from now on, if nobody does.
    hydrator: Option<Arc<Hydrator>>,
    /// The number of the fork's own layer.
    next_layer: LayerId,
}

pub(super) fn check_size(size_bytes: u64) -> Result<()> {
    if size_bytes == 0 || size_bytes > VOLUME_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("a volume has 1 byte to {} TiB, not {size_bytes} bytes", VOLUME_BYTES_MAX >> 40),
        ));
    }
    Ok(())
}

fn source_error(error: &SourceError) -> Error {
    let kind = match error.kind {
        SourceErrorKind::Invalid => ErrorKind::InvalidInput,
        SourceErrorKind::Lost | SourceErrorKind::Failed | SourceErrorKind::Changed | SourceErrorKind::Damaged | SourceErrorKind::Closed => {
            ErrorKind::SourceLost
        }
    };
    Error::new(kind, format!("cannot fork: {}", error.message))
}

impl Core {
    /// Seconds since the Unix epoch.
    pub fn unix_seconds(&self) -> u64 {
        self.clock.unix().as_secs()
    }

    /// Creates an empty volume, and its labels in the same frame.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`], [`ErrorKind::Exists`], [`ErrorKind::NoSpace`].
    pub fn create_volume(self: &Arc<Self>, name: &str, size_bytes: u64, labels: Labels) -> Result<Arc<Head>> {
        valid_name(name)?;
        valid_labels(&labels)?;
        check_size(size_bytes)?;
        let _room = self.layers.barriers.reserve_shape()?;
        let (head, ticket) = {
            let mut catalog = self.catalog();
            self.name_is_free(&catalog, name)?;
            let layer = catalog.next_layer()?;
            let records = vec![ShapeRecord::Layer(LayerRecord::over(None, layer))];
            self.add_volume(&mut catalog, records, None, Birth { name, size_bytes, parent: "", labels, created_at: None }, None)?
        };
        self.layers.barriers.wait_shape(ticket)?;
        Ok(head)
    }

    /// Adds a volume over the last layer of `records`, whose parent is `parent`.
    fn add_volume(
        self: &Arc<Self>,
        catalog: &mut Catalog,
        mut records: Vec<ShapeRecord>,
        parent: Option<LayerId>,
        Birth { name, size_bytes, parent: label, labels, created_at }: Birth<'_>,
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
            created_at: created_at.unwrap_or_else(|| self.unix_seconds()),
            name: name.to_owned(),
            parent: label.to_owned(),
        }));
        if !labels.is_empty() {
            records.push(ShapeRecord::Labels(volume, labels));
        }
        let layer = self.layers.add(head, parent, None);
        let ticket = self.change(catalog, None, records)?;
        let head = match base {
            None => Head::new(self, volume, layer, size_bytes),
            Some(base) => Head::with_view(self, volume, View { layer, size_bytes, owners: base.view.owners }),
        };
        self.adopt(&head);
        Ok((head, ticket))
    }

    /// Seals a volume's head, unless it is blank, so that others can stand on it. The gate is closed, the catalogue locked, and no
    /// round begins until the records that follow are queued ([`crate::layer::Layers::hold_for_seal`]): who flushes the new head must not be in a
    /// round before the one that has its record, or blocks of a layer are named that recovery does not know.
    fn seal(&self, catalog: &Catalog, head: &Head, always: bool) -> Result<Base> {
        head.check_alive()?;
        let mut view = head.view.write();
        let old = Arc::clone(&view.layer);
        if old.is_blank() && !always {
            return Ok(Base { layer: old.parent, view: view.clone(), records: Vec::new() });
        }
        let layer = catalog.next_layer()?;
        old.seal();
        // What was written to the old head is durable with the records that follow. The next round takes it before anybody sees
        // the new head: whoever flushes that has to find that there is something to wait for.
        self.layers.enqueue_sync(old.id);
        view.layer = self.layers.add(layer, Some(old.id), None);
        let records = vec![ShapeRecord::Layer(LayerRecord::over(Some(old.id), layer)), ShapeRecord::Seal { volume: head.id, head: layer }];
        Ok(Base { layer: Some(old.id), view: view.clone(), records })
    }

    /// Forks a volume as it is now. The fork has the labels of its source, changed by `change`, from the first moment.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Exists`], [`ErrorKind::InvalidInput`], [`ErrorKind::NoSpace`].
    pub fn fork_volume(self: &Arc<Self>, source: &str, name: &str, change: &LabelChange) -> Result<Arc<Head>> {
        valid_name(name)?;
        let head = self.head(source)?;
        self.fork_head(&head, name, change)
    }

    /// As [`Core::fork_volume`], of a volume that is open, whatever it is called by now.
    ///
    /// # Errors
    /// As there.
    pub fn fork_head(self: &Arc<Self>, head: &Head, name: &str, change: &LabelChange) -> Result<Arc<Head>> {
        valid_name(name)?;
        let _room = self.layers.barriers.reserve_shape()?;
        let (fork, ticket) = {
            let _closed = head.close();
            let mut catalog = self.catalog();
            self.name_is_free(&catalog, name)?;
            // Before the seal, because labels that are refused must leave the source as it is.
            let source = catalog.volume(head.id).ok_or_else(|| gone(head.id))?;
            let labels = changed_labels(source.labels.clone(), change)?;
            let source = source.name.clone();
            // The clock's code may take long, and no round begins from here on.
            let created_at = Some(self.unix_seconds());
            let _beginning = self.layers.hold_for_seal();
            let mut base = self.seal(&catalog, head, false)?;
            let size_bytes = base.view.size_bytes;
            let mut records = std::mem::take(&mut base.records);
            let layer = LayerId(catalog.next_layer()?.0 + u32::from(!records.is_empty()));
            records.push(ShapeRecord::Layer(LayerRecord::over(base.layer, layer)));
            let parent = base.layer;
            self.add_volume(&mut catalog, records, parent, Birth { name, size_bytes, parent: &source, labels, created_at }, Some(base))?
        };
        self.layers.barriers.wait_shape(ticket)?;
        Ok(fork)
    }

    /// Forks a snapshot.
    ///
    /// # Errors
    /// As [`Core::fork_volume`].
    pub fn fork_snapshot(self: &Arc<Self>, volume: &str, snapshot: &str, name: &str, change: &LabelChange) -> Result<Arc<Head>> {
        valid_name(name)?;
        let _room = self.layers.barriers.reserve_shape()?;
        let base;
        let (fork, ticket) = {
            let mut catalog = self.catalog();
            self.name_is_free(&catalog, name)?;
            let (id, entry) = catalog.snapshot(volume, snapshot)?;
            base = entry.layer;
            let source = catalog.volume(id).ok_or_else(|| gone(id))?;
            let labels = changed_labels(source.labels.clone(), change)?;
            let parent = format!("{}@{snapshot}", source.name);
            let birth = Birth { name, size_bytes: entry.size_bytes, parent: &parent, labels, created_at: None };
            let layer = catalog.next_layer()?;
            let records = vec![ShapeRecord::Layer(LayerRecord::over(Some(base), layer))];
            self.add_volume(&mut catalog, records, Some(base), birth, None)?
        };
        self.layers.barriers.wait_shape(ticket)?;
        self.record_fork(&fork, base);
        Ok(fork)
    }

    /// The layers of images in this store, in no order, but those that are known to be damaged.
    pub fn held_layers(&self) -> Vec<HeldLayer> {
        let catalog = self.catalog();
        let holding = catalog.layers().filter(|(id, entry)| !entry.held.is_empty() && self.is_whole(&catalog, *id));
        holding.flat_map(|(_, entry)| entry.held.iter().map(|(held, _)| *held)).collect()
    }

    /// Forks the layer that holds a chain of layers of an image, if there is one that is not known to be damaged. The fork has these labels from the first moment.
    ///
    /// # Errors
    /// As [`Core::fork_volume`].
    pub fn fork_held(self: &Arc<Self>, chain: &Digest, name: &str, labels: Labels) -> Result<Option<Arc<Head>>> {
        valid_name(name)?;
        valid_labels(&labels)?;
        let _room = self.layers.barriers.reserve_shape()?;
        let (fork, ticket) = {
            let mut catalog = self.catalog();
            self.name_is_free(&catalog, name)?;
            let Some((base, size_bytes)) = catalog.held(chain, |layer| self.is_whole(&catalog, layer)) else { return Ok(None) };
            let layer = catalog.next_layer()?;
            let records = vec![ShapeRecord::Layer(LayerRecord::over(Some(base), layer))];
            let birth = Birth { name, size_bytes, parent: &chain.to_string(), labels, created_at: None };
            self.add_volume(&mut catalog, records, Some(base), birth, None)?
        };
        self.layers.barriers.wait_shape(ticket)?;
        Ok(Some(fork))
    }

    /// What a fork of a volume, or of a snapshot of it, inherits: size and labels.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn heritage(&self, volume: &str, snapshot: Option<&str>) -> Result<(u64, Labels)> {
        let catalog = self.catalog();
        let id = self.volume_id(&catalog, volume)?;
        let entry = catalog.volume(id).ok_or_else(|| gone(id))?;
        let found = snapshot.map(|snapshot| catalog.snapshot(volume, snapshot)).transpose()?;
        Ok((found.map_or(entry.size_bytes, |(_, snapshot)| snapshot.size_bytes), entry.labels.clone()))
    }

    /// Forks what a source has, which can be had at each of these addresses: a root layer that stands for it, and an open layer
    /// above. No data moves. Forks of the same snapshot stand on the same root, so that its blocks are fetched and kept once. The
    /// fork has the labels that the source tells, changed by those of `options`.
    ///
    /// # Errors
    /// [`ErrorKind::SourceLost`] if none can be reached; [`ErrorKind::InvalidInput`] if it is written and has no snapshot to give; that
    /// of `admit`; as [`Core::fork_volume`].
    pub fn fork_source(self: &Arc<Self>, uris: &[String], name: &str, options: &ForkOptions, admit: Admit<'_>) -> Result<Arc<Head>> {
        self.fence.check()?;
        valid_name(name)?;
        check_uris(uris)?;
        // Those that are refused whatever the source tells.
        changed_labels(Labels::new(), &options.labels)?;
        let sources = self.sources.as_ref().ok_or_else(no_sources)?;
        let since = sources.now();
        // Asking may take long: meanwhile the name is taken, and shown.
        let birth = self.enter().and_then(|_pass| self.announce(name, Some(&uris[0])))?;
        let mut failure = None;
        // The first that answers is the origin: it says how large the fork is, and whose bytes they are.
        for number in 0..uris.len() {
            let mut order = uris.to_vec();
            order[..=number].rotate_right(1);
            let asked = self.ask_lease(&order[0], name)?;
            match sources.open_leased(&order[0], since, asked.request.clone(), asked.return_late()) {
                Ok(LeasedSource { source, lease }) => {
                    // A lease of what is written all the same is none of an instant.
                    let live = source.is_writable();
                    let admitted = match live && !options.live {
                        true => Err(written(&asked.uri)),
                        false => changed_labels(source.about().labels, &options.labels),
                    };
                    let admitted = admitted.and_then(|mut labels| {
                        admit(source.size_bytes(), &mut labels)?;
                        valid_labels(&labels).map(|()| labels)
                    });
                    // No pass is held while the source is asked; the store may have been closed meanwhile, and gives back nothing more.
                    let _pass = self.enter().inspect_err(|_| {
                        source.close();
                        lease.iter().for_each(|_| sources.give_back(&asked.uri, &asked.release()));
                    })?;
                    let labels = admitted.inspect_err(|_| source.close())?;
                    birth.opened(source.size_bytes());
                    let mut used = false;
                    let opened = Opened { uris: order, source: Arc::clone(&source), lease, asked, live };
                    let forked = self.fork_opened(opened, name, labels, &mut used);
                    if !used {
                        source.close();
                    }
                    return forked;
                }
                Err(error) => failure = failure.or(Some(source_error(&error))),
            }
        }
        Err(failure.unwrap_or_else(no_sources))
    }

    /// `used`: a root stands for the source from now on, and has it open.
    fn fork_opened(
        self: &Arc<Self>,
        Opened { mut uris, source, lease, asked, live }: Opened<'_>,
        name: &str,
        labels: Labels,
        used: &mut bool,
    ) -> Result<Arc<Head>> {
        let source = &source;
        check_size(source.size_bytes())?;
        self.layers.barriers.prepare_shape()?;
        let label = uris[0].clone();
        if let Some(lease) = &lease {
            // From now on what the lease holds.
            uris[0].clone_from(&lease.uri);
            check_uris(&uris)?;
        }
        if lease.is_some() || live {
            self.begin_leases()?;
        }
        let birth = Birth { name, size_bytes: source.size_bytes(), parent: &label, labels, created_at: None };
        let (head, Root { layer: root, hydrator, .. }, ticket, _room) = {
            let _roots = self.roots.lock();
            let mut catalog = self.catalog();
            catalog.name_is_free(name)?;
            let standing = self.standing_root(&catalog, source, &uris);
            let noted = standing.and_then(|root| catalog.layer(root)?.source.as_ref()).map_or(0, |source| bytes_of(&source.uris));
            // The volume notes one of them as well, and so does the lease.
            let room = self.layers.reserve_shape_with(noted + 3 * bytes_of(&uris))?;
            let mut root = match standing {
                Some(root) => self.join_root(&catalog, root, uris, source)?,
                None => self.new_root(&catalog, uris, source)?,
            };
            let mut records = std::mem::take(&mut root.records);
            records.extend(live.then_some(ShapeRecord::Live(root.layer)));
            records.extend(self.lessee_record(&catalog, root.layer, &asked, lease.as_ref()));
            records.push(ShapeRecord::Layer(LayerRecord::over(Some(root.layer), root.next_layer)));
            let (head, ticket) = self.add_volume(&mut catalog, records, Some(root.layer), birth, None)?;
            (head, root, ticket, room)
        };
        *used = hydrator.is_some();
        let durable = self.layers.barriers.wait_shape(ticket);
        // The fork stands, durable or not: whoever reads it needs what is missing.
        if hydrator.is_some() {
            self.inherit_trace(root);
        }
        self.record_fork(&head, root);
        if let Some(hydrator) = &hydrator {
            self.start_hydration(hydrator);
        }
        durable.map(|()| head)
    }

    fn source_record(&self, uris: Vec<String>, source: &Arc<dyn Source>) -> SourceRecord {
        SourceRecord { uris, size_bytes: source.size_bytes(), settings: HydrationSettings::default() }
    }

    fn new_root(self: &Arc<Self>, catalog: &Catalog, uris: Vec<String>, source: &Arc<dyn Source>) -> Result<Root> {
        let record = self.source_record(uris, source);
        let layer = catalog.next_layer()?;
        let entry = self.layers.add(layer, None, Some(self.block_size.blocks_for(record.size_bytes)));
        entry.seal();
        let origin = source.identity().unwrap_or_default();
        // Others may join it from now on.
        let hydrator = self.add_hydrator(&entry, record.clone(), origin.clone(), Some(Arc::clone(source)))?;
        let records = vec![ShapeRecord::Layer(LayerRecord { layer, parent: None, origin, source: Some(record) })];
        Ok(Root { layer, records, hydrator: Some(hydrator), next_layer: LayerId(layer.0 + 1) })
    }

    /// A layer that stands for the bytes of a source, of the same size, and has had them from these addresses and no others: an
    /// identity is what an address claims, and proves nothing to a fork that did not name the address.
    fn standing_root(&self, catalog: &Catalog, source: &Arc<dyn Source>, uris: &[String]) -> Option<LayerId> {
        let (identity, size_bytes) = (source.identity()?, source.size_bytes());
        let named: BTreeSet<&String> = uris.iter().collect();
        let fits = |root, entry: &LayerEntry| {
            let record = entry.source.as_ref().or(entry.detached.as_ref());
            // Not one whose hydration is just about to end.
            let is_trusted = entry.named.iter().eq(named.iter().copied());
            is_trusted
                && record.is_some_and(|record| record.size_bytes == size_bytes)
                && self.hydrator(root).is_some() == entry.source.is_some()
        };
        catalog.roots_of(&identity).filter(|(root, entry)| fits(*root, entry)).map(|(root, _)| root).min()
    }

    /// Lets one more fork stand on a root: what it lacks is needed again, also of that which nobody needed any more.
    fn join_root(self: &Arc<Self>, catalog: &Catalog, root: LayerId, uris: Vec<String>, source: &Arc<dyn Source>) -> Result<Root> {
        let next_layer = catalog.next_layer()?;
        let joined = |records, hydrator| Root { layer: root, records, hydrator, next_layer };
        let (layer, entry) = (self.layers.require(root)?, catalog.layer(root));
        if let (Some(hydrator), Some(record)) = (self.hydrator(root), entry.and_then(|entry| entry.source.as_ref())) {
            let mut all = record.uris.clone();
            all.extend(uris.into_iter().filter(|uri| !record.uris.contains(uri)));
            // An operator may have replaced some. The oldest make room, but for the origin: the new ones have just been seen.
            all.drain(1..1 + all.len().saturating_sub(SOURCE_URIS_MAX));
            hydrator.add_fork(&all);
            return Ok(joined(vec![ShapeRecord::Sources(root, all)], None));
        }
        let record = self.source_record(uris, source);
        if layer.attach(self.block_size.blocks_for(record.size_bytes)) {
            return Ok(joined(Vec::new(), None));
        }
        let origin = source.identity().unwrap_or_default();
        let hydrator = self.add_hydrator(&layer, record.clone(), origin, Some(Arc::clone(source)))?;
        Ok(joined(vec![ShapeRecord::Attach(root, next_layer, record)], Some(hydrator)))
    }

    /// Notes in which order a new fork touches the blocks of the layer it stands on; and if earlier ones were recorded, lets what is
    /// still at a source be fetched in their order.
    fn record_fork(&self, head: &Head, layer: LayerId) {
        if let Some(recorder) = self.record_touches(layer, head.id) {
            // The head is new.
            let _ = head.recorder.set(recorder);
        }
        let root = self.catalog().needed_root(layer);
        let Some(hydrator) = root.and_then(|root| self.hydrator(root)) else { return };
        // The latest recording is on its way to the file.
        let _ = self.save_traces();
        if let Some(trace) = self.layers.load_trace(layer) {
            hydrator.follow(trace.runs.into_iter().map(|run| u64::from(run.start)..u64::from(run.end)));
        }
    }

    /// Takes a snapshot of a volume as it is now; notes in the same round which layer of an image its last layer holds.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Exists`], [`ErrorKind::InvalidInput`], [`ErrorKind::NoSpace`].
    pub fn create_snapshot(self: &Arc<Self>, volume: &str, name: &str, held: Option<HeldLayer>) -> Result<()> {
        valid_name(name)?;
        let head = self.head(volume)?;
        self.snapshot_head(&head, name, held)
    }

    /// As [`Core::create_snapshot`], of a volume that is open, whatever it is called by now.
    ///
    /// # Errors
    /// As there.
    pub fn snapshot_head(&self, head: &Head, name: &str, held: Option<HeldLayer>) -> Result<()> {
        valid_name(name)?;
        let _room = self.layers.barriers.reserve_shape()?;
        let ticket = {
            let _closed = head.close();
            let mut catalog = self.catalog();
            let volume = catalog.volume(head.id).ok_or_else(|| gone(head.id))?;
            if volume.snapshots.get(name).is_some() {
                let message = format!("volume '{}' has a snapshot '{name}' already: choose another name", volume.name);
                return Err(Error::new(ErrorKind::Exists, message));
            }
            let held = |SnapshotRecord { layer, size_bytes, .. }: &SnapshotRecord| {
                held.map(|held| ShapeRecord::Held(HeldRecord { layer: *layer, size_bytes: *size_bytes, held }))
            };
            self.add_snapshot(&mut catalog, head, false, |_| name.to_owned(), held)?.1
        };
        self.await_snapshot(ticket)
    }

    /// Takes a snapshot of a volume; `always`: on a layer of its own, even if nothing was written since the last one. `name` gives its
    /// name by its layer, and `more` a record that comes in the same frame. The gate is closed.
    pub(super) fn add_snapshot(
        &self,
        catalog: &mut Catalog,
        head: &Head,
        always: bool,
        name: impl FnOnce(LayerId) -> String,
        more: impl FnOnce(&SnapshotRecord) -> Option<ShapeRecord>,
    ) -> Result<(String, Ticket)> {
        let has_parent = head.view.read().layer.parent.is_some();
        // As for a fork.
        let created_at = self.unix_seconds();
        let _beginning = self.layers.hold_for_seal();
        let mut base = self.seal(catalog, head, always || !has_parent)?;
        let layer = base.layer.ok_or_else(|| gone(head.id))?;
        let mut records = std::mem::take(&mut base.records);
        let name = name(layer);
        let snapshot = SnapshotRecord { volume: head.id, layer, size_bytes: base.view.size_bytes, created_at, name: name.clone() };
        let more = more(&snapshot);
        records.extend([ShapeRecord::Snapshot(snapshot)].into_iter().chain(more));
        let ticket = self.change(catalog, None, records)?;
        self.arriving.lock().insert((head.id, name.clone()), ticket);
        Ok((name, ticket))
    }

    /// Waits until a snapshot is durable.
    pub(super) fn await_snapshot(&self, ticket: Ticket) -> Result<()> {
        self.layers.barriers.wait_shape(ticket)?;
        self.arriving.lock().retain(|_, arrives| !self.layers.is_done(*arrives));
        Ok(())
    }
}

/// Most bytes of all addresses of a fork: they are in one record, which takes journal space.
const SOURCE_URIS_BYTES_MAX: u64 = 128 << 10;

pub(super) fn bytes_of(uris: &[String]) -> u64 {
    uris.iter().map(|uri| uri.len() as u64).sum()
}

fn written(uri: &str) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!(
            "cannot fork: {uri} may be written while it is fetched, and its server gives no snapshot of it, so that the fork would have \
             blocks of different instants: fork a snapshot or a read-only export ('qemu-nbd -r', 'nbdkit -r'), or accept that with --live"
        ),
    )
}

pub(super) fn check_uris(uris: &[String]) -> Result<()> {
    let wrong = |text| Err(Error::new(ErrorKind::InvalidInput, text));
    match (uris.len(), bytes_of(uris)) {
        (1..=SOURCE_URIS_MAX, 0..=SOURCE_URIS_BYTES_MAX) => Ok(()),
        (1..=SOURCE_URIS_MAX, bytes) => wrong(format!(
            "the addresses of a fork's sources have {SOURCE_URIS_BYTES_MAX} bytes at most, not {bytes}: give fewer or shorter ones"
        )),
        (count, _) => wrong(format!("a fork has 1 to {SOURCE_URIS_MAX} sources, not {count}")),
    }
}
