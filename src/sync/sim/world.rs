//! One run: its threads, and the baton that they pass.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::outcome::{Failure, FailureKind, Outcome};
use super::report::{backtrace, describe};
use super::state::{Event, On, State, Status};
use super::strategy::Config;
use crate::place::index;

const NOBODY: usize = usize::MAX;
/// How long the threads of a failed run have to tell where they are.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

thread_local! {
    static CURRENT: RefCell<Option<Task>> = const { RefCell::new(None) };
}

/// The task of the present thread, if it belongs to a run.
pub fn current() -> Option<Task> {
    CURRENT.try_with(|task| task.borrow().clone()).ok().flatten()
}

pub struct World {
    pub(super) state: Mutex<State>,
    /// The holder of the baton.
    running: AtomicUsize,
    /// The task that is to tell where it is.
    asked: AtomicUsize,
    /// For the thread that waits for the run.
    changed: Condvar,
}

/// A task of a run, as its own thread sees it.
#[derive(Clone)]
pub struct Task {
    pub(super) world: Arc<World>,
    pub(super) id: usize,
}

impl Task {
    /// Waits for the baton; meanwhile answers the question where it is.
    fn wait_for_baton(&self) {
        while self.world.running.load(Ordering::Acquire) != self.id {
            std::thread::park();
            if self.world.asked.load(Ordering::Acquire) == self.id {
                let text = backtrace();
                self.world.state.lock().tasks[self.id].backtrace = Some(text);
                self.world.asked.store(NOBODY, Ordering::Release);
                self.world.changed.notify_all();
            }
        }
    }

    /// Ends the run as a failure. The present thread stays where it is for ever, as all others do.
    pub(super) fn fail(&self, mut state: MutexGuard<'_, State>, kind: FailureKind, text: String) -> ! {
        state.failure.get_or_insert((kind, text));
        self.world.running.store(NOBODY, Ordering::Release);
        self.world.changed.notify_all();
        drop(state);
        loop {
            self.wait_for_baton();
        }
    }

    fn hand_over(&self, state: MutexGuard<'_, State>, next: usize) {
        let thread = state.tasks[next].thread.clone();
        drop(state);
        self.world.running.store(next, Ordering::Release);
        if let Some(thread) = thread {
            thread.unpark();
        }
    }

    /// Lets the scheduler choose; returns when this task is chosen.
    fn reschedule(&self, mut state: MutexGuard<'_, State>, stays: bool) {
        match state.choose(self.id, stays) {
            Some(next) if next == self.id => {}
            Some(next) => {
                self.hand_over(state, next);
                self.wait_for_baton();
            }
            None => self.fail(state, FailureKind::Deadlock, "no task can run, and no timer is set".into()),
        }
    }

