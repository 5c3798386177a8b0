//! What the journal says of layers, until the store is open.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use roaring::RoaringBitmap;
use rustc_hash::FxHashMap;

use super::blocks::BlockRead;
use super::checksums::{ChecksumCache, ChecksumPage, Key, block_checksum, kept_checksums};
use super::files::LayerFiles;
use super::patches::{Patch, is_covered, remove_patches};
use super::presence::Presence;
use super::set::{LayerConfig, Layers};
use super::state::Layer;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{BlockRun, BlocksRecord, LayerFile, PatchRecord, PresenceRecord, Record};
use crate::ids::LayerId;
use crate::io::{AlignedBuffer, DiskFile, DiskFileExt};
use crate::journal::Journal;
use crate::limits::{EXTENT_BLOCKS, SEGMENT_BYTES};
use crate::sync::atomic::Ordering;

#[derive(Default)]
struct RecoveredLayer {
    presence: Presence,
    marked: RoaringBitmap,
    patches: BTreeMap<u32, Patch>,
}

impl RecoveredLayer {
    fn zero(&mut self, blocks: RangeInclusive<u32>) {
        remove_patches(&mut self.patches, blocks.clone());
        self.presence.zero(blocks);
    }

    fn forget(&mut self, blocks: RangeInclusive<u32>) {
        remove_patches(&mut self.patches, blocks.clone());
        self.presence.forget(blocks);
    }
}

/// A file, and blocks of it with their checksums.
type Believed = (Arc<dyn DiskFile>, Vec<(u32, u32)>);

/// Presence, marks and checksums as records add up.
pub struct Recovery {
    config: LayerConfig,
    files: LayerFiles,
    checksums: ChecksumCache,
    layers: BTreeMap<LayerId, RecoveredLayer>,
    /// Files with blocks that were read to see whether they match, and the blocks that do, with their checksums.
    believed: BTreeMap<(LayerId, u32), Believed>,
}

impl Recovery {
    /// Starts with nothing.
    pub fn new(config: LayerConfig) -> Self {
        let files = LayerFiles::new(Arc::clone(&config.disk), config.paths.clone(), config.io_mode);
        let checksums = ChecksumCache::new(config.checksum_cache_bytes);
        Self { config, files, checksums, layers: BTreeMap::new(), believed: BTreeMap::new() }
    }

    /// A layer comes to be, with nothing.
    pub fn add(&mut self, layer: LayerId) {
        self.layers.insert(layer, RecoveredLayer::default());
    }

    /// Takes in one record.
    ///
    /// # Errors
    /// A checksum page cannot be read.
    pub fn apply(&mut self, record: &BlocksRecord) -> Result<()> {
        match record {
            BlocksRecord::Present(run) => return self.apply_present(run),
            BlocksRecord::Patch(patch) => return self.apply_patch(patch),
            // The blocks were there before; only the round that ends a journal is compared with the disk.
            BlocksRecord::Expect(_) => {}
            BlocksRecord::Zero { layer, first, last } => self.with(*layer, |layer| layer.zero(*first..=*last)),
            BlocksRecord::Drop { layer, first, last } => self.with(*layer, |layer| layer.forget(*first..=*last)),
            BlocksRecord::Mark(layer, extent) => self.with(*layer, |layer| {
                layer.marked.insert(*extent);
            }),
            BlocksRecord::Clear(layer, extent) => {
                self.with(*layer, |layer| {
                    layer.marked.remove(*extent);
                });
                // The page in the file is newer than the checksums of all records before this one.
                self.checksums.drop_page(*layer, *extent);
            }
            BlocksRecord::Forget(record) => self.with(record.layer, |layer| {
                let mut runs = record.blocks.iter();
                while let Some(run) = runs.next_range() {
                    layer.forget(run);
                }
            }),
            BlocksRecord::Presence(record) => self.with(record.layer, |layer| {
                if !record.more {
                    (layer.presence, layer.marked) = (Presence::default(), RoaringBitmap::new());
                }
                layer.presence.present |= &record.present;
                layer.presence.zeroed |= &record.zeroed;
                layer.marked |= &record.marked;
            }),
        }
        Ok(())
    }

