//! Describing volumes and snapshots.

use std::sync::Arc;

use super::info::{BlockCounts, HydrationInfo, HydrationState, LeaseInfo, SnapshotInfo, SourceInfo, VolumeInfo, VolumeState};
use super::tally::{Tally, tally};
use crate::catalog::{Catalog, VolumeEntry};
use crate::error::Result;
use crate::format::LeaseRecord;
use crate::hydrate::{Hydrator, HydratorStatus};
use crate::ids::{LayerId, VolumeId};
use crate::layer::Layers;
use crate::place::BlockSize;
use crate::volume::state::{Coming, Hydrations, Shape, destroyed, lapses_at};

/// Tells what is known of a store's volumes and snapshots.
pub struct Report {
    pub layers: Arc<Layers>,
    pub shape: Arc<Shape>,
    pub hydrations: Arc<Hydrations>,
    pub block_size: BlockSize,
    /// Identity of the store, in hexadecimal digits.
    pub store_id: String,
}

/// A volume as the catalogue has it, and where its hydration can be asked for. A source is a seam: it is asked when the catalogue is
/// not locked any more.
struct Draft {
    info: VolumeInfo,
    /// Whether the volume needs a source, and the hydrator that fetches from it.
    source: Option<Option<Arc<Hydrator>>>,
    /// The lowest layer of its chain.
    base: Option<LayerId>,
}

/// The leases of a volume's snapshots, or of one of them.
fn lease_infos(catalog: &Catalog, volume: VolumeId, snapshot: Option<&str>) -> Vec<LeaseInfo> {
    let info = |lease: &LeaseRecord| LeaseInfo {
        snapshot: lease.snapshot.clone(),
        fork: lease.fork.clone(),
        host: lease.host.clone(),
        address: lease.address.clone(),
        renewed_at: lease.renewed_at,
        lapses_at: lapses_at(lease),
    };
    catalog.leases_of(volume, snapshot).map(info).collect()
}

impl Report {
    /// Everything about one volume.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`].
    pub fn volume(&self, name: &str) -> Result<VolumeInfo> {
        let draft = {
            let catalog = self.shape.catalog();
            if let Some(coming) = self.shape.births.get(name) {
                return Ok(self.describe_coming(name, &coming));
            }
            let id = catalog.volume_id(name)?;
            let entry = catalog.volume(id).ok_or_else(|| destroyed(id))?;
            let tallies = tally(&self.layers, &catalog, [entry.head]);
            self.draft(&catalog, id, entry, tallies.get(&entry.head).copied().unwrap_or_default())
        };
        Ok(self.finish(draft))
    }

