//! Writes that begin or end inside blocks that are still at a source.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use volfork::volume::Request;
use volfork::{Store, StoreOptions};

use crate::random::Random;
use crate::stage::{Actor, PATIENCE, Play, Stage};
use crate::{options, pattern};

/// A fork of a source whose reads are held back until it is released.
fn fork_of_a_held_source(directory: &std::path::Path, bytes: usize) -> (Arc<Actor>, Store, volfork::Volume) {
    let stage = Stage::default();
    let source = stage.add(Actor::new("held://x", &pattern(99, bytes)));
    source.play(|_, _| Play::Hang);
    let store = Store::create(directory, options(&stage)).unwrap();
    let volume = store.fork("held://x", "a").unwrap();
    (source, store, volume)
}

fn release(source: &Actor) {
    source.play(|_, _| Play::Answer);
    source.release();
}

/// How often each block was asked for.
fn reads_by_block(source: &Actor) -> BTreeMap<u64, u64> {
    let mut reads = BTreeMap::new();
    for (range, _) in source.reads() {
        for block in range.start / 4096..range.end.div_ceil(4096) {
            *reads.entry(block).or_default() += 1;
        }
    }
    reads
}

/// Runs something in a thread; answers whether it ends soon, and how to wait for it.
fn ends_soon(run: impl FnOnce() + Send + 'static, soon: Duration) -> (bool, mpsc::Receiver<()>) {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        run();
        sender.send(()).unwrap();
    });
    (receiver.recv_timeout(soon).is_ok(), receiver)
}

/// Writes a pattern, and reads what can be read without the source: bytes of one block.
fn put(volume: &volfork::Volume, expected: &mut [u8], seed: u64, offset: usize, bytes: usize) {
    let data = pattern(seed, bytes);
    expected[offset..offset + bytes].copy_from_slice(&data);
    volume.write_at(&data, offset as u64).unwrap();
    let mut read = vec![0; bytes.min(4096 - offset % 4096)];
    volume.read_at(&mut read, offset as u64).unwrap();
    assert!(read == data[..read.len()], "{bytes} bytes at {offset}");
}

/// Writes that begin and end in missing blocks, a fork among them. Answers what the volume and the fork should hold.
fn write_without_the_source(store: &Store, volume: &volfork::Volume, content: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut all = content.to_vec();
    put(volume, &mut all, 1, 100, 50);
    put(volume, &mut all, 2, 4000, 9000);
    // Two parts that make a block whole.
    put(volume, &mut all, 3, 20 << 10, 2000);
    put(volume, &mut all, 4, (20 << 10) + 1900, 2196);
    put(volume, &mut all, 5, (1 << 20) - 10, 20);
    put(volume, &mut all, 6, content.len() - 500, 500);
    let blocks = store.show("a").unwrap().blocks;
    assert_eq!((blocks.present, blocks.missing), (3, content.len().div_ceil(4096) as u64 - 3));
    volume.discard(200_001, 70_000).unwrap();
    all[200_001..270_001].fill(0);
    let mut queue = volume.queue(4).unwrap();
    queue.submit(1, Request::Write { offset: 300_100, data: Bytes::from_static(b"through a queue"), fua: true }).unwrap();
    queue.wait(&mut Vec::new(), None).unwrap();
    all[300_100..300_115].copy_from_slice(b"through a queue");
    let before = store.barriers();
    put(volume, &mut all, 7, 400_000, 10);
    volume.flush().unwrap();
    assert_eq!(store.barriers() - before, 1, "one barrier round makes a patch durable");
    let fork = volume.fork("b").unwrap();
    let mut forked = all.clone();
    put(&fork, &mut forked, 8, 140, 50);
    put(volume, &mut all, 9, 120, 10);
    (all, forked)
}

#[test]
fn writes_inside_missing_blocks_do_not_wait_for_the_source() {
    const BYTES: usize = (3 << 20) + 1000;
    let dir = tempfile::tempdir().unwrap();
    let (source, store, volume) = fork_of_a_held_source(dir.path(), BYTES);
    let store = Arc::new(store);
    let written = Arc::new(Mutex::new((Vec::new(), Vec::new())));
    let (result, writer, content) = (Arc::clone(&written), Arc::clone(&store), source.data.to_vec());
    let run = move || *result.lock() = write_without_the_source(&writer, &volume, &content);
    assert!(ends_soon(run, PATIENCE).0, "somebody waits for the source");
    release(&source);
    let (all, forked) = written.lock().clone();
    let check = |store: &Store| {
        for (name, expected) in [("a", &all), ("b", &forked)] {
            let mut read = vec![0; BYTES];
            store.volume(name).unwrap().read_at(&mut read, 0).unwrap();
            assert!(read == *expected, "volume {name}");
        }
    };
    check(&store);
    assert!(store.wait_hydrated("a", PATIENCE).unwrap());
    check(&store);
    let reads = reads_by_block(&source);
    assert!(reads.values().all(|count| *count == 1), "some blocks were fetched twice: {reads:?}");
    store.close().unwrap();
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    check(&store);
}

