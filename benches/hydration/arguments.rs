//! Command-line arguments of the hydration bench.

use std::time::Duration;

use clap::Parser;
use volfork::parse_bytes;

/// Hydration over an emulated link, against nbdcopy over the same link.
#[derive(Clone, Debug, Parser)]
pub struct Arguments {
    /// Bytes of the image [default: 256M, with --forks 64M]
    #[arg(long, value_parser = |text: &str| parse_bytes(text).map_err(|error| error.to_string()))]
    size: Option<u64>,
    /// Round-trip times in milliseconds
    #[arg(long, value_delimiter = ',', value_name = "MS")]
    rtt: Vec<f64>,
    /// Lost packets in percent
    #[arg(long, value_delimiter = ',', default_value = "0", value_name = "PERCENT")]
    pub loss: Vec<f64>,
    /// Bits a second in each direction (K, M and G are powers of 1000)
    #[arg(long, default_value = "1000M", value_parser = bits)]
    pub rate: u64,
    /// Bytes of the largest packet
    #[arg(long, default_value_t = 9000)]
    pub mtu: usize,
    /// Runs of each competitor, in turns
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// Congestion control of both hosts
    #[arg(long, default_value = "cubic")]
    pub congestion: String,
    /// Most bytes of a socket's buffers on both hosts (tcp_rmem, tcp_wmem) [default: as the kernel has them]
    #[arg(long, value_parser = |text: &str| parse_bytes(text).map_err(|error| error.to_string()))]
    pub buffers: Option<u64>,
    /// Connections of volfork to the server [default: that of the library]
    #[arg(long)]
    pub connections: Option<usize>,
    /// Connections and threads of nbdcopy [default: as many as processors, at most 4]; it gives each 128 MiB at a time
    #[arg(long)]
    pub nbdcopy_connections: Option<usize>,
    /// nbdcopy makes its copy durable, as hydration always does
    #[arg(long)]
    pub flush: bool,
    /// Seed of the losses
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Measure so many forks of one snapshot at once
    #[arg(long, value_name = "N", conflicts_with = "load")]
    pub forks: Option<usize>,
    /// Measure what hydration does to reads of another volume of the store
    #[arg(long)]
    pub load: bool,
    /// Measure what a recorded order of first touches does to a machine that starts
    #[arg(long, conflicts_with = "load", conflicts_with = "forks")]
    pub trace: bool,
    /// Seconds of each run of --load
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Reads a second of --load
    #[arg(long, default_value_t = 2000)]
    pub reads: u32,
    /// Show that it works, and measure nothing
    #[arg(long)]
    pub test: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    pub fn size_bytes(&self) -> u64 {
        let default = match (self.test, self.forks) {
            (true, _) => 8,
            (_, Some(_)) => 64,
            _ => 256,
        };
        self.size.unwrap_or(default << 20)
    }

    /// Round-trip times; one for each case, or for the only one.
    pub fn rtts(&self) -> Vec<Duration> {
        let default: &[f64] = match (self.test, self.forks.is_some() || self.load) {
            (true, _) => &[5.0],
            (_, true) => &[1.0],
            _ => &[0.2, 20.0, 100.0],
        };
        let rtts = if self.rtt.is_empty() { default } else { &self.rtt };
        rtts.iter().map(|ms| Duration::from_secs_f64(ms / 1000.0)).collect()
    }
}

fn bits(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_alphabetic());
    let factor = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 1,
        "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        other => return Err(format!("'{other}' is none of K, M and G")),
    };
    match digits.parse::<f64>() {
        Ok(number) if number * factor as f64 >= 1.0 => Ok((number * factor as f64) as u64),
        _ => Err(format!("'{text}' is no rate: write a number and K, M or G, as in 1000M")),
    }
}
