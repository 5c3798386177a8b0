//! Journal space of changes that must not fail for lack of it: marks, their ends, discards and what is forgotten.
//!
//! # Invariants
//! - Their records take space before the change is visible, as those of new blocks do, but may take it from the reserve.
//! - The reserve is restored by a checkpoint, which needs no space of the file system. It is due when the reserve is low: in the
//!   background, and by whoever has just waited for a round or finds no room.
//! - A shrink is one record that means zeros: their space is claimed before its caller takes the gate and the catalogue, behind which
//!   no round can be waited for.
//! - What is queued for one round is bounded: whoever adds to it waits for a round first when there is too much.

use std::ops::RangeInclusive;

use super::set::Layers;
use crate::error::{Error, ErrorKind, Result};
use crate::format::BlocksRecord;
use crate::journal::STATE_GROWTH;
use crate::sync::OnceLock;
use crate::sync::atomic::{AtomicBool, Ordering};

/// Bytes that a range of blocks takes in a bitmap for each container that it fills or begins.
const CONTAINER_BYTES: u64 = 16;
/// Room for a byte of a record is room for so many of the state.
const _: () = assert!(CONTAINER_BYTES.is_multiple_of(STATE_GROWTH));
/// Bytes of a record with a layer and an extent, and of one with a layer and a range.
const EXTENT_RECORD_BYTES: u64 = 9;
const RANGE_RECORD_BYTES: u64 = 13;

/// Makes a checkpoint of the whole store.
type OnNeed = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// How a checkpoint is made when one is needed at once.
#[derive(Default)]
pub(super) struct Need {
    checkpoint: OnceLock<OnNeed>,
    /// The store is being closed: the one who closes it makes the last checkpoint.
    closing: AtomicBool,
}

/// Journal bytes that a record took in advance, if it is one of those that may use the reserve.
pub(super) fn claimed_bytes(record: &BlocksRecord) -> u64 {
    match record {
        BlocksRecord::Mark(..) | BlocksRecord::Clear(..) => EXTENT_RECORD_BYTES,
        BlocksRecord::Zero { first, last, .. } | BlocksRecord::Drop { first, last, .. } => range_bytes(*first, *last),
        BlocksRecord::Forget(forget) => forget.encoded_bytes() as u64,
        BlocksRecord::Present(_) | BlocksRecord::Expect(_) | BlocksRecord::Patch(_) | BlocksRecord::Presence(_) => 0,
    }
}

/// A range of blocks may lengthen the state by a container for each 65,536 blocks: so it takes as much as a record that does.
fn range_bytes(first: u32, last: u32) -> u64 {
    RANGE_RECORD_BYTES + containers_bytes(first, last) / STATE_GROWTH
}

fn containers_bytes(first: u32, last: u32) -> u64 {
    CONTAINER_BYTES * u64::from((last >> 16) - (first >> 16))
}

/// Bytes by which a record may lengthen the state beyond what its size tells.
pub(super) fn state_growth(record: &BlocksRecord) -> u64 {
    match record {
        BlocksRecord::Zero { first, last, .. } => containers_bytes(*first, *last),
        BlocksRecord::Present(_)
        | BlocksRecord::Drop { .. }
        | BlocksRecord::Mark(..)
        | BlocksRecord::Clear(..)
        | BlocksRecord::Expect(_)
        | BlocksRecord::Patch(_)
        | BlocksRecord::Presence(_)
        | BlocksRecord::Forget(_) => 0,
    }
}

/// Journal space for the zeros of a shrink. Dropping it gives it back.
#[must_use]
pub struct CutRoom<'a> {
    layers: &'a Layers,
    bytes: u64,
}

impl CutRoom<'_> {
    /// The round that has the record gives back so many bytes.
    pub(super) fn keep(mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for CutRoom<'_> {
    fn drop(&mut self) {
        self.layers.commit.release(self.bytes);
    }
}

impl Layers {
    /// Says how a checkpoint is made when it cannot wait for the background.
    pub fn on_need(&self, checkpoint: impl Fn() -> Result<()> + Send + Sync + 'static) {
        let _ = self.need.checkpoint.set(Box::new(checkpoint));
    }

