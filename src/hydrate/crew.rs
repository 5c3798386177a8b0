//! The threads of all hydrations of a store, however many these are.
//!
//! | threads | run | may wait for |
//! |---|---|---|
//! | `vf-ID-step-…` | steps of hydrations: what came, what to fetch next; they give way to the foreground | the file of a trace |
//! | `vf-ID-aside-…` | what a step must not wait for: barriers, looks above, ends of hydrations, handing calls to the threads of sources | disk, barriers |
//! | `vf-ID-fill` | writes of what came, through one ring; gives way to the foreground | disk, barriers |
//!
//! Hydrations take turns: one whose source is quick does not keep others from their steps.

use std::sync::Arc;
use std::time::Duration;

use super::fills::Fills;
use crate::ids::LayerId;
use crate::io::{Bounds, Next, Refusal, Task, Workers};
use crate::sync::Mutex;

/// Threads for steps, and for what steps must not wait for.
const THREADS: usize = 2;

/// The threads of all hydrations of a store.
pub struct Crew {
    steps: Workers,
    aside: Workers,
    /// Keeps a thread there that starts the others: those that a step starts would give way to the foreground as it does.
    starter: Mutex<Option<Task>>,
    pub fills: Fills,
}

impl Crew {
    /// A crew without threads; they are started when they are needed. `store_id` is in the names of its threads.
    pub fn new(store_id: &str) -> Arc<Self> {
        let name = format!("vf-{}", store_id.get(..6).unwrap_or(store_id));
        let bounds = |in_background| Bounds { threads_max: THREADS, slow_max: 0, of_key_max: 1, waiting_max: usize::MAX, in_background };
        Arc::new(Self {
            steps: Workers::new(&format!("{name}-step"), bounds(true)),
            aside: Workers::new(&format!("{name}-aside"), bounds(false)),
            starter: Mutex::default(),
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
                *starter = Some(Task::begin(&self.aside, None, || Next::After(Duration::from_secs(3600)))?);
            }
        }
        Task::begin(&self.steps, Some(&layer.to_string()), step)
    }

    /// Runs what a step must not wait for; of one hydration, one job at a time. A job for which there is no thread is dropped.
    pub fn aside(&self, layer: LayerId, job: impl FnOnce() + Send + 'static) {
        drop(self.aside.run(&layer.to_string(), Box::new(job)));
    }

    /// Ends the threads. All hydrations have ended.
    pub fn close(&self) {
        self.starter.lock().take();
        self.steps.close();
        self.aside.close();
        self.fills.close();
    }
}
