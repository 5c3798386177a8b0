//! A store under the seeded scheduler, on the files of the machine: queues, plain calls, forks and background work at a time.

mod closing;
mod leases;

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Store, StoreOptions};
use crate::clock::Clock;
use crate::error::{ErrorKind, Result};
use crate::io::RingKind;
use crate::limits::{Limits, Planted};
use crate::sync::{sim, thread};
use crate::volume::{Queue, Request, Run, RunKind, Volume};

const BLOCK: u64 = 4096;
/// Bytes that one task writes, in a region of its own.
const REGION: u64 = 16 * BLOCK;

struct VirtualClock;

impl Clock for VirtualClock {
    fn monotonic(&self) -> Duration {
        sim::now()
    }

    fn unix(&self) -> Duration {
        Duration::from_secs(1_000_000) + sim::now()
    }
}

pub(crate) fn options() -> StoreOptions {
    // A fixed owner: its length is part of what is written.
    StoreOptions { clock: Arc::new(VirtualClock), owner: "proof".into(), ..StoreOptions::default() }
}

/// What a region should hold: the byte that each block was last filled with; `None` after a change that was refused or cut off.
type Expected = [Option<u8>; (REGION / BLOCK) as usize];

fn check(volume: &Volume, region: u64, expected: &Expected) -> Result<()> {
    for (block, byte) in expected.iter().enumerate() {
        let mut buffer = [0; BLOCK as usize];
        volume.read_at(&mut buffer, region * REGION + block as u64 * BLOCK)?;
        let byte = byte.unwrap_or(buffer[0]);
        assert!(buffer.iter().all(|found| *found == byte), "block {block} of region {region} is {:?}, not {byte}", &buffer[..4]);
    }
    Ok(())
}

