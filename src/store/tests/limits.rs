//! Limits of volumes in the catalogue, and what the superblock says of them.

use std::fs;
use std::path::Path;

use super::{Store, open, options};
use crate::error::ErrorKind;
use crate::format::{Features, SUPERBLOCK_BYTES, Superblock, SuperblockSlot};
use crate::volume::{ForkOptions, VolumeLimits, VolumeOptions};

/// What the superblock says that the journal may have.
fn features(path: &Path) -> Features {
    let slots = fs::read(path.join("superblock")).unwrap();
    let slots = slots.chunks(SUPERBLOCK_BYTES).filter_map(|slot| SuperblockSlot(slot).verify().ok());
    slots.max_by_key(|superblock: &Superblock| superblock.generation).unwrap().features
}

fn limits(store: &Store, name: &str) -> VolumeLimits {
    store.show(name).unwrap().limits
}

#[test]
fn limits_are_kept_and_older_programs_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let store = Store::create(path, options()).unwrap();
    let volume = store.create_volume("v", 1 << 20).unwrap();
    volume.set_limits(VolumeLimits::default()).unwrap();
    store.fork("v", "w").unwrap();
    store.close().unwrap();
    let store = open(path);
    assert_eq!(features(path), Features::default(), "without limits a store is readable by older programs");

    let (some, other) = (VolumeLimits::default().with_iops(5000), VolumeLimits::default().with_bytes_per_second(9).with_burst_millis(2));
    store.set_limits("v", some).unwrap();
    assert_eq!(features(path), Features::LIMITS);
    store.set_limits("w", other).unwrap();
    drop(store);
    let store = open(path);
    assert_eq!((limits(&store, "v"), limits(&store, "w"), features(path)), (some, other, Features::LIMITS));
    store.rename("w", "x").unwrap();
    store.set_limits("v", VolumeLimits::default()).unwrap();
    store.close().unwrap();
    let store = open(path);
    assert_eq!((limits(&store, "v"), limits(&store, "x"), features(path)), (VolumeLimits::default(), other, Features::LIMITS));
    store.destroy_volume("x", false).unwrap();
    store.close().unwrap();
    let store = open(path);
    assert_eq!(features(path), Features::default(), "no limit is left");
    store.close().unwrap();
}

#[test]
fn forks_have_the_limits_that_they_are_given() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), options()).unwrap();
    let (slow, slower) = (VolumeLimits::default().with_iops(2), VolumeLimits::default().with_iops(1));
    let volume = store.create_volume_with("v", 1 << 20, &VolumeOptions::default().with_limits(slow)).unwrap();
    volume.write_at(&[1; 4096], 0).unwrap();
    volume.create_snapshot("s").unwrap();
    volume.fork("plain").unwrap();
    for (source, fork) in [("v", "a"), ("v@s", "b")] {
        store.fork_with(source, fork, &ForkOptions::default().with_limits(slower)).unwrap();
    }
    store.fork_with("v", "larger", &ForkOptions::default().with_limits(slower).with_size_bytes(2 << 20)).unwrap();
    let found = ["v", "plain", "a", "b", "larger"].map(|name| limits(&store, name));
    assert_eq!(found, [slow, VolumeLimits::default(), slower, slower, slower]);
}

#[test]
fn limits_that_cannot_be_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), options()).unwrap();
    let wrong = VolumeLimits::default().with_iops(0);
    let refused = |result: crate::error::Result<()>| assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
    refused(store.create_volume_with("v", 1 << 20, &VolumeOptions::default().with_limits(wrong)).map(drop));
    let volume = store.create_volume("v", 1 << 20).unwrap();
    refused(volume.set_limits(wrong));
    refused(store.set_limits("v", VolumeLimits::default().with_burst_millis(5)));
    refused(store.fork_with("v", "w", &ForkOptions::default().with_limits(wrong)).map(drop));
    assert_eq!(store.set_limits("gone", wrong).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!((store.volume_names(), limits(&store, "v")), (vec!["v".to_owned()], VolumeLimits::default()));
    assert_eq!(features(directory.path()), Features::default());
}

/// Two changes of different limits at once: neither undoes the other.
#[test]
fn changes_of_limits_at_the_same_time_are_all_there() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), options()).unwrap();
    store.create_volume("v", 1 << 20).unwrap();
    let mut calls = 0;
    let changed = store.set_limits_with("v", |present| {
        calls += 1;
        if calls == 1 {
            // Another call comes first.
            store.set_limits("v", VolumeLimits::default().with_iops(7)).unwrap();
        }
        Ok(present.with_bytes_per_second(8))
    });
    changed.unwrap();
    assert_eq!((calls, limits(&store, "v")), (2, VolumeLimits::default().with_iops(7).with_bytes_per_second(8)));
}
