//! Requests of a source.

use std::ops::Range;

use super::handshake::Topic;
use crate::source::{OnArrival, ReadClass, SourceError, SourceErrorKind};
use crate::wire::StatusExtent;

/// Called with the extents of a range.
pub type StatusDone = Box<dyn FnOnce(Result<Vec<StatusExtent>, SourceError>) + Send>;

/// Who waits for a request.
pub enum Waiter {
    Read(ReadClass, OnArrival),
    /// Block status on this topic.
    Status(Topic, StatusDone),
}

/// A request and how often it was tried.
pub struct Job {
    pub range: Range<u64>,
    pub waiter: Waiter,
    pub tries: u32,
}

/// How the server answered a job. The bytes of a read went to its waiter.
pub enum Answer {
    Read,
    Extents(Vec<StatusExtent>),
    Error(u32, String),
}

impl Job {
    /// Bytes that the server sends for it, about.
    pub fn bytes(&self) -> u64 {
        if self.is_read() { self.range.end - self.range.start } else { 0 }
    }

    pub fn is_read(&self) -> bool {
        matches!(self.waiter, Waiter::Read(..))
    }

    /// One more try was in vain.
    pub fn tried(self) -> Self {
        Self { tries: self.tries.saturating_add(1), ..self }
    }

    /// Tells its waiter how it ended.
    pub fn finish(self, result: Result<Answer, SourceError>) {
        match (self.waiter, result) {
            (Waiter::Read(_, arrival), result) => arrival.end(result.map(drop)),
            (Waiter::Status(_, done), Ok(Answer::Extents(extents))) => done(Ok(extents)),
            (Waiter::Status(_, done), Err(error)) => done(Err(error)),
            // A link answers status requests with extents.
            (Waiter::Status(_, done), Ok(_)) => done(Err(mismatch())),
        }
    }
}

fn mismatch() -> SourceError {
    SourceError { kind: SourceErrorKind::Changed, message: "a reply is not for its request".into() }
}
