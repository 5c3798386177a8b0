//! The death of the process: what was acknowledged is there for the next one, flushed or not.

use std::collections::BTreeMap;

use super::*;
use crate::random::Random;

const BYTES: u64 = 64 * BLOCK;

/// Volumes with what was acknowledged of each.
type Model = BTreeMap<String, Vec<u8>>;

/// One random change of a random volume.
fn change(store: &Store, model: &mut Model, random: &mut Random, number: u64) {
    let name = model.keys().nth(random.index(model.len())).unwrap().clone();
    let volume = store.volume(&name).unwrap();
    let count = model.len();
    let bytes = model.get_mut(&name).unwrap();
    let range = |random: &mut Random| {
        let align = if random.one_in(3) { 512 } else { BLOCK };
        let (start, length) = (random.below(BYTES / align), 1 + random.below(8 * BLOCK / align));
        let range = start * align..(start + length).min(BYTES / align) * align;
        range.start as usize..range.end as usize
    };
    match random.below(20) {
        0..7 => {
            let range = range(random);
            let data = random.bytes(range.len());
            volume.write_at(&data, range.start as u64).unwrap();
            bytes[range].copy_from_slice(&data);
        }
        7..11 => {
            let range = range(random);
            volume.write_zeroes(range.start as u64, range.len() as u64).unwrap();
            bytes[range].fill(0);
        }
        11..13 => volume.flush().unwrap(),
        13 if count < 6 => {
            let (fork, bytes) = (format!("v{number}"), bytes.clone());
            volume.fork(&fork).unwrap();
            model.insert(fork, bytes);
        }
        14 => volume.create_snapshot(&format!("s{number}")).unwrap(),
        15 if count > 1 => {
            drop(volume);
            store.destroy_volume(&name, true).unwrap();
            model.remove(&name);
        }
        16 => {
            // What lay behind the end is zero when the volume grows again.
            let size = random.below(64) * BLOCK + 512;
            store.resize(&name, size, true).unwrap();
            store.resize(&name, BYTES, false).unwrap();
            bytes[size as usize..].fill(0);
        }
        _ => steps(store, 3),
    }
}

fn assert_holds(store: &Store, model: &Model, what: &str) {
    assert_eq!(store.volume_names(), model.keys().cloned().collect::<Vec<_>>(), "{what}");
    for (name, expected) in model {
        let mut bytes = vec![0; expected.len()];
        store.volume(name).unwrap().read_at(&mut bytes, 0).unwrap();
        let differs = bytes.chunks(512).zip(expected.chunks(512)).position(|(found, expected)| found != expected);
        assert_eq!(differs, None, "{what}: the first sector of {name} that differs");
    }
}

#[test]
fn what_a_killed_process_acknowledged_is_there() {
    for seed in 0..60 {
        println!("seed {seed}");
        let directory = tempfile::tempdir().unwrap();
        let path = |number: u64| directory.path().join(number.to_string());
        let disk = FaultyDisk::default();
        disk.keep_page_cache();
        let mut random = Random::new(seed);
        let mut store = Store::create(path(0), on(&disk)).unwrap();
        store.create_volume("v", BYTES).unwrap();
        let mut model = Model::from([("v".to_owned(), vec![0; BYTES as usize])]);
        for kill in 1..6 {
            for number in 0..random.below(40) {
                change(&store, &mut model, &mut random, kill * 1000 + number);
            }
            killed(&path(kill - 1), &path(kill));
            let next = Store::open(path(kill), on(&disk)).unwrap();
            assert_holds(&next, &model, &format!("seed {seed}, kill {kill}"));
            std::mem::forget(std::mem::replace(&mut store, next));
        }
    }
}
