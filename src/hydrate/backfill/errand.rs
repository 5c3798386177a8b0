//! What backfill must not wait for: barriers, looks at the layers above, the end of a hydration.

use std::sync::Arc;

use super::inbox::{Inbox, Message, Telling};
use crate::hydrate::crew::Crew;
use crate::hydrate::parts::Parts;

/// One of these.
pub enum Errand {
    /// Looks at what stands above.
    Look,
    /// Makes progress durable. An error shows at the next write, which the store then refuses.
    Record,
    /// Makes everything durable, then ends the hydration. The function answers whether it is over.
    Finish(Arc<dyn Fn() -> bool + Send + Sync>),
}

/// The errand under way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Look,
    Record,
    Finish,
}

/// The errands of one backfill, one at a time.
pub struct Errands {
    parts: Arc<Parts>,
    inbox: Arc<Inbox>,
    /// `None`: they are done on the thread of the caller.
    crew: Option<Arc<Crew>>,
    under_way: Option<Kind>,
    finished: Option<bool>,
}

impl Errands {
    pub fn new(parts: &Arc<Parts>, inbox: &Arc<Inbox>, crew: Option<Arc<Crew>>) -> Self {
        Self { parts: Arc::clone(parts), inbox: Arc::clone(inbox), crew, under_way: None, finished: None }
    }

    /// Begins one. `false`: another one is under way.
    pub fn begin(&mut self, errand: Errand) -> bool {
        if self.under_way.is_some() {
            return false;
        }
        let kind = match &errand {
            Errand::Look => Kind::Look,
            Errand::Record => Kind::Record,
            Errand::Finish(_) => Kind::Finish,
        };
        let Some(crew) = &self.crew else {
            self.finished = run(&self.parts, &errand);
            return true;
        };
        self.under_way = Some(kind);
        // An end that does not succeed is tried again.
        let failed = (kind == Kind::Finish).then_some(false);
        let (parts, telling) = (Arc::clone(&self.parts), Telling::new(&self.inbox, Message::Returned(failed)));
        crew.aside(self.parts.root.layer.id, move || telling.tell(Message::Returned(run(&parts, &errand))));
        true
    }

    /// The one that was under way has ended.
    pub fn end(&mut self, result: Option<bool>) {
        self.under_way = None;
        self.finished = result.or(self.finished);
    }

    /// Whether none is under way.
    pub fn is_empty(&self) -> bool {
        self.under_way.is_none()
    }

    /// Whether it is looked at what stands above.
    pub fn looks(&self) -> bool {
        self.under_way == Some(Kind::Look)
    }

    /// Whether progress is being made durable.
    pub fn records(&self) -> bool {
        self.under_way == Some(Kind::Record)
    }

    /// What became of the end of the hydration.
    pub fn take_finished(&mut self) -> Option<bool> {
        self.finished.take()
    }
}

/// Answers whether the hydration is over, if it was to be ended.
fn run(parts: &Parts, errand: &Errand) -> Option<bool> {
    let record = || drop(parts.root.layers.barriers.sync([parts.root.layer.id]));
    match errand {
        Errand::Look => (parts.look)(),
        Errand::Record => record(),
        Errand::Finish(finish) => {
            record();
            return Some(parts.life.is_stopped() || parts.is_complete() && finish());
        }
    }
    None
}
