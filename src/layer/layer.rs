//! A layer in memory.

use std::sync::Arc;

use roaring::RoaringBitmap;

use super::presence::Presence;
use super::state::State;
use crate::ids::LayerId;
use crate::place::{Block, BlockBits, BlockSpan, Extent, end_of_run};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, OnceLock, Rank};

/// A set of blocks over a parent.
///
/// The fields that every read needs come first, in one cache line: in a long chain most layers are not in the processor's caches.
#[repr(C)]
pub struct Layer {
    /// Never used again, so it also names the files.
    pub id: LayerId,
    /// `None` for the root of a chain.
    pub parent: Option<LayerId>,
    /// Blocks of the source that the layer stands for, or stood for since the store was opened. The presence of such a layer grows
    /// under its readers, so every read looks at it.
    source_blocks: OnceLock<u64>,
    /// Only fills are admitted: its meaning does not change any more.
    sealed: AtomicBool,
    /// The round whose frame makes the layer, for a process that finds the journal after the death of this one.
    pub(super) founding: AtomicU64,
    /// Some extent is unverified.
    pub(super) unverified: AtomicBool,
    /// It may have patches. Reads look at this first.
    pub(super) patched: AtomicBool,
    /// Notified when blocks are unlatched and when a round ends.
    pub(super) changed: Condvar,
    pub(super) state: Mutex<State>,
}

impl Layer {
    pub(super) fn new(id: LayerId, parent: Option<LayerId>, source_blocks: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            id,
            parent,
            source_blocks: source_blocks.map_or_else(OnceLock::new, OnceLock::from),
            state: Mutex::ranked(Rank::LayerState, State::default()),
            changed: Condvar::new(),
            sealed: AtomicBool::new(false),
            founding: AtomicU64::new(0),
            unverified: AtomicBool::new(false),
            patched: AtomicBool::new(false),
        })
    }

    /// Blocks of the source that the layer stands for, or stood for since the store was opened.
    pub fn source_blocks(&self) -> Option<u64> {
        self.source_blocks.get().copied()
    }

    /// Lets the layer stand for a source of `blocks` blocks, as when it was made. Answers whether it has all of them.
    pub fn attach(&self, blocks: u64) -> bool {
        self.source_blocks.get_or_init(|| blocks);
        self.with_presence(|presence| presence.present.len() + presence.zeroed.len()) >= blocks
    }

    /// Ends writing: from now on the layer's meaning never changes.
    pub fn seal(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    /// Whether only fills write to it.
    pub fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    /// Whether it holds nothing and hides nothing, and no writer has blocks of it.
    pub fn is_blank(&self) -> bool {
        let state = self.state.lock();
        let covers = !state.presence.present.is_empty() || !state.presence.zeroed.is_empty() || !state.patches.is_empty();
        !covers && state.hot.values().all(|hot| hot.latched.is_empty())
    }

    /// Present and zeroed blocks of an extent.
    pub fn extent(&self, extent: Extent) -> (BlockBits, BlockBits) {
        let state = self.state.lock();
        (state.presence.present_bits(extent), state.presence.zeroed_bits(extent))
    }

    /// Whether a block is present.
    pub fn holds(&self, block: Block) -> bool {
        self.state.lock().presence.present.contains(block.number())
    }

    /// Calls `look` with the presence, under the layer's lock.
    pub fn with_presence<T>(&self, look: impl FnOnce(&Presence) -> T) -> T {
        look(&self.state.lock().presence)
    }

    /// Notes that a block of a sealed layer is damaged, or not any more.
    pub fn note_damage(&self, block: Block, damaged: bool) {
        let mut state = self.state.lock();
        match damaged && self.is_sealed() {
            true => state.damaged.insert(block.number()),
            false => state.damaged.remove(block.number()),
        };
    }

    /// Whether damage was met and is not repaired.
    pub fn has_damage(&self) -> bool {
        !self.state.lock().damaged.is_empty()
    }

    /// Blocks of the extent that only the source has.
    pub fn missing(&self, extent: Extent) -> BlockBits {
        let (present, zeroed) = self.extent(extent);
        self.source_bits(extent).minus(&present).minus(&zeroed)
    }

    /// Number of the first block from `from` on that only the source has. Costs as much as there are runs before it.
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
    pub fn source_bits(&self, extent: Extent) -> BlockBits {
        BlockBits::of(BlockSpan::new(0, self.source_blocks().unwrap_or(0)).within(extent))
    }

    /// Blocks that the layer hides from the layers below, after any crash.
    pub fn durable_cover(&self) -> RoaringBitmap {
        self.state.lock().durable_cover()
    }

    /// Whether a flush of this layer has anything to make durable.
    pub fn needs_sync(&self) -> bool {
        let state = self.state.lock();
        !state.written.is_empty() || !state.retiring.is_empty() || state.round.is_some() || !state.fresh_extents.is_empty()
    }
}
