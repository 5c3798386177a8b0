//! Group commit: many callers' records and syncs in one barrier round.
//!
//! The first waiter of an idle queue becomes the leader and runs the round. Callers that arrive meanwhile gather for the next one.
//!
//! # Invariants
//! - A frame is *proven* once a later frame is durable: `Commit::is_proven`. "Appended" is not "durable".
//! - What a discard takes out of a layer and the record that says so are in the same round, and so are the end of a layer, or the seal
//!   of a head, and theirs: they hold `Commit::beginning` for reading, and a leader holds it for writing from the gathering of the
//!   records until every layer has begun.
//! - A round that could not append its frame (no space, no descriptors) is undone: its records and blocks are in the next one, and
//!   only the callers that waited for it see the error. After its frame may have reached the disk, an error poisons the store.
//! - A leader that panics poisons the store and gives up leading, so that nobody waits for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::space::claimed_bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{ALL_LABELS_BYTES_MAX, BlocksRecord, Record, Writer, frame_bytes};
use crate::ids::LayerId;
use crate::io::DiskFile;
use crate::journal::Journal;
use crate::limits::{EXTENT_BLOCKS, Limits, NAME_BYTES_MAX, Planted};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, OnceLock, RwLock, RwLockReadGuard};

/// A place in a barrier round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub(super) u64);

/// Most journal bytes of a change of shape.
const SHAPE_BYTES: u64 = 4096;
/// Frames after which a checkpoint is tried again because the reserve is low.
const RETRY_FRAMES: u64 = 64;
/// Most bytes of records in memory that wait for a round.
const QUEUED_BYTES_MAX: u64 = 1 << 20;
/// Most that the record of one new block costs: a run header of 13 bytes and its checksum.
const NEW_BLOCK_BYTES: u64 = 17;

/// Most journal bytes of changes of shape that are under way: about 4,096 of them.
const SHAPING_BYTES_MAX: u64 = 4096 * SHAPE_BYTES;

// No round is larger than a frame: it has what took space in advance, blocks that are expected, and changes of shape. (A store whose
// frame is refused takes no writes any more.)
const _: () = {
    let limits = Limits::DEFAULT;
    let expected = limits.expect_blocks_max as u64 * NEW_BLOCK_BYTES;
    let shapes = QUEUED_BYTES_MAX + SHAPING_BYTES_MAX;
    assert!(limits.reserved_bytes_max + expected + shapes <= limits.frame_payload_bytes_max as u64);
    // A fork of a snapshot has labels, its own name, and the two of its parent; numbers and lengths take the rest.
    assert!((ALL_LABELS_BYTES_MAX + 3 * NAME_BYTES_MAX) as u64 <= SHAPE_BYTES - 256);
    // Blocks of one extent, and the largest record.
    assert!(EXTENT_BLOCKS as u64 * NEW_BLOCK_BYTES + limits.set_record_bytes_max as u64 <= limits.reserved_bytes_max / 2);
    assert!(limits.fresh_blocks_max * NEW_BLOCK_BYTES + limits.patch_bytes_queued_max <= limits.reserved_bytes_max / 2);
};

/// What the next round will do.
#[derive(Default)]
pub struct Gathered {
    /// In the order in which they were made.
    pub records: Vec<Record>,
    /// Journal bytes that shrinks among them claimed for the zeros that they mean: their records do not tell.
    pub cut_bytes: u64,
    /// Layers whose completed writes become durable.
    pub layers: BTreeSet<LayerId>,
}

impl Gathered {
    /// Those of the records that change blocks.
    pub fn block_records(&self) -> impl Iterator<Item = &BlocksRecord> {
        self.records.iter().filter_map(Record::blocks)
    }
}

/// What the leader of a round does.
pub trait Rounds {
    /// What a round took from its layers.
    type Begun;
    /// Takes what completed writes and discards left to be made durable.
    fn begin(&self, ticket: Ticket, gathered: Gathered) -> Self::Begun;
    /// Makes it durable.
    ///
    /// # Errors
    /// Either everything is as before `begin`, or the store refuses writes from now on.
    fn carry_out(&self, begun: Self::Begun) -> std::result::Result<(), RoundError>;
}

