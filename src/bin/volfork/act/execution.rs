//! Carries out a request on an open store. Used by the command line on its own store and by the server for its clients, so that each
//! command exists once.

use std::fs::File;
use std::ops::ControlFlow;
use volfork::volume::VolumeOptions;

use volfork::volume::{ForkOptions, SnapshotInfo};
use volfork::{Error, ErrorKind, Store};

use super::clients::Clients;
use super::gate::{Admission, Forced, Gate};
use super::hydration::wait_hydrated;
#[cfg(feature = "images")]
use super::image;
use super::origin::origin;
use super::trace;
use super::transfer::export::export;
use super::transfer::import::import;
use crate::failure::{Failure, Result};
use crate::request::Request;
use crate::request::limits::LimitsChange;
use crate::request::progress::{Progress, Unit, Watcher};
use crate::request::response::{Disconnected, Done, Response, Shown};
use crate::request::size::Growth;
use crate::request::target::Target;

/// Carries out `request`; `file` belongs to an import or export, `clients` are those of the process, and `gate` is asked before a volume
/// is made or grows.
pub fn execute(
    store: &Store,
    clients: &Clients,
    request: Request,
    file: Option<File>,
    gate: &dyn Gate,
    watcher: &mut dyn Watcher,
) -> Result<Response> {
    let file = || file.ok_or_else(|| Failure::new(ErrorKind::InvalidInput, "the request came without a file"));
    match request {
        Request::Create { name, size_bytes, mut labels, limits, force } => {
            let admission = gate_of(force, gate).admit(store, &name, size_bytes, &mut labels)?;
            let options = VolumeOptions::default().with_labels(labels).with_limits(limits);
            admission.conclude(store.create_volume_with(&name, size_bytes, &options))?;
            shown(store, Done::Created, &name)
        }
        Request::Import { name, raw, force } => import(store, &name, file()?, raw, gate_of(force, gate), watcher).map(Response::Moved),
        Request::Export { target } => export(store, &target, file()?, watcher).map(Response::Moved),
        Request::List => Ok(Response::Volumes(store.list()?)),
        Request::Show { name } => Ok(Response::Shown(Box::new(Shown { info: store.show(&name)?, connections: clients.of_volume(&name) }))),
        Request::Snapshot { volume, snapshot } => {
            store.create_snapshot(&volume, &snapshot)?;
            Ok(Response::Snapshot(find_snapshot(store.snapshots(&volume)?, &snapshot)?))
        }
        Request::Snapshots { volume } => Ok(Response::Snapshots(store.snapshots(&volume)?)),
        Request::Fork { source, also, name, labels, live, size_bytes, limits, force } => {
            let (gate, mut admission) = (gate_of(force, gate), Admission::default());
            let sources = [&[source], &also[..]].concat();
            let mut options = ForkOptions::default().with_labels(labels).with_live(live).with_limits(limits);
            options.size_bytes = size_bytes;
            let forked = store.fork_admitted(&sources, &name, &options, &mut |size_bytes, labels| {
                admission = gate.admit(store, &name, size_bytes, labels)?;
                Ok(())
            });
            admission.conclude(forked)?;
            shown(store, Done::Forked, &name)
        }
        Request::Origin { target } => Ok(Response::Origin(origin(store, &target)?)),
        Request::Extend { name, growth, from, force } => {
            let (gate, mut admission) = (gate_of(force, gate), Admission::default());
            let extended = store.resize_with(&name, |size_bytes| {
                let wanted = grown(&name, size_bytes, growth, from)?;
                admission = gate.grow(store, &name, size_bytes..wanted)?;
                Ok(wanted)
            });
            admission.conclude(extended)?;
            shown(store, Done::Extended, &name)
        }
        Request::Limit { name, change } => limit(store, &name, change),
        Request::Rename { name, new } => {
            store.rename(&name, &new)?;
            shown(store, Done::Renamed, &new)
        }
        Request::Destroy { target, recursive, force } => destroy(store, clients, target, recursive, force),
        Request::Hydrate { name, control, wait, timeout_seconds } => {
            store.control_hydration(&name, &control)?;
            if wait {
                wait_hydrated(store, &name, timeout_seconds, watcher)?;
            }
            shown(store, Done::Hydrated, &name)
        }
        Request::Trace { action, target } => trace::carry_out(store, action, target),
        Request::Disconnect { target } => disconnect(store, clients, &target),
        // A process that serves does it before it comes here.
        Request::Replace { .. } => Err(Failure::new(ErrorKind::InvalidInput, "the store is not served")),
        Request::Scrub { name } => scrub(store, name.as_deref(), watcher),
        #[cfg(feature = "images")]
        Request::Image(request) => image::carry_out(store, request, watcher).map(Response::Image),
    }
}

