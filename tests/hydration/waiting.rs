//! How long readers wait for a source that does not answer: a bounded time, shared by all of them.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use volfork::source::{ReadClass, Source, SourceError, SourceErrorKind, SourceOpener};
use volfork::store::HydrationControl;
use volfork::volume::Request;
use volfork::{Clock, ErrorKind, Store, SystemClock, Volume};

use crate::hedging::begin;
use crate::stage::{Actor, PATIENCE, Play, Stage};
use crate::{Trial, options, pattern, paused, read, resumed};

/// The machine's clock, and as many seconds as the test has let pass.
#[derive(Default)]
struct Ahead(SystemClock, AtomicU64);

impl Clock for Ahead {
    fn monotonic(&self) -> Duration {
        self.0.monotonic() + Duration::from_secs(self.1.load(Ordering::SeqCst))
    }

    fn unix(&self) -> Duration {
        self.0.unix()
    }
}

/// Many readers wait for one block a minute long, and the one request for it fails: all of them are told. One that asks again hangs.
fn all_are_told_at_once(trial: &Trial, clock: &Ahead, actor: &Actor, volume: &Volume, kind: SourceErrorKind) {
    const READERS: u64 = 8;
    actor.play(|_, _| Play::Hang);
    let readers: Vec<_> = (0..READERS).map(|_| begin(volume, 4 << 20, 4096)).collect();
    while trial.store.show("v").unwrap().hydration.readers_waiting < READERS {
        std::thread::yield_now();
    }
    actor.await_read(|_, class| class == ReadClass::Waited);
    clock.1.store(60, Ordering::SeqCst);
    actor.fail_held_with(kind);
    for reader in readers {
        assert_eq!(reader.recv_timeout(PATIENCE).expect("a reader waits on").unwrap_err().kind(), ErrorKind::SourceLost);
    }
}

#[test]
fn who_waits_for_one_block_is_told_of_its_loss_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (stage, clock) = (Stage::default(), Arc::new(Ahead::default()));
    let store = Store::create(dir.path(), options(&stage).with_clock(Arc::clone(&clock) as _)).unwrap();
    let trial = Trial { stage, store, _dir: dir };
    let data = pattern(41, 8 << 20);
    let actor = trial.stage.add(Actor::new("a://", &data));
    let volume = trial.paused_fork(&actor, "v");
    all_are_told_at_once(&trial, &clock, &actor, &volume, SourceErrorKind::Lost);
    let asked = actor.reads().iter().filter(|(_, class)| *class == ReadClass::Waited).count();
    assert_eq!(asked, 1, "one request for all of them");
    // A later reader makes a request of its own.
    actor.play(|_, class| if class == ReadClass::Ahead { Play::Hang } else { Play::Answer });
    assert!(read(&volume, 4 << 20, 4096).unwrap() == data[4 << 20..(4 << 20) + 4096]);
}

/// A server that is told to stop waits for its clients.
#[test]
fn a_paused_hydration_closes_and_reopens_its_connection() {
    let dir = tempfile::tempdir().unwrap();
    let (stage, clock) = (Stage::default(), Arc::new(Ahead::default()));
    let store = Store::create(dir.path(), options(&stage).with_clock(Arc::clone(&clock) as _)).unwrap();
    let trial = Trial { stage, store, _dir: dir };
    let data = pattern(47, 8 << 20);
    let actor = trial.stage.add(Actor::new("a://", &data));
    let volume = trial.paused_fork(&actor, "v");
    actor.play(|_, _| Play::Answer);
    actor.release();
    let again = |control: HydrationControl| drop(trial.store.control_hydration("v", &control).unwrap());
    // One that somebody waits for is used.
    actor.play(|_, _| Play::Hang);
    let reader = begin(&volume, 4 << 20, 4096);
    actor.await_read(|range, class| class == ReadClass::Waited && range.start == 4 << 20);
    clock.1.store(60, Ordering::SeqCst);
    again(paused());
    actor.release();
    assert!(reader.recv_timeout(PATIENCE).expect("it is answered").unwrap() == data[4 << 20..(4 << 20) + 4096]);
    let opened = actor.opened();
    clock.1.store(120, Ordering::SeqCst);
    again(paused());
    actor.await_closed(opened);
    // The next miss makes it again, and it is closed again.
    actor.play(|_, _| Play::Answer);
    assert!(read(&volume, 6 << 20, 4096).unwrap() == data[6 << 20..(6 << 20) + 4096]);
    assert_eq!(actor.opened(), opened + 1);
    clock.1.store(180, Ordering::SeqCst);
    again(paused());
    actor.await_closed(opened + 1);
    again(resumed());
    trial.finish("v");
    // One that is complete has no connection.
    actor.await_closed(actor.opened());
    assert!(read(&volume, 0, data.len()).unwrap() == data);
}

