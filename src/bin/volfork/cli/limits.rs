//! Arguments about the limits of a volume's clients.

use clap::Args;
use volfork::volume::VolumeLimits;

use crate::request::limits::{LimitsChange, Setting};
use crate::request::size::size;

/// Limits of a new volume.
#[derive(Args, Clone, Copy, Debug, Default)]
#[command(next_help_heading = "Limits of its NBD clients together")]
pub struct LimitArguments {
    /// Most reads, writes and discards a second
    #[arg(long, value_name = "N", value_parser = operations)]
    iops: Option<u64>,
    /// Most bytes read and written a second, as in 100M
    #[arg(long, value_name = "SIZE", value_parser = bandwidth)]
    bandwidth: Option<u64>,
    /// What a volume that was idle may do at once: what the limits allow in this time, as in 2s, to 1h [default: 100ms]
    #[arg(long, value_name = "TIME", value_parser = burst)]
    burst: Option<u64>,
}

/// Changes of limits.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct LimitsChangeArguments {
    /// Most reads, writes and discards a second, or none
    #[arg(long, value_name = "N|none", value_parser = |text: &str| or_none(text, operations))]
    iops: Option<Setting>,
    /// Most bytes read and written a second, as in 100M, or none
    #[arg(long, value_name = "SIZE|none", value_parser = |text: &str| or_none(text, bandwidth))]
    bandwidth: Option<Setting>,
    /// What a volume that was idle may do at once: what the limits allow in this time, as in 2s, to 1h; with none, in 100ms
    #[arg(long, value_name = "TIME|none", value_parser = |text: &str| or_none(text, burst))]
    burst: Option<Setting>,
}

/// A limit that lets something pass.
fn positive(limit: u64) -> Result<u64, String> {
    if limit > 0 { Ok(limit) } else { Err("a limit of 0 lets nothing pass: give a larger one; 'volfork limit' takes 'none', too".into()) }
}

fn operations(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("'{text}' is not a number of operations a second")).and_then(positive)
}

fn bandwidth(text: &str) -> Result<u64, String> {
    size(text).and_then(positive)
}

/// Milliseconds of a burst.
fn burst(text: &str) -> Result<u64, String> {
    let time = humantime::parse_duration(text).map_err(|error| format!("{error}: use 500ms or 2s"))?;
    u64::try_from(time.as_millis()).map_err(|_| "it is too long".to_owned()).and_then(positive)
}

fn or_none(text: &str, limit: fn(&str) -> Result<u64, String>) -> Result<Setting, String> {
    match text {
        "none" => Ok(Setting::None),
        _ => limit(text).map(Setting::To),
    }
}

impl LimitArguments {
    /// As the library takes them.
    pub fn limits(self) -> VolumeLimits {
        let mut limits = VolumeLimits::default();
        (limits.iops, limits.bytes_per_second, limits.burst_millis) = (self.iops, self.bandwidth, self.burst);
        limits
    }
}

impl LimitsChangeArguments {
    /// As a request has them.
    pub fn change(self) -> LimitsChange {
        LimitsChange { iops: self.iops, bytes_per_second: self.bandwidth, burst_millis: self.burst }
    }
}
