//! Every limit of the engine in one place, with the relations between them checked by the compiler.
#![deny(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_lossless)]
#![deny(clippy::cast_precision_loss)]

use crate::place::{index, per_extent, wide};

/// Smallest block, in bytes.
pub const BLOCK_BYTES_MIN: u32 = 4 << 10;
/// Largest block, in bytes.
pub const BLOCK_BYTES_MAX: u32 = 64 << 10;
/// Largest volume, in bytes: block numbers are 32 bits wide at the smallest block size.
pub const VOLUME_BYTES_MAX: u64 = 16 << 40;
/// Longest name of a volume or a snapshot, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Most requests in flight in one queue.
pub const QUEUE_DEPTH_MAX: u32 = 4096;
/// Bytes of one layer data file; a longer layer continues in further files (ext4 ends a file at 16 TiB less one block).
pub const SEGMENT_BYTES: u64 = 8 << 40;

/// Limits that no format depends on. Every store has them; the proof system opens stores with smaller ones, so that a short
/// history reaches them (`StoreOptions::limits`, feature `sim`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of blocks in memory of which only a part was written while the rest is at a source; beyond, such a write waits.
    pub patch_bytes_max: u64,
    /// Journal bytes of patches without a record; beyond, a writer starts a barrier round first.
    pub patch_bytes_queued_max: u64,
    /// Blocks that may be present without a record: bounds what recovery has to verify, and what the journal must have room for.
    pub fresh_blocks_max: u64,
    /// Overwritten blocks of sealed layers that a frame names at most; beyond, their files are synced before the frame is written.
    pub expect_blocks_max: usize,
    /// Journal bytes taken in advance for blocks that will become present.
    pub reserve_step_bytes: u64,
    /// Journal bytes that may be taken for records to come; a request that needs more waits for a round. Bounds the frame of a round.
    pub reserved_bytes_max: u64,
    /// The journal takes space from the file system in steps of this many bytes.
    pub journal_grow_bytes: u64,
    /// Allocated journal bytes that only flush, discard and destroy may use, so that they work when no space is left.
    pub journal_reserve_bytes: u64,
    /// The state is cut into frames of about this many bytes.
    pub state_frame_bytes: usize,
    /// Largest payload of a frame: bounds what a reader reserves. At most that of the format.
    pub frame_payload_bytes_max: usize,
    /// Largest record of a set of blocks (presence of a layer, blocks to forget); a larger set is cut into several records. At
    /// least [`SET_RECORD_BYTES_MIN`].
    pub set_record_bytes_max: usize,
    /// Bytes that the file for the next state has beyond what the state needs, for opening and checkpoints on a full disk.
    pub opening_reserve_bytes: u64,
    /// Extents whose space is given back in one step.
    pub punch_extents: usize,
    /// Runs of blocks whose space a store that is being closed gives back; what is left is found when it is opened again.
    pub punches_at_end: usize,
    /// A queue's transfers up to this size through the page cache are made by the thread that submits them.
    pub inline_bytes_max: usize,
    /// What the store does wrong.
    #[cfg(feature = "sim")]
    pub planted: Planted,
}

/// A fault that the proof system plants into a store, to show that it would see one. Most are faults that the engine once had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(feature = "sim"), allow(dead_code, reason = "only the proof system plants"))]
pub enum Planted {
    /// None.
    #[default]
    Nothing,
    /// Rounds leave out one of their syncs.
    ForgottenSync,
    /// Rounds do not name the last run of new blocks.
    ForgottenRun,
    /// A round lets blocks that it will name be overwritten while it waits for others of their extent.
    RewrittenWhileDraining,
    /// A frame counts as proven when a later one is appended, not when that one is durable.
    ProvenByAppending,
    /// Space is given back before the record of a discard is durable.
    EarlyPunch,
    /// A shrink first has the new size, then its zeros.
    ShrinkInTwoSteps,
    /// A snapshot that is open can be destroyed.
    UnpinnedSnapshot,
    /// A request that another thread reaps does not wake who waits for its queue.
    LostWake,
    /// A record of a set of blocks is never cut.
    UncutSet,
    /// A layer may be freed while a round begins, and is still counted then.
    FreedInARound,
    /// The record that frees a layer and the layer's end may be in two rounds.
    FreedInTwoRounds,
    /// A head that follows a sealed one may be flushed in a round before that of its record.
    SealedInTwoRounds,
    /// The table of layers is locked while the state of one of them is waited for, and the list of those whose blocks end while the
    /// table is.
    TableHeld,
    /// A discard takes the size of its volume before the gate.
    SizeBeforeTheGate,
    /// A round that names nothing of an extent forgets what the last frame names.
    EmptyRoundProves,
    /// The record of a discard and its blocks may be in two rounds.
    DiscardInTwoRounds,
    /// A checkpoint switches to its journal without the rounds that ended since it took the shape.
    RoundsLeftBehind,
    /// A checkpoint copies records of shape although the shape that it took has them.
    ShapesTwice,
}

