//! Forced writes (FUA) through a queue: durable when they complete, although nobody flushes.

use bytes::Bytes;
use volfork::volume::Request;

use crate::model::WINDOW_START;
use crate::random::Random;
use crate::world::World;
use crate::{Named, seeds};

/// Every way that a forced request takes: on the caller's thread, by a worker, through the ring; zeroes and discards.
fn requests() -> [(Request, u64, usize, u8); 7] {
    let write = |offset: u64, bytes: usize| {
        let data = Bytes::from(vec![7; bytes]);
        (Request::Write { offset, data, fua: true }, offset, bytes, 7)
    };
    let (offset, bytes) = (WINDOW_START, 8192);
    [
        write(WINDOW_START, 4096),
        write(WINDOW_START + 1000, 700),
        write(1 << 20, 512 << 10),
        // New blocks of an extent that is known need nothing else first.
        write(WINDOW_START + (20 << 10), 4096),
        write(3 << 20, 512 << 10),
        (Request::WriteZeroes { offset, bytes, fua: true }, offset, bytes as usize, 0),
        (Request::Discard { offset, bytes, fua: true }, offset, bytes as usize, 0),
    ]
}

#[test]
fn a_forced_request_survives_although_nobody_flushes() {
    for seed in seeds(8) {
        for (number, (request, offset, bytes, byte)) in requests().into_iter().enumerate() {
            for stands_on in [false, true] {
                let _named = Named("a forced request", seed);
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
                let mut queue = volume.queue(4).unwrap();
                let mut done = Vec::new();
                queue.submit(1, request.clone()).unwrap();
                queue.wait(&mut done, None).unwrap();
                assert!(done.pop().unwrap().result.is_ok());
                drop((queue, volume));
                world.random = Random::new(seed);
                world.restart_without_looking(true);
                let mut found = vec![0xee; bytes];
                world.store().volume("v1").unwrap().read_at(&mut found, offset).unwrap();
                assert!(found.iter().all(|found| *found == byte), "request {number} is lost");
            }
        }
    }
}
