//! Recovery: what the journal says of layers, until the store is open.
//!
//! # The walk of a recovery
//! 1. Records are applied in order ([`Recovery::apply`]): presence, marks, patches, and the checksums of blocks that the journal names.
//! 2. Blocks of the last round are believed only if their bytes match ([`Recovery::matching`]): its frame may be durable and its data not.
//! 3. Believed blocks are written again and synced, and so are the files of marked extents (`sync_believed`). A process that was killed, or
//!    whose sync failed, left them in the page cache alone; after a power loss they would be gone although a reader has seen them.
//! 4. Checksum pages are written and synced, then the new journal begins with the whole state ([`Recovery::finish`]). Until its superblock
//!    is durable the old journal counts, and a crash repeats the recovery.
//! 5. Marked extents open as unverified: their blocks may be newer than their checksums. They are hashed again in the background.

use std::collections::BTreeMap;
use std::sync::Arc;

use roaring::RoaringBitmap;
use rustc_hash::FxHashMap;

use super::checksums::{ChecksumCache, ChecksumPage, Key, block_checksum, kept_checksums};
use super::files::LayerFiles;
use super::layer::Layer;
use super::layers::{LayerConfig, Layers};
use super::patch::{Patch, remove_patches};
use super::patches::is_covered;
use super::presence::Presence;
use super::unrecorded::{Session, Unrecorded};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{BlockRun, BlocksRecord, LayerFile, PatchRecord, PresenceRecord, Record};
use crate::ids::LayerId;
use crate::io::{AlignedBuffer, DiskFile, DiskFileExt};
use crate::journal::Journal;
use crate::place::{Block, BlockSpan, Extent, Segment, extents_of, runs_of};
use crate::sync::atomic::Ordering;

#[derive(Default)]
struct RecoveredLayer {
    presence: Presence,
    marked: RoaringBitmap,
    patches: BTreeMap<Block, Patch>,
}

impl RecoveredLayer {
    fn zero(&mut self, blocks: BlockSpan) {
        remove_patches(&mut self.patches, blocks);
        self.presence.zero(blocks);
    }

    fn forget(&mut self, blocks: BlockSpan) {
        remove_patches(&mut self.patches, blocks);
        self.presence.forget(blocks);
    }
}

/// A file, and blocks of it with their checksums.
type Believed = (Arc<dyn DiskFile>, Vec<(Block, u32)>);

/// Presence, marks and checksums as records add up.
pub struct Recovery {
    config: LayerConfig,
    files: LayerFiles,
    checksums: ChecksumCache,
    layers: BTreeMap<LayerId, RecoveredLayer>,
    /// Files with blocks that were read to see whether they match, and the blocks that do, with their checksums.
    believed: BTreeMap<(LayerId, Segment), Believed>,
    /// Blocks that a process which was killed has written and not recorded.
    unrecorded: BTreeMap<LayerId, RoaringBitmap>,
    session: Option<Session>,
}

impl Recovery {
    /// Begins with no layers.
    pub fn new(config: LayerConfig) -> Self {
        let files = LayerFiles::new(Arc::clone(&config.disk), config.paths.clone(), config.io_mode);
        let checksums = ChecksumCache::new(config.checksum_cache_bytes);
        Self { config, files, checksums, layers: BTreeMap::new(), believed: BTreeMap::new(), unrecorded: BTreeMap::new(), session: None }
    }

