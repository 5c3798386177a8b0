//! State of a run, and the choice of the next task. Pure, but for polling descriptors.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::order::{Order, Place};
use super::outcome::FailureKind;
use super::strategy::{Config, Early, Random, SlowPlaces, Strategy, nap_one_in, nap_steps, step_nanos};
use crate::place::wide;
use crate::sync::ppoll::poll_now;
use crate::units::whole_nanos;

/// Events kept for the report of a failure.
const EVENTS_MAX: usize = 200;
/// Steps in a row after which the task with the highest priority counts as waiting for another task in a loop.
const STREAK_MAX: u64 = 2_000;
/// Most virtual time that a run may skip because all tasks sleep at points. With more, timeouts would expire without a cause.
const NAPPED_NANOS_MAX: u64 = 5_000_000_000;
/// While tasks wait for descriptors, one step in this many polls them.
const LOOK_ONE_IN: u32 = 8;

/// What a task waits for.
#[derive(Clone, Debug)]
pub(super) enum On {
    Lock(usize),
    Notification(usize),
    End(usize),
    Time,
    /// Sleeps at a point, only so that others go on.
    Nap,
    Descriptors(Vec<libc::pollfd>),
}

pub(super) enum Status {
    Ready,
    Waits { on: On, until: Option<u64> },
    Ended,
}

pub(super) struct TaskState {
    pub name: String,
    pub status: Status,
    /// Whether the last wait ended by its timeout.
    pub timed_out: bool,
    pub place: Place,
    pub what: &'static str,
    pub thread: Option<std::thread::Thread>,
    pub priority: u64,
    pub backtrace: Option<String>,
}

pub(super) enum Event {
    Step { task: usize, what: &'static str, place: Place },
    Note { task: usize, text: String },
}

pub(super) struct State {
    pub random: Random,
    pub strategy: Strategy,
    pub early: Early,
    pub config: Config,
    pub tasks: Vec<TaskState>,
    /// Tasks that have not ended, in the order of their start.
    pub live: Vec<usize>,
    pub now: u64,
    pub steps: u64,
    pub switches: u64,
    pub trace: u64,
    pub events: VecDeque<Event>,
    pub failure: Option<(FailureKind, String)>,
    /// Tasks that no scope has joined yet, with the address of their scope.
    pub scoped: Vec<(usize, usize)>,
    pub order: Order,
    /// Values of the run, by the address of what would be a static of the process.
    pub values: FxHashMap<usize, Arc<dyn Any + Send + Sync>>,
    step_nanos: u64,
    nap_one_in: u32,
    napped_nanos: u64,
    slow: SlowPlaces,
    salt: u64,
    /// For each place that was passed, by its address: whether it is slow.
    slow_places: FxHashMap<usize, bool>,
    changes: Vec<u64>,
    lowest: u64,
    streak: u64,
    ready: Vec<usize>,
}

impl State {
    pub fn new(seed: u64, config: Config) -> Self {
        let mut random = Random::new(seed);
        let (strategy, early) = (Strategy::of(&mut random), Early::of(&mut random));
        let (strategy, early) = (config.strategy.unwrap_or(strategy), config.early.unwrap_or(early));
        let step_nanos = step_nanos(&config, &mut random);
        let nap_one_in = nap_one_in(&config, &mut random);
        let slow = SlowPlaces::of(&mut random);
        let (slow, salt) = (config.slow.unwrap_or(slow), random.next());
        let changes = strategy.change_steps(&mut random);
        Self {
            random,
            strategy,
            early,
            config,
            tasks: Vec::new(),
            live: Vec::new(),
            now: 0,
            steps: 0,
            switches: 0,
            trace: 0,
            events: VecDeque::with_capacity(EVENTS_MAX),
            failure: None,
            scoped: Vec::new(),
            order: Order::default(),
            values: FxHashMap::default(),
            step_nanos,
            nap_one_in,
            napped_nanos: 0,
            slow,
            salt,
            slow_places: FxHashMap::default(),
            changes,
            lowest: 1 << 62,
            streak: 0,
            ready: Vec::new(),
        }
    }