/// How a round failed.
pub enum RoundError {
    /// Nothing was appended. These records belong to the next round.
    Undone(Gathered, Error),
    /// Some of it may have reached the disk.
    Lost(Error),
}

#[derive(Default)]
struct Queue {
    next: Gathered,
    /// Bytes of its records that claimed their space, about, and of changes of shape.
    bytes: u64,
    /// Number of the round under way or last ended.
    started: u64,
    leading: bool,
    /// It begins with records of a round that was undone.
    undone: bool,
}

impl Queue {
    fn add(&mut self, records: impl IntoIterator<Item = impl Into<Record>>) {
        let (next, bytes) = (&mut self.next.records, &mut self.bytes);
        next.extend(records.into_iter().map(Into::into).inspect(|record| *bytes += queued_bytes(record)));
    }

    fn add_cut(&mut self, bytes: u64) {
        self.next.cut_bytes += bytes;
        self.bytes += bytes;
    }
}

/// Bytes that a queued record takes of a frame, beside those that took their space before.
fn queued_bytes(record: &Record) -> u64 {
    match record {
        Record::Shape(_) => {
            let mut writer = Writer::default();
            record.encode(&mut writer);
            writer.bytes.len() as u64
        }
        Record::Blocks(record) => claimed_bytes(record),
        Record::Closed => 0,
    }
}

/// The commit queue and the journal behind it.
pub struct Commit {
    queue: Mutex<Queue>,
    ended: Condvar,
    done: AtomicU64,
    /// Frames appended so far, and states.
    frames: AtomicU64,
    /// Those of them that are durable.
    durable: AtomicU64,
    /// Held for reading by discards and by what frees or seals a layer, for writing by a leader while its round begins.
    beginning: RwLock<()>,
    journal: Mutex<Journal>,
    /// Journal bytes that new blocks and patches without a record will need.
    outstanding: AtomicU64,
    /// Journal bytes that changes of shape took until their rounds have ended.
    shaping: AtomicU64,
    /// Journal bytes that are allocated for new blocks and patches.
    ceiling: AtomicU64,
    /// The same with the reserve: for records of changes that must not fail for lack of space.
    deep_ceiling: AtomicU64,
    /// The reserve is low, or somebody was refused room.
    low: AtomicBool,
    /// Frames when a checkpoint was last tried because of that.
    tried_at: AtomicU64,
    poison: OnceLock<Error>,
    limits: Limits,
}

impl Commit {
    pub fn new(journal: Journal, limits: &Limits) -> Self {
        Self {
            queue: Mutex::default(),
            ended: Condvar::new(),
            done: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            beginning: RwLock::new(()),
            journal: Mutex::new(journal),
            outstanding: AtomicU64::new(0),
            shaping: AtomicU64::new(0),
            ceiling: AtomicU64::new(0),
            deep_ceiling: AtomicU64::new(0),
            low: AtomicBool::new(false),
            tried_at: AtomicU64::new(0),
            poison: OnceLock::new(),
            limits: *limits,
        }
    }

    /// Refuses if an earlier write-back or sync failed.
    pub fn healthy(&self) -> Result<()> {
        match self.poison.get() {
            None => Ok(()),
            Some(cause) => Err(Error::new(
                ErrorKind::Poisoned,
                format!(
                    "the store refuses writes since a write to the disk failed ({cause}): check the disk, then close and open the store"
                ),
            )),
        }
    }

    /// Refuses every later write.
    pub fn poison(&self, cause: Error) {
        let _ = self.poison.set(cause);
        self.ended.notify_all();
    }

    /// Puts a record into the next round.
    pub fn enqueue(&self, records: impl IntoIterator<Item = impl Into<Record>>) -> Ticket {
        let mut queue = self.queue.lock();
        queue.add(records);
        Ticket(queue.started + 1)
    }

