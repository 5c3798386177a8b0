//! Changes of shape while there are no descriptors: what a call answers agrees with what the store shows.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{BLOCK, killed, on, open, steps};
use crate::error::{ErrorKind, Result};
use crate::ids::LeaseId;
use crate::io::faulty::FaultyDisk;
use crate::limits::Limits;
use crate::source::{Lease, LeaseAction, LeaseRequest, LeasedSource, Source, SourceError, SourceOpener, UriSources};
use crate::store::{HydrationControl, Store, StoreOptions};
use crate::sync::Mutex;

type Change = fn(&Store) -> Result<()>;

/// As long as anybody looks.
const FOR_EVER: u64 = u64::MAX;

/// A store with a volume whose file has a name that the next round has to make durable, for which it opens a directory.
fn with_new_name(path: &Path, disk: &FaultyDisk) -> Store {
    let sources = Some(Arc::new(UriSources::default()) as _);
    let store = Store::create(path, StoreOptions { sources, ..on(disk) }).unwrap();
    store.create_volume("v", 1 << 20).unwrap().write_at(&[1; BLOCK as usize], 0).unwrap();
    store
}

#[test]
fn a_change_of_shape_that_is_not_durable_says_so_and_stands() {
    let directory = tempfile::tempdir().unwrap();
    let changes: [(&str, Change, [&str; 2]); 5] = [
        ("create", |store| store.create_volume("w", 1 << 20).map(drop), ["v 1048576 []", "w 1048576 []"]),
        ("fork", |store| store.fork("v", "w").map(drop), ["v 1048576 []", "w 1048576 []"]),
        ("snapshot", |store| store.create_snapshot("v", "s"), ["v 1048576 [\"s\"]", ""]),
        ("resize", |store| store.resize("v", 4096, true), ["v 4096 []", ""]),
        ("rename", |store| store.rename("v", "w"), ["w 1048576 []", ""]),
    ];
    for (name, change, after) in changes {
        let disk = FaultyDisk::default();
        let path = directory.path().join(name);
        let store = with_new_name(&path, &disk);
        let shown = |store: &Store| -> Vec<String> {
            let volumes = store.list().unwrap();
            volumes.iter().map(|volume| format!("{} {} {:?}", volume.name, volume.size_bytes, volume.snapshots)).collect()
        };
        let after: Vec<&str> = after.into_iter().filter(|line| !line.is_empty()).collect();
        disk.lack_descriptors(FOR_EVER);
        assert_eq!(change(&store).unwrap_err().kind(), ErrorKind::NotDurable, "{name}");
        assert_eq!(shown(&store), after, "{name}");
        // Before that is durable nothing else is changed, and nothing that is refused is there.
        let refused = [
            store.create_volume("x", 1 << 20).map(drop),
            store.create_snapshot(&after[0][..1], "t"),
            store.destroy_volume(&after[0][..1], true),
        ];
        for refused in refused {
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Io, "{name}");
        }
        assert_eq!(shown(&store), after, "{name}");
        disk.lack_descriptors(0);
        store.volume(&after[0][..1]).unwrap().flush().unwrap();
        let copy = directory.path().join(format!("{name} killed"));
        killed(&path, &copy);
        assert_eq!(shown(&open(&copy)), after, "{name}: a flush makes it durable");
        store.create_volume("x", 1 << 20).unwrap();
        store.close().unwrap();
    }
}

#[test]
fn a_shortage_that_is_over_soon_is_not_seen() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let store = with_new_name(directory.path(), &disk);
    disk.lack_descriptors(2);
    store.create_volume("w", 1 << 20).unwrap();
    store.close().unwrap();
}

/// After a failed sync of a directory, a second sync that succeeds is not trusted, whatever the error number was: the names of files
/// with flushed blocks, checksums or the journal may be lost by then.
#[test]
fn a_failed_sync_of_a_directory_poisons_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let makes_names: [(&str, &str, Change); 4] = [
        ("flush", "layers", |store| store.volume("v")?.flush()),
        ("snapshot", "layers", |store| store.create_snapshot("v", "s")),
        ("cleaner", "layers", |store| {
            let layers = &store.0.core.layers;
            layers.all().iter().try_for_each(|layer| layers.cleaning.clean(layer).map(drop))
        }),
        ("checkpoint", ".", |store| store.0.core.shape.checkpoint()),
    ];
    for (name, place, make) in makes_names {
        for number in [libc::ENOSPC, libc::EDQUOT, libc::EIO] {
            let disk = FaultyDisk::default();
            let path = directory.path().join(format!("{name} {number}"));
            let store = with_new_name(&path, &disk);
            let volume = store.volume("v").unwrap();
            if place == "." || name == "cleaner" {
                // The name of its file is durable, and its extent is marked, and was not written since the cleaner looked.
                for _ in 0..2 {
                    volume.write_at(&[2; BLOCK as usize], 0).unwrap();
                    volume.flush().unwrap();
                }
                let layers = &store.0.core.layers;
                layers.all().iter().for_each(|layer| assert_eq!(layers.cleaning.clean(layer).unwrap(), 1));
            }
            disk.fail_sync_of_names(&path.join(place).components().collect::<std::path::PathBuf>(), number);
            assert_eq!(make(&store).unwrap_err().kind(), ErrorKind::Io, "{name}, {number}");
            let refused = volume.write_at(&[3; BLOCK as usize], 0).and_then(|()| volume.flush());
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Poisoned, "{name}, {number}");
            drop((volume, store));
            let store = Store::open(&path, on(&disk)).unwrap();
            store.volume("v").unwrap().flush().unwrap();
            store.close().unwrap();
        }
    }
}

