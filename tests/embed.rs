//! What an embedder does with the library beside reading and writing: buffers of its own, identity, health, read-only stores.

use std::path::Path;
use std::time::Duration;

use volfork::bytes::{Bytes, BytesMut};
use volfork::io::RingKind;
use volfork::store::SpaceState;
use volfork::volume::{Completion, Request, RunKind};
use volfork::{ErrorKind, Queue, Store, StoreOptions, Volume};

const BLOCK: usize = 4096;
const MIB: u64 = 1 << 20;

fn options() -> StoreOptions {
    StoreOptions::default().with_threads(false)
}

fn kind<T>(result: volfork::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

fn one(queue: &mut Queue, request: Request) -> Completion {
    let mut completions = Vec::new();
    queue.submit(7, request).unwrap();
    while completions.is_empty() {
        queue.wait(&mut completions, Some(Duration::from_secs(60))).unwrap();
    }
    completions.pop().unwrap()
}

/// Bytes that tell their place.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at / 512 + at) as u8).collect()
}

fn stores(dir: &Path) -> impl Iterator<Item = (Store, Volume, RingKind)> {
    [RingKind::Uring, RingKind::Threads].into_iter().map(move |ring| {
        let store = Store::create(dir.join(format!("{ring:?}")), options().with_ring(ring)).unwrap();
        let volume = store.create_volume("v", 16 * MIB).unwrap();
        (store, volume, ring)
    })
}

#[test]
fn reads_fill_buffers_of_the_caller_and_give_them_back() {
    let dir = tempfile::tempdir().unwrap();
    for (store, volume, ring) in stores(dir.path()) {
        let written = pattern(2 << 20);
        volume.write_at(&written, 0).unwrap();
        // Two layers, so that a read has several parts; and zeros behind.
        volume.create_snapshot("s").unwrap();
        volume.write_at(&[9; BLOCK], 8 * BLOCK as u64).unwrap();
        let mut expected = written;
        expected[8 * BLOCK..9 * BLOCK].fill(9);
        expected.resize(3 << 20, 0);
        let mut queue = volume.queue(4).unwrap();
        for (offset, lengths) in [
            (0, vec![BLOCK]),
            (0, vec![512 << 10]),
            (100, vec![100]),
            (BLOCK, vec![BLOCK, 2 * BLOCK, 4 * BLOCK, 8 * BLOCK]),
            (7 * BLOCK, vec![3 * BLOCK]),
            (1000, vec![1, 0, 9000, 700 << 10]),
            ((2 << 20) - 10, vec![10, 10]),
            (5, vec![]),
        ] {
            let buffers: Vec<BytesMut> = lengths.iter().map(|length| BytesMut::from(&vec![255; *length][..])).collect();
            let places: Vec<_> = buffers.iter().map(|buffer| buffer.as_ptr()).collect();
            let completion = one(&mut queue, Request::ReadInto { offset: offset as u64, buffers });
            assert!(completion.result.unwrap().is_empty() && completion.token == 7);
            assert_eq!(completion.buffers.iter().map(|buffer| buffer.as_ptr()).collect::<Vec<_>>(), places, "{ring:?}: other memory");
            let bytes = completion.buffers.concat();
            assert!(bytes == expected[offset..offset + bytes.len()], "{ring:?}: {lengths:?} at {offset}");
            assert_eq!(completion.buffers.iter().map(|buffer| buffer.len()).collect::<Vec<_>>(), lengths);
        }
        // An error gives the memory back as well.
        let behind = one(&mut queue, Request::ReadInto { offset: 16 * MIB, buffers: vec![BytesMut::zeroed(1)] });
        assert_eq!((kind(behind.result), behind.buffers.len()), (Some(ErrorKind::OutOfRange), 1));
        let snapshot = store.snapshot("v", "s").unwrap();
        let read = one(&mut snapshot.queue(1).unwrap(), Request::ReadInto { offset: 0, buffers: vec![BytesMut::zeroed(9 * BLOCK)] });
        read.result.unwrap();
        assert!(read.buffers[0][..] == pattern(2 << 20)[..9 * BLOCK]);
    }
}

