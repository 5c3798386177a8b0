//! Queues over a store in a directory, whose files do what a test tells them.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::catalog::Catalog;
use crate::clock::SystemClock;
use crate::io::faulty::FaultyDisk;
use crate::layer::{Reap, bare_layers};
use crate::limits::Limits;
use crate::place::BlockSize;
use crate::volume::core::{Core, CoreConfig};

const BLOCK: usize = 4096;
const EXTENT: usize = 4 << 20;
/// Longer than anything takes that ends at all.
const PATIENCE: Duration = Duration::from_secs(60);

struct Scene {
    core: Arc<Core>,
    disk: FaultyDisk,
    _dir: tempfile::TempDir,
}

impl Scene {
    /// Files tell no descriptor if they are `plain`, so that every transfer passes through the disk.
    fn new(ring: RingKind, plain: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::default();
        if !plain {
            disk.tell_descriptors();
        }
        let core = Core::new(CoreConfig {
            layers: Arc::new(bare_layers(Arc::new(disk.clone()), dir.path(), Limits::DEFAULT)),
            catalog: Catalog::default(),
            block_size: BlockSize::DEFAULT,
            store_id: String::new(),
            ring: Some(ring),
            sources: None,
            clock: Arc::new(SystemClock::default()),
            threads: false,
            on_event: None,
            lease: Duration::MAX,
        });
        Self { core, disk, _dir: dir }
    }

    fn volume(&self, name: &str) -> Arc<Head> {
        self.core.volumes.create(name, 16 << 20, BTreeMap::new(), Default::default()).unwrap()
    }
}

const KINDS: [RingKind; 2] = [RingKind::Uring, RingKind::Threads];

