//! Group commit: the records and syncs of many callers in one barrier round.
//!
//! The first waiter of an idle queue becomes the leader and runs the round. Callers that arrive meanwhile gather for the next one.
//!
//! # Invariants
//! - A frame is *proven* once a later frame is durable: [`Commit::is_proven`]. An appended frame is not durable before its own sync ended.
//! - The blocks that a discard takes out of a layer and its record are in the same round; so are the end of a layer, or the seal of a head,
//!   and its record. Such a change holds `Commit::beginning` for reading. A leader holds it for writing from gathering the records until
//!   every layer has begun.
//! - A round that could not append its frame (no space, no descriptors) is undone: its records and blocks are in the next one, and
//!   only its leader sees the error. After its frame may have reached the disk, an error poisons the store.
//! - A checkpoint leads twice, for moments: when it takes the shape, and when it switches to its journal.
//! - A leader that panics poisons the store and gives up leading, so that its waiters return.

use std::collections::BTreeSet;

use super::cost::{QUEUED_BYTES_MAX, queued_bytes};
use super::room::{Reserved, Room};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{BlocksRecord, Record};
use crate::ids::LayerId;
use crate::journal::Journal;
use crate::limits::{Limits, Planted};
use crate::place::wide;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, OnceLock, Rank, RwLock, RwLockReadGuard};

/// A place in a barrier round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub(in super::super) u64);

/// What the next round will do.
#[derive(Default)]
pub struct Gathered {
    /// In the order in which they were made.
    pub records: Vec<Record>,
    /// Journal bytes that shrinks among the records claimed for the zeros that they mean. Their records do not tell how many.
    pub cut_bytes: u64,
    /// Layers whose completed writes become durable.
    pub layers: BTreeSet<LayerId>,
}

impl Gathered {
    /// The records that change blocks.
    pub fn block_records(&self) -> impl Iterator<Item = &BlocksRecord> {
        self.records.iter().filter_map(Record::blocks)
    }
}

/// What the leader of a round does.
pub trait Rounds {
    /// What a round took from its layers.
    type Begun;
    /// The next call is [`Rounds::begin`]; what is queued from now on may belong to a later round.
    fn prepare(&self) {}
    /// Takes from the layers what completed writes and discards left to be made durable.
    fn begin(&self, ticket: Ticket, gathered: Gathered) -> Self::Begun;
    /// Makes it durable.
    ///
    /// # Errors
    /// Either everything is as before `begin`, or the store refuses writes from now on.
    fn carry_out(&self, begun: Self::Begun) -> std::result::Result<(), RoundError>;
}

/// How a round failed.
pub enum RoundError {
    /// Nothing was appended. The records belong to the next round.
    Undone(Gathered, Error),
    /// Parts of the round may have reached the disk.
    Lost(Error),
}

#[derive(Default)]
struct Queue {
    next: Gathered,
    /// Frame bytes of its records, about.
    bytes: u64,
    /// Number of the round under way or last ended.
    started: u64,
    /// A round is under way.
    leading: bool,
    /// `next` begins with records of a round that was undone.
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

/// The commit queue and the journal behind it.
pub struct Commit {
    queue: Mutex<Queue>,
    ended: Condvar,
    done: AtomicU64,
    /// Frames, and states, that are durable.
    durable: AtomicU64,
    /// Held for reading by discards and by changes that free or seal a layer, for writing by a leader while its round begins.
    beginning: RwLock<()>,
    /// Journal space.
    pub room: Room,
    poison: OnceLock<Error>,
    limits: Limits,
}

impl Commit {
    pub fn new(journal: Journal, limits: &Limits) -> Self {
        Self {
            queue: Mutex::ranked(Rank::CommitQueue, Queue::default()),
            ended: Condvar::new(),
            done: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            beginning: RwLock::ranked(Rank::Beginning, ()),
            room: Room::new(journal, limits),
            poison: OnceLock::new(),
            limits: *limits,
        }
    }

    /// Refuses if an earlier write-back or sync failed.
    pub fn healthy(&self) -> Result<()> {
        match self.poison.get() {
            None => Ok(()),
            // The store was opened so.
            Some(cause) if cause.kind() == ErrorKind::ReadOnly => Err(cause.clone()),
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

    /// Puts records into the next round.
    pub fn enqueue(&self, records: impl IntoIterator<Item = impl Into<Record>>) -> Ticket {
        let mut queue = self.queue.lock();
        queue.add(records);
        Ticket(queue.started + 1)
    }

    /// Puts a record into the next round, which counts off the space that was claimed for it.
    pub fn enqueue_claimed(&self, record: impl Into<Record>, claimed: Reserved<'_>) -> Ticket {
        let ticket = self.enqueue([record]);
        claimed.keep();
        ticket
    }

    /// Puts a record into the next round that means zeros of which it does not tell; `cut_bytes` were claimed for them.
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

    /// Keeps a round from beginning while the caller changes layers and queues the record, so that all of it is in one round. Taken before
    /// a layer's state.
    pub fn hold_beginning(&self) -> RwLockReadGuard<'_, ()> {
        self.beginning.read()
    }

    /// Waits until the round has ended. The first waiter of an idle queue runs the round.
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
            Leader { commit: self, is_busy: false }.round(rounds)?;
            queue = self.queue.lock();
        }
    }

