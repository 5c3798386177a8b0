//! Operations on a store against arrays of bytes.
#![no_main]

use std::collections::BTreeMap;

use volfork::{Store, StoreOptions};

const SIZE: usize = 40 << 10;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let options = || StoreOptions::default().with_threads(false);
    let mut store = Store::create(dir.path(), options()).expect("a store");
    store.create_volume("v0", SIZE as u64).expect("a volume");
    let mut model = BTreeMap::from([("v0".to_owned(), vec![0u8; SIZE])]);
    let mut number = 0;
    for step in bytes.chunks_exact(5).take(40) {
        let name = model.keys().nth(step[1] as usize % model.len()).expect("one is always there").clone();
        let start = u16::from_le_bytes([step[2], step[3]]) as usize % SIZE;
        let end = (start + 1 + step[4] as usize * 64).min(SIZE);
        let volume = store.volume(&name).expect("a volume");
        let content = model.get_mut(&name).expect("named by the model");
        match step[0] % 8 {
            0..=2 => {
                volume.write_at(&vec![step[4]; end - start], start as u64).expect("a write");
                content[start..end].fill(step[4]);
            }
            3 => {
                volume.discard(start as u64, (end - start) as u64).expect("a discard");
                content[start..end].fill(0);
            }
            4 => {
                number += 1;
                let fork = content.clone();
                volume.fork(&format!("v{number}")).expect("a fork");
                model.insert(format!("v{number}"), fork);
            }
            5 => {
                drop(volume);
                store.close().expect("a close");
                store = Store::open(dir.path(), options()).expect("a store");
            }
            6 => {
                volume.flush().expect("a flush");
                while store.step().expect("a step") {}
            }
            _ if model.len() > 1 => {
                store.destroy_volume(&name, true).expect("a destroy");
                model.remove(&name);
            }
            _ => {}
        }
    }
    for (name, content) in model {
        let mut found = vec![1; SIZE];
        store.volume(&name).and_then(|volume| volume.read_at(&mut found, 0)).expect("a read");
        assert!(found == content, "volume {name}");
    }
});
