//! What a failed run tells: where its tasks are, and what happened last.

use std::backtrace::Backtrace;
use std::fmt::Write;
use std::time::Duration;

use super::outcome::FailureKind;
use super::state::{Event, On, State, Status};

/// Frames of a backtrace that are shown.
const FRAMES_MAX: usize = 12;

/// Where the present thread is: the frames between this module and the runtime.
pub(super) fn backtrace() -> String {
    let text = Backtrace::force_capture().to_string();
    let mut shown = String::new();
    let mut frames = 0;
    let mut keep = false;
    for line in text.lines() {
        let trimmed = line.trim_start();
        if trimmed.starts_with("at ") {
            if keep {
                let _ = writeln!(shown, "            {trimmed}");
            }
            continue;
        }
        let name = trimmed.split_once(": ").map_or(trimmed, |(_, name)| name);
        let foreign = ["std::", "core::", "alloc::", "<core::", "<alloc::", "<std::", "__", "_start", "clone", "start_thread"];
        keep = !foreign.iter().any(|prefix| name.starts_with(prefix))
            && (!name.contains("sync::sim::") || name.contains("::tests::"))
            && frames < FRAMES_MAX;
        if keep {
            frames += 1;
            let _ = writeln!(shown, "        {name}");
        }
    }
    shown
}

fn waits_for(state: &State, status: &Status) -> String {
    let (on, until) = match status {
        Status::Ready => return "can run".into(),
        Status::Ended => return "has ended".into(),
        Status::Waits { on, until } => (on, until),
    };
    let on = match on {
        On::Lock(address) => format!("waits for the lock {address:#x}"),
        On::Notification(address) => format!("waits for a notification of {address:#x}"),
        On::End(task) => format!("waits for the end of task {task} ({})", state.tasks[*task].name),
        On::Time | On::Nap => "sleeps".into(),
        On::Descriptors(fds) => format!("waits for descriptors {:?}", fds.iter().map(|fd| fd.fd).collect::<Vec<_>>()),
    };
    match until {
        None => on,
        Some(until) => format!("{on}, until {:?}", Duration::from_nanos(*until)),
    }
}

/// The report of a failure.
pub(super) fn describe(seed: u64, kind: FailureKind, text: &str, state: &State) -> String {
    let mut out = format!("{kind:?} under seed {seed}: {text}\n");
    let _ =
        writeln!(out, "{:?}, {:?}, {} steps, virtual time {:?}", state.strategy, state.early, state.steps, Duration::from_nanos(state.now));
    let _ = writeln!(out, "last events:");
    for event in &state.events {
        let _ = match event {
            Event::Step { task, what, place } => writeln!(out, "  {task:>3} {what:<12} {}:{}", place.file(), place.line()),
            Event::Note { task, text } => writeln!(out, "  {task:>3} -- {text}"),
        };
    }
    let _ = writeln!(out, "tasks:");
    for task in &state.live {
        let state_of = &state.tasks[*task];
        let status = waits_for(state, &state_of.status);
        let (name, what, place) = (&state_of.name, state_of.what, state_of.place);
        let _ = writeln!(out, "  {task:>3} {name}: {status} ({what} at {}:{})", place.file(), place.line());
        out.push_str(state_of.backtrace.as_deref().unwrap_or_default());
    }
    out
}