    /// A new task, ready; answers its number.
    pub fn add(&mut self, name: String, place: Place) -> usize {
        let task = self.tasks.len();
        let priority = (1 << 63) | self.random.next();
        self.tasks.push(TaskState {
            name,
            status: Status::Ready,
            timed_out: false,
            place,
            what: "start",
            thread: None,
            priority,
            backtrace: None,
        });
        self.live.push(task);
        task
    }

    pub fn event(&mut self, event: Event) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Counts a step of a task; false if the budget is spent.
    pub fn step(&mut self, task: usize, what: &'static str, place: Place) -> bool {
        self.steps += 1;
        self.streak += 1;
        self.now += self.step_nanos;
        let seen = wide(task) << 40 ^ u64::from(place.line()) << 8 ^ u64::from(place.column()) ^ wide(what.len()) << 32;
        self.trace = (self.trace.rotate_left(5) ^ seen).wrapping_mul(0x517c_c1b7_2722_0a95);
        self.event(Event::Step { task, what, place });
        let state = &mut self.tasks[task];
        (state.what, state.place) = (what, place);
        if matches!(self.strategy, Strategy::Priorities { .. }) {
            let changes = self.changes.last().is_some_and(|step| *step <= self.steps);
            if changes {
                self.changes.pop();
            }
            if changes || self.streak > STREAK_MAX {
                self.give_way(task);
            }
        }
        self.steps <= self.config.steps_max
    }

    /// Whether the running task sleeps here, and until when.
    pub fn nap(&mut self, place: Place) -> Option<u64> {
        let is_slow = self.slow.one_in > 0 && self.is_slow(place);
        let one_in = if is_slow { self.slow.nap_one_in } else { self.nap_one_in };
        let naps = self.live.len() > 1 && self.random.one_in(one_in);
        naps.then(|| self.now + self.step_nanos * nap_steps(&mut self.random))
    }

    fn is_slow(&mut self, place: Place) -> bool {
        let (slow, salt) = (self.slow, self.salt);
        *self.slow_places.entry(std::ptr::from_ref(place).addr()).or_insert_with(|| slow.has(place, salt))
    }

    /// Gives a task the lowest priority.
    pub fn give_way(&mut self, task: usize) {
        self.lowest -= 1;
        self.streak = 0;
        self.tasks[task].priority = self.lowest;
    }

    /// Makes a waiting task ready. A task that polls for a change in a loop yields each time; two of them would otherwise starve the others
    /// by their priorities.
    pub fn wake(&mut self, task: usize, timed_out: bool) {
        if !matches!(self.tasks[task].status, Status::Waits { .. }) {
            return;
        }
        self.tasks[task].status = Status::Ready;
        self.tasks[task].timed_out = timed_out;
        if timed_out {
            self.lowest -= 1;
            self.tasks[task].priority = self.lowest;
        }
    }

    fn waiters(&self, matches: impl Fn(&On) -> bool) -> Vec<usize> {
        let waits = |task: &usize| matches!(&self.tasks[*task].status, Status::Waits { on, .. } if matches(on));
        self.live.iter().copied().filter(waits).collect()
    }

    pub fn wake_lock(&mut self, address: usize) {
        for task in self.waiters(|on| matches!(on, On::Lock(lock) if *lock == address)) {
            self.wake(task, false);
        }
    }

    /// Ends the wait of one randomly drawn task, or of all.
    pub fn notify(&mut self, address: usize, all: bool) -> usize {
        let mut waiters = self.waiters(|on| matches!(on, On::Notification(condvar) if *condvar == address));
        if !all && !waiters.is_empty() {
            waiters = vec![waiters[self.random.below(waiters.len())]];
        }
        waiters.iter().for_each(|task| self.wake(*task, false));
        waiters.len()
    }

    /// Ends a task and the waits for it.
    pub fn end(&mut self, ended: usize) {
        self.tasks[ended].status = Status::Ended;
        self.tasks[ended].thread = None;
        self.live.retain(|task| *task != ended);
        for task in self.waiters(|on| matches!(on, On::End(task) if *task == ended)) {
            self.wake(task, false);
        }
    }

