//! Journal space of records to come.
//!
//! # Invariants
//! - Every record takes its space before its change is visible: [`Room::reserve`] for new blocks and patches, [`Room::claim`] for changes
//!   that give back space or only overwrite, [`Room::reserve_shape`] for changes of shape. Claims may use the reserve of the journal.
//! - Space is held by a guard until its record is queued; the round that writes the record counts it off.
//! - The reserve is restored by a checkpoint, which needs no space of the file system. It is due when the reserve is low.

use std::sync::Arc;

use super::cost::{NEW_BLOCK_BYTES, SHAPE_BYTES, SHAPING_BYTES_MAX};
use crate::error::{Error, ErrorKind, Result};
use crate::format::frame_bytes;
use crate::io::DiskFile;
use crate::journal::Journal;
use crate::limits::Limits;
use crate::place::wide;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, Rank};

/// Frames after which a checkpoint is tried again because the reserve is low.
const RETRY_FRAMES: u64 = 64;

/// The journal, and what of its space is taken.
pub struct Room {
    journal: Mutex<Journal>,
    /// Frames appended so far, and states.
    frames: AtomicU64,
    /// Journal bytes that records to come will need, changes of shape aside.
    outstanding: AtomicU64,
    /// Journal bytes of changes of shape whose rounds have not ended.
    shaping: AtomicU64,
    /// Allocated journal bytes that new blocks and patches may take.
    ceiling: AtomicU64,
    /// The same with the reserve: for claims.
    deep_ceiling: AtomicU64,
    /// The reserve is low, or a request for room was refused.
    low: AtomicBool,
    /// Frames when a checkpoint was last tried because of that.
    tried_at: AtomicU64,
    limits: Limits,
}

/// Journal bytes that are taken. Dropping the guard gives them back.
#[must_use]
pub struct Reserved<'a> {
    room: &'a Room,
    bytes: u64,
}

impl Reserved<'_> {
    /// Leaves the bytes to a record, which a round will count off. Answers how many they are.
    pub fn keep(mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.room.release(self.bytes);
    }
}

/// Journal space of a change of shape. Its caller keeps it until the round of the change has ended, so that changes that are made
/// together do not take the same space. Dropping it gives it back.
#[must_use]
pub struct ShapeRoom<'a> {
    room: &'a Room,
    bytes: u64,
}