#[test]
fn writes_take_several_buffers() {
    let dir = tempfile::tempdir().unwrap();
    for (_store, volume, ring) in stores(dir.path()) {
        let mut queue = volume.queue(4).unwrap();
        let bytes = Bytes::from(pattern(1 << 20));
        for (offset, pieces) in
            [(0, vec![0..BLOCK, BLOCK..1 << 20]), (3, vec![0..5, 5..5, 5..9000]), (MIB, std::iter::once(0..1 << 20).collect()), (0, vec![])]
        {
            let data: Vec<Bytes> = pieces.iter().map(|piece| bytes.slice(piece.clone())).collect();
            let expected = data.concat();
            one(&mut queue, Request::WriteVectored { offset, data, fua: true }).result.unwrap();
            let mut read = vec![0; expected.len()];
            volume.read_at(&mut read, offset).unwrap();
            assert!(read == expected, "{ring:?}: {pieces:?} at {offset}");
        }
        // 256 times 32 MiB of the same memory.
        let large = Bytes::from(vec![1; 32 << 20]);
        let refused = queue.submit(0, Request::WriteVectored { offset: 0, data: vec![large; 256], fua: false });
        assert_eq!((kind(refused), queue.in_flight()), (Some(ErrorKind::InvalidInput), 0));
    }
}

#[test]
fn of_two_overlapping_writes_each_block_is_one_of_them() {
    let dir = tempfile::tempdir().unwrap();
    for (_store, volume, ring) in stores(dir.path()) {
        let mut queue = volume.queue(8).unwrap();
        let length = 256 << 10;
        let mut completions = Vec::new();
        for round in 0..50u64 {
            let bytes = [1, 2].map(|number| (round * 2 + number) as u8);
            for byte in bytes {
                queue.submit(0, Request::Write { offset: 0, data: vec![byte; length].into(), fua: false }).unwrap();
            }
            while queue.in_flight() > 0 {
                queue.wait(&mut completions, None).unwrap();
            }
            assert!(completions.drain(..).all(|completion| completion.result.is_ok()));
            let mut read = vec![0; length];
            volume.read_at(&mut read, 0).unwrap();
            let whole = |block: &[u8]| bytes.contains(&block[0]) && block.iter().all(|byte| *byte == block[0]);
            assert!(read.chunks(BLOCK).all(whole), "{ring:?}: a block is a mixture");
            // What is submitted after the completion of another comes after it.
            one(&mut queue, Request::Write { offset: 0, data: vec![200; length].into(), fua: false }).result.unwrap();
            volume.read_at(&mut read, 0).unwrap();
            assert!(read.iter().all(|byte| *byte == 200));
        }
    }
}

#[test]
fn a_handle_speaks_of_its_own_volume_after_a_rename() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), options()).unwrap();
    let (mine, other) = (store.create_volume("a", MIB).unwrap(), store.create_volume("b", 2 * MIB).unwrap());
    mine.create_snapshot("s").unwrap();
    store.rename("a", "x").unwrap();
    store.rename("b", "a").unwrap();
    assert_eq!((mine.info().unwrap().name, mine.info().unwrap().id), ("x".into(), mine.id()));
    assert_eq!(store.volume(&mine.id()).unwrap().name(), "x");
    assert_eq!(mine.snapshots().unwrap().iter().map(|snapshot| &snapshot.name[..]).collect::<Vec<_>>(), ["s"]);
    assert!(mine.wait_hydrated(Duration::ZERO).unwrap());
    assert_eq!(kind(mine.destroy(false)), Some(ErrorKind::Busy));
    mine.destroy(true).unwrap();
    assert_eq!(store.volume_names(), ["a"]);
    for gone in [kind(mine.info()), kind(mine.snapshots()), kind(mine.destroy(true)), kind(mine.wait_hydrated(Duration::ZERO))] {
        assert_eq!(gone, Some(ErrorKind::NotFound));
    }
    assert_eq!(other.info().unwrap().size_bytes, 2 * MIB);
}

