//! The engine through its public calls, on real files.

#[path = "../src/random.rs"]
mod random;

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use volfork::volume::VolumeOptions;

use volfork::io::{IoMode, RingKind};
use volfork::volume::{ForkOptions, Request};
use volfork::{ErrorKind, Store, StoreOptions};

use random::Random;

fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    Random::new(seed).bytes(bytes)
}

#[test]
fn bytes_survive_flush_close_and_open() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), StoreOptions::default()).unwrap();
    let volume = store.create_volume("a", 64 << 20).unwrap();
    let data = pattern(1, 300_000);
    volume.write_at(&data, 12_345).unwrap();
    volume.flush().unwrap();
    let fork = volume.fork("b").unwrap();
    volume.write_at(&[9; 5000], 20_000).unwrap();
    fork.write_at(&[8; 100], 0).unwrap();
    fork.discard(1 << 20, 1 << 20).unwrap();
    let check = |store: &Store| {
        let mut expected = vec![0; 400_000];
        expected[12_345..312_345].copy_from_slice(&data);
        let mut fork = expected.clone();
        expected[20_000..25_000].fill(9);
        fork[..100].fill(8);
        let mut read = vec![1; 400_000];
        store.volume("a").unwrap().read_at(&mut read, 0).unwrap();
        assert!(read == expected);
        store.volume("b").unwrap().read_at(&mut read, 0).unwrap();
        assert!(read == fork);
    };
    check(&store);
    store.close().unwrap();
    assert_eq!(volume.write_at(&[1], 0).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(Store::check(dir.path(), StoreOptions::default()).unwrap().violations, Vec::<String>::new());
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    check(&store);
    let info = store.show("b").unwrap();
    assert_eq!((info.depth, info.parent.as_deref()), (2, Some("a")));
    println!("{info:?}");
}

/// A queue under random requests, and what the volume should hold. Writes to the same bytes are never under way together.
struct Trial {
    queue: volfork::Queue,
    model: Vec<u8>,
    /// Offset, length and whether it writes, by token.
    under_way: std::collections::HashMap<u64, (u64, u64, bool)>,
    random: Random,
}

const QUEUE_DEPTH: usize = 16;

impl Trial {
    fn below(&mut self, limit: u64) -> u64 {
        self.random.below(limit)
    }

    fn clashes(&self, offset: u64, bytes: u64, write: bool) -> bool {
        let meets = |(start, length, other): &(u64, u64, bool)| (write || *other) && offset < start + length && *start < offset + bytes;
        self.under_way.values().any(meets)
    }

    fn take(&mut self) {
        let mut completions = Vec::new();
        self.queue.wait(&mut completions, None).unwrap();
        for completion in completions {
            let (start, length, write) = self.under_way.remove(&completion.token).unwrap();
            let got = completion.result.unwrap();
            if !write {
                assert!(got[..] == self.model[start as usize..(start + length) as usize], "read at {start} of {length}");
            }
        }
    }

    fn submit(&mut self, token: u64) {
        let size = self.model.len() as u64;
        let aligned = self.below(3) > 0;
        let most = if self.below(20) == 0 { 5 << 20 } else { 40_000 };
        let (mut offset, mut bytes) = (self.below(size), 1 + self.below(most));
        if aligned {
            (offset, bytes) = (offset / 4096 * 4096, bytes.next_multiple_of(4096));
        }
        bytes = bytes.min(size - offset);
        let write = self.below(2) == 0;
        while self.queue.in_flight() >= QUEUE_DEPTH || self.clashes(offset, bytes, write) {
            self.take();
        }
        let range = offset as usize..(offset + bytes) as usize;
        let request = match (write, self.below(10)) {
            (false, _) => Request::Read { offset, bytes: bytes as u32 },
            (true, 0) => {
                self.model[range].fill(0);
                Request::Discard { offset, bytes, fua: self.below(2) == 0 }
            }
            (true, _) => {
                let data = pattern(token, bytes as usize);
                self.model[range].copy_from_slice(&data);
                Request::Write { offset, data: data.into(), fua: self.below(10) == 0 }
            }
        };
        self.queue.submit(token, request).unwrap();
        self.under_way.insert(token, (offset, bytes, write));
    }
}

