//! Values of arguments: times and block sizes.

use std::ops::RangeInclusive;
use std::time::Duration;

use volfork::BlockSize;

use crate::request::size::bytes;

/// Whole seconds, at least one unless it is "0".
pub fn seconds(text: &str) -> Result<u64, String> {
    match text {
        "0" => Ok(0),
        _ => humantime::parse_duration(text).map(|time| time.as_secs().max(1)).map_err(|error| format!("{error}: use 90s, 10m or 1h30m")),
    }
}

/// Range of `--source-timeout`: a distant source needs time to connect, and readers must not wait for a day.
const SOURCE_TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(3600);

/// Least `--lease`: forks must survive a source store that is closed for this long.
const LEASE_MIN: Duration = Duration::from_secs(3600);

pub fn lease(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| format!("{error}: use 12h or 7d"))?;
    if time >= LEASE_MIN { Ok(time) } else { Err("give at least 1h".into()) }
}

pub fn source_timeout(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| format!("{error}: use 10s, 90s or 2m"))?;
    match SOURCE_TIMEOUTS.contains(&time) {
        true => Ok(time),
        false => Err("give at least 2s and at most 1h".into()),
    }
}

pub fn block_size(text: &str) -> Result<BlockSize, String> {
    let bytes = u32::try_from(bytes(text)?).unwrap_or(u32::MAX);
    BlockSize::new(bytes).map_err(|error| error.to_string())
}
