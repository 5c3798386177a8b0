//! Admission of writers to blocks of an extent, and what a finished or failed write changes.
//!
//! Callers use the guards in `admitted`; the functions here say what the guards do.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::blocks::Blocks;
use super::checksums::ChecksumPage;
use super::commit::barriers::Barriers;
use super::commit::cost::claimed_bytes;
use super::commit::queue::{Commit, Ticket};
use super::layer::Layer;
use super::owed::Owed;
use super::patches::PatchLedger;
use super::reapers::{HELP_INTERVAL, Reapers};
use super::space::Space;
use super::state::{Hot, State};
use super::table::freed;
use super::unrecorded::Unrecorded;
use crate::error::{Error, ErrorKind, Result};
use crate::format::BlocksRecord;
use crate::io::DiskFile;
use crate::limits::{Limits, Planted};
use crate::place::{BlockBits, Extent, Segment, insert_bits, remove_bits};
use crate::sync::atomic::Ordering;

/// Bytes that are written to a layer until their write-back begins. A round syncs what is left, and a fork waits for it: without this that
/// may be a tenth of the machine's memory, which is about a second. Fewer bytes are written back more often if they change again.
const DIRTY_BYTES_MAX: u64 = 8 << 20;

/// What a writer has to wait for before it may try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Another writer holds some of the blocks.
    Latch,
    /// A barrier round has to end first.
    Round(Ticket),
    /// The journal needs room for a record of so many bytes.
    Room(u64),
    /// What waits for a round is as much as a frame holds.
    Frame,
}

/// Admits writers to blocks: latches the blocks and reserves journal space.
pub struct Admission {
    pub(super) commit: Arc<Commit>,
    pub(super) barriers: Arc<Barriers>,
    pub(super) blocks: Arc<Blocks>,
    pub(super) patches: Arc<PatchLedger>,
    pub(super) owed: Arc<Owed>,
    pub(super) space: Arc<Space>,
    pub(super) reapers: Arc<Reapers>,
    pub(super) unrecorded: Arc<Unrecorded>,
    pub(super) limits: Limits,
}

impl Admission {
    /// Asks for blocks of an extent, to write them whole. Never blocks. `None`: the blocks are latched for the caller, and journal space
    /// for the new ones is taken.
    ///
    /// 1. A freed layer takes no writes.
    /// 2. Blocks that are retiring wait for their record: a crash must not find them present again before their end.
    /// 3. Blocks of another writer, or of a round that drains them, wait for the latch. Blocks that the frame of the round under way names
    ///    wait for its end: recovery compares them with the frame.
    /// 4. Present blocks that a frame names are overwritten only with a durable mark, and only after a later frame than the one that names
    ///    them is durable (crash ordering 2): recovery believes blocks of the last frame only if they match. The mark's record makes that
    ///    later frame.
    /// 5. New blocks take the journal space of their record, so that a flush cannot fail for lack of it.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] when the journal has no room for new blocks; [`ErrorKind::Poisoned`] after a failed sync.
    pub(super) fn admit(&self, layer: &Layer, extent: Extent, bits: &BlockBits, page: &Arc<ChecksumPage>) -> Result<Option<Wait>> {
        self.commit.healthy()?;
        let mut state = layer.state.lock();
        let state = &mut *state;
        if state.freed {
            return Err(freed(layer.id));
        }
        if let Some(ticket) = state.retires(extent, bits) {
            return Ok(Some(Wait::Round(ticket)));
        }
        let present = state.presence.present_bits(extent);
        let under_way = state.round;
        let hot = state.hot(extent, page);
        if hot.latched.or(&hot.draining).intersects(bits) {
            return Ok(Some(Wait::Latch));
        }
        if hot.round.intersects(bits)
            && let Some(ticket) = under_way
        {
            return Ok(Some(Wait::Round(ticket)));
        }
        let overwrites = present.and(bits).minus(&hot.fresh);
        if !overwrites.is_empty()
            && let Some(wait) = self.mark(layer, state, extent, &overwrites, page)
        {
            return Ok(Some(wait));
        }
        let new = bits.minus(&present).count();
        if new > 0 {
            match self.commit.room.reserve_blocks(new)? {
                // The latched blocks have it from now on: finish, settle and withdraw count it off.
                Some(reserved) => {
                    reserved.keep();
                }
                None => return Ok(Some(Wait::Frame)),
            }
        }
        let hot = state.hot(extent, page);
        hot.latched = hot.latched.or(bits);
        hot.touched = true;
        Ok(None)
    }