#[test]
fn differences_and_presence_come_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), options()).unwrap();
    let volume = store.create_volume("v", 64 * MIB).unwrap();
    volume.create_snapshot("s").unwrap();
    // More runs than a page has.
    let places: Vec<u64> = (0..2500).map(|number| number * 3 * BLOCK as u64).collect();
    places.iter().for_each(|place| volume.write_at(&[1; BLOCK], *place).unwrap());
    let expected: Vec<_> = places.iter().map(|place| *place..place + BLOCK as u64).collect();
    let changes: Vec<_> = volume.change_iter("s", 0..64 * MIB).map(Result::unwrap).collect();
    assert!(changes == expected);
    let runs: Vec<_> = volume.run_iter(0..64 * MIB).map(Result::unwrap).collect();
    let data: Vec<_> = runs.iter().filter(|(_, kind)| matches!(kind, RunKind::Data { .. })).map(|(range, _)| range.clone()).collect();
    assert!(data == expected);
    assert!(runs.windows(2).all(|pair| pair[0].0.end == pair[1].0.start) && runs.last().unwrap().0.end == 64 * MIB);
    let mut beyond = volume.run_iter(0..65 * MIB);
    assert_eq!((beyond.next().map(kind), beyond.next().is_none()), (Some(Some(ErrorKind::OutOfRange)), true));
}

#[test]
fn a_fork_is_compared_with_a_snapshot_of_its_parent() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), options()).unwrap();
    let volume = store.create_volume("v", 16 * MIB).unwrap();
    volume.write_at(&[1; BLOCK], 0).unwrap();
    volume.create_snapshot("old").unwrap();
    volume.write_at(&[2; BLOCK], MIB).unwrap();
    volume.create_snapshot("s").unwrap();
    let fork = store.fork("v@s", "f").unwrap();
    fork.write_at(&[3; BLOCK], 2 * MIB).unwrap();
    let changed = |snapshot: &str| fork.changed_since(snapshot, &(0..16 * MIB), 10);
    let block = BLOCK as u64;
    assert!(changed("v@s").unwrap().iter().eq([&(2 * MIB..2 * MIB + block)]));
    assert_eq!(changed("v@old").unwrap(), [MIB..MIB + block, 2 * MIB..2 * MIB + block]);
    volume.write_at(&[4; BLOCK], 0).unwrap();
    volume.create_snapshot("later").unwrap();
    for none in ["s", "v@later", "v@none", "none@s"] {
        assert_eq!(kind(changed(none)), Some(ErrorKind::NotFound), "{none}");
    }
}

