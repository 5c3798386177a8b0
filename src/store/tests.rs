//! Stores with small limits: what overflows at real ones only after hours.

use std::path::Path;

use super::{Store, StoreOptions};
use crate::limits::{Limits, SET_RECORD_BYTES_MIN};

const BLOCK: u64 = 4096;

fn options() -> StoreOptions {
    let limits = Limits {
        set_record_bytes_max: SET_RECORD_BYTES_MIN,
        state_frame_bytes: 8 << 10,
        frame_payload_bytes_max: 64 << 10,
        ..Limits::DEFAULT
    };
    StoreOptions { threads: false, limits, ..StoreOptions::default() }
}

fn open(path: &Path) -> Store {
    Store::open(path, options()).unwrap()
}

/// A fork of a volume with bytes everywhere is trimmed in many places: its presence does not fit into one frame.
#[test]
fn a_layer_in_very_many_pieces_is_closed_and_opened() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), options()).unwrap();
    store.create_volume("base", 32 << 30).unwrap().write_at(&[1; 1 << 20], 0).unwrap();
    store.create_snapshot("base", "s").unwrap();
    let guest = store.fork("base@s", "guest").unwrap();
    let pieces: Vec<u64> = (0..50_000u64).map(|piece| piece * 37 % 2_000_000).collect();
    for (number, block) in pieces.iter().enumerate() {
        guest.discard(block * BLOCK, BLOCK).unwrap();
        if number % 2000 == 0 {
            guest.flush().unwrap();
        }
    }
    guest.write_at(&[2; BLOCK as usize], 5 << 30).unwrap();
    let before = store.show("guest").unwrap();
    drop(guest);
    store.close().unwrap();
    drop(store);
    for _ in 0..2 {
        assert_eq!(Store::check(directory.path(), options()).unwrap().violations, Vec::<String>::new());
        let store = open(directory.path());
        assert_eq!(store.show("guest").unwrap(), before);
        let guest = store.volume("guest").unwrap();
        let mut block = [9; BLOCK as usize];
        for number in 0..256 {
            guest.read_at(&mut block, number * BLOCK).unwrap();
            assert_eq!(block[0], u8::from(!pieces.contains(&number)), "block {number}");
        }
        drop(guest);
        store.close().unwrap();
    }
}