    #[track_caller]
    fn step(&self, what: &'static str) -> MutexGuard<'_, State> {
        let place = std::panic::Location::caller();
        let mut state = self.world.state.lock();
        if !state.step(self.id, what, place) {
            let text = format!("the run has not ended after {} steps", state.config.steps_max);
            self.fail(state, FailureKind::Livelock, text);
        }
        state
    }

    /// Lets another task go first, perhaps.
    #[track_caller]
    pub(in crate::sync) fn point(&self, what: &'static str) {
        let mut state = self.step(what);
        let until = state.nap(std::panic::Location::caller());
        if until.is_some() {
            state.tasks[self.id].status = Status::Waits { on: On::Nap, until };
        }
        self.reschedule(state, until.is_none());
    }

    /// Notes that the task takes a lock for which it may have to wait.
    #[track_caller]
    pub(super) fn takes(&self, lock: u64) {
        let mut state = self.world.state.lock();
        if let Some(circle) = state.order.takes(self.id, lock, std::panic::Location::caller()) {
            self.fail(state, FailureKind::LockOrder, circle);
        }
    }

    /// Notes that the task has a lock for which it did not wait.
    #[track_caller]
    pub(super) fn has(&self, lock: u64) {
        self.world.state.lock().order.has(self.id, lock, std::panic::Location::caller());
    }

    /// Notes that the task gives a lock back, and wakes those who wait for it.
    pub(super) fn gives(&self, lock: u64, address: usize) {
        let mut state = self.world.state.lock();
        state.order.gives(self.id, lock);
        state.wake_lock(address);
    }

    /// Lets another task go first if there is one.
    #[track_caller]
    pub(super) fn yield_now(&self) {
        let mut state = self.step("yield");
        state.give_way(self.id);
        self.reschedule(state, false);
    }

    /// Waits until woken or until the time; answers whether the time ended the wait.
    #[track_caller]
    pub(super) fn wait(&self, what: &'static str, on: On, until: Option<u64>) -> bool {
        let mut state = self.step(what);
        let task = &mut state.tasks[self.id];
        task.status = Status::Waits { on, until };
        task.timed_out = false;
        self.reschedule(state, false);
        self.world.state.lock().tasks[self.id].timed_out
    }

    /// The virtual time after a duration.
    pub(super) fn after(&self, duration: Duration) -> Option<u64> {
        self.world.state.lock().now.checked_add(u64::try_from(duration.as_nanos()).ok()?)
    }

    pub(super) fn now(&self) -> Duration {
        Duration::from_nanos(self.world.state.lock().now)
    }

    pub(in crate::sync) fn number(&self) -> usize {
        self.id
    }

    pub(super) fn random(&self) -> u64 {
        self.world.state.lock().random.next()
    }

    /// A value of the run, by the address of what would be a static of the process.
    pub(in crate::sync) fn of_run(&self, address: usize, make: impl FnOnce() -> Arc<dyn Any + Send + Sync>) -> Arc<dyn Any + Send + Sync> {
        let found = self.world.state.lock().values.get(&address).cloned();
        found.unwrap_or_else(|| {
            // The present task has the baton until it is noted.
            let made = make();
            self.world.state.lock().values.insert(address, Arc::clone(&made));
            made
        })
    }

    pub(super) fn note(&self, text: String) {
        self.world.state.lock().event(Event::Note { task: self.id, text });
    }

    /// Waits for the end of a task.
    #[track_caller]
    pub(super) fn join(&self, other: usize) {
        self.point("join");
        while !self.has_ended(other) {
            self.wait("join", On::End(other), None);
        }
    }

    /// Takes one of the tasks that were started in a scope.
    pub(super) fn take_scoped(&self, scope: usize) -> Option<usize> {
        let scoped = &mut self.world.state.lock().scoped;
        let at = scoped.iter().position(|(address, _)| *address == scope)?;
        Some(scoped.remove(at).1)
    }

    pub(super) fn has_ended(&self, other: usize) -> bool {
        matches!(self.world.state.lock().tasks[other].status, Status::Ended)
    }

    /// A task that is about to get a thread.
    #[track_caller]
    pub(super) fn add(&self, name: String) -> Self {
        let place = std::panic::Location::caller();
        let id = self.world.state.lock().add(name, place);
        Self { world: Arc::clone(&self.world), id }
    }

    /// Gives a new task its thread.
    pub(super) fn starts(&self, thread: std::thread::Thread) {
        self.world.state.lock().tasks[self.id].thread = Some(thread);
    }

    /// Ends a task whose thread could not be started.
    pub(super) fn never_started(&self) {
        self.world.state.lock().end(self.id);
    }

    /// What the thread of a task does.
    pub(super) fn life<T>(self, body: impl FnOnce() -> T) -> T {
        self.wait_for_baton();
        CURRENT.with(|current| *current.borrow_mut() = Some(self.clone()));
        let result = catch_unwind(AssertUnwindSafe(body));
        CURRENT.with(|current| *current.borrow_mut() = None);
        let mut state = self.world.state.lock();
        let value = match result {
            Ok(value) => value,
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".into());
                let text = format!("task {} ({}) panicked: {text}", self.id, state.tasks[self.id].name);
                self.fail(state, FailureKind::Panic, text);
            }
        };
        state.end(self.id);
        if state.live.is_empty() {
            self.world.running.store(NOBODY, Ordering::Release);
            self.world.changed.notify_all();
            return value;
        }
        match state.choose(self.id, false) {
            Some(next) => self.hand_over(state, next),
            None => self.fail(state, FailureKind::Deadlock, "no task can run, and no timer is set".into()),
        }
        value
    }
}

