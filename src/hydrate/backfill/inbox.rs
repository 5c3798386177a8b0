//! What comes for a backfill from other threads.

use std::collections::VecDeque;
use std::sync::Arc;

use super::answer::Answered;
use crate::hydrate::parts::Parts;
use crate::source::Arrival;
use crate::sync::{Condvar, Mutex};

/// Something that came.
pub enum Message {
    /// Something arrived for the request of this number.
    Arrived(u64, Arrival),
    /// A source has answered a question.
    Answered(Answered),
    /// An errand has ended; of the end of a hydration, whether it succeeded.
    Returned(Option<bool>),
}

/// Messages in the order in which they came. As many as were asked for: each request and question is bounded.
pub struct Inbox {
    messages: Mutex<VecDeque<Message>>,
    came: Condvar,
    parts: Arc<Parts>,
}

impl Inbox {
    /// An empty one.
    pub fn new(parts: &Arc<Parts>) -> Arc<Self> {
        Arc::new(Self { messages: Mutex::default(), came: Condvar::new(), parts: Arc::clone(parts) })
    }

    /// Adds a message, and lets backfill look.
    pub fn put(&self, message: Message) {
        self.messages.lock().push_back(message);
        self.came.notify_all();
        self.parts.wake_backfill();
    }

    /// The next message.
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

/// Puts what it has been given when it is dropped: an end that a panic or a lack of threads brings is told as well.
pub struct Telling {
    inbox: Arc<Inbox>,
    message: Option<Message>,
}

impl Telling {
    /// Tells `message`, unless there is another one by then.
    pub fn new(inbox: &Arc<Inbox>, message: Message) -> Self {
        Self { inbox: Arc::clone(inbox), message: Some(message) }
    }

    /// Tells this instead.
    pub fn tell(mut self, message: Message) {
        self.message = Some(message);
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.message.take().into_iter().for_each(|message| self.inbox.put(message));
    }
}
