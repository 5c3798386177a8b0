//! `volfork place`: from arguments, a source and a fleet to a ranking or a reservation.

use std::iter;
use std::ops::Range;

use roaring::RoaringBitmap;
use volfork::ErrorKind;
use volfork::content::Image;
use volfork::fleet::{FleetView, SharedFleet};
use volfork::placement::{
    Bandwidth, FleetOptions, HeldSnapshot, HostInventory, HostStatus, MachineHints, Policy, Request as Need, SnapshotNeed, SnapshotOrigin,
};
use volfork::source::{About, Source, SourceError};

use super::facts::now;
use super::layers;
use crate::act::origin::chosen_ranges;
use crate::ask::ask;
use crate::ask::sources::sources;
use crate::cli::fleet::PlaceArguments;
use crate::cli::plan::FileArgument;
use crate::failure::{Failure, Result};
use crate::request::Request;
use crate::request::origin::Origin;
use crate::request::response::Response;
use crate::settings::Settings;
use crate::show::{fleet as show, stream};

/// The region that stands for all that are not named.
const ANY_REGION: &str = "any";

/// Ranks, and reserves if that was asked for.
///
/// # Errors
/// No host is left.
pub fn place(settings: &Settings, arguments: &PlaceArguments) -> Result<()> {
    let origin = find_origin(settings, arguments)?;
    let told = arguments.hints.clone().hints();
    let hints = match &origin {
        Some(origin) => told.or_labels(&origin.labels)?,
        None => told,
    };
    let image = find_image(settings, arguments, &hints)?;
    let fleet = SharedFleet::open(&arguments.fleet.fleet)?;
    let view = fleet.load()?;
    let need = need(arguments, &view, origin, hints, image)?;
    let policy = policy(arguments)?;
    let options = FleetOptions::default()
        .with_max_age_seconds(arguments.max_age.as_secs().max(1))
        .with_reservation_seconds(arguments.ttl.as_secs().max(1));
    if arguments.reserve {
        fleet.check_clock(now)?;
        let placement = fleet.place_in(&view, &need, &policy, options, now())?;
        return show::placement(settings, &placement, &view.unreadable);
    }
    let now = now();
    let mut hosts = view.fleet(options, now);
    if need.count > 1 {
        // Each of them is placed as if the ones before were there.
        return show::placed(settings, &hosts.place(&need, &policy, now), &view.unreadable);
    }
    show::ranking(settings, &hosts.rank(&need, &policy, now), &view.unreadable, arguments.explain)
}

fn find_origin(settings: &Settings, arguments: &PlaceArguments) -> Result<Option<Origin>> {
    if let Some(source) = arguments.local_source() {
        let target = source.parse().map_err(|error: String| Failure::new(ErrorKind::InvalidInput, error))?;
        return match ask(settings, Request::Origin { target }, FileArgument::None, false)? {
            Response::Origin(origin) => Ok(Some(origin)),
            _ => Err(Failure::new(ErrorKind::Unsupported, "the process that serves the store is another version of volfork")),
        };
    }
    arguments.source.as_deref().map(|uri| origin_at(settings, uri)).transpose()
}

fn find_image(settings: &Settings, arguments: &PlaceArguments, hints: &MachineHints) -> Result<Option<Image>> {
    if let Some(path) = &arguments.image_layers {
        return layers::read(path).map(Some);
    }
    let Some(reference) = &hints.image else { return Ok(None) };
    match layers::resolve(reference) {
        // It was not asked for, but inherited: hosts can be compared without it.
        Err(failure) if arguments.hints.compute_image.is_none() => {
            stream::note(settings, &format!("hosts are compared without the image of the source: {failure}"));
            Ok(None)
        }
        resolved => resolved.map(Some),
    }
}

fn policy(arguments: &PlaceArguments) -> Result<Policy> {
    match (arguments.policy, arguments.weights) {
        (policy, None) => Ok(policy),
        (Policy::StartTime(_), Some(weights)) => Ok(Policy::StartTime(weights)),
        (policy, Some(_)) => Err(Failure::new(
            ErrorKind::InvalidInput,
            format!("the policy {policy} has no weights: leave --weights out, or use start-time"),
        )),
    }
}

