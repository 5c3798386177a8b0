//! Describing volumes and snapshots.

use super::core::Core;
use super::info::{BlockCounts, HydrationInfo, HydrationState, SnapshotInfo, SourceInfo, VolumeInfo, VolumeState};
use super::tally::Tally;
use crate::catalog::{Catalog, VolumeEntry};
use crate::error::Result;
use crate::format::SourceRecord;
use crate::hydrate::{Hydrator, HydratorStatus};
use crate::ids::{LayerId, VolumeId};

impl Core {
    /// Everything about one volume.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`].
    pub fn volume_info(&self, name: &str) -> Result<VolumeInfo> {
        let catalog = self.catalog();
        if let Some(coming) = self.coming_info(name) {
            return Ok(coming);
        }
        let id = catalog.volume_id(name)?;
        let entry = catalog.volume(id).ok_or_else(|| super::core::gone(id))?;
        let tally = self.tally(&catalog, [entry.head]);
        Ok(self.describe(&catalog, id, entry, tally.get(&entry.head).copied().unwrap_or_default()))
    }

    /// Everything about all volumes, by name.
    pub fn list(&self) -> Vec<VolumeInfo> {
        let catalog = self.catalog();
        let tallies = self.tally(&catalog, catalog.volumes().map(|(_, entry)| entry.head));
        let tally = |entry: &VolumeEntry| tallies.get(&entry.head).copied().unwrap_or_default();
        let mut list = self.all_coming();
        let volumes = catalog.volumes().map(|(id, entry)| self.describe(&catalog, id, entry, tally(entry)));
        let volumes: Vec<_> = volumes.filter(|volume| list.iter().all(|coming| coming.name != volume.name)).collect();
        list.extend(volumes);
        list.sort_by(|left, right| left.name.cmp(&right.name));
        list
    }

    /// Everything about the snapshots of a volume, oldest first.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`].
    pub fn snapshot_infos(&self, volume: &str) -> Result<Vec<SnapshotInfo>> {
        let catalog = self.catalog();
        let id = self.volume_id(&catalog, volume)?;
        let entry = catalog.volume(id).ok_or_else(|| super::core::gone(id))?;
        let tallies = self.tally(&catalog, entry.snapshots.iter().map(|snapshot| snapshot.layer));
        let describe = |snapshot: &crate::catalog::SnapshotEntry| {
            let tally = tallies.get(&snapshot.layer).copied().unwrap_or_default();
            SnapshotInfo {
                volume: entry.name.clone(),
                name: snapshot.name.clone(),
                size_bytes: snapshot.size_bytes,
                created_at: snapshot.created_at,
                depth: tally.chain.depth,
                leases: self.lease_infos(&catalog, id, Some(&snapshot.name)),
                blocks: tally.counts(self.block_size.blocks_for(snapshot.size_bytes)),
            }
        };
        Ok(entry.snapshots.iter().map(describe).collect())
    }

    fn describe(&self, catalog: &Catalog, id: VolumeId, entry: &VolumeEntry, tally: Tally) -> VolumeInfo {
        let source = tally.source.and_then(|layer| Some((layer, catalog.layer(layer)?.source.as_ref()?)));
        let blocks = tally.counts(self.block_size.blocks_for(entry.size_bytes));
        let hydrator = source.and_then(|(layer, _)| self.hydrator(layer));
        let mut hydration = self.hydration_info(source.map(|(_, record)| record), hydrator.as_deref(), &blocks);
        if source.is_none() {
            self.recall_hydration(tally.chain.base, &mut hydration);
        }
        let state = match hydration.state {
            HydrationState::None => VolumeState::Created,
            HydrationState::Degraded => VolumeState::Degraded,
            HydrationState::Running | HydrationState::Paused | HydrationState::NoSpace | HydrationState::Stopped => VolumeState::Hydrating,
        };
        VolumeInfo {
            id: catalog.key(id).to_string(),
            name: entry.name.clone(),
            state,
            size_bytes: entry.size_bytes,
            block_size: self.block_size.bytes() as u32,
            created_at: entry.created_at,
            parent: Some(entry.parent.clone()).filter(|parent| !parent.is_empty()),
            source: source.and_then(|(_, record)| record.uris.first().cloned()),
            live_source: tally.chain.live,
            leases: self.lease_infos(catalog, id, None),
            depth: tally.chain.depth,
            snapshots: entry.snapshots.iter().map(|snapshot| snapshot.name.clone()).collect(),
            labels: entry.labels.clone(),
            blocks,
            hydration,
        }
    }

    /// What the hydration that made a volume complete had done.
    fn recall_hydration(&self, root: Option<LayerId>, info: &mut HydrationInfo) {
        if let Some(progress) = root.and_then(|root| self.hydrated(root)) {
            info.bytes_fetched = progress.fetched.total();
            info.fetched = progress.fetched;
            // That one of them failed last harms nobody any more.
            info.sources = progress.sources.into_iter().map(|source| SourceInfo { failing: false, ..source }).collect();
        }
    }

    fn hydration_info(&self, source: Option<&SourceRecord>, hydrator: Option<&Hydrator>, blocks: &BlockCounts) -> HydrationInfo {
        let bytes_missing = blocks.missing * self.block_size.bytes();
        let mut info = HydrationInfo {
            state: if source.is_some() { HydrationState::Degraded } else { HydrationState::None },
            bytes_missing,
            ..HydrationInfo::default()
        };
        if let (Some(_), Some(hydrator)) = (source, hydrator) {
            let progress = hydrator.progress();
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
        }
        info
    }
}
