//! The ring over io_uring.
//!
//! A plain ring, without deferred task work: its descriptor has to become readable although the owner is not in the kernel.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::{IoUring, opcode, squeue, types};

use super::ring::{Done, Op, RingWaker};

/// Marks completions of the poll on the waker.
const WAKE: u64 = u64::MAX;

struct InFlight {
    token: u64,
    op: Op,
    transferred: usize,
}

pub struct UringRing {
    ring: IoUring,
    /// Owns buffers and files until their own completion.
    in_flight: Vec<Option<InFlight>>,
    free: Vec<u32>,
    /// Do not fit into the ring yet.
    waiting: VecDeque<u32>,
    /// Entries that the kernel has or will get: bounded, so that no completion is lost.
    entries: usize,
    waker: RingWaker,
    armed: bool,
    closing: bool,
    woken: bool,
    /// Ended without the kernel.
    ended: Vec<Done>,
}

impl UringRing {
    pub fn new(depth: u32) -> io::Result<Self> {
        let entries = depth.clamp(8, 4096).next_power_of_two();
        let ring = IoUring::builder().setup_submit_all().setup_cqsize(entries * 2).dontfork().build(entries);
        let ring = ring.or_else(|_| IoUring::new(entries))?;
        let waker = RingWaker::new()?;
        Ok(Self {
            ring,
            in_flight: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            entries: 0,
            waker,
            armed: false,
            closing: false,
            woken: false,
            ended: Vec::new(),
        })
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len() - self.free.len() + self.ended.len()
    }

    pub fn waker(&self) -> RingWaker {
        self.waker.clone()
    }

    /// Whether a wake was taken since the last call.
    pub fn take_woken(&mut self) -> bool {
        std::mem::take(&mut self.woken)
    }

    pub fn push(&mut self, token: u64, op: Op) {
        let (file, offset) = match &op {
            Op::Read { file, offset, .. } | Op::Write { file, offset, .. } => (file, offset),
        };
        if file.raw_fd().is_none() || *offset > i64::MAX as u64 {
            self.ended.push(run(token, op));
            return;
        }
        let entry = InFlight { token, op, transferred: 0 };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.in_flight[slot as usize] = Some(entry);
                slot
            }
            None => {
                self.in_flight.push(Some(entry));
                self.in_flight.len() as u32 - 1
            }
        };
        self.waiting.push_back(slot);
    }

    /// Moves waiting transfers into the submission queue as far as they fit.
    fn fill(&mut self) {
        let room = self.ring.params().sq_entries() as usize;
        let mut entries = Vec::new();
        if !self.armed {
            self.armed = true;
            entries.push(opcode::PollAdd::new(types::Fd(self.waker.as_raw_fd()), libc::POLLIN as u32).build().user_data(WAKE));
        }
        while self.entries + entries.len() < room
            && let Some(slot) = self.waiting.pop_front()
        {
            if let Some(entry) = self.in_flight[slot as usize].as_mut().and_then(|entry| entry.entry()) {
                entries.push(entry.user_data(u64::from(slot)));
            }
        }
        self.entries += entries.len();
        for entry in &entries {
            // SAFETY: buffer and file of the entry are owned by its slot of `in_flight` until its own completion was taken; the
            // ring is not dropped before (see `drop`).
            if unsafe { self.ring.submission().push(entry) }.is_err() {
                // `entries` counts what the kernel has, and is kept below the size of the queue.
                debug_assert!(false, "the submission queue is full");
            }
        }
    }

    pub fn reap(&mut self, done: &mut Vec<Done>) -> io::Result<usize> {
        let before = done.len();
        done.append(&mut self.ended);
        loop {
            self.fill();
            let submitted = if self.ring.submission().is_empty() { Ok(0) } else { self.ring.submit() };
            match submitted {
                // Busy: completions have to be taken first.
                Err(error) if !matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN | libc::EINTR)) => return Err(error),
                _ => {}
            }
            self.take(done);
            if self.waiting.is_empty() || self.entries >= self.ring.params().sq_entries() as usize {
                return Ok(done.len() - before);
            }
        }
    }

    fn take(&mut self, done: &mut Vec<Done>) {
        let completions: Vec<(u64, i32)> = self.ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        for (slot, result) in completions {
            self.entries -= 1;
            if slot == WAKE {
                self.woken |= self.waker.clear();
                self.armed = false;
                continue;
            }
            let slot = slot as u32;
            let Some(entry) = self.in_flight[slot as usize].as_mut() else { continue };
            let ended = match result {
                0 => Some(Err(entry.op.stuck())),
                1.. => {
                    entry.transferred += result as usize;
                    (entry.transferred >= entry.op.bytes()).then_some(Ok(()))
                }
                _ if matches!(-result, libc::EINTR | libc::EAGAIN) => None,
                _ => Some(Err(io::Error::from_raw_os_error(-result))),
            };
            match ended {
                None => self.waiting.push_back(slot),
                Some(result) => {
                    if let Some(InFlight { token, op, .. }) = self.in_flight[slot as usize].take() {
                        self.free.push(slot);
                        done.push(Done { token, op, result });
                    }
                }
            }
        }
        // Arms the poll on the waker again, so that no later wake is missed.
        if !self.armed && !self.closing {
            self.fill();
            let _ = self.ring.submit();
        }
    }
}

impl InFlight {
    /// The entry for what is left. `None` cannot happen for files of the operating system.
    fn entry(&mut self) -> Option<squeue::Entry> {
        let done = self.transferred;
        Some(match &mut self.op {
            Op::Read { file, buffer, offset } => {
                let rest = &mut buffer[done..];
                let length = rest.len().min(i32::MAX as usize) as u32;
                opcode::Read::new(types::Fd(file.raw_fd()?), rest.as_mut_ptr(), length).offset(*offset + done as u64).build()
            }
            Op::Write { file, data, offset } => {
                let rest = &data[done..];
                let length = rest.len().min(i32::MAX as usize) as u32;
                opcode::Write::new(types::Fd(file.raw_fd()?), rest.as_ptr(), length).offset(*offset + done as u64).build()
            }
        })
    }
}

/// Does a transfer here and now.
pub(super) fn run(token: u64, mut op: Op) -> Done {
    use super::DiskFileExt;
    let result = match &mut op {
        Op::Read { file, buffer, offset } => file.read_exact_at(buffer, *offset),
        Op::Write { file, data, offset } => file.write_all_at(data, *offset),
    };
    Done { token, op, result }
}

impl AsRawFd for UringRing {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl Drop for UringRing {
    fn drop(&mut self) {
        // What the kernel has not seen can go; for the rest, its own completion is the only end.
        for slot in std::mem::take(&mut self.waiting) {
            self.in_flight[slot as usize] = None;
        }
        self.closing = true;
        self.waker.wake();
        let mut done = Vec::new();
        while self.entries > 0 {
            if self.ring.submit_and_wait(1).is_err() {
                crate::sync::thread::yield_now();
            }
            self.take(&mut done);
            for slot in std::mem::take(&mut self.waiting) {
                self.in_flight[slot as usize] = None;
            }
        }
    }
}