    /// Adds a layer that holds nothing.
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
            BlocksRecord::Zero { layer, first, last } => self.with(*layer, |layer| layer.zero(BlockSpan::closed(*first, *last))),
            BlocksRecord::Drop { layer, first, last } => self.with(*layer, |layer| layer.forget(BlockSpan::closed(*first, *last))),
            BlocksRecord::Mark(layer, extent) => self.with(*layer, |layer| {
                layer.marked.insert(extent.number());
            }),
            BlocksRecord::Clear(layer, extent) => {
                self.with(*layer, |layer| {
                    layer.marked.remove(extent.number());
                });
                // The page in the file is newer than the checksums of all records before this one.
                self.checksums.drop_page(*layer, *extent);
            }
            BlocksRecord::Forget(record) => self.with(record.layer, |layer| {
                runs_of(&record.blocks).for_each(|run| layer.forget(run));
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

    /// Changes a layer, unless a later record of the same round has freed it.
    fn with(&mut self, layer: LayerId, change: impl FnOnce(&mut RecoveredLayer)) {
        if let Some(layer) = self.layers.get_mut(&layer) {
            change(layer);
        }
    }

    fn apply_present(&mut self, run: &BlockRun) -> Result<()> {
        let Some(layer) = self.layers.get_mut(&run.layer) else { return Ok(()) };
        let blocks = run.span();
        layer.presence.present.insert_range(blocks.numbers());
        layer.presence.zeroed.remove_range(blocks.numbers());
        remove_patches(&mut layer.patches, blocks);
        for (block, checksum) in blocks.blocks().zip(&run.checksums) {
            let page = self.checksums.page(&self.files, run.layer, block.extent());
            let page = page.map_err(|error| Error::io(format!("cannot read the checksums of layer {}", run.layer), error))?;
            page.set(block.index(), *checksum);
        }
        Ok(())
    }

    fn apply_patch(&mut self, patch: &PatchRecord) -> Result<()> {
        let block_size = self.config.block_size;
        if u64::from(patch.range().end) > block_size.bytes() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the journal has a patch behind the end of a block of layer {}", patch.layer),
            ));
        }
        self.with(patch.layer, |layer| {
            // A round names blocks that became present after its records were made: then this patch is older than the block.
            if !is_covered(&layer.presence, patch.block) {
                layer.patches.entry(patch.block).or_insert_with(|| Patch::new(block_size)).put(patch.range(), &patch.bytes);
            }
        });
        Ok(())
    }

    /// Lets changes that no frame has survive the process that opens the layers now.
    pub fn set_session(&mut self, session: Option<Session>) {
        self.session = session;
    }

    /// Takes in changes that a process made which was killed, and which no frame has ([`super::unrecorded`]), behind all others.
    ///
    /// # Errors
    /// As [`Recovery::apply`].
    pub fn apply_unrecorded(&mut self, records: &[BlocksRecord]) -> Result<()> {
        // Present since before their notes: the checksums of these are known.
        let mut recorded: BTreeMap<LayerId, RoaringBitmap> =
            self.layers.iter().map(|(id, layer)| (*id, layer.presence.present.clone())).collect();
        for record in records {
            if let BlocksRecord::Present(run) = record {
                let blocks = run.span();
                self.with(run.layer, |layer| {
                    remove_patches(&mut layer.patches, blocks);
                    layer.presence.present.insert_range(blocks.numbers());
                    layer.presence.zeroed.remove_range(blocks.numbers());
                });
                self.unrecorded.entry(run.layer).or_default().insert_range(blocks.numbers());
            } else {
                self.apply(record)?;
                match record {
                    BlocksRecord::Zero { layer, first, last } | BlocksRecord::Drop { layer, first, last } => {
                        recorded.entry(*layer).or_default().remove_range(BlockSpan::closed(*first, *last).numbers());
                    }
                    BlocksRecord::Forget(forget) => *recorded.entry(forget.layer).or_default() -= &forget.blocks,
                    BlocksRecord::Present(_)
                    | BlocksRecord::Patch(_)
                    | BlocksRecord::Expect(_)
                    | BlocksRecord::Mark(..)
                    | BlocksRecord::Clear(..)
                    | BlocksRecord::Presence(_) => {}
                }
            }
        }
        for (id, blocks) in &mut self.unrecorded {
            *blocks -= recorded.get(id).unwrap_or(&RoaringBitmap::new());
        }
        self.believe_unrecorded()
    }

    /// Their bytes are in the page cache, maybe newer than the checksums that were noted: they are hashed.
    fn believe_unrecorded(&mut self) -> Result<()> {
        for (id, blocks) in std::mem::take(&mut self.unrecorded) {
            let Some(layer) = self.layers.get(&id) else { continue };
            for block in (&layer.presence.present & &blocks).iter().map(Block::new) {
                let (segment, offset) = self.config.block_size.in_file(block);
                let wrap = |error| Error::io(format!("cannot read block {block} of layer {id}, which no frame has"), error);
                let file = self.files.get(id, LayerFile::Data(segment.number())).map_err(wrap)?;
                let file = file.ok_or_else(|| wrap(std::io::ErrorKind::NotFound.into()))?;
                let mut buffer = AlignedBuffer::zeroed(self.config.block_size.len());
                file.read_exact_at(&mut buffer, offset).map_err(wrap)?;
                let checksum = block_checksum(id, block, &buffer);
                let page = self.checksums.page(&self.files, id, block.extent());
                let page = page.map_err(|error| Error::io(format!("cannot read the checksums of layer {id}"), error))?;
                page.set(block.index(), checksum);
                self.believed.entry((id, segment)).or_insert_with(|| (file, Vec::new())).1.push((block, checksum));
            }
        }
        Ok(())
    }

    /// Patched blocks of all layers.
    pub fn patched(&self) -> impl Iterator<Item = (LayerId, Block)> {
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
        for (block, checksum) in run.span().blocks().zip(&run.checksums) {
            if !self.matches(run.layer, block, *checksum) {
                continue;
            }
            match parts.last_mut().filter(|part| part.span().joined(block.span()).is_some()) {
                Some(part) => part.checksums.push(*checksum),
                None => parts.push(BlockRun { layer: run.layer, block, checksums: vec![*checksum] }),
            }
        }
        parts
    }

    /// Whether a block on disk has a checksum. A block that cannot be read has none.
    fn matches(&mut self, layer: LayerId, block: Block, checksum: u32) -> bool {
        let (segment, offset) = self.config.block_size.in_file(block);
        let mut buffer = AlignedBuffer::zeroed(self.config.block_size.len());
        let Ok(Some(file)) = self.files.get(layer, LayerFile::Data(segment.number())) else { return false };
        let matches = file.read_exact_at(&mut buffer, offset).is_ok() && block_checksum(layer, block, &buffer) == checksum;
        if matches {
            self.believed.entry((layer, segment)).or_insert_with(|| (file, Vec::new())).1.push((block, checksum));
        }
        matches
    }

    /// Writes the believed blocks again. A sync may have failed when they were written; then the page cache calls them clean although they
    /// are not on the disk. Written again they become durable with the sync that follows, or it fails. Where a power loss tears such a
    /// write, the old journal still counts, and the block does not match it any more.
    fn write_believed(&self) -> Result<()> {
        for ((layer, _), (file, blocks)) in &self.believed {
            let wrap = |error| Error::io(format!("cannot write the blocks of the last round again, of layer {layer}"), error);
            for (block, checksum) in blocks {
                let offset = self.config.block_size.in_file(*block).1;
                let mut buffer = AlignedBuffer::zeroed(self.config.block_size.len());
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

    /// Makes the blocks durable that this recovery believes because it can read them. When only the process ended, and not the power, the
    /// blocks of the last round, and those overwritten in marked extents, may be in the page cache alone. Pages that the cache still calls
    /// clean after an earlier sync that failed are dropped: what is read from here on is what the next flush makes durable.
    fn sync_believed(&mut self) -> Result<()> {
        for (id, layer) in &self.layers {
            for (segment, blocks) in self.config.block_size.segments() {
                let extents = blocks.first().zip(blocks.last()).map(|(first, last)| first.extent().number()..=last.extent().number());
                if extents.is_none_or(|extents| layer.marked.range_cardinality(extents) == 0) {
                    continue;
                }
                let file = self.files.get(*id, LayerFile::Data(segment.number()));
                let file = file.map_err(|error| Error::io(format!("cannot open the data file of layer {id}"), error))?;
                if let Some(file) = file {
                    self.believed.entry((*id, segment)).or_insert_with(|| (file, Vec::new()));
                }
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
    pub fn is_zero_block(&self, layer: LayerId, block: Block) -> bool {
        let zeros = vec![0; self.config.block_size.len()];
        let page = self.checksums.page(&self.files, layer, block.extent());
        page.is_ok_and(|page| page.get(block.index()) == block_checksum(layer, block, &zeros))
    }

    /// Extents with present blocks none of which has a checksum, although no crash explains it.
    ///
    /// # Errors
    /// The checksums cannot be read.
    pub fn extents_without_checksums(&self, id: LayerId) -> Result<Vec<Extent>> {
        let Some(layer) = self.layers.get(&id) else { return Ok(Vec::new()) };
        let mut extents = Vec::new();
        for extent in extents_of(&layer.presence.present) {
            let page = self.checksums.page(&self.files, id, extent);
            let page = page.map_err(|error| Error::io(format!("cannot read the checksums of layer {id}"), error))?;
            let present = layer.presence.present_bits(extent);
            if !layer.marked.contains(extent.number()) && present.indices().all(|block| page.get(block) == 0) {
                extents.push(extent);
            }
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
        // The journal has what an earlier process left in them.
        let unrecorded = Unrecorded::begin(&self.config.disk, &self.config.paths, self.session, journal.sequence());
        let unrecorded = unrecorded.map_err(|error| {
            Error::io("cannot empty unrecorded.0 and unrecorded.1 of the store, which would undo changes later: remove them", error)
        })?;
        Ok(Layers::new(self.config, self.files, self.checksums, table, journal, unrecorded))
    }

    /// Records with the checksums that these pages have and the files lack.
    fn kept_checksums(&self, pages: &[(Key, Arc<ChecksumPage>)]) -> Vec<BlocksRecord> {
        let mut records = Vec::new();
        for ((id, extent), page) in pages {
            let Some(layer) = self.layers.get(id).filter(|layer| !layer.marked.contains(extent.number())) else { continue };
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

#[cfg(test)]
mod tests {
    use super::super::admitted::Admitted;
    use super::*;
    use crate::format::ShapeRecord;
    use crate::io::SystemDisk;
    use crate::limits::Limits;
    use crate::place::{BlockBits, IndexSpan};

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
        let patch = |offset| BlocksRecord::Patch(PatchRecord { layer: LayerId(1), block: Block::new(5), offset, bytes: vec![1; 10] });
        let covers = [
            BlocksRecord::Present(BlockRun { layer: LayerId(1), block: Block::new(4), checksums: vec![1, 2, 3] }),
            BlocksRecord::Zero { layer: LayerId(1), first: Block::new(5), last: Block::new(9) },
        ];
        for cover in covers {
            let mut recovery = recovery(dir.path());
            for record in [patch(0), patch(100)] {
                recovery.apply(&record).unwrap();
                assert_eq!(recovery.patched().collect::<Vec<_>>(), [(LayerId(1), Block::new(5))]);
            }
            recovery.apply(&cover).unwrap();
            assert_eq!(recovery.patched().count(), 0);
            // Its record was made before the block was covered, but came into the frame after.
            recovery.apply(&patch(200)).unwrap();
            assert_eq!(recovery.patched().count(), 0);
        }
        let mut recovery = recovery(dir.path());
        recovery.apply(&patch(0)).unwrap();
        recovery.apply(&BlocksRecord::Drop { layer: LayerId(1), first: Block::new(5), last: Block::new(5) }).unwrap();
        assert_eq!(recovery.patched().count(), 0);
        assert_eq!(recovery.apply(&patch(4090)).unwrap_err().kind(), ErrorKind::Corrupt);
        recovery.apply(&BlocksRecord::Patch(PatchRecord { layer: LayerId(7), block: Block::new(5), offset: 0, bytes: vec![1] })).unwrap();
        assert_eq!(recovery.patched().count(), 0, "the layer was freed");
    }

    #[test]
    fn every_outcome_of_a_write_returns_its_journal_room() {
        let dir = tempfile::tempdir().unwrap();
        let start = |state: &mut dyn Iterator<Item = Record>| super::super::bare::journal(config(dir.path()), state);
        let layers = recovery(dir.path()).finish(|_| (Some(LayerId(0)), None), start).unwrap();
        let layer = layers.get(LayerId(1)).unwrap();
        let bits = BlockBits::of(IndexSpan::new(0, 3));
        let reserved = || layers.commit.room.reserved_bytes();
        let admit = |extent: u32, bits| Admitted::wait(&*layers.admission, &*layer, Extent::new(extent).unwrap(), bits).unwrap();
        let withdrawn = admit(0, bits);
        assert!(reserved() > 0);
        drop(withdrawn);
        assert_eq!(reserved(), 0, "withdrawn");
        let mut failed = admit(0, bits);
        failed.touch();
        failed.fail(&Error::new(ErrorKind::NoSpace, "full"));
        assert_eq!(reserved(), 0, "failed");
        admit(0, bits).write(&[7; 3 * 4096]).unwrap();
        let one = admit(0, BlockBits::of(IndexSpan::new(3, 4)));
        let room = layers.patches.reserve(&layer, Block::new(3), &(5..9)).unwrap().unwrap();
        one.patch(5, &[7; 4], room);
        assert!(reserved() > 0);
        layers.barriers.sync([layer.id]).unwrap();
        assert_eq!(reserved(), 0, "recorded");
        admit(1, bits).write(&[7; 3 * 4096]).unwrap();
        layers.zeroes.zero(&layer, BlockSpan::new(1024, 1027), true, None).unwrap();
        assert_eq!(reserved(), 13, "discarded: the record of that has its own room");
        layers.barriers.sync([]).unwrap();
        assert_eq!(reserved(), 0, "recorded");
        let shrink = || ShapeRecord::Resize { volume: crate::ids::VolumeId(1), size_bytes: 4096 };
        let cut = BlockSpan::ALL.skip(1);
        drop(layers.barriers.claim_cut(cut).unwrap());
        assert_eq!(reserved(), 0, "refused");
        for _ in 0..2 {
            let room = layers.barriers.claim_cut(cut).unwrap();
            let ticket = layers.zeroes.zero(&layer, cut, true, Some((shrink(), room))).unwrap().unwrap();
            assert!(reserved() >= 4 * 65_535, "a container of zeros for each 65,536 blocks");
            layers.barriers.wait(ticket).unwrap();
            assert_eq!(reserved(), 0, "recorded, also where nothing was left to zero");
        }
    }
}
