//! How far long work has come, and who is told.

use serde::{Deserialize, Serialize};

use crate::failure::Result;

/// What a [`Progress`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Blocks.
    Blocks,
}

/// How far long work has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What `done` and `total` count.
    pub unit: Unit,
    /// Done so far.
    pub done: u64,
    /// All there is, if that is known.
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

/// Hears of progress, and may end the work.
pub trait Watcher {
    /// Called several times a second during long work; an error ends the work, which is then undone.
    fn tell(&mut self, progress: Progress) -> Result<()>;
}
