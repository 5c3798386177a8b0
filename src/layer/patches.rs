//! Patches: parts of blocks that were written while the rest of the block is still below the layer, perhaps at a source.
//!
//! A write of a part of a missing block is acknowledged with its bytes in memory and in the next journal frame. When the block
//! below has come, both are merged into a whole block of the layer: a fill, which changes no meaning.
//!
//! # Invariants
//! - A block is *patched* if the layer has a patch for it and it is neither present nor zeroed there. Once it is either, it is
//!   never patched in this layer again; so recovery may ignore a patch of a block that earlier records cover.
//! - A patch does not hide the block below, which is needed until they are merged.
//!
//! # Crash ordering
//! - The record is queued under the layer's lock together with the change in memory, so a checkpoint has it or a later frame.
//! - A patch whose block became present stays in memory until the frame that names the block is durable: a checkpoint leaves
//!   out blocks without a frame, and carries their patches instead. A discard takes its patches at once: a checkpoint carries
//!   the zeros.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::presence::{Presence, extent_blocks};
use super::set::Layers;
use super::state::{Layer, State};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{BlocksRecord, PatchRecord};
use crate::ids::LayerId;
use crate::limits::EXTENT_BLOCKS;
use crate::place::BlockBits;
use crate::sync::atomic::Ordering;

/// Separate ranges that one patch may have; bounds the records of a checkpoint.
const RANGES_MAX: usize = 64;

/// Bytes of a block, of which some are valid.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    bytes: Box<[u8]>,
    /// Valid bytes: sorted, and neighbours neither overlap nor touch.
    ranges: Vec<Range<u32>>,
}

impl Patch {
    pub(super) fn new(block_bytes: u64) -> Self {
        Self { bytes: vec![0; block_bytes as usize].into(), ranges: Vec::new() }
    }

    pub(super) fn put(&mut self, offset: u32, bytes: &[u8]) {
        self.bytes[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        self.ranges = self.ranges_with(offset..offset + bytes.len() as u32);
    }

    /// The valid ranges if `range` were valid as well.
    fn ranges_with(&self, mut range: Range<u32>) -> Vec<Range<u32>> {
        let touches = |other: &Range<u32>| other.start <= range.end && range.start <= other.end;
        let (joined, mut ranges): (Vec<_>, Vec<_>) = self.ranges.iter().cloned().partition(touches);
        for other in joined {
            range = range.start.min(other.start)..range.end.max(other.end);
        }
        ranges.insert(ranges.partition_point(|other| other.end < range.start), range);
        ranges
    }

    /// Puts the valid bytes over those of the block.
    fn overlay(&self, block: &mut [u8]) {
        for range in &self.ranges {
            let range = range.start as usize..range.end as usize;
            block[range.clone()].copy_from_slice(&self.bytes[range]);
        }
    }

    pub(super) fn records(&self, layer: LayerId, block: u32) -> impl Iterator<Item = BlocksRecord> + '_ {
        self.ranges.iter().map(move |range| {
            let bytes = self.bytes[range.start as usize..range.end as usize].to_vec();
            BlocksRecord::Patch(PatchRecord { layer, block, offset: range.start, bytes })
        })
    }
}

/// What a record of so many bytes costs in the journal.
pub(super) fn record_bytes(bytes: usize) -> u64 {
    PatchRecord::HEADER_BYTES + bytes as u64
}

/// Room in memory and in the journal for a patch that is about to be made. Dropping it gives it back.
#[must_use]
pub struct PatchRoom<'a> {
    layers: &'a Layers,
    /// The block had no patch.
    new: bool,
    journal_bytes: u64,
}

impl Drop for PatchRoom<'_> {
    fn drop(&mut self) {
        self.layers.commit.release(self.journal_bytes);
        self.layers.patch_blocks.fetch_sub(u64::from(self.new), Ordering::AcqRel);
    }
}

/// How a merge ended.
pub enum Merged {
    /// The block is whole in the layer, with these bytes.
    Stored,
    /// These are its bytes, but there is no space to keep them; the patch stays.
    Unstored(Error),
    /// The block is not patched any more.
    Gone,
}

impl State {
    /// The patch of a block, if it counts.
    pub fn patch(&self, block: u32) -> Option<&Patch> {
        self.patches.get(&block).filter(|_| !is_covered(&self.presence, block))
    }

    /// Patches that a checkpoint has to carry: those that count, and those of blocks that it must not call present yet.
    pub fn patches_to_keep<'a>(&'a self, recorded: &'a RoaringBitmap) -> impl Iterator<Item = (u32, &'a Patch)> {
        let covered = move |block: &u32| recorded.contains(*block) || self.presence.zeroed.contains(*block);
        self.patches.iter().map(|(block, patch)| (*block, patch)).filter(move |(block, _)| !covered(block))
    }
}

/// Whether presence supersedes a patch of the block.
pub(super) fn is_covered(presence: &Presence, block: u32) -> bool {
    presence.present.contains(block) || presence.zeroed.contains(block)
}