/// Readers wait for its actors for an hour.
struct Patient(Stage);

impl Patient {
    const HOUR: Duration = Duration::from_secs(3600);
}

impl SourceOpener for Patient {
    fn open(&self, uri: &str) -> Result<Arc<dyn Source>, SourceError> {
        self.0.open(uri)
    }

    fn patience(&self) -> Duration {
        Self::HOUR
    }
}

/// A store whose readers wait for an hour, on a clock that the test lets go on.
fn patient_trial() -> (Trial, Arc<Ahead>) {
    let dir = tempfile::tempdir().unwrap();
    let (stage, clock) = (Stage::default(), Arc::new(Ahead::default()));
    let sources = Some(Arc::new(Patient(stage.clone())) as _);
    let mut options = options(&stage).with_clock(Arc::clone(&clock) as _);
    options.sources = sources;
    let store = Store::create(dir.path(), options).unwrap();
    (Trial { stage, store, _dir: dir }, clock)
}

#[test]
fn readers_wait_for_a_lost_address_up_to_the_timeout() {
    let (trial, clock) = patient_trial();
    let data = pattern(48, 8 << 20);
    let actor = trial.stage.add(Actor::new("a://", &data));
    let volume = trial.paused_fork(&actor, "v");
    actor.play(|_, _| Play::Answer);
    actor.release();
    // Nobody is connected any more, and nobody can connect.
    clock.1.fetch_add(60, Ordering::SeqCst);
    trial.store.control_hydration("v", &paused()).unwrap();
    actor.await_closed(actor.opened());
    actor.lose(true);
    let gone = |offset| {
        let begun = actor.begun();
        let reader = begin(&volume, offset, 4096);
        // It asks again.
        actor.await_open(begun + 2);
        reader
    };
    let given_up = gone(3 << 20);
    trial.store.give_up_waiting();
    assert_eq!(given_up.recv_timeout(PATIENCE).expect("it is given up").unwrap_err().kind(), ErrorKind::SourceLost);
    let lucky = [gone(4 << 20), gone(5 << 20)];
    actor.lose(false);
    for (reader, offset) in lucky.into_iter().zip([4 << 20, 5 << 20]) {
        assert!(reader.recv_timeout(PATIENCE).expect("it is answered").unwrap() == data[offset..offset + 4096]);
    }
    clock.1.fetch_add(60, Ordering::SeqCst);
    trial.store.control_hydration("v", &paused()).unwrap();
    actor.await_closed(actor.opened());
    actor.lose(true);
    let unlucky = gone(6 << 20);
    clock.1.fetch_add(Patient::HOUR.as_secs(), Ordering::SeqCst);
    assert_eq!(unlucky.recv_timeout(PATIENCE).expect("its patience is over").unwrap_err().kind(), ErrorKind::SourceLost);
    // One that comes then asks once.
    let begun = actor.begun();
    assert_eq!(read(&volume, 7 << 20, 4096).unwrap_err().kind(), ErrorKind::SourceLost);
    assert_eq!(actor.begun(), begun + 1);
    actor.lose(false);
    assert!(read(&volume, 7 << 20, 4096).unwrap() == data[7 << 20..(7 << 20) + 4096]);
}

/// A source that is there and cannot give a block does not come back.
#[test]
fn readers_of_an_unreadable_block_fail_at_once() {
    let (trial, clock) = patient_trial();
    let actor = trial.stage.add(Actor::new("a://", &pattern(49, 8 << 20)));
    let volume = trial.paused_fork(&actor, "v");
    all_are_told_at_once(&trial, &clock, &actor, &volume, SourceErrorKind::Failed);
}

