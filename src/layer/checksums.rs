//! Checksums: one page of 1024 for each extent of a layer, in `layers/<id>.crc`.
//!
//! ```text
//! file `layers/<id>.crc`: page e at byte 4096 * e; in it checksum b (little-endian, 4 bytes) at byte 4 * b
//! checksum = crc32 (IEEE) of the block's bytes, begun with crc32 of layer (4 bytes) and block number (4 bytes)
//! ```
//! Layer and block number make a block that was written to, or read from, a wrong place fail its check. The entry of a block
//! that is not present means nothing.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::files::LayerFiles;
use crate::format::{BlockRun, BlocksRecord, LayerFile};
use crate::ids::LayerId;
use crate::io::{DiskFile, DiskFileExt};
use crate::place::{Block, BlockBits, BlockIndex, BlockSize, Extent, IndexSpan, per_extent, wide};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::{Mutex, Rank};

/// Bytes of a page of checksums, of 4 bytes each.
const PAGE_LEN: usize = per_extent(4);
const PAGE_BYTES: u64 = wide(PAGE_LEN);
/// Blocks of an extent, as the length of an array.
const BLOCKS: usize = per_extent(1);
const SHARDS: u32 = 16;

/// Checksum of a block's bytes in its place.
pub fn block_checksum(layer: LayerId, block: Block, bytes: &[u8]) -> u32 {
    let place = (u64::from(block.number()) << 32 | u64::from(layer.0)).to_le_bytes();
    let mut hasher = crc32fast::Hasher::new_with_initial(crc32fast::hash(&place));
    hasher.update(bytes);
    hasher.finalize()
}

/// Turns checksums of blocks in their places into those of the bytes alone, without the bytes.
///
/// crc32 is linear: `crc(place, bytes) = shift(crc(place)) ^ crc(bytes)`, where `shift` appends as many zero bytes as a block has.
/// `shift` is kept as the images of the 32 single bits.
pub struct ContentChecksums {
    shifted: [u32; 32],
}

impl ContentChecksums {
    /// For blocks of this size.
    pub fn new(block_size: BlockSize) -> Self {
        let mut bits = 0..32;
        let shift = |bit: u32| {
            let mut hasher = crc32fast::Hasher::new_with_initial(1 << bit);
            hasher.combine(&crc32fast::Hasher::new_with_initial_len(0, block_size.bytes()));
            hasher.finalize()
        };
        Self { shifted: std::array::from_fn(|_| bits.next().map_or(0, shift)) }
    }

    /// The crc32 of a block's bytes, from its checksum in its place.
    pub fn content(&self, layer: LayerId, block: Block, checksum: u32) -> u32 {
        let place = block_checksum(layer, block, &[]);
        let mut content = checksum;
        for (bit, shifted) in self.shifted.iter().enumerate() {
            if place >> bit & 1 == 1 {
                content ^= shifted;
            }
        }
        content
    }
}

/// The checksums of an extent, in memory.
pub struct ChecksumPage {
    checksums: [AtomicU32; BLOCKS],
    /// Differs from the file.
    changed: AtomicBool,
    /// In these blocks.
    changed_blocks: [AtomicU64; BLOCKS / 64],
}

impl ChecksumPage {
    fn zeroed() -> Arc<Self> {
        Arc::new(Self {
            checksums: [const { AtomicU32::new(0) }; BLOCKS],
            changed: AtomicBool::new(false),
            changed_blocks: [const { AtomicU64::new(0) }; BLOCKS / 64],
        })
    }

    /// The checksum of a block of the extent.
    pub fn get(&self, block: BlockIndex) -> u32 {
        self.checksums[block.get()].load(Ordering::Acquire)
    }

    /// Lets the processor fetch the checksum of a block while the block itself is read: it is rarely in the processor's caches.
    pub fn prefetch(&self, block: BlockIndex) {
        #[cfg(target_arch = "x86_64")]
        if let Some(checksum) = self.checksums.get(block.get()) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a hint for an address; SSE is part of every x86_64.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(checksum).cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = block;
    }

    /// Sets the checksum of a block of the extent.
    pub fn set(&self, block: BlockIndex, checksum: u32) {
        self.checksums[block.get()].store(checksum, Ordering::Release);
        self.changed_blocks[block.get() / 64].fetch_or(1 << (block.get() % 64), Ordering::AcqRel);
        self.changed.store(true, Ordering::Release);
    }

    /// The blocks whose checksums the file does not have.
    pub fn changed_blocks(&self) -> BlockBits {
        BlockBits::of_words(std::array::from_fn(|word| self.changed_blocks[word].load(Ordering::Acquire)))
    }

    /// One run of checksums for each run of blocks.
    pub fn runs(&self, layer: LayerId, extent: Extent, blocks: &BlockBits) -> Vec<BlockRun> {
        let run = |run: IndexSpan| BlockRun {
            layer,
            block: extent.part(run).first(),
            checksums: run.indices().map(|block| self.get(block)).collect(),
        };
        blocks.spans().map(run).collect()
    }
}