#[test]
fn writes_inside_missing_blocks_wait_when_there_are_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let (source, store, volume) = fork_of_a_held_source(dir.path(), 20 << 20);
    let volume = Arc::new(volume);
    for block in 0..4096 {
        volume.write_at(&[1; 3], block * 4096 + 5).unwrap();
    }
    // More of the same blocks is no new patch.
    volume.write_at(&[2; 3], 4095 * 4096 + 7).unwrap();
    let late = Arc::clone(&volume);
    let (ended, receiver) = ends_soon(move || late.write_at(&[3; 3], 4096 * 4096 + 5).unwrap(), Duration::from_millis(300));
    assert!(!ended, "there is room for more patches than there should be");
    // Nobody else waits with it.
    volume.write_at(&[4; 4096], 4097 * 4096).unwrap();
    volume.fork("b").unwrap();
    release(&source);
    receiver.recv_timeout(PATIENCE).unwrap();
    let mut expected = source.data.to_vec();
    for block in 0..4096 {
        expected[block * 4096 + 5..][..3].fill(1);
    }
    expected[4095 * 4096 + 7..][..3].fill(2);
    expected[4096 * 4096 + 5..][..3].fill(3);
    expected[4097 * 4096..][..4096].fill(4);
    let mut read = vec![0; 20 << 20];
    volume.read_at(&mut read, 0).unwrap();
    assert!(read == expected);
    // All are merged now; once that is durable there is room for others.
    volume.flush().unwrap();
    // They are in a sealed layer, which only the background makes durable.
    while store.step().unwrap() {}
    source.play(|_, _| Play::Hang);
    let other = store.fork("held://x", "c").unwrap();
    let again = move || (0..4096).for_each(|block| other.write_at(&[1; 3], block * 4096 + 5).unwrap());
    assert!(ends_soon(again, PATIENCE).0, "merged patches take room still");
    release(&source);
}

/// One of several threads that write sectors of their own, whose neighbours in the same block are others'.
fn write_own_sectors(volume: &volfork::Volume, thread: u64, content: &mut [u8]) {
    let mut random = Random::new(thread);
    let mut below = |limit: u64| random.below(limit);
    for round in 0..600 {
        let sector = below(content.len() as u64 / 512 / 4) * 4 + thread;
        let range = sector as usize * 512..(sector as usize + 1) * 512;
        let data = pattern(thread << 32 | round, 512);
        volume.write_at(&data, sector * 512).unwrap();
        content[range].copy_from_slice(&data);
        if below(40) == 0 {
            volume.flush().unwrap();
        }
    }
}

#[test]
fn many_writers_forks_and_checkpoints_while_blocks_come() {
    const BYTES: usize = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::default();
    let source = stage.add(Actor::new("held://x", &pattern(99, BYTES)));
    source.play(|_, _| Play::Hang);
    let options = options(&stage).with_checkpoint_bytes(16 << 10);
    let store = Store::create(dir.path(), options.clone()).unwrap();
    let volume = store.fork("held://x", "a").unwrap();
    let mut expected = source.data.to_vec();
    let contents: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|thread| {
                let (volume, mut content) = (&volume, source.data.to_vec());
                scope.spawn(move || {
                    write_own_sectors(volume, thread, &mut content);
                    content
                })
            })
            .collect();
        for number in 0..30 {
            drop(volume.fork(&format!("fork{number}")).unwrap());
            if number == 8 {
                release(&source);
            }
            if number % 3 > 0 {
                store.destroy_volume(&format!("fork{number}"), false).unwrap();
            }
        }
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    for (sector, bytes) in expected.chunks_mut(512).enumerate() {
        bytes.copy_from_slice(&contents[sector % 4][sector * 512..][..512]);
    }
    let check = |store: &Store| {
        let mut read = vec![0; BYTES];
        store.volume("a").unwrap().read_at(&mut read, 0).unwrap();
        assert!(read == expected);
    };
    check(&store);
    store.close().unwrap();
    assert_eq!(Store::check(dir.path(), options.clone()).unwrap().violations, Vec::<String>::new());
    let store = Store::open(dir.path(), options).unwrap();
    check(&store);
    assert!(store.wait_hydrated("a", PATIENCE).unwrap());
    assert_eq!(store.scrub(None).unwrap().errors, Vec::<String>::new());
}
