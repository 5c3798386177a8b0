//! Events of a store, which an embedder receives by a callback.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::fence::Fence;
use crate::sync::thread::Builder;
use crate::sync::time::Instant;
use crate::sync::{Condvar, Mutex, Rank};
use crate::telemetry::{self, tell};

/// What happened.
///
/// ```
/// use volfork::volume::EventKind;
///
/// /// Whether an operator is to be woken.
/// fn is_urgent(kind: EventKind) -> bool {
///     match kind {
///         EventKind::Hydrated | EventKind::Recovered => false,
///         // Writes fail, or stored bytes are wrong.
///         EventKind::WritesRefused | EventKind::Damaged | EventKind::NoSpace => true,
///         // It is tried again, and a later event tells when it is over.
///         EventKind::Degraded | EventKind::BackgroundFailed | EventKind::SpaceLow => false,
///         _ => true,
///     }
/// }
/// assert!(is_urgent(EventKind::Damaged) && !is_urgent(EventKind::Degraded));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum EventKind {
    /// Volumes do not need their source any more.
    Hydrated,
    /// No address of the source answers, or none has what is missing.
    Degraded,
    /// What was fetched cannot be stored: nothing more is fetched before there is space.
    NoSpace,
    /// Fetching goes on: an address answers again, or there is space.
    Recovered,
    /// The store was opened, and its files could be used by others: not any more. With an error: they still can, because of it.
    Restricted,
    /// Writes are refused from now on: an earlier write-back or sync failed, which the error tells.
    WritesRefused,
    /// Background work fails, and is tried again: see [`crate::Store::health`].
    BackgroundFailed,
    /// A damaged block was met. It may be repaired from a source.
    Damaged,
    /// The file system has little space left, or none.
    SpaceLow,
}

/// Something that happened in the background.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir().unwrap();
/// # use std::sync::{Arc, mpsc};
/// # use volfork::{Store, StoreOptions, source::UriSources, volume::{Event, EventKind}};
/// # let image = directory.path().join("image");
/// # std::fs::write(&image, vec![7; 1 << 20])?;
/// # let options = StoreOptions::default().with_sources(Arc::new(UriSources::default()));
/// let (sender, events) = mpsc::channel::<Event>();
/// let options = options.with_on_event(Arc::new(move |event| drop(sender.send(event.clone()))));
/// let store = Store::create(directory.path().join("store"), options)?;
/// store.fork(&format!("file://{}", image.display()), "machine")?;
///
/// // A full disk is told of, too.
/// let event = events.iter().find(|event| event.kind != EventKind::SpaceLow).expect("the store is open");
/// assert_eq!((event.kind, event.error), (EventKind::Hydrated, None));
/// assert_eq!(event.volumes, ["machine"]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// Names of the volumes it happened to; empty if it happened to the store.
    pub volumes: Vec<String>,
    /// Why, if something failed.
    pub error: Option<String>,
}

impl Event {
    /// Tells `tracing` of it.
    #[cfg_attr(not(feature = "tracing"), allow(clippy::unused_self))]
    fn trace(&self) {
        match self.kind {
            EventKind::Hydrated | EventKind::Recovered => tell!(INFO, kind = ?self.kind, volumes = ?self.volumes),
            EventKind::WritesRefused | EventKind::Damaged => {
                tell!(ERROR, kind = ?self.kind, volumes = ?self.volumes, error = self.error);
            }
            EventKind::Degraded | EventKind::NoSpace | EventKind::Restricted | EventKind::BackgroundFailed | EventKind::SpaceLow => {
                tell!(WARN, kind = ?self.kind, volumes = ?self.volumes, error = self.error);
            }
        }
    }
}

/// Called with each event, one after the other, on a thread of the store that does nothing else (without
/// [`crate::StoreOptions::threads`]: in [`crate::Store::step`]). It may take its time and call the store, [`crate::Store::close`]
/// included; while it does, [`EVENTS_MAX`] events are kept, and beyond that the oldest are given up. A panic costs its own event.
/// A callback that holds a [`crate::Store`] keeps that store open until it is closed.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use volfork::StoreOptions;
/// use volfork::volume::{EventKind, OnEvent};
///
/// // A counter for the metrics of a server.
/// let damaged = Arc::new(AtomicU64::new(0));
/// let counter = Arc::clone(&damaged);
/// let on_event: OnEvent = Arc::new(move |event| {
///     if event.kind == EventKind::Damaged {
///         counter.fetch_add(1, Ordering::Relaxed);
///     }
/// });
/// let options = StoreOptions::default().with_on_event(on_event);
/// assert!(options.on_event.is_some() && damaged.load(Ordering::Relaxed) == 0);
/// ```
pub type OnEvent = Arc<dyn Fn(&Event) + Send + Sync>;