/// A server that hangs up at one block and gives all others is not asked for that one each time that it gives another.
#[test]
fn a_source_that_comes_and_goes_is_asked_once_a_second() {
    const BLOCK: u64 = 4096;
    const READS: u64 = 300;
    let (trial, _clock) = patient_trial();
    let data = pattern(50, 8 << 20);
    let actor = trial.stage.add(Actor::new("a://", &data));
    let volume = trial.paused_fork(&actor, "v");
    const LOST: u64 = 6 << 20;
    actor.play(|range, class| match class {
        ReadClass::Ahead => Play::Hang,
        ReadClass::Waited if range.contains(&LOST) => Play::Lose,
        _ => Play::Answer,
    });
    let reader = begin(&volume, LOST, 4096);
    actor.await_read(|range, _| range.contains(&LOST));
    let begun = std::time::Instant::now();
    for number in 0..READS {
        let offset = (number * 2 * BLOCK) as usize;
        assert!(read(&volume, offset as _, 4096).unwrap() == data[offset..offset + 4096]);
    }
    let asked = actor.reads().iter().filter(|(range, class)| *class == ReadClass::Waited && range.contains(&LOST)).count() as u64;
    let seconds = begun.elapsed().as_secs();
    assert!(asked <= 4 + 2 * seconds, "asked {asked} times in {seconds} s");
    actor.play(|_, class| if class == ReadClass::Ahead { Play::Hang } else { Play::Answer });
    assert!(reader.recv_timeout(PATIENCE).expect("it is answered").unwrap() == data[LOST as usize..LOST as usize + 4096]);
}

#[test]
fn readers_of_a_lost_source_block_nothing_and_end_on_close() {
    let (trial, _clock) = patient_trial();
    let data = pattern(51, 8 << 20);
    let actor = trial.stage.add(Actor::new("a://", &data));
    let volume = trial.paused_fork(&actor, "v");
    actor.play(|_, class| if class == ReadClass::Ahead { Play::Hang } else { Play::Lose });
    actor.lose(true);
    let readers: Vec<_> = (0..20).map(|number| begin(&volume, (4 << 20) + number * 8192, 4096)).collect();
    let asked = actor.reads().len();
    actor.await_reads(asked + 2);
    let (sender, done) = mpsc::channel();
    let (store, writer) = (trial.store.clone(), volume.clone());
    std::thread::spawn(move || {
        let all = || -> volfork::Result<()> {
            writer.write_at(&[7; 512], (4 << 20) + 512)?;
            writer.write_at(&[7; 8192], 5 << 20)?;
            writer.discard(6 << 20, 8192)?;
            writer.flush()?;
            store.create_snapshot("v", "s")?;
            writer.fork("w")?.flush()?;
            store.destroy_snapshot("v", "s")?;
            store.resize("v", 16 << 20, false)?;
            store.destroy_volume("w", true)?;
            store.destroy_volume("v", true)
        };
        let _ = sender.send(all());
    });
    done.recv_timeout(PATIENCE).expect("something waits for the source").unwrap();
    for reader in readers {
        reader.recv_timeout(PATIENCE).expect("a reader waits for a source of a volume that is gone").unwrap_err();
    }
    trial.store.close().unwrap();
}

#[test]
fn who_waits_can_be_given_up_and_later_readers_ask_again() {
    let trial = Trial::new();
    let data = pattern(42, 8 << 20);
    let actor = trial.stage.add(Actor::new("a://", &data));
    let volume = trial.paused_fork(&actor, "v");
    actor.play(|_, _| Play::Hang);
    let readers: Vec<_> = [4 << 20, 4 << 20, 6 << 20].into_iter().map(|offset| begin(&volume, offset, 4096)).collect();
    while trial.store.show("v").unwrap().hydration.readers_waiting < 3 {
        std::thread::yield_now();
    }
    trial.store.give_up_waiting();
    for reader in readers {
        assert_eq!(reader.recv_timeout(PATIENCE).expect("a reader waits on").unwrap_err().kind(), ErrorKind::SourceLost);
    }
    actor.play(|_, _| Play::Answer);
    assert!(read(&volume, 4 << 20, 4096).unwrap() == data[4 << 20..(4 << 20) + 4096]);
}

