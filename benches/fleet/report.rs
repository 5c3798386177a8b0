//! The result table and the same figures as JSON.

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::Serialize;

use crate::chooser::Choice;
use crate::network::seconds;
use crate::outcome::{Outcome, mean, quantile};
use crate::workload::Workload;

/// What is told of one policy on one fleet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub hosts: usize,
    pub policy: String,
    pub starts: usize,
    pub refused: u64,
    pub oversold: u64,
    pub retries: u64,
    pub mean_seconds: f64,
    pub p50_seconds: f64,
    pub p99_seconds: f64,
    /// Share of starts for which nothing was missing.
    pub warm_share: f64,
    pub burst_mean_seconds: f64,
    pub burst_p99_seconds: f64,
    /// Until the last machine of a burst is ready.
    pub burst_last_seconds: f64,
    pub burst_missing_bytes: f64,
    pub registry_bytes: u64,
    pub peer_bytes: u64,
    pub machines_variation: f64,
    pub machines_max_to_mean: f64,
    pub fullness_variation: f64,
    /// Share of starts on a host with another machine of the same application.
    pub sibling_share: f64,
}

impl Row {
    pub fn new(workload: &Workload, choice: &Choice, outcome: &Outcome) -> Self {
        let (singles, bursts) = (outcome.singles(), outcome.bursts());
        Self {
            hosts: workload.options.hosts,
            policy: choice.name.clone(),
            starts: outcome.records.len(),
            refused: outcome.refused,
            oversold: outcome.oversold,
            retries: outcome.retries,
            mean_seconds: mean(&singles),
            p50_seconds: quantile(&singles, 0.5),
            p99_seconds: quantile(&singles, 0.99),
            warm_share: outcome.share(|record| record.missing_bytes == 0),
            burst_mean_seconds: mean(&bursts),
            burst_p99_seconds: quantile(&bursts, 0.99),
            burst_last_seconds: outcome.burst_last_seconds(),
            burst_missing_bytes: outcome.burst_bytes(workload.options.bursts),
            registry_bytes: outcome.moved.registry,
            peer_bytes: outcome.moved.peers,
            machines_variation: outcome.spread(|spread| spread.machines_variation),
            machines_max_to_mean: outcome.spread(|spread| spread.machines_max),
            fullness_variation: outcome.spread(|spread| spread.fullness_variation),
            sibling_share: outcome.share(|record| record.with_sibling),
        }
    }
}

/// The table, in Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header([
        "hosts",
        "policy",
        "mean s",
        "p50 s",
        "p99 s",
        "warm %",
        "burst mean s",
        "burst p99 s",
        "burst GB",
        "GB moved",
        "CV machines",
        "max/mean",
        "CV fullness",
        "siblings %",
        "refused",
    ]);
    let gigabytes = |bytes: u64| format!("{:.0}", bytes as f64 / 1e9);
    for row in rows {
        table.add_row([
            row.hosts.to_string(),
            row.policy.clone(),
            format!("{:.2}", row.mean_seconds),
            format!("{:.2}", row.p50_seconds),
            format!("{:.1}", row.p99_seconds),
            format!("{:.0}", row.warm_share * 100.0),
            format!("{:.2}", row.burst_mean_seconds),
            format!("{:.1}", row.burst_p99_seconds),
            gigabytes(row.burst_missing_bytes as u64),
            gigabytes(row.registry_bytes + row.peer_bytes),
            format!("{:.2}", row.machines_variation),
            format!("{:.2}", row.machines_max_to_mean),
            format!("{:.2}", row.fullness_variation),
            format!("{:.0}", row.sibling_share * 100.0),
            row.refused.to_string(),
        ]);
    }
    for at in (0..15).filter(|at| *at != 1) {
        if let Some(column) = table.column_mut(at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{table}\n")
}

/// How long a run took and how long its decisions, which differs from run to run.
pub fn pace(choice: &Choice, outcome: &Outcome, took: std::time::Duration) -> String {
    let each = outcome.deciding.as_secs_f64() * 1e6 / outcome.decisions.max(1) as f64;
    let (name, simulated) = (&choice.name, seconds(outcome.ended_at));
    format!("{name}: {:.1} s for {simulated:.0} s and {} decisions of {each:.0} us", took.as_secs_f64(), outcome.decisions)
}
