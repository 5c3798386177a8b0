//! The engine through its public calls, on real files.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use volfork::io::{IoMode, RingKind};
use volfork::source::{ReadDone, Source, SourceError, SourceErrorKind, SourceExtent, SourceOpener, SourceStats};
use volfork::volume::Request;
use volfork::{ErrorKind, Store, StoreOptions};

fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
        .collect()
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
    assert_eq!(volume.write_at(&[1], 0).unwrap_err().kind(), ErrorKind::Poisoned);
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
    random: u64,
}

const QUEUE_DEPTH: usize = 16;

impl Trial {
    fn below(&mut self, limit: u64) -> u64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 33) % limit
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
    let options = StoreOptions { ring: Some(kind), io_mode, ..StoreOptions::default() };
    let store = Store::create(dir.path(), options.clone()).unwrap();
    let volume = store.create_volume("a", 24 << 20).unwrap();
    let queue = volume.queue(QUEUE_DEPTH as u32).unwrap();
    assert_eq!(queue.kind(), kind);
    let mut trial = Trial { queue, model: vec![0; 24 << 20], under_way: Default::default(), random: seed };
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
    assert_eq!(store.scrub(None, &mut |_| {}).unwrap().errors, Vec::<String>::new());
}

#[test]
fn queue_over_io_uring() {
    queue_agrees_with_a_model(RingKind::Uring, IoMode::Buffered, 11);
}

#[test]
fn queue_over_threads() {
    queue_agrees_with_a_model(RingKind::Threads, IoMode::Buffered, 12);
}

#[test]
fn queue_with_direct_io() {
    queue_agrees_with_a_model(RingKind::Uring, IoMode::Direct, 13);
}

#[test]
fn one_barrier_round_for_a_flush_and_for_a_fork() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), StoreOptions { threads: false, ..StoreOptions::default() }).unwrap();
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
    let options = StoreOptions { owner: "the first opener".into(), ..StoreOptions::default() };
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
        volume.snapshot(&format!("s{layer}")).unwrap();
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

/// A source whose reads are held back until it is released.
struct HeldSource {
    content: Vec<u8>,
    state: Mutex<HeldState>,
}

#[derive(Default)]
struct HeldState {
    released: bool,
    held: Vec<(Range<u64>, ReadDone)>,
    /// How often each block was asked for.
    reads: BTreeMap<u64, u64>,
}

impl HeldSource {
    fn release(&self) {
        let mut state = self.state.lock().unwrap();
        state.released = true;
        let held = std::mem::take(&mut state.held);
        drop(state);
        for (range, done) in held {
            done(Ok(self.bytes(&range)));
        }
    }

    fn bytes(&self, range: &Range<u64>) -> Bytes {
        Bytes::copy_from_slice(&self.content[range.start as usize..range.end as usize])
    }
}

impl Source for HeldSource {
    fn size_bytes(&self) -> u64 {
        self.content.len() as u64
    }

    fn read_bytes_max(&self) -> u32 {
        1 << 20
    }

    fn read(&self, range: Range<u64>, done: ReadDone) {
        let mut state = self.state.lock().unwrap();
        for block in range.start / 4096..range.end.div_ceil(4096) {
            *state.reads.entry(block).or_default() += 1;
        }
        if !state.released {
            return state.held.push((range, done));
        }
        drop(state);
        done(Ok(self.bytes(&range)));
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>, SourceError> {
        Ok(vec![SourceExtent { bytes: range.end - range.start, zero: false }])
    }

    fn describe(&self) -> String {
        "held".into()
    }

    fn stats(&self) -> SourceStats {
        SourceStats::default()
    }

    fn close(&self) {
        for (_, done) in std::mem::take(&mut self.state.lock().unwrap().held) {
            done(Err(SourceError { kind: SourceErrorKind::Closed, message: "closed".into() }));
        }
    }
}

struct HeldOpener(Arc<HeldSource>);

impl SourceOpener for HeldOpener {
    fn open(&self, _: &str) -> Result<Arc<dyn Source>, SourceError> {
        Ok(Arc::clone(&self.0) as _)
    }
}

fn fork_of_a_held_source(directory: &std::path::Path, bytes: usize) -> (Arc<HeldSource>, Store, volfork::Volume) {
    let source = Arc::new(HeldSource { content: pattern(99, bytes), state: Mutex::default() });
    let options = StoreOptions { sources: Some(Arc::new(HeldOpener(Arc::clone(&source)))), ..StoreOptions::default() };
    let store = Store::create(directory, options).unwrap();
    let volume = store.fork("held://x", "a").unwrap();
    (source, store, volume)
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
    let (result, writer, content) = (Arc::clone(&written), Arc::clone(&store), source.content.clone());
    let run = move || *result.lock().unwrap() = write_without_the_source(&writer, &volume, &content);
    assert!(ends_soon(run, Duration::from_secs(20)).0, "somebody waits for the source");
    source.release();
    let (all, forked) = written.lock().unwrap().clone();
    let check = |store: &Store| {
        for (name, expected) in [("a", &all), ("b", &forked)] {
            let mut read = vec![0; BYTES];
            store.volume(name).unwrap().read_at(&mut read, 0).unwrap();
            assert!(read == *expected, "volume {name}");
        }
    };
    check(&store);
    assert!(store.wait_hydrated("a", Duration::from_secs(20)).unwrap());
    check(&store);
    let reads = source.state.lock().unwrap().reads.clone();
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
    source.release();
    receiver.recv_timeout(Duration::from_secs(20)).unwrap();
    let mut expected = source.content.clone();
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
    std::thread::sleep(Duration::from_secs(2));
    source.state.lock().unwrap().released = false;
    let other = store.fork("held://x", "c").unwrap();
    let again = move || (0..4096).for_each(|block| other.write_at(&[1; 3], block * 4096 + 5).unwrap());
    assert!(ends_soon(again, Duration::from_secs(20)).0, "merged patches take room still");
    source.release();
}

/// One of several threads that write sectors of their own, whose neighbours in the same block are others'.
fn write_own_sectors(volume: &volfork::Volume, thread: u64, content: &mut [u8]) {
    let mut random = thread + 1;
    let mut below = |limit: u64| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) % limit
    };
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
    let source = Arc::new(HeldSource { content: pattern(99, BYTES), state: Mutex::default() });
    let sources: Arc<dyn SourceOpener> = Arc::new(HeldOpener(Arc::clone(&source)));
    let options = StoreOptions { sources: Some(sources), checkpoint_bytes: 16 << 10, ..StoreOptions::default() };
    let store = Store::create(dir.path(), options.clone()).unwrap();
    let volume = store.fork("held://x", "a").unwrap();
    let mut expected = source.content.clone();
    let contents: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|thread| {
                let (volume, mut content) = (&volume, source.content.clone());
                scope.spawn(move || {
                    write_own_sectors(volume, thread, &mut content);
                    content
                })
            })
            .collect();
        for number in 0..30 {
            drop(volume.fork(&format!("fork{number}")).unwrap());
            if number == 8 {
                source.release();
            }
            if number % 3 > 0 {
                store.destroy_volume(&format!("fork{number}"), false).unwrap();
            }
            std::thread::sleep(Duration::from_millis(5));
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
    assert!(store.wait_hydrated("a", Duration::from_secs(20)).unwrap());
    assert_eq!(store.scrub(None, &mut |_| {}).unwrap().errors, Vec::<String>::new());
}
