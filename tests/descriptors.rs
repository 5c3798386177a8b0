//! A process with few descriptors. It is a test program of its own, because the limit holds for the whole process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use volfork::{Store, StoreOptions};

const LIMIT: u64 = 160;
const VOLUMES: usize = 300;

#[test]
fn unflushed_writes_of_many_volumes_use_few_descriptors() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(LIMIT), maximum }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), StoreOptions::default()).unwrap();
    let volumes: Vec<_> = (0..VOLUMES).map(|number| store.create_volume(&format!("v{number}"), 8 << 20).unwrap()).collect();
    for round in 0..2 {
        for (number, volume) in volumes.iter().enumerate() {
            let written = volume.write_at(&[number as u8 ^ round; 4096], 4096);
            written.unwrap_or_else(|error| panic!("volume {number} in round {round}: {error}"));
        }
    }
    for (number, volume) in volumes.iter().enumerate() {
        let mut bytes = [0; 4096];
        volume.read_at(&mut bytes, 4096).unwrap();
        assert_eq!(bytes, [number as u8 ^ 1; 4096]);
    }
    store.close().unwrap();
}
