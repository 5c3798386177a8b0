//! The answer to a request, for people or for scripts.

use std::io;

use serde_json::json;
use volfork::format_bytes;
use volfork::store::{AffectedBlocks, ScrubReport};
use volfork::volume::{HydrationState, VolumeInfo};

use super::hydration::{hydration_text, impossible_deadline, origins_text, unix_now};
use super::stream::{json as print_json, note, one_line, text, to};
use super::volume::{limits_text, snapshots_table, volume_table, volumes_table};
use crate::failure::Result;
use crate::request::Request;
use crate::request::response::{Disconnected, Done, Moved, Response};
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
        Response::Image(response) => text(&super::image::as_text(settings, response)),
        Response::Volumes(list) if settings.quiet => lines(list.iter().map(|info| info.name.as_str())),
        Response::Snapshots(list) if settings.quiet => lines(list.iter().map(|info| info.name.as_str())),
        Response::Volumes(list) => text(&volumes_table(list)),
        Response::Snapshots(list) => text(&snapshots_table(list)),
        Response::Trace(target, info) => text(&super::trace::as_text(target, info)),
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
        Response::Replaced => Ok(()),
        Response::Scrubbed(report) => text(&scrub_text(report)),
    }
}

/// A note about a new size whose end clients with larger blocks cannot reach.
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

fn as_json(response: &Response) -> Result<()> {
    match response {
        Response::Shown(shown) => print_json(shown),
        Response::Disconnected(disconnected) => print_json(disconnected),
        Response::Replaced => Ok(()),
        Response::Volume(_, info) => print_json(info),
        Response::Snapshot(info) => print_json(info),
        Response::Volumes(list) => print_json(list),
        Response::Snapshots(list) => print_json(list),
        Response::Moved(moved) => print_json(moved),
        Response::Destroyed(target) => print_json(&json!({ "destroyed": target.to_string() })),
        Response::Scrubbed(report) => print_json(report),
        Response::Origin(origin) => print_json(origin),
        Response::Trace(_, info) => print_json(info),
        #[cfg(feature = "images")]
        Response::Image(response) => print_json(&super::image::as_json(response)),
    }
}

fn lines<'a>(names: impl Iterator<Item = &'a str>) -> Result<()> {
    text(&names.collect::<Vec<_>>().join("\n"))
}

pub(super) fn done_text(done: Done, info: &VolumeInfo) -> String {
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
        Done::Limited => match limits_text(&info.limits) {
            Some(limits) => format!("volume '{name}': {limits}"),
            None => format!("volume '{name}' has no limits"),
        },
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