/// Events that wait for the callback at most.
pub const EVENTS_MAX: usize = 1024;
/// A thread without events ends after this time; the next event starts another one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a store that is being closed waits for the callback.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// An event that was not told yet.
pub struct Told {
    /// What happened.
    pub kind: EventKind,
    /// The volumes it happened to. They are looked up when the event is told, so that noting it does not wait for the catalogue.
    pub volumes: Box<dyn FnOnce() -> Vec<String> + Send>,
    /// Why, if something failed.
    pub error: Option<String>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Told>,
    /// A thread tells, or is about to.
    is_telling: bool,
    stopped: bool,
}

/// What has happened and waits for the callback.
///
/// # Invariants
/// - To note an event never waits, and no thread but the one that tells runs the callback.
pub struct Events {
    on_event: Option<OnEvent>,
    /// A thread tells events; otherwise [`Events::tell`] does.
    threads: bool,
    fence: Arc<Fence>,
    state: Mutex<State>,
    changed: Condvar,
}

thread_local! {
    /// Address of the events that this thread tells.
    static TELLS: Cell<usize> = const { Cell::new(0) };
}

impl Events {
    /// Nothing yet.
    pub fn new(on_event: Option<OnEvent>, fence: Arc<Fence>, threads: bool) -> Arc<Self> {
        Arc::new(Self { on_event, threads, fence, state: Mutex::ranked(Rank::Events, State::default()), changed: Condvar::new() })
    }

    /// Notes what happened. Never waits for the callback.
    pub fn note(self: &Arc<Self>, told: Told) {
        let mut state = self.state.lock();
        if state.stopped || self.on_event.is_none() && !telemetry::is_on() {
            return;
        }
        if state.queue.len() >= EVENTS_MAX {
            state.queue.pop_front();
        }
        state.queue.push_back(told);
        self.changed.notify_all();
        if self.threads && !state.is_telling {
            state.is_telling = true;
            let telling = Telling { events: Arc::clone(self), is_over: false };
            drop(state);
            // Without a thread the next event tries again.
            let _ = Builder::new().name("volfork-events".into()).spawn(move || telling.run(IDLE_TIMEOUT));
        }
    }

    /// Tells what was noted, on this thread, unless another thread is telling.
    pub fn tell(self: &Arc<Self>) {
        if std::mem::replace(&mut self.state.lock().is_telling, true) {
            return;
        }
        Telling { events: Arc::clone(self), is_over: false }.run(Duration::ZERO);
    }

    /// Tells one event, if there is one within the time.
    fn tell_next(&self, patience: Duration) -> bool {
        let told = {
            let mut state = self.state.lock();
            while state.queue.is_empty() && !state.stopped {
                if self.changed.wait_for(&mut state, patience).timed_out() {
                    break;
                }
            }
            let Some(told) = state.queue.pop_front() else {
                // Under the lock: a thread that notes the next event sees that no thread tells it.
                state.is_telling = false;
                self.changed.notify_all();
                return false;
            };
            told
        };
        let outer = TELLS.replace(std::ptr::from_ref(self).addr());
        // A panic was printed.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            let event = Event { kind: told.kind, volumes: (told.volumes)(), error: told.error };
            event.trace();
            self.on_event.iter().for_each(|on_event| on_event(&event));
        }));
        TELLS.set(outer);
        true
    }

    /// Notes nothing from now on, and waits (not without end, and not for itself) until what was noted is told. What is not told by
    /// then never is.
    pub fn stop(self: &Arc<Self>) {
        let is_own = TELLS.get() == std::ptr::from_ref(&**self).addr();
        self.state.lock().stopped = true;
        self.changed.notify_all();
        if is_own {
            return;
        }
        self.tell();
        let until = Instant::now() + STOP_PATIENCE;
        let mut state = self.state.lock();
        while state.is_telling && !self.changed.wait_until(&mut state, until).timed_out() {}
        state.queue.clear();
    }
}

/// Held by the thread that tells.
struct Telling {
    events: Arc<Events>,
    is_over: bool,
}

impl Telling {
    fn run(mut self, patience: Duration) {
        // The callback may close the store, which then does not wait for this thread.
        let _own = self.events.fence.adopt_thread();
        while self.events.tell_next(patience) {}
        self.is_over = true;
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        if !self.is_over {
            self.events.state.lock().is_telling = false;
            self.events.changed.notify_all();
        }
    }
}