impl Limits {
    /// Those of a store outside of the proof system.
    pub const DEFAULT: Self = Self {
        patch_bytes_max: 16 << 20,
        patch_bytes_queued_max: 256 << 10,
        fresh_blocks_max: 64 << 10,
        expect_blocks_max: 16 << 10,
        reserve_step_bytes: 256 << 10,
        reserved_bytes_max: 32 << 20,
        journal_grow_bytes: 1 << 20,
        journal_reserve_bytes: 1 << 20,
        state_frame_bytes: 4 << 20,
        frame_payload_bytes_max: FRAME_PAYLOAD_BYTES_MAX,
        set_record_bytes_max: 128 << 10,
        opening_reserve_bytes: 4 << 20,
        punch_extents: 256,
        punches_at_end: 4 << 10,
        inline_bytes_max: 256 << 10,
        #[cfg(feature = "sim")]
        planted: Planted::Nothing,
    };
}

impl Limits {
    /// Whether the proof system planted this fault.
    #[cfg(feature = "sim")]
    pub(crate) fn has(&self, fault: Planted) -> bool {
        self.planted == fault
    }

    /// Nothing is planted outside of the proof system.
    #[cfg(not(feature = "sim"))]
    pub(crate) const fn has(&self, _: Planted) -> bool {
        false
    }

    /// Largest record of a set of blocks in a state.
    pub(crate) fn state_record_bytes_max(&self) -> usize {
        if self.has(Planted::UncutSet) { usize::MAX } else { self.set_record_bytes_max }
    }

    /// Bytes that the file for the next state has beyond what it needs: the reserve of the journal that begins with it, and what
    /// records that live on the reserve add to the state.
    pub fn spare_reserve_bytes(&self) -> u64 {
        self.opening_reserve_bytes.max(3 * self.journal_reserve_bytes)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Largest payload of a journal frame that any program writes.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 64 << 20;
/// Largest payload of a frame of the state that is read: older programs wrote the presence of a layer whole, up to two sets of
/// 2^32 blocks.
pub const STATE_PAYLOAD_BYTES_MAX: usize = 1 << 31;
/// A record of a set is not cut below one extent, which takes at most this in two sets of blocks and one of marks.
pub const SET_RECORD_BYTES_MIN: usize = 2 * (per_extent(2) + 32) + 64;

/// Bytes of the largest extent.
const EXTENT_BYTES_MAX: u64 = wide(per_extent(index(BLOCK_BYTES_MAX)));

const _: () = assert!(Limits::DEFAULT.patch_bytes_max >= wide(index(BLOCK_BYTES_MAX)));
const _: () = assert!(Limits::DEFAULT.state_frame_bytes + Limits::DEFAULT.set_record_bytes_max <= FRAME_PAYLOAD_BYTES_MAX);
const _: () = assert!(Limits::DEFAULT.set_record_bytes_max >= SET_RECORD_BYTES_MIN);
const _: () = assert!(VOLUME_BYTES_MAX / wide(index(BLOCK_BYTES_MIN)) == 1 << 32);
const _: () = assert!(SEGMENT_BYTES.is_multiple_of(EXTENT_BYTES_MAX));
