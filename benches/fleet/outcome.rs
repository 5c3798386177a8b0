//! Results of one simulated run.

use std::time::Duration;

use crate::network::{Moved, Time};

/// One start that was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record {
    pub burst: Option<u32>,
    pub requested_at: Time,
    /// From the request until the machine is ready.
    pub seconds: f64,
    /// Bytes that were neither there nor on their way when the host was chosen.
    pub missing_bytes: u64,
    /// A machine of the same application was on the host already.
    pub with_sibling: bool,
}

/// How evenly machines lie over hosts, at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Standard deviation of the machines of a host, by their mean.
    pub machines_variation: f64,
    /// Machines of the host with the most, by the mean.
    pub machines_max: f64,
    /// Standard deviation of the share of processors in use, by its mean.
    pub fullness_variation: f64,
}

/// A run of one policy.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub records: Vec<Record>,
    /// Starts that were given up because no host had room for too long.
    pub refused: u64,
    /// Times a host got more than it has.
    pub oversold: u64,
    /// Times no host was found at first.
    pub retries: u64,
    pub spreads: Vec<Spread>,
    /// Bytes moved while it was measured.
    pub moved: Moved,
    /// Bytes moved from the beginning.
    pub moved_in_all: Moved,
    /// Bytes that were neither there nor on their way, over all assignments from the beginning.
    pub missing_in_all: u64,
    /// Simulated time.
    pub ended_at: Time,
    /// Time that decisions took: the only figure that differs between runs.
    pub deciding: Duration,
    pub decisions: u64,
}

impl Outcome {
    /// Start times of single machines, ascending.
    pub fn singles(&self) -> Vec<f64> {
        ascending(self.records.iter().filter(|record| record.burst.is_none()).map(|record| record.seconds))
    }

    /// Start times of machines of bursts, ascending.
    pub fn bursts(&self) -> Vec<f64> {
        ascending(self.records.iter().filter(|record| record.burst.is_some()).map(|record| record.seconds))
    }

    /// Bytes that were missing where the machines of bursts went, by burst.
    pub fn burst_bytes(&self, bursts: usize) -> f64 {
        let bytes: u64 = self.records.iter().filter(|record| record.burst.is_some()).map(|record| record.missing_bytes).sum();
        bytes as f64 / bursts.max(1) as f64
    }

    /// Seconds until the last machine of a burst is ready, on average over the bursts.
    pub fn burst_last_seconds(&self) -> f64 {
        let mut last = std::collections::BTreeMap::<u32, f64>::new();
        for record in &self.records {
            if let Some(burst) = record.burst {
                let latest = last.entry(burst).or_default();
                *latest = latest.max(record.seconds);
            }
        }
        mean(&last.into_values().collect::<Vec<_>>())
    }

    /// Mean of a measure of spread over the samples.
    pub fn spread(&self, measure: impl Fn(&Spread) -> f64) -> f64 {
        mean(&self.spreads.iter().map(measure).collect::<Vec<_>>())
    }

    /// Share of the measured starts for which a condition holds.
    pub fn share(&self, condition: impl Fn(&Record) -> bool) -> f64 {
        self.records.iter().filter(|record| condition(record)).count() as f64 / self.records.len().max(1) as f64
    }
}

fn ascending(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The value that a share of ascending values does not exceed.
pub fn quantile(ascending: &[f64], share: f64) -> f64 {
    let at = (share * ascending.len() as f64).ceil() as usize;
    ascending.get(at.clamp(1, ascending.len().max(1)) - 1).copied().unwrap_or(0.0)
}

/// Standard deviation by the mean.
pub fn variation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len().max(1) as f64;
    if mean > 0.0 { squares.sqrt() / mean } else { 0.0 }
}
