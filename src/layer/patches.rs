//! Patches of layers: parts of blocks that were written while the rest of the block is still below the layer, perhaps at a source.
//!
//! A write of a part of a missing block is acknowledged with its bytes in memory and in the next journal frame. When the block below
//! has come, both are merged into a whole block of the layer: a fill, which changes no meaning.
//!
//! # Invariants
//! - A block is *patched* if the layer has a patch for it and it is neither present nor zeroed there. Once it is either, it is never
//!   patched in this layer again; so recovery may ignore a patch of a block that earlier records cover.
//! - A patch does not hide the block below, which is needed until they are merged.
//!
//! # Crash ordering
//! - The record is queued under the layer's lock together with the change in memory, so a checkpoint has it or a later frame.
//! - A patch whose block became present stays in memory until the frame that names the block is durable: a checkpoint leaves out blocks
//!   without a frame, and carries their patches instead. A discard takes its patches at once: a checkpoint carries the zeros.

use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::commit::cost::patch_record_bytes;
use super::commit::queue::Commit;
use super::commit::room::Reserved;
use super::layer::Layer;
use super::patch::{Patch, RANGES_MAX, remove_patches};
use super::presence::Presence;
use super::state::State;
use super::table::Table;
use super::unrecorded::Unrecorded;
use crate::error::Result;
use crate::format::{BlocksRecord, PatchRecord};
use crate::ids::LayerId;
use crate::limits::Limits;
use crate::place::{Block, BlockBits, BlockSize, BlockSpan, Extent, wide};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, Rank};

impl State {
    /// The patch of a block, if it counts.
    pub(super) fn patch(&self, block: Block) -> Option<&Patch> {
        self.patches.get(&block).filter(|_| !is_covered(&self.presence, block))
    }

    /// Patches that a checkpoint has to carry: those that count, and those of blocks that it must not call present yet.
    pub(super) fn patches_to_keep<'a>(
        &'a self,
        blocks: RangeInclusive<Block>,
        recorded: &'a RoaringBitmap,
    ) -> impl Iterator<Item = (Block, &'a Patch)> {
        let covered = move |block: Block| recorded.contains(block.number()) || self.presence.zeroed.contains(block.number());
        self.patches.range(blocks).map(|(block, patch)| (*block, patch)).filter(move |(block, _)| !covered(*block))
    }

    /// Patched blocks from `first` to `last`.
    fn patched(&self, first: Block, last: Block) -> impl Iterator<Item = Block> {
        self.patches.range(first..=last).map(|(block, _)| *block).filter(|block| !is_covered(&self.presence, *block))
    }

    fn patched_bits(&self, extent: Extent) -> BlockBits {
        let patched = self.patched(extent.first(), extent.last());
        patched.fold(BlockBits::EMPTY, |bits, block| bits.or(&BlockBits::of_one(block.index())))
    }
}

/// Whether presence supersedes a patch of the block.
pub(super) fn is_covered(presence: &Presence, block: Block) -> bool {
    presence.present.contains(block.number()) || presence.zeroed.contains(block.number())
}

impl Layer {
    /// Whether the layer may have patches: cheap enough for every read.
    pub fn has_patches(&self) -> bool {
        self.patched.load(Ordering::Relaxed)
    }

    /// Blocks of the extent that are patched.
    pub fn patched(&self, extent: Extent) -> BlockBits {
        self.state.lock().patched_bits(extent)
    }

    /// Blocks of the extent that the layer answers for with bytes (whole blocks and patched ones), and with zeros.
    pub fn answered(&self, extent: Extent) -> (BlockBits, BlockBits) {
        let state = self.state.lock();
        (state.presence.present_bits(extent).or(&state.patched_bits(extent)), state.presence.zeroed_bits(extent))
    }

    /// All patched blocks.
    pub fn patched_blocks(&self) -> RoaringBitmap {
        self.state.lock().patched(Block::FIRST, Block::LAST).map(Block::number).collect()
    }

    /// Fills those bytes of `buffer` (the block from `offset` on) that are wanted and that the patch of the block has; answers what is
    /// still wanted.
    pub fn read_patch(&self, block: Block, offset: u32, buffer: &mut [u8], wanted: Vec<Range<u32>>) -> Vec<Range<u32>> {
        match self.state.lock().patch(block) {
            Some(patch) => patch.read(offset, buffer, wanted),
            None => wanted,
        }
    }

    /// Whether the patch of a block and a write of `range` make it whole. If so, the patch is put into `buffer`.
    pub fn completes(&self, block: Block, range: &Range<u32>, buffer: &mut [u8]) -> bool {
        let state = self.state.lock();
        let whole = state.patch(block).filter(|patch| patch.completes(range));
        whole.map(|patch| patch.overlay(buffer)).is_some()
    }
}

/// Counts patches, and the journal space of their records.
pub struct PatchLedger {
    commit: Arc<Commit>,
    unrecorded: Arc<Unrecorded>,
    block_size: BlockSize,
    limits: Limits,
    /// Patches in memory, and those for which there is room.
    blocks: AtomicU64,
    /// Journal bytes of patches that no frame has yet.
    bytes_queued: AtomicU64,
    layers: Mutex<BTreeSet<LayerId>>,
}

/// Room in memory and in the journal for a patch that is about to be made. Dropping it gives it back.
#[must_use]
pub struct PatchRoom<'a> {
    journal: Reserved<'a>,
    /// Where a patch for the block counts, if it had none.
    memory: Option<MemoryRoom<'a>>,
}

