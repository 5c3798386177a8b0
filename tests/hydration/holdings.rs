//! `Store::holdings`: the blocks of snapshots that a store reports to placement.

use roaring::RoaringBitmap;

use crate::stage::{Actor, Play};
use crate::{Trial, pattern, read, resumed};

const IDENTITY: &str = "0123456789abcdef0123456789abcdef/7";

fn blocks(range: std::ops::Range<u32>) -> Option<RoaringBitmap> {
    Some(RoaringBitmap::from_iter(range))
}

#[test]
fn holdings_of_an_origin_are_fetched_blocks_only() {
    let trial = Trial::new();
    let mut actor = Actor::new("a://", &pattern(11, 1 << 20));
    actor.identity = Some(IDENTITY.into());
    let actor = trial.stage.add(actor);
    let volume = trial.paused_fork(&actor, "v");
    read(&volume, 5 * 4096, 4096).unwrap();
    volume.write_at(&[1; 4096], 9 * 4096).unwrap();
    let holding = &trial.store.holdings()[IDENTITY];
    assert_eq!((holding.present.clone(), holding.size_bytes), (blocks(5..6), 1 << 20));
    assert!(holding.names.is_empty(), "it has no name here");
    // A snapshot of the fork has other bytes, and an identity of its own.
    volume.create_snapshot("s").unwrap();
    let holdings = trial.store.holdings();
    let own = &holdings[&trial.store.snapshot("v", "s").unwrap().identity()];
    assert_eq!((&own.names, own.size_bytes), (&vec!["v@s".to_owned()], 1 << 20));
    let mut expected = blocks(5..6).unwrap();
    expected.insert(9);
    assert_eq!(own.present, Some(expected));
    assert_eq!(holdings.len(), 2);
    // Once nothing is missing, that is all of it, however it came.
    actor.play(|_, _| Play::Answer);
    actor.release();
    trial.store.control_hydration("v", &resumed()).unwrap();
    trial.finish("v");
    let holdings = trial.store.holdings();
    assert_eq!(holdings[&trial.store.snapshot("v", "s").unwrap().identity()].present, None);
}

#[test]
fn the_snapshot_of_a_local_volume_is_held_whole() {
    let trial = Trial::new();
    let volume = trial.store.create_volume("v", 1 << 20).unwrap();
    volume.create_snapshot("s").unwrap();
    volume.fork("w").unwrap().create_snapshot("t").unwrap();
    let holdings = trial.store.holdings();
    let names: Vec<_> = holdings.values().flat_map(|holding| holding.names.clone()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(holdings.values().all(|holding| holding.present.is_none()));
}
