//! How far a hydration has come, as it is printed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use volfork::format_bytes;
use volfork::volume::{HydrationInfo, HydrationState, VolumeInfo};

use super::date::format_time;
use super::table::word;

pub(super) fn hydration_text(info: &VolumeInfo) -> String {
    let hydration = &info.hydration;
    let mut text = word(&hydration.state).replace('_', " ");
    if hydration.state == HydrationState::Stopped {
        text += &format!(": no process has the store open, run 'volfork serve' or 'volfork hydrate {} --wait'", info.name);
    }
    if hydration.bytes_missing > 0 {
        text += &format!(", {} missing, {}/s", format_bytes(hydration.bytes_missing), format_bytes(hydration.rate_bytes_per_second));
    }
    if let Some(eta) = hydration.eta_seconds {
        text += &format!(", {} left", humantime::format_duration(Duration::from_secs(eta)));
    }
    text
}

pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A deadline that cannot be met because of the rate limit that was set.
pub(super) fn impossible_deadline(now: u64, hydration: &HydrationInfo) -> Option<String> {
    let (deadline, limit) = (hydration.deadline?, hydration.rate_limit_bytes_per_second?);
    let needed = hydration.bytes_missing.div_ceil(limit.max(1));
    (now.saturating_add(needed) > deadline).then(|| {
        format!(
            "the rate limit of {}/s keeps it from its deadline: {} take at least {}, and {} are left; give a higher --rate (0: none) or a \
             later --deadline",
            format_bytes(limit),
            format_bytes(hydration.bytes_missing),
            humantime::format_duration(Duration::from_secs(needed)),
            humantime::format_duration(Duration::from_secs(deadline.saturating_sub(now)))
        )
    })
}

pub(super) fn deadline_text(deadline: u64, now: u64, hydration: &HydrationInfo) -> String {
    let time = format_time(deadline);
    if let Some(why) = impossible_deadline(now, hydration).filter(|_| now <= deadline && hydration.bytes_missing > 0) {
        return format!("{time}: {why}");
    }
    match hydration.eta_seconds {
        _ if hydration.bytes_missing > 0 && now > deadline => format!("{time}, missed"),
        Some(eta) if now + eta > deadline => format!("{time}, not in time at this rate"),
        _ => time,
    }
}

/// The bytes that each source of a finished hydration gave.
pub(super) fn origins_text(hydration: &HydrationInfo) -> String {
    let used = hydration.sources.iter().filter(|source| source.bytes_fetched > 0);
    let parts: Vec<_> = used.map(|source| format!("{} from {}", format_bytes(source.bytes_fetched), source.uri)).collect();
    if parts.is_empty() { String::new() } else { format!("; fetched {}", parts.join(", ")) }
}
