//! Waiting until a volume needs its source no more.

use std::time::{Duration, Instant};

use volfork::volume::{HydrationInfo, HydrationState, VolumeState};
use volfork::{ErrorKind, Store, format_bytes};

use crate::failure::{Failure, Result};
use crate::request::progress::{Progress, Unit, Watcher};

/// How often a wait reports progress.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// Waits until volume `name` is complete, and reports progress to `watcher`.
///
/// # Errors
/// It is paused, every source has refused, the time ran out, or what the watcher answers.
pub fn wait_hydrated(store: &Store, name: &str, timeout_seconds: Option<u64>, watcher: &mut dyn Watcher) -> Result<()> {
    let begun = Instant::now();
    // Earlier failures may be repaired by now, so each address gets one more try.
    let before = store.show(name)?.hydration;
    loop {
        let left = timeout_seconds.map(|seconds| Duration::from_secs(seconds).saturating_sub(begun.elapsed()));
        if store.wait_hydrated(name, left.unwrap_or(TELL_EVERY).min(TELL_EVERY))? {
            return Ok(());
        }
        let info = store.show(name)?;
        let hydration = &info.hydration;
        if hydration.state == HydrationState::Paused {
            let message = format!("hydration of volume '{name}' is paused, so waiting has no end: run 'volfork hydrate {name} --resume'");
            return Err(Failure::new(ErrorKind::Busy, message));
        }
        if is_hopeless(&before, hydration) {
            return Err(Failure::new(ErrorKind::SourceLost, hopeless_text(name, hydration)));
        }
        let no_source = |error: &String| {
            format!("no source has what is missing, trying again ('volfork hydrate {name} --add-source URI' names another): {error}")
        };
        let error = hydration.last_error.as_ref().filter(|_| info.state == VolumeState::Degraded);
        let is_full = hydration.state == HydrationState::NoSpace;
        if left.is_some_and(|left| left.is_zero()) {
            let missing = format_bytes(hydration.bytes_missing);
            let full = is_full.then(|| "; there is no space for more".to_owned());
            let why = error.map(|error| format!("; {}", no_source(error))).or(full).unwrap_or_default();
            let message = format!(
                "volume '{name}' is not complete after {}: {missing} are missing{why}; what came is kept, so wait again",
                humantime::format_duration(Duration::from_secs(begun.elapsed().as_secs()))
            );
            return Err(Failure::timed_out(message));
        }
        let full = is_full.then(|| "no space: free some, and it goes on by itself".to_owned());
        let note = error.map(no_source).or(full);
        let done = info.size_bytes.saturating_sub(hydration.bytes_missing);
        watcher.tell(Progress { unit: Unit::Bytes, done, total: Some(info.size_bytes), note })?;
    }
}

/// Whether every address has failed since `before`, in a way that another try does not mend.
pub(super) fn is_hopeless(before: &HydrationInfo, now: &HydrationInfo) -> bool {
    let errors_before = |uri: &str| before.sources.iter().find(|source| source.uri == uri).map_or(0, |source| source.errors);
    !now.sources.is_empty() && now.sources.iter().all(|source| source.refused && source.errors > errors_before(&source.uri))
}

fn hopeless_text(name: &str, hydration: &HydrationInfo) -> String {
    let errors: Vec<&str> = hydration.sources.iter().filter_map(|source| source.last_error.as_deref()).collect();
    format!(
        "volume '{name}' cannot become complete: {} are missing, and no source has them: {}; put it right, or name one that has \
         the snapshot: 'volfork hydrate {name} --add-source URI'",
        format_bytes(hydration.bytes_missing),
        errors.join("; ")
    )
}