/// Names, sizes and times of change of all files of a store.
fn look(dir: &Path) -> Vec<(String, u64, std::time::SystemTime)> {
    let list = |dir: &Path| -> Vec<_> { std::fs::read_dir(dir).unwrap().map(Result::unwrap).collect() };
    let files = list(dir).into_iter().chain(list(&dir.join("layers")));
    let mut files: Vec<_> = files
        .map(|file| (file.path().display().to_string(), file.metadata().unwrap().len(), file.metadata().unwrap().modified().unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_read_only_store_reads_everything_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), options()).unwrap();
    let volume = store.create_volume("v", 16 * MIB).unwrap();
    volume.write_at(&pattern(1 << 20), 0).unwrap();
    volume.create_snapshot("s").unwrap();
    volume.write_at(&[9; 3 * BLOCK], 100).unwrap();
    volume.flush().unwrap();
    assert_eq!(kind(Store::open_read_only(dir.path(), options())), Some(ErrorKind::Locked));
    // A crash: the copy has a journal that was not closed.
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir(copy.path().join("layers")).unwrap();
    for (path, ..) in look(dir.path()).into_iter().filter(|(path, ..)| Path::new(path).is_file()) {
        std::fs::copy(&path, copy.path().join(Path::new(&path).strip_prefix(dir.path()).unwrap())).unwrap();
    }
    store.close().unwrap();
    for dir in [dir.path(), copy.path()] {
        let before = look(dir);
        for io_mode in [volfork::io::IoMode::Buffered, volfork::io::IoMode::Direct] {
            let store = Store::open_read_only(dir, options().with_io_mode(io_mode)).unwrap();
            let second = Store::open_read_only(dir, options()).unwrap();
            assert_eq!(kind(Store::open(dir, options())), Some(ErrorKind::Locked));
            let volume = store.volume("v").unwrap();
            let mut expected = pattern(1 << 20);
            let mut read = vec![0; 1 << 20];
            store.snapshot("v", "s").unwrap().read_at(&mut read, 0).unwrap();
            assert!(read == expected);
            expected[100..100 + 3 * BLOCK].fill(9);
            second.volume("v").unwrap().read_at(&mut read, 0).unwrap();
            assert!(read == expected);
            let mut queue = volume.queue(2).unwrap();
            assert!(one(&mut queue, Request::Read { offset: 0, bytes: 1 << 20 }).result.unwrap() == expected);
            let write = |offset: u64, bytes: usize| Request::Write { offset, data: vec![1; bytes].into(), fua: false };
            let refusals = [
                kind(one(&mut queue, write(0, BLOCK)).result),
                kind(one(&mut queue, write(8 * MIB, 1 << 20)).result),
                kind(volume.write_at(&[1], 5)),
                kind(volume.write_at(&[1; BLOCK], 8 * MIB)),
                kind(volume.discard(0, MIB)),
                kind(volume.write_zeroes(0, MIB)),
                kind(volume.fork("f")),
                kind(volume.create_snapshot("t")),
                kind(volume.resize(32 * MIB, false)),
                kind(store.create_volume("w", MIB)),
                kind(store.rename("v", "w")),
                kind(store.set_labels("v", [("a".to_owned(), "b".to_owned())].into())),
                kind(store.destroy_snapshot("v", "s")),
            ];
            assert_eq!(refusals, [Some(ErrorKind::ReadOnly); 13]);
            drop(queue);
            assert_eq!(kind(volume.destroy(true)), Some(ErrorKind::ReadOnly));
            assert_eq!(store.health().writes_refused.map(|error| error.kind()), Some(ErrorKind::ReadOnly));
            assert_eq!(store.scrub(None).unwrap().blocks_damaged, 0);
            assert!(!store.step().unwrap());
            store.close().unwrap();
            second.close().unwrap();
        }
        assert_eq!(look(dir), before);
    }
    assert_eq!(kind(Store::open_read_only(dir.path().join("none"), options())), Some(ErrorKind::NotFound));
}

#[test]
fn health_and_events_tell_of_damage() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), options()).unwrap();
    let volume = store.create_volume("v", MIB).unwrap();
    volume.write_at(&[1; BLOCK], 0).unwrap();
    volume.create_snapshot("s").unwrap();
    store.close().unwrap();
    let data = std::fs::read_dir(dir.path().join("layers")).unwrap().map(|file| file.unwrap().path());
    for path in data.filter(|path| path.extension().is_some_and(|kind| kind == "data")) {
        let length = std::fs::metadata(&path).unwrap().len() as usize;
        std::fs::write(&path, vec![7; length]).unwrap();
    }
    let told = std::sync::Arc::<std::sync::Mutex<Vec<_>>>::default();
    let telling = std::sync::Arc::clone(&told);
    let on_event = std::sync::Arc::new(move |event: &volfork::volume::Event| telling.lock().unwrap().push(event.kind));
    let store = Store::open(dir.path(), options().with_on_event(on_event)).unwrap();
    assert!(store.health().damage.is_none());
    assert_eq!(kind(store.volume("v").unwrap().read_at(&mut [0; 10], 0)), Some(ErrorKind::Corrupt));
    assert!(told.lock().unwrap().is_empty(), "an event came on the thread of a caller");
    while store.step().unwrap() {}
    assert_eq!(*told.lock().unwrap(), [volfork::volume::EventKind::Damaged]);
    let health = store.health();
    assert!(health.damage.is_some_and(|damage| damage.block == 0) && health.writes_refused.is_none());
    assert!(store.counters().damage_met > 0);
    let space = store.space().unwrap();
    assert!(space.used_bytes >= BLOCK as u64 && space.free_bytes <= space.total_bytes);
    assert_ne!(health.space, SpaceState::Unknown);
}