fn queue_agrees_with_a_model(kind: RingKind, io_mode: IoMode, seed: u64) {
    println!("seed {seed}");
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions::default().with_ring(kind).with_io_mode(io_mode);
    let store = Store::create(dir.path(), options.clone()).unwrap();
    let volume = store.create_volume("a", 24 << 20).unwrap();
    let queue = volume.queue(QUEUE_DEPTH as u32).unwrap();
    assert_eq!(queue.kind(), kind);
    let mut trial = Trial { queue, model: vec![0; 24 << 20], under_way: Default::default(), random: Random::new(seed) };
    for token in 0..4000 {
        trial.submit(token);
        match trial.below(200) {
            0 => volume.flush().unwrap(),
            1 => drop(volume.fork(&format!("fork{token}")).unwrap()),
            _ => {}
        }
    }
    while trial.queue.in_flight() > 0 {
        trial.take();
    }
    let Trial { queue, model, .. } = trial;
    assert_eq!(store.destroy_volume("a", false).unwrap_err().kind(), ErrorKind::Busy);
    drop(queue);
    let mut all = vec![0; model.len()];
    volume.read_at(&mut all, 0).unwrap();
    assert!(all == model);
    store.close().unwrap();
    let store = Store::open(dir.path(), options).unwrap();
    store.volume("a").unwrap().read_at(&mut all, 0).unwrap();
    assert!(all == model, "after closing and opening");
    assert_eq!(store.scrub(None).unwrap().errors, Vec::<String>::new());
}

#[test]
fn queue_over_io_uring() {
    queue_agrees_with_a_model(RingKind::Uring, IoMode::Buffered, 11);
}

#[test]
fn queue_over_threads() {
    queue_agrees_with_a_model(RingKind::Threads, IoMode::Buffered, 12);
    // The page cache answers most of those at once; these go through the threads.
    queue_agrees_with_a_model(RingKind::Threads, IoMode::Direct, 14);
}

#[test]
fn queue_with_direct_io() {
    queue_agrees_with_a_model(RingKind::Uring, IoMode::Direct, 13);
}

/// What a front end does that polls the queue's descriptor, beside threads that reap all queues while they wait for one another.
#[test]
fn whoever_polls_a_queue_is_told_of_every_completion() {
    for kind in [RingKind::Uring, RingKind::Threads] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path(), StoreOptions::default().with_ring(kind)).unwrap();
        let [busy, quiet] = ["busy", "quiet"].map(|name| store.create_volume(name, 64 << 20).unwrap());
        busy.write_at(&vec![1; 1 << 20], 0).unwrap();
        quiet.write_at(&vec![1; 1 << 20], 0).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for number in 0..3 {
                let (busy, stop) = (&busy, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        busy.write_at(&vec![number; 1 << 20], 0).unwrap();
                    }
                });
            }
            let mut queue = quiet.queue(8).unwrap();
            let told = (0..500).all(|token| {
                // A part of a block: a worker does it.
                queue.submit(token, Request::Write { offset: 100, data: vec![7; 100].into(), fua: false }).unwrap();
                let mut done = Vec::new();
                while done.is_empty() {
                    let mut fds = [rustix::event::PollFd::new(&queue, rustix::event::PollFlags::IN)];
                    let timeout = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };
                    if rustix::event::poll(&mut fds, Some(&timeout)).unwrap() == 0 {
                        return false;
                    }
                    queue.reap(&mut done).unwrap();
                }
                true
            });
            stop.store(true, Ordering::Relaxed);
            assert!(told, "{kind:?}: a completion that nobody was told of");
        });
    }
}

#[test]
fn a_queue_never_hands_out_damaged_bytes() {
    for (kind, io_mode) in [(RingKind::Uring, IoMode::Buffered), (RingKind::Uring, IoMode::Direct), (RingKind::Threads, IoMode::Direct)] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path(), StoreOptions::default().with_ring(kind).with_io_mode(io_mode)).unwrap();
        let volume = store.create_volume("a", 1 << 20).unwrap();
        volume.write_at(&[7; 1 << 20], 0).and_then(|()| volume.flush()).unwrap();
        let data = std::fs::read_dir(dir.path().join("layers")).unwrap().map(|entry| entry.unwrap().path());
        let data = data.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
        std::fs::OpenOptions::new().write(true).open(data).unwrap().write_all_at(&[8], 5 * 4096 + 10).unwrap();
        let mut queue = volume.queue(4).unwrap();
        let mut completions = Vec::new();
        for (token, offset, bytes) in [(0, 4 * 4096, 4096), (1, 5 * 4096, 4096), (2, 4 * 4096 + 100, 8192), (3, 6 * 4096, 4096)] {
            queue.submit(token, Request::Read { offset, bytes }).unwrap();
        }
        while queue.in_flight() > 0 {
            queue.wait(&mut completions, None).unwrap();
        }
        completions.sort_by_key(|completion| completion.token);
        let [whole, damaged, partly, other] = <[_; 4]>::try_from(completions).unwrap_or_else(|_| panic!("four completions"));
        assert!(whole.result.unwrap().iter().all(|byte| *byte == 7) && other.result.unwrap().iter().all(|byte| *byte == 7));
        for damaged in [damaged, partly] {
            let error = damaged.result.unwrap_err();
            assert!(error.kind() == ErrorKind::Corrupt && error.corruption().is_some_and(|place| place.block == 5), "{error}");
        }
    }
}

