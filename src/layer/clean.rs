//! Cleaning: giving marked extents verifiable checksums on disk again.

use std::sync::Arc;

use super::checksums::{ChecksumPage, block_checksum, kept_checksums};
use super::presence::extent_bits;
use super::set::Layers;
use super::space::claimed_bytes;
use super::state::Layer;
use crate::error::{Error, Result};
use crate::format::{BlocksRecord, PresenceRecord, Record, ShapeRecord};
use crate::io::{AlignedBuffer, DiskFile, DiskFileExt};
use crate::limits::EXTENT_BLOCKS;
use crate::place::BlockBits;
use crate::sync::atomic::Ordering;

impl Layers {
    /// Clears the marks of extents that were not written since the last call for the layer. Answers how many remain marked.
    ///
    /// # Errors
    /// An I/O error; the marks of the extents that met it stay.
    pub fn clean_layer(&self, layer: &Layer) -> Result<u64> {
        let candidates: Vec<u32> = {
            let mut state = layer.state.lock();
            let state = &mut *state;
            let still = |extent: &u32| match state.hot.get_mut(extent) {
                // A marked extent that is not hot comes from before a crash, and is verified now.
                None => true,
                Some(hot) => !std::mem::replace(&mut hot.touched, false) && hot.latched.is_empty(),
            };
            (&state.marked - &state.unverified).iter().filter(still).collect()
        };
        let mut failed = Ok(());
        if !candidates.is_empty() {
            // Crash ordering 3: first the blocks, then the page, then the record.
            self.sync([layer.id])?;
            let mut stored = Vec::new();
            for extent in candidates {
                let unwritten = |error| Error::io(format!("cannot write the checksums of layer {}, extent {extent}", layer.id), error);
                let written = self
                    .page(layer, extent)
                    .and_then(|page| self.checksums.write_back(&self.files, layer.id, extent, &page).map_err(unwritten));
                match written {
                    Ok(()) => stored.push(extent),
                    // Its mark stays, and others go on.
                    Err(error) if error.is_shortage() => {}
                    Err(error) => failed = failed.and(Err(error)),
                }
            }
            self.sync_pages()?;
            let mut state = layer.state.lock();
            for extent in stored {
                let untouched = state.hot.get(&extent).is_none_or(|hot| !hot.touched && hot.latched.is_empty());
                let clear = BlocksRecord::Clear(layer.id, extent);
                if untouched && !state.unverified.contains(extent) && self.commit.claim(claimed_bytes(&clear)).is_ok() {
                    self.commit.enqueue([clear]);
                    state.marked.remove(extent);
                    state.cool(extent);
                }
            }
        }
        failed.map(|()| layer.state.lock().marked.len())
    }

    /// Makes written pages, and the names of their files, durable.
    fn sync_pages(&self) -> Result<()> {
        let _one_at_a_time = self.checksums.syncing.lock();
        // If those of somebody else were not synced, the store is poisoned by now.
        self.commit.healthy()?;
        let files = self.checksums.take_unsynced();
        let named = self.files.sync_names();
        if named.as_ref().is_err_and(Error::is_shortage) {
            // No sync was tried, and nothing is lost.
            self.checksums.put_back_unsynced(files);
            return named;
        }
        let files: Vec<_> = files.into_values().collect();
        let synced = named.and_then(|()| self.disk.sync_all(&files).map_err(|error| Error::sync("cannot sync checksums", error)));
        synced.inspect_err(|error| self.commit.poison(error.clone()))
    }