    /// From now on only the caller makes checkpoints.
    pub(super) fn end_need(&self) {
        self.need.closing.store(true, Ordering::Release);
    }

    /// Makes a checkpoint if the reserve is low. The caller holds no lock.
    pub(super) fn restore_reserve(&self) {
        if self.commit.takes_checkpoint() {
            // Without it the store goes on with what is left of the reserve; the background tries again.
            let _ = self.checkpoint_now();
        }
    }

    fn checkpoint_now(&self) -> Result<()> {
        match self.need.checkpoint.get() {
            Some(checkpoint) if !self.need.closing.load(Ordering::Acquire) => checkpoint(),
            _ => Err(Error::new(ErrorKind::NoSpace, "the journal has no room left: free space and repeat")),
        }
    }

    /// Makes room in the journal for a record of so many bytes, which is to be claimed then. The caller holds no lock.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`]: there is none. Nothing has changed then.
    pub(super) fn make_room(&self, bytes: u64) -> Result<()> {
        loop {
            if self.commit.is_full() {
                self.sync_fresh()?
            } else {
                self.sync([])?
            }
            if !self.commit.is_beyond_frame(bytes) {
                break;
            }
            // It is not space that is short: what others are writing takes the rest of a frame.
            self.help();
            crate::sync::thread::sleep(super::set::HELP_INTERVAL);
        }
        let taken = self.commit.claim(bytes).or_else(|_| {
            self.checkpoint_now()?;
            self.commit.claim(bytes)
        });
        taken.map(|()| self.commit.release(bytes))
    }

    /// Takes room for the zeros of a shrink, from the reserve if need be. The caller holds neither gate nor catalogue.
    ///
    /// # Errors
    /// As [`Layers::make_room`].
    pub fn claim_cut(&self, blocks: &RangeInclusive<u32>) -> Result<CutRoom<'_>> {
        self.healthy()?;
        self.drain_queue()?;
        let bytes = range_bytes(*blocks.start(), *blocks.end());
        while self.commit.claim(bytes).is_err() {
            self.make_room(bytes)?;
        }
        Ok(CutRoom { layers: self, bytes })
    }

    /// Makes room for a record of blocks to forget. The caller holds no lock.
    ///
    /// # Errors
    /// As [`Layers::make_room`].
    pub fn prepare_forget(&self) -> Result<()> {
        self.drain_queue()?;
        let bytes = self.limits.set_record_bytes_max as u64;
        match self.commit.claim(bytes) {
            Ok(()) => {
                self.commit.release(bytes);
                Ok(())
            }
            Err(_) => self.make_room(bytes),
        }
    }

    /// Lets a round take what is queued, if that is much. The caller holds no lock.
    ///
    /// # Errors
    /// As [`Layers::wait`].
    pub(super) fn drain_queue(&self) -> Result<()> {
        if self.commit.is_crowded() { self.sync([]) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use roaring::RoaringBitmap;

    use super::*;
    use crate::format::{ForgetRecord, Record, Writer};
    use crate::ids::LayerId;

    #[test]
    fn a_record_takes_at_least_its_own_size() {
        let layer = LayerId(7);
        let blocks: RoaringBitmap = (0..3000).map(|block| block * 3).collect();
        let records = [
            BlocksRecord::Mark(layer, 1),
            BlocksRecord::Clear(layer, 1),
            BlocksRecord::Zero { layer, first: 0, last: u32::MAX },
            BlocksRecord::Drop { layer, first: 5, last: 5 },
            BlocksRecord::Forget(ForgetRecord { layer, blocks }),
        ];
        for record in records {
            let mut writer = Writer::default();
            Record::Blocks(record.clone()).encode(&mut writer);
            assert!(claimed_bytes(&record) >= writer.bytes.len() as u64, "{record:?}");
        }
        let zeros = BlocksRecord::Zero { layer, first: 0, last: u32::MAX };
        assert!(state_growth(&zeros) >= 65_535 * CONTAINER_BYTES);
        assert!(STATE_GROWTH * claimed_bytes(&zeros) >= STATE_GROWTH * RANGE_RECORD_BYTES + state_growth(&zeros));
    }
}
