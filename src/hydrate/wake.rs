//! Ending a wait of backfill.

use std::sync::Arc;

use crate::io::RingWaker;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::mpsc::Sender;

use super::backfill::Message;

/// Ends the wait of one backfill, whatever it waits on.
#[derive(Clone)]
pub(super) enum Waker {
    /// It waits on its ring.
    Ring(RingWaker),
    /// It has no ring, and waits for messages. One wake is on its way at most.
    Channel(Sender<Message>, Arc<AtomicBool>),
}

impl Waker {
    /// Ends the wait that is under way, or else the next one.
    pub fn wake(&self) {
        match self {
            Self::Ring(waker) => waker.wake(),
            Self::Channel(sender, is_woken) if !is_woken.swap(true, Ordering::AcqRel) => drop(sender.send(Message::Wake)),
            Self::Channel(..) => {}
        }
    }
}
