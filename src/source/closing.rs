//! Closing sources: however long one takes, the thread that closes it goes on, unless the threads of sources refuse the closing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::error::caught;
use super::uri::host_of;
use super::{Source, threads};
use crate::io::Job;
use crate::sync::time::Instant;
use crate::sync::{Condvar, Mutex, PerProcess, Rank};

/// How long [`await_closed`] waits for the next source to end its closing.
const PATIENCE: Duration = Duration::from_millis(200);

#[derive(Default)]
struct State {
    next: u64,
    /// Closings that have not ended, without those that nobody waits for any longer.
    under_way: BTreeSet<u64>,
}

/// The sources of the process that are being closed.
struct Closings {
    state: Mutex<State>,
    ended: Condvar,
}

static CLOSINGS: PerProcess<Closings> =
    PerProcess::new(|| Closings { state: Mutex::ranked(Rank::SourceClosings, State::default()), ended: Condvar::new() });

/// One closing, until it is dropped.
struct Closing {
    closings: Arc<Closings>,
    number: u64,
}

impl Closing {
    fn begin() -> Self {
        let closings = CLOSINGS.get();
        let number = {
            let mut state = closings.state.lock();
            state.next += 1;
            let number = state.next;
            state.under_way.insert(number);
            number
        };
        Self { closings, number }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.closings.state.lock().under_way.remove(&self.number);
        self.closings.ended.notify_all();
    }
}

/// A source that the engine has given up. Wherever this is dropped, also in a job that the threads refuse, the source is dropped without
/// a panic, and the closing has ended.
struct GivenUp {
    uri: String,
    source: Option<Arc<dyn Source>>,
    _closing: Closing,
}

impl GivenUp {
    fn new(uri: &str, source: Arc<dyn Source>) -> Self {
        Self { uri: uri.to_owned(), source: Some(source), _closing: Closing::begin() }
    }

    fn close(self) {
        // A panic was printed; the source is not used any more.
        self.source.iter().for_each(|source| drop(caught(&self.uri, || source.close())));
    }
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        let source = self.source.take();
        let _ = caught(&self.uri, || drop(source));
    }
}

/// Closes a source on a thread of the sources, and drops it there. Does not wait for it, so locks may be held; but see [`hand_over`].
pub(super) fn close(uri: &str, source: Arc<dyn Source>) {
    let given_up = GivenUp::new(uri, source);
    hand_over(uri, Box::new(move || given_up.close()));
}

/// Drops a source that is closed. Does not wait for its destructor, so locks may be held; but see [`hand_over`].
pub(super) fn release(uri: &str, source: Arc<dyn Source>) {
    let given_up = GivenUp::new(uri, source);
    hand_over(uri, Box::new(move || drop(given_up)));
}

/// Runs a closing on a thread of the sources. One that they refuse, for lack of threads or because thousands of the same host wait, drops
/// its source on this thread instead: its destructor is the only code of a source that a caller ever waits for.
fn hand_over(uri: &str, job: Job) {
    drop(threads::calls().run(&format!("close {}", host_of(uri)), job));
}

/// Waits until the sources are closed and dropped that were given up before, or none was for a while; those are not waited for again. To be
/// called without locks.
pub(crate) fn await_closed() {
    let closings = CLOSINGS.get();
    let mut state = closings.state.lock();
    let begun = state.next;
    let (mut count, mut until) = (usize::MAX, Instant::now());
    loop {
        let now = Instant::now();
        let left = state.under_way.range(..=begun).count();
        if left < count {
            (count, until) = (left, now + PATIENCE);
        }
        if left == 0 {
            return;
        }
        if now >= until {
            state.under_way = state.under_way.split_off(&(begun + 1));
            return;
        }
        let _ = closings.ended.wait_until(&mut state, until);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::source::guarded::Guarded;
    use crate::source::{OnArrival, ReadClass};
    use crate::sync::mpsc::channel;

    /// Calls its function when it is dropped.
    struct Far<F: Fn() + Send + Sync + 'static>(F);

    impl<F: Fn() + Send + Sync + 'static> Drop for Far<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }

    impl<F: Fn() + Send + Sync + 'static> Source for Far<F> {
        fn size_bytes(&self) -> u64 {
            0
        }

        fn read(&self, _: Range<u64>, _: ReadClass, _: OnArrival) {}

        fn describe(&self) -> String {
            String::new()
        }
    }

    #[test]
    fn a_destructor_that_panics_does_not_reach_who_closes() {
        let uri = "far://crowded";
        // As many closings of the host as may run wait for this test, and as many as may wait stand behind them.
        let (begun, has_begun) = channel();
        let gates: Vec<_> = (0..3)
            .map(|_| {
                let (begun, (gate, opened)) = (begun.clone(), channel::<()>());
                let wait = move || {
                    begun.send(()).unwrap();
                    let _ = opened.recv();
                };
                hand_over(uri, Box::new(wait));
                gate
            })
            .collect();
        (0..3).for_each(|_| has_begun.recv().unwrap());
        (0..5000).for_each(|_| hand_over(uri, Box::new(|| {})));
        for closed in [false, true] {
            let source = Guarded::new(uri, Arc::new(Far(|| panic!("by its destructor")))).unwrap();
            if closed {
                source.close();
            }
            drop(source);
        }
        drop(gates);
    }

    #[cfg(feature = "sim")]
    #[test]
    fn the_destructor_of_a_closed_source_is_waited_for() {
        use crate::sync::atomic::{AtomicBool, Ordering};
        use crate::sync::sim;

        // Virtual time passes only while every task waits for it.
        let config = || sim::Config {
            early: Some(sim::Early { one_in: 0, within: Duration::ZERO }),
            step: Some(Duration::ZERO),
            nap_one_in: Some(0),
            slow: Some(sim::SlowPlaces { one_in: 0, nap_one_in: 1 }),
            ..sim::Config::default()
        };
        for seed in sim::seeds(50) {
            let close = || {
                let dropped = Arc::new(AtomicBool::new(false));
                let telling = Arc::clone(&dropped);
                let source = Guarded::new("far://x", Arc::new(Far(move || telling.store(true, Ordering::Release)))).unwrap();
                source.close();
                drop(source);
                await_closed();
                assert!(dropped.load(Ordering::Acquire));
            };
            sim::run(seed, config(), close).unwrap();
        }
    }
}
