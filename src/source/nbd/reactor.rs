//! The threads that receive from NBD servers: two for all connections of the process.
//!
//! One serves the connections of waiting readers. The other one serves bulk, and yields to the foreground. Each starts with its first
//! connection and ends some seconds after its last one.
//!
//! # Invariants
//! - A connection is given up once: when its socket ends, when its code returns an error, or when it panics. Others go on.
//! - Code of a connection never blocks here. Callbacks of reads run on these threads too.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::io::{Poller, give_way};
use crate::sync::thread::Builder;
use crate::sync::time::Instant;
use crate::sync::{Mutex, PerProcess, Rank};

/// How often connections check the timeout of their oldest request.
pub(super) const TICK: Duration = Duration::from_millis(500);
/// Time after which a thread without connections ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of the receive buffer, which all connections share. A connection keeps an incomplete header or payload itself.
const BUFFER_BYTES: usize = 64 << 10;

static FOREGROUND: PerProcess<Reactor> = PerProcess::new(|| Reactor::new("source-io", false));
static BACKGROUND: PerProcess<Reactor> = PerProcess::new(|| Reactor::new("source-bulk", true));

/// The reactor for connections of the foreground, or of the background.
pub(super) fn reactor(in_background: bool) -> Arc<Reactor> {
    if in_background { BACKGROUND.get() } else { FOREGROUND.get() }
}

/// A connection that a reactor drives. Only its thread calls these methods, except [`Driven::socket`].
pub(super) trait Driven: Send + Sync {
    /// The socket, which is non-blocking.
    fn socket(&self) -> BorrowedFd<'_>;
    /// Receives into `buffer`, and sends buffered bytes.
    ///
    /// # Errors
    /// The connection has ended.
    fn ready(&self, readable: bool, writable: bool, buffer: &mut [u8]) -> io::Result<()>;
    /// Checks timeouts; called every [`TICK`].
    ///
    /// # Errors
    /// A request has waited too long.
    fn tick(&self) -> io::Result<()>;
    /// Ends the connection. It is the last call.
    fn give_up(&self, reason: String);
}

/// The entry of a connection in the poll set of a reactor.
pub(super) struct Place {
    poller: Arc<Poller>,
    number: u64,
}

impl Place {
    /// Sets whether the reactor calls the connection when its socket has room.
    pub fn set_writable(&self, socket: BorrowedFd<'_>, writable: bool) {
        // An error means that the connection has ended.
        let _ = self.poller.set_writable(socket, self.number, writable);
    }
}

#[derive(Default)]
struct State {
    /// Connections by number. The thread runs while there is a poller.
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
        Self { name, in_background, state: Mutex::ranked(Rank::NbdReactor, State::default()) }
    }

    /// Adds a connection, which is driven until it ends. Starts the thread if there is none.
    ///
    /// # Errors
    /// No thread can be started, or no descriptor is left.
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

    /// Ends the thread, unless a connection was added meanwhile. Returns whether it ended.
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
            // The panic was printed, and the connection is removed already.
            let _ = catch_unwind(AssertUnwindSafe(|| driven.give_up(reason)));
        }
    }
}