impl World {
    /// Waits for the end of the run; answers why it failed.
    fn wait(&self, seed: u64) -> Option<Failure> {
        let mut state = self.state.lock();
        let mut progress = (state.steps, Instant::now());
        while state.failure.is_none() && !state.live.is_empty() {
            self.changed.wait_for(&mut state, Duration::from_secs(1));
            if state.steps != progress.0 {
                progress = (state.steps, Instant::now());
            } else if progress.1.elapsed() > state.config.stall {
                let running = self.running.load(Ordering::Acquire);
                state.failure = Some((FailureKind::Stall, format!("task {running} holds the baton and blocks outside the scheduler")));
            }
        }
        let (kind, text) = state.failure.clone()?;
        for task in state.live.clone() {
            let Some(thread) = state.tasks[task].thread.clone() else { continue };
            self.asked.store(task, Ordering::Release);
            thread.unpark();
            let deadline = Instant::now() + ANSWER_TIMEOUT;
            while state.tasks[task].backtrace.is_none() && !self.changed.wait_until(&mut state, deadline).timed_out() {}
        }
        Some(Failure { kind, seed, report: describe(seed, kind, &text, &state) })
    }
}

/// Keeps the thread, and those that it starts, on one processor: there the baton passes without waking another one. Runs beside one
/// another get different ones.
fn stay_on_one_processor() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    const BYTES: usize = size_of::<libc::cpu_set_t>();
    // SAFETY: the sets are plain data for which zeros are an empty set, and live past the calls; 0 means the present thread.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, BYTES, &raw mut allowed) != 0 {
            return;
        }
        let cpus: Vec<usize> = (0..index(libc::CPU_SETSIZE.unsigned_abs())).filter(|cpu| libc::CPU_ISSET(*cpu, &allowed)).collect();
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpus[RUNS.fetch_add(1, Ordering::Relaxed) % cpus.len()], &mut one);
        libc::sched_setaffinity(0, BYTES, &raw const one);
    }
}

/// Runs `body` and all threads that it starts under the scheduler, until all have ended.
///
/// # Panics
/// If the machine has no thread for it.
#[track_caller]
pub fn run<T: Send + 'static>(seed: u64, config: Config, body: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
    let mut state = State::new(seed, config);
    let id = state.add("root".into(), std::panic::Location::caller());
    let world = Arc::new(World {
        state: Mutex::new(state),
        running: AtomicUsize::new(NOBODY),
        asked: AtomicUsize::new(NOBODY),
        changed: Condvar::new(),
    });
    let root = Task { world: Arc::clone(&world), id };
    let life = root.clone();
    let thread = std::thread::Builder::new().name(format!("sim-{seed}")).spawn(move || {
        stay_on_one_processor();
        life.life(body)
    });
    let thread = thread.expect("a thread for the run");
    root.starts(thread.thread().clone());
    root.world.running.store(id, Ordering::Release);
    thread.thread().unpark();
    let failure = world.wait(seed);
    let result = match failure {
        Some(failure) => Err(failure),
        None => Ok(thread.join().expect("a panic of the root fails the run")),
    };
    let state = world.state.lock();
    let (steps, switches) = (state.steps, state.switches);
    Outcome { result, seed, strategy: state.strategy, steps, switches, trace: state.trace, elapsed: Duration::from_nanos(state.now) }
}