    /// Puts a record into the next round that means zeros of which it does not tell; so many bytes were claimed for them.
    pub fn enqueue_cut(&self, record: impl Into<Record>, cut_bytes: u64) -> Ticket {
        let mut queue = self.queue.lock();
        queue.add([record]);
        queue.add_cut(cut_bytes);
        Ticket(queue.started + 1)
    }

    /// Puts records into the next round and lets it make the completed writes of a layer durable.
    pub fn enqueue_with_sync(&self, layer: Option<LayerId>, records: impl IntoIterator<Item = impl Into<Record>>) -> Ticket {
        let mut queue = self.queue.lock();
        queue.add(records);
        queue.next.layers.extend(layer);
        Ticket(queue.started + 1)
    }

    /// Whether no round is under way, and nothing waits for one.
    pub fn is_idle(&self) -> bool {
        let queue = self.queue.lock();
        !queue.leading && queue.next.records.is_empty() && queue.next.layers.is_empty()
    }

    /// Lets the next round make the completed writes of `layers` durable.
    pub fn enqueue_sync(&self, layers: impl IntoIterator<Item = LayerId>) -> Ticket {
        let mut queue = self.queue.lock();
        queue.next.layers.extend(layers);
        Ticket(queue.started + 1)
    }

    /// Whether the round has ended.
    pub fn is_done(&self, ticket: Ticket) -> bool {
        self.done.load(Ordering::Acquire) >= ticket.0
    }

