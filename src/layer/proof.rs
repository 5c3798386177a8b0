//! The commit queue under the seeded scheduler: rounds that succeed, are undone, are lost or panic, and callers that wait for them.
//! And layers that are freed beside discards and rounds.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::admitted::Admitted;
use super::bare::{commit, layers};
use super::commit::queue::{Commit, Gathered, RoundError, Rounds, Ticket};
use super::layer::Layer;
use crate::error::{Error, ErrorKind};
use crate::format::{Record, ShapeRecord};
use crate::ids::LayerId;
use crate::io::SystemDisk;
use crate::limits::{Limits, Planted};
use crate::place::{BlockBits, BlockSpan, Extent};
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
            Record::Shape(ShapeRecord::Detach(layer)) => *layer,
            Record::Shape(_) | Record::Blocks(_) | Record::Closed => unreachable!("no other record is made"),
        });
        self.durable.lock().extend(layers);
        Ok(())
    }
}

/// Makes a record durable: tries again while there is no space. False: the store refuses writes.
fn make_durable(commit: &Commit, model: &Model, layer: LayerId) -> bool {
    let mut ticket = commit.enqueue([ShapeRecord::Detach(layer)]);
    loop {
        // A panic of a round reaches its leader.
        let waited = catch_unwind(AssertUnwindSafe(|| commit.wait(ticket, model)));
        match waited {
            Ok(Ok(())) => {
                assert!(model.durable.lock().contains(&layer), "a round has ended without a record that was in it");
                return true;
            }
            Ok(Err(error)) if error.kind() == ErrorKind::NoSpace => ticket = commit.enqueue_sync([]),
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
                let _ = catch_unwind(AssertUnwindSafe(|| commit.lead().and_then(|leader| leader.switch(model, alone))));
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

/// Blocks of each layer.
const BLOCKS: u64 = 4;

/// One task discards blocks of a layer, one frees that layer, and one leads rounds for it and for another layer.
fn freeing(dir: &std::path::Path, planted: Planted) {
    let layers = layers(Arc::new(SystemDisk::new()), dir, Limits { planted, ..Limits::DEFAULT });
    let [freed, other] = [LayerId(1), LayerId(2)].map(|id| layers.add(id, None, None));
    let write = |layer: &Layer, first: u64| {
        let bits = BlockBits::of(BlockSpan::new(first, first + BLOCKS).within(Extent::FIRST));
        Admitted::wait(&*layers.admission, layer, Extent::FIRST, bits).unwrap().write(&[1; 4 * 4096]).unwrap();
    };
    [&freed, &other].into_iter().for_each(|layer| write(layer, 0));
    layers.barriers.sync([freed.id, other.id]).unwrap();
    // These wait for their record.
    write(&freed, BLOCKS);
    let gone = |result: crate::error::Result<()>| match result {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        result => result.unwrap(),
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            (0..BLOCKS).for_each(|block| gone(layers.zeroes.zero(&freed, BlockSpan::new(block, block + 1), false, None).map(drop)))
        });
        scope.spawn(|| {
            let ticket = layers.enqueue_freeing(None, vec![ShapeRecord::Detach(freed.id)], &[freed.id]);
            layers.barriers.wait(ticket).unwrap();
        });
        scope.spawn(|| {
            for block in 0..BLOCKS {
                layers.zeroes.zero(&other, BlockSpan::new(block, block + 1), false, None).unwrap();
                layers.barriers.sync([freed.id, other.id]).unwrap();
            }
        });
    });
    assert_eq!(layers.outstanding(), [0; 3], "what was reserved for the freed layer is given back");
}

/// How freeing a layer fails under the first of these seeds that shows it.
fn failure_of_freeing(planted: Planted, mut seeds: std::ops::Range<u64>) -> Option<sim::Failure> {
    let dir = tempfile::tempdir().unwrap();
    seeds.find_map(|seed| {
        let path = dir.path().join(seed.to_string());
        sim::run(seed, sim::Config::default(), move || freeing(&path, planted)).result.err()
    })
}

/// A discard has the layer's state and waits for the list of layers with retiring blocks, a leader has the list and waits for the table,
/// and the task that frees the layer has the table and waits for its state.
#[test]
fn a_layer_is_freed_beside_discards_and_rounds() {
    if let Some(failure) = failure_of_freeing(Planted::Nothing, sim::seeds(200)) {
        panic!("{failure:?}");
    }
    let seen = failure_of_freeing(Planted::TableHeld, 0..20).expect("no seed shows the circle of locks");
    // Debug builds panic in the check of lock ranks first.
    let kind = if cfg!(debug_assertions) { sim::FailureKind::Panic } else { sim::FailureKind::LockOrder };
    assert_eq!(seen.kind, kind, "{seen:?}");
}