    /// Makes sure of the mark of an extent before blocks in it are overwritten in place. Answers what the writer has to wait for.
    fn mark(&self, layer: &Layer, state: &mut State, extent: Extent, overwrites: &BlockBits, page: &Arc<ChecksumPage>) -> Option<Wait> {
        let marked = state.marked.contains(extent.number());
        let hot = state.hot(extent, page);
        let appended = self.limits.has(Planted::ProvenByAppending) && hot.recorded.1 < self.commit.room.latest_frame();
        let proven = appended || self.commit.is_proven(hot.recorded.1);
        let unproven = hot.recorded.0.intersects(overwrites) && !proven;
        let waiting = hot.marking.is_some_and(|ticket| !self.commit.is_done(ticket));
        if (!marked || unproven) && !waiting {
            let mark = BlocksRecord::Mark(layer.id, extent);
            let bytes = claimed_bytes(&mark);
            let Ok(claimed) = self.commit.room.claim(bytes) else { return Some(Wait::Room(bytes)) };
            hot.marking = Some(self.commit.enqueue_claimed(mark, claimed));
            state.marked.insert(extent.number());
        }
        let hot = state.hot(extent, page);
        match hot.marking {
            Some(ticket) if !self.commit.is_done(ticket) => Some(Wait::Round(ticket)),
            _ => {
                hot.marking = None;
                None
            }
        }
    }

    /// As [`Admission::admit`], but waits.
    ///
    /// # Errors
    /// As there.
    pub(super) fn admit_wait(&self, layer: &Layer, extent: Extent, bits: &BlockBits) -> Result<()> {
        let page = self.blocks.page(layer, extent)?;
        while let Some(wait) = self.admit(layer, extent, bits, &page)? {
            self.wait_for(layer, wait)?;
        }
        Ok(())
    }

    /// Waits for what kept a writer out. May return early. The caller holds no lock.
    ///
    /// # Errors
    /// The round failed.
    pub(super) fn wait_for(&self, layer: &Layer, wait: Wait) -> Result<()> {
        match wait {
            Wait::Round(ticket) => self.barriers.wait(ticket),
            Wait::Room(bytes) => self.barriers.make_room(bytes),
            Wait::Frame => self.barriers.wait_for_frame(),
            Wait::Latch => {
                self.reapers.help();
                let mut state = layer.state.lock();
                if state.hot.values().any(|hot| !hot.latched.is_empty() || !hot.draining.is_empty()) {
                    layer.changed.wait_for(&mut state, HELP_INTERVAL);
                }
                Ok(())
            }
        }
    }

    /// Latches blocks without admitting a write, if they can be had at once.
    pub(super) fn latch(layer: &Layer, extent: Extent, bits: &BlockBits, page: &Arc<ChecksumPage>) -> bool {
        let mut state = layer.state.lock();
        let hot: &mut Hot = state.hot(extent, page);
        // A round that waits for blocks to be unlatched is not kept waiting by others.
        let free = !hot.latched.or(&hot.draining).intersects(bits);
        if free {
            hot.latched = hot.latched.or(bits);
        }
        free
    }

    /// The writer's bytes are in the file: makes them the blocks' content and unlatches the blocks. `checksums` are those of the blocks
    /// of `bits`, in order.
    pub(super) fn finish(&self, layer: &Layer, extent: Extent, bits: &BlockBits, checksums: &[u32], file: (Segment, &Arc<dyn DiskFile>)) {
        let mut guard = layer.state.lock();
        let state = &mut *guard;
        let new = bits.minus(&state.presence.present_bits(extent));
        if state.freed {
            // No round will name or sync these blocks: only what the writer holds is given back.
            self.commit.room.release_blocks(u64::from(new.count()));
            return Self::unlatch(layer, state, extent, bits);
        }
        let over_zeros = new.and(&state.presence.zeroed_bits(extent));
        if !new.is_empty() {
            state.presence.insert(extent, &new);
            if !state.garbage.is_empty() && !self.limits.has(Planted::EarlyPunch) {
                // Space that was to be given back holds data again.
                remove_bits(&mut state.garbage, extent, &new);
            }
            state.fresh_blocks += u64::from(new.count());
            self.owed.count_fresh(u64::from(new.count()));
            state.fresh_extents.insert(extent);
            self.owed.note_fresh(layer, state);
        }
        if let Some(hot) = state.hot.get_mut(&extent) {
            for (block, checksum) in bits.indices().zip(checksums) {
                hot.page.set(block, *checksum);
            }
            hot.fresh = hot.fresh.or(&new);
            hot.over_zeros = hot.over_zeros.minus(&new).or(&over_zeros);
            self.unrecorded.note_present(layer.id, extent, &new, &hot.page);
        }
        self.note_bytes(layer, state, extent, bits, file);
        Self::unlatch(layer, state, extent, bits);
        let is_dirty = state.dirty_bytes >= DIRTY_BYTES_MAX;
        if is_dirty {
            state.dirty_bytes = 0;
        }
        drop(guard);
        if is_dirty {
            self.blocks.files.begin_write_back(file.1);
        }
    }