    /// Keeps a round from beginning while its caller changes layers and queues the record: all of it is in one round. Taken before a
    /// layer's state.
    pub fn hold_beginning(&self) -> RwLockReadGuard<'_, ()> {
        self.beginning.read()
    }

    /// Waits until the round has ended; runs it if nobody does.
    ///
    /// # Errors
    /// The caller led a round that was undone; or the store refuses writes.
    pub fn wait(&self, ticket: Ticket, rounds: &impl Rounds) -> Result<()> {
        let mut queue = self.queue.lock();
        loop {
            if self.is_done(ticket) {
                return Ok(());
            }
            self.healthy()?;
            if queue.leading {
                self.ended.wait(&mut queue);
                continue;
            }
            queue.leading = true;
            drop(queue);
            let leader = Leader(self);
            let (led, result) = self.run(rounds);
            leader.end(led, result)?;
            queue = self.queue.lock();
        }
    }

    /// Runs a round, and then `then`, which starts a new journal, before any other round may start. After an error of `then` other
    /// than a lack of space or descriptors, which leaves everything as it was, every later write is refused.
    ///
    /// # Errors
    /// Those of the round and of `then`.
    pub fn exclusive(&self, rounds: &impl Rounds, then: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut queue = self.queue.lock();
        while queue.leading {
            self.ended.wait(&mut queue);
        }
        self.healthy()?;
        queue.leading = true;
        drop(queue);
        let leader = Leader(self);
        let (led, result) = self.run(rounds);
        if result.is_err() {
            return leader.end(led, result);
        }
        let outcome = then();
        match &outcome {
            Ok(()) => {
                // The state is a frame, and space in the new file is counted anew.
                self.frames.fetch_add(1, Ordering::AcqRel);
                self.ceiling.store(0, Ordering::Release);
                self.measure(&mut self.journal.lock());
            }
            // Nothing has changed: the last frame is still the last one, and its blocks are still proven by nothing else.
            Err(error) if error.is_shortage() => {}
            // Before anybody appends to a journal that may not count any more.
            Err(error) => self.poison(error.clone()),
        }
        leader.end(led, result)?;
        outcome
    }

    fn run(&self, rounds: &impl Rounds) -> (Ticket, std::result::Result<(), RoundError>) {
        let (ticket, begun) = {
            let _beginning = (!self.limits.has(Planted::DiscardInTwoRounds)).then(|| self.beginning.write());
            let (ticket, gathered) = {
                let mut queue = self.queue.lock();
                queue.started += 1;
                queue.bytes = 0;
                queue.undone = false;
                (Ticket(queue.started), std::mem::take(&mut queue.next))
            };
            (ticket, rounds.begin(ticket, gathered))
        };
        (ticket, rounds.carry_out(begun))
    }

    /// The journal, for appending and for its file.
    pub fn journal(&self) -> crate::sync::MutexGuard<'_, Journal> {
        self.journal.lock()
    }

    /// Takes journal space for records of `blocks` new blocks, so that the flush that follows cannot fail for lack of it. `false`: a
    /// round has to end first, or it would have more than a frame holds.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`]; nothing has changed then.
    pub fn reserve_blocks(&self, blocks: u32) -> Result<bool> {
        self.reserve(u64::from(blocks) * NEW_BLOCK_BYTES)
    }

    /// Takes journal space for records of so many bytes that a later round will have.
    ///
    /// # Errors
    /// As [`Commit::reserve_blocks`].
    pub fn reserve(&self, bytes: u64) -> Result<bool> {
        let outstanding = self.outstanding.fetch_add(bytes, Ordering::SeqCst) + bytes;
        if outstanding > self.limits.reserved_bytes_max {
            self.release(bytes);
            return Ok(false);
        }
        if outstanding <= self.ceiling.load(Ordering::SeqCst) {
            return Ok(true);
        }
        let mut journal = self.journal.lock();
        let taken = self.raise(&mut journal, outstanding);
        if taken.is_err() {
            self.release(bytes);
            // A log that is mostly of the past may keep it from being had.
            self.low.store(true, Ordering::Release);
        }
        taken.map(|()| true)
    }

    /// Whether what is taken for rounds to come is about as much as a frame holds.
    pub fn is_full(&self) -> bool {
        self.outstanding.load(Ordering::Acquire) > self.limits.reserved_bytes_max / 2
    }

    /// Whether a record of so many bytes has to wait until others are durable, although there may be space for it.
    pub fn is_beyond_frame(&self, bytes: u64) -> bool {
        let frame = self.limits.reserved_bytes_max;
        bytes <= frame && self.outstanding.load(Ordering::Acquire) + bytes > frame
    }

    /// Takes space for all that is outstanding, beside changes of shape, and a step more if there is so much.
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
    pub fn claim(&self, bytes: u64) -> Result<()> {
        let outstanding = self.outstanding.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let frame = self.limits.reserved_bytes_max;
        if outstanding <= self.deep_ceiling.load(Ordering::Acquire).min(frame) {
            return Ok(());
        }
        let room = self.measure(&mut self.journal.lock());
        if outstanding <= room.min(frame) {
            return Ok(());
        }
        self.release(bytes);
        self.low.store(true, Ordering::Release);
        Err(Error::new(ErrorKind::NoSpace, "the journal has no room left: free space and repeat"))
    }

    /// Looks how much room there is, after the reserve was filled up as far as the file system has space.
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

    /// As [`Commit::is_low`], for one caller at a time and not after each round.
    pub fn takes_checkpoint(&self) -> bool {
        if !self.low.load(Ordering::Acquire) {
            return false;
        }
        let (frames, tried) = (self.latest_frame(), self.tried_at.load(Ordering::Acquire));
        let due = tried == 0 || frames >= tried + RETRY_FRAMES;
        due && self.is_low() && self.tried_at.compare_exchange(tried, frames, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whether records wait whose round was undone.
    pub fn is_behind(&self) -> bool {
        self.queue.lock().undone
    }

    /// Whether the frame of a round may name so many overwritten blocks, beside all that took its room before.
    pub fn has_room_to_expect(&self, blocks: usize) -> bool {
        let bytes = blocks as u64 * NEW_BLOCK_BYTES;
        blocks == 0 || self.measure(&mut self.journal.lock()) >= self.outstanding.load(Ordering::Acquire) + bytes
    }

    /// Takes journal space for a change of shape with so many bytes of addresses, for as long as the answer lives. It waits for nothing.
    ///
    /// # Errors
    /// As [`Commit::reserve_blocks`]; [`ErrorKind::Busy`]: a frame would not hold all that are under way.
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
            // What is allocated ahead of need is not kept from a change. From here on whoever takes some of it waits for the journal.
            self.ceiling.store(0, Ordering::SeqCst);
            let outstanding = self.outstanding.load(Ordering::SeqCst);
            let taken = journal.reserve(outstanding + shaping);
            self.ceiling.store(if taken.is_ok() { outstanding } else { before }, Ordering::SeqCst);
            taken
        });
        taken.inspect_err(|_| self.low.store(true, Ordering::Release))?;
        self.shaping.fetch_add(bytes, Ordering::AcqRel);
        self.measure(&mut journal);
        Ok(ShapeRoom { commit: self, bytes })
    }

    /// Whether so much is queued that the next round should take it before there is more.
    pub fn is_crowded(&self) -> bool {
        self.queue.lock().bytes > QUEUED_BYTES_MAX.min(self.limits.frame_payload_bytes_max as u64 / 4)
    }

    /// Number of the latest frame.
    pub fn latest_frame(&self) -> u64 {
        self.frames.load(Ordering::Acquire)
    }

    /// Whether a later frame is durable: recovery believes all that this one names, whatever the bytes are by then.
    pub fn is_proven(&self, frame: u64) -> bool {
        frame < self.durable.load(Ordering::Acquire)
    }

    /// Gives back what was taken for blocks that are not new after all, or whose record was written.
    pub fn release_blocks(&self, blocks: u32) {
        self.release(u64::from(blocks) * NEW_BLOCK_BYTES);
    }

    /// Gives back what [`Commit::reserve`] took.
    pub fn release(&self, bytes: u64) {
        self.outstanding.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Journal bytes that are taken for records to come.
    #[cfg(any(test, feature = "sim"))]
    pub fn reserved_bytes(&self) -> u64 {
        self.outstanding.load(Ordering::Acquire)
    }

    /// Appends a frame, which lengthens the state by more than its size tells; answers the file to sync.
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
}