#[test]
fn a_read_given_up_while_connecting_is_not_sent() {
    let trial = Trial::new();
    let data = pattern(44, 8 << 20);
    let actor = trial.stage.add(Actor::new("a://", &data));
    let volume = trial.paused_fork(&actor, "v");
    actor.play(|_, _| Play::Hang);
    trial.store.give_up_waiting();
    let opened = actor.opened();
    actor.hang_open(true);
    let reader = begin(&volume, 4 << 20, 4096);
    actor.await_open(opened + 1);
    trial.store.give_up_waiting();
    actor.hang_open(false);
    assert_eq!(reader.recv_timeout(PATIENCE).expect("a reader waits on").unwrap_err().kind(), ErrorKind::SourceLost);
    // A connection that comes when nobody waits for it any more is closed, and later readers connect anew.
    actor.play(|_, _| Play::Answer);
    assert!(read(&volume, 4 << 20, 4096).unwrap() == data[4 << 20..(4 << 20) + 4096]);
    assert!((opened + 1..=opened + 2).contains(&actor.opened()));
}

#[test]
fn blocks_that_are_brought_ahead_and_do_not_come_stop_no_reader() {
    const HINTS: u64 = 400;
    let trial = Trial::new();
    let data = pattern(45, 8 << 20);
    let actor = trial.stage.add(Actor::new("a://", &data));
    let volume = trial.paused_fork(&actor, "v");
    actor.play(|range, _| if range.start < 4 << 20 { Play::Hang } else { Play::Answer });
    let mut hints = volume.queue(HINTS as u32).unwrap();
    for number in 0..HINTS {
        hints.submit(number, Request::Prefetch { offset: number * 8192, bytes: 4096 }).unwrap();
    }
    hints.reap(&mut Vec::new()).unwrap();
    actor.await_read(|range, class| range.start < 4 << 20 && class == ReadClass::Waited);
    let mut reads = volume.queue(1).unwrap();
    reads.submit(0, Request::Read { offset: 6 << 20, bytes: 4096 }).unwrap();
    let mut done = Vec::new();
    assert_eq!(reads.wait(&mut done, Some(PATIENCE)).unwrap(), 1, "the read waits for the hints");
    assert!(done.pop().unwrap().result.unwrap() == data[6 << 20..(6 << 20) + 4096]);
    // Nobody waits for what the rest would bring.
    drop(hints);
    actor.play(|_, _| Play::Answer);
    let asked = actor.reads().len();
    actor.release();
    assert!(read(&volume, 7 << 20, 4096).unwrap() == data[7 << 20..(7 << 20) + 4096]);
    assert!(actor.reads().len() < asked + 100, "hints of a queue that is gone are followed");
}

#[test]
fn a_hung_source_stops_only_reads_of_its_own_blocks() {
    const READS: u64 = 200;
    let trial = Trial::new();
    let data = pattern(43, 8 << 20);
    let (hung, well) = (trial.stage.add(Actor::new("a://", &data)), trial.stage.add(Actor::new("b://", &data)));
    let volume = trial.paused_fork(&hung, "v");
    let other = trial.paused_fork(&well, "w");
    let local = trial.store.create_volume("local", 1 << 20).unwrap();
    hung.play(|_, _| Play::Hang);
    well.play(|_, class| if class == ReadClass::Ahead { Play::Hang } else { Play::Answer });
    let mut reads = volume.queue(READS as u32).unwrap();
    for number in 0..READS {
        reads.submit(number, Request::Read { offset: (4 << 20) + number * 8192, bytes: 4096 }).unwrap();
    }
    while trial.store.show("v").unwrap().hydration.readers_waiting < READS {
        std::thread::yield_now();
    }
    let does = |volume: &Volume, request: Request| {
        let (mut queue, mut done) = (volume.queue(1).unwrap(), Vec::new());
        queue.submit(0, request.clone()).unwrap();
        assert_eq!(queue.wait(&mut done, Some(PATIENCE)).unwrap(), 1, "{request:?} waits for somebody else's source");
        done.remove(0).result.unwrap()
    };
    let sector = || Bytes::from_static(&[7; 512]);
    for volume in [&local, &other, &volume] {
        does(volume, Request::Write { offset: 512, data: sector(), fua: false });
        does(volume, Request::Flush);
        does(volume, Request::Write { offset: 4096, data: sector(), fua: true });
        does(volume, Request::Discard { offset: 8192, bytes: 8192, fua: false });
        assert!(does(volume, Request::Read { offset: 512, bytes: 512 }) == [7; 512][..]);
    }
    assert!(does(&other, Request::Read { offset: 5 << 20, bytes: 4096 }) == data[5 << 20..(5 << 20) + 4096]);
    trial.store.give_up_waiting();
}

