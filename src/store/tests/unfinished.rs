//! Volumes that are being filled, and what a crash leaves of them.

use std::mem;

use super::*;
use crate::error::Error;
use crate::store::HydrationControl;
use crate::volume::ForkOptions;

#[test]
fn a_name_is_taken_until_its_volume_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), options()).unwrap();
    store.create_volume("base", 1 << 20).unwrap();
    let reserved = store.reserve_name("v").unwrap();
    let mut filled = reserved.create(1 << 20).unwrap();
    assert_eq!(store.show("v").unwrap().state, crate::volume::VolumeState::Creating);
    // It can be looked at, and that is all.
    let hydrated = store.control_hydration("v", &HydrationControl::default()).err();
    for missing in [hydrated, store.fork("v", "w").err(), store.volume("v").err(), store.rename("v", "w").err()] {
        let missing = missing.unwrap();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        assert!(missing.to_string().contains("still being made"), "{missing}");
    }
    for taken in [store.fork("base", "v").err(), store.rename("base", "v").err(), store.reserve_name("v").err()] {
        assert_eq!(taken.unwrap().kind(), ErrorKind::Exists);
    }
    filled.volume().write_at(&[3; 4096], 0).unwrap();
    filled.volume().flush().unwrap();
    filled.finish([("key".to_owned(), "value".to_owned())].into()).unwrap();
    drop(filled);
    drop(reserved);
    assert_eq!((store.volume_names().len(), store.show("v").unwrap().labels.len()), (2, 1));
    // One that is not finished goes, and its name is free again. The longest name has room for another one.
    let long = "ö".repeat(127);
    let reserved = store.reserve_name(&long).unwrap();
    drop(reserved.create(1 << 20).unwrap());
    drop(reserved);
    store.rename("v", &long).unwrap();
    assert_eq!(store.volume_names().len(), 2);
    assert_eq!(store.reserve_name("a/b").err().unwrap().kind(), ErrorKind::InvalidInput);
}

#[test]
fn only_what_a_crash_left_is_swept() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), options()).unwrap();
    let reserved = store.reserve_name("v").unwrap();
    let begin = || {
        let filled = reserved.create(1 << 20).unwrap();
        let name = filled.volume().name();
        mem::forget(filled);
        name
    };
    let (left, renamed) = (begin(), begin());
    store.fork(&left, "v.importing").unwrap();
    store.create_snapshot(&left, "s").unwrap();
    store.rename(&renamed, "mine").unwrap();
    store.fork("v.importing", &renamed).unwrap();
    drop(reserved);
    store.close().unwrap();
    drop(store);
    let store = open(directory.path());
    store.sweep_unfinished().unwrap();
    assert_eq!(store.volume_names().len(), 3);
    for name in ["v.importing", "mine", &renamed] {
        assert!(store.show(name).unwrap().labels.is_empty(), "{name}");
    }
}

/// A host in a fleet is asked over the network.
#[test]
fn a_fork_of_another_size_that_is_refused_is_asked_for_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), options()).unwrap();
    store.create_volume("base", 1 << 20).unwrap();
    let fork = ForkOptions { size_bytes: Some(2 << 20), ..ForkOptions::default() };
    let mut asked = 0;
    let refused = store.fork_admitted(&["base".to_owned()], "v", &fork, &mut |_, _| {
        asked += 1;
        Err(Error::new(ErrorKind::Exists, "the reservation was used"))
    });
    assert_eq!((refused.err().unwrap().to_string().as_str(), asked), ("the reservation was used", 1));
}