#[test]
fn one_barrier_round_for_a_flush_and_for_a_fork() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), StoreOptions::default().with_threads(false)).unwrap();
    let volume = store.create_volume("a", 1 << 30).unwrap();
    let count = |what: &str, run: &mut dyn FnMut()| {
        let before = store.barriers();
        run();
        assert_eq!(store.barriers() - before, 1, "{what}");
    };
    for extent in 0..50 {
        volume.write_at(&[1; 4096], extent * (5 << 20)).unwrap();
    }
    count("a flush of many extents", &mut || volume.flush().unwrap());
    count("a fork of a flushed volume", &mut || drop(volume.fork("b").unwrap()));
    for extent in 0..50 {
        volume.write_at(&[2; 4096], extent * (5 << 20)).unwrap();
    }
    count("a fork of a written volume", &mut || drop(volume.fork("c").unwrap()));
    volume.write_at(&[3; 4096], 0).and_then(|()| volume.flush()).and_then(|()| volume.write_at(&[4; 4096], 0)).unwrap();
    count("a fork after an overwrite in place", &mut || drop(volume.fork("d").unwrap()));
    let before = store.barriers();
    volume.flush().unwrap();
    assert_eq!(store.barriers(), before, "a flush of nothing costs nothing");
}

#[test]
fn a_second_opener_is_told_who_owns_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions::default().with_owner("the first opener".into());
    let store = Store::create(dir.path(), options).unwrap();
    let error = Store::open(dir.path(), StoreOptions::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(error.to_string().contains("the first opener"), "{error}");
    store.close().unwrap();
    Store::open(dir.path(), StoreOptions::default()).unwrap();
}

#[test]
fn the_largest_volume_works_at_both_ends() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), StoreOptions::default()).unwrap();
    let size = 16 << 40;
    assert_eq!(store.create_volume("b", size + 1).err().unwrap().kind(), ErrorKind::InvalidInput);
    let volume = store.create_volume("a", size).unwrap();
    for offset in [0, (8 << 40) - 2048, size - 4096] {
        volume.write_at(&[7; 4096], offset).unwrap();
    }
    assert_eq!(volume.write_at(&[7; 2], size - 1).unwrap_err().kind(), ErrorKind::OutOfRange);
    let fork = volume.fork("c").unwrap();
    volume.discard(0, size).unwrap();
    volume.flush().unwrap();
    for offset in [0, (8 << 40) - 2048, size - 4096] {
        let mut bytes = [1; 4096];
        fork.read_at(&mut bytes, offset).unwrap();
        assert_eq!(bytes, [7; 4096]);
        volume.read_at(&mut bytes, offset).unwrap();
        assert_eq!(bytes, [0; 4096]);
    }
}

#[test]
fn a_chain_of_ten_thousand_layers_reads_and_opens() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), StoreOptions::default()).unwrap();
    let volume = store.create_volume("a", 64 << 20).unwrap();
    for layer in 0..10_000u32 {
        volume.write_at(&layer.to_le_bytes(), u64::from(layer) * 4096).unwrap();
        volume.create_snapshot(&format!("s{layer}")).unwrap();
    }
    store.close().unwrap();
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    assert_eq!(store.show("a").unwrap().depth, 10_001);
    let volume = store.volume("a").unwrap();
    for layer in (0..10_000u32).step_by(77) {
        let mut bytes = [0; 4];
        volume.read_at(&mut bytes, u64::from(layer) * 4096).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), layer);
    }
    store.destroy_volume("a", true).unwrap();
    assert_eq!(store.list().unwrap().len(), 0);
}

#[test]
fn labels_are_there_from_the_first_moment_and_survive() {
    let directory = tempfile::tempdir().unwrap();
    let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let store = Store::create(directory.path(), StoreOptions::default()).unwrap();
    store.create_volume_with("v", 1 << 20, &VolumeOptions::default().with_labels([text("a", "1"), text("b", "2")].into())).unwrap();
    let labels = [("a".to_owned(), None), ("c".to_owned(), Some("3".to_owned()))].into();
    store.fork_with("v", "fork", &ForkOptions::default().with_labels(labels)).unwrap();
    let labels = [("k".to_owned(), Some("v".repeat(4096)))].into();
    let huge = ForkOptions::default().with_labels(labels);
    assert_eq!(store.fork_with("v", "huge", &huge).err().map(|error| error.kind()), Some(ErrorKind::InvalidInput));
    store.close().unwrap();
    let store = Store::open(directory.path(), StoreOptions::default()).unwrap();
    let mut labels: Vec<_> = store.labels().into_iter().map(|(name, _, labels)| (name, labels)).collect();
    labels.sort();
    let expected =
        [("fork".to_owned(), [text("b", "2"), text("c", "3")].into()), ("v".to_owned(), [text("a", "1"), text("b", "2")].into())];
    assert_eq!(labels, expected);
    store.close().unwrap();
}
