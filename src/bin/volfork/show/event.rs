//! Events of background work, as they are printed.

use std::io;

use serde_json::json;
use volfork::volume::{Event, EventKind};

use super::stream::{self, log, note, to};
use super::table::word;
use crate::settings::Settings;

/// An event as text for people.
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
        (EventKind::WritesRefused, error) => {
            format!("the store refuses writes: {}", error.as_deref().unwrap_or("reason unknown"))
        }
        (EventKind::BackgroundFailed, error) => {
            format!("background work fails, trying again: {}", error.as_deref().unwrap_or("reason unknown"))
        }
        (EventKind::Damaged, error) => error.clone().unwrap_or_else(|| "a damaged block was met".into()),
        (EventKind::SpaceLow, _) => "the file system of the store has little space left".into(),
        (kind, error) => [word(&kind), error.clone().unwrap_or_default()].join(" ").trim().to_owned(),
    };
    if event.volumes.is_empty() { what } else { format!("volume {volumes}: {what}") }
}

/// Prints an event: for scripts as a line of JSON, for people on standard error.
pub fn event(settings: &Settings, event: &Event) {
    // An error of the output stream cannot be reported anywhere.
    let _ = match (settings.json, settings.quiet) {
        (true, _) => stream::json(&log(&word(&event.kind), &json!({ "volumes": event.volumes, "error": event.error }))),
        (false, true) => Ok(()),
        (false, false) => to(io::stderr(), &event_text(event)),
    };
}

/// Prints an event of opening the store that the answer of the command does not contain.
pub fn event_at_opening(settings: &Settings, event: &Event) {
    if event.kind == EventKind::Restricted {
        note(settings, &event_text(event));
    }
}
