//! Closing sources: however long one takes, the thread that closes it goes on.

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

/// Closes a source on a thread of the sources, and drops it there. Does not wait for it, so locks may be held.
pub(super) fn close(uri: &str, source: Arc<dyn Source>) {
    let (closing, name) = (Closing::begin(), uri.to_owned());
    let close = move || {
        // A panic was printed; the source is not used any more.
        let _ = caught(&name, || source.close());
        let _ = caught(&name, || drop(source));
        drop(closing);
    };
    hand_over(uri, Box::new(close));
}

/// Drops a source that is closed. Does not wait for its destructor, so locks may be held.
pub(super) fn release(uri: &str, source: Arc<dyn Source>) {
    let name = uri.to_owned();
    hand_over(uri, Box::new(move || drop(caught(&name, || drop(source)))));
}

fn hand_over(uri: &str, job: Job) {
    // Without a thread, or of a host with thousands of closings, it is closed by its destructor.
    drop(threads::calls().run(&format!("close {}", host_of(uri)), job));
}

/// Waits until the sources are closed whose closing has begun, or none has ended for a while; those are not waited for again. To be called
/// without locks.
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
