//! Command-line arguments of the fleet simulation.

use std::path::PathBuf;

use clap::Parser;
use volfork::placement::{Policy, Weights};

use crate::chooser::Choice;
use crate::workload::Options;

/// Policies of placement on simulated fleets.
#[derive(Clone, Debug, Parser)]
pub struct Arguments {
    /// Sizes of the fleets
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000", value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    hosts: Vec<u32>,
    /// Machines that arrive one by one [default: 100 for each host, at most 20000]
    #[arg(long)]
    starts: Option<usize>,
    /// Bursts of one cold image each
    #[arg(long, default_value_t = 4)]
    bursts: usize,
    /// Machines of a burst
    #[arg(long, default_value_t = 70)]
    burst_starts: usize,
    /// Seconds between the reports of a host
    #[arg(long, default_value_t = 10.0, value_parser = positive)]
    report_seconds: f64,
    /// Starts a second for each host [default: 1/60]
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Only these policies [default: random and all]
    #[arg(long, value_delimiter = ',')]
    policies: Vec<String>,
    /// One more start-time policy with other weights, as in `even={"headroom_seconds":10}`; can be given again
    #[arg(long, value_name = "NAME=JSON")]
    weights: Vec<String>,
    /// Directory for table, figures and plots [default: below target]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Show that it works, on a small fleet
    #[arg(long)]
    pub test: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|value| *value > 0.0 && *value < 1e9).ok_or_else(|| "it must be a number above zero".into())
}

impl Arguments {
    /// The runs, by fleet.
    pub fn options(&self) -> Vec<Options> {
        let options = |hosts: usize, starts| Options {
            bursts: self.bursts,
            burst_starts: self.burst_starts,
            report_seconds: self.report_seconds,
            rate: self.rate.unwrap_or(Options::new(0, 0, 0).rate),
            ..Options::new(self.seed, hosts, starts)
        };
        if self.test {
            return vec![Options { burst_starts: 20, ..options(30, 300) }];
        }
        let starts = |hosts: usize| self.starts.unwrap_or((100 * hosts).min(20_000));
        self.hosts.iter().map(|hosts| options(*hosts as usize, starts(*hosts as usize))).collect()
    }

    /// What is compared.
    pub fn choices(&self) -> Result<Vec<Choice>, String> {
        let mut choices = Choice::all();
        if let Some(unknown) = self.policies.iter().find(|name| choices.iter().all(|choice| choice.name != **name)) {
            let known: Vec<&str> = choices.iter().map(|choice| choice.name.as_str()).collect();
            return Err(format!("'{unknown}' is not a policy: choose of {}", known.join(", ")));
        }
        choices.retain(|choice| self.policies.is_empty() || self.policies.contains(&choice.name));
        for text in &self.weights {
            let (name, json) = text.split_once('=').ok_or_else(|| format!("'{text}' does not begin with a name and '='"))?;
            let weights: Weights = serde_json::from_str(json).map_err(|error| format!("weights of '{name}': {error}"))?;
            choices.push(Choice::policy(name, Policy::StartTime(weights)));
        }
        Ok(choices)
    }

    pub fn out(&self) -> PathBuf {
        self.out.clone().unwrap_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fleet"))
    }
}
