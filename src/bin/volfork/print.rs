//! Everything that goes to standard output, for people or for scripts.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::{Value, json};
use volfork::format_bytes;
use volfork::serve::ClientInfo;
use volfork::store::{AffectedBlocks, ScrubReport};
use volfork::volume::{
    Event, EventKind, FetchedBytes, HydrationInfo, HydrationPriority, HydrationState, LeaseInfo, SnapshotInfo, VolumeInfo,
};

use crate::date::format_time;
use crate::failure::{Failure, Result};
use crate::request::{Disconnected, Done, Moved, Request, Response};
use crate::settings::Settings;

/// The largest block that clients and guests are used with.
const CLIENT_BLOCK_BYTES: u64 = 4096;

/// Prints the answer to `request`.
pub fn response(settings: &Settings, request: &Request, response: &Response) -> Result<()> {
    // The image itself may be on standard output.
    if let (Request::Export { .. }, Response::Moved(moved)) = (request, response) {
        return match (settings.json, settings.quiet) {
            (true, _) => to(io::stderr(), &one_line(moved)?),
            (false, true) => Ok(()),
            (false, false) => to(io::stderr(), &moved_text("exported", moved)),
        };
    }
    if let Some(text) = odd_size(response) {
        note(settings, &text);
    }
    if settings.json {
        return as_json(response);
    }
    match response {
        #[cfg(feature = "images")]
        Response::Image(response) => text(&crate::image::as_text(settings, response)),
        Response::Volumes(list) if settings.quiet => lines(list.iter().map(|info| info.name.as_str())),
        Response::Snapshots(list) if settings.quiet => lines(list.iter().map(|info| info.name.as_str())),
        Response::Volumes(list) => text(&volumes_table(list)),
        Response::Snapshots(list) => text(&snapshots_table(list)),
        Response::Trace(target, info) => text(&crate::trace::as_text(target, info)),
        Response::Shown(shown) => text(&volume_table(&shown.info, &shown.connections)),
        Response::Scrubbed(report) if !report.errors.is_empty() => text(&scrub_text(report)),
        _ if settings.quiet => Ok(()),
        Response::Volume(done, info) => text(&done_text(*done, info)),
        Response::Snapshot(info) => text(&format!("took snapshot '{}@{}' of {}", info.volume, info.name, format_bytes(info.size_bytes))),
        Response::Moved(moved) => text(&moved_text("imported", moved)),
        Response::Origin(origin) => text(&one_line(origin)?),
        Response::Destroyed(target) => text(&format!("destroyed '{target}'")),
        Response::Disconnected(Disconnected { name, connections: 0 }) => text(&format!("nobody was connected to '{name}'")),
        Response::Disconnected(Disconnected { name, connections }) => text(&format!("ended {connections} connections to '{name}'")),
        Response::Scrubbed(report) => text(&scrub_text(report)),
    }
}

/// What is to be said of a new size that not every client reaches to its end.
fn odd_size(response: &Response) -> Option<String> {
    let (name, size_bytes) = match response {
        Response::Volume(Done::Created | Done::Extended, info) => (&info.name, info.size_bytes),
        Response::Moved(moved) => (&moved.name, moved.size_bytes),
        _ => return None,
    };
    let over = size_bytes % CLIENT_BLOCK_BYTES;
    (over > 0).then(|| {
        let fitting = size_bytes.next_multiple_of(CLIENT_BLOCK_BYTES);
        format!(
            "note: {size_bytes} bytes are no multiple of {CLIENT_BLOCK_BYTES}, so a client with blocks of that size does not reach the \
             last {over}: 'volfork extend {name} --size {fitting}B' makes room"
        )
    })
}

/// Prints `value` as one JSON document.
pub fn json(value: &impl Serialize) -> Result<()> {
    to(io::stdout().lock(), &one_line(value)?)
}

/// A line of the log of a process, for scripts: when, what, and what belongs to it.
pub fn log(event: &str, about: &Value) -> Value {
    let mut line = json!({ "time": humantime::format_rfc3339_millis(SystemTime::now()).to_string(), "event": event });
    if let (Some(line), Some(about)) = (line.as_object_mut(), about.as_object()) {
        line.extend(about.clone());
    }
    line
}

