//! Messages of other threads to a backfill.

use std::collections::VecDeque;
use std::sync::Arc;

use super::answer::Answered;
use crate::hydrate::parts::Parts;
use crate::source::Arrival;
use crate::sync::{Condvar, Mutex, Rank};

/// A message.
pub enum Message {
    /// Bytes or the end of the request with this number.
    Arrived(u64, Arrival),
    /// A source has answered a question.
    Answered(Answered),
    /// An errand has ended. The value is the result of a finish: whether the hydration is over.
    Returned(Option<bool>),
}

/// A queue of messages. The requests, questions and errands under way bound its length.
pub struct Inbox {
    messages: Mutex<VecDeque<Message>>,
    came: Condvar,
    parts: Arc<Parts>,
}

impl Inbox {
    /// An empty queue; `parts` is woken by each message.
    pub fn new(parts: &Arc<Parts>) -> Arc<Self> {
        Arc::new(Self { messages: Mutex::ranked(Rank::Inbox, VecDeque::new()), came: Condvar::new(), parts: Arc::clone(parts) })
    }

    /// Adds a message and wakes backfill.
    pub fn put(&self, message: Message) {
        self.messages.lock().push_back(message);
        self.came.notify_all();
        self.parts.wake_backfill();
    }

    /// Takes the next message, if there is one.
    pub fn take(&self) -> Option<Message> {
        self.messages.lock().pop_front()
    }

    /// Waits for a message.
    pub fn wait(&self) {
        let mut messages = self.messages.lock();
        while messages.is_empty() {
            self.came.wait(&mut messages);
        }
    }
}

/// Guard that puts a message into the inbox when it is dropped, so that a job that panics, or gets no thread, is reported too.
pub struct Telling {
    inbox: Arc<Inbox>,
    message: Option<Message>,
}

impl Telling {
    /// Puts `message` when dropped, unless [`Telling::tell`] was called.
    pub fn new(inbox: &Arc<Inbox>, message: Message) -> Self {
        Self { inbox: Arc::clone(inbox), message: Some(message) }
    }

    /// Puts this message instead.
    pub fn tell(mut self, message: Message) {
        self.message = Some(message);
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.message.take().into_iter().for_each(|message| self.inbox.put(message));
    }
}
