//! Errands: blocking work of backfill that runs on another thread, such as barriers, looks at the layers above, and the end of a hydration.

use std::sync::Arc;

use super::inbox::{Inbox, Message, Telling};
use crate::hydrate::crew::Crew;
use crate::hydrate::parts::Parts;

/// A piece of blocking work.
pub enum Errand {
    /// Looks up which blocks the layers above hide.
    Look,
    /// Makes progress durable by a barrier round. On an error the store refuses the next write.
    Record,
    /// Makes everything durable, then calls the function, which ends the hydration. It returns false if blocks are still missing.
    Finish(Arc<dyn Fn() -> bool + Send + Sync>),
}

/// Kind of the errand under way.
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
    /// Threads for errands; `None` runs them on the caller's thread.
    crew: Option<Arc<Crew>>,
    under_way: Option<Kind>,
    finished: Option<bool>,
}

impl Errands {
    pub fn new(parts: &Arc<Parts>, inbox: &Arc<Inbox>, crew: Option<Arc<Crew>>) -> Self {
        Self { parts: Arc::clone(parts), inbox: Arc::clone(inbox), crew, under_way: None, finished: None }
    }

    /// Begins an errand. False if another one is under way.
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
        // A panic or a lack of threads counts as a failed finish, which is tried again.
        let failed = (kind == Kind::Finish).then_some(false);
        let (parts, telling) = (Arc::clone(&self.parts), Telling::new(&self.inbox, Message::Returned(failed)));
        crew.aside(self.parts.root.layer.id, move || telling.tell(Message::Returned(run(&parts, &errand))));
        true
    }

    /// Notes the end of the errand under way; `result` is that of a finish.
    pub fn end(&mut self, result: Option<bool>) {
        self.under_way = None;
        self.finished = result.or(self.finished);
    }

    /// Whether no errand is under way.
    pub fn is_empty(&self) -> bool {
        self.under_way.is_none()
    }

    /// Whether a look at the layers above is under way.
    pub fn looks(&self) -> bool {
        self.under_way == Some(Kind::Look)
    }

    /// Whether progress is being made durable.
    pub fn records(&self) -> bool {
        self.under_way == Some(Kind::Record)
    }

    /// Takes the result of a finish, once it has ended.
    pub fn take_finished(&mut self) -> Option<bool> {
        self.finished.take()
    }
}

/// Runs an errand. The result is that of a finish: whether the hydration is over.
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