    fn is_ready(&self, task: usize) -> bool {
        matches!(self.tasks[task].status, Status::Ready)
    }

    /// The next timer: its time and task.
    fn next_timer(&self) -> Option<(u64, usize)> {
        let until = |task: &usize| match self.tasks[*task].status {
            Status::Waits { until: Some(until), .. } => Some((until, *task)),
            _ => None,
        };
        self.live.iter().filter_map(until).min()
    }

    fn fire_timers(&mut self) {
        while let Some((until, task)) = self.next_timer() {
            if until > self.now {
                return;
            }
            self.wake(task, true);
        }
    }

    /// Wakes the tasks whose descriptors are ready.
    fn look_at_descriptors(&mut self) {
        let mut all = Vec::new();
        for task in &self.live {
            if let Status::Waits { on: On::Descriptors(fds), .. } = &self.tasks[*task].status {
                all.extend(fds.iter().map(|fd| (*task, *fd)));
            }
        }
        let mut fds: Vec<libc::pollfd> = all.iter().map(|(_, fd)| *fd).collect();
        if fds.is_empty() || !matches!(poll_now(&mut fds, Some(std::time::Duration::ZERO)), Ok(1..)) {
            return;
        }
        for ((task, _), fd) in all.iter().zip(&fds) {
            if fd.revents != 0 {
                self.wake(*task, false);
            }
        }
    }

    fn polls(&self) -> bool {
        self.live.iter().any(|task| matches!(self.tasks[*task].status, Status::Waits { on: On::Descriptors(_), .. }))
    }

    /// The task that runs next; `None` if none can. `me` is the one that has run.
    pub fn choose(&mut self, me: usize, stays: bool) -> Option<usize> {
        self.fire_timers();
        if self.random.one_in(self.early.one_in)
            && let Some((until, task)) = self.next_timer()
            && until <= self.now + whole_nanos(self.early.within)
        {
            self.now = self.now.max(until);
            self.wake(task, true);
        }
        if self.polls() && self.random.one_in(LOOK_ONE_IN) {
            self.look_at_descriptors();
        }
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        ready.extend(self.live.iter().copied().filter(|task| self.is_ready(*task)));
        if ready.is_empty() {
            self.look_at_descriptors();
            if !self.live.iter().any(|task| self.is_ready(*task))
                && let Some((until, task)) = self.next_timer()
            {
                self.jump(until, task);
            }
            ready.extend(self.live.iter().copied().filter(|task| self.is_ready(*task)));
        }
        let chosen = self.pick(me, stays, &ready);
        self.ready = ready;
        if chosen.is_some_and(|chosen| chosen != me) {
            self.switches += 1;
            self.streak = 0;
        }
        chosen
    }

    /// Advances virtual time to the next timer, because no task can run before.
    fn jump(&mut self, until: u64, task: usize) {
        if matches!(self.tasks[task].status, Status::Waits { on: On::Nap, .. }) {
            self.napped_nanos += until.saturating_sub(self.now);
            if self.napped_nanos > NAPPED_NANOS_MAX {
                return self.wake(task, true);
            }
        }
        self.now = self.now.max(until);
        self.fire_timers();
    }

    fn pick(&mut self, me: usize, stays: bool, ready: &[usize]) -> Option<usize> {
        if ready.len() <= 1 {
            return ready.first().copied();
        }
        match self.strategy {
            Strategy::Priorities { .. } => ready.iter().copied().max_by_key(|task| self.tasks[*task].priority),
            Strategy::Random { switch_one_in } => {
                let here = ready.iter().position(|task| *task == me);
                match here {
                    Some(_) if stays && !self.random.one_in(switch_one_in) => Some(me),
                    // One of the others.
                    Some(here) => Some(ready[(here + 1 + self.random.below(ready.len() - 1)) % ready.len()]),
                    None => Some(ready[self.random.below(ready.len())]),
                }
            }
        }
    }
}
