//! A layer in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::checksums::ChecksumPage;
use super::commit::Ticket;
use super::patches::Patch;
use super::presence::{Presence, extent_blocks};
use crate::ids::LayerId;
use crate::io::DiskFile;
use crate::limits::EXTENT_BLOCKS;
use crate::place::{BlockBits, end_of_run};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Condvar, Mutex, OnceLock};

/// A set of blocks over a parent.
///
/// What every reader looks at comes first, in one cache line: in a long chain most layers are not in the processor's caches.
#[repr(C)]
pub struct Layer {
    /// Its number.
    pub id: LayerId,
    /// The layer below.
    pub parent: Option<LayerId>,
    /// Stands for a source (or did since the store was opened) of so many blocks: its presence grows under its readers, so it is
    /// asked at each read.
    source_blocks: OnceLock<u64>,
    /// No further write is admitted, other than fills.
    sealed: AtomicBool,
    /// Some extent is unverified.
    pub(super) unverified: AtomicBool,
    /// It has patches.
    pub(super) patched: AtomicBool,
    /// Notified when latches are released and when rounds end.
    pub(super) changed: Condvar,
    pub(super) state: Mutex<State>,
}

/// An extent that is being written, or was written and is not yet at rest.
pub(super) struct Hot {
    /// Blocks that one writer (or a settled reader, or a punch) has for itself.
    pub latched: BlockBits,
    /// Present blocks that no frame names yet; they may be overwritten without a mark.
    pub fresh: BlockBits,
    /// Fresh blocks that were zeroed before: until a frame names them, the journal must call them zero.
    pub over_zeros: BlockBits,
    /// Fresh blocks that a starting round waits for: no further writer is admitted to them.
    pub draining: BlockBits,
    /// Blocks that the frame of the round under way names; they must not be overwritten before it ends.
    pub round: BlockBits,
    /// Blocks that this frame names. While it is the latest one, recovery believes them only if their bytes match.
    pub recorded: (BlockBits, u64),
    /// Blocks overwritten in place since the last round.
    pub overwritten: BlockBits,
    /// The round that makes the mark durable, until it ended.
    pub marking: Option<Ticket>,
    /// Written since the last look of the cleaner.
    pub touched: bool,
    /// Pinned while the extent is hot.
    pub page: Arc<ChecksumPage>,
}

/// Blocks whose end is not durable yet. Nothing is written in their range until then: a record that makes one of them present
/// again must not come before the one that ends it.
pub(super) struct Dying {
    pub ticket: Ticket,
    pub blocks: RangeInclusive<u32>,
    /// Those that the journal still calls present.
    pub gone: RoaringBitmap,
}

#[derive(Default)]
pub(super) struct State {
    /// The truth in memory: fresh blocks are included.
    pub presence: Presence,
    /// Parts of blocks, by block. They count while the block is neither present nor zeroed.
    pub patches: BTreeMap<u32, Patch>,
    pub hot: BTreeMap<u32, Hot>,
    /// Hot extents with fresh blocks.
    pub fresh_extents: BTreeSet<u32>,
    pub fresh_blocks: u64,
    /// The layer is in the list of those with fresh blocks.
    pub is_listed: bool,
    /// Hot extents of the round under way.
    pub round_extents: Vec<u32>,
    pub round: Option<Ticket>,
    /// Hot extents with blocks overwritten since the last round.
    pub overwritten_extents: BTreeSet<u32>,
    /// Extents whose mark is durable or queued.
    pub marked: RoaringBitmap,
    /// Marked extents whose checksums are not known since a crash.
    pub unverified: RoaringBitmap,
    /// Those of them that could not be read.
    pub unreadable: RoaringBitmap,
    /// Ranges that are zero or forgotten in memory, but not in the journal until a round ends.
    pub dying: Vec<Dying>,
    /// Blocks whose space can be given back.
    pub garbage: RoaringBitmap,
    /// Files with completed writes that were not synced yet, by segment.
    pub written: BTreeMap<u32, Arc<dyn DiskFile>>,
    /// Blocks of a sealed layer whose damage was met and not repaired.
    pub damaged: RoaringBitmap,
    /// Nothing refers to the layer any more.
    pub freed: bool,
}