/// The request for placement.
fn need(arguments: &PlaceArguments, view: &FleetView, origin: Option<Origin>, hints: MachineHints, image: Option<Image>) -> Result<Need> {
    let size_bytes = arguments.size.or(origin.as_ref().map(|origin| origin.size_bytes)).unwrap_or(0);
    if let Some(origin) = origin.as_ref().filter(|origin| origin.size_bytes > size_bytes) {
        let message = format!("the source has {} bytes, and a fork is not smaller: give a larger --size", origin.size_bytes);
        return Err(Failure::new(ErrorKind::InvalidInput, message));
    }
    let MachineHints { compute, app, require_unique_zone, unique_zone_app_wide, .. } = hints;
    let regions = match (&origin, &arguments.region[..]) {
        (Some(origin), []) => region_of(view, &origin.store),
        (_, named) => regions(named, view),
    };
    let snapshot = origin.and_then(|origin| snapshot_need(view, origin));
    Ok(Need {
        // Asking twice gives the same answer; another volume is spread elsewhere if hosts are equal.
        id: format!("{app}/{}", arguments.volume),
        app,
        volume: arguments.volume.clone(),
        regions,
        volume_bytes: size_bytes,
        compute,
        image,
        snapshot,
        require_unique_zone,
        unique_zone_app_wide,
        count: arguments.count,
    })
}

/// `any` stands for all regions that are not named, in the order of their names.
fn regions(named: &[String], view: &FleetView) -> Vec<String> {
    match named.iter().position(|region| region == ANY_REGION) {
        None => named.to_vec(),
        Some(0) => Vec::new(),
        Some(at) => {
            let mut regions = named[..at].to_vec();
            let mut others: Vec<_> = view.hosts.iter().map(|host| host.region.clone()).collect();
            others.sort_unstable();
            others.dedup();
            others.retain(|region| !regions.contains(region));
            regions.extend(others);
            regions
        }
    }
}

/// The region of the host that has a store; none if no host says so.
fn region_of(view: &FleetView, store: &str) -> Vec<String> {
    let has_it = |host: &&HostInventory| !store.is_empty() && host.store == store;
    // A host that was given another name may have left a report behind.
    let host = view.hosts.iter().filter(has_it).max_by_key(|host| host.reported_at);
    host.map(|host| host.region.clone()).into_iter().collect()
}

/// Of an export elsewhere.
fn origin_at(settings: &Settings, uri: &str) -> Result<Origin> {
    let wrong = |error: SourceError| Failure::new(ErrorKind::SourceLost, error.to_string());
    let source = sources(settings).open(uri).map_err(wrong)?;
    let About { store, live, labels } = source.about();
    let identity = source.identity().or(Some(live)).filter(|identity| !identity.is_empty());
    let first = first_of(&*source, identity.is_some());
    let size_bytes = source.size_bytes();
    source.close();
    Ok(Origin { store, identity, size_bytes, block_bytes: None, first: first.map_err(wrong)?, missing: None, labels })
}

/// The bytes that forks touched first, or all that are not zero. Hosts report presence only for bytes with an identity.
fn first_of(source: &dyn Source, is_known: bool) -> std::result::Result<Option<Vec<Range<u64>>>, SourceError> {
    match source.trace()? {
        _ if !is_known => Ok(None),
        trace if !trace.is_empty() => Ok(Some(trace)),
        _ => chosen_ranges(source.size_bytes(), |range| {
            let extents = source.extents(range)?;
            Ok(extents.into_iter().map(|extent| (extent.bytes, !extent.zero)).collect())
        })
        .map(Some),
    }
}

