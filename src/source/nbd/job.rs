//! Requests of a source.

use std::ops::Range;

use super::handshake::Topic;
use crate::source::{OnArrival, ReadClass, SourceError, SourceErrorKind};
use crate::sync::time::Instant;
use crate::wire::StatusExtent;

/// Callback of a block status request.
pub type StatusDone = Box<dyn FnOnce(Result<Vec<StatusExtent>, SourceError>) + Send>;

/// The receiver of a reply.
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
    /// When it lost its last connection.
    pub lost_at: Option<Instant>,
}

/// The reply to a job. The bytes of a read have gone to its waiter already.
pub enum Answer {
    Read,
    Extents(Vec<StatusExtent>),
    Error(u32, String),
}

impl Job {
    /// Approximate bytes of the reply, for the load of a connection.
    pub fn bytes(&self) -> u64 {
        if self.is_read() { self.range.end - self.range.start } else { 0 }
    }

    pub fn is_read(&self) -> bool {
        matches!(self.waiter, Waiter::Read(..))
    }

    /// The job with one more failed try counted.
    pub fn tried(self) -> Self {
        Self { tries: self.tries.saturating_add(1), ..self }
    }

    /// The job after the loss of a connection that was made at some time. Connections from before its last loss were most likely lost with
    /// that one and only noticed now, so these say nothing of the job: each is lost once, so this has an end.
    pub fn lost(self, made: Instant) -> Self {
        let is_new = self.lost_at.is_none_or(|lost_at| lost_at < made);
        let job = if is_new { self.tried() } else { self };
        Self { lost_at: Some(Instant::now()), ..job }
    }

    /// Calls the waiter with the result.
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