/// What happened, for people.
fn event_text(event: &Event) -> String {
    let volumes = event.volumes.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    let what = match (event.kind, &event.error) {
        (EventKind::Hydrated, _) => "hydrated, the source is not needed any more".to_owned(),
        (EventKind::Recovered, _) => "fetching goes on".into(),
        (EventKind::NoSpace, error) => {
            format!("{}; fetching goes on by itself when there is space", error.as_deref().unwrap_or("no space for what is fetched"))
        }
        (EventKind::Degraded, error) => {
            format!("no source answers, trying again: {}", error.as_deref().unwrap_or("reason unknown"))
        }
        (EventKind::Restricted, None) => "other users could use files of the store: from now on its owner alone can".into(),
        (EventKind::Restricted, Some(error)) => format!("other users may be able to use files of the store: {error}"),
    };
    if event.volumes.is_empty() { what } else { format!("volume {volumes}: {what}") }
}

/// Prints what happened in the background: for scripts as a line of JSON, for people on standard error.
pub fn event(settings: &Settings, event: &Event) {
    // Nobody is left to be told that a stream does not take the line.
    let _ = match (settings.json, settings.quiet) {
        (true, _) => json(&log(&word(&event.kind), &json!({ "volumes": event.volumes, "error": event.error }))),
        (false, true) => Ok(()),
        (false, false) => to(io::stderr(), &event_text(event)),
    };
}

/// Prints what a command met when it opened the store, beside its answer. What else happens, the answer tells.
pub fn event_at_opening(settings: &Settings, event: &Event) {
    if event.kind == EventKind::Restricted {
        note(settings, &event_text(event));
    }
}

/// Prints lines for people.
pub fn text(text: &str) -> Result<()> {
    to(io::stdout().lock(), text)
}

/// Tells something beside the answer.
pub fn note(settings: &Settings, text: &str) {
    match (settings.quiet, settings.json) {
        (true, _) => {}
        (false, true) => note_json(text),
        // Nobody is left to be told that stderr does not take the line.
        (false, false) => drop(to(io::stderr(), text)),
    }
}

/// As [`note`], for scripts.
pub fn note_json(text: &str) {
    // As there.
    let _ = to(io::stderr(), &log("note", &json!({ "message": text })).to_string());
}

/// Prints why the command failed.
pub fn failure(json: bool, failure: &Failure) {
    let text = match json {
        true => json!({ "error": { "kind": failure.kind, "message": failure.message } }).to_string(),
        false => format!("error: {failure}"),
    };
    // Nobody is left to be told that stderr does not take the line.
    let _ = to(io::stderr(), &text);
}

/// A reader that has seen enough closes the pipe, which is no failure.
fn to(mut stream: impl Write, text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    match stream.write_all(text.as_bytes()).and_then(|()| stream.write_all(b"\n")).and_then(|()| stream.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| Failure::io("print", error)),
    }
}

fn one_line(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Failure::io("print", error))
}

fn as_json(response: &Response) -> Result<()> {
    match response {
        Response::Shown(shown) => json(shown),
        Response::Disconnected(disconnected) => json(disconnected),
        Response::Volume(_, info) => json(info),
        Response::Snapshot(info) => json(info),
        Response::Volumes(list) => json(list),
        Response::Snapshots(list) => json(list),
        Response::Moved(moved) => json(moved),
        Response::Destroyed(target) => json(&json!({ "destroyed": target.to_string() })),
        Response::Scrubbed(report) => json(report),
        Response::Origin(origin) => json(origin),
        Response::Trace(_, info) => json(info),
        #[cfg(feature = "images")]
        Response::Image(response) => json(&crate::image::as_json(response)),
    }
}

fn lines<'a>(names: impl Iterator<Item = &'a str>) -> Result<()> {
    text(&names.collect::<Vec<_>>().join("\n"))
}

/// A plain table; `right` are the columns of numbers.
pub fn table(header: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied()).add_rows(rows);
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    flush_left(table)
}

/// Without the space that would stand before the first column.
fn flush_left(mut table: Table) -> String {
    if let Some(column) = table.column_mut(0) {
        column.set_padding((0, 1));
    }
    table.trim_fmt()
}

/// The word of JSON for a state.
pub fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(Into::into)).unwrap_or_default()
}

fn stored_bytes(info: &VolumeInfo) -> u64 {
    info.blocks.present.saturating_mul(u64::from(info.block_size))
}