/// Journal space of a change of shape: its caller keeps it until the round of the change has ended, so that changes that are made
/// together do not take the same.
#[must_use]
pub struct ShapeRoom<'a> {
    commit: &'a Commit,
    bytes: u64,
}

impl Drop for ShapeRoom<'_> {
    fn drop(&mut self) {
        self.commit.shaping.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// The leader of a round. If it unwinds, the round may be half done: the store refuses writes, and nobody waits for its end.
struct Leader<'a>(&'a Commit);

impl Leader<'_> {
    fn end(self, ticket: Ticket, result: std::result::Result<(), RoundError>) -> Result<()> {
        let commit = self.0;
        std::mem::forget(self);
        let mut queue = commit.queue.lock();
        queue.leading = false;
        let outcome = match result {
            Ok(()) => {
                commit.durable.store(commit.latest_frame(), Ordering::Release);
                commit.done.store(ticket.0, Ordering::Release);
                Ok(())
            }
            Err(RoundError::Undone(gathered, error)) => {
                let later = std::mem::take(&mut queue.next);
                queue.next.layers = gathered.layers;
                queue.bytes = 0;
                queue.undone = !gathered.records.is_empty();
                queue.add(gathered.records);
                queue.add(later.records);
                queue.add_cut(gathered.cut_bytes + later.cut_bytes);
                queue.next.layers.extend(later.layers);
                Err(error)
            }
            Err(RoundError::Lost(error)) => {
                let _ = commit.poison.set(error.clone());
                Err(error)
            }
        };
        commit.ended.notify_all();
        outcome
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        self.0.poison(Error::new(ErrorKind::Io, "a barrier round did not come to its end"));
        self.0.queue.lock().leading = false;
        self.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests;