    /// Waits for the round under way and becomes the leader, without a round of its own.
    ///
    /// # Errors
    /// The store refuses writes.
    pub fn lead(&self) -> Result<Leader<'_>> {
        let mut queue = self.queue.lock();
        while queue.leading {
            self.ended.wait(&mut queue);
        }
        self.healthy()?;
        queue.leading = true;
        Ok(Leader { commit: self, is_busy: false })
    }

    /// Records of shape that wait for the next round. The catalogue is locked, so that they do not change.
    pub fn queued_shapes(&self) -> usize {
        self.queue.lock().next.records.iter().filter(|record| matches!(record, Record::Shape(_))).count()
    }

    fn run(&self, rounds: &impl Rounds) -> (Ticket, std::result::Result<(), RoundError>) {
        let (ticket, begun) = {
            let _beginning = (!self.limits.has(Planted::DiscardInTwoRounds)).then(|| self.beginning.write());
            rounds.prepare();
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

    fn settle(&self, queue: &mut Queue, ticket: Ticket, result: std::result::Result<(), RoundError>) -> Result<()> {
        match result {
            Ok(()) => {
                self.durable.store(self.room.latest_frame(), Ordering::Release);
                self.done.store(ticket.0, Ordering::Release);
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
                let _ = self.poison.set(error.clone());
                Err(error)
            }
        }
    }

    /// Whether records wait whose round was undone.
    pub fn is_behind(&self) -> bool {
        self.queue.lock().undone
    }

    /// Whether the queued records have reached the watermark at which a round should run before more are queued.
    pub fn is_crowded(&self) -> bool {
        self.queue.lock().bytes > QUEUED_BYTES_MAX.min(wide(self.limits.frame_payload_bytes_max) / 4)
    }

    /// Whether a later frame is durable: recovery believes all that this one names, whatever the bytes are by then.
    pub fn is_proven(&self, frame: u64) -> bool {
        frame < self.durable.load(Ordering::Acquire)
    }

    /// The records that wait for the next round.
    #[cfg(test)]
    pub fn queued(&self) -> Vec<Record> {
        self.queue.lock().next.records.clone()
    }
}

/// The leader: no other round begins until it is dropped. If it unwinds, a round may be half done: the store refuses writes, and the
/// waiters return.
#[must_use]
pub struct Leader<'a> {
    commit: &'a Commit,
    /// A round, or a switch, is under way.
    is_busy: bool,
}

impl Leader<'_> {
    /// Runs a round, whose waiters return when it has ended, and then `then`, which switches to another journal. After an error of `then`
    /// other than a lack of space or descriptors, which leaves everything as it was, every later write is refused.
    ///
    /// # Errors
    /// Those of the round and of `then`.
    pub fn switch(mut self, rounds: &impl Rounds, then: impl FnOnce() -> Result<()>) -> Result<()> {
        let commit = self.commit;
        self.is_busy = true;
        let (ticket, result) = commit.run(rounds);
        let outcome = self.settle_and(ticket, result, then);
        self.is_busy = false;
        outcome
    }

    fn settle_and(&self, ticket: Ticket, result: std::result::Result<(), RoundError>, then: impl FnOnce() -> Result<()>) -> Result<()> {
        let commit = self.commit;
        commit.settle(&mut commit.queue.lock(), ticket, result)?;
        commit.ended.notify_all();
        let outcome = then();
        match &outcome {
            Ok(()) => {
                // The state has all rounds in it, and proves their frames.
                commit.room.note_state();
                commit.durable.store(commit.room.latest_frame(), Ordering::Release);
            }
            // Nothing has changed: the last frame is still the last one, and its blocks are still proven by nothing else.
            Err(error) if error.is_shortage() => {}
            // The journal could not be read, and goes on: the next try takes all of it from memory.
            Err(error) if error.kind() == ErrorKind::Corrupt => {}
            // Set before any round may append to a journal that may not count any more.
            Err(error) => commit.poison(error.clone()),
        }
        outcome
    }

    /// Runs a round, and leaves the lead.
    fn round(mut self, rounds: &impl Rounds) -> Result<()> {
        self.is_busy = true;
        let (ticket, result) = self.commit.run(rounds);
        let mut queue = self.commit.queue.lock();
        let outcome = self.commit.settle(&mut queue, ticket, result);
        drop(queue);
        self.is_busy = false;
        outcome
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        if self.is_busy {
            self.commit.poison(Error::new(ErrorKind::Io, "a barrier round did not come to its end"));
        }
        self.commit.queue.lock().leading = false;
        self.commit.ended.notify_all();
    }
}
