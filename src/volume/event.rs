//! What happens in the background.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// Volumes do not need their source any more.
    Hydrated,
    /// No address of the source answers.
    Degraded,
    /// One answers again.
    Recovered,
}

/// Something that happened in the background.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// The volumes it happened to.
    pub volumes: Vec<String>,
    /// Why, if something failed.
    pub error: Option<String>,
}

/// Called with each event, on a thread of the engine: it must not wait for the store.
pub type OnEvent = Arc<dyn Fn(&Event) + Send + Sync>;