/// The root of such a fork keeps its source, which is open, so that what is missing can be read.
#[test]
fn a_fork_of_a_source_that_is_not_durable_can_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    std::fs::write(&image, [7; 8 * BLOCK as usize]).unwrap();
    let disk = FaultyDisk::default();
    let store = with_new_name(&directory.path().join("store"), &disk);
    disk.lack_descriptors(FOR_EVER);
    let forked = store.fork(&format!("file://{}", image.display()), "f").map(drop);
    assert_eq!(forked.unwrap_err().kind(), ErrorKind::NotDurable);
    disk.lack_descriptors(0);
    let fork = store.volume("f").unwrap();
    let mut bytes = [0; BLOCK as usize];
    fork.read_at(&mut bytes, 3 * BLOCK).unwrap();
    assert_eq!(bytes, [7; BLOCK as usize]);
    fork.flush().unwrap();
    while store.step().unwrap() {}
    assert!(store.wait_hydrated("f", std::time::Duration::ZERO).unwrap());
    store.close().unwrap();
}

/// A write of more blocks than a frame has room for makes some durable on its way, and the store goes on.
#[test]
fn a_round_never_has_more_than_a_frame_holds() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { reserved_bytes_max: 24 << 10, frame_payload_bytes_max: 40 << 10, fresh_blocks_max: u64::MAX, ..Limits::DEFAULT };
    let options = || StoreOptions { threads: false, limits, ..StoreOptions::default() };
    let store = Store::create(directory.path(), options()).unwrap();
    let volume = store.create_volume("v", 64 << 20).unwrap();
    let bytes: Vec<u8> = (0..64 << 20u32).map(|at: u32| (at >> 12) as u8 | 1).collect();
    volume.write_at(&bytes, 0).unwrap();
    volume.flush().unwrap();
    volume.discard(0, 4096).unwrap();
    drop(volume);
    store.close().unwrap();
    let volume = Store::open(directory.path(), options()).unwrap().volume("v").unwrap();
    let mut found = vec![0; bytes.len()];
    volume.read_at(&mut found, 0).unwrap();
    assert!(found[4096..] == bytes[4096..] && found[..4096].iter().all(|byte| *byte == 0));
}

/// Files that give leases of themselves.
#[derive(Clone, Default)]
struct Lender(Arc<Mutex<Vec<LeaseId>>>);

impl SourceOpener for Lender {
    fn open(&self, uri: &str) -> std::result::Result<Arc<dyn Source>, SourceError> {
        UriSources::default().open(uri)
    }

    fn open_leased(&self, uri: &str, request: &LeaseRequest) -> std::result::Result<LeasedSource, SourceError> {
        Ok(LeasedSource { source: self.open(uri)?, lease: self.lease(uri, request)? })
    }

    fn lease(&self, uri: &str, request: &LeaseRequest) -> std::result::Result<Option<Lease>, SourceError> {
        let mut lent = self.0.lock();
        lent.retain(|id| *id != request.id);
        if request.action == LeaseAction::Release {
            return Ok(None);
        }
        lent.push(request.id);
        Ok(Some(Lease { uri: uri.to_owned(), lapse: Duration::from_secs(3600) }))
    }
}

/// A crash may bring back what needed it.
#[test]
fn a_lease_is_returned_once_the_end_of_its_fork_is_durable() {
    let directory = tempfile::tempdir().unwrap();
    let uri = ["image", "other"].map(|name| {
        let image = directory.path().join(name);
        std::fs::write(&image, [7; 8 * BLOCK as usize]).unwrap();
        format!("file://{}", image.display())
    });
    let replaced =
        HydrationControl { add_sources: vec![uri[1].clone()], remove_sources: vec![uri[0].clone()], ..HydrationControl::default() };
    let paused = HydrationControl { paused: Some(true), ..HydrationControl::default() };
    for name in ["destroyed", "another address"] {
        let (disk, lender) = (FaultyDisk::default(), Lender::default());
        let sources = || Some(Arc::new(lender.clone()) as _);
        let (path, copy) = (directory.path().join(name), directory.path().join(format!("{name} killed")));
        let store = Store::create(&path, StoreOptions { sources: sources(), ..on(&disk) }).unwrap();
        store.create_volume("v", 1 << 20).unwrap().write_at(&[1; BLOCK as usize], 0).unwrap();
        store.fork(&uri[0], "f").unwrap();
        store.control_hydration("f", &paused).unwrap();
        store.volume("v").unwrap().flush().unwrap();
        // A name that the next round has to make durable.
        store.create_volume("w", 1 << 20).unwrap().write_at(&[1; BLOCK as usize], 0).unwrap();
        disk.lack_descriptors(FOR_EVER);
        let ended = if name == "destroyed" { store.destroy_volume("f", false) } else { store.control_hydration("f", &replaced).map(drop) };
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::NotDurable, "{name}");
        (0..20).for_each(|_| drop(store.step()));
        assert_eq!(lender.0.lock().len(), 1, "{name}: the volume may come back");
        killed(&path, &copy);
        disk.lack_descriptors(0);
        store.close().unwrap();
        assert_eq!(lender.0.lock().len(), 0, "{name}: it is durable");
        let store = Store::open(&copy, StoreOptions { sources: sources(), ..on(&FaultyDisk::default()) }).unwrap();
        assert!(store.volume("f").is_ok(), "{name}");
        steps(&store, 1);
    }
}
