//! What happens in the background, as it is printed.

use std::io;

use serde_json::json;
use volfork::volume::{Event, EventKind};

use super::stream::{self, log, note, to};
use super::table::word;
use crate::settings::Settings;

/// What happened, for people.
fn event_text(event: &Event) -> String {
    let volumes = event.volumes.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    let what = match (event.kind, &event.error) {
        (EventKind::Hydrated, _) => "hydrated, the source is not needed any more".to_owned(),
        (EventKind::Recovered, _) => "fetching goes on".into(),
        (EventKind::NoSpace, error) => {
            format!("{}; fetching goes on by itself when there is space", error.as_deref().unwrap_or("no space for what is fetched"))
        }
        (EventKind::Degraded, error) => {
            format!("no source answers, trying again: {}", error.as_deref().unwrap_or("reason unknown"))
        }
        (EventKind::Restricted, None) => "other users could use files of the store: from now on its owner alone can".into(),
        (EventKind::Restricted, Some(error)) => format!("other users may be able to use files of the store: {error}"),
    };
    if event.volumes.is_empty() { what } else { format!("volume {volumes}: {what}") }
}

/// Prints what happened in the background: for scripts as a line of JSON, for people on standard error.
pub fn event(settings: &Settings, event: &Event) {
    // Nobody is left to be told that a stream does not take the line.
    let _ = match (settings.json, settings.quiet) {
        (true, _) => stream::json(&log(&word(&event.kind), &json!({ "volumes": event.volumes, "error": event.error }))),
        (false, true) => Ok(()),
        (false, false) => to(io::stderr(), &event_text(event)),
    };
}

/// Prints what a command met when it opened the store, beside its answer. What else happens, the answer tells.
pub fn event_at_opening(settings: &Settings, event: &Event) {
    if event.kind == EventKind::Restricted {
        note(settings, &event_text(event));
    }
}
