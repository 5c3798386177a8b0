//! The threads of all hydrations of a store. Their number does not grow with the hydrations.
//!
//! | threads | run | may wait for |
//! |---|---|---|
//! | `vf-ID-step-…` | steps of hydrations: take messages, make requests; with low priority | the file of a trace |
//! | `vf-ID-aside-…` | errands: barriers, looks above, ends of hydrations; its `lead` hands calls to the source pool | disk, barriers |
//! | `vf-ID-fill` | writes of fetched blocks, through one ring; with low priority | disk, barriers |
//!
//! Hydrations take turns, so that a fast source does not keep other hydrations from their steps.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::fills::Fills;
use crate::ids::LayerId;
use crate::io::{Bounds, Job, Next, Refusal, Task, Workers};
use crate::sync::{Mutex, Rank};

/// Number of threads for steps.
const STEPS: usize = 2;
/// Most further threads for steps. One replaces a thread whose step hangs in a call of a source.
const SLOW_STEPS: usize = 14;
/// Number of threads for errands. Errands that wait for a barrier at the same time share it.
const ASIDE: usize = 2;

/// The threads of all hydrations of a store.
pub struct Crew {
    steps: Workers,
    aside: Workers,
    /// Task on the lead of `aside`. It starts threads of sources, because a thread that a step starts would inherit its low priority.
    starter: Mutex<Option<Task>>,
    handed: Arc<Mutex<VecDeque<Job>>>,
    pub fills: Fills,
}

impl Crew {
    /// A crew whose threads start when they are needed. `store_id` is part of their names.
    pub fn new(store_id: &str) -> Arc<Self> {
        let name = format!("vf-{}", store_id.get(..6).unwrap_or(store_id));
        let bounds =
            |threads_max, slow_max, in_background| Bounds { threads_max, slow_max, of_key_max: 1, waiting_max: usize::MAX, in_background };
        Arc::new(Self {
            steps: Workers::new(&format!("{name}-step"), bounds(STEPS, SLOW_STEPS, true)),
            aside: Workers::new(&format!("{name}-aside"), bounds(ASIDE, 0, false)),
            starter: Mutex::ranked(Rank::CrewStarter, None),
            handed: Arc::new(Mutex::ranked(Rank::CrewHanded, VecDeque::new())),
            fills: Fills::new(&format!("{name}-fill")),
        })
    }

    /// Runs the step of a hydration repeatedly, as its results say.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn begin(&self, layer: LayerId, step: impl FnMut() -> Next + Send + 'static) -> Result<Task, Refusal> {
        {
            let mut starter = self.starter.lock();
            if starter.is_none() {
                *starter = {
                    let handed = Arc::clone(&self.handed);
                    Some(Task::begin(&self.aside, None, move || hand_on(&handed))?)
                };
            }
        }
        Task::begin(&self.steps, Some(&layer.to_string()), step)
    }

    /// Runs a blocking job. Jobs of one hydration run one at a time. If no thread can be had, the job is dropped.
    pub fn aside(&self, layer: LayerId, job: impl FnOnce() + Send + 'static) {
        drop(self.aside.run(&layer.to_string(), Box::new(job)));
    }

    /// Runs a short job that may start threads, at normal priority.
    pub fn hand_over(&self, job: impl FnOnce() + Send + 'static) {
        self.handed.lock().push_back(Box::new(job));
        self.starter.lock().iter().for_each(Task::wake);
    }

    /// Ends the threads. All hydrations must have ended.
    pub fn close(&self) {
        let starter = self.starter.lock().take();
        drop(starter);
        let dropped = std::mem::take(&mut *self.handed.lock());
        drop(dropped);
        self.steps.close();
        self.aside.close();
        self.fills.close();
    }
}

/// Runs the jobs that were handed over.
fn hand_on(handed: &Mutex<VecDeque<Job>>) -> Next {
    loop {
        let next = handed.lock().pop_front();
        match next {
            Some(job) => job(),
            None => return Next::After(Duration::from_secs(3600)),
        }
    }
}
