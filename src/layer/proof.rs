//! The commit queue under the seeded scheduler: rounds that succeed, are undone, are lost or panic, and callers that wait for them.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::commit::{Commit, Gathered, RoundError, Rounds, Ticket};
use crate::error::{Error, ErrorKind};
use crate::format::{Record, StorePaths, Superblock};
use crate::ids::{BlockSize, LayerId};
use crate::io::SystemDisk;
use crate::journal::Journal;
use crate::limits::Limits;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, sim, thread};

/// What the rounds of one run do.
#[derive(Clone, Copy, PartialEq)]
enum Faults {
    /// One in four is undone.
    Undone,
    /// And one in eight is lost.
    Lost,
    /// Or panics.
    Panics,
}

struct Model {
    faults: Faults,
    leads: AtomicBool,
    durable: Mutex<BTreeSet<LayerId>>,
}

impl Model {
    fn draw(&self) -> Option<u64> {
        (self.faults != Faults::Undone).then(|| sim::below(8))
    }
}

impl Rounds for Model {
    type Begun = Gathered;

    fn begin(&self, _: Ticket, gathered: Gathered) -> Gathered {
        assert!(!self.leads.swap(true, Ordering::SeqCst), "two rounds at a time");
        gathered
    }

    fn carry_out(&self, begun: Gathered) -> Result<(), RoundError> {
        let drawn = self.draw();
        if drawn == Some(0) && self.faults == Faults::Panics {
            std::panic::resume_unwind(Box::new("the round panics"));
        }
        assert!(self.leads.swap(false, Ordering::SeqCst));
        match drawn {
            Some(0) => return Err(RoundError::Lost(Error::new(ErrorKind::Io, "the disk is lost"))),
            _ if sim::below(4) == 0 => return Err(RoundError::Undone(begun, Error::new(ErrorKind::NoSpace, "no space"))),
            _ => {}
        }
        let layers = begun.records.iter().map(|record| match record {
            Record::Detach(layer) => *layer,
            _ => unreachable!("no other record is made"),
        });
        self.durable.lock().extend(layers);
        Ok(())
    }
}

fn commit(dir: &std::path::Path) -> Commit {
    let superblock = Superblock { block_size: BlockSize::new(4096).unwrap(), generation: 0, store_id: [1; 16], journal: 0 };
    let (paths, limits) = (StorePaths::new(dir), Limits::DEFAULT);
    Commit::new(Journal::start(Arc::new(SystemDisk::new()), paths, superblock, 0, std::iter::empty(), limits).unwrap(), &limits)
}

/// Makes a record durable: tries again while there is no space. False: the store refuses writes.
fn make_durable(commit: &Commit, model: &Model, layer: LayerId) -> bool {
    let mut ticket = commit.enqueue([Record::Detach(layer)]);
    loop {
        // A panic of a round reaches its leader.
        let waited = catch_unwind(AssertUnwindSafe(|| commit.wait(ticket, model)));
        match waited {
            Ok(Ok(())) => {
                assert!(model.durable.lock().contains(&layer), "a round has ended without a record that was in it");
                return true;
            }
            Ok(Err(error)) if error.kind() == ErrorKind::NoSpace => ticket = commit.enqueue([]),
            Ok(Err(_)) | Err(_) => {
                assert!(commit.healthy().is_err(), "a caller fails while the store takes writes");
                return false;
            }
        }
    }
}

fn history(commit: &Commit, model: &Model) {
    thread::scope(|scope| {
        for task in 0..4u32 {
            scope.spawn(move || {
                for number in 0..3 {
                    if !make_durable(commit, model, LayerId(task * 100 + number)) {
                        return;
                    }
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..3 {
                let alone = || {
                    assert!(!model.leads.load(Ordering::SeqCst), "a checkpoint beside a round");
                    Ok(())
                };
                let _ = catch_unwind(AssertUnwindSafe(|| commit.exclusive(model, alone)));
            }
        });
    });
    let durable = model.durable.lock().len();
    assert!(durable == 12 || commit.healthy().is_err(), "{durable} records are durable");
}

#[test]
fn every_caller_of_a_round_gets_an_answer_that_is_true() {
    for faults in [Faults::Undone, Faults::Lost, Faults::Panics] {
        let dir = tempfile::tempdir().unwrap();
        for seed in sim::seeds(150) {
            let path = dir.path().to_owned();
            sim::run(seed, sim::Config::default(), move || {
                let model = Model { faults, leads: AtomicBool::new(false), durable: Mutex::default() };
                history(&commit(&path), &model);
            })
            .unwrap();
        }
    }
}
