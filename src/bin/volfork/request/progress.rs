//! Progress of long work, and the trait that receives it.

use serde::{Deserialize, Serialize};

use crate::failure::Result;

/// Unit of a [`Progress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Blocks.
    Blocks,
}

/// Progress of long work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Unit of `done` and `total`.
    pub unit: Unit,
    /// Amount done so far, in `unit`.
    pub done: u64,
    /// Amount in all; `None`: not known.
    pub total: Option<u64>,
    /// A sentence for the user, such as why nothing moves.
    pub note: Option<String>,
}

impl Progress {
    /// Progress in bytes.
    pub fn bytes(done: u64, total: Option<u64>) -> Self {
        Self { unit: Unit::Bytes, done, total, note: None }
    }
}

/// Receives progress, and may end the work.
pub trait Watcher {
    /// Called several times a second during long work; an error ends the work, which is then undone.
    fn tell(&mut self, progress: Progress) -> Result<()>;
}
