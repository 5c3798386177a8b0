//! Fleets and rankings, for people and for scripts.

use serde::Serialize;
use serde_json::{Value, json};
use volfork::fleet::{FleetView, Unreadable};
use volfork::format_bytes;
use volfork::placement::{FleetOptions, HostInventory, HostStatus, Nothing, Placement, Ranked, Ranking, Resources};

use super::date::format_time;
use super::stream::{json, note, text};
use super::table::{table, word};
use crate::failure::{Failure, Result};
use crate::settings::Settings;

/// Hosts that are shown unless all of them are asked for.
const HOSTS_SHOWN: usize = 10;

/// Prints `fleet list`.
pub fn view(settings: &Settings, view: &FleetView, now: u64) -> Result<()> {
    if settings.json {
        let hosts = view.hosts.iter().map(|host| {
            let mut value = value_of(host)?;
            value["status"] = json!(status(host, now));
            Ok(value)
        });
        let hosts = hosts.collect::<Result<Vec<_>>>()?;
        return json(&json!({ "hosts": hosts, "reservations": view.reservations, "unreadable": view.unreadable }));
    }
    tell_unreadable(settings, &view.unreadable);
    if settings.quiet {
        return text(&view.hosts.iter().map(|host| host.host.as_str()).collect::<Vec<_>>().join("\n"));
    }
    text(&hosts_table(&view.hosts, now))?;
    if view.reservations.is_empty() {
        return Ok(());
    }
    let rows = view.reservations.iter().map(|reservation| {
        let until = if reservation.expires_at <= now { "lapsed".into() } else { format!("{} s", reservation.expires_at - now) };
        let resources = &reservation.resources;
        let (app, volume) = (dash(&reservation.app), dash(&reservation.volume));
        vec![reservation.id.clone(), reservation.host.clone(), app, volume, cpus(resources), format_bytes(resources.volume_bytes), until]
    });
    text(&format!("\n{}", table(&["RESERVATION", "HOST", "APP", "VOLUME", "CPUS", "SIZE", "HELD FOR"], &[5], rows)))
}

fn hosts_table(hosts: &[HostInventory], now: u64) -> String {
    let of = |used: u64, all: u64| format!("{} of {}", format_bytes(used), format_bytes(all));
    let rows = hosts.iter().map(|host| {
        vec![
            host.host.clone(),
            host.region.clone(),
            host.zone.clone(),
            status(host, now),
            format!("{} of {}", cpus(&host.used), cpus(&host.capacity)),
            of(host.used.memory_bytes, host.capacity.memory_bytes),
            of(host.used.volume_bytes, host.capacity.volume_bytes),
            host.volumes.len().to_string(),
            host.snapshots.len().to_string(),
            host.layers.len().to_string(),
            format!("{} s", now.saturating_sub(host.reported_at)),
        ]
    });
    let header = ["HOST", "REGION", "ZONE", "STATUS", "CPUS", "MEMORY", "ROOM", "VOLUMES", "SNAPSHOTS", "LAYERS", "AGE"];
    table(&header, &[7, 8, 9, 10], rows)
}

/// A host of which reports are missing is `stale`, unless it has said that it stops.
fn status(host: &HostInventory, now: u64) -> String {
    match host.status != HostStatus::Unreachable && host.is_stale(now, FleetOptions::default().max_age_seconds) {
        true => "stale".into(),
        false => word(&host.status),
    }
}

