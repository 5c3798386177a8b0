//! Cleaning: marked extents get verifiable checksums on disk again.

use std::sync::Arc;

use super::admission::Admission;
use super::admitted::Latched;
use super::blocks::{Blocks, unreadable};
use super::checksums::block_checksum;
use super::commit::checkpoint::Checkpoints;
use super::commit::cost::claimed_bytes;
use super::layer::Layer;
use crate::error::{Error, ErrorKind, Result};
use crate::format::BlocksRecord;
use crate::io::{AlignedBuffer, DiskFileExt};
use crate::place::{BlockBits, Extent, IndexSpan};
use crate::sync::atomic::Ordering;

/// Clears marks.
pub struct Cleaning {
    pub(super) admission: Arc<Admission>,
    pub(super) blocks: Arc<Blocks>,
    pub(super) checkpoints: Arc<Checkpoints>,
}

/// The extents of a bitmap of extents.
fn extents(numbers: &roaring::RoaringBitmap) -> impl Iterator<Item = Extent> + '_ {
    numbers.iter().filter_map(Extent::new)
}

impl Cleaning {
    /// Clears the marks of extents that were not written since the last call for the layer. Answers how many remain marked.
    ///
    /// 1. Marked extents that no writer touched since the last look are candidates.
    /// 2. Their blocks are made durable, then their pages (crash ordering 3): a crash before the record leaves the mark.
    /// 3. The record that clears the mark is queued where no writer came in between: such a writer relies on the mark.
    ///
    /// # Errors
    /// An I/O error; the marks of the extents that met it stay.
    pub fn clean(&self, layer: &Layer) -> Result<u64> {
        let candidates: Vec<Extent> = {
            let mut state = layer.state.lock();
            let state = &mut *state;
            let still = |extent: &Extent| match state.hot.get_mut(extent) {
                // A marked extent that is not hot comes from before a crash, and is verified now.
                None => true,
                Some(hot) => !std::mem::replace(&mut hot.touched, false) && hot.latched.is_empty(),
            };
            extents(&(&state.marked - &state.unverified)).filter(still).collect()
        };
        let cleaned = if candidates.is_empty() { Ok(()) } else { self.clean_extents(layer, candidates) };
        cleaned.map(|()| layer.state.lock().marked.len())
    }

    fn clean_extents(&self, layer: &Layer, candidates: Vec<Extent>) -> Result<()> {
        let mut failed = Ok(());
        self.admission.barriers.sync([layer.id])?;
        let mut stored = Vec::new();
        let Blocks { files, checksums, .. } = &*self.blocks;
        for extent in candidates {
            let unwritten = |error| Error::io(format!("cannot write the checksums of layer {}, extent {extent}", layer.id), error);
            let page = self.blocks.page(layer, extent);
            match page.and_then(|page| checksums.write_back(files, layer.id, extent, &page).map_err(unwritten)) {
                Ok(()) => stored.push(extent),
                // Its mark stays, and others go on.
                Err(error) if error.is_shortage() => {}
                Err(error) => failed = failed.and(Err(error)),
            }
        }
        self.checkpoints.sync_pages()?;
        let commit = &self.admission.commit;
        let mut state = layer.state.lock();
        for extent in stored {
            let untouched = state.hot.get(&extent).is_none_or(|hot| !hot.touched && hot.latched.is_empty());
            let clear = BlocksRecord::Clear(layer.id, extent);
            if untouched
                && !state.unverified.contains(extent.number())
                && let Ok(claimed) = commit.room.claim(claimed_bytes(&clear))
            {
                commit.enqueue_claimed(clear, claimed);
                state.marked.remove(extent.number());
                state.cool(extent);
            }
        }
        failed
    }

    /// Hashes one unverified extent of the layer again. Answers whether there was one. An extent that cannot be read stays unverified
    /// and does not keep others from being hashed.
    ///
    /// # Errors
    /// Descriptors, memory or space are short.
    pub fn rehash_step(&self, layer: &Layer) -> Result<bool> {
        let next = {
            let state = layer.state.lock();
            extents(&(&state.unverified - &state.unreadable)).next()
        };
        let Some(extent) = next else { return Ok(false) };
        let latched = Latched::wait(&self.admission, layer, extent, BlockBits::FULL);
        // Without its page of checksums it cannot be latched, nor hashed.
        let result = match &latched {
            Ok(_) => self.rehash_extent(layer, extent),
            Err(error) => Err(error.clone()),
        };
        let is_later = |error: &Error| error.is_shortage() || error.kind() == ErrorKind::Poisoned;
        let mut state = layer.state.lock();
        match &result {
            Ok(()) => {
                state.unverified.remove(extent.number());
                layer.unverified.store(!state.unverified.is_empty(), Ordering::Release);
            }
            Err(error) if is_later(error) => {}
            Err(_) => drop(state.unreadable.insert(extent.number())),
        }
        drop(state);
        drop(latched);
        match result {
            Err(error) if is_later(&error) => Err(error),
            _ => Ok(true),
        }
    }

    /// Lets extents that could not be read be tried again.
    pub fn retry_unreadable(&self, layer: &Layer) {
        layer.state.lock().unreadable.clear();
    }

    /// Makes the checksums of an extent those of the bytes in the file, after a crash.
    ///
    /// The bytes may be in the page cache alone, and clean, if a sync failed before: they are written again, so the sync before
    /// the mark is cleared makes them durable or fails. A block behind the end of the file is lost, whatever is written behind it
    /// later: its checksum becomes one that the zeros of a hole do not have.
    fn rehash_extent(&self, layer: &Layer, extent: Extent) -> Result<()> {
        for run in layer.extent(extent).0.spans() {
            self.rehash_run(layer, extent, run)?;
        }
        Ok(())
    }

    fn rehash_run(&self, layer: &Layer, extent: Extent, run: IndexSpan) -> Result<()> {
        let page = self.blocks.page(layer, extent)?;
        let block_size = self.blocks.block_size();
        let first = extent.part(run).first();
        let unreadable = |error| unreadable(layer, first, error);
        let file = self.blocks.data_file(layer, first)?;
        let (segment, offset) = self.blocks.place(first);
        let size = file.as_ref().map_or(Ok(0), |file| file.size_bytes()).map_err(unreadable)?;
        let whole = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(block_size.len_of(run)) / block_size.len();
        let mut blocks = extent.part(run).blocks();
        if let Some(file) = file.filter(|_| whole > 0) {
            let mut buffer = AlignedBuffer::zeroed(whole * block_size.len());
            file.read_exact_at(&mut buffer, offset).map_err(unreadable)?;
            for (bytes, block) in buffer.chunks(block_size.len()).zip(blocks.by_ref()) {
                page.set(block.index(), block_checksum(layer.id, block, bytes));
            }
            match file.write_all_at(&buffer, offset).map_err(|error| Error::io(format!("cannot write layer {}", layer.id), error)) {
                Err(error) if !error.is_shortage() => return Err(error),
                _ => {
                    let mut state = layer.state.lock();
                    if !state.freed {
                        self.admission.owed.note_written(layer, &mut state, segment, &file);
                    }
                }
            }
        }
        let zeros = vec![0; block_size.len()];
        for block in blocks {
            page.set(block.index(), !block_checksum(layer.id, block, &zeros));
        }
        Ok(())
    }
}