    /// Everything about all volumes, by name.
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        let (coming, drafts) = {
            let catalog = self.shape.catalog();
            let coming = self.shape.births.all();
            let tallies = tally(&self.layers, &catalog, catalog.volumes().map(|(_, entry)| entry.head));
            let tally = |entry: &VolumeEntry| tallies.get(&entry.head).copied().unwrap_or_default();
            let volumes = catalog.volumes().filter(|(_, entry)| !coming.contains_key(&entry.name));
            let drafts: Vec<Draft> = volumes.map(|(id, entry)| self.draft(&catalog, id, entry, tally(entry))).collect();
            (coming, drafts)
        };
        let mut list: Vec<VolumeInfo> = coming.iter().map(|(name, coming)| self.describe_coming(name, coming)).collect();
        list.extend(drafts.into_iter().map(|draft| self.finish(draft)));
        list.sort_by(|left, right| left.name.cmp(&right.name));
        list
    }

    /// Everything about the snapshots of a volume, oldest first.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`].
    pub fn snapshots(&self, volume: &str) -> Result<Vec<SnapshotInfo>> {
        let catalog = self.shape.catalog();
        let id = self.shape.volume_id(&catalog, volume)?;
        let entry = catalog.volume(id).ok_or_else(|| destroyed(id))?;
        let tallies = tally(&self.layers, &catalog, entry.snapshots.iter().map(|snapshot| snapshot.layer));
        let describe = |snapshot: &crate::catalog::SnapshotEntry| {
            let tally = tallies.get(&snapshot.layer).copied().unwrap_or_default();
            SnapshotInfo {
                volume: entry.name.clone(),
                name: snapshot.name.clone(),
                size_bytes: snapshot.size_bytes,
                created_at: snapshot.created_at,
                depth: tally.chain.depth,
                leases: lease_infos(&catalog, id, Some(&snapshot.name)),
                blocks: tally.counts(self.block_size.blocks_for(snapshot.size_bytes)),
            }
        };
        Ok(entry.snapshots.iter().map(describe).collect())
    }

    fn draft(&self, catalog: &Catalog, id: VolumeId, entry: &VolumeEntry, tally: Tally) -> Draft {
        let source = tally.source.and_then(|layer| Some((layer, catalog.layer(layer)?.source.as_ref()?)));
        let info = VolumeInfo {
            id: catalog.key(id).to_string(),
            name: entry.name.clone(),
            state: VolumeState::Created,
            size_bytes: entry.size_bytes,
            block_size: self.block_size.bytes_32(),
            created_at: entry.created_at,
            parent: Some(entry.parent.clone()).filter(|parent| !parent.is_empty()),
            source: source.and_then(|(_, record)| record.uris.first().cloned()),
            live_source: tally.chain.live,
            leases: lease_infos(catalog, id, None),
            depth: tally.chain.depth,
            snapshots: entry.snapshots.iter().map(|snapshot| snapshot.name.clone()).collect(),
            labels: entry.labels.clone(),
            limits: entry.limits,
            blocks: tally.counts(self.block_size.blocks_for(entry.size_bytes)),
            hydration: HydrationInfo::default(),
        };
        Draft { info, source: source.map(|(layer, _)| self.hydrations.get(layer)), base: tally.chain.base }
    }

    /// Adds what the hydration tells. The catalogue is not locked.
    fn finish(&self, Draft { mut info, source, base }: Draft) -> VolumeInfo {
        info.hydration = match source {
            Some(hydrator) => self.hydration_info(hydrator.as_deref(), &info.blocks),
            None => self.past_hydration(base),
        };
        info.state = match info.hydration.state {
            HydrationState::None => VolumeState::Created,
            HydrationState::Degraded => VolumeState::Degraded,
            HydrationState::Running | HydrationState::Paused | HydrationState::NoSpace | HydrationState::Stopped => VolumeState::Hydrating,
        };
        info
    }

    /// What the hydration that made a volume complete had done.
    fn past_hydration(&self, root: Option<LayerId>) -> HydrationInfo {
        let mut info = HydrationInfo::default();
        if let Some(progress) = root.and_then(|root| self.hydrations.progress_at_end(root)) {
            info.bytes_fetched = progress.fetched.total();
            info.fetched = progress.fetched;
            // It does not matter any more that one of them failed last.
            info.sources = progress.sources.into_iter().map(|source| SourceInfo { failing: false, ..source }).collect();
        }
        info
    }

    /// What the hydration of a volume that needs a source does; without a hydrator the store was opened without sources.
    fn hydration_info(&self, hydrator: Option<&Hydrator>, blocks: &BlockCounts) -> HydrationInfo {
        let bytes_missing = blocks.missing * self.block_size.bytes();
        let mut info = HydrationInfo { state: HydrationState::Degraded, bytes_missing, ..HydrationInfo::default() };
        let Some(progress) = hydrator.map(Hydrator::progress) else { return info };
        info.state = match progress.status {
            HydratorStatus::Running | HydratorStatus::Complete => HydrationState::Running,
            HydratorStatus::Paused => HydrationState::Paused,
            HydratorStatus::Degraded => HydrationState::Degraded,
            HydratorStatus::NoSpace => HydrationState::NoSpace,
        };
        info.bytes_fetched = progress.fetched.total();
        // The rate of the last seconds says nothing while nothing moves.
        let rate = if info.state == HydrationState::Running { progress.rate_bytes_per_second } else { 0 };
        info.rate_bytes_per_second = rate;
        info.rate_limit_bytes_per_second = Some(progress.settings.rate_bytes_per_second).filter(|rate| *rate > 0);
        info.deadline = Some(progress.settings.deadline).filter(|deadline| *deadline > 0);
        info.priority = progress.settings.priority;
        info.fetched = progress.fetched;
        info.sources = progress.sources;
        info.readers_waiting = progress.readers_waiting;
        info.eta_seconds = bytes_missing.checked_div(rate);
        info.last_error = progress.last_error;
        info
    }

    /// What is known of a volume that is being made.
    fn describe_coming(&self, name: &str, coming: &Coming) -> VolumeInfo {
        let is_asked = coming.uri.is_some() && coming.size_bytes.is_none();
        let size_bytes = coming.size_bytes.unwrap_or(0);
        VolumeInfo {
            id: String::new(),
            name: name.to_owned(),
            state: if is_asked { VolumeState::EnablingRemoteExport } else { VolumeState::Creating },
            size_bytes,
            block_size: self.block_size.bytes_32(),
            created_at: coming.created_at,
            parent: coming.uri.clone(),
            source: coming.uri.clone(),
            live_source: false,
            leases: Vec::new(),
            depth: 0,
            snapshots: Vec::new(),
            labels: Default::default(),
            limits: Default::default(),
            blocks: BlockCounts::default(),
            hydration: HydrationInfo { bytes_missing: if coming.uri.is_some() { size_bytes } else { 0 }, ..HydrationInfo::default() },
        }
    }
}
