//! What a layer knows of its blocks, and what is under way in its extents. Behind the layer's lock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::checksums::ChecksumPage;
use super::commit::queue::Ticket;
use super::patch::Patch;
use super::presence::Presence;
use crate::io::DiskFile;
use crate::place::{Block, BlockBits, BlockSpan, Extent, Segment, remove_bits};

/// An extent that is being written, or was written and is not at rest yet.
pub(super) struct Hot {
    /// Blocks that one writer, settled reader or punch has for itself.
    pub latched: BlockBits,
    /// Present blocks that no frame names yet; they may be overwritten without a mark.
    pub fresh: BlockBits,
    /// Fresh blocks that were zeroed before: until a frame names them, the journal must call them zero.
    pub over_zeros: BlockBits,
    /// Fresh blocks that a starting round waits for: no further writer is admitted to them.
    pub draining: BlockBits,
    /// Blocks that the frame of the round under way names; they must not be overwritten before it ends.
    pub round: BlockBits,
    /// Blocks that this frame names. While it is the latest frame, recovery believes them only if their bytes match.
    pub recorded: (BlockBits, u64),
    /// Blocks overwritten in place since the last round.
    pub overwritten: BlockBits,
    /// The round that makes the mark durable, until it has ended.
    pub marking: Option<Ticket>,
    /// Written since the last look of the cleaner.
    pub touched: bool,
    /// Pinned while the extent is hot.
    pub page: Arc<ChecksumPage>,
}

/// Blocks that were zeroed or forgotten in memory by a record that is not durable yet. Nothing is written to `blocks` until then: a
/// record that makes one of them present again must come after that record.
pub(super) struct Retiring {
    pub ticket: Ticket,
    pub blocks: BlockSpan,
    /// Those that the journal still calls present.
    pub recorded: RoaringBitmap,
}

#[derive(Default)]
pub(super) struct State {
    /// Presence in memory: fresh blocks are included.
    pub presence: Presence,
    /// Parts of blocks. A patch counts while its block is neither present nor zeroed.
    pub patches: BTreeMap<Block, Patch>,
    pub hot: BTreeMap<Extent, Hot>,
    /// Hot extents with fresh blocks.
    pub fresh_extents: BTreeSet<Extent>,
    pub fresh_blocks: u64,
    /// The layer is in the list of those with fresh blocks.
    pub is_listed: bool,
    /// Hot extents of the round under way.
    pub round_extents: Vec<Extent>,
    pub round: Option<Ticket>,
    /// Hot extents with blocks overwritten since the last round.
    pub overwritten_extents: BTreeSet<Extent>,
    /// Extents whose mark is durable or queued.
    pub marked: RoaringBitmap,
    /// Marked extents whose checksums are not known since a crash.
    pub unverified: RoaringBitmap,
    /// Unverified extents that could not be read.
    pub unreadable: RoaringBitmap,
    pub retiring: Vec<Retiring>,
    /// Blocks whose space can be given back.
    pub garbage: RoaringBitmap,
    /// Files with completed writes that no round has synced yet.
    pub written: BTreeMap<Segment, Arc<dyn DiskFile>>,
    /// Bytes of these writes since the latest round or early write-back began.
    pub dirty_bytes: u64,
    /// Blocks of a sealed layer whose damage was met and not repaired.
    pub damaged: RoaringBitmap,
    /// Nothing refers to the layer any more.
    pub freed: bool,
}

impl State {
    /// Whether the layer has nothing to tell of the blocks from this one on.
    pub fn is_at_rest_from(&self, first: Block) -> bool {
        let is_behind = |set: &RoaringBitmap, number: u32| set.max().is_none_or(|last| last < number);
        let Presence { present, zeroed } = &self.presence;
        let (block, extent) = (first.number(), first.extent().number());
        is_behind(present, block)
            && is_behind(zeroed, block)
            && is_behind(&self.marked, extent)
            && self.patches.range(first..).next().is_none()
    }

