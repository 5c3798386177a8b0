//! Volumes and snapshots as they are printed.

use std::time::Duration;

use comfy_table::{Table, presets};
use volfork::format_bytes;
use volfork::serve::ClientInfo;
use volfork::volume::{FetchedBytes, HydrationInfo, HydrationPriority, HydrationState, LeaseInfo, SnapshotInfo, VolumeInfo, VolumeLimits};

use super::date::format_time;
use super::hydration::{deadline_text, hydration_text, unix_now};
use super::table::{flush_left, percent, table, word};

fn stored_bytes(info: &VolumeInfo) -> u64 {
    info.blocks.present.saturating_mul(u64::from(info.block_size))
}

pub(super) fn volumes_table(list: &[VolumeInfo]) -> String {
    let rows = list.iter().map(|info| {
        let state = match info.hydration.state {
            HydrationState::Paused | HydrationState::Stopped | HydrationState::NoSpace => word(&info.hydration.state).replace('_', " "),
            _ => word(&info.state),
        };
        let state = match info.hydration.bytes_missing {
            0 => state,
            missing => format!("{state} {}%", percent(info.size_bytes.saturating_sub(missing), info.size_bytes)),
        };
        vec![
            info.name.clone(),
            format_bytes(info.size_bytes),
            format_bytes(stored_bytes(info)),
            state,
            info.snapshots.len().to_string(),
            info.leases.len().to_string(),
            info.source.clone().or_else(|| info.parent.clone()).unwrap_or_else(|| "-".into()),
            format_time(info.created_at),
        ]
    });
    table(&["NAME", "SIZE", "DATA", "STATE", "SNAPSHOTS", "LEASES", "FROM", "CREATED"], &[1, 2, 4, 5], rows)
}

pub(super) fn snapshots_table(list: &[SnapshotInfo]) -> String {
    let rows = list.iter().map(|info| {
        vec![
            format!("{}@{}", info.volume, info.name),
            format_bytes(info.size_bytes),
            info.blocks.unique.to_string(),
            info.leases.len().to_string(),
            format_time(info.created_at),
        ]
    });
    table(&["NAME", "SIZE", "UNIQUE BLOCKS", "LEASES", "CREATED"], &[1, 2, 3], rows)
}

pub(super) fn volume_table(info: &VolumeInfo, connections: &[ClientInfo]) -> String {
    let hydration = &info.hydration;
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let mut rows = vec![
        ("name", info.name.clone()),
        ("id", info.id.clone()),
        ("state", word(&info.state)),
        ("size", format!("{} ({} bytes)", format_bytes(info.size_bytes), info.size_bytes)),
        ("block size", info.block_size.to_string()),
        ("created", format_time(info.created_at)),
        ("parent", or_none(&info.parent)),
        ("source", source_text(info)),
        ("layers", info.depth.to_string()),
        ("snapshots", if info.snapshots.is_empty() { "-".into() } else { info.snapshots.join(", ") }),
        ("blocks", format!("{} present, {} zero, {} missing", info.blocks.present, info.blocks.zero, info.blocks.missing)),
        ("", format!("{} unique, {} shared", info.blocks.unique, info.blocks.shared)),
        ("hydration", hydration_text(info)),
    ];
    let labels = info.labels.iter().map(|(key, value)| format!("{key}={value}"));
    rows.extend(labels.enumerate().map(|(number, label)| (if number == 0 { "labels" } else { "" }, label)));
    rows.extend(limits_text(&info.limits).map(|limits| ("limits", limits)));
    if let Some(limit) = hydration.rate_limit_bytes_per_second {
        rows.push(("rate limit", format!("{}/s", format_bytes(limit))));
    }
    if let Some(deadline) = hydration.deadline {
        rows.push(("deadline", deadline_text(deadline, unix_now(), hydration)));
    }
    if hydration.priority != HydrationPriority::Normal {
        rows.push(("priority", word(&hydration.priority)));
    }
    if hydration.bytes_fetched > 0 {
        let FetchedBytes { demand, ahead, trace, backfill } = hydration.fetched;
        let parts = [("for readers", demand), ("ahead of them", ahead), ("by trace", trace), ("in order", backfill)];
        let parts = parts.into_iter().filter(|(_, bytes)| *bytes > 0);
        rows.push(("fetched", parts.map(|(what, bytes)| format!("{} {what}", format_bytes(bytes))).collect::<Vec<_>>().join(", ")));
    }
    if let Some(error) = &hydration.last_error {
        rows.push(("last error", error.clone()));
    }
    rows.push(("leases", info.leases.len().to_string()));
    rows.extend(info.leases.iter().map(|lease| ("", lease_text(&info.name, lease))));
    rows.push(("connections", connections.len().to_string()));
    rows.extend(connections.iter().map(|client| ("", client_text(client))));
    let mut table = Table::new();
    table.load_style(presets::NOTHING).add_rows(rows.into_iter().map(|(key, value)| vec![key.to_string(), value]));
    let mut text = flush_left(table);
    if !hydration.sources.is_empty() {
        text += &format!("\n\n{}", sources_table(hydration));
    }
    text
}

/// Where blocks come from, and what that means.
fn source_text(info: &VolumeInfo) -> String {
    let source = info.source.clone().unwrap_or_else(|| "-".into());
    if info.live_source { format!("{source} (live source: blocks are of different instants)") } else { source }
}

/// The limits of its clients, if there are some.
pub(super) fn limits_text(limits: &VolumeLimits) -> Option<String> {
    let parts = [
        limits.iops.map(|iops| format!("{iops} iops")),
        limits.bytes_per_second.map(|bytes| format!("{}/s", format_bytes(bytes))),
        limits.burst_millis.map(|burst| format!("burst {}", humantime::format_duration(Duration::from_millis(burst)))),
    ];
    limits.is_some().then(|| parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

/// A connected client.
fn client_text(client: &ClientInfo) -> String {
    let name = client.certificate.as_ref().map(|name| format!(" with the certificate of '{name}'")).unwrap_or_default();
    format!("'{}' from {}{name}", client.export, client.address)
}

/// A fork elsewhere that needs a snapshot.
fn lease_text(volume: &str, lease: &LeaseInfo) -> String {
    let LeaseInfo { snapshot, fork, host, address, lapses_at, .. } = lease;
    format!("'{volume}@{snapshot}' for '{fork}' of host {host} ({address}), until {} if not renewed", format_time(*lapses_at))
}

fn sources_table(hydration: &HydrationInfo) -> String {
    let rows = hydration.sources.iter().map(|source| {
        let round_trip = source.round_trip_micros.map_or_else(|| "-".into(), |micros| format!("{:.1} ms", micros as f64 / 1000.0));
        let state = match (hydration.state, source.failing, source.refused) {
            (HydrationState::None, _, _) => "done",
            (_, true, true) => "refused",
            (_, true, false) => "failing",
            (_, false, _) => "ok",
        };
        vec![source.uri.clone(), state.into(), format_bytes(source.bytes_fetched), source.errors.to_string(), round_trip]
    });
    table(&["SOURCE", "STATE", "FETCHED", "ERRORS", "ROUND TRIP"], &[2, 3, 4], rows)
}
