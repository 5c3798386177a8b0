//! Queues: a request with FUA is durable when it completes, without a flush. A flush of one queue makes durable what other queues of
//! the volume completed, as multi-conn of NBD promises.

use std::time::Duration;

use bytes::Bytes;
use volfork::volume::{Queue, Request};

use crate::hold::Kind;
use crate::model::WINDOW_START;
use crate::random::Random;
use crate::world::World;
use crate::{Named, seeds};

/// A flush that does not wait for its own round may take longer, and is missed then.
const SOON: Duration = Duration::from_millis(20);

/// Every way that a forced request takes: on the caller's thread, by a worker, through the ring; zeroes and discards.
fn requests(fua: bool) -> [(Request, u64, usize, u8); 7] {
    let write = |offset: u64, bytes: usize| {
        let data = Bytes::from(vec![7; bytes]);
        (Request::Write { offset, data, fua }, offset, bytes, 7)
    };
    let (offset, bytes) = (WINDOW_START, 8192);
    [
        write(WINDOW_START, 4096),
        write(WINDOW_START + 1000, 700),
        write(1 << 20, 512 << 10),
        // New blocks of an extent that is known need nothing else first.
        write(WINDOW_START + (20 << 10), 4096),
        write(3 << 20, 512 << 10),
        (Request::WriteZeroes { offset, bytes, fua }, offset, bytes as usize, 0),
        (Request::Discard { offset, bytes, fua }, offset, bytes as usize, 0),
    ]
}

/// A store whose volume `v1` has some blocks, and perhaps a snapshot.
fn world(seed: u64, stands_on: bool) -> World {
    let mut world = World::new(seed * 3 + 1);
    world.open().unwrap();
    world.create().unwrap();
    let volume = world.store().volume("v1").unwrap();
    volume.write_at(&[3; 1 << 20], 1 << 20).unwrap();
    volume.write_at(&[3; 16 << 10], WINDOW_START).unwrap();
    volume.flush().unwrap();
    if stands_on {
        world.store().create_snapshot("v1", "s").unwrap();
    }
    world.random = Random::new(seed);
    world
}

fn queue(world: &World) -> Queue {
    world.store().volume("v1").unwrap().queue(4).unwrap()
}

/// Waits for the only request under way.
fn end(queue: &mut Queue) {
    let mut done = Vec::new();
    queue.wait(&mut done, None).unwrap();
    done.pop().unwrap().result.unwrap();
}

fn perform(queue: &mut Queue, request: Request) {
    queue.submit(1, request).unwrap();
    end(queue);
}

/// Whether every byte is as it was written, after the power went off.
fn survives(world: &mut World, offset: u64, bytes: usize, byte: u8) -> bool {
    world.restart_without_looking(true);
    let mut found = vec![0xee; bytes];
    world.store().volume("v1").unwrap().read_at(&mut found, offset).unwrap();
    found.iter().all(|found| *found == byte)
}

#[test]
fn a_forced_request_survives_although_nobody_flushes() {
    for seed in seeds(8) {
        for (number, (request, offset, bytes, byte)) in requests(true).into_iter().enumerate() {
            for stands_on in [false, true] {
                let _named = Named("a forced request", seed);
                let mut world = world(seed, stands_on);
                perform(&mut queue(&world), request.clone());
                assert!(survives(&mut world, offset, bytes, byte), "request {number} is lost");
            }
        }
    }
}

#[test]
fn a_flush_covers_writes_of_other_queues() {
    for seed in seeds(8) {
        for (number, (request, offset, bytes, byte)) in requests(false).into_iter().enumerate() {
            for stands_on in [false, true] {
                let _named = Named("a flush of another queue", seed);
                let mut world = world(seed, stands_on);
                let (mut writing, mut flushing) = (queue(&world), queue(&world));
                perform(&mut writing, request.clone());
                perform(&mut flushing, Request::Flush);
                drop((writing, flushing));
                assert!(survives(&mut world, offset, bytes, byte), "request {number} is lost");
            }
        }
    }
}

/// The round that is under way began before the write, so it says nothing of it.
#[test]
fn a_flush_of_one_queue_waits_for_no_less_than_its_own_round() {
    for seed in seeds(16) {
        let _named = Named("a flush while another one is under way", seed);
        let mut world = world(seed, seed % 2 == 0);
        let [mut first, mut writing, mut flushing] = std::array::from_fn(|_| queue(&world));
        perform(&mut first, requests(false)[4].0.clone());
        world.disk.holds.hold(Kind::Sync, if seed % 4 < 2 { "journal" } else { ".data" });
        first.submit(1, Request::Flush).unwrap();
        world.disk.holds.await_held();
        let (request, offset, bytes, byte) = requests(false)[3].clone();
        perform(&mut writing, request);
        flushing.submit(1, Request::Flush).unwrap();
        let mut done = Vec::new();
        flushing.wait(&mut done, Some(SOON)).unwrap();
        assert!(done.is_empty(), "it ends before a round of its own began");
        world.disk.holds.release();
        end(&mut flushing);
        // The other one may still be on its way to whoever asked for it.
        end(&mut first);
        drop((first, writing, flushing));
        assert!(survives(&mut world, offset, bytes, byte), "the write is lost");
    }
}