/// A snapshot is known to the hosts by its identity; one without is the same to all of them.
fn snapshot_need(view: &FleetView, origin: Origin) -> Option<SnapshotNeed> {
    let identity = origin.identity?;
    let held = view.hosts.iter().find_map(|host| host.snapshots.get(&identity));
    let block_bytes = origin.block_bytes.or(held.map(|held| held.block_bytes)).unwrap_or(4096);
    let blocks = |ranges: Vec<Range<u64>>| {
        let mut blocks = RoaringBitmap::new();
        for range in ranges {
            let (start, end) = (range.start / u64::from(block_bytes), range.end.div_ceil(u64::from(block_bytes)));
            blocks.insert_range(u32::try_from(start).unwrap_or(u32::MAX)..u32::try_from(end).unwrap_or(u32::MAX));
        }
        blocks
    };
    let size_bytes = origin.size_bytes;
    let first = origin.first.map(blocks);
    // Bytes that a store has written itself, and that no report names, are those of a volume as it is now. They are there, or on
    // their way through that host.
    let is_own = !origin.store.is_empty() && identity.strip_prefix(&origin.store).is_some_and(|rest| rest.starts_with('/'));
    let missing = origin.missing.or((is_own && held.is_none()).then(Vec::new));
    let at_origin = missing.map(|missing| {
        let present = (!missing.is_empty()).then(|| blocks(iter::once(0..size_bytes).collect()) - blocks(missing));
        SnapshotOrigin { store: origin.store, held: HeldSnapshot { block_bytes, size_bytes, present } }
    });
    let is_origin = |host: &HostInventory| at_origin.as_ref().is_some_and(|at| !at.store.is_empty() && at.store == host.store);
    let has_it = |host: &&HostInventory| host.snapshots.contains_key(&identity) || is_origin(host);
    let able = view.hosts.iter().filter(has_it).filter(|host| host.status != HostStatus::Unreachable);
    let upload = able.map(|host| host.bandwidth.upload);
    let source_bandwidth = match upload.fold(0, u64::saturating_add) {
        // A host outside of the fleet serves it.
        0 => Bandwidth::default().upload,
        bandwidth => bandwidth,
    };
    Some(SnapshotNeed { identity, block_bytes, size_bytes, first, source_bandwidth, origin: at_origin })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> FleetView {
        let host = |name: &str, region: &str, upload, identity: &str| HostInventory {
            host: name.into(),
            region: region.into(),
            bandwidth: Bandwidth { upload, ..Bandwidth::default() },
            snapshots: [(identity.to_owned(), HeldSnapshot { block_bytes: 8192, size_bytes: 1 << 20, present: None })].into(),
            ..HostInventory::default()
        };
        let hosts = vec![host("a", "ams", 10, "s"), host("b", "fra", 20, "s"), host("c", "waw", 40, "other")];
        FleetView { hosts, ..FleetView::default() }
    }

    #[test]
    fn any_region_comes_after_those_that_are_named() {
        let regions = |named: &str| regions(&named.split(',').map(Into::into).collect::<Vec<_>>(), &view());
        assert_eq!(regions("fra,any"), ["fra", "ams", "waw"]);
        assert_eq!(regions("any"), Vec::<String>::new());
        assert_eq!(regions("waw,ams"), ["waw", "ams"]);
    }

    #[test]
    fn a_snapshot_is_needed_in_the_blocks_of_those_who_hold_it() {
        let origin =
            Origin { identity: Some("s".into()), size_bytes: 1 << 20, first: Some(vec![0..4096, 16384..32768]), ..Origin::default() };
        let need = snapshot_need(&view(), origin.clone()).unwrap();
        assert_eq!((need.block_bytes, need.source_bandwidth), (8192, 30));
        assert_eq!(need.first.unwrap().iter().collect::<Vec<_>>(), [0, 2, 3]);
        assert_eq!(snapshot_need(&view(), Origin { identity: None, ..origin.clone() }), None);
        let unknown = snapshot_need(&view(), Origin { identity: Some("x".into()), first: None, ..origin }).unwrap();
        assert_eq!((unknown.block_bytes, unknown.first, unknown.source_bandwidth), (4096, None, Bandwidth::default().upload));
    }
}
