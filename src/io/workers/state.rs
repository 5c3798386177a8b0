//! What waits and runs in a pool.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::sync::time::Instant;

/// Keys that are known to be quick, at most.
const QUICK_MAX: usize = 1024;

/// One call.
pub type Job = Box<dyn FnOnce() + Send>;

/// How much a pool may use.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Threads whose calls are not slow.
    pub threads_max: usize,
    /// Slow calls beside them, each with its thread.
    pub slow_max: usize,
    /// Calls of one key under way; one, while the latest of that key was slow. Beyond `threads_max` it is one until a call of that key
    /// has ended in time: of many hosts that never answer, each costs one thread.
    pub of_key_max: usize,
    /// Calls of one key that wait; further ones are refused.
    pub waiting_max: usize,
    /// Its threads give way to the foreground.
    pub in_background: bool,
}

/// The calls of one key.
#[derive(Default)]
struct Key {
    waiting: VecDeque<Job>,
    running: usize,
    /// The latest call that ended, or one under way, was slow.
    is_slow: bool,
    has_turn: bool,
}

impl Key {
    /// Whether a call of it may begin. `trusted`: it is known to be quick, or there are threads that no other one needs.
    fn is_free(&self, bounds: &Bounds, trusted: bool) -> bool {
        let calls_max = if self.is_slow || !trusted { 1 } else { bounds.of_key_max };
        !self.waiting.is_empty() && self.running < calls_max
    }
}

/// A call under way.
struct Call {
    key: String,
    since: Instant,
    is_slow: bool,
}

/// A step and its moment.
pub(super) type TimerId = (Instant, u64);

#[derive(Default)]
pub(super) struct State {
    keys: BTreeMap<String, Key>,
    /// Keys whose latest call that ended was not slow.
    quick: BTreeSet<String>,
    /// Keys of which a job may run now, in their order.
    pub turns: VecDeque<String>,
    /// By number, so in the order in which they began.
    calls: BTreeMap<u64, Call>,
    /// Steps of the lead that are due at a moment, and those that are due.
    timers: BTreeMap<TimerId, Job>,
    due: VecDeque<Job>,
    next: u64,
    /// Threads beside the lead; those of them that have no job; those that have not begun.
    pub threads: usize,
    pub idle: usize,
    pub starting: usize,
    /// Calls under way that count as slow.
    pub slow: usize,
    pub has_lead: bool,
    /// Tasks that have not ended: the lead stays for them.
    pub tasks: usize,
    /// No thread could be started: when to try again, and since when.
    pub start_after: Option<Instant>,
    pub failing_since: Option<Instant>,
    pub closed: bool,
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Jobs of a key that wait.
    pub fn waiting_of(&self, key: &str) -> usize {
        self.keys.get(key).map_or(0, |key| key.waiting.len())
    }

    pub fn enqueue(&mut self, bounds: &Bounds, key: &str, job: Job) {
        self.keys.entry(key.to_owned()).or_default().waiting.push_back(job);
        self.give_turn(bounds, key);
    }

    fn is_trusted(&self, bounds: &Bounds, name: &str) -> bool {
        self.calls.len() < bounds.threads_max || self.quick.contains(name)
    }

    /// Lets a key take its turn if it can use one.
    fn give_turn(&mut self, bounds: &Bounds, name: &str) {
        let trusted = self.is_trusted(bounds, name);
        if let Some(key) = self.keys.get_mut(name)
            && key.is_free(bounds, trusted)
            && !std::mem::replace(&mut key.has_turn, true)
        {
            self.turns.push_back(name.to_owned());
        }
    }

    /// Begins the next job.
    pub fn take(&mut self, bounds: &Bounds) -> Option<(u64, Job)> {
        loop {
            let name = self.turns.pop_front()?;
            let trusted = self.is_trusted(bounds, &name);
            let Some(key) = self.keys.get_mut(&name) else { continue };
            key.has_turn = false;
            if !key.is_free(bounds, trusted) {
                // A call of it became slow meanwhile, or others took the threads.
                continue;
            }
            let Some(job) = key.waiting.pop_front() else { continue };
            key.running += 1;
            self.give_turn(bounds, &name);
            let number = self.number();
            self.calls.insert(number, Call { key: name, since: Instant::now(), is_slow: false });
            return Some((number, job));
        }
    }

    /// Ends a call.
    pub fn end(&mut self, bounds: &Bounds, number: u64, slow: Duration) {
        let Some(call) = self.calls.remove(&number) else { return };
        self.slow -= usize::from(call.is_slow);
        let is_slow = call.since.elapsed() > slow;
        self.note_end(&call.key, is_slow);
        let Some(key) = self.keys.get_mut(&call.key) else { return };
        key.running -= 1;
        key.is_slow = is_slow;
        if key.running == 0 && key.waiting.is_empty() {
            self.keys.remove(&call.key);
        }
        self.give_turn(bounds, &call.key);
    }

    fn note_end(&mut self, key: &str, is_slow: bool) {
        if is_slow {
            self.quick.remove(key);
        } else if !self.quick.contains(key) {
            if self.quick.len() >= QUICK_MAX {
                self.quick.clear();
            }
            self.quick.insert(key.to_owned());
        }
    }

    /// Counts the call that has taken longest as slow, if it is. Answers when to look again.
    pub fn find_slow(&mut self, now: Instant, slow: Duration) -> Option<Instant> {
        let call = self.calls.values_mut().find(|call| !call.is_slow)?;
        if now < call.since + slow {
            return Some(call.since + slow);
        }
        call.is_slow = true;
        self.slow += 1;
        if let Some(key) = self.keys.get_mut(&call.key) {
            key.is_slow = true;
        }
        Some(now)
    }

    /// Lets the lead run a step at a moment.
    pub fn add_timer(&mut self, at: Instant, step: Job) -> TimerId {
        let id = (at, self.number());
        self.timers.insert(id, step);
        id
    }

    /// A step that is not run any more, if it was not.
    pub fn take_timer(&mut self, id: TimerId) -> Option<Job> {
        self.timers.remove(&id)
    }

    /// Lets the lead run a step at once.
    pub fn add_due(&mut self, step: Job) {
        self.due.push_back(step);
    }

    /// The next step that is due.
    pub fn take_due(&mut self, now: Instant) -> Option<Job> {
        if let Some(timer) = self.timers.first_entry().filter(|timer| timer.key().0 <= now) {
            let step = timer.remove();
            self.due.push_back(step);
        }
        self.due.pop_front()
    }

    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }

    /// Whether the lead has nothing to do, now or later.
    pub fn is_over(&self) -> bool {
        self.threads == 0 && self.tasks == 0 && self.keys.is_empty() && self.timers.is_empty() && self.due.is_empty()
    }

    /// Jobs that wait for a thread, to be dropped without the lock.
    pub fn take_jobs(&mut self) -> Vec<Job> {
        self.turns.clear();
        let jobs = self.keys.values_mut().flat_map(|key| {
            key.has_turn = false;
            std::mem::take(&mut key.waiting)
        });
        let jobs = jobs.collect();
        self.keys.retain(|_, key| key.running > 0);
        jobs
    }

    /// All that waits, to be dropped without the lock.
    pub fn take_all(&mut self) -> Vec<Job> {
        let timers = std::mem::take(&mut self.timers).into_values();
        let steps: Vec<Job> = timers.chain(std::mem::take(&mut self.due)).collect();
        self.take_jobs().into_iter().chain(steps).collect()
    }
}