struct MemoryRoom<'a>(&'a AtomicU64);

impl Drop for MemoryRoom<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl PatchLedger {
    pub(super) fn new(commit: Arc<Commit>, unrecorded: Arc<Unrecorded>, block_size: BlockSize, limits: Limits, table: &Table) -> Self {
        let patched: Vec<Arc<Layer>> = table.all().into_iter().filter(|layer| layer.has_patches()).collect();
        Self {
            commit,
            unrecorded,
            block_size,
            limits,
            blocks: AtomicU64::new(patched.iter().map(|layer| wide(layer.state.lock().patches.len())).sum()),
            bytes_queued: AtomicU64::new(0),
            layers: Mutex::ranked(Rank::PatchedLayers, patched.iter().map(|layer| layer.id).collect()),
        }
    }

    /// Takes room for a patch of an admitted block. `None`: there are as many patches as there may be.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NoSpace`]; nothing has changed then.
    pub fn reserve(&self, layer: &Layer, block: Block, range: &Range<u32>) -> Result<Option<PatchRoom<'_>>> {
        let (new, ranges) = {
            let state = layer.state.lock();
            let patch = state.patch(block);
            (patch.is_none(), patch.map_or(1, |patch| patch.ranges_after(range)))
        };
        if ranges > RANGES_MAX {
            return Ok(None);
        }
        let memory = new.then(|| {
            let before = self.blocks.fetch_add(1, Ordering::AcqRel);
            (MemoryRoom(&self.blocks), before)
        });
        if memory.as_ref().is_some_and(|(_, before)| *before >= self.limits.patch_bytes_max / self.block_size.bytes()) {
            return Ok(None);
        }
        let journal = self.commit.room.reserve(patch_record_bytes(u64::from(range.end - range.start)))?;
        Ok(journal.map(|journal| PatchRoom { journal, memory: memory.map(|(room, _)| room) }))
    }

    /// Makes `bytes` of a block, from `offset` on, part of its patch. The caller was admitted to the block, which the layer does not
    /// hold. Durable with the next round.
    pub(super) fn put(&self, layer: &Layer, record: PatchRecord, room: PatchRoom<'_>) {
        let PatchRoom { journal, memory } = room;
        let mut state = layer.state.lock();
        let patch = state.patches.entry(record.block).or_insert_with(|| Patch::new(self.block_size));
        patch.put(record.range(), &record.bytes);
        match state.freed {
            // The patches of a freed layer do not count.
            true => drop(memory),
            false => std::mem::forget(memory),
        }
        layer.patched.store(true, Ordering::Release);
        self.layers.lock().insert(layer.id);
        self.bytes_queued.fetch_add(journal.keep(), Ordering::AcqRel);
        let record = BlocksRecord::Patch(record);
        self.commit.enqueue([record.clone()]);
        self.unrecorded.note(&record);
    }

    /// Drops the patches of blocks that something durable, or in the state of the next checkpoint, supersedes.
    pub(super) fn drop_superseded(&self, layer: &Layer, state: &mut State, blocks: BlockSpan) {
        if state.patches.is_empty() {
            return;
        }
        let superseded = remove_patches(&mut state.patches, blocks);
        if !state.freed {
            self.blocks.fetch_sub(superseded, Ordering::AcqRel);
        }
        if state.patches.is_empty() {
            layer.patched.store(false, Ordering::Release);
            self.layers.lock().remove(&layer.id);
        }
    }

    /// Stops counting the patches of a layer that is freed. They stay for readers that are still in the layer.
    pub(super) fn note_freed(&self, layer: &Layer, state: &State) {
        self.blocks.fetch_sub(wide(state.patches.len()), Ordering::AcqRel);
        self.layers.lock().remove(&layer.id);
    }

    /// Counts off the journal space of patches whose records are in a frame now.
    pub(super) fn count_recorded(&self, bytes: u64) {
        self.commit.room.release(bytes);
        self.bytes_queued.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Journal bytes of patches that no frame has yet.
    pub(super) fn bytes_queued(&self) -> u64 {
        self.bytes_queued.load(Ordering::Acquire)
    }

    /// Whether any layer has patches.
    pub fn is_any(&self) -> bool {
        self.blocks.load(Ordering::Acquire) > 0
    }

    /// Layers that keep patches only until a frame names the blocks that supersede them.
    pub(super) fn superseded(&self, table: &Table) -> Vec<Arc<Layer>> {
        let ids: Vec<LayerId> = self.layers.lock().iter().copied().collect();
        let waits = |layer: &Arc<Layer>| {
            let state = layer.state.lock();
            state.patches.keys().any(|block| state.presence.present.contains(block.number()))
        };
        ids.into_iter().filter_map(|id| table.get(id)).filter(waits).collect()
    }

    /// At most `count` patched blocks, in order, from a block of a layer on.
    pub(super) fn patched_from(&self, table: &Table, from: (LayerId, Block), count: usize) -> Vec<(Arc<Layer>, Block)> {
        let ids: Vec<LayerId> = self.layers.lock().range(from.0..).copied().collect();
        let mut found = Vec::new();
        for layer in ids.into_iter().filter_map(|id| table.get(id)) {
            let first = if layer.id == from.0 { from.1 } else { Block::FIRST };
            let blocks: Vec<Block> = layer.state.lock().patched(first, Block::LAST).take(count - found.len()).collect();
            found.extend(blocks.into_iter().map(|block| (Arc::clone(&layer), block)));
            if found.len() == count {
                break;
            }
        }
        found
    }
}
