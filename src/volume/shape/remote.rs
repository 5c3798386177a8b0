//! Forking what other hosts have.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::addresses::{bytes_of, check_uris};
use super::create::{Birth, Volumes, check_size};
use super::options::{Admit, ForkOptions};
use crate::catalog::{Catalog, LayerEntry};
use crate::error::{Error, ErrorKind, Remedy, Result};
use crate::format::{
    HydrationSettings, Labels, LayerRecord, SOURCE_URIS_MAX, ShapeRecord, SourceRecord, VolumeLimits, changed_labels, valid_labels,
    valid_name,
};
use crate::hydrate::Hydrator;
use crate::ids::LayerId;
use crate::source::{Connector, Lease, LeasedSource, Source, SourceError, SourceErrorKind};
use crate::volume::head::Head;
use crate::volume::hydration::{Roots, no_sources};
use crate::volume::lease::{Asked, Borrowing};

/// A source that has answered, and the addresses of the bytes.
struct Opened<'a> {
    uris: Vec<String>,
    source: Arc<dyn Source>,
    lease: Option<Lease>,
    asked: Asked<'a>,
    /// It is being written, and the user accepts that.
    live: bool,
    limits: VolumeLimits,
}

/// Forks what other hosts have.
pub struct Remote {
    pub volumes: Arc<Volumes>,
    pub roots: Arc<Roots>,
    pub borrowing: Arc<Borrowing>,
    pub sources: Option<Arc<Connector>>,
}