/// A page of an extent of a layer.
pub type Key = (LayerId, Extent);

/// Records with those checksums of present blocks that the page in the file lacks: the state carries them instead of the page.
pub fn kept_checksums(layer: LayerId, extent: Extent, page: &ChecksumPage, present: &BlockBits) -> Vec<BlocksRecord> {
    let kept = page.changed_blocks().and(present);
    page.runs(layer, extent, &kept).into_iter().map(BlocksRecord::Present).collect()
}

/// Pages in memory.
#[derive(Default)]
struct Pages {
    /// Hashed without a random seed, so that a simulated run can be repeated.
    pages: FxHashMap<Key, Arc<ChecksumPage>>,
    /// How often pages were taken out. A page that was read from the file before such a removal is not put in after it: it may be older
    /// than the one that was taken out.
    removals: u64,
}

impl Pages {
    fn retain(&mut self, mut keep: impl FnMut(&Key, &Arc<ChecksumPage>) -> bool) {
        let before = self.pages.len();
        self.pages.retain(|key, page| keep(key, page));
        self.removals += u64::from(self.pages.len() < before);
    }
}

/// A bounded cache of pages. Changed pages and pages in use are never dropped.
pub struct ChecksumCache {
    shards: [Mutex<Pages>; SHARDS as usize],
    shard_pages_max: usize,
    /// Held while a page is written: a caller that finds a page unchanged finds its file among the unsynced ones, or synced.
    writing: Mutex<()>,
    /// Layers whose file was written since the last sync.
    unsynced: Mutex<BTreeMap<LayerId, Arc<dyn DiskFile>>>,
    /// Held while pages become durable: a caller that finds none unsynced waits for those that are on their way.
    pub(super) syncing: Mutex<()>,
}

impl ChecksumCache {
    pub fn new(bytes_max: u64) -> Self {
        let pages = usize::try_from(bytes_max / PAGE_BYTES / u64::from(SHARDS)).unwrap_or(usize::MAX).max(4);
        Self {
            shards: std::array::from_fn(|_| Mutex::ranked(Rank::ChecksumPages, Pages::default())),
            shard_pages_max: pages,
            writing: Mutex::ranked(Rank::WritingPage, ()),
            unsynced: Mutex::ranked(Rank::UnsyncedPages, BTreeMap::new()),
            syncing: Mutex::ranked(Rank::SyncingPages, ()),
        }
    }

    fn shard(&self, (layer, extent): Key) -> &Mutex<Pages> {
        let shard = extent.number().wrapping_add(layer.0.wrapping_mul(31)) % SHARDS;
        &self.shards[shard as usize]
    }

    /// The page, if it is in memory.
    pub fn cached(&self, layer: LayerId, extent: Extent) -> Option<Arc<ChecksumPage>> {
        self.shard((layer, extent)).lock().pages.get(&(layer, extent)).cloned()
    }

    /// The page, from memory or from the file; pages that the file does not have are zero.
    pub fn page(&self, files: &LayerFiles, layer: LayerId, extent: Extent) -> io::Result<Arc<ChecksumPage>> {
        loop {
            let removals = {
                let shard = self.shard((layer, extent)).lock();
                if let Some(page) = shard.pages.get(&(layer, extent)) {
                    return Ok(Arc::clone(page));
                }
                shard.removals
            };
            let page = Self::read_page(files, layer, extent)?;
            let mut shard = self.shard((layer, extent)).lock();
            if shard.removals != removals && !shard.pages.contains_key(&(layer, extent)) {
                continue;
            }
            // Another thread may have loaded it meanwhile, and changed it: its page counts.
            let page = Arc::clone(shard.pages.entry((layer, extent)).or_insert(page));
            if shard.pages.len() > self.shard_pages_max {
                shrink(&mut shard, self.shard_pages_max / 4 * 3);
            }
            return Ok(page);
        }
    }

    fn read_page(files: &LayerFiles, layer: LayerId, extent: Extent) -> io::Result<Arc<ChecksumPage>> {
        let page = ChecksumPage::zeroed();
        if let Some(file) = files.get(layer, LayerFile::Checksums)? {
            let mut bytes = [0; PAGE_LEN];
            match file.read_exact_at(&mut bytes, page_offset(extent)) {
                Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
                _ => {}
            }
            for (checksum, bytes) in page.checksums.iter().zip(bytes.as_chunks::<4>().0) {
                checksum.store(u32::from_le_bytes(*bytes), Ordering::Relaxed);
            }
        }
        Ok(page)
    }

    /// Changed pages in memory.
    pub fn changed_pages(&self) -> usize {
        let changed = |page: &&Arc<ChecksumPage>| page.changed.load(Ordering::Relaxed);
        self.shards.iter().map(|shard| shard.lock().pages.values().filter(changed).count()).sum()
    }

