//! Blocks that a source answers with errors or damaged bytes.

use std::sync::Arc;

use parking_lot::Mutex;
use volfork::source::ReadClass;
use volfork::volume::{EventKind, HydrationState, OnEvent};
use volfork::{ErrorKind, Store};

use crate::stage::{Actor, Play, Stage};
use crate::{Trial, options, pattern, read, resumed};

const BLOCK: u64 = 4096;
/// The one that cannot be had.
const BAD: u64 = 700;

fn is_bad(range: &std::ops::Range<u64>) -> bool {
    range.contains(&(BAD * BLOCK))
}

#[test]
fn a_permanently_damaged_block_does_not_stop_the_others() {
    for play in [Play::Damage, Play::Fail] {
        let (dir, stage, told) = (tempfile::tempdir().unwrap(), Stage::default(), Arc::<Mutex<Vec<EventKind>>>::default());
        let heard = Arc::clone(&told);
        let on_event: OnEvent = Arc::new(move |event| heard.lock().push(event.kind));
        let store = Store::create(dir.path(), options(&stage).with_on_event(on_event)).unwrap();
        let trial = Trial { stage, store, _dir: dir };
        let data = pattern(81, 16 << 20);
        let actor = trial.stage.add(Actor { identity: Some("host/7".into()), has_checksums: true, ..Actor::new("a://", &data) });
        actor.play(move |range, _| if is_bad(range) { play } else { Play::Answer });
        let volume = trial.store.fork("a://", "v").unwrap();
        let state = || trial.store.show("v").unwrap();
        while state().hydration.state != HydrationState::Degraded {
            std::thread::yield_now();
        }
        assert_eq!(state().blocks.missing, 1, "all others came before anybody was told of a loss");
        while told.lock().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(*told.lock(), [EventKind::Degraded], "{play:?}");
        // Whole requests first, then ever smaller ones around the block.
        let in_vain = actor.reads().iter().filter(|(range, class)| is_bad(range) && *class == ReadClass::Ahead).count();
        assert!(in_vain <= 16, "{in_vain} requests of that block");
        assert_eq!(read(&volume, BAD * BLOCK, 4096).unwrap_err().kind(), ErrorKind::SourceLost);
        assert!(read(&volume, (BAD + 1) * BLOCK, 4096).unwrap() == data[((BAD + 1) * BLOCK) as usize..][..4096]);
        // Repaired at the source, it comes.
        actor.play(|_, _| Play::Answer);
        trial.store.control_hydration("v", &resumed()).unwrap();
        trial.finish("v");
        assert!(read(&volume, 0, data.len()).unwrap() == data);
        trial.store.close().unwrap();
        assert_eq!(*told.lock(), [EventKind::Degraded, EventKind::Recovered, EventKind::Hydrated], "{play:?}");
    }
}

#[test]
fn bytes_that_one_address_lacks_come_from_another() {
    let trial = Trial::new();
    let data = pattern(82, 16 << 20);
    let (a, b) = (trial.stage.add(Actor::new("a://", &data)), trial.stage.add(Actor::new("b://", &data)));
    a.play(|range, _| if is_bad(range) { Play::Fail } else { Play::Answer });
    // Slow to come: the first one has all the rest.
    b.hang_open(true);
    let volume = trial.store.fork(&["a://".into(), "b://".into()], "v").unwrap();
    while trial.store.show("v").unwrap().blocks.missing > 1 {
        std::thread::yield_now();
    }
    b.hang_open(false);
    trial.finish("v");
    assert!(read(&volume, 0, data.len()).unwrap() == data);
    assert_eq!(b.bytes_read(), BLOCK, "{:?}", b.reads());
}