impl Layer {
    /// Whether it may have patches: cheap enough for every read.
    pub fn has_patches(&self) -> bool {
        self.patched.load(Ordering::Relaxed)
    }

    /// Blocks of the extent that are patched.
    pub fn patched(&self, extent: u32) -> BlockBits {
        let state = self.state.lock();
        patched_bits(&state, extent)
    }

    /// Blocks of the extent that the layer answers for with bytes (whole ones and patched ones), and with zeros.
    pub fn answered(&self, extent: u32) -> (BlockBits, BlockBits) {
        let state = self.state.lock();
        (state.presence.present_bits(extent).or(&patched_bits(&state, extent)), state.presence.zeroed_bits(extent))
    }

    /// All patched blocks.
    pub fn patched_blocks(&self) -> RoaringBitmap {
        let state = self.state.lock();
        state.patches.keys().copied().filter(|block| !is_covered(&state.presence, *block)).collect()
    }

    /// Fills those bytes of `buffer` (the block from `offset` on) that are wanted and that the patch of the block has; answers
    /// what is wanted still.
    pub fn read_patch(&self, block: u32, offset: u32, buffer: &mut [u8], wanted: Vec<Range<u32>>) -> Vec<Range<u32>> {
        let state = self.state.lock();
        let Some(patch) = state.patch(block) else { return wanted };
        let mut left = Vec::new();
        for want in wanted {
            let mut at = want.start;
            for range in &patch.ranges {
                let (start, end) = (range.start.max(at), range.end.min(want.end));
                if start < end {
                    let bytes = &patch.bytes[start as usize..end as usize];
                    buffer[(start - offset) as usize..(end - offset) as usize].copy_from_slice(bytes);
                    if at < start {
                        left.push(at..start);
                    }
                    at = end;
                }
            }
            if at < want.end {
                left.push(at..want.end);
            }
        }
        left
    }

    /// Whether the patch of a block and a write of `range` make it whole. If so, the patch is put into `buffer`.
    pub fn completes(&self, block: u32, range: &Range<u32>, buffer: &mut [u8]) -> bool {
        let state = self.state.lock();
        let Some(patch) = state.patch(block) else { return false };
        let all = 0..patch.bytes.len() as u32;
        let whole = patch.ranges_with(range.clone()).first() == Some(&all);
        if whole {
            patch.overlay(buffer);
        }
        whole
    }
}

fn patched_bits(state: &State, extent: u32) -> BlockBits {
    let all = extent_blocks(extent);
    let first = *all.start();
    let mut bits = BlockBits::EMPTY;
    for block in state.patches.range(all).map(|(block, _)| *block).filter(|block| !is_covered(&state.presence, *block)) {
        bits = bits.or(&BlockBits::of(block - first..block - first + 1));
    }
    bits
}

