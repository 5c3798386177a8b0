//! Demand reads with addresses that hang, fail, or cannot be reached.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use volfork::Volume;
use volfork::source::ReadClass;
use volfork::store::HydrationControl;

use crate::stage::{Actor, PATIENCE, Play};
use crate::{Trial, pattern, paused, read};

const BYTES: usize = 8 << 20;

/// Actors that have the same bytes, and a fork of them that is connected to all and fetches nothing by itself.
fn trio() -> (Trial, Vec<u8>, [Arc<Actor>; 3], Volume) {
    let trial = Trial::new();
    let data = pattern(31, BYTES);
    let make = |uri: &str| Actor { has_checksums: true, ..Actor::new(uri, &data) };
    let actors = ["a://", "b://", "c://"].map(|uri| trial.stage.add(make(uri)));
    actors.iter().for_each(|actor| actor.play(|_, _| Play::Hang));
    let uris: Vec<String> = actors.iter().map(|actor| actor.uri.clone()).collect();
    let volume = trial.store.fork(&uris, "v").unwrap();
    for actor in &actors {
        actor.await_read(|_, class| class == ReadClass::Ahead);
    }
    trial.store.control_hydration("v", &paused()).unwrap();
    (trial, data, actors, volume)
}

/// Bulk hangs, and what somebody waits for ends as the script says.
fn waited(actor: &Actor, script: impl Fn() -> Play + Send + Sync + 'static) {
    actor.play(move |_, class| if class == ReadClass::Ahead { Play::Hang } else { script() });
}

/// A read in a thread of its own: a test that waits in vain fails.
pub fn begin(volume: &Volume, offset: u64, bytes: usize) -> mpsc::Receiver<volfork::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    let volume = volume.clone();
    std::thread::spawn(move || drop(sender.send(read(&volume, offset, bytes))));
    receiver
}

/// A place that nobody has asked for in bulk.
const FAR: u64 = BYTES as u64 - (1 << 20);

#[test]
fn a_third_address_is_asked_after_a_hang_and_a_failure() {
    let (trial, data, [a, b, c], volume) = trio();
    waited(&a, || Play::Hang);
    waited(&b, || Play::Lose);
    waited(&c, || Play::Answer);
    let bytes = begin(&volume, FAR, 8192).recv_timeout(PATIENCE).expect("nobody asks the third address").unwrap();
    assert!(bytes == data[FAR as usize..][..8192]);
    for actor in [&a, &b, &c] {
        let asked = actor.reads().into_iter().filter(|(range, class)| *class == ReadClass::Waited && range.start == FAR).count();
        assert_eq!(asked, 1, "{}", actor.uri);
    }
    drop(trial);
}

#[test]
fn damaged_bytes_are_fetched_again_while_an_address_hangs() {
    let (trial, data, [a, b, c], volume) = trio();
    waited(&a, || Play::Hang);
    waited(&c, || Play::Hang);
    let damaged = AtomicUsize::new(0);
    waited(&b, move || if damaged.fetch_add(1, Ordering::SeqCst) == 0 { Play::Damage } else { Play::Answer });
    let bytes = begin(&volume, FAR, 4096).recv_timeout(PATIENCE).expect("nobody asks again").unwrap();
    assert!(bytes == data[FAR as usize..][..4096]);
    drop(trial);
}

#[test]
fn a_hung_or_stalled_long_read_is_hedged() {
    for first in [Play::Hang, Play::Stall] {
        let (trial, data, [a, b, c], volume) = trio();
        waited(&a, move || first);
        waited(&b, || Play::Answer);
        waited(&c, || Play::Hang);
        let bytes = begin(&volume, FAR, 1 << 20).recv_timeout(PATIENCE).expect("nobody asks another address").unwrap();
        assert!(bytes == data[FAR as usize..], "{first:?}");
        assert!(b.reads().iter().any(|(range, class)| *class == ReadClass::Waited && range.start == FAR));
        drop(trial);
    }
}

#[test]
fn an_address_that_failed_is_asked_again_while_the_first_hangs() {
    let (trial, data, [a, b, c], volume) = trio();
    // All but the first fail now, and one of them is better soon.
    let failed = AtomicUsize::new(0);
    waited(&a, || Play::Hang);
    waited(&b, || Play::Lose);
    waited(&c, move || if failed.fetch_add(1, Ordering::SeqCst) == 0 { Play::Lose } else { Play::Answer });
    for actor in [&b, &c] {
        actor.fail_held();
    }
    c.play(|_, _| Play::Answer);
    let bytes = begin(&volume, FAR, 4096).recv_timeout(PATIENCE).expect("nobody asks an address that failed before").unwrap();
    assert!(bytes == data[FAR as usize..][..4096]);
    drop(trial);
}

#[test]
fn an_address_that_cannot_be_connected_to_holds_up_no_reader() {
    let trial = Trial::new();
    let data = pattern(32, BYTES);
    let (a, b) = (trial.stage.add(Actor::new("a://", &data)), trial.stage.add(Actor::new("b://", &data)));
    let volume = trial.paused_fork(&a, "v");
    let add = HydrationControl::default().with_add_sources(vec!["b://".into()]);
    trial.store.control_hydration("v", &add).unwrap();
    // Nobody has connected to it except to look at it, and now nobody can.
    b.hang_open(true);
    a.play(|_, _| Play::Hang);
    // The first address is slow; its answer comes while somebody connects to the second one.
    let slow = begin(&volume, FAR, 4096);
    b.await_open(2);
    a.await_read(|range, class| class == ReadClass::Waited && range.start == FAR);
    a.release();
    let bytes = slow.recv_timeout(PATIENCE).expect("a reader waits for a connection that does not come").unwrap();
    assert!(bytes == data[FAR as usize..][..4096]);
    // The next one is answered by the second address, once that is connected.
    let place = FAR + 65536;
    let slow = begin(&volume, place, 4096);
    a.await_read(|range, class| class == ReadClass::Waited && range.start == place);
    b.hang_open(false);
    let bytes = slow.recv_timeout(PATIENCE).expect("nobody asks the second address").unwrap();
    assert!(bytes == data[place as usize..][..4096]);
    b.await_read(|range, class| class == ReadClass::Waited && range.start == place);
}