    /// Hashes one unverified extent of the layer again. Answers whether there was one. An extent that cannot be read stays unverified
    /// and does not keep others from being hashed.
    ///
    /// # Errors
    /// Descriptors, memory or space are short.
    pub fn rehash_step(&self, layer: &Layer) -> Result<bool> {
        let next = {
            let state = layer.state.lock();
            (&state.unverified - &state.unreadable).min()
        };
        let Some(extent) = next else { return Ok(false) };
        let latched = self.latch_wait(layer, extent, &BlockBits::FULL);
        // Without its page of checksums it cannot be latched, nor hashed.
        let result = match &latched {
            Ok(_) => self.rehash_extent(layer, extent),
            Err(error) => Err(error.clone()),
        };
        let is_later = |error: &Error| error.is_shortage() || error.kind() == crate::ErrorKind::Poisoned;
        let mut state = layer.state.lock();
        match &result {
            Ok(()) => {
                state.unverified.remove(extent);
                layer.unverified.store(!state.unverified.is_empty(), Ordering::Release);
            }
            Err(error) if is_later(error) => {}
            Err(_) => drop(state.unreadable.insert(extent)),
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
    fn rehash_extent(&self, layer: &Layer, extent: u32) -> Result<()> {
        let page = self.page(layer, extent)?;
        let first = extent * EXTENT_BLOCKS;
        let block_bytes = self.block_size.bytes();
        for run in layer.extent(extent).0.runs() {
            let unreadable = |error| Error::io(format!("cannot read layer {} at block {}", layer.id, first + run.start), error);
            let file = self.data_file(layer, first + run.start)?;
            let (segment, offset) = self.place(first + run.start);
            let size = file.as_ref().map_or(Ok(0), |file| file.size_bytes()).map_err(unreadable)?;
            let there = (size.saturating_sub(offset) / block_bytes).min(run.len() as u64) as u32;
            if let Some(file) = file.filter(|_| there > 0) {
                let mut buffer = AlignedBuffer::zeroed(there as usize * block_bytes as usize);
                file.read_exact_at(&mut buffer, offset).map_err(unreadable)?;
                for (bytes, block) in buffer.chunks(block_bytes as usize).zip(run.clone()) {
                    page.set(block, block_checksum(layer.id, first + block, bytes));
                }
                match file.write_all_at(&buffer, offset).map_err(|error| Error::io(format!("cannot write layer {}", layer.id), error)) {
                    Err(error) if !error.is_shortage() => return Err(error),
                    _ => {
                        let mut state = layer.state.lock();
                        if !state.freed {
                            self.note_written(layer, &mut state, segment, &file);
                        }
                    }
                }
            }
            let zeros = vec![0; block_bytes as usize];
            for block in run.start + there..run.end {
                page.set(block, !block_checksum(layer.id, first + block, &zeros));
            }
        }
        Ok(())
    }

    /// Makes the checksums of present blocks those of the bytes in the file, which it answers. The caller holds the blocks' latch.
    ///
    /// # Errors
    /// The blocks cannot be read, or the file ends before them.
    pub(super) fn hash_again(&self, layer: &Layer, extent: u32, bits: &BlockBits) -> Result<Option<Arc<dyn DiskFile>>> {
        let page = self.page(layer, extent)?;
        let first = extent * EXTENT_BLOCKS;
        let block_bytes = self.block_size.bytes() as usize;
        let mut found = None;
        for run in bits.runs() {
            let block = first + run.start;
            let unreadable = |error| Error::io(format!("cannot read layer {} at block {block}", layer.id), error);
            let file = self.data_file(layer, block)?.ok_or_else(|| unreadable(std::io::ErrorKind::NotFound.into()))?;
            let mut buffer = AlignedBuffer::zeroed(run.len() * block_bytes);
            file.read_exact_at(&mut buffer, self.place(block).1).map_err(unreadable)?;
            for (bytes, block) in buffer.chunks(block_bytes).zip(run) {
                page.set(block, block_checksum(layer.id, first + block, bytes));
            }
            found = Some(file);
        }
        Ok(found)
    }

    /// Writes every changed checksum page and drops the journal behind a new state: `shape` and the presence of all layers.
    /// The caller keeps the shape from changing meanwhile.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NoSpace`], or a lack of descriptors, leaves everything as it was; any other error poisons the store.
    pub fn checkpoint(&self, shape: Vec<ShapeRecord>) -> Result<()> {
        self.write_state(shape, None, false)
    }

    /// As [`Layers::checkpoint`]; records of leases may follow from then on.
    ///
    /// # Errors
    /// As there.
    pub fn begin_leases(&self, shape: Vec<ShapeRecord>) -> Result<()> {
        self.write_state(shape, None, true)
    }

    /// Whether records of leases may follow.
    pub fn takes_leases(&self) -> bool {
        self.commit.journal().takes_leases()
    }

    fn write_state(&self, shape: Vec<ShapeRecord>, end: Option<Record>, leases: bool) -> Result<()> {
        self.commit.exclusive(self, || {
            // Crash ordering 5 and 10.
            let left = self.checksums.write_back_all(&self.files).map_err(|error| Error::io("cannot write checksums", error))?;
            self.sync_pages()?;
            // Gathered before the journal is locked: a writer with a layer's lock may be waiting for the journal's. What changes
            // meanwhile is in the next frame.
            let presence: Vec<BlocksRecord> = self
                .all()
                .iter()
                .flat_map(|layer| {
                    let first = left.partition_point(|((id, _), _)| *id < layer.id);
                    let own = left[first..].iter().take_while(|((id, _), _)| *id == layer.id);
                    self.presence_records(layer, own.map(|((_, extent), page)| (*extent, &**page)))
                })
                .collect();
            let shape = shape.into_iter().map(Record::Shape);
            let state = shape.chain(presence.into_iter().map(Record::Blocks)).chain(end);
            self.commit.journal().checkpoint(state, leases)
        })
    }

    /// What the journal may say of a layer: fresh blocks are left out, for they have no durable bytes yet; the zeros and patches
    /// that they supersede are still in it. It has the checksums of `pages`, which the files lack; those of marked extents are not
    /// needed, for after a crash they are hashed again.
    fn presence_records<'a>(&self, layer: &Layer, pages: impl Iterator<Item = (u32, &'a ChecksumPage)>) -> Vec<BlocksRecord> {
        let state = layer.state.lock();
        let mut present = state.presence.present.clone();
        let mut zeroed = state.presence.zeroed.clone();
        for extent in &state.fresh_extents {
            if let Some(hot) = state.hot.get(extent) {
                super::presence::remove_bits(&mut present, *extent, &hot.fresh);
                super::presence::insert_bits(&mut zeroed, *extent, &hot.fresh.and(&hot.over_zeros));
            }
        }
        let patches: Vec<BlocksRecord> =
            state.patches_to_keep(&present).flat_map(|(block, patch)| patch.records(layer.id, block)).collect();
        present.optimize();
        zeroed.optimize();
        let marked = state.marked.clone();
        let unmarked = pages.filter(|(extent, _)| !marked.contains(*extent));
        let kept: Vec<BlocksRecord> =
            unmarked.flat_map(|(extent, page)| kept_checksums(layer.id, extent, page, &extent_bits(&present, extent))).collect();
        drop(state);
        let presence = PresenceRecord { layer: layer.id, more: false, present, zeroed, marked };
        presence.split(self.limits.state_record_bytes_max()).into_iter().map(BlocksRecord::Presence).chain(patches).chain(kept).collect()
    }

