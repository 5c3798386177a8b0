//! The order in which forks first touch a snapshot: shown, dropped, recorded.

use clap::Subcommand;
use serde::{Deserialize, Serialize};
use volfork::volume::TraceInfo;
use volfork::{Store, format_bytes};

use crate::failure::Result;
use crate::request::{Request, Response};
use crate::settings::Plan;
use crate::target::Target;

/// Runs that are printed for people.
const RUNS_SHOWN: usize = 10;

/// The commands about traces.
#[derive(Subcommand)]
pub enum TraceCommand {
    /// Show in which order forks first touched a snapshot, or what a fork stands on
    Show {
        /// NAME or NAME@SNAP
        target: Target,
    },
    /// Forget it: the next fork is recorded anew
    Drop {
        /// NAME or NAME@SNAP
        target: Target,
    },
    /// Record for ten minutes what a fork touches of what it stands on, behind what is known; while 'volfork serve' runs
    Record {
        /// Name of the fork
        name: String,
    },
}

/// What is done with a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is told.
    Show,
    /// It is forgotten.
    Drop,
    /// A fork is recorded.
    Record,
}

/// What is to be done.
pub fn plan(command: TraceCommand) -> (&'static str, Plan) {
    let (action, target) = match command {
        TraceCommand::Show { target } => (Action::Show, target),
        TraceCommand::Drop { target } => (Action::Drop, target),
        TraceCommand::Record { name } => (Action::Record, Target { volume: name, snapshot: None }),
    };
    ("trace", Plan::ask(Request::Trace { action, target }))
}

/// Does it.
pub fn carry_out(store: &Store, action: Action, target: Target) -> Result<Response> {
    let Target { volume, snapshot } = &target;
    match action {
        Action::Show => {}
        Action::Drop => store.drop_trace(volume, snapshot.as_deref())?,
        Action::Record => store.record_trace(volume)?,
    }
    let info = store.trace(volume, snapshot.as_deref())?;
    Ok(Response::Trace(target, info))
}

/// For people.
pub fn as_text(target: &Target, info: &TraceInfo) -> String {
    let bytes: u64 = info.runs.iter().map(|run| run.end - run.start).sum();
    let recording = if info.recording { ", being recorded" } else { "" };
    let mut lines = match info.runs.len() {
        0 => vec![format!("'{target}' has no trace{recording}")],
        runs => vec![format!("'{target}': {} in {runs} runs{recording}", format_bytes(bytes))],
    };
    let shown = info.runs.iter().take(RUNS_SHOWN);
    lines.extend(shown.map(|run| format!("  {} at {}", format_bytes(run.end - run.start), format_bytes(run.start))));
    if info.runs.len() > RUNS_SHOWN {
        lines.push(format!("  and {} more (all of them with --json)", info.runs.len() - RUNS_SHOWN));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_told_by_its_beginning() {
        let target = Target { volume: "v".into(), snapshot: Some("s".into()) };
        let told = as_text(&target, &TraceInfo { runs: Vec::new(), recording: true });
        assert_eq!(told, "'v@s' has no trace, being recorded");
        let runs = (0..12).map(|number| number << 20..(number << 20) + 65536).collect();
        let told = as_text(&target, &TraceInfo { runs, recording: false });
        assert!(told.starts_with("'v@s': 768 KiB in 12 runs\n") || told.starts_with("'v@s': 768.0 KiB in 12 runs\n"), "{told}");
        assert!(told.ends_with("and 2 more (all of them with --json)"), "{told}");
    }
}
