//! The threads that copy between clear ends and peers: a fixed number for all connections of the process.
//!
//! Each starts with its first connection and ends some seconds after its last one.
//!
//! # Invariants
//! - A connection costs a thread nothing while nothing moves, and its share of the time otherwise: others have their turn after some
//!   buffers.
//! - A panic of one connection ends that connection.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::flow::{Flow, Next, Side};
use super::handshake::Refused;
use crate::io::{Poller, Ready, RingWaker};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::thread::Builder;
use crate::sync::time::Instant;
use crate::sync::{Mutex, PerProcess, Rank};
use crate::telemetry::tell;

/// Threads of the process.
const THREADS: usize = 2;
/// Bytes that are moved at once. The buffer is the thread's.
const BUFFER_BYTES: usize = 64 << 10;
/// Time after which a thread without connections ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the time of peers for last bytes is looked at.
const TICK: Duration = Duration::from_millis(250);
/// Number of the waker among the sockets of a thread.
const WAKER: u64 = 0;

static WORKERS: PerProcess<[Arc<Worker>; THREADS]> = PerProcess::new(|| std::array::from_fn(|_| Arc::new(Worker::new())));

/// What a thread is asked.
#[derive(Default)]
struct State {
    /// Connections that it has not taken yet.
    new: Vec<Flow>,
    /// Wakes the thread; there while it runs.
    waker: Option<RingWaker>,
}

struct Worker {
    state: Mutex<State>,
    /// Its connections.
    load: AtomicUsize,
}

/// The connections of a running thread.
struct Running<'a> {
    worker: &'a Worker,
    poller: Poller,
    flows: BTreeMap<u64, Flow>,
    /// Those that may move more at once.
    again: BTreeSet<u64>,
    /// Those whose clear ends are closed.
    lingering: BTreeSet<u64>,
    next: u64,
    buffer: Vec<u8>,
}

/// Copies for a connection until it ends.
///
/// # Errors
/// No thread can be started, or no descriptor is left.
pub(super) fn add(flow: Flow) -> io::Result<()> {
    let workers = WORKERS.get();
    match workers.iter().min_by_key(|worker| worker.load.load(Ordering::Relaxed)) {
        Some(worker) => worker.add(flow),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

/// The number of a socket in a poll set.
fn number_of(flow: u64, side: Side) -> u64 {
    2 * flow + u64::from(side == Side::Clear)
}

impl Worker {
    fn new() -> Self {
        Self { state: Mutex::ranked(Rank::TlsRelay, State::default()), load: AtomicUsize::new(0) }
    }

    fn add(self: &Arc<Self>, flow: Flow) -> io::Result<()> {
        let mut state = self.state.lock();
        let waker = match &state.waker {
            Some(waker) => waker.clone(),
            None => {
                let waker = self.begin()?;
                state.waker.insert(waker).clone()
            }
        };
        self.load.fetch_add(1, Ordering::Relaxed);
        state.new.push(flow);
        drop(state);
        waker.wake();
        Ok(())
    }

    fn begin(self: &Arc<Self>) -> io::Result<RingWaker> {
        let (poller, waker) = (Poller::new()?, RingWaker::new()?);
        poller.add_edges(waker.as_fd(), WAKER)?;
        let worker = Arc::clone(self);
        Builder::new().name("tls-relay".into()).spawn(move || {
            let buffer = vec![0; BUFFER_BYTES];
            let (flows, again, lingering) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
            Running { worker: &worker, poller, flows, again, lingering, next: 1, buffer }.run();
        })?;
        Ok(waker)
    }
}

impl Running<'_> {
    fn run(mut self) {
        let mut idle_since = Instant::now();
        loop {
            // After an error no socket counts as ready.
            for ready in self.poller.wait(self.patience()).unwrap_or_default() {
                self.note(ready);
            }
            self.take_new();
            for number in std::mem::take(&mut self.again) {
                self.step(number);
            }
            self.end_late();
            if !self.flows.is_empty() {
                idle_since = Instant::now();
            } else if idle_since.elapsed() >= IDLE_TIMEOUT && self.ends() {
                return;
            }
        }
    }

    fn patience(&self) -> Duration {
        if !self.again.is_empty() {
            Duration::ZERO
        } else if !self.lingering.is_empty() {
            TICK
        } else {
            IDLE_TIMEOUT
        }
    }

    fn note(&mut self, ready: Ready) {
        let (number, side) = (ready.number / 2, if ready.number.is_multiple_of(2) { Side::Peer } else { Side::Clear });
        if let Some(flow) = self.flows.get_mut(&number) {
            flow.note(side, ready);
            if flow.lingers() {
                self.lingering.insert(number);
            }
            self.again.insert(number);
        }
    }

    fn take_new(&mut self) {
        let new = std::mem::take(&mut self.worker.state.lock().new);
        for flow in new {
            let number = self.next;
            self.next += 1;
            let added = [Side::Peer, Side::Clear].map(|side| self.poller.add_edges(flow.socket(side), number_of(number, side)));
            self.flows.insert(number, flow);
            match added.into_iter().collect::<io::Result<()>>() {
                // The poller tells what they are ready for.
                Ok(()) => {}
                Err(error) => self.end(number, Err(Refused::lost(format!("TLS cannot be polled ({error})")))),
            }
        }
    }

    fn step(&mut self, number: u64) {
        let Some(flow) = self.flows.get_mut(&number) else { return };
        let buffer = &mut self.buffer;
        match catch_unwind(AssertUnwindSafe(|| flow.step(buffer))) {
            Ok(Ok(Next::Waits)) => {}
            Ok(Ok(Next::Again)) => drop(self.again.insert(number)),
            Ok(Ok(Next::Over)) => self.end(number, Ok(())),
            Ok(Err(why)) => self.end(number, Err(why)),
            Err(_) => self.end(number, Err(Refused::lost("TLS panicked"))),
        }
    }

    /// Ends connections whose peers have not taken the last bytes in time, or have no more time.
    fn end_late(&mut self) {
        let now = Instant::now();
        let is_late = |number: &u64| self.flows.get(number).is_none_or(|flow| flow.is_late(now));
        let late: Vec<u64> = self.lingering.iter().copied().filter(is_late).collect();
        for number in late {
            self.end(number, Ok(()));
        }
    }

    fn end(&mut self, number: u64, outcome: Result<(), Refused>) {
        self.again.remove(&number);
        self.lingering.remove(&number);
        let Some(flow) = self.flows.remove(&number) else { return };
        for side in [Side::Peer, Side::Clear] {
            self.poller.remove(flow.socket(side));
        }
        self.worker.load.fetch_sub(1, Ordering::Relaxed);
        if let Err(why) = &outcome {
            tell!(DEBUG, why = why.text, "TLS ended");
        }
        flow.end(outcome);
    }

    /// Ends the thread, unless a connection was added meanwhile.
    fn ends(&self) -> bool {
        let mut state = self.worker.state.lock();
        let is_over = state.new.is_empty();
        if is_over {
            state.waker = None;
        }
        is_over
    }
}