    /// Layers with marked extents.
    pub fn marked(&self) -> Vec<Arc<Layer>> {
        self.all().into_iter().filter(|layer| !layer.state.lock().marked.is_empty()).collect()
    }

    /// Layers with extents that were not hashed again since a crash.
    pub fn unverified(&self) -> Vec<Arc<Layer>> {
        self.all().into_iter().filter(|layer| layer.unverified.load(Ordering::Acquire)).collect()
    }

    /// Makes queued records durable, if there are any.
    ///
    /// # Errors
    /// As [`Layers::wait`].
    pub fn sync_if_queued(&self) -> Result<()> {
        if self.commit.is_idle() { Ok(()) } else { self.sync([]) }
    }

    /// Number of the current journal file.
    pub fn journal_number(&self) -> u64 {
        self.commit.journal().number()
    }

    /// Makes everything durable, clears the marks that can be cleared, notes that the store was closed in order (if no mark is
    /// or space to give back is left; `swept`: none is left that nobody has looked for), and refuses writes from then on. `shape`
    /// is for a last checkpoint, as in [`Layers::checkpoint`].
    ///
    /// # Errors
    /// An I/O error; what was flushed before is safe.
    pub fn shut_down(&self, shape: Vec<ShapeRecord>, swept: bool) -> Result<()> {
        let result = self.shut_down_healthy(shape, swept);
        self.commit.poison(Error::new(crate::ErrorKind::Poisoned, "the store was closed"));
        result
    }

    fn shut_down_healthy(&self, shape: Vec<ShapeRecord>, swept: bool) -> Result<()> {
        self.end_need();
        self.commit.healthy()?;
        self.sync(self.all().iter().map(|layer| layer.id))?;
        let mut marked = 0;
        for layer in self.marked() {
            // The first look only sees whether somebody still writes.
            self.clean_layer(&layer)?;
            marked += self.clean_layer(&layer)?;
        }
        // Also if the sweep has not ended: a store that is opened for short commands only would keep this space otherwise.
        let punched = self.punch_all();
        // After an orderly end nobody looks for space that was not given back.
        if marked > 0 || !swept || !punched {
            return self.sync([]);
        }
        let has_rounds = self.commit.journal().log_bytes() > 0;
        if has_rounds {
            // Rounds that are lost at the end of a journal are not missed, but a state that is not whole is.
            match self.write_state(shape, Some(Record::Closed), false) {
                Err(error) if error.is_shortage() => {}
                other => return other,
            }
        }
        self.enqueue([Record::Closed]);
        self.sync([])
    }

    /// Whether the journal has grown so much that a checkpoint is due.
    pub fn wants_checkpoint(&self) -> bool {
        const CHANGED_PAGES_MAX: usize = 16 << 10;
        let (log, state) = {
            let journal = self.commit.journal();
            (journal.log_bytes(), journal.state_bytes())
        };
        log > self.checkpoint_bytes.max(2 * state) || self.commit.is_low() || self.checksums.changed_pages() > CHANGED_PAGES_MAX
    }
}