/// The layer that stands for a source, below a new fork.
struct Root {
    layer: LayerId,
    /// The records of what the fork changes of it.
    records: Vec<ShapeRecord>,
    /// The hydrator that is to fetch its blocks, if it is a new one.
    hydrator: Option<Arc<Hydrator>>,
    /// The number of the fork's own layer.
    next_layer: LayerId,
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

fn written(uri: &str) -> Error {
    Error::remediable(
        ErrorKind::InvalidInput,
        format!(
            "cannot fork: {uri} may be written while it is fetched, and its server gives no snapshot of it, so that the fork would have \
             blocks of different instants: fork a snapshot or a read-only export ('qemu-nbd -r', 'nbdkit -r'), or accept that"
        ),
        Remedy::ForkLive,
    )
}

/// What a source has told, once: it is not asked again while a lock is held.
struct Told {
    source: Arc<dyn Source>,
    size_bytes: u64,
    identity: Option<String>,
}

impl Told {
    fn record(&self, uris: Vec<String>) -> SourceRecord {
        SourceRecord { uris, size_bytes: self.size_bytes, settings: HydrationSettings::default() }
    }
}

impl Remote {
    /// Forks what a source has, which can be had at each of these addresses: a root layer that stands for it, and an open layer
    /// above. No data moves. Forks of the same snapshot stand on the same root, so that its blocks are fetched and kept once. The
    /// fork has the labels that the source tells, changed by those of `options`.
    ///
    /// # Errors
    /// [`ErrorKind::SourceLost`] if none can be reached; [`ErrorKind::InvalidInput`] if it is written and has no snapshot to give; that
    /// of `admit`; as [`Volumes::fork_volume`].
    pub fn fork_source(&self, uris: &[String], name: &str, options: &ForkOptions, admit: Admit<'_>) -> Result<Arc<Head>> {
        self.volumes.pool.fence.check()?;
        valid_name(name)?;
        check_uris(uris)?;
        // Labels that are refused whatever the source tells.
        changed_labels(Labels::new(), &options.labels)?;
        options.limits.check()?;
        let sources = self.sources.as_ref().ok_or_else(no_sources)?;
        let since = sources.now();
        // The question may take long: meanwhile the name is taken, and shown.
        let now = self.volumes.clock.unix().as_secs();
        let birth = self.volumes.pool.fence.enter().and_then(|_pass| self.volumes.shape.announce(name, Some(&uris[0]), now))?;
        let mut failure = None;
        // The first that answers is the origin: it says how large the fork is, and whose bytes they are.
        for number in 0..uris.len() {
            let mut order = uris.to_vec();
            order[..=number].rotate_right(1);
            let asked = self.borrowing.ask(&order[0], name)?;
            match sources.open_leased(&order[0], since, asked.request.clone(), asked.return_late()) {
                Ok(LeasedSource { source, lease }) => {
                    // A lease of an export that is written all the same does not hold an instant.
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
                    let _pass = self.volumes.pool.fence.enter().inspect_err(|_| {
                        source.close();
                        lease.iter().for_each(|_| sources.give_back(&asked.uri, &asked.release()));
                    })?;
                    let labels = admitted.inspect_err(|_| source.close())?;
                    birth.opened(source.size_bytes());
                    let mut used = false;
                    let opened = Opened { uris: order, source: Arc::clone(&source), lease, asked, live, limits: options.limits };
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

    /// Forks a source that has answered. `used` is set if a root stands for the source from now on, and has it open.
    ///
    /// 1. Everything that may wait, or that the source and the clock have to tell, comes before the locks: journal space, the
    ///    superblock's word of leases, size, identity and time.
    /// 2. While the roots are held no look at hidden blocks is acted on, so a root that the fork joins shows all of it again.
    /// 3. Root, lease, layer and volume come in one frame: a crash leaves all of them or none.
    /// 4. The fork stands even if its round is undone, and its readers need what is missing; so hydration starts in any case.
    fn fork_opened(
        &self,
        Opened { mut uris, source, lease, asked, live, limits }: Opened<'_>,
        name: &str,
        labels: Labels,
        used: &mut bool,
    ) -> Result<Arc<Head>> {
        let Volumes { shape, layers, clock, recordings, .. } = &*self.volumes;
        let told = Told { size_bytes: source.size_bytes(), identity: source.identity(), source };
        check_size(told.size_bytes)?;
        layers.barriers.prepare_shape()?;
        let label = uris[0].clone();
        if let Some(lease) = &lease {
            // The address that the lease holds, from now on.
            uris[0].clone_from(&lease.uri);
            check_uris(&uris)?;
        }
        if lease.is_some() || live {
            self.borrowing.begin()?;
        }
        self.volumes.begin_limits(limits)?;
        let (created_at, granted) = (clock.unix().as_secs(), lease.map(|lease| self.borrowing.grant(lease)));
        let birth = Birth { name, size_bytes: told.size_bytes, parent: &label, labels, limits, created_at };
        let (head, Root { layer: root, hydrator, .. }, ticket, _room) = loop {
            // The volume notes one of the addresses as well, and so does the lease.
            let noted = self.noted_bytes(&shape.catalog(), &told, &uris);
            let room = layers.reserve_shape_with(noted + 3 * bytes_of(&uris))?;
            let _roots = self.roots.reclaim.hold_roots();
            let mut catalog = shape.catalog();
            if self.noted_bytes(&catalog, &told, &uris) > noted {
                // Another fork has added addresses to the root meanwhile.
                continue;
            }
            catalog.name_is_free(name)?;
            let mut root = match self.standing_root(&catalog, &told, &uris) {
                Some(root) => self.join_root(&catalog, root, uris, &told)?,
                None => self.new_root(&catalog, uris, &told)?,
            };
            let mut records = std::mem::take(&mut root.records);
            records.extend(live.then_some(ShapeRecord::Live(root.layer)));
            records.extend(self.borrowing.record_of_fork(&catalog, root.layer, &asked, granted.as_ref()));
            records.push(ShapeRecord::Layer(LayerRecord::over(Some(root.layer), root.next_layer)));
            let (head, ticket) = self.volumes.add(&mut catalog, records, Some(root.layer), birth, None)?;
            break (head, root, ticket, room);
        };
        *used = hydrator.is_some();
        let durable = layers.barriers.wait_shape(ticket);
        if hydrator.is_some() {
            recordings.inherit(root);
        }
        head.record(recordings.begin(root, head.id));
        recordings.follow(root);
        if let Some(hydrator) = &hydrator {
            self.roots.start(hydrator);
        }
        durable.map(|()| head)
    }

    /// Bytes of the addresses of the root that a fork would join.
    fn noted_bytes(&self, catalog: &Catalog, told: &Told, uris: &[String]) -> u64 {
        let standing = self.standing_root(catalog, told, uris);
        standing.and_then(|root| catalog.layer(root)?.source.as_ref()).map_or(0, |source| bytes_of(&source.uris))
    }

    fn new_root(&self, catalog: &Catalog, uris: Vec<String>, told: &Told) -> Result<Root> {
        let record = told.record(uris);
        let layer = catalog.next_layer()?;
        let blocks = self.volumes.blocks.block_size.blocks_for(record.size_bytes);
        let entry = self.volumes.layers.add(layer, None, Some(blocks));
        entry.seal();
        let origin = told.identity.clone().unwrap_or_default();
        // Other forks may join it from now on.
        let hydrator = self.roots.add(&entry, record.clone(), origin.clone(), Some(Arc::clone(&told.source)))?;
        let records = vec![ShapeRecord::Layer(LayerRecord { layer, parent: None, origin, source: Some(record) })];
        Ok(Root { layer, records, hydrator: Some(hydrator), next_layer: LayerId(layer.0 + 1) })
    }

    /// A layer that stands for the bytes of a source, of the same size, and has had them from these addresses and no others: an
    /// identity is what an address claims, and proves nothing to a fork that did not name the address.
    fn standing_root(&self, catalog: &Catalog, told: &Told, uris: &[String]) -> Option<LayerId> {
        let (identity, size_bytes) = (told.identity.as_ref()?, told.size_bytes);
        let named: BTreeSet<&String> = uris.iter().collect();
        let fits = |root, entry: &LayerEntry| {
            let record = entry.source.as_ref().or(entry.detached.as_ref());
            let is_trusted = entry.named.iter().eq(named.iter().copied());
            is_trusted
                && record.is_some_and(|record| record.size_bytes == size_bytes)
                // A hydration that is about to end has no hydrator any more.
                && self.roots.hydrations.get(root).is_some() == entry.source.is_some()
        };
        catalog.roots_of(identity).filter(|(root, entry)| fits(*root, entry)).map(|(root, _)| root).min()
    }

    /// Lets one more fork stand on a root: all that the root lacks is needed again, hidden blocks included.
    fn join_root(&self, catalog: &Catalog, root: LayerId, uris: Vec<String>, told: &Told) -> Result<Root> {
        let next_layer = catalog.next_layer()?;
        let joined = |records, hydrator| Root { layer: root, records, hydrator, next_layer };
        let (layer, entry) = (self.volumes.layers.require(root)?, catalog.layer(root));
        if let (Some(hydrator), Some(record)) = (self.roots.hydrations.get(root), entry.and_then(|entry| entry.source.as_ref())) {
            let mut all = record.uris.clone();
            all.extend(uris.into_iter().filter(|uri| !record.uris.contains(uri)));
            // An operator may have replaced some. The oldest make room, except the origin: the new ones have just answered.
            all.drain(1..1 + all.len().saturating_sub(SOURCE_URIS_MAX));
            hydrator.add_fork(&all);
            return Ok(joined(vec![ShapeRecord::Sources(root, all)], None));
        }
        let record = told.record(uris);
        if layer.attach(self.volumes.blocks.block_size.blocks_for(record.size_bytes)) {
            return Ok(joined(Vec::new(), None));
        }
        let origin = told.identity.clone().unwrap_or_default();
        let hydrator = self.roots.add(&layer, record.clone(), origin, Some(Arc::clone(&told.source)))?;
        Ok(joined(vec![ShapeRecord::Attach(root, next_layer, record)], Some(hydrator)))
    }
}
