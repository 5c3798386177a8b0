//! Waiting for barrier rounds, and for room in the journal.
//!
//! # Invariants
//! - A caller that waits holds no lock, except where a comment says which.
//! - A checkpoint that is needed at once is made by the caller that has just waited for a round or finds no room; the background makes the
//!   others.
//! - A shrink is one record that means zeros. Their space is claimed before its caller takes the gate and the catalogue, because no round
//!   can be waited for behind them.

use std::sync::Arc;
use std::time::Duration;

use super::cost::range_bytes;
use super::queue::{Commit, Ticket};
use super::room::{Reserved, ShapeRoom, no_room};
use super::round::LayerRounds;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::LayerId;
use crate::place::{BlockSpan, wide};
use crate::sync::OnceLock;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread::sleep;

/// Rounds that a change of shape waits for while they are undone, and the pause between them.
const SHAPE_ROUNDS: u32 = 3;
const SHAPE_PAUSE: Duration = Duration::from_millis(10);

/// Makes a checkpoint of the whole store.
type OnNeed = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// What callers wait for.
pub struct Barriers {
    commit: Arc<Commit>,
    pub(in super::super) rounds: Arc<LayerRounds>,
    /// How a checkpoint is made when one is needed at once.
    checkpoint: OnceLock<OnNeed>,
    /// The store is being closed: the thread that closes it makes the last checkpoint.
    closing: AtomicBool,
}

impl Barriers {
    pub fn new(commit: Arc<Commit>, rounds: Arc<LayerRounds>) -> Self {
        Self { commit, rounds, checkpoint: OnceLock::new(), closing: AtomicBool::new(false) }
    }

    /// Sets how a checkpoint is made that cannot wait for the background.
    pub fn on_need(&self, checkpoint: impl Fn() -> Result<()> + Send + Sync + 'static) {
        let _ = self.checkpoint.set(Box::new(checkpoint));
    }

    /// Leaves checkpoints to the caller from now on.
    pub fn begin_closing(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Waits for a round. The first waiter of an idle queue runs it.
    ///
    /// # Errors
    /// This caller led a round that found no room; or the round failed, and the store refuses writes from now on.
    pub fn wait(&self, ticket: Ticket) -> Result<()> {
        self.commit.wait(ticket, &*self.rounds)?;
        if self.commit.room.takes_checkpoint() {
            // If it fails the store goes on with what is left of the reserve; the background tries again.
            let _ = self.checkpoint_now();
        }
        Ok(())
    }

    /// Waits for the round of a change of shape, which is visible already. A round that is undone leaves the change to the next one, so
    /// a short lack of space is not seen.
    ///
    /// # Errors
    /// [`ErrorKind::NotDurable`] if the lack of space lasts; [`ErrorKind::Poisoned`].
    pub fn wait_shape(&self, ticket: Ticket) -> Result<()> {
        let mut further = 1..SHAPE_ROUNDS;
        loop {
            match self.wait(ticket) {
                Err(error) if error.is_shortage() && further.next().is_some() => sleep(SHAPE_PAUSE),
                Err(error) if error.is_shortage() => {
                    let message = format!("the change was made, but is not durable before the next flush that succeeds: {error}");
                    return Err(Error::new(ErrorKind::NotDurable, message));
                }
                other => return other,
            }
        }
    }

    /// Makes all completed writes of `layers`, and all records so far, durable.
    ///
    /// # Errors
    /// As [`Barriers::wait`].
    pub fn sync(&self, layers: impl IntoIterator<Item = LayerId>) -> Result<()> {
        self.wait(self.commit.enqueue_sync(layers))
    }

    /// Makes the blocks of every layer durable that wait for their record.
    ///
    /// # Errors
    /// As [`Barriers::wait`].
    pub fn sync_fresh(&self) -> Result<()> {
        self.sync(self.rounds.owed.layers())
    }

    /// Makes queued records durable, if there are any.
    ///
    /// # Errors
    /// As [`Barriers::wait`].
    pub fn sync_if_queued(&self) -> Result<()> {
        if self.commit.is_idle() { Ok(()) } else { self.sync([]) }
    }

    /// Lets a round take what is queued, if that is much.
    ///
    /// # Errors
    /// As [`Barriers::wait`].
    pub fn drain_queue(&self) -> Result<()> {
        if self.commit.is_crowded() { self.sync([]) } else { Ok(()) }
    }

    /// Makes progress when what waits for a round is as much as a frame holds.
    ///
    /// # Errors
    /// As [`Barriers::wait`].
    pub fn wait_for_frame(&self) -> Result<()> {
        self.sync_fresh()?;
        self.rounds.reapers.help();
        if self.commit.room.is_full() {
            // The rest is being written by others.
            sleep(super::super::reapers::HELP_INTERVAL);
        }
        Ok(())
    }

    fn checkpoint_now(&self) -> Result<()> {
        match self.checkpoint.get() {
            Some(checkpoint) if !self.closing.load(Ordering::Acquire) => checkpoint(),
            _ => Err(no_room()),
        }
    }

    /// Makes room in the journal for a record of so many bytes, which is to be claimed then.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`]: there is none. Nothing has changed then.
    pub fn make_room(&self, bytes: u64) -> Result<()> {
        let room = &self.commit.room;
        loop {
            if room.is_full() {
                self.sync_fresh()?
            } else {
                self.sync([])?
            }
            if !room.is_beyond_frame(bytes) {
                break;
            }
            // Space is not short: what others are writing takes the rest of a frame.
            self.rounds.reapers.help();
            sleep(super::super::reapers::HELP_INTERVAL);
        }
        let taken = room.claim(bytes).or_else(|_| {
            self.checkpoint_now()?;
            room.claim(bytes)
        });
        taken.map(drop)
    }

    /// Takes room for the zeros of a shrink, from the reserve if need be. The caller holds neither gate nor catalogue.
    ///
    /// # Errors
    /// As [`Barriers::make_room`].
    pub fn claim_cut(&self, blocks: BlockSpan) -> Result<Reserved<'_>> {
        self.commit.healthy()?;
        self.drain_queue()?;
        let bytes = range_bytes(blocks);
        loop {
            match self.commit.room.claim(bytes) {
                Ok(claimed) => return Ok(claimed),
                Err(_) => self.make_room(bytes)?,
            }
        }
    }

    /// Makes room for a record of blocks to forget.
    ///
    /// # Errors
    /// As [`Barriers::make_room`].
    pub fn prepare_forget(&self) -> Result<()> {
        self.drain_queue()?;
        let bytes = wide(self.rounds.limits.set_record_bytes_max);
        self.commit.room.claim(bytes).map(drop).or_else(|_| self.make_room(bytes))
    }

    /// Makes changes of shape durable whose round was undone, before there are more of them. As long as that fails, further ones are
    /// refused before anything has changed.
    ///
    /// # Errors
    /// [`ErrorKind::Poisoned`]; a lack of space, descriptors or memory.
    pub fn prepare_shape(&self) -> Result<()> {
        self.commit.healthy()?;
        if self.commit.is_behind() || self.commit.is_crowded() { self.sync([]) } else { Ok(()) }
    }

    /// Takes journal space for a change of shape, so that it cannot fail half-way. The caller keeps the space until the round of the change
    /// has ended.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`]; as [`Barriers::prepare_shape`].
    pub fn reserve_shape(&self) -> Result<ShapeRoom<'_>> {
        self.prepare_shape()?;
        self.commit.room.reserve_shape(0)
    }
}