fn gate_of(force: bool, gate: &dyn Gate) -> &dyn Gate {
    if force { &Forced } else { gate }
}

fn shown(store: &Store, done: Done, name: &str) -> Result<Response> {
    Ok(Response::Volume(done, Box::new(store.show(name)?)))
}

/// Changes limits, if any is to change.
fn limit(store: &Store, name: &str, change: LimitsChange) -> Result<Response> {
    if change != LimitsChange::default() {
        store.set_limits_with(name, |limits| Ok(change.apply(limits)))?;
    }
    shown(store, Done::Limited, name)
}

fn find_snapshot(snapshots: Vec<SnapshotInfo>, name: &str) -> Result<SnapshotInfo> {
    let found = snapshots.into_iter().rev().find(|snapshot| snapshot.name == name);
    found.ok_or_else(|| Failure::new(ErrorKind::NotFound, format!("snapshot '{name}' was destroyed at the same moment")))
}

/// The size of a volume of `size_bytes` after `growth`, which may be meant for one of `from` bytes and made already; an error if it is
/// smaller, or does not fit 64 bits.
fn grown(name: &str, size_bytes: u64, growth: Growth, from: Option<u64>) -> volfork::Result<u64> {
    let refused = |message| Err(Error::new(ErrorKind::InvalidInput, message));
    let before = from.unwrap_or(size_bytes);
    let wanted = match growth {
        Growth::To(bytes) => bytes,
        Growth::By(bytes) => match before.checked_add(bytes) {
            Some(wanted) => wanted,
            None => return refused(format!("volume '{name}' cannot grow by {bytes} bytes: give a smaller size")),
        },
    };
    if size_bytes != before && size_bytes != wanted {
        return refused(format!("volume '{name}' has {size_bytes} bytes, neither {before} nor {wanted}: look at 'volfork show {name}'"));
    }
    if wanted < size_bytes {
        return refused(format!("volume '{name}' has {size_bytes} bytes already, and extend only grows: give a larger size, or +SIZE"));
    }
    Ok(wanted)
}

fn destroy(store: &Store, clients: &Clients, target: Target, recursive: bool, force: bool) -> Result<Response> {
    let volume = target.volume.as_str();
    match &target.snapshot {
        snapshot if force => store.destroy_by_force((volume, snapshot.as_deref()), recursive, |exports| {
            exports.iter().try_for_each(|export| clients.disconnect(export).map(drop))
        })?,
        Some(snapshot) => store.destroy_snapshot(volume, snapshot)?,
        None => store.destroy_volume(volume, recursive)?,
    }
    Ok(Response::Destroyed(target))
}

/// Ends connections, if it is there.
fn disconnect(store: &Store, clients: &Clients, target: &Target) -> Result<Response> {
    let name = match &target.snapshot {
        Some(snapshot) => store.snapshot(&target.volume, snapshot)?.name(),
        None => store.volume(&target.volume)?.name(),
    };
    let connections = clients.disconnect(&name)?;
    Ok(Response::Disconnected(Disconnected { name, connections }))
}

fn scrub(store: &Store, name: Option<&str>, watcher: &mut dyn Watcher) -> Result<Response> {
    let mut told = Ok(());
    let report = store.scrub_with(name, &mut |progress| {
        let note = progress.damage.map(|names| format!("damage found: {names}"));
        told = watcher.tell(Progress { unit: Unit::Blocks, done: progress.blocks_verified, total: Some(progress.blocks_total), note });
        if told.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    told?;
    Ok(Response::Scrubbed(report))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extend_only_grows() {
        let by = |size_bytes, growth, from| grown("v", size_bytes, growth, from).map_err(|error| error.kind());
        assert_eq!(by(10, Growth::By(5), None), Ok(15));
        assert_eq!(by(10, Growth::To(10), None), Ok(10));
        for growth in [Growth::To(9), Growth::By(u64::MAX)] {
            assert_eq!(by(10, growth, None), Err(ErrorKind::InvalidInput));
        }
        // A repeated command changes nothing; a size that was set otherwise is refused.
        for (growth, size_bytes) in [(Growth::By(5), 10), (Growth::By(5), 15), (Growth::To(15), 10), (Growth::To(15), 15)] {
            assert_eq!(by(size_bytes, growth, Some(10)), Ok(15));
        }
        for (growth, size_bytes) in [(Growth::By(5), 12), (Growth::To(15), 20), (Growth::To(9), 10), (Growth::By(u64::MAX), 10)] {
            assert_eq!(by(size_bytes, growth, Some(10)), Err(ErrorKind::InvalidInput));
        }
    }
}