impl Drop for ShapeRoom<'_> {
    fn drop(&mut self) {
        self.room.shaping.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Room {
    pub fn new(journal: Journal, limits: &Limits) -> Self {
        Self {
            journal: Mutex::ranked(Rank::Journal, journal),
            frames: AtomicU64::new(0),
            outstanding: AtomicU64::new(0),
            shaping: AtomicU64::new(0),
            ceiling: AtomicU64::new(0),
            deep_ceiling: AtomicU64::new(0),
            low: AtomicBool::new(false),
            tried_at: AtomicU64::new(0),
            limits: *limits,
        }
    }

    /// The journal, for a checkpoint and for what it says of itself.
    pub fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock()
    }

    /// Takes journal space for the records of new blocks, so that the flush that follows cannot fail for lack of it. `None`: a round has
    /// to end first, or it would have more than a frame holds.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`]; nothing has changed then.
    pub fn reserve_blocks(&self, blocks: u32) -> Result<Option<Reserved<'_>>> {
        self.reserve(u64::from(blocks) * NEW_BLOCK_BYTES)
    }

    /// Takes journal space for records that a later round will have.
    ///
    /// # Errors
    /// As [`Room::reserve_blocks`].
    pub fn reserve(&self, bytes: u64) -> Result<Option<Reserved<'_>>> {
        let outstanding = self.outstanding.fetch_add(bytes, Ordering::SeqCst) + bytes;
        let taken = Reserved { room: self, bytes };
        if outstanding > self.limits.reserved_bytes_max {
            return Ok(None);
        }
        if outstanding > self.ceiling.load(Ordering::SeqCst) {
            let mut journal = self.journal.lock();
            // A log that is mostly of the past may keep the space from being had: a checkpoint frees it.
            self.raise(&mut journal, outstanding).inspect_err(|_| self.low.store(true, Ordering::Release))?;
        }
        Ok(Some(taken))
    }

    /// Whether what is taken for rounds to come is about as much as a frame holds.
    pub fn is_full(&self) -> bool {
        self.outstanding.load(Ordering::Acquire) > self.limits.reserved_bytes_max / 2
    }

    /// Whether a record has to wait until others are durable, although there may be space for it.
    pub fn is_beyond_frame(&self, bytes: u64) -> bool {
        let frame = self.limits.reserved_bytes_max;
        bytes <= frame && self.outstanding.load(Ordering::Acquire) + bytes > frame
    }

    /// Takes space for all that is outstanding beside changes of shape, and a step more if there is as much.
    fn raise(&self, journal: &mut Journal, outstanding: u64) -> Result<()> {
        let (large, shaping) = (outstanding + self.limits.reserve_step_bytes, self.shaping.load(Ordering::Acquire));
        let ceiling = match journal.reserve(large + shaping) {
            Ok(()) => large,
            Err(_) => journal.reserve(outstanding + shaping).map(|()| outstanding)?,
        };
        self.ceiling.store(ceiling, Ordering::SeqCst);
        Ok(())
    }

    /// Takes journal space for the record of a change that gives back space or only overwrites: it may use the reserve.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`]: a checkpoint has to make room first.
    pub fn claim(&self, bytes: u64) -> Result<Reserved<'_>> {
        let outstanding = self.outstanding.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let taken = Reserved { room: self, bytes };
        let frame = self.limits.reserved_bytes_max;
        if outstanding <= self.deep_ceiling.load(Ordering::Acquire).min(frame) {
            return Ok(taken);
        }
        let room = self.measure(&mut self.journal.lock());
        if outstanding <= room.min(frame) {
            return Ok(taken);
        }
        drop(taken);
        self.low.store(true, Ordering::Release);
        Err(no_room())
    }

    /// Fills the reserve up as far as the file system has space, and measures how much room there is.
    fn measure(&self, journal: &mut Journal) -> u64 {
        let (outstanding, shaping) = (self.outstanding.load(Ordering::Acquire), self.shaping.load(Ordering::Acquire));
        let least = outstanding + self.limits.journal_reserve_bytes / 4;
        if journal.room() < least + shaping {
            let _ = self.raise(journal, outstanding);
        }
        let room = journal.room().saturating_sub(shaping);
        self.deep_ceiling.store(room, Ordering::Release);
        self.low.store(room < least, Ordering::Release);
        room
    }

    /// Whether room in the journal is short and a checkpoint may make some.
    pub fn is_low(&self) -> bool {
        self.low.load(Ordering::Acquire) && self.journal.lock().log_bytes() > self.limits.journal_reserve_bytes / 8
    }

    /// As [`Room::is_low`], for one caller at a time and not after each round.
    pub fn takes_checkpoint(&self) -> bool {
        if !self.low.load(Ordering::Acquire) {
            return false;
        }
        let (frames, tried) = (self.latest_frame(), self.tried_at.load(Ordering::Acquire));
        let due = tried == 0 || frames >= tried + RETRY_FRAMES;
        due && self.is_low() && self.tried_at.compare_exchange(tried, frames, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whether the frame of a round may name so many overwritten blocks, beside all that took its room before.
    pub fn has_room_to_expect(&self, blocks: usize) -> bool {
        let expected = wide(blocks) * NEW_BLOCK_BYTES;
        blocks == 0 || self.measure(&mut self.journal.lock()) >= self.outstanding.load(Ordering::Acquire) + expected
    }

    /// Takes journal space for a change of shape with `addresses` bytes of addresses. It waits for nothing.
    ///
    /// # Errors
    /// As [`Room::reserve_blocks`]; [`ErrorKind::Busy`]: a frame would not hold all that are under way.
    pub fn reserve_shape(&self, addresses: u64) -> Result<ShapeRoom<'_>> {
        let mut journal = self.journal.lock();
        let bytes = SHAPE_BYTES + addresses;
        let shaping = self.shaping.load(Ordering::Acquire) + bytes;
        if shaping > SHAPING_BYTES_MAX {
            return Err(Error::new(ErrorKind::Busy, "thousands of changes of volumes are under way: repeat when some of them have ended"));
        }
        let before = self.ceiling.load(Ordering::Acquire);
        let ahead = before.max(self.outstanding.load(Ordering::Acquire));
        let taken = journal.reserve(ahead + shaping).or_else(|_| {
            // What is allocated ahead of need is not kept from a change. From here on a caller that takes some of it waits for the journal.
            self.ceiling.store(0, Ordering::SeqCst);
            let outstanding = self.outstanding.load(Ordering::SeqCst);
            let taken = journal.reserve(outstanding + shaping);
            self.ceiling.store(if taken.is_ok() { outstanding } else { before }, Ordering::SeqCst);
            taken
        });
        taken.inspect_err(|_| self.low.store(true, Ordering::Release))?;
        self.shaping.fetch_add(bytes, Ordering::AcqRel);
        self.measure(&mut journal);
        Ok(ShapeRoom { room: self, bytes })
    }

    /// Number of the latest frame.
    pub fn latest_frame(&self) -> u64 {
        self.frames.load(Ordering::Acquire)
    }

    /// Counts off the space of new blocks whose record was written, or that will have none.
    pub(in super::super) fn release_blocks(&self, blocks: u64) {
        self.release(blocks * NEW_BLOCK_BYTES);
    }

    /// Counts off the space of records that a frame has now.
    pub(in super::super) fn release(&self, bytes: u64) {
        self.outstanding.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Journal bytes that are taken for records to come.
    #[cfg(any(test, feature = "sim"))]
    pub fn reserved_bytes(&self) -> u64 {
        self.outstanding.load(Ordering::Acquire)
    }

    /// Journal bytes that are taken for changes of shape, and those that new blocks and patches may take.
    #[cfg(test)]
    pub fn shaping_and_ceiling(&self) -> [u64; 2] {
        [&self.shaping, &self.ceiling].map(|bytes| bytes.load(Ordering::Acquire))
    }

    /// Appends a frame; answers the file to sync. `growth`: bytes by which it lengthens the state beyond what its size tells.
    pub fn append(&self, payload: &[u8], growth: u64) -> Result<Arc<dyn DiskFile>> {
        let mut journal = self.journal.lock();
        journal.append(payload)?;
        journal.note_growth(growth);
        self.frames.fetch_add(1, Ordering::AcqRel);
        let ceiling = self.ceiling.load(Ordering::Acquire);
        self.ceiling.store(ceiling.saturating_sub(frame_bytes(payload.len())), Ordering::Release);
        self.measure(&mut journal);
        Ok(journal.file())
    }

    /// A new journal was begun: its state counts as a frame, and the space in the new file is measured.
    pub fn note_state(&self) {
        self.frames.fetch_add(1, Ordering::AcqRel);
        self.ceiling.store(0, Ordering::Release);
        self.measure(&mut self.journal.lock());
    }
}

/// The error of a record for which there is no space.
pub fn no_room() -> Error {
    Error::new(ErrorKind::NoSpace, "the journal has no room left: free space and repeat")
}
