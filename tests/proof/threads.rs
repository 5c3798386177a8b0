//! Threads of the simulated world: those of the engine's seeded scheduler.

use std::time::Duration;
pub use volfork::sync::sim::{fail_starts_of_threads, point};

use volfork::sync::sim::{self, Config};
pub use volfork::sync::thread::{JoinHandle, sleep};

/// Scheduling points of one life; one that takes more never ends. The background of a store that waits for a silent server
/// ([`super::source::FOR_EVER`], and the request may be made again) passes 33,000 of them in a second.
const STEPS_MAX: u64 = 20_000_000;

/// A disk takes its time: others go on meanwhile. `one_in`: so many operations are fast for one that is slow.
pub fn linger(one_in: u64) {
    if one_in > 0 && sim::is_running() && sim::below(one_in) == 0 {
        sleep(Duration::from_micros([20, 500, 10_000][sim::below(3) as usize] * (1 + sim::below(8))));
    }
}

/// A line for the report of a failure.
pub fn note(text: impl FnOnce() -> String) {
    sim::note(text);
}

pub fn spawn<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    volfork::sync::thread::Builder::new().name(name.into()).spawn(run).expect("a thread can be started")
}

/// As [`spawn`], where starts of threads fail.
pub fn try_spawn<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> std::io::Result<JoinHandle<T>> {
    volfork::sync::thread::Builder::new().name(name.into()).spawn(run)
}

/// Runs something and its threads under the scheduler. Answers what was wrong, and how many points were passed.
pub fn run<T: Send + 'static>(seed: u64, run: impl FnOnce() -> T + Send + 'static) -> Result<(T, u64), String> {
    let outcome = sim::run(seed, Config { steps_max: STEPS_MAX, ..Config::default() }, run);
    outcome.result.map(|value| (value, outcome.steps)).map_err(|failure| failure.report)
}
