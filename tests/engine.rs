//! The engine through its public calls, on real files.

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

/// Random requests through a queue, compared with an array; writes to the same bytes are never under way together.
fn queue_agrees_with_a_model(kind: volfork::io::RingKind, io_mode: volfork::io::IoMode, seed: u64) {
    use std::collections::HashMap;
    use volfork::volume::Request;
    println!("seed {seed}");
    let mut state = seed;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { ring: Some(kind), io_mode, ..StoreOptions::default() };
    let store = Store::create(dir.path(), options.clone()).unwrap();
    let size = 24u64 << 20;
    let volume = store.create_volume("a", size).unwrap();
    let mut model = vec![0u8; size as usize];
    let mut queue = volume.queue(16).unwrap();
    assert_eq!(queue.kind(), kind);
    let mut under_way: HashMap<u64, (u64, u64, bool)> = HashMap::new();
    let mut completions = Vec::new();
    let mut forks = 0;
    for token in 0..4000u64 {
        let aligned = random(3) > 0;
        let most = if random(20) == 0 { 5 << 20 } else { 40_000 };
        let (mut offset, mut bytes) = (random(size), 1 + random(most));
        if aligned {
            (offset, bytes) = (offset / 4096 * 4096, bytes.next_multiple_of(4096));
        }
        bytes = bytes.min(size - offset);
        let write = random(2) == 0;
        let clashes = |(start, length, other): &(u64, u64, bool)| (write || *other) && offset < start + length && *start < offset + bytes;
        while queue.in_flight() >= 16 || under_way.values().any(clashes) {
            queue.wait(&mut completions, None).unwrap();
            for completion in completions.drain(..) {
                let (start, length, write) = under_way.remove(&completion.token).unwrap();
                let got = completion.result.unwrap();
                if !write {
                    assert!(got[..] == model[start as usize..(start + length) as usize], "read at {start} of {length}");
                }
            }
        }
        let range = offset as usize..(offset + bytes) as usize;
        let request = match (write, random(10)) {
            (false, _) => Request::Read { offset, bytes: bytes as u32 },
            (true, 0) => {
                model[range].fill(0);
                Request::Discard { offset, bytes, fua: random(2) == 0 }
            }
            (true, _) => {
                let data = pattern(token, bytes as usize);
                model[range].copy_from_slice(&data);
                Request::Write { offset, data: data.into(), fua: random(10) == 0 }
            }
        };
        queue.submit(token, request).unwrap();
        under_way.insert(token, (offset, bytes, write));
        match random(200) {
            0 => volume.flush().unwrap(),
            1 => {
                forks += 1;
                drop(volume.fork(&format!("fork{forks}")).unwrap());
            }
            _ => {}
        }
    }
    while queue.in_flight() > 0 {
        queue.wait(&mut completions, None).unwrap();
    }
    assert_eq!(store.destroy_volume("a", false).unwrap_err().kind(), ErrorKind::Busy);
    drop(queue);
    let mut all = vec![0; size as usize];
    volume.read_at(&mut all, 0).unwrap();
    assert!(all == model);
    store.close().unwrap();
    let store = Store::open(dir.path(), options).unwrap();
    store.volume("a").unwrap().read_at(&mut all, 0).unwrap();
    assert!(all == model, "after closing and opening");
    let report = store.scrub(None, &mut |_| {}).unwrap();
    assert_eq!(report.errors, Vec::<String>::new());
}

#[test]
fn queue_over_io_uring() {
    queue_agrees_with_a_model(volfork::io::RingKind::Uring, volfork::io::IoMode::Buffered, 11);
}

#[test]
fn queue_over_threads() {
    queue_agrees_with_a_model(volfork::io::RingKind::Threads, volfork::io::IoMode::Buffered, 12);
}

#[test]
fn queue_with_direct_io() {
    queue_agrees_with_a_model(volfork::io::RingKind::Uring, volfork::io::IoMode::Direct, 13);
}
