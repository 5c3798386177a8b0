//! The ring of a simulated run, which stands for io_uring.
//!
//! As the kernel, it sees a transfer only when the owner reaps or waits. From then on, two tasks end transfers: in any order,
//! overlapping, at moments that the seed chooses, and while the owner does something else.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use super::op::{Done, Op, run};
use super::waker::{RingWaker, Wakes};
use crate::place::{length, wide};
use crate::sync::thread::{JoinHandle, sleep, spawn, yield_now};
use crate::sync::{Condvar, Mutex, Rank, sim};

/// Tasks of one ring.
const TASKS: usize = 2;
/// The longest delay of a slow transfer.
const DELAY_NANOS_MAX: u64 = 20_000_000;

#[derive(Default)]
struct State {
    submitted: Vec<(u64, Op)>,
    ended: Vec<Done>,
    closing: bool,
}

pub struct SimulatedRing {
    shared: Arc<(Mutex<State>, Condvar)>,
    pub wakes: Wakes,
    tasks: Vec<JoinHandle<()>>,
    pushed: Vec<(u64, Op)>,
    in_flight: usize,
}

impl SimulatedRing {
    pub fn new() -> io::Result<Self> {
        let wakes = Wakes::new()?;
        Ok(Self {
            shared: Arc::new((Mutex::ranked(Rank::SimulatedRing, State::default()), Condvar::new())),
            wakes,
            tasks: Vec::new(),
            pushed: Vec::new(),
            in_flight: 0,
        })
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether the next `reap` has something to do that the descriptor does not tell of.
    pub fn has_unseen(&self) -> bool {
        !self.pushed.is_empty()
    }

    /// Makes the descriptor readable until the next `reap`.
    pub fn nudge(&mut self) {
        self.wakes.waker.wake();
    }

    pub fn push(&mut self, token: u64, op: Op) {
        self.in_flight += 1;
        self.pushed.push((token, op));
    }

    fn submit(&mut self) {
        if self.pushed.is_empty() {
            return;
        }
        while self.tasks.len() < TASKS {
            let (shared, waker) = (Arc::clone(&self.shared), self.wakes.waker.clone());
            self.tasks.push(spawn(move || transfer(&shared, &waker)));
        }
        self.shared.0.lock().submitted.append(&mut self.pushed);
        self.shared.1.notify_all();
    }

    pub fn reap(&mut self, done: &mut Vec<Done>) -> io::Result<usize> {
        self.submit();
        self.wakes.clear();
        let mut state = self.shared.0.lock();
        let count = state.ended.len();
        done.append(&mut state.ended);
        self.in_flight -= count;
        Ok(count)
    }
}

/// The body of a task: it does transfers until the ring closes and nothing is submitted.
fn transfer((state, changed): &(Mutex<State>, Condvar), waker: &RingWaker) {
    loop {
        let (token, op) = {
            let mut state = state.lock();
            while state.submitted.is_empty() {
                if state.closing {
                    return;
                }
                changed.wait(&mut state);
            }
            let next = length(sim::below(wide(state.submitted.len())));
            state.submitted.swap_remove(next)
        };
        match sim::below(4) {
            0 => sleep(Duration::from_nanos(sim::below(DELAY_NANOS_MAX))),
            1 => yield_now(),
            _ => {}
        }
        let done = run(token, op);
        state.lock().ended.push(done);
        waker.wake();
    }
}

impl AsRawFd for SimulatedRing {
    fn as_raw_fd(&self) -> RawFd {
        self.wakes.waker.as_raw_fd()
    }
}

impl Drop for SimulatedRing {
    fn drop(&mut self) {
        // A transfer that was not submitted was never seen. The others own their buffers until their own end.
        self.pushed.clear();
        self.shared.0.lock().closing = true;
        self.shared.1.notify_all();
        for task in self.tasks.drain(..) {
            let _ = task.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::{Disk, IoMode, OpenMode, Ring, SystemDisk};
    use super::*;

    fn write(file: &Arc<dyn super::super::DiskFile>, number: u64) -> Op {
        Op::Write { file: Arc::clone(file), data: Bytes::from(vec![5; 512]), offset: number * 512 }
    }

    #[test]
    fn transfers_end_in_any_order_and_wake_the_owner() {
        let dir = tempfile::tempdir().unwrap();
        let file = SystemDisk::new().open(&dir.path().join("f"), OpenMode::Create, IoMode::Buffered).unwrap();
        let orders = (0..20).map(|seed| {
            let file = Arc::clone(&file);
            let order = sim::run(seed, sim::Config::default(), move || {
                let mut ring = Ring::new(8, None).unwrap();
                (0..8).for_each(|number| ring.push(number, write(&file, number)));
                let mut readable = [libc::pollfd { fd: ring.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
                let ready = crate::sync::poll(&mut readable, Some(Duration::from_secs(1))).unwrap();
                assert!(ring.in_flight() == 8 && ready == 0, "nothing ends before it is submitted");
                let mut done = Vec::new();
                while ring.in_flight() > 0 {
                    ring.wait(&mut done, None).unwrap();
                }
                let waker = ring.waker();
                let thread = spawn(move || waker.wake());
                ring.wait(&mut done, None).unwrap();
                thread.join().unwrap();
                done.iter().map(|done| done.token).collect::<Vec<u64>>()
            });
            order.unwrap()
        });
        let orders: std::collections::BTreeSet<Vec<u64>> = orders.collect();
        assert!(orders.len() > 5 && orders.iter().all(|order| order.len() == 8));
    }

    #[test]
    fn a_dropped_ring_waits_for_what_was_submitted() {
        let dir = tempfile::tempdir().unwrap();
        let file = SystemDisk::new().open(&dir.path().join("f"), OpenMode::Create, IoMode::Buffered).unwrap();
        for seed in 0..20 {
            let file = Arc::clone(&file);
            sim::run(seed, sim::Config::default(), move || {
                let mut ring = Ring::new(8, None).unwrap();
                let data = Bytes::from(vec![5; 512]);
                ring.push(0, Op::Write { file: Arc::clone(&file), data: data.clone(), offset: 0 });
                ring.reap(&mut Vec::new()).unwrap();
                ring.push(1, write(&file, 1));
                drop(ring);
                assert!(data.is_unique(), "the ring has given its buffer back");
            })
            .unwrap();
        }
    }
}