fn readable(queue: &Queue, timeout: Duration) -> bool {
    let mut poll = libc::pollfd { fd: queue.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` lives past the call.
    unsafe { libc::poll(&raw mut poll, 1, timeout.as_millis() as i32) > 0 }
}

fn take(queue: &mut Queue) -> Vec<Completion> {
    let mut done = Vec::new();
    while queue.in_flight() > 0 {
        assert!(readable(queue, PATIENCE), "nothing tells the owner");
        queue.reap(&mut done).unwrap();
    }
    done
}

fn write(offset: usize, bytes: usize, byte: u8) -> Request {
    Request::Write { offset: offset as u64, data: vec![byte; bytes].into(), fua: false }
}

#[test]
fn whoever_takes_the_wake_of_a_worker_passes_it_on() {
    for kind in KINDS {
        let scene = Scene::new(kind, false);
        let mut queue = Queue::for_volume(&scene.volume("v"), 8).unwrap();
        for round in 0..3 {
            // A part of a block: a worker does it.
            queue.submit(round, write(100, 100, 7)).unwrap();
            assert!(readable(&queue, PATIENCE));
            assert_eq!(queue.shared.finished.lock().len(), 1);
            queue.shared.reap_finished();
            assert!(readable(&queue, Duration::ZERO), "{kind:?}: a helper took the wake of a completion that it left");
            assert_eq!(take(&mut queue).len(), 1);
            queue.reap(&mut Vec::new()).unwrap();
            assert!(!readable(&queue, Duration::ZERO), "{kind:?}: there is nothing");
        }
    }
}

#[test]
fn whoever_takes_the_completion_of_a_transfer_wakes_its_owner() {
    for kind in KINDS {
        let scene = Scene::new(kind, false);
        let head = scene.volume("v");
        head.write(&vec![1; 512 << 10], 0, None).unwrap();
        let mut queue = Queue::for_volume(&head, 8).unwrap();
        queue.submit(0, write(0, 512 << 10, 2)).unwrap();
        assert_eq!(queue.shared.inner.lock().ring.in_flight(), 1);
        while queue.shared.inner.lock().ring.in_flight() > 0 {
            queue.shared.reap_finished();
        }
        assert!(readable(&queue, Duration::ZERO), "{kind:?}");
        queue.shared.reap_finished();
        assert!(readable(&queue, Duration::ZERO), "{kind:?}: the second helper took the wake of the first");
        assert!(take(&mut queue).pop().unwrap().result.is_ok());
    }
}

#[test]
fn the_descriptor_signals_early_ends_and_unsubmitted_work() {
    for kind in KINDS {
        let scene = Scene::new(kind, false);
        let head = scene.volume("v");
        head.write(&vec![1; 512 << 10], 0, None).unwrap();
        let mut queue = Queue::for_volume(&head, 8).unwrap();
        let requests = [
            Request::Read { offset: 8 << 20, bytes: 4096 },
            Request::Read { offset: 0, bytes: 4096 },
            write(0, BLOCK, 2),
            write(0, 512 << 10, 3),
            Request::Read { offset: 0, bytes: 512 << 10 },
            Request::Flush,
        ];
        for (token, request) in requests.into_iter().enumerate() {
            queue.submit(token as u64, request.clone()).unwrap();
            // As an owner would that never reaps without being told.
            let done = take(&mut queue);
            assert!(matches!(&done[..], [Completion { result: Ok(_), .. }]), "{kind:?}: {request:?}: {done:?}");
        }
        // Asked for after the request has ended.
        let mut queue = Queue::for_volume(&head, 8).unwrap();
        queue.submit(0, Request::Read { offset: 8 << 20, bytes: 4096 }).unwrap();
        assert_eq!(take(&mut queue).len(), 1);
    }
}

#[test]
fn a_time_that_no_clock_reaches_is_no_limit() {
    let scene = Scene::new(RingKind::Threads, false);
    let mut queue = Queue::for_volume(&scene.volume("v"), 8).unwrap();
    queue.submit(0, Request::Flush).unwrap();
    assert_eq!(queue.wait(&mut Vec::new(), Some(Duration::MAX)).unwrap(), 1);
}

/// A queue write that goes to the ring.
const LARGE: usize = 512 << 10;

#[test]
fn a_full_disk_refuses_a_wide_write_before_any_change() {
    for (kind, plain) in [(RingKind::Uring, true), (RingKind::Threads, true), (RingKind::Threads, false)] {
        let scene = Scene::new(kind, plain);
        let head = scene.volume("v");
        // Blocks that are there to the end of an extent, then one that is not, then some that are.
        head.write(&vec![1; EXTENT], 0, None).unwrap();
        head.write(&vec![1; EXTENT / 2], EXTENT as u64 + BLOCK as u64, None).unwrap();
        head.flush().unwrap();
        // Both extents are marked, so that a queue's write waits for no round.
        [0, EXTENT as u64 + BLOCK as u64].iter().for_each(|offset| head.write(&[1; BLOCK], *offset, None).unwrap());
        head.flush().unwrap();
        scene.disk.set_full(true);
        let offset = EXTENT - LARGE / 2;
        let mut queue = Queue::for_volume(&head, 8).unwrap();
        queue.submit(0, write(offset, LARGE, 2)).unwrap();
        queue.submit(1, write(offset, BLOCK * 8, 3)).unwrap();
        // Only new blocks: as far as it gets, nobody sees them.
        queue.submit(2, write(3 * EXTENT - LARGE / 2, LARGE, 4)).unwrap();
        for done in take(&mut queue) {
            match done.token {
                1 => assert!(done.result.is_ok(), "what overwrites needs no space: {done:?}"),
                _ => assert_eq!(done.result.unwrap_err().kind(), ErrorKind::NoSpace),
            }
        }
        assert_eq!(head.write(&vec![5; LARGE], offset as u64, None).unwrap_err().kind(), ErrorKind::NoSpace);
        head.flush().unwrap();
        head.zero(2 * EXTENT as u64, EXTENT as u64, None).unwrap();
        let mut bytes = vec![9; LARGE];
        head.read(&mut bytes, offset as u64).unwrap();
        let expected = |at: usize| match at {
            at if at < BLOCK * 8 => 3,
            at if (LARGE / 2..LARGE / 2 + BLOCK).contains(&at) => 0,
            _ => 1,
        };
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == expected(at)), "{kind:?}, {plain}");
        head.read(&mut bytes, (3 * EXTENT - LARGE / 2) as u64).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
        scene.disk.set_full(false);
        queue.submit(0, write(offset, LARGE, 6)).unwrap();
        assert!(take(&mut queue).pop().unwrap().result.is_ok());
        head.flush().unwrap();
    }
}

#[test]
fn a_write_that_panics_in_the_disk_stops_nobody() {
    for kind in KINDS {
        for present in [false, true] {
            let scene = Scene::new(kind, true);
            let head = scene.volume("v");
            if present {
                head.write(&vec![1; 2 * LARGE], 0, None).unwrap();
            }
            let mut queue = Queue::for_volume(&head, 8).unwrap();
            // Inline, through the ring, and in part of a block, which a worker does.
            let requests = [write(0, BLOCK, 2), write(BLOCK, LARGE, 2), write(LARGE + 2 * BLOCK + 100, 100, 2)];
            for (token, request) in requests.iter().enumerate() {
                scene.disk.panic_writes(true);
                queue.submit(token as u64, request.clone()).unwrap();
                let done = take(&mut queue).pop().unwrap();
                assert!(done.result.is_err(), "{kind:?}: {request:?}");
                let blocking = || head.write(&vec![2; BLOCK + 100], 0, None);
                let outcome = catch_unwind(AssertUnwindSafe(blocking));
                assert!(!matches!(outcome, Ok(Ok(()))));
                scene.disk.panic_writes(false);
                // A ring's transfer that overwrote blocks may have reached the disk in part.
                if scene.core.layers.healthy().is_ok() {
                    scene.core.volumes.create_snapshot("v", &format!("s{token}"), None).unwrap();
                    head.write(&vec![1; BLOCK], 0, None).unwrap();
                    head.flush().unwrap();
                } else {
                    assert!(token > 0, "{kind:?}, {present}: {request:?}");
                    drop(head.close());
                }
            }
            let mut bytes = vec![0; 2 * LARGE];
            head.read(&mut bytes, 0).unwrap();
        }
    }
}

#[test]
fn closing_waits_for_what_a_queue_has_and_refuses_the_rest() {
    for kind in KINDS {
        let scene = Scene::new(kind, false);
        let head = scene.volume("v");
        head.write(&vec![1; 3 * LARGE], 0, None).unwrap();
        let mut queue = Queue::for_volume(&head, 8).unwrap();
        queue.submit(0, write(0, LARGE, 2)).unwrap();
        queue.submit(1, Request::Write { offset: LARGE as u64, data: vec![2; LARGE].into(), fua: true }).unwrap();
        queue.submit(2, write(100, 100, 2)).unwrap();
        // Of blocks that nobody writes: one that met a write would begin again, and be refused.
        queue.submit(3, Request::Read { offset: 2 * LARGE as u64, bytes: LARGE as u32 }).unwrap();
        // By the queue's owner, who cannot reap meanwhile.
        scene.core.pool.fence.shut();
        scene.core.pool.fence.wait_empty(|| scene.core.layers.reapers.help());
        assert_eq!(queue.submit(4, write(0, BLOCK, 3)).unwrap_err().kind(), ErrorKind::Closed);
        let ended = queue.in_flight();
        let mut done = Vec::new();
        assert_eq!((queue.reap(&mut done).unwrap(), queue.in_flight()), (ended, 0), "{kind:?}");
        for done in done {
            // A write with FUA may have been caught before its flush.
            assert!(done.result.is_ok() || done.token == 1, "{kind:?}: {done:?}");
        }
        let mut bytes = vec![0; LARGE];
        head.read(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 2), "{kind:?}");
    }
}

#[test]
fn numbers_near_the_end_of_all_numbers_are_out_of_range() {
    let scene = Scene::new(RingKind::Threads, false);
    let head = scene.volume("v");
    let mut queue = Queue::for_volume(&head, 64).unwrap();
    for offset in [u64::MAX, u64::MAX - 4095, u64::MAX - 4096, i64::MAX as u64, 16 << 20, (16 << 20) - 4095] {
        let requests = [
            Request::Read { offset, bytes: 4096 },
            Request::Write { offset, data: vec![1; 4096].into(), fua: false },
            Request::Discard { offset, bytes: u64::MAX, fua: false },
            Request::WriteZeroes { offset, bytes: 4096, fua: true },
            Request::Prefetch { offset, bytes: u64::MAX },
        ];
        for request in requests {
            queue.submit(0, request.clone()).unwrap();
            let done = take(&mut queue).pop().unwrap();
            if !matches!(request, Request::Prefetch { .. }) {
                assert_eq!(done.result.unwrap_err().kind(), ErrorKind::OutOfRange, "{request:?}");
            }
        }
    }
}