impl Layer {
    pub(super) fn new(id: LayerId, parent: Option<LayerId>, source_blocks: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            id,
            parent,
            source_blocks: source_blocks.map_or_else(OnceLock::new, OnceLock::from),
            state: Mutex::default(),
            changed: Condvar::new(),
            sealed: AtomicBool::new(false),
            unverified: AtomicBool::new(false),
            patched: AtomicBool::new(false),
        })
    }

    /// Of how many blocks the source is that it stands for, or did since the store was opened.
    pub fn source_blocks(&self) -> Option<u64> {
        self.source_blocks.get().copied()
    }

    /// Stands for a source of so many blocks again, as it did in the beginning. Answers whether it has all of them.
    pub fn attach(&self, blocks: u64) -> bool {
        self.source_blocks.get_or_init(|| blocks);
        self.with_presence(|presence| presence.present.len() + presence.zeroed.len()) >= blocks
    }

    /// Ends writing: from now on the layer's meaning never changes.
    pub fn seal(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    /// Whether nobody but fills writes to it.
    pub fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    /// Whether it holds or hides anything.
    pub fn is_blank(&self) -> bool {
        let state = self.state.lock();
        let covers = !state.presence.present.is_empty() || !state.presence.zeroed.is_empty() || !state.patches.is_empty();
        !covers && state.hot.values().all(|hot| hot.latched.is_empty())
    }

    /// Present and zeroed blocks of an extent.
    pub fn extent(&self, extent: u32) -> (BlockBits, BlockBits) {
        let state = self.state.lock();
        (state.presence.present_bits(extent), state.presence.zeroed_bits(extent))
    }

    /// Calls `look` with the presence.
    pub fn with_presence<T>(&self, look: impl FnOnce(&Presence) -> T) -> T {
        look(&self.state.lock().presence)
    }

    /// Notes of a block of a sealed layer that it is damaged, or not any more.
    pub fn note_damage(&self, block: u32, damaged: bool) {
        let mut state = self.state.lock();
        match damaged && self.is_sealed() {
            true => state.damaged.insert(block),
            false => state.damaged.remove(block),
        };
    }

    /// Whether damage was met, and not repaired.
    pub fn has_damage(&self) -> bool {
        !self.state.lock().damaged.is_empty()
    }

    /// Blocks of the extent that are still only at the source.
    pub fn missing(&self, extent: u32) -> BlockBits {
        let (present, zeroed) = self.extent(extent);
        self.source_bits(extent).minus(&present).minus(&zeroed)
    }

    /// The first block at or behind `from` that is still only at the source. Costs as much as there are runs before it.
    pub fn next_missing(&self, from: u64) -> Option<u64> {
        let end = self.source_blocks().unwrap_or(0);
        let state = self.state.lock();
        let Presence { present, zeroed } = &state.presence;
        let mut at = from;
        while at < end {
            match end_of_run(zeroed, at).or_else(|| end_of_run(present, at)) {
                Some(next) => at = next,
                None => return Some(at),
            }
        }
        None
    }

    /// Blocks of the extent that the source has.
    pub fn source_bits(&self, extent: u32) -> BlockBits {
        let first = u64::from(extent) * u64::from(EXTENT_BLOCKS);
        let blocks = self.source_blocks().unwrap_or(0).saturating_sub(first).min(u64::from(EXTENT_BLOCKS));
        BlockBits::of(0..blocks as u32)
    }
}

impl State {
    /// The layer was freed: nothing of it will be named, synced or given back any more, but as a whole.
    pub fn give_up(&mut self) {
        self.fresh_extents.clear();
        self.overwritten_extents.clear();
        for hot in self.hot.values_mut() {
            (hot.fresh, hot.over_zeros, hot.overwritten) = (BlockBits::EMPTY, BlockBits::EMPTY, BlockBits::EMPTY);
        }
        self.written.clear();
        self.dying.clear();
        self.garbage.clear();
    }

    /// The entry of an extent, made if it is not hot.
    pub fn hot(&mut self, extent: u32, page: &Arc<ChecksumPage>) -> &mut Hot {
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
    pub fn cool(&mut self, extent: u32) {
        let rest = self.hot.get(&extent).is_some_and(|hot| {
            hot.latched.is_empty() && hot.fresh.is_empty() && hot.round.is_empty() && hot.overwritten.is_empty() && hot.marking.is_none()
        });
        // A marked extent keeps its page pinned: the page is the only place that knows its checksums.
        if rest && !self.marked.contains(extent) {
            self.hot.remove(&extent);
        }
    }

    /// The latest round that still has to end before blocks of `bits` may be written.
    pub fn dying(&self, extent: u32, bits: &BlockBits) -> Option<Ticket> {
        let dies = |dying: &&Dying| within(extent, &dying.blocks).intersects(bits);
        self.dying.iter().rev().find(dies).map(|dying| dying.ticket)
    }

    /// Whether zeroing the range changes anything. `hides`: something below the layer may have these blocks.
    pub fn shows(&self, blocks: &RangeInclusive<u32>, hides: bool) -> bool {
        let held = self.presence.present.range_cardinality(blocks.clone()) > 0;
        held || (hides && self.presence.zeroed.range_cardinality(blocks.clone()) <= u64::from(blocks.end() - blocks.start()))
    }

    /// The blocks that nobody holds.
    pub fn without_latched(&self, blocks: &RoaringBitmap) -> RoaringBitmap {
        let mut free = blocks.clone();
        for (extent, hot) in &self.hot {
            if !hot.latched.is_empty() {
                super::presence::remove_bits(&mut free, *extent, &hot.latched);
            }
        }
        free
    }

    /// Whether somebody holds a block of the range.
    pub fn is_latched(&self, blocks: &RangeInclusive<u32>) -> bool {
        let extents = blocks.start() / EXTENT_BLOCKS..=blocks.end() / EXTENT_BLOCKS;
        self.hot.range(extents).any(|(extent, hot)| hot.latched.intersects(&within(*extent, blocks)))
    }
}

/// The part of a range of blocks that lies in an extent.
fn within(extent: u32, blocks: &RangeInclusive<u32>) -> BlockBits {
    let all = extent_blocks(extent);
    let (first, last) = (blocks.start().max(all.start()), blocks.end().min(all.end()));
    if first > last { BlockBits::EMPTY } else { BlockBits::of(first - all.start()..last - all.start() + 1) }
}