fn wait_for_all(queue: &mut Queue) -> Result<()> {
    let (mut done, mut result) = (Vec::new(), Ok(()));
    while queue.in_flight() > 0 {
        match sim::below(3) {
            0 => {
                queue.wait(&mut done, Some(Duration::from_millis(sim::below(50))))?;
            }
            1 => {
                queue.wait(&mut done, None)?;
            }
            _ => {
                // As an event loop; a wake that is lost is a deadlock.
                let mut readable = [libc::pollfd { fd: queue.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
                crate::sync::poll(&mut readable, None).unwrap();
                queue.reap(&mut done)?;
            }
        }
    }
    for done in done {
        result = result.and(done.result.map(drop));
    }
    result
}

/// Writes, zeroes, flushes and reads through a queue.
fn by_queue(volume: &Volume, region: u64, expected: &mut Expected) -> Result<()> {
    let mut queue = volume.queue(4)?;
    for token in 1..=12u8 {
        let block = sim::below(expected.len() as u64) as usize;
        let offset = region * REGION + block as u64 * BLOCK;
        let fua = sim::below(4) == 0;
        let (request, byte) = match sim::below(4) {
            0 => (Request::Flush, expected[block]),
            1 => (Request::WriteZeroes { offset, bytes: BLOCK, fua }, Some(0)),
            _ => (Request::Write { offset, data: Bytes::from(vec![token; BLOCK as usize]), fua }, Some(token)),
        };
        if !matches!(request, Request::Flush) {
            expected[block] = None;
        }
        queue.submit(u64::from(token), request)?;
        // Only requests one after another are in order.
        wait_for_all(&mut queue)?;
        expected[block] = byte;
    }
    for token in 0..4 {
        queue.submit(token, Request::Read { offset: region * REGION + token * BLOCK, bytes: BLOCK as u32 })?;
    }
    // Or the queue goes with its reads under way.
    if sim::below(2) == 0 { wait_for_all(&mut queue) } else { Ok(()) }
}

/// The same through plain calls.
fn by_calls(volume: &Volume, region: u64, expected: &mut Expected) -> Result<()> {
    for byte in 1..=12u8 {
        let block = sim::below(expected.len() as u64) as usize;
        let offset = region * REGION + block as u64 * BLOCK;
        let choice = sim::below(5);
        if choice == 0 {
            volume.flush()?;
            continue;
        }
        expected[block] = None;
        let byte = if choice == 1 { 0 } else { byte };
        match choice {
            1 => volume.discard(offset, BLOCK)?,
            _ => volume.write_at(&[byte; BLOCK as usize], offset)?,
        }
        expected[block] = Some(byte);
    }
    check(volume, region, expected)
}

/// Forks, and reads what the fork shares.
fn by_forks(volume: &Volume) -> Result<()> {
    for number in 0..3 {
        let fork = volume.fork(&format!("fork-{number}"))?;
        let mut buffer = [0; BLOCK as usize];
        fork.read_at(&mut buffer, sim::below(2) * REGION)?;
        assert!(buffer.iter().all(|byte| *byte == buffer[0]), "half of a write is in a fork");
        fork.write_at(&[99; 512], 7)?;
        thread::sleep(Duration::from_millis(sim::below(20)));
    }
    Ok(())
}

/// What a history has beside its tasks.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Plain,
    /// The store is closed in the middle.
    Closes,
    /// Many threads cannot be started.
    WithoutThreads,
}

fn ends_as(shape: Shape, result: Result<()>) {
    match result {
        Err(error) if shape == Shape::Closes && error.kind() == ErrorKind::Closed => {}
        result => result.unwrap(),
    }
}

fn history(path: &Path, shape: Shape, options: StoreOptions) {
    let store = Store::create(path, options.clone()).unwrap();
    let volume = store.create_volume("volume", 4 * REGION).unwrap();
    let (mut first, mut second) = ([Some(0); 16], [Some(0); 16]);
    thread::scope(|scope| {
        let tasks: [Box<dyn FnOnce() -> Result<()> + Send>; 3] =
            [Box::new(|| by_queue(&volume, 0, &mut first)), Box::new(|| by_calls(&volume, 1, &mut second)), Box::new(|| by_forks(&volume))];
        for task in tasks {
            scope.spawn(move || ends_as(shape, task()));
        }
        if shape == Shape::WithoutThreads {
            sim::fail_starts_of_threads(2);
        }
        if shape == Shape::Closes {
            thread::sleep(Duration::from_micros(sim::below(20_000)));
            store.close().unwrap();
        }
    });
    drop(volume);
    store.close().unwrap();
    sim::fail_starts_of_threads(0);
    let store = Store::open(path, options).unwrap();
    let volume = store.volume("volume").unwrap();
    check(&volume, 0, &first).unwrap();
    check(&volume, 1, &second).unwrap();
    if store.volume_names().contains(&"fork-0".to_owned()) {
        store.destroy_volume("fork-0", true).unwrap();
    }
    store.close().unwrap();
}

fn run(seed: u64, shape: Shape) -> sim::Outcome<()> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    sim::run(seed, sim::Config::default(), move || {
        let ring = (sim::below(3) == 0).then_some(RingKind::Threads);
        history(&path, shape, StoreOptions { ring, ..options() });
    })
}

#[test]
fn queues_calls_and_forks_at_a_time_keep_every_byte_and_end() {
    for seed in sim::seeds(40) {
        run(seed, Shape::Plain).unwrap();
    }
}

#[test]
fn a_store_that_is_closed_in_the_middle_keeps_what_was_done() {
    for seed in sim::seeds(40) {
        run(seed, Shape::Closes).unwrap();
    }
}

#[test]
fn without_threads_everything_is_done_all_the_same() {
    for seed in sim::seeds(20) {
        run(seed, Shape::WithoutThreads).unwrap();
    }
}

/// A fork whose hydration gets no thread is there, is read, and is hydrated when there are threads again.
#[test]
fn a_fork_of_a_source_without_threads_is_hydrated_later() {
    for seed in sim::seeds(10) {
        let dir = tempfile::tempdir().unwrap();
        let (path, image) = (dir.path().join("store"), dir.path().join("image"));
        std::fs::write(&image, [7; 64 * BLOCK as usize]).unwrap();
        sim::run(seed, sim::Config::default(), move || {
            let sources = Some(Arc::new(crate::source::UriSources::default()) as _);
            let store = Store::create(&path, StoreOptions { sources, ..options() }).unwrap();
            sim::fail_starts_of_threads(1);
            let fork = store.fork(&format!("file://{}", image.display()), "f").unwrap();
            let mut buffer = [0; BLOCK as usize];
            fork.read_at(&mut buffer, 5 * BLOCK).unwrap();
            assert_eq!(buffer, [7; BLOCK as usize]);
            sim::fail_starts_of_threads(0);
            assert!(store.wait_hydrated("f", Duration::from_secs(60)).unwrap(), "nobody begins to hydrate it");
            drop(fork);
            store.close().unwrap();
        })
        .unwrap();
    }
}

