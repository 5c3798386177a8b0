//! The threads of all hydrations of a store, however many these are.
//!
//! | threads | run | may wait for |
//! |---|---|---|
//! | `vf-ID-step-…` | steps of hydrations: what came, what to fetch next; they give way to the foreground | the file of a trace |
//! | `vf-ID-aside-…` | what a step must not wait for: barriers, looks above, ends of hydrations; `lead`: handing calls to the threads of sources | disk, barriers |
//! | `vf-ID-fill` | writes of what came, through one ring; gives way to the foreground | disk, barriers |
//!
//! Hydrations take turns: one whose source is quick does not keep others from their steps.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::fills::Fills;
use crate::ids::LayerId;
use crate::io::{Bounds, Next, Refusal, Task, Workers};
use crate::sync::Mutex;

/// Threads for steps.
const STEPS: usize = 2;
/// Further ones, each for a step that a source holds up by a read that does not return.
const SLOW_STEPS: usize = 14;
/// Threads for what steps must not wait for: those that wait for a barrier at once share it.
const ASIDE: usize = 2;

type Job = Box<dyn FnOnce() + Send>;

/// The threads of all hydrations of a store.
pub struct Crew {
    steps: Workers,
    aside: Workers,
    /// Runs on the thread there that starts the others: those that a step starts would give way to the foreground as it does.
    starter: Mutex<Option<Task>>,
    handed: Arc<Mutex<VecDeque<Job>>>,
    pub fills: Fills,
}

impl Crew {
    /// A crew without threads; they are started when they are needed. `store_id` is in the names of its threads.
    pub fn new(store_id: &str) -> Arc<Self> {
        let name = format!("vf-{}", store_id.get(..6).unwrap_or(store_id));
        let bounds =
            |threads_max, slow_max, in_background| Bounds { threads_max, slow_max, of_key_max: 1, waiting_max: usize::MAX, in_background };
        Arc::new(Self {
            steps: Workers::new(&format!("{name}-step"), bounds(STEPS, SLOW_STEPS, true)),
            aside: Workers::new(&format!("{name}-aside"), bounds(ASIDE, 0, false)),
            starter: Mutex::default(),
            handed: Arc::default(),
            fills: Fills::new(&format!("{name}-fill")),
        })
    }

    /// Runs the step of a hydration, again and again as it says.
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

    /// Runs what a step must not wait for; of one hydration, one job at a time. A job for which there is no thread is dropped.
    pub fn aside(&self, layer: LayerId, job: impl FnOnce() + Send + 'static) {
        drop(self.aside.run(&layer.to_string(), Box::new(job)));
    }

    /// Runs something short that may start threads of others, which must not give way as a step does.
    pub fn hand_over(&self, job: impl FnOnce() + Send + 'static) {
        self.handed.lock().push_back(Box::new(job));
        self.starter.lock().iter().for_each(Task::wake);
    }

    /// Ends the threads. All hydrations have ended.
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

/// Runs what was handed over.
fn hand_on(handed: &Mutex<VecDeque<Job>>) -> Next {
    loop {
        let next = handed.lock().pop_front();
        match next {
            Some(job) => job(),
            None => return Next::After(Duration::from_secs(3600)),
        }
    }
}