    /// Notes that bytes have reached present blocks: a later round syncs them, and names those of a sealed layer that were overwritten in
    /// place.
    fn note_bytes(&self, layer: &Layer, state: &mut State, extent: Extent, bits: &BlockBits, file: (Segment, &Arc<dyn DiskFile>)) {
        if let Some(hot) = state.hot.get_mut(&extent) {
            let overwritten = bits.minus(&hot.fresh);
            if !overwritten.is_empty() {
                hot.overwritten = hot.overwritten.or(&overwritten);
                state.overwritten_extents.insert(extent);
            }
        }
        state.dirty_bytes += self.blocks.block_size().bytes_for(u64::from(bits.count()));
        self.owed.note_written(layer, state, file.0, file.1);
    }

    /// Unlatches the blocks of a writer that was dropped in the middle, by a panic: as [`Admission::fail`] after a shortage.
    pub(super) fn abandon(&self, layer: &Layer, extent: Extent, bits: &BlockBits) {
        if !self.settle(layer, extent, bits) {
            self.commit.poison(Error::new(ErrorKind::Io, format!("a write to layer {} was given up in the middle", layer.id)));
        }
    }

    /// The write failed: unlatches the blocks. Blocks that were absent stay absent, and their space is given back. Others hold old or new
    /// bytes, sector by sector. After a mere shortage they are hashed as they are now, so that the next frame or page names what the file
    /// has. After any other error it is unknown what reaches the disk, and the store refuses writes.
    pub(super) fn fail(&self, layer: &Layer, extent: Extent, bits: &BlockBits, error: &Error) {
        let known = self.settle(layer, extent, bits);
        if !known || !error.is_shortage() {
            self.commit.poison(error.clone());
        }
    }

    /// Unlatches the blocks of a failed write. Answers whether it is known what the file has.
    fn settle(&self, layer: &Layer, extent: Extent, bits: &BlockBits) -> bool {
        // Behind the latch nothing else changes what is present.
        let present = layer.extent(extent).0.and(bits);
        // The disk's code may panic again.
        let hash_again = || catch_unwind(AssertUnwindSafe(|| self.blocks.hash_again(layer, extent, &present)));
        let hashed = if present.is_empty() { None } else { hash_again().ok().and_then(Result::ok).flatten() };
        let known = present.is_empty() || hashed.is_some();
        let new = bits.minus(&present);
        let mut state = layer.state.lock();
        self.commit.room.release_blocks(u64::from(new.count()));
        if let Some(file) = hashed.filter(|_| !state.freed) {
            // Some of its bytes may be there: they are as durable as those of any write before a fork or a flush is.
            self.note_bytes(layer, &mut state, extent, &present, (self.blocks.place(extent.first()).0, &file));
        }
        if !known {
            state.unverified.insert(extent.number());
            layer.unverified.store(true, Ordering::Release);
        }
        if !new.is_empty() && !state.freed {
            insert_bits(&mut state.garbage, extent, &new);
            self.space.note_garbage(layer);
        }
        Self::unlatch(layer, &mut state, extent, bits);
        known
    }

    /// Unlatches blocks that were admitted but not written, and gives back their journal space.
    pub(super) fn withdraw(&self, layer: &Layer, extent: Extent, bits: &BlockBits) {
        let mut state = layer.state.lock();
        let present = state.presence.present_bits(extent);
        self.commit.room.release_blocks(u64::from(bits.minus(&present).count()));
        Self::unlatch(layer, &mut state, extent, bits);
    }

    pub(super) fn unlatch(layer: &Layer, state: &mut State, extent: Extent, bits: &BlockBits) {
        if let Some(hot) = state.hot.get_mut(&extent) {
            hot.latched = hot.latched.minus(bits);
        }
        state.cool(extent);
        layer.changed.notify_all();
    }

    /// Takes the space of blocks that are not there yet, so that a write of them cannot fail for lack of it.
    ///
    /// # Errors
    /// An I/O error, no space; what was taken is given back later.
    pub fn take_space(&self, layer: &Layer, extent: Extent, new: &BlockBits) -> Result<()> {
        self.commit.healthy()?;
        if layer.state.lock().freed {
            return Err(freed(layer.id));
        }
        // A hint for the journal: room that is there once stays there.
        drop(self.commit.room.reserve_blocks(new.count())?);
        let file = self.blocks.data_file_to_write(layer, extent.first())?;
        let block_size = self.blocks.block_size();
        for run in new.spans() {
            let start = self.blocks.place(extent.part(run).first()).1;
            let range = start..start + block_size.bytes_for(u64::from(run.len()));
            if let Err(error) = file.allocate(range) {
                self.give_back_space(layer, extent, new);
                return Err(Error::io(format!("cannot take space for layer {}", layer.id), error));
            }
        }
        Ok(())
    }

    /// Lets the background give back the space of blocks that were not written after all.
    pub fn give_back_space(&self, layer: &Layer, extent: Extent, bits: &BlockBits) {
        let mut state = layer.state.lock();
        let unused = bits.minus(&state.presence.present_bits(extent));
        if !unused.is_empty() && !state.freed {
            insert_bits(&mut state.garbage, extent, &unused);
            self.space.note_garbage(layer);
        }
    }
}
