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