fn cpus(resources: &Resources) -> String {
    match resources.cpus.len() {
        0 => "0".into(),
        1 => resources.cpus.values().sum::<u32>().to_string(),
        _ => resources.cpus.iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(" + "),
    }
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

/// The text of `fleet publish`.
pub fn published(inventory: &HostInventory) -> String {
    let HostInventory { host, region, zone, layers, snapshots, volumes, .. } = inventory;
    let (layers, snapshots, volumes) = (layers.len(), snapshots.len(), volumes.len());
    format!("host '{host}' in {region}, zone {zone}: {volumes} volumes, {snapshots} snapshots, {layers} image layers")
}

/// Prints a ranking.
///
/// # Errors
/// No host is left.
pub fn ranking(settings: &Settings, ranking: &Ranking, unreadable: &[Unreadable], all: bool) -> Result<()> {
    if settings.json {
        answer(ranking, unreadable)?;
    } else {
        tell_unreadable(settings, unreadable);
        if settings.quiet {
            text(&ranking.hosts.iter().map(|host| host.host.as_str()).collect::<Vec<_>>().join("\n"))?;
        } else {
            let shown = if all { ranking.hosts.len() } else { HOSTS_SHOWN.min(ranking.hosts.len()) };
            if shown > 0 {
                text(&ranked_table(ranking.hosts[..shown].iter(), all))?;
            }
            if shown < ranking.hosts.len() {
                note(settings, &format!("{} more hosts: --all shows them", ranking.hosts.len() - shown));
            }
            excluded(settings, ranking, all)?;
        }
    }
    match &ranking.nothing {
        None => Ok(()),
        Some(nothing) => Err(Failure::new(volfork::ErrorKind::NoSpace, why(nothing))),
    }
}

/// Why nothing could be placed.
fn why(nothing: &Nothing) -> String {
    let advice = if nothing.nearest.is_none() { " ('volfork serve --fleet' reports)" } else { "" };
    format!("{nothing}{advice}")
}

fn excluded(settings: &Settings, ranking: &Ranking, all: bool) -> Result<()> {
    match (all, ranking.excluded.len()) {
        (_, 0) => Ok(()),
        (true, _) => {
            let lines: Vec<_> = ranking.excluded.iter().map(|excluded| format!("excluded ({}): {excluded}", excluded.constraint)).collect();
            text(&format!("\n{}", lines.join("\n")))
        }
        (false, count) => {
            note(settings, &format!("excluded hosts: {count}; --all tells why"));
            Ok(())
        }
    }
}

fn ranked_table<'a>(hosts: impl Iterator<Item = &'a Ranked>, all: bool) -> String {
    let seconds = |seconds: f64| format!("{seconds:.2}");
    let coming = |missing: u64, in_flight: u64| match in_flight {
        0 => format_bytes(missing),
        _ => format!("{} + {} coming", format_bytes(missing), format_bytes(in_flight)),
    };
    let rows = hosts.map(|host| {
        let mut row = vec![host.host.clone(), host.region.clone(), host.zone.clone(), seconds(host.seconds)];
        row.push(coming(host.terms.image_bytes_missing, host.terms.image_bytes_in_flight));
        row.push(coming(host.terms.snapshot_bytes_missing, host.terms.snapshot_bytes_in_flight));
        if all {
            let terms = [
                host.terms.fetch_seconds,
                host.terms.load_seconds,
                host.terms.herd_seconds,
                host.terms.headroom_seconds,
                host.terms.spread_seconds,
            ];
            row.extend(terms.map(seconds));
            row.push(format!("{:.2}", host.cost));
            row.push(format!("{} s", host.staleness_seconds));
        }
        row
    });
    let header = ["HOST", "REGION", "ZONE", "SECONDS", "IMAGE MISSING", "SNAPSHOT MISSING"];
    let terms = ["FETCH", "LOAD", "HERD", "HEADROOM", "SPREAD", "COST", "AGE"];
    let header: Vec<_> = header.into_iter().chain(terms.into_iter().filter(|_| all)).collect();
    table(&header, &[3, 4, 5, 6, 7, 8, 9, 10, 11, 12], rows)
}

/// Prints where machines were placed, and what is held for them.
///
/// # Errors
/// Some were not.
pub fn placement(settings: &Settings, placement: &Placement, unreadable: &[Unreadable]) -> Result<()> {
    if settings.json {
        answer(placement, unreadable)?;
    } else {
        tell_unreadable(settings, unreadable);
        if settings.quiet {
            let lines = placement.placed.iter().map(|placed| format!("{} {}", placed.reservation.id, placed.reservation.host));
            text(&lines.collect::<Vec<_>>().join("\n"))?;
        } else if !placement.placed.is_empty() {
            let rows = placement.placed.iter().map(|placed| {
                let reservation = &placed.reservation;
                let until = format_time(reservation.expires_at);
                [vec![reservation.id.clone()], place_of(&placed.ranked), vec![until]].concat()
            });
            text(&table(&["RESERVATION", "HOST", "REGION", "ZONE", "SECONDS", "HELD UNTIL"], &[4], rows))?;
        }
    }
    left(placement)
}

/// Prints where machines would be placed; nothing is held for them.
///
/// # Errors
/// Some would not be.
pub fn placed(settings: &Settings, placement: &Placement, unreadable: &[Unreadable]) -> Result<()> {
    if settings.json {
        let mut value = value_of(placement)?;
        for placed in value["placed"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            placed.remove("reservation");
        }
        answer(&value, unreadable)?;
    } else {
        tell_unreadable(settings, unreadable);
        if settings.quiet {
            text(&placement.placed.iter().map(|placed| placed.ranked.host.as_str()).collect::<Vec<_>>().join("\n"))?;
        } else if !placement.placed.is_empty() {
            let rows = placement.placed.iter().map(|placed| place_of(&placed.ranked));
            text(&table(&["HOST", "REGION", "ZONE", "SECONDS"], &[3], rows))?;
        }
    }
    left(placement)
}

fn place_of(ranked: &Ranked) -> Vec<String> {
    vec![ranked.host.clone(), ranked.region.clone(), ranked.zone.clone(), format!("{:.2}", ranked.seconds)]
}

/// Fails if some have no host.
fn left(placement: &Placement) -> Result<()> {
    if placement.left == 0 {
        return Ok(());
    }
    let why = placement.nothing.as_ref().map(why).or_else(|| placement.refused.clone());
    let why = why.unwrap_or_else(|| "no host is left".into());
    let (placed, left) = (placement.placed.len(), placement.left);
    Err(Failure::new(volfork::ErrorKind::NoSpace, format!("{placed} placed, {left} not: {why}")))
}

fn value_of(answer: &impl Serialize) -> Result<Value> {
    serde_json::to_value(answer).map_err(|error| Failure::io("print", error))
}

/// Prints an answer as JSON, with what could not be read for it.
fn answer(answer: &impl Serialize, unreadable: &[Unreadable]) -> Result<()> {
    let mut value = value_of(answer)?;
    value["unreadable"] = json!(unreadable);
    json(&value)
}

fn tell_unreadable(settings: &Settings, unreadable: &[Unreadable]) {
    for Unreadable { object, reason } in unreadable {
        note(settings, &format!("left out: {object}: {reason}"));
    }
}
