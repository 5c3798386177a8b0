//! Admission of writes to blocks of an extent, and what a finished write changes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::admitted::Latched;
use super::checksums::ChecksumPage;
use super::commit::Ticket;
use super::set::Layers;
use super::space::claimed_bytes;
use super::state::{Hot, Layer, State};
use crate::error::{Error, ErrorKind, Result};
use crate::format::BlocksRecord;
use crate::io::DiskFile;
use crate::limits::{EXTENT_BLOCKS, Planted};
use crate::place::BlockBits;

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

/// Answer to a writer.
pub enum Admission {
    /// The blocks are the writer's until it calls [`Layers::finish_write`] or [`Layers::abort_write`].
    Granted,
    /// Not yet.
    Wait(Wait),
}

impl Layers {
    /// Asks for blocks of an extent, to write them whole. Never blocks.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] when the journal has no room for new blocks; [`ErrorKind::Poisoned`] after a failed sync.
    pub fn admit(&self, layer: &Layer, extent: u32, bits: &BlockBits, page: &Arc<ChecksumPage>) -> Result<Admission> {
        self.commit.healthy()?;
        let mut state = layer.state.lock();
        let state = &mut *state;
        if state.freed {
            return Err(Self::gone(layer));
        }
        if let Some(ticket) = state.dying(extent, bits) {
            return Ok(Admission::Wait(Wait::Round(ticket)));
        }
        let present = state.presence.present_bits(extent);
        let marked = state.marked.contains(extent);
        let under_way = state.round;
        let hot = state.hot(extent, page);
        if hot.latched.or(&hot.draining).intersects(bits) {
            return Ok(Admission::Wait(Wait::Latch));
        }
        if hot.round.intersects(bits)
            && let Some(ticket) = under_way
        {
            return Ok(Admission::Wait(Wait::Round(ticket)));
        }
        let overwrites = present.and(bits).minus(&hot.fresh);
        if !overwrites.is_empty() {
            // Crash ordering 2: the mark, and a frame after the one that names these blocks, is durable before the overwrite.
            let appended = self.limits.has(Planted::ProvenByAppending) && hot.recorded.1 < self.commit.latest_frame();
            let proven = appended || self.commit.is_proven(hot.recorded.1);
            let unproven = hot.recorded.0.intersects(&overwrites) && !proven;
            let waiting = hot.marking.is_some_and(|ticket| !self.commit.is_done(ticket));
            if (!marked || unproven) && !waiting {
                let mark = BlocksRecord::Mark(layer.id, extent);
                let bytes = claimed_bytes(&mark);
                if self.commit.claim(bytes).is_err() {
                    return Ok(Admission::Wait(Wait::Room(bytes)));
                }
                hot.marking = Some(self.commit.enqueue([mark]));
                state.marked.insert(extent);
            }
            let hot = state.hot(extent, page);
            match hot.marking {
                Some(ticket) if !self.commit.is_done(ticket) => return Ok(Admission::Wait(Wait::Round(ticket))),
                _ => hot.marking = None,
            }
        }
        let new = bits.minus(&present).count();
        if new > 0 && !self.commit.reserve_blocks(new)? {
            return Ok(Admission::Wait(Wait::Frame));
        }
        let hot = state.hot(extent, page);
        hot.latched = hot.latched.or(bits);
        hot.touched = true;
        Ok(Admission::Granted)
    }

    /// As [`Layers::admit`], but waits.
    ///
    /// # Errors
    /// As there.
    pub fn admit_wait(&self, layer: &Layer, extent: u32, bits: &BlockBits) -> Result<()> {
        let page = self.page(layer, extent)?;
        loop {
            match self.admit(layer, extent, bits, &page)? {
                Admission::Granted => return Ok(()),
                Admission::Wait(wait) => self.wait_for(layer, wait)?,
            }
        }
    }

    /// Waits for what kept a writer out. May return early.
    ///
    /// # Errors
    /// The round failed.
    pub fn wait_for(&self, layer: &Layer, wait: Wait) -> Result<()> {
        match wait {
            Wait::Round(ticket) => self.wait(ticket),
            Wait::Room(bytes) => self.make_room(bytes),
            Wait::Frame => {
                self.sync_fresh()?;
                self.help();
                if self.commit.is_full() {
                    // What is left is being written by others.
                    crate::sync::thread::sleep(super::set::HELP_INTERVAL);
                }
                Ok(())
            }
            Wait::Latch => {
                self.help();
                let mut state = layer.state.lock();
                if state.hot.values().any(|hot| !hot.latched.is_empty() || !hot.draining.is_empty()) {
                    layer.changed.wait_for(&mut state, super::set::HELP_INTERVAL);
                }
                Ok(())
            }
        }
    }