/// Damages the first block of every data file of a store.
fn damage_first_blocks(store: &std::path::Path) {
    for entry in std::fs::read_dir(store.join("layers")).unwrap() {
        let file = OpenOptions::new().write(true).open(entry.unwrap().path()).unwrap();
        if file.metadata().unwrap().len() >= 4096 {
            file.write_all_at(&[0xee; 4096], 0).unwrap();
        }
    }
}

/// A damaged block of a root is fetched again by whoever reads it, also by a write of a part of it. Meanwhile that write must hold
/// nothing for which others wait.
#[test]
fn a_write_waiting_for_a_repair_blocks_no_fork_or_flush() {
    const BLOCK: usize = 4096;
    let trial = Trial::new();
    let data = pattern(45, 1 << 20);
    let actor = trial.stage.add(Actor::new("a://", &data));
    let volume = trial.paused_fork(&actor, "v");
    assert!(read(&volume, 0, BLOCK).unwrap() == data[..BLOCK]);
    volume.flush().unwrap();
    damage_first_blocks(trial._dir.path());
    // The block behind it is new: a flush names it when nobody holds it.
    volume.write_at(&[1; BLOCK], BLOCK as u64).unwrap();
    let asked = actor.reads().len();
    actor.play(|_, _| Play::Hang);
    let (sender, written) = mpsc::channel();
    let writer = volume.clone();
    std::thread::spawn(move || drop(sender.send(writer.write_at(&[2; BLOCK], 100))));
    actor.await_reads(asked + 1);
    let (sender, done) = mpsc::channel();
    let other = volume.clone();
    std::thread::spawn(move || drop(sender.send(other.fork("w").and_then(|fork| fork.flush()).and_then(|()| other.flush()))));
    let done = done.recv_timeout(PATIENCE);
    actor.play(|_, class| if class == ReadClass::Ahead { Play::Hang } else { Play::Answer });
    actor.release();
    written.recv_timeout(PATIENCE).expect("the write ends").unwrap();
    done.expect("a fork or a flush waits for the source").unwrap();
    let mut expected = data[..100].to_vec();
    expected.extend([[2; BLOCK].as_slice(), &[1; BLOCK - 100]].concat());
    assert!(read(&volume, 0, 2 * BLOCK).unwrap() == expected);
    let fork = trial.store.volume("w").unwrap();
    assert!(read(&fork, 0, 2 * BLOCK).unwrap() == [&data[..BLOCK], &[1; BLOCK]].concat());
}

/// The background makes blocks whole that were written in part. Where the rest is damaged it leaves that to a reader, who may wait for
/// the source.
#[test]
fn background_work_waits_for_no_repair_of_a_block_below_a_patch() {
    const BLOCK: usize = 4096;
    let (dir, stage) = (tempfile::tempdir().unwrap(), Stage::default());
    let store = Store::create(dir.path(), options(&stage).with_threads(false)).unwrap();
    let trial = Trial { stage, store, _dir: dir };
    let data = pattern(46, 1 << 20);
    let actor = trial.stage.add(Actor::new("a://", &data));
    let volume = trial.paused_fork(&actor, "v");
    let other = volume.fork("w").unwrap();
    for block in 0..2 {
        volume.write_at(&[1; 100], block * BLOCK as u64 + 5).unwrap();
    }
    assert!(read(&other, 0, 2 * BLOCK).unwrap() == data[..2 * BLOCK]);
    volume.flush().unwrap();
    damage_first_blocks(trial._dir.path());
    let asked = actor.reads().len();
    actor.play(|_, _| Play::Hang);
    let (sender, idle) = mpsc::channel();
    let store = trial.store.clone();
    std::thread::spawn(move || {
        // All that there is to do now.
        let steps = (0..20).try_for_each(|_| store.step().map(drop));
        drop(sender.send(steps));
    });
    let stepped = idle.recv_timeout(PATIENCE);
    let reads = actor.reads();
    actor.play(|_, _| Play::Answer);
    actor.release();
    stepped.expect("background work waits for a source").unwrap();
    assert_eq!(reads.len(), asked, "it was asked for {:?}", &reads[asked..]);
    let mut expected = data[..2 * BLOCK].to_vec();
    [5, BLOCK + 5].into_iter().for_each(|at| expected[at..at + 100].fill(1));
    assert!(read(&volume, 0, 2 * BLOCK).unwrap() == expected);
    assert!(read(&other, 0, 2 * BLOCK).unwrap() == data[..2 * BLOCK]);
}