#[test]
fn a_seed_repeats_a_history_of_the_whole_engine() {
    for seed in 0..3 {
        let (first, second) = (run(seed, Shape::Plain), run(seed, Shape::Plain));
        assert_eq!((first.trace, first.steps, first.switches), (second.trace, second.steps, second.switches), "seed {seed}");
    }
}

/// A run over a store of its own.
fn run_in_store(seed: u64, body: impl FnOnce(&Path) + Send + 'static) -> sim::Outcome<()> {
    let dir = tempfile::tempdir().unwrap();
    sim::run(seed, sim::Config::default(), move || body(&dir.path().join("store")))
}

fn without_threads() -> StoreOptions {
    StoreOptions { threads: false, ..options() }
}

/// The bytes of a block are all the same; answers which.
fn byte_at(volume: &Volume, block: u64) -> Result<u8> {
    let mut buffer = [0; BLOCK as usize];
    volume.read_at(&mut buffer, block * BLOCK)?;
    assert!(buffer.iter().all(|byte| *byte == buffer[0]), "block {block} is torn");
    Ok(buffer[0])
}

/// A volume that ends within a block is discarded to its end while it grows, is written behind that end, and shrinks again.
fn discards_beside_growth(path: &Path, planted: Planted) {
    const SIZE: u64 = BLOCK + 512;
    let limits = Limits { planted, ..Limits::DEFAULT };
    let store = Store::create(path, StoreOptions { limits, ..without_threads() }).unwrap();
    let volume = store.create_volume("v", SIZE).unwrap();
    volume.write_at(&[1; SIZE as usize], 0).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| (0..6).for_each(|_| volume.discard(100, SIZE - 100).unwrap()));
        scope.spawn(|| {
            for _ in 0..4 {
                volume.resize(2 * BLOCK, false).unwrap();
                volume.write_at(&[9; 512], SIZE).unwrap();
                let mut behind = [7; 512];
                volume.read_at(&mut behind, SIZE).unwrap();
                assert_eq!(behind, [9; 512], "a discard took what was written behind its end");
                volume.resize(SIZE, true).unwrap();
            }
        });
    });
    let mut bytes = [7; SIZE as usize];
    volume.read_at(&mut bytes, 0).unwrap();
    assert!(bytes[..100] == [1; 100] && bytes[100..].iter().all(|byte| *byte == 0));
}

/// F26.
#[test]
fn a_discard_to_the_end_spares_what_is_written_behind_it() {
    let run = |seed, planted| run_in_store(seed, move |path| discards_beside_growth(path, planted));
    for seed in sim::seeds(20) {
        run(seed, Planted::Nothing).unwrap();
    }
    let seen = (0..500).find_map(|seed| run(seed, Planted::SizeBeforeTheGate).result.err());
    assert_eq!(seen.expect("no seed shows a size that was taken before the gate").kind, sim::FailureKind::Panic);
}

/// A volume is forked and gets snapshots, while one task flushes it and one writes and flushes. Then the process is killed.
fn flushes_beside_seals(path: &Path, planted: Planted) {
    let limits = Limits { planted, ..Limits::DEFAULT };
    let options = || StoreOptions { limits, ..without_threads() };
    let store = Store::create(path, options()).unwrap();
    let volume = store.create_volume("v", 1 << 20).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..6 {
                volume.create_snapshot(&format!("s{number}")).unwrap();
                volume.fork(&format!("f{number}")).unwrap();
            }
        });
        scope.spawn(|| (0..20).for_each(|_| volume.flush().unwrap()));
        for first in [1, 11] {
            let volume = &volume;
            scope.spawn(move || {
                for block in first..first + 10u8 {
                    volume.write_at(&[block; BLOCK as usize], u64::from(block) * BLOCK).unwrap();
                    volume.flush().unwrap();
                }
            });
        }
    });
    let copy = path.with_extension("killed");
    super::tests::killed(path, &copy);
    let volume = Store::open(&copy, options()).unwrap().volume("v").unwrap();
    for block in 1..21 {
        assert_eq!(u64::from(byte_at(&volume, block).unwrap()), block, "a block that was flushed");
    }
}

