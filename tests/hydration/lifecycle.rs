//! States of a volume: while its source is asked, while it hydrates, when it is complete.

use std::sync::{Arc, mpsc};

use parking_lot::Mutex;
use volfork::source::ReadClass;
use volfork::volume::{HydrationState, VolumeInfo, VolumeState};
use volfork::{ErrorKind, Store};

use crate::stage::{Actor, PATIENCE, Play, Stage, nice};
use crate::{Trial, options, pattern, read, resumed};

#[test]
fn a_fork_whose_source_is_still_asked_is_shown_and_has_its_name() {
    let trial = Trial::new();
    let actor = trial.stage.add(Actor::new("a://", &pattern(51, 1 << 20)));
    actor.hang_open(true);
    let store = Arc::new(trial.store.clone());
    let forking = {
        let store = Arc::clone(&store);
        std::thread::spawn(move || store.fork("a://", "v").map(drop))
    };
    actor.await_open(1);
    let info = store.show("v").unwrap();
    assert_eq!((info.state, info.source.as_deref(), info.depth), (VolumeState::EnablingRemoteExport, Some("a://"), 0));
    assert_eq!(
        store.list().unwrap().iter().map(|info| (info.name.as_str(), info.state)).collect::<Vec<_>>(),
        [("v", VolumeState::EnablingRemoteExport)]
    );
    // The name is taken, and there is nothing to work with yet.
    let other = trial.stage.add(Actor::new("b://", &pattern(52, 1 << 20)));
    for taken in [store.fork("b://", "v").err(), store.create_volume("v", 4096).err()] {
        assert_eq!(taken.unwrap().kind(), ErrorKind::Exists);
    }
    assert_eq!(other.opened(), 0);
    assert_eq!(store.volume("v").err().unwrap().kind(), ErrorKind::NotFound);
    // Others are not held up.
    store.create_volume("w", 4096).unwrap();
    assert_eq!(store.rename("w", "v").unwrap_err().kind(), ErrorKind::Exists);
    actor.play(|_, _| Play::Hang);
    actor.hang_open(false);
    forking.join().unwrap().unwrap();
    assert_eq!(store.show("v").unwrap().state, VolumeState::Hydrating);
    actor.play(|_, _| Play::Answer);
    actor.release();
    trial.store.control_hydration("v", &resumed()).unwrap();
    trial.finish("v");
    assert_eq!(store.show("v").unwrap().state, VolumeState::Created);
}

#[test]
fn a_fork_that_fails_gives_its_name_back() {
    let trial = Trial::new();
    let actor = trial.stage.add(Actor::new("a://", &pattern(53, 1 << 20)));
    actor.lose(true);
    assert_eq!(trial.store.fork("a://", "v").err().unwrap().kind(), ErrorKind::SourceLost);
    assert_eq!(trial.store.show("v").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(trial.store.list().unwrap().is_empty());
    // One that is still being made is shown with its size.
    actor.lose(false);
    let (sender, receiver) = mpsc::channel::<VolumeInfo>();
    let store = trial.store.clone();
    let watching = std::thread::spawn(move || {
        while let Err(mpsc::TryRecvError::Empty) = receiver.try_recv() {
            if let Ok(info) = store.show("v") {
                assert_ne!(info.state, VolumeState::Degraded);
                assert!(info.state == VolumeState::EnablingRemoteExport || info.size_bytes == 1 << 20, "{info:?}");
            }
        }
    });
    trial.store.fork("a://", "v").unwrap();
    sender.send(trial.store.show("v").unwrap()).unwrap();
    watching.join().unwrap();
    assert!(trial.store.wait_hydrated("v", PATIENCE).unwrap());
}

#[test]
fn what_nobody_waits_for_gives_way_and_connections_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::default();
    let data = pattern(54, 8 << 20);
    let actor = stage.add(Actor::new("a://", &data));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    actor.play(move |_, class| {
        noted.lock().push((class, nice()));
        if class == ReadClass::Ahead { Play::Hang } else { Play::Answer }
    });
    let store = Store::create(dir.path(), options(&stage)).unwrap();
    store.fork("a://", "v").unwrap();
    store.close().unwrap();
    // Backfill connects, since nobody else does.
    let store = Store::open(dir.path(), options(&stage)).unwrap();
    asked.lock().clear();
    actor.await_read(|_, class| class == ReadClass::Ahead);
    let volume = store.volume("v").unwrap();
    assert!(read(&volume, 7 << 20, 4096).unwrap() == data[7 << 20..(7 << 20) + 4096]);
    while !asked.lock().iter().any(|(class, _)| *class == ReadClass::Ahead) {
        std::thread::yield_now();
    }
    let own = nice();
    for (class, nice) in asked.lock().iter() {
        assert_eq!(*nice, if *class == ReadClass::Ahead { (own + 10).min(19) } else { own }, "{class:?}");
    }
    assert_eq!(actor.nice_of_openers(), [own, own], "readers wait for what comes over these connections");
    actor.play(|_, _| Play::Answer);
    actor.release();
    assert!(store.wait_hydrated("v", PATIENCE).unwrap());
}

#[test]
fn what_came_from_where_stays_known_when_all_is_here() {
    let trial = Trial::new();
    let data = pattern(54, 8 << 20);
    let actor = |uri: &str| Actor { identity: Some("host/54".into()), ..Actor::new(uri, &data) };
    let (good, bad) = (trial.stage.add(actor("a://")), trial.stage.add(actor("b://")));
    bad.play(|_, _| Play::Fail);
    good.play(|_, _| Play::Hang);
    trial.store.fork(&["a://".into(), "b://".into()], "v").unwrap();
    trial.store.fork("v", "above").unwrap();
    while trial.store.show("v").unwrap().hydration.sources[1].errors == 0 {
        std::thread::yield_now();
    }
    good.play(|_, _| Play::Answer);
    good.release();
    trial.finish("v");
    for name in ["v", "above"] {
        let info = trial.store.show(name).unwrap();
        let hydration = &info.hydration;
        assert_eq!((info.state, hydration.state, info.source.as_deref()), (VolumeState::Created, HydrationState::None, None));
        let told: Vec<_> = hydration.sources.iter().map(|source| (source.uri.as_str(), source.bytes_fetched, source.failing)).collect();
        assert_eq!(told, [("a://", 8 << 20, false), ("b://", 0, false)]);
        assert!(hydration.sources[1].errors > 0 && hydration.sources[1].last_error.is_some(), "{hydration:?}");
        assert_eq!((hydration.bytes_fetched, hydration.fetched.total()), (8 << 20, 8 << 20));
        assert_eq!((hydration.rate_bytes_per_second, hydration.eta_seconds, hydration.last_error.as_deref()), (0, None, None));
    }
    // A volume that never had a source knows of none.
    trial.store.create_volume("plain", 4096).unwrap();
    assert_eq!(trial.store.show("plain").unwrap().hydration, Default::default());
}