fn volumes_table(list: &[VolumeInfo]) -> String {
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

fn snapshots_table(list: &[SnapshotInfo]) -> String {
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

fn volume_table(info: &VolumeInfo, connections: &[ClientInfo]) -> String {
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
    rows.extend(connections.iter().map(|client| ("", format!("'{}' from {}", client.export, client.address))));
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

fn hydration_text(info: &VolumeInfo) -> String {
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

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A deadline that cannot be met because of the rate limit that was set.
fn impossible_deadline(now: u64, hydration: &HydrationInfo) -> Option<String> {
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

fn deadline_text(deadline: u64, now: u64, hydration: &HydrationInfo) -> String {
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

fn done_text(done: Done, info: &VolumeInfo) -> String {
    let (name, size) = (&info.name, format_bytes(info.size_bytes));
    match done {
        Done::Created => format!("created volume '{name}' of {size}"),
        Done::Forked if info.hydration.bytes_missing > 0 => {
            let missing = format_bytes(info.hydration.bytes_missing);
            let next = match info.hydration.state {
                // It shares its blocks with a fork of the same snapshot.
                HydrationState::Paused => format!("paused with the others of this snapshot, 'volfork hydrate {name} --resume' goes on"),
                _ => format!("keep 'volfork serve' or 'volfork hydrate {name} --wait' running"),
            };
            format!("forked '{name}' of {size}; usable now, {missing} to fetch: {next}")
        }
        Done::Forked => format!("forked '{name}' of {size}"),
        Done::Extended => format!("volume '{name}' has {size}"),
        Done::Renamed => format!("the volume's name is '{name}'"),
        Done::Hydrated if info.hydration.state == HydrationState::None => {
            format!("volume '{name}' has all of its {size} and needs no source{}", origins_text(&info.hydration))
        }
        Done::Hydrated => {
            let warning = impossible_deadline(unix_now(), &info.hydration).map(|why| format!("\nwarning: {why}"));
            format!("volume '{name}': {}{}", hydration_text(info), warning.unwrap_or_default())
        }
    }
}

/// What came from where, of a hydration that is over.
fn origins_text(hydration: &HydrationInfo) -> String {
    let used = hydration.sources.iter().filter(|source| source.bytes_fetched > 0);
    let parts: Vec<_> = used.map(|source| format!("{} from {}", format_bytes(source.bytes_fetched), source.uri)).collect();
    if parts.is_empty() { String::new() } else { format!("; fetched {}", parts.join(", ")) }
}

fn moved_text(verb: &str, moved: &Moved) -> String {
    format!(
        "{verb} '{}': {}, of it {} data, in {:.2} s",
        moved.name,
        format_bytes(moved.size_bytes),
        format_bytes(moved.data_bytes),
        moved.seconds
    )
}

fn scrub_text(report: &ScrubReport) -> String {
    let mut lines = report.errors.clone();
    if report.blocks_damaged > lines.len() as u64 {
        lines.push(format!("{} further damaged blocks", report.blocks_damaged - lines.len() as u64));
    }
    for (name, AffectedBlocks { blocks_damaged, blocks_repaired }) in &report.affected {
        let parts = [(blocks_damaged, "damaged"), (blocks_repaired, "repaired")];
        let parts = parts.into_iter().filter(|(count, _)| **count > 0).map(|(count, what)| format!("{count} {what}"));
        lines.push(format!("{name}: {}", parts.collect::<Vec<_>>().join(", ")));
    }
    let verdict = if report.blocks_damaged == 0 { "no damage left".into() } else { format!("{} damaged", report.blocks_damaged) };
    lines.push(format!("{} blocks verified, {} repaired, {verdict}", report.blocks_verified, report.blocks_repaired));
    lines.join("\n")
}

fn percent(part: u64, whole: u64) -> u64 {
    (u128::from(part) * 100 / u128::from(whole.max(1))) as u64
}

#[cfg(test)]
mod tests {
    use volfork::volume::{BlockCounts, SourceInfo, VolumeState};

    use super::*;

    fn info(name: &str, missing: u64) -> VolumeInfo {
        VolumeInfo {
            id: "vol_aaaaaaaaaaaaaaab".into(),
            name: name.into(),
            state: if missing == 0 { VolumeState::Created } else { VolumeState::Hydrating },
            size_bytes: 10 << 30,
            block_size: 4096,
            created_at: 0,
            parent: None,
            source: None,
            live_source: false,
            leases: Vec::new(),
            depth: 1,
            snapshots: vec!["one".into()],
            labels: [].into(),
            blocks: BlockCounts { present: 512, ..BlockCounts::default() },
            hydration: HydrationInfo { bytes_missing: missing, ..HydrationInfo::default() },
        }
    }

    #[test]
    fn tables_are_plain_and_complete() {
        let printed = volumes_table(&[info("first", 0), info("second", 5 << 30)]);
        let lines: Vec<&str> = printed.lines().collect();
        assert!(lines[0].starts_with("NAME") && lines[0].ends_with("CREATED"), "{printed}");
        assert!(lines[1].contains("first") && lines[1].contains("10.0 GiB") && lines[1].contains("2.0 MiB"), "{printed}");
        assert!(lines[2].contains("hydrating 50%"), "{printed}");
        assert!(volume_table(&info("first", 0), &[]).contains("vol_aaaaaaaaaaaaaaab"));
    }

    #[test]
    fn leases_and_live_sources_are_told() {
        let (snapshot, fork, host, address) = ("s".into(), "f".into(), "far".into(), "10.0.0.9:4711".into());
        let lease = LeaseInfo { snapshot, fork, host, address, renewed_at: 0, lapses_at: 0 };
        let leased = VolumeInfo { live_source: true, leases: vec![lease], ..info("v", 0) };
        let printed = volume_table(&leased, &[]);
        assert!(printed.contains("'v@s' for 'f' of host far (10.0.0.9:4711), until "), "{printed}");
        assert!(printed.contains("live source: blocks are of different instants"), "{printed}");
        let printed = volumes_table(&[leased]);
        let columns: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!((columns[0][5], columns[1][7]), ("LEASES", "1"), "{printed}");
    }

    #[test]
    fn a_fork_that_hydrates_says_what_to_do() {
        assert!(done_text(Done::Forked, &info("new", 1 << 30)).contains("volfork hydrate new --wait"));
        assert_eq!(done_text(Done::Forked, &info("new", 0)), "forked 'new' of 10.0 GiB");
        let mut paused = info("new", 1 << 30);
        paused.hydration.state = HydrationState::Paused;
        assert!(done_text(Done::Forked, &paused).contains("volfork hydrate new --resume"));
    }

    #[test]
    fn a_deadline_that_will_not_be_met_says_so() {
        let mut hydration = HydrationInfo { bytes_missing: 1, eta_seconds: Some(50), ..HydrationInfo::default() };
        assert_eq!(deadline_text(1050, 1000, &hydration), format_time(1050));
        assert!(deadline_text(1049, 1000, &hydration).ends_with("not in time at this rate"));
        assert!(deadline_text(999, 1000, &hydration).ends_with("missed"));
        (hydration.bytes_missing, hydration.eta_seconds) = (0, None);
        assert_eq!(deadline_text(999, 1000, &hydration), format_time(999));
    }

    #[test]
    fn a_list_says_what_keeps_a_hydration_from_going_on() {
        for (state, text) in [
            (HydrationState::Paused, "paused 50%"),
            (HydrationState::Stopped, "stopped 50%"),
            (HydrationState::NoSpace, "no space 50%"),
            (HydrationState::Running, "hydrating 50%"),
        ] {
            let mut info = info("v", 5 << 30);
            info.hydration.state = state;
            let printed = volumes_table(&[info]);
            assert!(printed.contains(text), "{printed}");
        }
    }

    #[test]
    fn a_deadline_that_the_rate_limit_forbids_is_not_taken_in_silence() {
        let mut info = info("v", 100 << 20);
        info.hydration.state = HydrationState::Running;
        info.hydration.rate_limit_bytes_per_second = Some(1 << 20);
        info.hydration.deadline = Some(unix_now() + 30);
        let text = done_text(Done::Hydrated, &info);
        assert!(text.contains("rate limit of 1.0 MiB/s") && text.contains("take at least 1m 40s") && text.contains("--deadline"), "{text}");
        assert!(volume_table(&info, &[]).contains("keeps it from its deadline"));
        info.hydration.deadline = Some(unix_now() + 3600);
        assert!(!done_text(Done::Hydrated, &info).contains("deadline"));
        info.hydration.rate_limit_bytes_per_second = None;
        info.hydration.deadline = Some(unix_now() + 30);
        assert!(!done_text(Done::Hydrated, &info).contains("deadline"));
    }

    #[test]
    fn a_hydration_that_is_over_says_what_came_from_where() {
        let source = |uri: &str, bytes_fetched, errors| SourceInfo {
            uri: uri.into(),
            failing: false,
            bytes_fetched,
            errors,
            round_trip_micros: Some(1500),
            last_error: None,
            refused: false,
        };
        let sources = vec![source("nbd://a/v", 3 << 20, 0), source("nbd://b/v", 0, 7)];
        let mut info = info("v", 0);
        info.hydration = HydrationInfo { bytes_fetched: 3 << 20, sources, ..HydrationInfo::default() };
        let table = volume_table(&info, &[]);
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(lines.contains(&vec!["nbd://a/v", "done", "3.0", "MiB", "0", "1.5", "ms"]), "{table}");
        assert!(lines.contains(&vec!["nbd://b/v", "done", "0", "B", "7", "1.5", "ms"]), "{table}");
        assert!(done_text(Done::Hydrated, &info).ends_with("needs no source; fetched 3.0 MiB from nbd://a/v"));
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        to(writer, "nobody reads this").unwrap();
    }
}
