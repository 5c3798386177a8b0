//! The ring over threads that call `pread` and `pwrite`, for machines without io_uring and for simulated files.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use super::op::{Done, Op, run};
use super::waker::Wakes;
use crate::sync::mpsc::{Receiver, Sender, channel};
use crate::sync::thread::JoinHandle;
use crate::sync::{Mutex, Rank};

/// Threads of one ring.
const THREADS_MAX: usize = 8;

pub struct ThreadRing {
    sender: Option<Sender<(u64, Op)>>,
    receiver: Arc<Mutex<Receiver<(u64, Op)>>>,
    ended: Arc<Mutex<Vec<Done>>>,
    pub wakes: Wakes,
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
}

impl ThreadRing {
    pub fn new() -> io::Result<Self> {
        let (sender, receiver) = channel();
        Ok(Self {
            sender: Some(sender),
            receiver: Arc::new(Mutex::ranked(Rank::RingJobs, receiver)),
            ended: Arc::new(Mutex::ranked(Rank::RingEnded, Vec::new())),
            wakes: Wakes::new()?,
            threads: Vec::new(),
            in_flight: 0,
        })
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Nothing: the threads see a transfer when it is pushed.
    pub fn has_unseen(&self) -> bool {
        false
    }

    /// Makes the descriptor readable until the next `reap`.
    pub fn nudge(&mut self) {
        self.wakes.waker.wake();
    }

    pub fn push(&mut self, token: u64, op: Op) {
        self.in_flight += 1;
        if self.threads.len() < THREADS_MAX.min(self.in_flight) {
            let (receiver, ended, waker) = (Arc::clone(&self.receiver), Arc::clone(&self.ended), self.wakes.waker.clone());
            let started = crate::sync::thread::Builder::new().name("volfork-ring".into()).spawn(move || {
                loop {
                    let Ok((token, op)) = receiver.lock().recv() else { return };
                    let done = run(token, op);
                    ended.lock().push(done);
                    waker.wake();
                }
            });
            self.threads.extend(started);
        }
        match &self.sender {
            Some(sender) if !self.threads.is_empty() => drop(sender.send((token, op))),
            // Not one thread could be started.
            _ => {
                self.ended.lock().push(run(token, op));
                self.wakes.waker.wake();
            }
        }
    }

    pub fn reap(&mut self, done: &mut Vec<Done>) -> io::Result<usize> {
        self.wakes.clear();
        let mut ended = self.ended.lock();
        let count = ended.len();
        done.append(&mut ended);
        self.in_flight -= count;
        Ok(count)
    }
}

impl AsRawFd for ThreadRing {
    fn as_raw_fd(&self) -> RawFd {
        self.wakes.waker.as_raw_fd()
    }
}

impl Drop for ThreadRing {
    fn drop(&mut self) {
        self.sender = None;
        for thread in self.threads.drain(..) {
            // A thread ends when it has done what was pushed.
            let _ = thread.join();
        }
    }
}
