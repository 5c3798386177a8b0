//! Settings of every command.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of every command.
#[derive(Clone, Debug)]
pub struct Settings {
    pub store: PathBuf,
    /// Answers, errors and events are JSON.
    pub json: bool,
    /// Print no progress and no confirmations.
    pub quiet: bool,
    /// How long readers wait for a source that does not answer; `None`: as long as the engine thinks right.
    pub source_timeout: Option<Duration>,
    /// Name of the command, for the store's lock and for progress.
    pub label: String,
}