    /// A layer may have been freed by a later record of the same round.
    fn with(&mut self, layer: LayerId, change: impl FnOnce(&mut RecoveredLayer)) {
        if let Some(layer) = self.layers.get_mut(&layer) {
            change(layer);
        }
    }

    fn apply_present(&mut self, run: &BlockRun) -> Result<()> {
        let Some(layer) = self.layers.get_mut(&run.layer) else { return Ok(()) };
        let last = run.block + (run.checksums.len() as u32 - 1);
        layer.presence.present.insert_range(run.block..=last);
        layer.presence.zeroed.remove_range(run.block..=last);
        remove_patches(&mut layer.patches, run.block..=last);
        for (block, checksum) in (run.block..=u32::MAX).zip(&run.checksums) {
            let page = self.checksums.page(&self.files, run.layer, block / EXTENT_BLOCKS);
            let page = page.map_err(|error| Error::io(format!("cannot read the checksums of layer {}", run.layer), error))?;
            page.set(block % EXTENT_BLOCKS, *checksum);
        }
        Ok(())
    }

    fn apply_patch(&mut self, patch: &PatchRecord) -> Result<()> {
        let block_bytes = self.config.block_size.bytes();
        if u64::from(patch.offset) + patch.bytes.len() as u64 > block_bytes {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the journal has a patch behind the end of a block of layer {}", patch.layer),
            ));
        }
        self.with(patch.layer, |layer| {
            // A round names blocks that became present after its records were made: then this patch is older than the block.
            if !is_covered(&layer.presence, patch.block) {
                layer.patches.entry(patch.block).or_insert_with(|| Patch::new(block_bytes)).put(patch.offset, &patch.bytes);
            }
        });
        Ok(())
    }

    /// Patched blocks of all layers.
    pub fn patched(&self) -> impl Iterator<Item = (LayerId, u32)> {
        self.layers.iter().flat_map(|(id, layer)| layer.patches.keys().map(|block| (*id, *block)))
    }

    /// Forgets freed layers.
    pub fn free(&mut self, layers: &[LayerId]) {
        for layer in layers {
            self.layers.remove(layer);
        }
    }

    /// Splits a run of the last round into the parts whose blocks are on disk as the record says.
    pub fn matching(&mut self, run: &BlockRun) -> Vec<BlockRun> {
        let mut parts: Vec<BlockRun> = Vec::new();
        let mut last = None;
        for (block, checksum) in (run.block..=u32::MAX).zip(&run.checksums) {
            if !self.matches(run.layer, block, *checksum) {
                continue;
            }
            if last != block.checked_sub(1) || parts.is_empty() {
                parts.push(BlockRun { layer: run.layer, block, checksums: Vec::new() });
            }
            if let Some(part) = parts.last_mut() {
                part.checksums.push(*checksum);
            }
            last = Some(block);
        }
        parts
    }

    /// A block that cannot be read does not match.
    fn matches(&mut self, layer: LayerId, block: u32, checksum: u32) -> bool {
        let offset = self.config.block_size.offset_of(u64::from(block));
        let mut buffer = AlignedBuffer::zeroed(self.config.block_size.bytes() as usize);
        let segment = (offset / SEGMENT_BYTES) as u32;
        let Ok(Some(file)) = self.files.get(layer, LayerFile::Data(segment)) else { return false };
        let matches = file.read_exact_at(&mut buffer, offset % SEGMENT_BYTES).is_ok() && block_checksum(layer, block, &buffer) == checksum;
        if matches {
            self.believed.entry((layer, segment)).or_insert_with(|| (file, Vec::new())).1.push((block, checksum));
        }
        matches
    }

    /// Writes the blocks again that were believed because they can be read. A sync may have failed when they were written; then
    /// the page cache has them, and calls them clean although they are not on the disk. Written again they become durable with the
    /// sync that follows, or it fails. Where a power loss tears such a write, the old journal still counts, and the block no longer.
    fn write_believed(&self) -> Result<()> {
        for ((layer, _), (file, blocks)) in &self.believed {
            let wrap = |error| Error::io(format!("cannot write the blocks of the last round again, of layer {layer}"), error);
            for (block, checksum) in blocks {
                let offset = self.config.block_size.offset_of(u64::from(*block)) % SEGMENT_BYTES;
                let mut buffer = AlignedBuffer::zeroed(self.config.block_size.bytes() as usize);
                file.read_exact_at(&mut buffer, offset).map_err(wrap)?;
                if block_checksum(*layer, *block, &buffer) == *checksum {
                    match file.write_all_at(&buffer, offset).map_err(wrap) {
                        // It is in place: where even that takes space, the sync alone has to do.
                        Err(error) if !error.is_shortage() => return Err(error),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes durable what this recovery believes because it can be read. When only the process ended, and not the power, the
    /// blocks of the last round, and those overwritten in marked extents, may so far be in the page cache alone. What the cache still
    /// calls clean after an earlier sync that failed is dropped: what is read from here on is what the next flush makes durable.
    fn sync_believed(&mut self) -> Result<()> {
        let segment_extents = SEGMENT_BYTES / self.config.block_size.extent_bytes();
        for (id, layer) in &self.layers {
            let mut next = layer.marked.min();
            while let Some(extent) = next {
                let segment = u64::from(extent) / segment_extents;
                let file = self.files.get(*id, LayerFile::Data(segment as u32));
                let file = file.map_err(|error| Error::io(format!("cannot open the data file of layer {id}"), error))?;
                if let Some(file) = file {
                    self.believed.entry((*id, segment as u32)).or_insert_with(|| (file, Vec::new()));
                }
                let after = u32::try_from((segment + 1) * segment_extents).ok();
                next = after.and_then(|after| layer.marked.range(after..).next());
            }
        }
        if self.believed.is_empty() {
            return Ok(());
        }
        self.write_believed()?;
        let files: Vec<Arc<dyn DiskFile>> = std::mem::take(&mut self.believed).into_values().map(|(file, _)| file).collect();
        let synced = self.config.disk.sync_all(&files);
        synced.map_err(|error| Error::sync("cannot sync the blocks of the last round", error))?;
        // A disk that cannot drop them has them written again, when their extents are hashed.
        files.iter().for_each(|file| drop(file.drop_clean()));
        Ok(())
    }

    /// Whether the checksum of a block is that of zeros.
    pub fn is_zero_block(&self, layer: LayerId, block: u32) -> bool {
        let zeros = vec![0; self.config.block_size.bytes() as usize];
        let page = self.checksums.page(&self.files, layer, block / EXTENT_BLOCKS);
        page.is_ok_and(|page| page.get(block % EXTENT_BLOCKS) == block_checksum(layer, block, &zeros))
    }

    /// Extents with present blocks none of which has a checksum, although no crash explains it.
    ///
    /// # Errors
    /// The checksums cannot be read.
    pub fn extents_without_checksums(&self, id: LayerId) -> Result<Vec<u32>> {
        let Some(layer) = self.layers.get(&id) else { return Ok(Vec::new()) };
        let mut extents = Vec::new();
        let mut next = layer.presence.present.min();
        while let Some(block) = next {
            let extent = block / EXTENT_BLOCKS;
            let page = self.checksums.page(&self.files, id, extent);
            let page = page.map_err(|error| Error::io(format!("cannot read the checksums of layer {id}"), error))?;
            let present = layer.presence.present_bits(extent);
            if !layer.marked.contains(extent) && present.runs().flatten().all(|block| page.get(block) == 0) {
                extents.push(extent);
            }
            let after = extent.checked_add(1).and_then(|extent| extent.checked_mul(EXTENT_BLOCKS));
            next = after.and_then(|from| layer.presence.present.range(from..).next());
        }
        Ok(extents)
    }

    /// The layers that exist, with their presence and number of marked extents, in order.
    pub fn layers(&self) -> impl Iterator<Item = (LayerId, &Presence, u64)> {
        self.layers.iter().map(|(id, layer)| (*id, &layer.presence, layer.marked.len()))
    }

    /// Writes the checksums that so far only the journal has, starts a new journal with the whole state, and opens the layers.
    /// `parents` says for each layer what is below it and of how many blocks the source is that it stands for.
    ///
    /// # Errors
    /// An I/O error; the old journal counts still.
    pub fn finish(
        mut self,
        parents: impl Fn(LayerId) -> (Option<LayerId>, Option<u64>),
        start: impl FnOnce(&mut dyn Iterator<Item = Record>) -> Result<Journal>,
    ) -> Result<Layers> {
        self.sync_believed()?;
        let written = self.checksums.write_back_all(&self.files).map_err(|error| Error::io("cannot write checksums", error))?;
        // Without space for some pages their checksums go into the new journal, as they were in the old one.
        let kept = self.kept_checksums(&written);
        // The process that made a file may have been killed before its name was durable.
        let named = self.config.disk.sync_dir(&self.config.paths.layers());
        named.map_err(|error| Error::sync_dir("cannot sync the layers' directory", error))?;
        let files: Vec<_> = self.checksums.take_unsynced().into_values().collect();
        let synced = self.config.disk.sync_all(&files);
        synced.map_err(|error| Error::sync("cannot sync checksums", error))?;
        let bytes_max = self.config.limits.state_record_bytes_max();
        let records = self.layers.iter().flat_map(|(id, layer)| {
            let (present, zeroed) = (layer.presence.present.clone(), layer.presence.zeroed.clone());
            let presence = PresenceRecord { layer: *id, more: false, present, zeroed, marked: layer.marked.clone() };
            let patches = layer.patches.iter().flat_map(|(block, patch)| patch.records(*id, *block));
            presence.split(bytes_max).into_iter().map(BlocksRecord::Presence).chain(patches)
        });
        let journal = start(&mut records.chain(kept).map(Record::Blocks))?;
        let table: FxHashMap<LayerId, Arc<Layer>> = self
            .layers
            .into_iter()
            .map(|(id, recovered)| {
                let (parent, source_blocks) = parents(id);
                (id, Self::open(id, parent, source_blocks, recovered))
            })
            .collect();
        Ok(Layers::new(self.config, self.files, self.checksums, table, journal))
    }

    /// Records with the checksums that these pages have and the files lack.
    fn kept_checksums(&self, pages: &[(Key, Arc<ChecksumPage>)]) -> Vec<BlocksRecord> {
        let mut records = Vec::new();
        for ((id, extent), page) in pages {
            let Some(layer) = self.layers.get(id).filter(|layer| !layer.marked.contains(*extent)) else { continue };
            records.extend(kept_checksums(*id, *extent, page, &layer.presence.present_bits(*extent)));
        }
        records
    }

    fn open(id: LayerId, parent: Option<LayerId>, source_blocks: Option<u64>, recovered: RecoveredLayer) -> Arc<Layer> {
        let layer = Layer::new(id, parent, source_blocks);
        let mut state = layer.state.lock();
        state.presence = recovered.presence;
        state.presence.optimize();
        layer.patched.store(!recovered.patches.is_empty(), Ordering::Release);
        state.patches = recovered.patches;
        layer.unverified.store(!recovered.marked.is_empty(), Ordering::Release);
        state.unverified = recovered.marked.clone();
        state.marked = recovered.marked;
        drop(state);
        layer
    }
}

impl Layers {
    /// Verifies blocks of an extent for scrub; blocks that a writer has are looked at again behind its back.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] with the place of the first damaged block from `first` on, or an I/O error.
    pub fn scrub_blocks(&self, layer: &Layer, first: u32, buffer: &mut [u8]) -> Result<()> {
        match self.read_blocks(layer, first, buffer)? {
            BlockRead::Verified => Ok(()),
            BlockRead::Mismatch(block) => {
                let mut one = AlignedBuffer::zeroed(self.block_size.bytes() as usize);
                self.read_settled(layer, block, &mut one).map(drop)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ShapeRecord;
    use crate::io::SystemDisk;
    use crate::limits::Limits;

    fn config(directory: &std::path::Path) -> LayerConfig {
        super::super::bare::config(Arc::new(SystemDisk::new()), directory, Limits::DEFAULT)
    }

    fn recovery(directory: &std::path::Path) -> Recovery {
        let mut recovery = Recovery::new(config(directory));
        recovery.add(LayerId(1));
        recovery
    }

    #[test]
    fn a_patch_counts_until_its_block_is_covered_and_never_again() {
        let dir = tempfile::tempdir().unwrap();
        let patch = |offset| BlocksRecord::Patch(PatchRecord { layer: LayerId(1), block: 5, offset, bytes: vec![1; 10] });
        let covers = [
            BlocksRecord::Present(BlockRun { layer: LayerId(1), block: 4, checksums: vec![1, 2, 3] }),
            BlocksRecord::Zero { layer: LayerId(1), first: 5, last: 9 },
        ];
        for cover in covers {
            let mut recovery = recovery(dir.path());
            for record in [patch(0), patch(100)] {
                recovery.apply(&record).unwrap();
                assert_eq!(recovery.patched().collect::<Vec<_>>(), [(LayerId(1), 5)]);
            }
            recovery.apply(&cover).unwrap();
            assert_eq!(recovery.patched().count(), 0);
            // Its record was made before the block was covered, but came into the frame after.
            recovery.apply(&patch(200)).unwrap();
            assert_eq!(recovery.patched().count(), 0);
        }
        let mut recovery = recovery(dir.path());
        recovery.apply(&patch(0)).unwrap();
        recovery.apply(&BlocksRecord::Drop { layer: LayerId(1), first: 5, last: 5 }).unwrap();
        assert_eq!(recovery.patched().count(), 0);
        assert_eq!(recovery.apply(&patch(4090)).unwrap_err().kind(), ErrorKind::Corrupt);
        recovery.apply(&BlocksRecord::Patch(PatchRecord { layer: LayerId(7), block: 5, offset: 0, bytes: vec![1] })).unwrap();
        assert_eq!(recovery.patched().count(), 0, "the layer was freed");
    }

    #[test]
    fn every_outcome_of_a_write_returns_its_journal_room() {
        let dir = tempfile::tempdir().unwrap();
        let start = |state: &mut dyn Iterator<Item = Record>| super::super::bare::journal(config(dir.path()), state);
        let layers = recovery(dir.path()).finish(|_| (Some(LayerId(0)), None), start).unwrap();
        let layer = layers.get(LayerId(1)).unwrap();
        let bits = crate::place::BlockBits::of(0..3);
        let reserved = || layers.commit.reserved_bytes();
        layers.admit_wait(&layer, 0, &bits).unwrap();
        assert!(reserved() > 0);
        layers.withdraw_write(&layer, 0, &bits);
        assert_eq!(reserved(), 0, "withdrawn");
        layers.admit_wait(&layer, 0, &bits).unwrap();
        layers.abort_write(&layer, 0, &bits, &Error::new(ErrorKind::NoSpace, "full"));
        assert_eq!(reserved(), 0, "failed");
        layers.admit_wait(&layer, 0, &bits).unwrap();
        layers.write_admitted(&layer, 0, 0..3, &[7; 3 * 4096]).unwrap();
        let one = crate::place::BlockBits::of(3..4);
        layers.admit_wait(&layer, 0, &one).unwrap();
        let room = layers.reserve_patch(&layer, 3, &(5..9)).unwrap().unwrap();
        layers.patch_admitted(&layer, 3, 5, &[7; 4], room);
        assert!(reserved() > 0);
        layers.sync([layer.id]).unwrap();
        assert_eq!(reserved(), 0, "recorded");
        layers.admit_wait(&layer, 1, &bits).unwrap();
        layers.write_admitted(&layer, 1, 0..3, &[7; 3 * 4096]).unwrap();
        layers.zero(&layer, 1024..=1026, true, None).unwrap();
        assert_eq!(reserved(), 13, "discarded: the record of that has its own room");
        layers.sync([]).unwrap();
        assert_eq!(reserved(), 0, "recorded");
        let shrink = || ShapeRecord::Resize { volume: crate::ids::VolumeId(1), size_bytes: 4096 };
        let cut = 1..=u32::MAX;
        drop(layers.claim_cut(&cut).unwrap());
        assert_eq!(reserved(), 0, "refused");
        for _ in 0..2 {
            let room = layers.claim_cut(&cut).unwrap();
            let ticket = layers.zero(&layer, cut.clone(), true, Some((shrink(), room))).unwrap().unwrap();
            assert!(reserved() >= 4 * 65_535, "a container of zeros for each 65,536 blocks");
            layers.wait(ticket).unwrap();
            assert_eq!(reserved(), 0, "recorded, also where nothing was left to zero");
        }
    }
}
