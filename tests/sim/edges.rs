//! Ends of volumes and of number ranges, for every block size: no call panics, loops or allocates without bound, and ends are exact.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use volfork::volume::Request;
use volfork::{BlockSize, ErrorKind, Snapshot, Store, StoreOptions, Volume};

use crate::clock::SimClock;
use crate::disk::SimDisk;
use crate::random::Random;

const BYTES_MAX: u64 = 16 << 40;

fn options(disk: &SimDisk, block_bytes: u32) -> StoreOptions {
    StoreOptions::default()
        .with_disk(Arc::new(disk.clone()))
        .with_clock(Arc::new(SimClock::default()))
        .with_threads(false)
        .with_block_size(BlockSize::new(block_bytes).unwrap())
}

/// Ranges that lie in a volume, end behind it, end behind all numbers, and end before they begin.
fn ranges(size_bytes: u64) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    for start in [0, 1, size_bytes - 1, size_bytes, size_bytes + 1, BYTES_MAX - 1, BYTES_MAX, u64::MAX - 1, u64::MAX] {
        for bytes in [0, 1, 511, 4096, 1 << 20, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let end = start.saturating_add(bytes);
            ranges.extend([start..end, end..start]);
        }
    }
    ranges
}

/// Whether a call that takes a range took it as it should.
fn answers<T>(outcome: volfork::Result<T>, fits: bool, what: &str) {
    match outcome {
        Ok(_) => assert!(fits, "{what}: taken"),
        Err(error) => assert!(!fits && error.kind() == ErrorKind::OutOfRange, "{what}: {error}"),
    }
}

fn ask_volume(volume: &Volume, size_bytes: u64) {
    let mut queue = volume.queue(8).unwrap();
    for range in ranges(size_bytes) {
        let (offset, bytes) = (range.start, range.end.saturating_sub(range.start));
        let fits = |bytes: u64| offset.checked_add(bytes).is_some_and(|end| end <= size_bytes);
        let what = |call: &str| format!("{call} of {range:?} in {size_bytes} bytes");
        let small = bytes.min(1 << 20);
        answers(volume.read_at(&mut vec![0; small as usize], offset), fits(small), &what("read"));
        answers(volume.prefetch(offset, bytes), fits(bytes), &what("prefetch"));
        answers(volume.runs(range.clone(), 4), fits(bytes), &what("runs"));
        answers(volume.allocation(range.clone(), 4), fits(bytes), &what("allocation"));
        answers(volume.changed_since("s", &range, 4), fits(bytes), &what("changes"));
        if !fits(bytes) {
            answers(volume.discard(offset, bytes), false, &what("discard"));
            answers(volume.write_zeroes(offset, bytes), false, &what("zeroes"));
        }
        if !fits(small) {
            answers(volume.write_at(&vec![0; small as usize], offset), false, &what("write"));
        }
        let mut requests = vec![Request::Read { offset, bytes: small as u32 }, Request::Prefetch { offset, bytes }];
        if !fits(bytes) {
            requests.push(Request::Discard { offset, bytes, fua: true });
        }
        if !fits(small) {
            requests.push(Request::Write { offset, data: vec![0; small as usize].into(), fua: true });
        }
        let mut done = Vec::new();
        for (token, request) in requests.into_iter().enumerate() {
            queue.submit(token as u64, request).unwrap();
        }
        while queue.in_flight() > 0 {
            queue.wait(&mut done, None).unwrap();
        }
        for completion in done {
            answers(completion.result, fits(if completion.token == 0 { small } else { bytes }) && completion.token < 2, &what("request"));
        }
    }
}

fn ask_snapshot(snapshot: &Snapshot, size_bytes: u64, block_bytes: u64) {
    for range in ranges(size_bytes) {
        let what = format!("{range:?} of {size_bytes} bytes");
        let bytes = range.end.saturating_sub(range.start);
        let fits = range.start <= size_bytes && bytes <= size_bytes - range.start;
        answers(snapshot.runs(range.clone(), 4), fits, &what);
        answers(snapshot.allocation(range.clone(), 4), fits, &what);
        // The last block may be named as a whole.
        let whole = size_bytes.next_multiple_of(block_bytes);
        match snapshot.checksums(range.clone()) {
            Ok(checksums) => {
                assert!(bytes == 0 || range.end <= whole, "{what}");
                let blocks = range.end.div_ceil(block_bytes).saturating_sub(range.start / block_bytes);
                assert_eq!(checksums.len() as u64, if bytes == 0 { 0 } else { blocks }, "{what}");
            }
            Err(error) => assert!(range.end > whole || range.start > whole || bytes / block_bytes >= 1 << 20, "{what}: {error}"),
        }
    }
    // The very last block has a checksum, and it is that of its bytes.
    let start = (size_bytes - 1) / block_bytes * block_bytes;
    let mut last = vec![0; block_bytes as usize];
    snapshot.read_at(&mut last[..(size_bytes - start) as usize], start).unwrap();
    assert_eq!(snapshot.checksums(start..size_bytes).unwrap(), [Some(crc32fast::hash(&last))]);
}

#[test]
fn nothing_overflows_and_the_ends_are_exact() {
    for block_bytes in [4096u32, 65536] {
        for size_bytes in [1, 4097, u64::from(block_bytes) * 1024 + 1, (8 << 40) + 7, BYTES_MAX - 1, BYTES_MAX] {
            let disk = SimDisk::default();
            let store = Store::create(Path::new("store"), options(&disk, block_bytes)).unwrap();
            let volume = store.create_volume("v", size_bytes).unwrap();
            let end = size_bytes.min(100_000) as usize;
            volume.write_at(&vec![7; end], size_bytes - end as u64).unwrap();
            volume.flush().unwrap();
            store.create_snapshot("v", "s").unwrap();
            let fork = store.fork("v@s", "f").unwrap();
            ask_volume(&volume, size_bytes);
            ask_snapshot(&store.snapshot("v", "s").unwrap(), size_bytes, u64::from(block_bytes));
            // What a shrink leaves in the last block is not told either.
            if size_bytes > 2 {
                store.resize("v", size_bytes - 1, true).unwrap();
                store.create_snapshot("v", "shrunk").unwrap();
                ask_snapshot(&store.snapshot("v", "shrunk").unwrap(), size_bytes - 1, u64::from(block_bytes));
            }
            fork.discard(size_bytes - 1, 1).unwrap();
            fork.discard(0, size_bytes).unwrap();
            fork.write_at(&[9], size_bytes - 1).unwrap();
            store.resize("f", (size_bytes / 2).max(1), true).unwrap();
            store.resize("f", size_bytes, true).unwrap();
            let mut last = [1];
            fork.read_at(&mut last, size_bytes - 1).unwrap();
            assert!(size_bytes == 1 || last == [0], "{size_bytes}");
            while store.step().unwrap() {}
            drop((volume, fork));
            disk.power_off();
            drop(store);
            disk.crash(&mut Random::new(size_bytes));
            let store = Store::open(Path::new("store"), options(&disk, block_bytes)).unwrap();
            let snapshot = store.snapshot("v", "s").unwrap();
            let mut bytes = vec![0; end];
            snapshot.read_at(&mut bytes, size_bytes - end as u64).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 7));
            store.close().unwrap();
            assert!(Store::check(Path::new("store"), options(&disk, block_bytes)).unwrap().violations.is_empty());
        }
    }
}