    /// Writes a page to its file. The caller keeps the order: the journal, or a mark, still stands for what it holds.
    pub fn write_back(&self, files: &LayerFiles, layer: LayerId, extent: Extent, page: &ChecksumPage) -> io::Result<()> {
        // The cleaner and a checkpoint may be at the same page: neither relies on what the other has only begun.
        let _writing = self.writing.lock();
        if !page.changed.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        // Before the checksums are read: one that is set meanwhile is written now, or another time as well.
        let blocks: [u64; BLOCKS / 64] = std::array::from_fn(|word| page.changed_blocks[word].swap(0, Ordering::AcqRel));
        let mut bytes = [0; PAGE_LEN];
        for (bytes, checksum) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(&page.checksums) {
            *bytes = checksum.load(Ordering::Acquire).to_le_bytes();
        }
        let result = files.get_or_create(layer, LayerFile::Checksums).and_then(|file| {
            file.write_all_at(&bytes, page_offset(extent))?;
            self.unsynced.lock().insert(layer, file);
            Ok(())
        });
        if files.is_removed(layer) {
            // The layer was destroyed: its pages are not needed any more.
            return Ok(());
        }
        result.inspect_err(|_| {
            for (word, blocks) in page.changed_blocks.iter().zip(blocks) {
                word.fetch_or(blocks, Ordering::AcqRel);
            }
            page.changed.store(true, Ordering::Release);
        })
    }

    /// All changed pages, in order.
    pub fn changed(&self) -> Vec<(Key, Arc<ChecksumPage>)> {
        let mut changed = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let pages = shard.pages.iter().filter(|(_, page)| page.changed.load(Ordering::Relaxed));
            changed.extend(pages.map(|(key, page)| (*key, Arc::clone(page))));
        }
        changed.sort_unstable_by_key(|(key, _)| *key);
        changed
    }

    /// Writes every changed page for which there is space; answers the others. Nothing is durable yet.
    pub fn write_back_all(&self, files: &LayerFiles) -> io::Result<Vec<(Key, Arc<ChecksumPage>)>> {
        let mut left = Vec::new();
        for ((layer, extent), page) in self.changed() {
            match self.write_back(files, layer, extent, &page) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => left.push(((layer, extent), page)),
                other => other?,
            }
        }
        Ok(left)
    }

    /// Takes the files with unsynced pages. After a failed sync nothing may rely on their pages.
    pub fn take_unsynced(&self) -> BTreeMap<LayerId, Arc<dyn DiskFile>> {
        std::mem::take(&mut *self.unsynced.lock())
    }

    /// Puts back files that were taken, because no sync of them was tried.
    pub fn put_back_unsynced(&self, files: BTreeMap<LayerId, Arc<dyn DiskFile>>) {
        let mut unsynced = self.unsynced.lock();
        for (layer, file) in files {
            unsynced.entry(layer).or_insert(file);
        }
    }

    /// Drops a page, changed or not: the file has a newer one.
    pub fn drop_page(&self, layer: LayerId, extent: Extent) {
        let mut shard = self.shard((layer, extent)).lock();
        let removed = shard.pages.remove(&(layer, extent)).is_some();
        shard.removals += u64::from(removed);
    }

    /// Drops the pages of a layer whose files are removed.
    pub fn forget(&self, layer: LayerId) {
        for shard in &self.shards {
            shard.lock().retain(|(id, _), _| *id != layer);
        }
        self.unsynced.lock().remove(&layer);
    }
}

/// Byte offset of the page of an extent.
fn page_offset(extent: Extent) -> u64 {
    u64::from(extent.number()) * PAGE_BYTES
}

fn shrink(shard: &mut Pages, pages: usize) {
    let mut surplus = shard.pages.len().saturating_sub(pages);
    // The order of a hash map is as good as random, and random replacement is good enough for pages of 4 MiB of data each.
    shard.retain(|_, page| {
        let keep = surplus == 0 || Arc::strong_count(page) > 1 || page.changed.load(Ordering::Relaxed);
        surplus -= usize::from(!keep);
        keep
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_part_of_the_checksum() {
        let bytes = [7; 4096];
        let at = |layer, block| block_checksum(LayerId(layer), Block::new(block), &bytes);
        let here = at(1, 5);
        assert_eq!(here, 0x2646_8d7b, "golden value of the format");
        assert_ne!(here, at(2, 5));
        assert_ne!(here, at(1, 6));
        assert_ne!(here, at(5, 1));
    }

    #[test]
    fn checksums_of_bytes_follow_from_those_in_a_place() {
        for block_bytes in [4096, 65536] {
            let block_size = BlockSize::new(block_bytes).unwrap();
            let contents = ContentChecksums::new(block_size);
            for (layer, block, byte) in [(1, 5, 7u8), (0, 0, 0), (u32::MAX, 9, 255)] {
                let (bytes, block) = (vec![byte; block_size.len()], Block::new(block));
                let stored = block_checksum(LayerId(layer), block, &bytes);
                assert_eq!(contents.content(LayerId(layer), block, stored), crc32fast::hash(&bytes));
            }
        }
    }
}
