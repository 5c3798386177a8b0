//! The queue and its journal space, with rounds that end as a test says.

use std::sync::Arc;

use super::super::bare::{commit, commit_on};
use super::cost::{NEW_BLOCK_BYTES, SHAPE_BYTES, SHAPING_BYTES_MAX};
use super::queue::{Gathered, RoundError, Rounds, Ticket};
use crate::error::{Error, ErrorKind};
use crate::format::{BlocksRecord, Record, frame_bytes};
use crate::ids::LayerId;
use crate::io::faulty::FaultyDisk;
use crate::limits::Limits;
use crate::place::Extent;

/// Rounds that do nothing.
struct Idle;

impl Rounds for Idle {
    type Begun = ();
    fn begin(&self, _: Ticket, _: Gathered) {}
    fn carry_out(&self, (): ()) -> std::result::Result<(), RoundError> {
        Ok(())
    }
}

type End = fn(Gathered) -> RoundError;

/// Rounds that end as these functions say, the last one first.
struct Ends(std::cell::RefCell<Vec<End>>);

impl Rounds for Ends {
    type Begun = Gathered;
    fn begin(&self, _: Ticket, gathered: Gathered) -> Gathered {
        gathered
    }
    fn carry_out(&self, begun: Gathered) -> std::result::Result<(), RoundError> {
        self.0.borrow_mut().pop().map_or(Ok(()), |end| Err(end(begun)))
    }
}

#[test]
fn an_undone_round_is_in_the_next_one_and_poisons_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let commit = commit(dir.path());
    let full = |gathered| RoundError::Undone(gathered, Error::new(ErrorKind::NoSpace, "full"));
    let rounds = Ends(vec![full as fn(Gathered) -> RoundError].into());
    let first = commit.enqueue([BlocksRecord::Mark(LayerId(1), Extent::FIRST)]);
    assert_eq!(commit.wait(first, &rounds).unwrap_err().kind(), ErrorKind::NoSpace);
    commit.healthy().unwrap();
    assert!(!commit.is_done(first) && !commit.is_idle());
    let second = commit.enqueue([BlocksRecord::Mark(LayerId(2), Extent::FIRST)]);
    let records = commit.queued();
    let marks = [1, 2].map(|layer| Record::Blocks(BlocksRecord::Mark(LayerId(layer), Extent::FIRST)));
    assert_eq!(records, marks, "in the order in which they were made");
    commit.wait(second, &rounds).unwrap();
    assert!(commit.is_done(first) && commit.is_idle());
}

#[test]
fn a_leader_that_panics_leaves_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let commit = commit(dir.path());
    let rounds = Ends(vec![(|_| panic!("a disk that panics")) as fn(Gathered) -> RoundError].into());
    let ticket = commit.enqueue_sync([]);
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| commit.wait(ticket, &rounds))).unwrap_err();
    assert_eq!(commit.wait(ticket, &Idle).unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(commit.lead().and_then(|leader| leader.switch(&Idle, || Ok(()))).unwrap_err().kind(), ErrorKind::Poisoned);
}

#[test]
fn a_frame_is_proven_by_a_later_one_that_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let commit = commit(dir.path());
    let round = || commit.wait(commit.enqueue_sync([]), &Idle).unwrap();
    commit.room.append(&[0; 8], 0).unwrap();
    let frame = commit.room.latest_frame();
    round();
    assert!(!commit.is_proven(frame), "it is the last one");
    commit.room.append(&[0; 8], 0).unwrap();
    assert!(!commit.is_proven(frame), "the later one is not durable yet");
    round();
    assert!(commit.is_proven(frame));
}

