//! A store under the seeded scheduler, on the files of the machine: queues, plain calls, forks and background work at a time.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Store, StoreOptions};
use crate::clock::Clock;
use crate::error::{ErrorKind, Result};
use crate::io::RingKind;
use crate::sync::{sim, thread};
use crate::volume::{Queue, Request, Volume};

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

#[test]
fn a_seed_repeats_a_history_of_the_whole_engine() {
    for seed in 0..3 {
        let (first, second) = (run(seed, Shape::Plain), run(seed, Shape::Plain));
        assert_eq!((first.trace, first.steps, first.switches), (second.trace, second.steps, second.switches), "seed {seed}");
    }
}
