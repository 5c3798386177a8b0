//! Carries out a request on an open store. Used by the command line on its own store and by the server for its clients, so that each
//! command exists once.

use std::fs::File;
use std::time::Duration;

use volfork::volume::{HydrationState, SnapshotInfo, VolumeState};
use volfork::{ErrorKind, Store};

use crate::failure::{Failure, Result};
use crate::origin::origin;
use crate::request::{Done, Progress, Request, Response, Unit, Watcher};
use crate::target::{Growth, Target};
use crate::transfer::{export, import};

/// How often waiting work tells its watcher.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// Carries out `request`; `file` belongs to an import or export.
pub fn execute(store: &Store, request: Request, file: Option<File>, watcher: &mut dyn Watcher) -> Result<Response> {
    let file = || file.ok_or_else(|| Failure::new(ErrorKind::InvalidInput, "the request came without a file"));
    match request {
        Request::Create { name, size_bytes, labels } => {
            store.create_volume_labeled(&name, size_bytes, labels)?;
            shown(store, Done::Created, &name)
        }
        Request::Import { name, raw } => import(store, &name, file()?, raw, watcher).map(Response::Moved),
        Request::Export { target } => export(store, &target, file()?, watcher).map(Response::Moved),
        Request::List => Ok(Response::Volumes(store.list()?)),
        Request::Show { name } => shown(store, Done::Shown, &name),
        Request::Snapshot { volume, snapshot } => {
            store.create_snapshot(&volume, &snapshot)?;
            Ok(Response::Snapshot(find_snapshot(store.snapshots(&volume)?, &snapshot)?))
        }
        Request::Snapshots { volume } => Ok(Response::Snapshots(store.snapshots(&volume)?)),
        Request::Fork { source, also, name, labels } => {
            store.fork_labeled(&[&[source], &also[..]].concat(), &name, &labels)?;
            shown(store, Done::Forked, &name)
        }
        Request::Origin { target } => Ok(Response::Origin(origin(store, &target)?)),
        Request::Extend { name, growth } => extend(store, &name, growth),
        Request::Rename { name, new } => {
            store.rename(&name, &new)?;
            shown(store, Done::Renamed, &new)
        }
        Request::Destroy { target, recursive } => destroy(store, target, recursive),
        Request::Hydrate { name, control, wait } => {
            store.control_hydration(&name, &control)?;
            if wait {
                wait_hydrated(store, &name, watcher)?;
            }
            shown(store, Done::Hydrated, &name)
        }
        Request::Scrub { name } => scrub(store, name.as_deref(), watcher),
        #[cfg(feature = "images")]
        Request::Image(request) => crate::image::carry_out(store, request, watcher).map(Response::Image),
    }
}

fn shown(store: &Store, done: Done, name: &str) -> Result<Response> {
    Ok(Response::Volume(done, Box::new(store.show(name)?)))
}

fn find_snapshot(snapshots: Vec<SnapshotInfo>, name: &str) -> Result<SnapshotInfo> {
    let found = snapshots.into_iter().rev().find(|snapshot| snapshot.name == name);
    found.ok_or_else(|| Failure::new(ErrorKind::NotFound, format!("snapshot '{name}' was destroyed at the same moment")))
}

fn extend(store: &Store, name: &str, growth: Growth) -> Result<Response> {
    let size_bytes = store.volume(name)?.size_bytes();
    let wanted = grown(name, size_bytes, growth)?;
    if wanted != size_bytes {
        store.resize(name, wanted, false)?;
    }
    shown(store, Done::Extended, name)
}

/// The size after `growth`; an error if that is smaller, or does not fit 64 bits.
fn grown(name: &str, size_bytes: u64, growth: Growth) -> Result<u64> {
    match growth {
        Growth::To(bytes) if bytes < size_bytes => Err(Failure::new(
            ErrorKind::InvalidInput,
            format!("volume '{name}' has {size_bytes} bytes already, and extend only grows: give a larger size, or +SIZE"),
        )),
        Growth::To(bytes) => Ok(bytes),
        Growth::By(bytes) => size_bytes.checked_add(bytes).ok_or_else(|| {
            Failure::new(ErrorKind::InvalidInput, format!("volume '{name}' cannot grow by {bytes} bytes: give a smaller size"))
        }),
    }
}

fn destroy(store: &Store, target: Target, recursive: bool) -> Result<Response> {
    match &target.snapshot {
        Some(snapshot) => store.destroy_snapshot(&target.volume, snapshot)?,
        None => store.destroy_volume(&target.volume, recursive)?,
    }
    Ok(Response::Destroyed(target))
}

fn wait_hydrated(store: &Store, name: &str, watcher: &mut dyn Watcher) -> Result<()> {
    while !store.wait_hydrated(name, TELL_EVERY)? {
        let info = store.show(name)?;
        let hydration = info.hydration;
        if hydration.state == HydrationState::Paused {
            let message = format!("hydration of volume '{name}' is paused, so waiting has no end: run 'volfork hydrate {name} --resume'");
            return Err(Failure::new(ErrorKind::Busy, message));
        }
        let note = match info.state {
            VolumeState::Degraded => hydration.last_error.map(|error| format!("no source has what is missing, trying again: {error}")),
            _ => None,
        };
        let done = info.size_bytes.saturating_sub(hydration.bytes_missing);
        watcher.tell(Progress { unit: Unit::Bytes, done, total: Some(info.size_bytes), note })?;
    }
    Ok(())
}

fn scrub(store: &Store, name: Option<&str>, watcher: &mut dyn Watcher) -> Result<Response> {
    // The engine's scrub cannot be stopped from its callback, so a watcher that wants to end it is heard afterwards.
    let mut told = Ok(());
    let report = store.scrub(name, &mut |progress| {
        if told.is_ok() {
            told = watcher.tell(Progress {
                unit: Unit::Blocks,
                done: progress.blocks_verified,
                total: Some(progress.blocks_total),
                note: None,
            });
        }
    })?;
    told?;
    Ok(Response::Scrubbed(report))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extend_only_grows() {
        assert_eq!(grown("v", 10, Growth::By(5)), Ok(15));
        assert_eq!(grown("v", 10, Growth::To(10)), Ok(10));
        for growth in [Growth::To(9), Growth::By(u64::MAX)] {
            assert!(grown("v", 10, growth).unwrap_err().is(ErrorKind::InvalidInput));
        }
    }
}