#[test]
fn a_checkpoint_without_space_leaves_the_last_frame_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let commit = commit(dir.path());
    let state = || (commit.room.latest_frame(), commit.room.shaping_and_ceiling()[1]);
    let _reserved = commit.room.reserve_blocks(1).unwrap();
    let (frame, ceiling) = state();
    // Nor is the store broken when the process may have no more files open.
    for number in [libc::ENOSPC, libc::EMFILE, libc::ENFILE] {
        let refused = || Err(Error::io("cannot make a journal", std::io::Error::from_raw_os_error(number)));
        commit.lead().and_then(|leader| leader.switch(&Idle, refused)).unwrap_err();
        assert_eq!(state(), (frame, ceiling));
        commit.healthy().unwrap();
    }
    commit.lead().and_then(|leader| leader.switch(&Idle, || Ok(()))).unwrap();
    assert_eq!(state(), (frame + 1, 0));
}

#[test]
fn a_frame_consumes_its_reservation_and_a_refusal_returns_it() {
    let dir = tempfile::tempdir().unwrap();
    let commit = commit(dir.path());
    let state = || (commit.room.reserved_bytes(), commit.room.shaping_and_ceiling()[1]);
    let reserved = commit.room.reserve_blocks(3).unwrap().unwrap();
    let (outstanding, ceiling) = state();
    assert_eq!((outstanding, ceiling), (3 * NEW_BLOCK_BYTES, 3 * NEW_BLOCK_BYTES + Limits::DEFAULT.reserve_step_bytes));
    assert!(commit.room.reserve(1 << 60).unwrap().is_none(), "more than a frame holds");
    assert_eq!(state(), (outstanding, ceiling), "what was refused takes no room");
    commit.room.append(&[0; 100], 0).unwrap();
    drop(reserved);
    assert_eq!(state(), (0, ceiling - frame_bytes(100)));
}

#[test]
fn a_checkpoint_that_failed_is_known_before_its_round_ends() {
    let dir = tempfile::tempdir().unwrap();
    let commit = commit(dir.path());
    let waiting = commit.enqueue_sync([]);
    let broken = || Err(Error::new(ErrorKind::Io, "broken"));
    assert_eq!(commit.lead().and_then(|leader| leader.switch(&Idle, broken)).unwrap_err().kind(), ErrorKind::Io);
    assert!(commit.is_done(waiting), "the round itself was fine");
    assert_eq!(commit.healthy().unwrap_err().kind(), ErrorKind::Poisoned);
    let later = commit.enqueue_sync([]);
    let rounds = Ends(vec![(|_| panic!("nothing may be appended any more")) as fn(Gathered) -> RoundError].into());
    assert_eq!(commit.wait(later, &rounds).unwrap_err().kind(), ErrorKind::Poisoned);
}

/// All of them have taken their space before the first of them is in a frame.
#[test]
fn changes_of_shape_that_are_made_together_take_space_for_each() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let commit = commit_on(Arc::new(disk.clone()), dir.path());
    let long: u64 = 200 << 10;
    let rooms: Vec<_> = (0..64).map(|_| commit.room.reserve_shape(long).unwrap()).collect();
    let blocks = commit.room.reserve_blocks(1000).unwrap().unwrap();
    disk.set_full(true);
    assert_eq!(commit.room.reserve_shape(2 << 20).err().unwrap().kind(), ErrorKind::NoSpace);
    for _ in &rooms {
        commit.room.append(&vec![0; usize::try_from(SHAPE_BYTES + long).unwrap() - 64], 0).unwrap();
    }
    // What new blocks took, and the reserve behind it, is still there.
    drop(rooms);
    commit.room.append(&vec![0; 1000 * usize::try_from(NEW_BLOCK_BYTES).unwrap()], 0).unwrap();
    drop(blocks);
    drop(commit.room.claim(Limits::DEFAULT.journal_reserve_bytes / 8).unwrap());
    assert_eq!(commit.room.shaping_and_ceiling()[0], 0);
}

#[test]
fn changes_of_shape_under_way_fit_into_a_frame() {
    let dir = tempfile::tempdir().unwrap();
    let commit = commit(dir.path());
    let room = commit.room.reserve_shape(SHAPING_BYTES_MAX - SHAPE_BYTES).unwrap();
    assert_eq!(commit.room.reserve_shape(0).err().unwrap().kind(), ErrorKind::Busy);
    drop(room);
    drop(commit.room.reserve_shape(0).unwrap());
}