/// A flush of the head that follows a sealed one names its blocks in no frame before that with the record of the new head: recovery
/// would not know their layer, and pass them by.
#[test]
fn a_flush_beside_the_seal_of_a_head_keeps_what_it_made_durable() {
    let run = |seed, planted| run_in_store(seed, move |path| flushes_beside_seals(path, planted));
    for seed in sim::seeds(40) {
        run(seed, Planted::Nothing).unwrap();
    }
    let seen = (0..1500).find_map(|seed| run(seed, Planted::SealedInTwoRounds).result.err());
    let seen = seen.expect("no seed shows a head that was flushed before its record");
    assert!(seen.kind == sim::FailureKind::Panic && format!("{seen:?}").contains("a block that was flushed"), "{seen:?}");
}

/// E4: a handle acts on its volume, whatever that is called and whatever else has its name by then.
#[test]
fn a_handle_keeps_its_volume_while_two_volumes_swap_names() {
    let history = |path: &Path| {
        let store = Store::create(path, without_threads()).unwrap();
        let volumes = [1, 2].map(|byte| {
            let volume = store.create_volume(&format!("v{byte}"), u64::from(byte) << 20).unwrap();
            volume.write_at(&[byte; BLOCK as usize], 0).unwrap();
            volume
        });
        thread::scope(|scope| {
            scope.spawn(|| {
                for (from, to) in [("v1", "x"), ("v2", "v1"), ("x", "v2"), ("v1", "x"), ("v2", "v1"), ("x", "v2")] {
                    store.rename(from, to).unwrap();
                }
            });
            for (volume, byte) in volumes.iter().zip(1u8..) {
                scope.spawn(move || {
                    let first = sim::below(3);
                    for call in (first..3).chain(0..first) {
                        match call {
                            0 => {
                                let fork = volume.fork(&format!("fork-{byte}")).unwrap();
                                assert_eq!(byte_at(&fork, 0).unwrap(), byte, "the fork of another volume");
                            }
                            1 => volume.create_snapshot(&format!("s{byte}")).unwrap(),
                            _ => volume.resize(volume.size_bytes() + BLOCK, false).unwrap(),
                        }
                    }
                });
            }
        });
        for (volume, byte) in volumes.iter().zip(1u8..) {
            assert_eq!(volume.size_bytes(), (u64::from(byte) << 20) + BLOCK);
            assert_eq!(store.snapshot_names(&volume.name()).unwrap(), [format!("s{byte}")]);
        }
    };
    for seed in sim::seeds(60) {
        run_in_store(seed, history).unwrap();
    }
}

/// A snapshot's layer loses a block without anything that took its place, which must not happen: its readers are told, and end.
#[test]
fn a_read_of_a_block_that_its_layer_has_lost_ends_with_an_error() {
    let history = |path: &Path| {
        let store = Store::create(path, without_threads()).unwrap();
        let volume = store.create_volume("v", 1 << 20).unwrap();
        volume.write_at(&[7; BLOCK as usize], 0).unwrap();
        volume.create_snapshot("s").unwrap();
        let snapshot = store.snapshot("v", "s").unwrap();
        let read = || snapshot.read_at(&mut [0; BLOCK as usize], 0);
        read().unwrap();
        let layers = &store.0.core.layers;
        assert!(layers.zeroes.forget(&layers.all()[0], &roaring::RoaringBitmap::from_iter([0])).unwrap());
        layers.barriers.sync([]).unwrap();
        while layers.punch.step().unwrap() {}
        assert_eq!(read().unwrap_err().kind(), ErrorKind::Corrupt);
        let mut queue = snapshot.queue(1).unwrap();
        queue.submit(0, Request::Read { offset: 0, bytes: BLOCK as u32 }).unwrap();
        let mut done = Vec::new();
        queue.wait(&mut done, None).unwrap();
        assert_eq!(done.remove(0).result.unwrap_err().kind(), ErrorKind::Corrupt);
    };
    for seed in sim::seeds(3) {
        run_in_store(seed, history).unwrap();
    }
}

/// What a call answers while its volume is destroyed.
fn done_or_gone<T>(result: Result<T>) -> Option<T> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        result => Some(result.unwrap()),
    }
}