    /// The writer's bytes are in the file: makes them the blocks' content and releases the latch.
    /// `checksums` are those of the blocks of `bits`, in order.
    pub fn finish_write(&self, layer: &Layer, extent: u32, bits: &BlockBits, checksums: &[u32], file: (u32, &Arc<dyn DiskFile>)) {
        let mut state = layer.state.lock();
        let state = &mut *state;
        let new = bits.minus(&state.presence.present_bits(extent));
        if state.freed {
            // Nobody will name or sync these blocks: only what the writer holds is given back.
            self.commit.release_blocks(new.count());
            return Self::unlatch(layer, state, extent, bits);
        }
        let over_zeros = new.and(&state.presence.zeroed_bits(extent));
        if !new.is_empty() {
            state.presence.insert(extent, &new);
            if !state.garbage.is_empty() && !self.limits.has(Planted::EarlyPunch) {
                // Space that was to be given back is somebody's data again.
                super::presence::remove_bits(&mut state.garbage, extent, &new);
            }
            state.fresh_blocks += u64::from(new.count());
            self.count_fresh(u64::from(new.count()));
            state.fresh_extents.insert(extent);
            self.note_fresh(layer, state);
        }
        if let Some(hot) = state.hot.get_mut(&extent) {
            for (block, checksum) in bits.runs().flatten().zip(checksums) {
                hot.page.set(block, *checksum);
            }
            hot.fresh = hot.fresh.or(&new);
            hot.over_zeros = hot.over_zeros.minus(&new).or(&over_zeros);
        }
        self.note_bytes(layer, state, extent, bits, file);
        Self::unlatch(layer, state, extent, bits);
    }

    /// Bytes have reached present blocks: a later round syncs them, and names those of a sealed layer that were overwritten in place.
    fn note_bytes(&self, layer: &Layer, state: &mut State, extent: u32, bits: &BlockBits, file: (u32, &Arc<dyn DiskFile>)) {
        if let Some(hot) = state.hot.get_mut(&extent) {
            let overwritten = bits.minus(&hot.fresh);
            if !overwritten.is_empty() {
                hot.overwritten = hot.overwritten.or(&overwritten);
                state.overwritten_extents.insert(extent);
            }
        }
        self.note_written(layer, state, file.0, file.1);
    }

    /// The writer went away in the middle, by a panic: as [`Layers::abort_write`] after a shortage.
    pub(super) fn abandon_write(&self, layer: &Layer, extent: u32, bits: &BlockBits) {
        if !self.settle_write(layer, extent, bits) {
            self.commit.poison(Error::new(ErrorKind::Io, format!("a write to layer {} was given up in the middle", layer.id)));
        }
    }

    /// The write failed: releases the latch. Blocks that were absent stay absent, and what they may have got of space is given
    /// back. Others hold old or new bytes, sector by sector. After a mere shortage they are hashed as they are now, so that the next
    /// frame or page names what the file has; after any other error nobody knows what reaches the disk, and the store refuses writes.
    pub fn abort_write(&self, layer: &Layer, extent: u32, bits: &BlockBits, error: &Error) {
        let known = self.settle_write(layer, extent, bits);
        if !known || !error.is_shortage() {
            self.commit.poison(error.clone());
        }
    }

    /// Gives back the blocks of a failed write. Answers whether it is known what the file has.
    fn settle_write(&self, layer: &Layer, extent: u32, bits: &BlockBits) -> bool {
        // Behind the latch nothing else changes what is present.
        let present = layer.extent(extent).0.and(bits);
        // The disk's code may panic again.
        let hash_again = || catch_unwind(AssertUnwindSafe(|| self.hash_again(layer, extent, &present)));
        let hashed = if present.is_empty() { None } else { hash_again().ok().and_then(Result::ok).flatten() };
        let known = present.is_empty() || hashed.is_some();
        let new = bits.minus(&present);
        let mut state = layer.state.lock();
        self.commit.release_blocks(new.count());
        if let Some(file) = hashed.filter(|_| !state.freed) {
            // Some of its bytes may be there: they are as durable as those of any write before a fork or a flush is.
            self.note_bytes(layer, &mut state, extent, &present, (self.place(extent * EXTENT_BLOCKS).0, &file));
        }
        if !known {
            state.unverified.insert(extent);
            layer.unverified.store(true, crate::sync::atomic::Ordering::Release);
        }
        if !new.is_empty() && !state.freed {
            super::presence::insert_bits(&mut state.garbage, extent, &new);
            self.note_garbage(layer);
        }
        Self::unlatch(layer, &mut state, extent, bits);
        known
    }

    /// Releases a latch that changed nothing.
    pub(super) fn release(&self, layer: &Layer, extent: u32, bits: &BlockBits) {
        Self::unlatch(layer, &mut layer.state.lock(), extent, bits);
    }

    /// Gives back blocks that were admitted but will not be written after all.
    pub fn withdraw_write(&self, layer: &Layer, extent: u32, bits: &BlockBits) {
        let mut state = layer.state.lock();
        let present = state.presence.present_bits(extent);
        self.commit.release_blocks(bits.minus(&present).count());
        Self::unlatch(layer, &mut state, extent, bits);
    }

    fn unlatch(layer: &Layer, state: &mut State, extent: u32, bits: &BlockBits) {
        if let Some(hot) = state.hot.get_mut(&extent) {
            hot.latched = hot.latched.minus(bits);
        }
        state.cool(extent);
        layer.changed.notify_all();
    }

    /// Takes blocks for oneself without meaning to write them: no writer, fill or punch touches them meanwhile.
    pub(super) fn latch_wait<'a>(&'a self, layer: &'a Layer, extent: u32, bits: &BlockBits) -> Result<Latched<'a>> {
        let page = self.page(layer, extent)?;
        loop {
            {
                let mut state = layer.state.lock();
                let hot: &mut Hot = state.hot(extent, &page);
                // A round that waits for blocks to be given back is not kept waiting by others.
                if !hot.latched.or(&hot.draining).intersects(bits) {
                    hot.latched = hot.latched.or(bits);
                    return Ok(Latched::of(self, layer, extent, *bits));
                }
            }
            self.wait_for(layer, Wait::Latch)?;
        }
    }
}