impl Layers {
    /// Takes room for a patch of an admitted block. `None`: there are as many patches as there may be.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`]; nothing has changed then.
    pub fn reserve_patch(&self, layer: &Layer, block: u32, range: &Range<u32>) -> Result<Option<PatchRoom<'_>>> {
        let (new, ranges) = {
            let state = layer.state.lock();
            let patch = state.patch(block);
            (patch.is_none(), patch.map_or(1, |patch| patch.ranges_with(range.clone()).len()))
        };
        let blocks_max = self.block_size.block_of(self.limits.patch_bytes_max);
        if ranges > RANGES_MAX {
            return Ok(None);
        }
        if new && self.patch_blocks.fetch_add(1, Ordering::AcqRel) >= blocks_max {
            self.patch_blocks.fetch_sub(1, Ordering::AcqRel);
            return Ok(None);
        }
        let journal_bytes = record_bytes(range.len());
        match self.commit.reserve(journal_bytes) {
            Ok(true) => Ok(Some(PatchRoom { layers: self, new, journal_bytes })),
            refused => {
                self.patch_blocks.fetch_sub(u64::from(new), Ordering::AcqRel);
                refused.map(|_| None)
            }
        }
    }

    /// Makes `bytes` (from `offset` on) part of an admitted block that the layer does not hold, and releases the block.
    /// Durable with the next round.
    pub fn patch_admitted(&self, layer: &Layer, block: u32, offset: u32, bytes: &[u8], room: PatchRoom<'_>) {
        // The patch and its record have it from now on.
        let room = std::mem::ManuallyDrop::new(room);
        {
            let mut state = layer.state.lock();
            state.patches.entry(block).or_insert_with(|| Patch::new(self.block_size.bytes())).put(offset, bytes);
            if state.freed && room.new {
                self.patch_blocks.fetch_sub(1, Ordering::AcqRel);
            }
            layer.patched.store(true, Ordering::Release);
            self.patched_layers.lock().insert(layer.id);
            self.patch_bytes_queued.fetch_add(room.journal_bytes, Ordering::AcqRel);
            self.commit.enqueue([BlocksRecord::Patch(PatchRecord { layer: layer.id, block, offset, bytes: bytes.to_vec() })]);
        }
        let within = block % EXTENT_BLOCKS;
        self.withdraw_write(layer, block / EXTENT_BLOCKS, &BlockBits::of(within..within + 1));
    }

    /// Forgets the patches of blocks that something durable, or in the state of the next checkpoint, supersedes.
    pub(super) fn forget_patches(&self, layer: &Layer, state: &mut State, blocks: RangeInclusive<u32>) {
        if state.patches.is_empty() {
            return;
        }
        let gone = remove_patches(&mut state.patches, blocks);
        if !state.freed {
            self.patch_blocks.fetch_sub(gone, Ordering::AcqRel);
        }
        if state.patches.is_empty() {
            layer.patched.store(false, Ordering::Release);
            self.patched_layers.lock().remove(&layer.id);
        }
    }

    /// Puts the patch of a block over `buffer`, which holds the block below, and stores the whole block in the layer.
    ///
    /// # Errors
    /// An I/O error; the store refuses writes.
    pub fn merge(&self, layer: &Layer, block: u32, buffer: &mut [u8]) -> Result<Merged> {
        let (extent, within) = (block / EXTENT_BLOCKS, block % EXTENT_BLOCKS);
        let bits = BlockBits::of(within..within + 1);
        let admitted = self.admit_wait(layer, extent, &bits);
        // Behind the latch nothing supersedes the patch, and nothing is added to it.
        let patched = layer.state.lock().patch(block).map(|patch| patch.overlay(buffer)).is_some();
        let result = match (admitted, patched) {
            (Ok(()), true) => self.write_admitted(layer, extent, within..within + 1, buffer),
            (Ok(()), false) => {
                self.withdraw_write(layer, extent, &bits);
                return Ok(Merged::Gone);
            }
            (Err(_), false) => return Ok(Merged::Gone),
            (Err(error), true) => Err(error),
        };
        match result {
            Ok(()) => Ok(Merged::Stored),
            Err(error) if matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Poisoned) => Ok(Merged::Unstored(error)),
            Err(error) => Err(error),
        }
    }

    /// Whether any layer has patches.
    pub fn any_patches(&self) -> bool {
        self.patch_blocks.load(Ordering::Acquire) > 0
    }

    /// Layers that keep patches only until a frame names the blocks that supersede them.
    pub fn superseded(&self) -> Vec<Arc<Layer>> {
        let ids: Vec<LayerId> = self.patched_layers.lock().iter().copied().collect();
        let waits = |layer: &Arc<Layer>| {
            let state = layer.state.lock();
            state.patches.keys().any(|block| state.presence.present.contains(*block))
        };
        ids.into_iter().filter_map(|id| self.get(id)).filter(waits).collect()
    }

    /// At most `count` patched blocks from a place on, in order.
    pub fn patched_from(&self, from: (LayerId, u32), count: usize) -> Vec<(Arc<Layer>, u32)> {
        let ids: Vec<LayerId> = self.patched_layers.lock().range(from.0..).copied().collect();
        let mut found = Vec::new();
        for layer in ids.into_iter().filter_map(|id| self.get(id)) {
            let first = if layer.id == from.0 { from.1 } else { 0 };
            let blocks: Vec<u32> = {
                let state = layer.state.lock();
                let patched = state.patches.range(first..).map(|(block, _)| *block).filter(|block| !is_covered(&state.presence, *block));
                patched.take(count - found.len()).collect()
            };
            found.extend(blocks.into_iter().map(|block| (Arc::clone(&layer), block)));
            if found.len() == count {
                break;
            }
        }
        found
    }
}

/// Takes the patches of a range of blocks; answers how many there were.
pub(super) fn remove_patches(patches: &mut BTreeMap<u32, Patch>, blocks: RangeInclusive<u32>) -> u64 {
    let gone: Vec<u32> = patches.range(blocks).map(|(block, _)| *block).collect();
    for block in &gone {
        patches.remove(block);
    }
    gone.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_agree_with_an_array_of_bytes() {
        let mut seed = 7u64;
        println!("seed {seed}");
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((seed >> 33) % below) as u32
        };
        for _ in 0..300 {
            let mut patch = Patch::new(64);
            let mut model = [None; 64];
            for step in 1..12u8 {
                let start = random(64);
                let end = (start + 1 + random(12)).min(64);
                patch.put(start, &vec![step; (end - start) as usize]);
                model[start as usize..end as usize].fill(Some(step));
                assert!(patch.ranges.iter().all(|range| !range.is_empty()));
                assert!(patch.ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", patch.ranges);
                let mut block = [0xff; 64];
                patch.overlay(&mut block);
                assert_eq!(block, model.map(|byte| byte.unwrap_or(0xff)));
                let mut again = Patch::new(64);
                for record in patch.records(LayerId(1), 5) {
                    let BlocksRecord::Patch(record) = record else { panic!("{record:?}") };
                    again.put(record.offset, &record.bytes);
                }
                assert_eq!(again, patch);
            }
        }
    }
}