    /// Drops what later rounds owed to a layer that was freed: its blocks are named and synced no more, and its space is given back
    /// as a whole.
    pub fn give_up(&mut self) {
        self.fresh_extents.clear();
        self.overwritten_extents.clear();
        for hot in self.hot.values_mut() {
            (hot.fresh, hot.over_zeros, hot.overwritten) = (BlockBits::EMPTY, BlockBits::EMPTY, BlockBits::EMPTY);
        }
        self.written.clear();
        self.dirty_bytes = 0;
        self.retiring.clear();
        self.garbage.clear();
    }

    /// The entry of an extent, made if it is not hot.
    pub fn hot(&mut self, extent: Extent, page: &Arc<ChecksumPage>) -> &mut Hot {
        self.hot.entry(extent).or_insert_with(|| Hot {
            latched: BlockBits::EMPTY,
            fresh: BlockBits::EMPTY,
            over_zeros: BlockBits::EMPTY,
            draining: BlockBits::EMPTY,
            round: BlockBits::EMPTY,
            recorded: (BlockBits::EMPTY, 0),
            overwritten: BlockBits::EMPTY,
            marking: None,
            touched: false,
            page: Arc::clone(page),
        })
    }

    /// Drops the entry of an extent that is at rest.
    pub fn cool(&mut self, extent: Extent) {
        let rests = self.hot.get(&extent).is_some_and(|hot| {
            hot.latched.is_empty() && hot.fresh.is_empty() && hot.round.is_empty() && hot.overwritten.is_empty() && hot.marking.is_none()
        });
        // A marked extent keeps its page pinned: the page is the only place that knows its checksums.
        if rests && !self.marked.contains(extent.number()) {
            self.hot.remove(&extent);
        }
    }

    /// The latest round that has to end before blocks of `bits` may be written, because they are retiring.
    pub fn retires(&self, extent: Extent, bits: &BlockBits) -> Option<Ticket> {
        let retires = |retiring: &&Retiring| BlockBits::of(retiring.blocks.within(extent)).intersects(bits);
        self.retiring.iter().rev().find(retires).map(|retiring| retiring.ticket)
    }

    /// Whether zeroing the blocks changes what the layer shows. `hides`: layers below may hold the blocks.
    pub fn shows(&self, blocks: BlockSpan, hides: bool) -> bool {
        let held = self.presence.present.range_cardinality(blocks.numbers()) > 0;
        held || (hides && self.presence.zeroed.range_cardinality(blocks.numbers()) < blocks.len())
    }

    /// Those of the blocks that are not latched.
    pub fn without_latched(&self, blocks: &RoaringBitmap) -> RoaringBitmap {
        let mut free = blocks.clone();
        for (extent, hot) in &self.hot {
            if !hot.latched.is_empty() {
                remove_bits(&mut free, *extent, &hot.latched);
            }
        }
        free
    }

    /// Whether a block of the span is latched.
    pub fn is_latched(&self, blocks: BlockSpan) -> bool {
        self.hot_within(blocks).any(|(extent, hot)| hot.latched.intersects(&BlockBits::of(blocks.within(*extent))))
    }

    fn hot_within(&self, blocks: BlockSpan) -> impl Iterator<Item = (&Extent, &Hot)> {
        let extents = blocks.first().zip(blocks.last()).map(|(first, last)| first.extent()..=last.extent());
        extents.into_iter().flat_map(|extents| self.hot.range(extents))
    }

    /// Blocks that the layer hides from the layers below, after any crash: those that a durable frame covers.
    pub fn durable_cover(&self) -> RoaringBitmap {
        let mut cover = self.presence.covered();
        for (extent, hot) in &self.hot {
            remove_bits(&mut cover, *extent, &hot.fresh.or(&hot.round));
        }
        for retiring in &self.retiring {
            cover.remove_range(retiring.blocks.numbers());
        }
        cover
    }
}