/// Calls of all kinds on a volume over a snapshot, which shows other bytes.
fn calls(volume: &Volume, task: u64) {
    for number in 0..4u64 {
        match task {
            0 => {
                let byte = done_or_gone(byte_at(volume, sim::below(4)));
                assert!(byte.is_none_or(|byte| byte == 2), "{byte:?} from below the volume that was destroyed");
            }
            1 => {
                let runs = done_or_gone(volume.allocation(0..4 * BLOCK, 4));
                assert!(runs.is_none_or(|runs| matches!(runs[..], [Run { kind: RunKind::Data { .. }, .. }])));
            }
            2 => {
                done_or_gone(volume.write_at(&[2; 700], sim::below(3) * BLOCK + 3800).and_then(|()| volume.flush()));
            }
            3 => {
                done_or_gone(volume.discard(8 * BLOCK + 100, 3 * BLOCK).and_then(|()| volume.resize((1 << 20) + number, false)));
            }
            _ => {
                if let Some(fork) = done_or_gone(volume.fork(&format!("f{number}"))) {
                    assert_eq!(byte_at(&fork, sim::below(4)).unwrap(), 2);
                }
                done_or_gone(volume.create_snapshot(&format!("s{number}")));
            }
        }
    }
}

#[test]
fn calls_beside_a_destroy_succeed_or_say_the_volume_is_gone() {
    let history = |path: &Path| {
        let store = Store::create(path, without_threads()).unwrap();
        let base = store.create_volume("base", 1 << 20).unwrap();
        base.write_at(&[1; 16 * BLOCK as usize], 0).unwrap();
        base.create_snapshot("s").unwrap();
        let volume = store.fork("base@s", "volume").unwrap();
        volume.write_at(&[2; 4 * BLOCK as usize], 0).unwrap();
        thread::scope(|scope| {
            let volume = &volume;
            for task in 0..5 {
                scope.spawn(move || calls(volume, task));
            }
            scope.spawn(|| {
                thread::sleep(Duration::from_micros(sim::below(3000)));
                store.destroy_volume("volume", true).unwrap();
                while store.step().unwrap() {}
            });
        });
        let gone = |result: Result<()>| assert_eq!(result.unwrap_err().kind(), ErrorKind::NotFound);
        gone(byte_at(&volume, 0).map(drop));
        gone(volume.write_at(&[3], 0));
        gone(volume.flush());
        gone(volume.discard(0, BLOCK));
        gone(volume.allocation(0..BLOCK, 1).map(drop));
        gone(volume.fork("late").map(drop));
        gone(volume.create_snapshot("late"));
        gone(volume.resize(2 << 20, false));
        assert_eq!(byte_at(&base, 5).unwrap(), 1);
        store.close().unwrap();
    };
    for seed in sim::seeds(60) {
        run_in_store(seed, history).unwrap();
    }
}

/// E10: the store is closed when `close` returns, also if another thread closes it.
#[test]
fn every_close_ends_when_the_store_is_closed() {
    let history = |path: &Path| {
        let store = Store::create(path, options()).unwrap();
        let volume = store.create_volume("volume", 1 << 20).unwrap();
        volume.write_at(&[1; BLOCK as usize], 0).unwrap();
        let looks = crate::sync::Mutex::new(());
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    store.close().unwrap();
                    let _one_at_a_time = looks.lock();
                    // Refused while another handle has the store open.
                    assert_eq!(Store::check(path, options()).unwrap().violations, Vec::<String>::new());
                });
            }
        });
    };
    for seed in sim::seeds(20) {
        run_in_store(seed, history).unwrap();
    }
}

/// The callback that gives the new size of a volume may take long, and may close the store.
#[test]
fn a_store_is_closed_while_a_new_size_is_asked_for() {
    let history = |path: &Path| {
        let store = Store::create(path, without_threads()).unwrap();
        let volume = store.create_volume("v", BLOCK).unwrap();
        let other = thread::scope(|scope| {
            let other = scope.spawn(|| volume.resize(3 * BLOCK, false));
            let size_of = |bytes| {
                thread::sleep(Duration::from_micros(sim::below(100)));
                store.close().map(|()| 2 * bytes)
            };
            assert_eq!(store.resize_with("v", size_of).unwrap_err().kind(), ErrorKind::Closed);
            other.join().unwrap()
        });
        assert!(other.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::Closed), "{other:?}");
        let size_bytes = Store::open(path, without_threads()).unwrap().volume("v").unwrap().size_bytes();
        assert_eq!(size_bytes, if other.is_ok() { 3 * BLOCK } else { BLOCK });
    };
    for seed in sim::seeds(10) {
        run_in_store(seed, history).unwrap();
    }
}
