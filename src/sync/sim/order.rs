//! The order in which tasks take locks. Two locks that are taken in two orders are a deadlock under some schedule, be it a rare one:
//! a run that shows both orders fails, whether its tasks met or not (as `lockdep` of Linux does, but for each lock of its own).
//!
//! Orders that were all seen under one further lock do not count: the holder of that lock keeps the others out. A lock that is read counts
//! as one that is taken, for a writer that waits keeps readers out.

use std::fmt::Write;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};

use rustc_hash::{FxHashMap, FxHashSet};

/// A place in the source.
pub type Place = &'static Location<'static>;

/// What a lock is called in all runs; given when it is first taken.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub fn get(&self) -> u64 {
        static LAST: AtomicU64 = AtomicU64::new(0);
        match self.0.load(Ordering::Relaxed) {
            0 => {
                let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
                self.0.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed).map_or_else(|other| other, |_| number)
            }
            number => number,
        }
    }
}

/// Where a task has taken the one lock and then the other.
struct Taken {
    first: Place,
    then: Place,
    /// Locks that were held each time.
    under: Vec<u64>,
}

#[derive(Default)]
pub struct Order {
    /// What each task holds, in the order of taking.
    held: Vec<Vec<(u64, Place)>>,
    /// By the first lock, those that were taken under it.
    after: FxHashMap<u64, FxHashMap<u64, Taken>>,
}

impl Order {
    /// A task holds a lock for which it has not waited.
    pub fn has(&mut self, task: usize, lock: u64, place: Place) {
        if self.held.len() <= task {
            self.held.resize_with(task + 1, Vec::new);
        }
        self.held[task].push((lock, place));
    }

    /// A task takes a lock, and waits for it. Answers the circle that this closes.
    pub fn takes(&mut self, task: usize, lock: u64, place: Place) -> Option<String> {
        let circle = (0..self.held.get(task).map_or(0, Vec::len)).find_map(|at| self.note(task, at, (lock, place)));
        self.has(task, lock, place);
        circle
    }

    /// A task gives a lock back.
    pub fn gives(&mut self, task: usize, lock: u64) {
        if let Some(held) = self.held.get_mut(task)
            && let Some(at) = held.iter().rposition(|(number, _)| *number == lock)
        {
            held.remove(at);
        }
    }

    /// Notes that a lock is taken under the one at `at`; answers the circle.
    fn note(&mut self, task: usize, at: usize, (lock, then): (u64, Place)) -> Option<String> {
        let held = &self.held[task];
        let (outer, first) = held[at];
        if outer == lock {
            return None;
        }
        let others = || held.iter().map(|(number, _)| *number).filter(|number| *number != outer);
        match self.after.entry(outer).or_default().entry(lock) {
            std::collections::hash_map::Entry::Occupied(known) => {
                let under = &mut known.into_mut().under;
                let before = under.len();
                under.retain(|number| others().any(|other| other == *number));
                if under.len() == before {
                    return None;
                }
            }
            std::collections::hash_map::Entry::Vacant(new) => drop(new.insert(Taken { first, then, under: others().collect() })),
        }
        let under = self.after[&outer][&lock].under.clone();
        let mut path = vec![(outer, lock)];
        self.leads_back(lock, outer, &under, &mut path, &mut FxHashSet::default()).then(|| self.tell(&path))
    }

    /// Whether orders that are not all under one lock lead from one lock to another; adds them to the path.
    fn leads_back(&self, from: u64, to: u64, under: &[u64], path: &mut Vec<(u64, u64)>, seen: &mut FxHashSet<u64>) -> bool {
        if from == to {
            return under.is_empty();
        }
        if !seen.insert(from) {
            return false;
        }
        self.after.get(&from).into_iter().flatten().any(|(next, taken)| {
            let common: Vec<u64> = under.iter().copied().filter(|number| taken.under.contains(number)).collect();
            path.push((from, *next));
            let leads = self.leads_back(*next, to, &common, path, seen);
            if !leads {
                path.pop();
            }
            leads
        })
    }

    fn tell(&self, path: &[(u64, u64)]) -> String {
        let mut out = String::from("locks are taken in a circle:");
        for (outer, lock) in path {
            let taken = &self.after[outer][lock];
            let (first, then) = (taken.first, taken.then);
            let _ =
                write!(out, "\n  lock {lock} at {}:{}, under lock {outer} of {}:{}", then.file(), then.line(), first.file(), first.line());
        }
        out
    }
}
