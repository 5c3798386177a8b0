//! `volfork init` and `volfork check`, which need a store that no process has open.

use serde_json::json;
use volfork::{BlockSize, ErrorKind, Store};

use super::reach;
use crate::control;
use crate::failure::{Failure, Result};
use crate::settings::Settings;
use crate::show::stream;

/// Makes an empty store.
pub fn init(settings: &Settings, block_size: BlockSize, group_access: bool) -> Result<()> {
    reach::create(settings, block_size, group_access)?.close()?;
    let store = settings.store.display().to_string();
    match (settings.json, settings.quiet) {
        (true, _) => stream::json(&json!({ "store": store, "block_size": block_size.bytes() })),
        (false, true) => Ok(()),
        (false, false) => stream::text(&format!("made a store in {store} with blocks of {} bytes", block_size.bytes())),
    }
}

/// Verifies a closed store; `false` if it has violations.
pub fn check(settings: &Settings) -> Result<bool> {
    if control::connect(&settings.store)?.is_some() {
        let message = "the store is being served, and check needs one that is not in use: stop the server, or run 'volfork scrub'";
        return Err(Failure::new(ErrorKind::Busy, message));
    }
    let report = Store::check(&settings.store, reach::options(settings, BlockSize::DEFAULT)).map_err(|error| match error.kind() {
        ErrorKind::NotFound => reach::missing(&settings.store),
        _ => error.into(),
    })?;
    let sound = report.violations.is_empty();
    if settings.json {
        stream::json(&report)?;
    } else if !(settings.quiet && sound) {
        let mut lines = report.violations.clone();
        let verdict = if sound { "no violation".into() } else { format!("{} violations", report.violations.len()) };
        lines.push(format!("{} volumes, {} snapshots, {} layers: {verdict}", report.volumes, report.snapshots, report.layers));
        stream::text(&lines.join("\n"))?;
    }
    Ok(sound)
}
