//! Traces as they are printed.

use volfork::format_bytes;
use volfork::volume::TraceInfo;

use crate::request::target::Target;

/// Runs that are printed for people.
const RUNS_SHOWN: usize = 10;

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
