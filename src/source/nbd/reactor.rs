//! The threads that take what servers send: two for all connections of the process.
//!
//! One is for connections that waiting readers use, the other one for bulk; it gives way to the foreground. Each is started with its
//! first connection, and ends some seconds after its last one has gone.
//!
//! # Invariants
//! - A connection is given up once: when its socket has ended, when it says so, or when its code panics. That ends no other one.
//! - What a connection does here never blocks. Callbacks of reads run here as well.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::io::{Poller, give_way};
use crate::sync::thread::Builder;
use crate::sync::time::Instant;
use crate::sync::{Mutex, PerProcess};

/// How often connections look whether their oldest request is too old.
pub(super) const TICK: Duration = Duration::from_millis(500);
/// A thread without connections ends after so long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that are taken at once, of all connections: what is not whole is kept by the connection.
const BUFFER_BYTES: usize = 64 << 10;

static FOREGROUND: PerProcess<Reactor> = PerProcess::new(|| Reactor::new("source-io", false));
static BACKGROUND: PerProcess<Reactor> = PerProcess::new(|| Reactor::new("source-bulk", true));

/// The thread for connections of the foreground, or of the background.
pub(super) fn reactor(in_background: bool) -> Arc<Reactor> {
    if in_background { BACKGROUND.get() } else { FOREGROUND.get() }
}

/// A connection that a reactor drives. All calls but [`Driven::socket`] come from its thread.
pub(super) trait Driven: Send + Sync {
    /// Its socket, which does not block.
    fn socket(&self) -> BorrowedFd<'_>;
    /// Takes what has come, by way of `buffer`, and sends what waits for room.
    ///
    /// # Errors
    /// The connection has ended.
    fn ready(&self, readable: bool, writable: bool, buffer: &mut [u8]) -> io::Result<()>;
    /// Some time has passed.
    ///
    /// # Errors
    /// A request has waited too long.
    fn tick(&self) -> io::Result<()>;
    /// It has ended, and is not driven any more.
    fn give_up(&self, reason: String);
}

/// A place in the set of a reactor.
pub(super) struct Place {
    poller: Arc<Poller>,
    number: u64,
}

impl Place {
    /// Lets the connection be called when its socket has room.
    pub fn set_writable(&self, socket: BorrowedFd<'_>, writable: bool) {
        // One that is not in the set any more has ended.
        let _ = self.poller.set_writable(socket, self.number, writable);
    }
}

#[derive(Default)]
struct State {
    /// By number. There is a thread while there is a poller.
    driven: BTreeMap<u64, Arc<dyn Driven>>,
    poller: Option<Arc<Poller>>,
    next: u64,
}

pub(super) struct Reactor {
    name: &'static str,
    in_background: bool,
    state: Mutex<State>,
}

impl Reactor {
    fn new(name: &'static str, in_background: bool) -> Self {
        Self { name, in_background, state: Mutex::default() }
    }

    /// Drives a connection until it has ended.
    ///
    /// # Errors
    /// There is no thread or no descriptor for it.
    pub fn add(self: &Arc<Self>, driven: Arc<dyn Driven>) -> io::Result<Place> {
        let mut state = self.state.lock();
        let poller = match &state.poller {
            Some(poller) => Arc::clone(poller),
            None => self.begin(&mut state)?,
        };
        state.next += 1;
        let number = state.next;
        poller.add(driven.socket(), number)?;
        state.driven.insert(number, driven);
        Ok(Place { poller, number })
    }

    fn begin(self: &Arc<Self>, state: &mut State) -> io::Result<Arc<Poller>> {
        let poller = Arc::new(Poller::new()?);
        let (this, polls) = (Arc::clone(self), Arc::clone(&poller));
        let run = move || {
            if this.in_background {
                give_way();
            }
            this.run(&polls);
        };
        Builder::new().name(self.name.into()).spawn(run)?;
        state.poller = Some(Arc::clone(&poller));
        Ok(poller)
    }

    fn run(&self, poller: &Poller) {
        let mut buffer = vec![0; BUFFER_BYTES];
        let (mut next_tick, mut idle_since) = (Instant::now() + TICK, None);
        loop {
            let ready = poller.wait(next_tick.saturating_duration_since(Instant::now()));
            for ready in ready.unwrap_or_default() {
                let driven = self.state.lock().driven.get(&ready.number).cloned();
                if let Some(driven) = driven {
                    self.call(poller, ready.number, &driven, |driven| driven.ready(ready.readable, ready.writable, &mut buffer));
                }
            }
            let now = Instant::now();
            if now < next_tick {
                continue;
            }
            next_tick = now + TICK;
            let all: Vec<_> = self.state.lock().driven.iter().map(|(number, driven)| (*number, Arc::clone(driven))).collect();
            for (number, driven) in &all {
                self.call(poller, *number, driven, |driven| driven.tick());
            }
            if !all.is_empty() {
                idle_since = None;
            } else if now.saturating_duration_since(*idle_since.get_or_insert(now)) >= IDLE_TIMEOUT && self.end() {
                return;
            }
        }
    }

    /// Ends the thread, unless a connection has come.
    fn end(&self) -> bool {
        let mut state = self.state.lock();
        let is_over = state.driven.is_empty();
        if is_over {
            state.poller = None;
        }
        is_over
    }

    fn call(&self, poller: &Poller, number: u64, driven: &Arc<dyn Driven>, call: impl FnOnce(&dyn Driven) -> io::Result<()>) {
        let called = catch_unwind(AssertUnwindSafe(|| call(&**driven)));
        let reason = match called {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "its reader panicked".into(),
        };
        let removed = self.state.lock().driven.remove(&number);
        if removed.is_some() {
            poller.remove(driven.socket());
            // A panic was printed. Nobody is left to be told of it.
            let _ = catch_unwind(AssertUnwindSafe(|| driven.give_up(reason)));
        }
    }
}
